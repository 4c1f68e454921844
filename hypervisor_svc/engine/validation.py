"""What a block must be like before any of it is applied."""

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numba.types as nt
import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import MSR_DEBUGCTL, VECTOR_DB
from exitlab.events import COLUMN_DTYPES, FETCH_END, Column, EventColumns, EventKind, Mark, Mode
from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.engine.profile import EXCEPTION_VECTORS

MAX_REASONS: Final = 1024
_KINDS: Final = len(EventKind)
_EXCEPTION: Final = int(EventKind.EXCEPTION)
_FIRST_HOST_KIND: Final = int(EventKind.SCHED_OUT)
_CONDITIONAL: Final = np.uint8(Mark.IF_FAULT | Mark.IF_OK)
_BOTH_RETIRED: Final = np.uint8(Mark.RETIRED | Mark.NOT_RETIRED)
_IN_TURN: Final = np.uint64(3)  # histograms, so that counting one event need not wait for the one before
_KIND_BITS: Final = np.uint8(63)
_MARKS: Final = np.arange(256, dtype=np.uint8)
_IS_ODD_MARK: Final = (_MARKS & _CONDITIONAL != 0) | (_MARKS & _BOTH_RETIRED == _BOTH_RETIRED)
_MOV_FROM_DR: Final = int(EventKind.MOV_FROM_DR)
_RDMSR: Final = int(EventKind.RDMSR)
_DEBUGCTL: Final = np.uint32(MSR_DEBUGCTL)
_TF: Final = np.uint8(Mode.TF)
_READ: Final = int(EventKind.READ)
_WRITE: Final = int(EventKind.WRITE)
_RECORDED_DB: Final = np.uint32(VECTOR_DB)


class Block(NamedTuple):
    """Consecutive events with every column there; arrays of one length."""

    kinds: NDArray[np.uint8]
    args: NDArray[np.uint8]
    modes: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    vcpus: NDArray[np.uint8]
    gap_cycles: NDArray[np.uint32]
    selectors: NDArray[np.uint32]
    values: NDArray[np.uint64]
    rips: NDArray[np.uint64]

    def slice(self, start: int, stop: int) -> "Block":
        """Return events ``start`` to ``stop``."""
        part: Any = (column[start:stop] for column in self)
        return Block(*part)


class Rule(IntEnum):
    """What a block can break, in the order in which an event is looked at."""

    NONE = 0
    KIND = 1
    VCPU = 2
    STEPPED_READ = 3
    ARG = 4
    SELECTOR = 5
    RECORDED_DB = 6
    BOTH_CONDITIONS = 7
    HOST_CONDITION = 8
    BOTH_RETIRED = 9
    NO_LENGTH = 10


class BadEvents(ValueError):
    """A block that cannot be applied: which column, which event of the session, and why."""

    def __init__(self, field: str, event: int, message: str) -> None:
        """Name the block's ``field`` and the session's ``event``."""
        super().__init__(f"event {event}: {message}")
        self.field = field
        self.event = event


def complete(events: EventColumns) -> Block:
    """Return the events with zeros for every column that is left out."""
    zeros = np.zeros(len(events), np.uint64)
    arrays = []
    for column in Column:
        array = events.column(column)
        arrays.append(zeros.view(COLUMN_DTYPES[column])[: len(events)] if array is None else array)
    return Block(*arrays)


_U8 = nt.Array(nt.uint8, 1, "C", readonly=True, aligned=False)
_U32 = nt.Array(nt.uint32, 1, "C", readonly=True, aligned=False)
_SIGNATURE = nt.int64(
    *(_U8, _U8, _U8, _U8, _U8, _U32),
    *(nt.int64, nt.boolean, nt.boolean[::1], nt.boolean[::1], nt.uint8[::1], nt.uint32[::1]),
    *(nt.uint64[:, ::1], nt.int64[::1]),
)


@compiled(_SIGNATURE)
def _first_broken(  # type: ignore[no-untyped-def]  # noqa: PLR0912  # typed by its signature; a rule a branch
    kinds,
    args,
    modes,
    marks,
    vcpus,
    selectors,
    vcpu_count,
    is_computed,
    is_odd_kind,
    is_odd_mark,
    largest_args,
    largest_selectors,
    counts,
    where,
):
    """Return the first rule that an event breaks and put its index into ``where``; count kinds.

    Of a kind or a mark that is not odd nothing but its numbers can be wrong, unless it is stepped.
    """
    for i in range(np.uint64(kinds.size)):
        kind = kinds[i]
        counts[i & _IN_TURN, kind & _KIND_BITS] += np.uint64(1)
        mark = marks[i]
        is_odd = is_odd_kind[kind] or is_odd_mark[mark] or (modes[i] & _TF) != 0 or vcpus[i] >= vcpu_count
        if not is_odd and args[i] <= largest_args[kind] and selectors[i] <= largest_selectors[kind]:
            continue
        broken = 0
        if kind == 0 or kind > _KINDS:
            broken = 1
        elif vcpus[i] >= vcpu_count:
            broken = 2
        elif (
            is_computed
            and (modes[i] & _TF) != 0
            and (kind == _MOV_FROM_DR or (kind == _RDMSR and selectors[i] == _DEBUGCTL))
        ):
            broken = 3
        elif args[i] > largest_args[kind]:
            broken = 4
        elif selectors[i] > largest_selectors[kind]:
            broken = 5
        elif is_computed and kind == _EXCEPTION and selectors[i] == _RECORDED_DB:
            broken = 6
        elif (mark & _CONDITIONAL) == _CONDITIONAL:
            broken = 7
        elif kind >= _FIRST_HOST_KIND and (mark & _CONDITIONAL) != 0:
            broken = 8
        elif (mark & _BOTH_RETIRED) == _BOTH_RETIRED:
            broken = 9
        elif _READ <= kind <= _WRITE and args[i] == 0:
            broken = 10
        if broken != 0:
            where[0] = i
            return broken
    return 0


class Checker:
    """Checks blocks of one session; it remembers which exit reasons were recorded."""

    def __init__(self, vcpus: int, physical_cpus: int, *, is_computed: bool) -> None:
        """Hold what the session allows."""
        self._vcpus = vcpus
        self._physical_cpus = physical_cpus
        self._is_computed = is_computed
        self._reasons: set[int] = set()
        self._is_odd_kind = np.ones(256, np.bool_)
        self._is_odd_kind[1 : _KINDS + 1] = False
        self._is_odd_kind[[EventKind.READ, EventKind.WRITE]] = True
        self._is_odd_kind[EventKind.EXCEPTION] = is_computed
        self._largest_args = np.full(64, 255, np.uint8)
        self._largest_args[[EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR]] = 7
        self._largest_args[EventKind.STAGE] = 5
        self._largest_args[EventKind.STATE] = 0
        self._largest_args[EventKind.FETCH] = FETCH_END
        self._largest_args[EventKind.MOV_SS] = 8
        self._largest_selectors = np.full(64, 0xFFFF_FFFF, np.uint32)
        self._largest_selectors[EventKind.EXCEPTION] = EXCEPTION_VECTORS - 1
        self._largest_selectors[[EventKind.SCHED_IN, EventKind.HOST_BREAKPOINTS]] = physical_cpus - 1

    def check(self, block: Block, first_event: int) -> NDArray[np.uint64]:
        """Refuse a block that cannot be applied; return its number of events of each kind.

        Raises:
            BadEvents: naming the first bad event and the first rule that it breaks.

        """
        counts = np.zeros((int(_IN_TURN) + 1, 64), np.uint64)
        where = np.zeros(1, np.int64)
        broken = _first_broken(
            *(block.kinds, block.args, block.modes, block.marks, block.vcpus, block.selectors),
            *(self._vcpus, self._is_computed, self._is_odd_kind, _IS_ODD_MARK),
            *(self._largest_args, self._largest_selectors, counts, where),
        )
        if broken:
            self._refuse(Rule(broken), block, int(where[0]), first_event)
        found: NDArray[np.uint64] = counts.sum(axis=0)
        if found[EventKind.EXIT] or found[EventKind.VMEXIT_TO_L1]:
            self._check_reasons(block, first_event)
        return found

    def _refuse(self, rule: Rule, block: Block, at: int, first_event: int) -> None:
        number = int(block.kinds[at])
        kind = EventKind(number).name if 1 <= number <= _KINDS else str(number)
        arg, selector = int(block.args[at]), int(block.selectors[at])
        field, text = {
            Rule.KIND: ("kinds", f"kind {number} is unknown, expected 1 to {_KINDS}"),
            Rule.VCPU: ("vcpus", f"vCPU {block.vcpus[at]} is out of range, the session has {self._vcpus}"),
            Rule.STEPPED_READ: (
                "modes",
                f"TF on {kind}, which shows its value; it goes on a FETCH of arg {FETCH_END} that follows",
            ),
            Rule.ARG: ("args", f"{kind} of {arg} does not exist, 0 to {self._largest_args[number % 64]} do"),
            Rule.SELECTOR: (
                "selectors",
                f"{kind} of vector {selector}, 0 to {EXCEPTION_VECTORS - 1} exist"
                if number == EventKind.EXCEPTION
                else f"{kind} names physical CPU {selector}, the session has {self._physical_cpus}",
            ),
            Rule.RECORDED_DB: ("kinds", "a recorded #DB in a session that computes breakpoints"),
            Rule.BOTH_CONDITIONS: ("marks", "IF_FAULT and IF_OK exclude each other"),
            Rule.HOST_CONDITION: ("marks", f"{kind} cannot depend on a guest's fault"),
            Rule.BOTH_RETIRED: ("marks", "known to have retired and not retired exclude each other"),
            Rule.NO_LENGTH: ("args", f"{kind} of 0 bytes; a length is 1 or more"),
        }[rule]
        raise BadEvents(f"block.{field}", first_event + at, text)

    @property
    def recorded_reasons(self) -> int:
        """How many different exit reasons were recorded so far."""
        return len(self._reasons)

    @property
    def reasons(self) -> NDArray[np.uint64]:
        """The exit reasons that were recorded so far; those of a snapshot may be put in their place."""
        return np.array(sorted(self._reasons), np.uint64)

    @reasons.setter
    def reasons(self, reasons: NDArray[np.uint64]) -> None:
        self._reasons = set(reasons.tolist())

    def _check_reasons(self, block: Block, first_event: int) -> None:
        is_recorded = (block.kinds == EventKind.EXIT) | (block.kinds == EventKind.VMEXIT_TO_L1)
        recorded = np.flatnonzero(is_recorded)
        codes, firsts = np.unique(block.selectors[recorded], return_index=True)
        known = {int(code): int(first) for code, first in zip(codes, firsts, strict=True)}
        fresh = sorted((first, code) for code, first in known.items() if code not in self._reasons)
        room = MAX_REASONS - len(self._reasons)
        if len(fresh) > room:
            at = first_event + int(recorded[fresh[room][0]])
            text = f"more than {MAX_REASONS} different exit reasons in one session"
            raise BadEvents("block.selectors", at, text)
        self._reasons |= set(known)
