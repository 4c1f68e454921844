"""The bill machine of a policy: states and symbols to the next state, learned as they are met.

A machine says in a few nanoseconds what the oracle loop says of an event, as long as the guest's story
is the reference's: the next state, and what is to be counted. It holds no rule of its own: every step
was asked of the loop (``probe.py``), once, when it first occurred. What a step costs is not added up on
the way: the loop below counts how often each step was taken, and ``Machine`` knows what one counts.
"""

from collections.abc import Sequence
from typing import Final

import numba.types as nt
import numpy as np
from numpy.typing import NDArray

from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.debug_registers import ONE, U64, ZERO
from hypervisor_svc.engine import records
from hypervisor_svc.engine.knowledge import Knowledge
from hypervisor_svc.engine.probe import IN_GUEST, NO_ROW, Row, Step
from hypervisor_svc.engine.states import Part

ROW: Final = 256  # steps of a state, a place for every symbol
MAX_STATES: Final = 200
MAX_STEPS: Final = 1 << 11

# An entry of the table: number of the step, state afterwards, and whether there is nothing else to it.
_STATE_SHIFT: Final = 16
_PLAIN: Final = 1 << 28
UNKNOWN: Final = 0
IDLE: Final = _PLAIN  # of a row that only makes up four
# What a closer look finds of a step.
OPENS: Final = 1
CLOSES: Final = 2
CLOSES_AFTER: Final = 4  # as CLOSES, with the access of the event itself
IS_LOOPS: Final = 8  # the step belongs to the oracle loop

_U_NUMBER: Final = U64(0xFFFF)
_U_STATE: Final = U64(0xFF00)
_U_SHIFT: Final = U64(_STATE_SHIFT - 8)
_U_PLAIN: Final = U64(_PLAIN)
_U_UNKNOWN: Final = U64(UNKNOWN)
_U_OPENS: Final = U64(OPENS)
_U_CLOSES: Final = U64(CLOSES)
_U_CLOSES_AFTER: Final = U64(CLOSES_AFTER)
_U_LOOPS: Final = U64(IS_LOOPS)
_EXACT: Final = U64(records.WINDOW_EXACT)
_SEVEN: Final = U64(7)

_SIGNATURE = nt.int64(
    *(nt.uint8[::1], nt.uint32[::1], nt.uint64[::1], nt.uint64[::1], nt.uint64[::1], nt.uint64),
    *(nt.uint32[:, ::1], nt.uint8[:, ::1], nt.uint64[:, ::1], nt.uint64[:, :, ::1], nt.uint64[:, ::1]),
    *(nt.uint64[:, ::1], nt.uint64[:, ::1], nt.uint64[::1]),
)


@compiled(_SIGNATURE)
def run_machines(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915  # one pass, typed by its signature
    symbols,
    accesses_before,
    begins,
    ends,
    accesses,
    step,
    tables,
    looks,
    states,
    taken,
    windows,
    opened,
    last,
    four,
):
    """Run every vCPU's symbols through four machines; return the vCPU that has a step not for them, or -1.

    The symbols of vCPU v are those from ``begins[v]``, which goes on with them, to ``ends[v]``. ``four``
    are the machines' rows in ``tables`` (the steps), ``looks`` (what a closer look finds of each),
    ``states`` (where in the table each one is), ``taken`` (how often each step was taken), ``windows``
    (sizes, in the report's buckets), ``opened`` (accesses before the open window) and ``last`` (the entry
    taken last); where there is a vCPU's index, it comes first. ``accesses`` of a vCPU came before these
    symbols. ``step`` is 1, or -1 to take back what was counted. Four at a time, as one machine alone would
    wait for its own table. Nothing of a symbol is done if it is not for one of the four.
    """
    a, b, c, d = four[0], four[1], four[2], four[3]
    for v in range(U64(begins.size)):
        at = begins[v]
        stop = ends[v]
        if at >= stop:
            continue
        state_a, state_b, state_c, state_d = states[v, a], states[v, b], states[v, c], states[v, d]
        entry_a, entry_b, entry_c, entry_d = last[v, a], last[v, b], last[v, c], last[v, d]
        is_stopped = False
        while at < stop:
            symbol = U64(symbols[at])
            next_a = U64(tables[a, state_a | symbol])
            next_b = U64(tables[b, state_b | symbol])
            next_c = U64(tables[c, state_c | symbol])
            next_d = U64(tables[d, state_d | symbol])
            if (next_a & next_b & next_c & next_d & _U_PLAIN) == ZERO:
                is_stopped = (next_a == _U_UNKNOWN) | (next_b == _U_UNKNOWN)
                is_stopped = is_stopped | (next_c == _U_UNKNOWN) | (next_d == _U_UNKNOWN)
                if not is_stopped:
                    look = looks[a, next_a & _U_NUMBER] | looks[b, next_b & _U_NUMBER]
                    look |= looks[c, next_c & _U_NUMBER] | looks[d, next_d & _U_NUMBER]
                    is_stopped = (U64(look) & _U_LOOPS) != ZERO
                if is_stopped:
                    break
                before = accesses[v] + U64(accesses_before[at])
                for k in range(U64(4)):
                    m = four[k]
                    entry = (
                        next_a if k == ZERO else (next_b if k == ONE else (next_c if k == U64(2) else next_d))
                    )
                    look = U64(looks[m, entry & _U_NUMBER])
                    if (look & _U_CLOSES) != ZERO:
                        size = before - opened[v, m]
                        if (look & _U_CLOSES_AFTER) != ZERO:
                            size += ONE
                        bucket = size
                        if size >= _EXACT:
                            bucket = _EXACT - _SEVEN
                            while size > ZERO:
                                size >>= ONE
                                bucket += ONE
                        windows[m, bucket] += step
                    if (look & _U_OPENS) != ZERO:
                        opened[v, m] = before
            taken[v, a, next_a & _U_NUMBER] += step
            taken[v, b, next_b & _U_NUMBER] += step
            taken[v, c, next_c & _U_NUMBER] += step
            taken[v, d, next_d & _U_NUMBER] += step
            state_a = (next_a >> _U_SHIFT) & _U_STATE
            state_b = (next_b >> _U_SHIFT) & _U_STATE
            state_c = (next_c >> _U_SHIFT) & _U_STATE
            state_d = (next_d >> _U_SHIFT) & _U_STATE
            entry_a, entry_b, entry_c, entry_d = next_a, next_b, next_c, next_d
            at += ONE
        begins[v] = at
        states[v, a], states[v, b], states[v, c], states[v, d] = state_a, state_b, state_c, state_d
        last[v, a], last[v, b], last[v, c], last[v, d] = entry_a, entry_b, entry_c, entry_d
        if is_stopped:
            return v
    return -1


@compiled(
    nt.void(
        *(nt.uint8[::1], nt.uint32[::1], nt.uint64, nt.uint64, nt.uint32[::1], nt.uint64),
        nt.uint16[::1],
    )
)
def tell_steps(symbols, events, start, stop, table, state, steps):  # type: ignore[no-untyped-def]  # by signature
    """Write the number of each event's step into ``steps``, for symbols that the machine has run."""
    for at in range(start, stop):
        entry = U64(table[state | U64(symbols[at])])
        steps[events[at]] = entry & _U_NUMBER
        state = (entry >> _U_SHIFT) & _U_STATE


def step_number(entry: int) -> int:
    """Return the number of the step that an entry of a table stands for."""
    return entry & 0xFFFF


class Machine:
    """A policy's machine in one session: numbers for its states and steps, and the table of entries."""

    def __init__(self, knowledge: Knowledge) -> None:
        """Know no state yet; step 0 is none, step 1 stands for all that belong to the loop."""
        self.knowledge = knowledge
        self.states: list[bytes] = []
        self.steps: list[Step | None] = [None, None]
        self.entries: list[Row] = []  # what the entry from each state adds to the exit that waits for it
        self.looks: NDArray[np.uint8] = np.zeros(MAX_STEPS, np.uint8)
        self.looks[1] = IS_LOOPS
        self.is_full = False
        self._numbers: dict[bytes, int] = {}
        self._step_numbers: dict[Step, int] = {}

    def number_of(self, state: bytes) -> int | None:
        """Return a state's number, or None if there are too many."""
        number = self._numbers.get(state)
        if number is None:
            if len(self.states) == MAX_STATES:
                self.is_full = True
                return None
            number = self._numbers[state] = len(self.states)
            self.states.append(state)
            self.entries.append(NO_ROW)
        return number

    def learn(self, number: int, words: Sequence[int], reasons: Sequence[int]) -> list[int]:
        """Return a state's entries of the table, for words of which the first is QUIET."""
        state = self.states[number]
        steps = self.knowledge.steps(state, words, reasons)
        waits = state[Part.RUNG] != IN_GUEST
        quiet = steps[0]
        if waits and quiet is not None:
            self.entries[number] = quiet.entry
        return [
            self._entry(step) if not waits or (step and quiet and step.entry == quiet.entry) else 1
            for step in steps
        ]

    def _entry(self, step: Step | None) -> int:
        """Give a step its number and return its entry."""
        if step is None:
            return 1
        following = self.number_of(step.state)
        number = self._step_numbers.get(step)
        if number is None and len(self.steps) < MAX_STEPS:
            number = self._step_numbers[step] = len(self.steps)
            self.steps.append(step)
            look = (OPENS if step.opens else 0) | (CLOSES if step.closes else 0)
            self.looks[number] = look | (CLOSES_AFTER if step.closes == 2 else 0)  # see Step
        if following is None or number is None:
            self.is_full = True
            return 1
        return (0 if self.looks[number] else _PLAIN) | following << _STATE_SHIFT | number
