"""What is known of a policy on one CPU, whatever the session: its steps, and which states say all.

Both are learned from the policy's own oracle loop (``probe.py``) when they are first asked for.
"""

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Final

import numpy as np

from exitlab.events import EventKind
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.probe import Probe, Step
from hypervisor_svc.engine.profile import FAST, HEAVY, LIGHT
from hypervisor_svc.engine.states import PARTS, Codes, are_all_true, with_de, with_gd
from hypervisor_svc.engine.symbols import (
    DETAIL_HIT,
    QUIET_WORD,
    WORD_CLASS_SHIFT,
    WORD_DETAIL_SHIFT,
    WORD_DR,
    WORD_DR_BIT_11,
    WORD_DR_BIT_16,
    WORD_DR_ENABLES,
    WORD_DR_RESET,
    WORD_DR_RETIRED,
    WORD_DR_USER,
    WORD_DR_WRITE,
    without_number,
)
from hypervisor_svc.engine.tables import without_texts

# What is kept of a policy whatever the session, so that no client's tables fill the memory.
_KEPT_POLICIES: Final = 128
_KEPT_STEPS: Final = 4096

# What a guest does to a copy that is not the truth: read, write, and exits of the three classes.
_BASIS: Final = (
    QUIET_WORD,
    *(WORD_DR | register for register in range(8)),
    *(WORD_DR | WORD_DR_WRITE | word for word in (0, 6 | WORD_DR_BIT_11 | WORD_DR_BIT_16)),
    *(WORD_DR | WORD_DR_WRITE | 7 | word for word in (WORD_DR_RESET, WORD_DR_ENABLES)),
    *(EventKind.CPUID | exit_class << WORD_CLASS_SHIFT for exit_class in (FAST, LIGHT, HEAVY)),
)
_PORTS: Final = (EventKind.IN, EventKind.IN | DETAIL_HIT << WORD_DETAIL_SHIFT)
# What else happens to one: accesses that are known to be done, exceptions, ports, the host.
_RARER: Final = (
    *(WORD_DR | WORD_DR_RETIRED | word for word in (0, 6, 7, WORD_DR_WRITE, WORD_DR_WRITE | 7)),
    *(WORD_DR | WORD_DR_USER | word for word in (0, 6, 7, WORD_DR_WRITE)),
    *(EventKind.EXCEPTION | vector << WORD_DETAIL_SHIFT for vector in (1, 3, 13)),
    *(EventKind.FETCH, EventKind.WRITE, *_PORTS),
    *(kind | DETAIL_HIT << WORD_DETAIL_SHIFT for kind in (EventKind.FETCH, EventKind.WRITE)),
    *(EventKind.INT1, EventKind.INT3, EventKind.SIGNAL, EventKind.SCHED_OUT, EventKind.GET_DEBUGREGS),
)
# And what begins something of which no state tells.
_BEGINNINGS: Final = (
    *(EventKind.VMRUN, EventKind.SET_DEBUGREGS, EventKind.HOST_DEBUGGER, EventKind.HOST_BREAKPOINTS),
    *(EventKind.RESET, EventKind.INIT),
)
# And who looks at the registers afterwards.
_LOOKS: Final = (
    EventKind.CPUID | HEAVY << WORD_CLASS_SHIFT,
    *(WORD_DR | register for register in (0, 6, 7)),
    EventKind.GET_DEBUGREGS,
)


class Knowledge:
    """What was learned of one policy on one CPU, whatever the session; several threads may ask."""

    def __init__(self, message: policy_pb2.PolicyTable, writable_dr6: int, *, is_computed: bool) -> None:
        """Know nothing yet."""
        self._probe = Probe(message, writable_dr6, is_computed=is_computed)
        self._lock = Lock()
        self._steps: dict[tuple[bytes, int, int], Step | None] = {}
        self._is_determined: dict[bytes, bool] = {}

    def steps(self, state: bytes, words: Sequence[int], reasons: Sequence[int]) -> list[Step | None]:
        """Return what feature words do in a state; None where that is the loop's to say."""
        keys = [(state, without_number(word), reason) for word, reason in zip(words, reasons, strict=True)]
        with self._lock:
            fresh = [key for key in dict.fromkeys(keys) if key not in self._steps]
            if len(self._steps) + len(fresh) > _KEPT_STEPS:
                self._steps.clear()
                fresh = [*dict.fromkeys(keys)]
            if fresh:
                codes = np.frombuffer(state * len(fresh), np.uint8).reshape(len(fresh), PARTS)
                found = self._probe.steps(codes, [key[1] for key in fresh], [key[2] for key in fresh])
                self._steps.update(zip(fresh, found, strict=True))
            return [self._steps[key] for key in keys]

    def is_determined(self, state: bytes) -> bool:
        """Tell whether no copy that is not the truth can come to matter, whatever happens next.

        Only then do the state and the guest's registers say all that the loop needs to go on. Where a
        debugger or a nested guest begins, or registers are set from outside, only the first events are seen
        not to look at the copy.
        """
        with self._lock:
            if state not in self._is_determined:
                if len(self._is_determined) > _KEPT_STEPS:
                    self._is_determined.clear()
                seen = {state}
                found = self._closes_on_truth(seen)
                for one in seen if found else (state,):
                    self._is_determined[one] = found
            return self._is_determined[state]

    def _closes_on_truth(self, seen: set[bytes]) -> bool:
        """Follow what a guest does until every copy is the truth; add the states on the way."""
        fresh, stale = set(seen), np.zeros((0, PARTS), np.uint8)
        while len(codes := _not_all_true(fresh)):
            stale = np.concatenate((stale, codes))
            after, are_steps = self._probe.all_steps(codes, _BASIS)
            if not are_steps or any(self._is_determined.get(state) is False for state in after):
                return False
            fresh = {state for state in after - seen if state not in self._is_determined}
            seen |= after
        if self._probe.looks_at_stale(stale, _BEGINNINGS, _LOOKS)[1]:
            return False
        following: set[bytes] = set()
        for codes, words in ((stale, _RARER), (with_de(stale), _PORTS), (with_gd(stale), _LOOKS)):
            after, is_looked_at = self._probe.looks_at_stale(codes, words)
            if is_looked_at:
                return False
            following |= after
        return not self._probe.looks_at_stale(_not_all_true(following - seen), _LOOKS)[1]


def _not_all_true(states: set[bytes]) -> Codes:
    """Return those of these states of which a copy is not the truth."""
    codes = np.frombuffer(b"".join(sorted(states)), np.uint8).reshape(len(states), PARTS)
    return codes[~are_all_true(codes)]


@lru_cache(maxsize=_KEPT_POLICIES)
def _knowledge(data: bytes, writable_dr6: int, is_computed: bool) -> Knowledge:  # a cache's key
    return Knowledge(policy_pb2.PolicyTable.FromString(data), writable_dr6, is_computed=is_computed)


def knowledge_of(message: policy_pb2.PolicyTable, writable_dr6: int, *, is_computed: bool) -> Knowledge:
    """Return what this process knows of a policy."""
    return _knowledge(without_texts(message), writable_dr6, is_computed)
