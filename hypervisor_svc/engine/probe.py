"""What a lane's oracle loop answers to symbols in states: asked of the loop itself.

To learn a step, a record of the state is made with telling values (no two registers alike, and poison in
every copy that is not the truth), one event of the symbol's word is given to the reference and to the
loop, and what has changed is read off. Where poison reaches the story or what the guest runs on, or a
deviation, a leak or a hazard is counted, there is no step: the event belongs to the loop. Neither is there
one where a stale copy could match an address that the telling values do not have.

Many steps are asked for at once; each has records and counters of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba.types as nt
import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR7_RESET
from exitlab.events import EventKind, Mark
from exitlab.v1 import policy_pb2
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.debug_registers import ONE, U64, ZERO, canonical_dr6
from hypervisor_svc.engine import records
from hypervisor_svc.engine.lane import Lane
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS, run_lane
from hypervisor_svc.engine.questions import ACCESSES, PORTS, events_of
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.states import (
    OTHER_POISON,
    PARTS,
    POISON,
    TELLING,
    TELLING_DR7,
    Codes,
    Part,
    Poison,
    are_alike,
    may_match_stale,
    put_states,
    states_of,
)
from hypervisor_svc.engine.validation import Block
from hypervisor_svc.engine.vocabulary import Quirk

IN_GUEST: Final = 0

_MARKER: Final = 0xFFFF_FFFE  # the reason of an exit before the event
_MARKER_KEY: Final = records.ACCOUNT_EXIT << records.KEY_ACCOUNT_SHIFT | _MARKER
_SIZE_BEFORE: Final = 40  # of a window that is open before the event
_BILL_ROWS: Final = 8
_DECISION_ROWS: Final = 4


class Row(NamedTuple):
    """A row of a bill: reason and pattern of operations, as in ``records``."""

    key: int
    operations: int


NO_ROW: Final = Row(0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """What one symbol does in one state."""

    state: bytes  # afterwards
    entry: Row  # what the entry adds to the exit that waited for it, if one did
    rows: tuple[Row, ...]  # exits with their entries, in the event itself
    pending: Row  # an exit that now waits for its entry; its key is 0 if there is none
    vcpu_counts: tuple[int, ...]  # EXECUTED to CLUSTERED of the record
    switches: int  # of the intercept
    opens: bool  # a window begins that is there afterwards
    closes: int  # the window that was there before ends; 2 if the event's own access is in it, else 1
    whole_window: int  # accesses of a window that begins and ends in the event, or -1
    decision: Row


_EVENTS = (nt.uint8[::1],) * 5 + (nt.uint32[::1],) * 2 + (nt.uint64[::1],)
_SIGNATURE = nt.void(
    *_EVENTS,
    *(nt.boolean, nt.boolean, nt.uint64, nt.uint64[:, ::1]),
    *(nt.uint8[::1], nt.uint64[::1], nt.uint32[::1]),
    *(nt.uint64[::1], nt.uint64[::1], nt.uint64[:, ::1], nt.uint64[::1], nt.uint8[::1], nt.uint8[::1]),
    *(nt.uint64[::1], nt.uint64[::1]),
    *(nt.uint8[::1], nt.uint32[::1], nt.uint32[::1], nt.uint8[:, ::1], nt.uint32[::1]),
    *(nt.uint64[:, ::1], nt.uint64[:, ::1], nt.uint64[:, ::1]),
    *(nt.uint64[:, :, ::1], nt.uint64[:, ::1], nt.uint64[:, ::1], nt.uint64[:, :, ::1]),
    *(nt.uint64[:, :, ::1], nt.uint64[:, ::1]),
    *(nt.uint64[:, :, ::1], nt.uint64[:, ::1], nt.uint64[:, :, ::1]),
    *(nt.uint8[::1], nt.boolean[::1]),
)


@compiled(_SIGNATURE)
def _run_apart(  # type: ignore[no-untyped-def]  # typed by its signature
    kinds,
    args,
    modes,
    marks,
    vcpus,
    gap_cycles,
    selectors,
    values,
    is_computed,
    is_svm,
    writable_dr6,
    truths,
    stories,
    story_values,
    undefined,
    lane,
    bases,
    strides,
    cells,
    next_memories,
    read_sources,
    cell_operations,
    cell_host_operations,
    groups,
    exit_codes,
    exception_codes,
    classes,
    passed_msrs,
    records_of_vcpus,
    records_of_cpus,
    counts,
    bill_keys,
    bill_counts,
    window_sizes,
    leaks,
    declared,
    debug_exits,
    decision_keys,
    decision_numbers,
    decisions,
    no_stories,
    is_irregular,
):
    """Run event k on records k, each apart from all others, and tell which leave what a step cannot say."""
    no_visits = np.zeros(0, np.uint64)
    no_values = np.zeros(0, np.uint64)
    out_decisions = np.zeros(1, np.uint16)
    reference_counts = np.zeros(ref.REFERENCE_COUNTS, np.uint64)
    for k in range(U64(kinds.size)):
        n = k + ONE
        ref.run_reference(
            kinds[k:n],
            args[k:n],
            modes[k:n],
            marks[k:n],
            vcpus[k:n],
            gap_cycles[k:n],
            selectors[k:n],
            values[k:n],
            ZERO,
            is_computed,
            True,
            is_svm,
            writable_dr6,
            stories[k:n],
            truths[k:n],
            reference_counts,
            stories[k:n],
            story_values[k:n],
            undefined[k:n],
        )
        run_lane(
            kinds[k:n],
            args[k:n],
            modes[k:n],
            marks[k:n],
            vcpus[k:n],
            gap_cycles[k:n],
            selectors[k:n],
            values[k:n],
            ZERO,
            stories[k:n],
            story_values[k:n],
            undefined[k:n],
            lane,
            bases,
            strides,
            cells,
            next_memories,
            read_sources,
            cell_operations,
            cell_host_operations,
            groups,
            exit_codes,
            exception_codes,
            classes,
            passed_msrs,
            records_of_vcpus[k:n],
            records_of_cpus[k:n],
            counts[k],
            bill_keys[k],
            bill_counts[k],
            window_sizes[k],
            leaks,
            declared[k],
            debug_exits,
            no_visits,
            LEVEL_DECISIONS,
            decision_keys[k],
            decision_numbers[k],
            decisions[k],
            out_decisions,
            no_stories,
            no_values,
        )
        odd = counts[k, records.LATENT] | counts[k, records.HOST_BLIND] | counts[k, records.DIVERGED]
        odd |= counts[k, records.REFUSED] | counts[k, records.FAILURE] | counts[k, records.DEBUG_EXIT_ROWS]
        for d in range(U64(declared.shape[1])):
            odd |= declared[k, d, 0]
        for a in range(U64(leaks.shape[0])):
            for b in range(U64(leaks.shape[1])):
                for c in range(U64(3)):  # a lone vCPU's registers are nobody's, its own or the host's
                    owner = c if c < U64(2) else U64(records.OWNER_HOST)
                    odd |= leaks[a, b, owner]
                    leaks[a, b, owner] = ZERO
        is_irregular[k] = odd != ZERO or undefined[k] != 0


class Asked(NamedTuple):
    """Answers to many questions; arrays of one length."""

    codes: Codes  # states afterwards
    is_step: NDArray[np.bool_]
    vcpus: Words
    before: Words
    lane: dict[str, Any]  # counters, by their names in the loop
    counts: NDArray[np.int64]  # accesses that count for a window
    stories: NDArray[np.uint8]
    truths: Words
    cpus: Words


class Probe:
    """Asks one policy's loop for steps."""

    def __init__(self, message: policy_pb2.PolicyTable, writable_dr6: int, *, is_computed: bool) -> None:
        """Make a lane to ask."""
        self._is_computed = is_computed
        self._is_svm = message.vendor == policy_pb2.VENDOR_SVM
        self._lane = Lane(message, writable_dr6, (0,), 1, is_computed=is_computed)
        self._leaks = self._lane.state.leaks
        self._debug_exits = self._lane.state.debug_exits
        self._matches_io = bool(int(self._lane.constants[records.QUIRKS]) & Quirk.MATCHES_IO)

    def ask(
        self, codes: Codes, words: Sequence[int], reasons: Sequence[int], poison: Poison = POISON
    ) -> Asked:
        """Give each state the event of a feature word; ``reasons`` are those of recorded exits."""
        count = len(codes)
        lane = self._lane
        vcpus = np.repeat(lane.state.vcpus, count, axis=0)
        cpus = np.repeat(lane.state.physical_cpus, count, axis=0)
        numbers = np.zeros(count, np.uint64)
        block, conditions = events_of(words, reasons)
        truths = np.repeat(ref.new_reference_state(1, is_computed=True), count, axis=0)
        truths[:, :5] = TELLING
        truths[:, ref.DR6] = canonical_dr6(U64(TELLING[4]), U64(lane.writable_dr6))
        dr7 = TELLING_DR7[codes[:, Part.TRUE_DR7]]
        truths[:, ref.DR7] = np.where(dr7 == DR7_RESET, dr7, dr7 | conditions)
        truths[:, ref.HAS_DE] = codes[:, Part.HAS_DE]
        vcpus[:, records.TRUE : records.TRUE + 6] = truths[:, : ref.DR7 + 1]
        put_states(codes, vcpus, cpus, numbers, poison)
        waits = codes[:, Part.RUNG] != IN_GUEST
        vcpus[:, records.PENDING_KEY] = np.where(waits, _MARKER_KEY, 0)
        vcpus[:, records.WINDOW_SIZE] = (codes[:, Part.WINDOW] != records.WINDOW_CLOSED) * _SIZE_BEFORE
        before = vcpus.copy()
        counters, stories, irregular = self._run(block, truths, vcpus, cpus)
        after, has_state = states_of(vcpus, cpus, numbers)
        has_state &= (truths[:, : ref.DR7 + 1] == vcpus[:, records.TRUE : records.TRUE + 6]).all(axis=1)
        has_state &= (vcpus[:, records.PENDING_KEY] != 0) == (after[:, Part.RUNG] != IN_GUEST)
        is_access = (block.kinds == EventKind.MOV_TO_DR) | (block.kinds == EventKind.MOV_FROM_DR)
        is_done = is_access & (block.marks & np.uint8(Mark.NOT_RETIRED) == 0)
        is_done &= np.isin(stories, (int(ref.NOTHING), int(ref.READ), int(ref.DB_TRAP)))
        is_step = has_state & ~irregular & ~self._may_match_stale(codes, after, block.kinds)
        counts = is_done.astype(np.int64)
        return Asked(after, is_step, vcpus, before, counters, counts, stories, truths, cpus)

    def _run(
        self, block: Block, truths: Words, vcpus: Words, cpus: Words
    ) -> tuple[dict[str, Any], NDArray[np.uint8], NDArray[np.bool_]]:
        """Run each event on records of its own; return counters, stories, and what a step cannot say."""
        count, lane = len(vcpus), self._lane
        counters = self._counters(count)
        stories = np.zeros(count, np.uint8)
        irregular = np.zeros(count, np.bool_)
        table, profiles = lane.table, lane.profile
        with np.errstate(over="ignore"):
            _run_apart(
                *block[:8],
                *(self._is_computed, self._is_svm, np.uint64(lane.writable_dr6), truths),
                *(stories, np.zeros(count, np.uint64), np.zeros(count, np.uint32)),
                *(lane.constants, table.bases, table.strides, table.cells, table.next_memories),
                *(table.read_sources, table.cell_operations, table.cell_host_operations),
                *(profiles.groups, profiles.exit_codes, profiles.exception_codes, profiles.classes),
                *(profiles.passed_msrs, vcpus, cpus, counters["counts"], counters["bill_keys"]),
                *(counters["bill_counts"], counters["window_sizes"], self._leaks, counters["declared"]),
                *(self._debug_exits, counters["decision_keys"], counters["decision_numbers"]),
                *(counters["decisions"], np.zeros(0, np.uint8), irregular),
            )
        return counters, stories, irregular

    def _may_match_stale(self, before: Codes, after: Codes, kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Tell which answers stale breakpoints could change, or breakpoints of several owners."""
        found = np.zeros(len(kinds), np.bool_)
        if not self._is_computed:
            return found
        is_port = np.isin(kinds, PORTS)
        for codes in (before, after):
            is_guests = codes[:, Part.RUNG] == IN_GUEST
            found |= is_guests & may_match_stale(codes, Part.HARDWARE, Part.HARDWARE_DR7)
            owners = codes[:, Part.OWNER : Part.OWNER + 4]  # the slot that is hit is always the first
            found |= (is_port | np.isin(kinds, ACCESSES)) & (owners != owners[:, :1]).any(axis=1)
        if self._matches_io:
            rung_of_saving = int(self._lane.constants[records.RUNG_OF_SAVING])
            rungs = after[:, Part.RUNG]
            is_armed = (after[:, Part.ARMED] != 0) | ((rung_of_saving != 0) & (rungs >= rung_of_saving))
            by_shadow = may_match_stale(after, Part.SHADOW, Part.SHADOW_DR7)
            by_hardware = may_match_stale(after, Part.HARDWARE, Part.FIELD_DR7)
            found |= is_port & np.where(is_armed, by_shadow, by_hardware)
            found |= is_port & (rungs == IN_GUEST) & (by_shadow | by_hardware)
        return found

    def all_steps(self, codes: Codes, words: Sequence[int]) -> tuple[set[bytes], bool]:
        """Return the states that follow from any of the events, and whether all of these are steps."""
        asked = self.ask(*_each(codes, words))
        return _different(asked.codes), bool(asked.is_step.all())

    def looks_at_stale(
        self, codes: Codes, words: Sequence[int], followers: Sequence[int] = ()
    ) -> tuple[set[bytes], bool]:
        """Tell whether in any state one of these events is answered by a copy that is not the truth.

        What is only passed on to another copy is not looked at by the event, but may be by those that
        follow it, one after the other. Also return the states that follow from those that are steps.
        """
        one, other = self.ask(*_each(codes, words)), self.ask(*_each(codes, words), OTHER_POISON)
        same = (one.stories == other.stories).all() and (one.codes == other.codes).all()
        same = same and are_alike(one.vcpus, other.vcpus)
        told = [one.lane], [other.lane]
        for word in followers:
            for asked, counted in zip((one, other), told, strict=True):
                block, _ = events_of([word] * len(asked.codes), [0] * len(asked.codes))
                counted.append(self._run(block, asked.truths, asked.vcpus, asked.cpus)[0])
        for counters, others in zip(*told, strict=True):
            same = same and all((found == others[name]).all() for name, found in counters.items())
        return _different(one.codes[one.is_step]), not same

    def _counters(self, count: int) -> dict[str, Any]:
        """Return counters for ``count`` questions."""
        shapes = {
            "counts": (records.COUNT_FIELDS,),
            "bill_keys": (_BILL_ROWS, 2),
            "bill_counts": (_BILL_ROWS,),
            "window_sizes": (records.WINDOW_BUCKETS,),
            "declared": self._lane.state.declared.shape,
            "decision_keys": (_DECISION_ROWS, 2),
            "decision_numbers": (_DECISION_ROWS,),
            "decisions": (_DECISION_ROWS, 2),
        }
        return {name: np.zeros((count, *shape), np.uint64) for name, shape in shapes.items()}

    def steps(self, codes: Codes, words: Sequence[int], reasons: Sequence[int]) -> list[Step | None]:
        """Return what each word does in its state; None where that is the loop's to say."""
        asked = self.ask(codes, words, reasons)
        return [_read_step(asked, k, codes[k]) if asked.is_step[k] else None for k in range(len(codes))]


def _each(codes: Codes, words: Sequence[int]) -> tuple[Codes, list[int], list[int]]:
    """Return questions of every state about every word."""
    return np.repeat(codes, len(words), axis=0), [*words] * len(codes), [0] * (len(codes) * len(words))


def _different(codes: Codes) -> set[bytes]:
    """Return each state once."""
    data = codes.tobytes()
    return {data[at : at + PARTS] for at in range(0, len(data), PARTS)}


def _read_step(asked: Asked, k: int, state: Codes) -> Step | None:
    """Return what answer ``k`` says, or None if windows or entries are not as a step can say."""
    lane, vcpu, after = asked.lane, asked.vcpus[k], asked.codes[k]
    rows = [
        Row(int(key), int(operations))
        for (key, operations), times in zip(lane["bill_keys"][k], lane["bill_counts"][k], strict=True)
        for _ in range(int(times))
    ]
    entries = [row for row in rows if row.key & 0xFFFF_FFFF == _MARKER]
    windows = _windows(
        state, after, int(vcpu[records.WINDOW_SIZE]), lane["window_sizes"][k], int(asked.counts[k])
    )
    if len(entries) != (state[Part.RUNG] != IN_GUEST) or windows is None:
        return None
    counted = slice(records.EXECUTED, records.CLUSTERED + 1)
    with np.errstate(over="ignore"):
        vcpu_counts = (vcpu[counted] - asked.before[k, counted]).tolist()
    return Step(
        state=after.tobytes(),
        entry=Row(entries[0].key - _MARKER_KEY, entries[0].operations) if entries else NO_ROW,
        rows=tuple(row for row in rows if row.key & 0xFFFF_FFFF != _MARKER),
        pending=Row(int(vcpu[records.PENDING_KEY]), int(vcpu[records.PENDING_OPERATIONS])),
        vcpu_counts=tuple(vcpu_counts),
        switches=int(lane["counts"][k, records.SWITCHES]),
        opens=windows[0],
        closes=windows[1],
        whole_window=windows[2],
        decision=Row(*lane["decisions"][k, 0].tolist()),
    )


def _windows(
    before: Codes, after: Codes, size: int, sizes: Words, counts: int
) -> tuple[bool, int, int] | None:
    """Return which windows begin and end, or None if their sizes are not as counted."""
    found = {int(bucket): int(sizes[bucket]) for bucket in sizes.nonzero()[0]}
    is_before = before[Part.WINDOW] != records.WINDOW_CLOSED
    is_after = after[Part.WINDOW] != records.WINDOW_CLOSED
    closes = 0
    for place in range(1 + counts if is_before else 0):
        if found.pop(_SIZE_BEFORE + place, 0) == 1:
            closes = 1 + place
    opens = bool(is_after and (closes or not is_before))
    whole = -1
    if found:
        whole, times = found.popitem()
        if found or times != 1 or whole > 1:
            return None
    if is_before and not is_after and not closes:
        return None
    if is_after and size != (counts if opens else _SIZE_BEFORE + counts):
        return None
    return opens, closes, whole
