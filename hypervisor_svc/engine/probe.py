"""What a lane's oracle loop answers to a symbol in a state: asked of the loop itself.

A *state* is a vCPU's record with its values taken out: what the policy remembers and believes, the rung,
and of every copy of a debug register whether it equals the guest's truth. Two records of one state are
answered alike: the loop moves registers and compares them with the truth, and looks at a value itself
only where a feature of it stands in the state (what a DR7 enables) or in the symbol's word.

To learn one step, a record of the state is made with telling values (no two registers alike, and poison
in every copy that is not the truth), one event of the word is given to the reference and to the loop, and
what changed is read off. Where the poison reaches the story or what the guest runs on, or a deviation, a
leak or a hazard is counted, the step has no answer here: it belongs to the loop.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from exitlab.debugreg import DR6_RESET, DR7_ENABLES, DR7_GD, DR7_RESET
from exitlab.events import COLUMN_DTYPES, Column, EventKind, Mark, Mode
from exitlab.v1 import policy_pb2
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.arch.debug_registers import U64, canonical_dr6
from hypervisor_svc.engine import profile, records, symbols
from hypervisor_svc.engine.lane import Lane, Outcomes, Truth
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.validation import Block

IN_GUEST: Final = 0
_ADDRESSES: Final = 4

# Copies of a register: the truth, or what else is known of it.
_TRUTH: Final = 8
_RESET: Final = 1  # of DR6
_OTHER: Final = 0  # of DR0-3 and DR6; of DR7 it is what _feature says

_DR7_ENABLES: Final = 1
_DR7_GD: Final = 2
_DR7_RESET: Final = 4


class State(NamedTuple):
    """A vCPU's record with its values taken out; copies are 8 where they equal the truth."""

    rung: int
    armed: int
    memory: int
    belief: int
    window: int
    controls_are_off: int
    has_de: int
    is_loaded_here: int  # this physical CPU is the one of the last load
    is_resident: int
    truth_dr7: int  # what the guest's DR7 enables
    addresses: tuple[int, ...]  # copies of DR0-3: shadow, effective, saved, hardware
    dr6: tuple[int, ...]  # shadow, field, saved, hardware
    dr7: tuple[int, ...]  # shadow, effective, field, saved, hardware
    owners: tuple[int, ...]  # of the hardware's DR0-3 and DR6
    saved_owners: tuple[int, ...]

    @property
    def is_all_true(self) -> bool:
        """Whether every copy is the guest's truth or a constant."""
        return (
            all(copy == _TRUTH for copy in self.addresses)
            and all(copy != _OTHER for copy in self.dr6)
            and all(copy in (_TRUTH, _DR7_RESET) for copy in self.dr7)
        )


_WORDS_AS_THEY_ARE: Final = (
    records.RUNG,
    records.ARMED,
    records.MEMORY,
    records.BELIEF,
    records.WINDOW,
    records.CONTROLS_ARE_OFF,
    records.HAS_DE,
)
# A record in which one of these is not zero belongs to the loop.
_MUST_BE_ZERO: Final = (
    *(records.DEBUGGER, records.TRUE_UNDEFINED, *range(records.DECLARED, records.DECLARED + 6)),
    *(records.STALE_SLOTS, records.CLUSTER, records.SHADOW_OF_SS, records.HELD, records.CONTROL),
    *(records.NESTED, records.EXTRA, records.SURVIVED),
)
_ADDRESS_COPIES: Final = (records.SHADOW, records.EFFECTIVE, records.SAVED)
_DR6_COPIES: Final = (records.SHADOW_DR6, records.FIELD_DR6, records.SAVED + 4)
_DR7_COPIES: Final = (records.SHADOW_DR7, records.EFFECTIVE_DR7, records.FIELD_DR7, records.SAVED + 5)
_OWNER_BITS: Final = 12


def _feature(dr7: int) -> int:
    """Return what the loop looks at in a DR7."""
    return (
        (_DR7_ENABLES if dr7 & DR7_ENABLES else 0)
        | (_DR7_GD if dr7 & DR7_GD else 0)
        | (_DR7_RESET if dr7 == DR7_RESET else 0)
    )


def state_of(vcpu: Words, physical: Words, number: int) -> State | None:
    """Return the state of vCPU ``number`` on its own physical CPU, or None if it belongs to the loop."""
    row = vcpu.tolist()
    cpu = physical.tolist()
    if any(row[word] for word in _MUST_BE_ZERO) or cpu[records.HOST_ACTIVE]:
        return None
    home, resident_on = row[records.HOME], row[records.RESIDENT_ON]
    if resident_on not in (0, home + 1) or cpu[records.RESIDENT] != (number + 1 if resident_on else 0):
        return None
    truth = row[records.TRUE : records.TRUE + 6]
    owners = cpu[records.OWNER : records.OWNER + 5]
    saved = [row[records.SAVED_OWNERS] >> (_OWNER_BITS * k) & 0xFFF for k in range(5)]
    known = {records.OWNER_NOBODY: 0, number + 1: 1, records.OWNER_HOST: 2}
    if any(owner not in known for owner in (*owners, *saved)):
        return None
    addresses = [row[base : base + _ADDRESSES] for base in _ADDRESS_COPIES]
    addresses.append(cpu[:_ADDRESSES])
    dr6 = [*(row[word] for word in _DR6_COPIES), cpu[records.HARDWARE_DR6]]
    dr7 = [*(row[word] for word in _DR7_COPIES), cpu[records.HARDWARE_DR7]]
    return State(
        *(row[word] for word in _WORDS_AS_THEY_ARE),
        int(row[records.LAST_LOAD] == home + 1),
        int(resident_on != 0),
        _feature(truth[5]),
        tuple(_TRUTH if copy == truth[:_ADDRESSES] else _OTHER for copy in addresses),
        tuple(_TRUTH if copy == truth[4] else _RESET if copy == DR6_RESET else _OTHER for copy in dr6),
        tuple(_TRUTH if copy == truth[5] else _feature(copy) for copy in dr7),
        tuple(known[owner] for owner in owners),
        tuple(known[owner] for owner in saved),
    )


def put_state(state: State, vcpu: Words, physical: Words, number: int) -> None:
    """Write a state into the records of vCPU ``number``, whose truth stands there; other copies are poison."""
    truth = vcpu[records.TRUE : records.TRUE + 6].copy()
    home = int(vcpu[records.HOME])
    vcpu[list(_WORDS_AS_THEY_ARE)] = state[: len(_WORDS_AS_THEY_ARE)]
    vcpu[list(_MUST_BE_ZERO)] = 0
    vcpu[records.LAST_LOAD] = home + 1 if state.is_loaded_here else 0
    vcpu[records.RESIDENT_ON] = home + 1 if state.is_resident else 0
    physical[records.RESIDENT] = number + 1 if state.is_resident else 0
    for base, copy in zip(_ADDRESS_COPIES, state.addresses[:-1], strict=True):
        vcpu[base : base + _ADDRESSES] = truth[:_ADDRESSES] if copy == _TRUTH else _POISON[:_ADDRESSES]
    physical[:_ADDRESSES] = truth[:_ADDRESSES] if state.addresses[-1] == _TRUTH else _POISON[:_ADDRESSES]
    dr6 = {_TRUTH: truth[4], _RESET: DR6_RESET, _OTHER: _POISON[4]}
    for word, copy in zip(_DR6_COPIES, state.dr6[:-1], strict=True):
        vcpu[word] = dr6[copy]
    physical[records.HARDWARE_DR6] = dr6[state.dr6[-1]]
    for word, copy in zip(_DR7_COPIES, state.dr7[:-1], strict=True):
        vcpu[word] = truth[5] if copy == _TRUTH else _POISON_DR7[copy]
    last = state.dr7[-1]
    physical[records.HARDWARE_DR7] = truth[5] if last == _TRUTH else _POISON_DR7[last]
    owners = (records.OWNER_NOBODY, number + 1, records.OWNER_HOST)
    physical[records.OWNER : records.OWNER + 5] = [owners[owner] for owner in state.owners]
    vcpu[records.SAVED_OWNERS] = sum(
        owners[owner] << (_OWNER_BITS * k) for k, owner in enumerate(state.saved_owners)
    )


# Telling values. Addresses are ports too, and whole for every length.
_ADDRESS: Final = (0x1000, 0x2000, 0x3000, 0x4000)
_POISON: Final = np.array([0xBAD0_1000, 0xBAD0_2000, 0xBAD0_3000, 0xBAD0_4000, 0xFFFF_AFF5], np.uint64)
_TRUE_DR6: Final = 0xFFFF_4FF2
_POISON_DR7: Final = {
    0: 0x600,
    _DR7_ENABLES: 0x480,
    _DR7_GD: 0x2600,
    _DR7_ENABLES | _DR7_GD: 0x2480,
    _DR7_RESET: DR7_RESET,
}
_TRUE_DR7: Final = {
    0: 0x500,
    _DR7_ENABLES: 0x401,
    _DR7_GD: 0x2500,
    _DR7_ENABLES | _DR7_GD: 0x2401,
    _DR7_RESET: DR7_RESET,
}
_CONDITION: Final = {  # of the slot that the event hits
    EventKind.FETCH: 0,
    EventKind.READ: 0xF_0000,
    EventKind.WRITE: 0xF_0000,
    **dict.fromkeys((EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS), 0x2_0000),
}
_WRITTEN: Final = 0x7000_0000
_WRITTEN_DR6: Final = 0xFFFE_87F0
_WRITTEN_DR7: Final = 0x300
_MARKER: Final = 0xFFFF_FFFE  # the reason of an exit before the event
_SIZE_BEFORE: Final = 40  # of a window that is open before the event
_BILL_ROWS: Final = 16
_MSRS: Final = {0: 0x3A, 1: int(profile.MSR_TSC_DEADLINE), 2: int(profile.MSR_X2APIC_ICR), 3: 0x10}


class Row(NamedTuple):
    """A row of a bill: reason and pattern of operations, as in ``records``."""

    key: int
    operations: int


NO_ROW: Final = Row(0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """What one symbol does in one state."""

    state: State  # afterwards
    entry: Row  # what the entry adds to the exit that waited for it, if one did
    rows: tuple[Row, ...]  # exits with their entries, in the event itself
    pending: Row  # an exit that now waits for its entry; its key is 0 if there is none
    vcpu_counts: tuple[int, ...]  # EXECUTED to CLUSTERED of the record
    switches: int  # of the intercept
    opens: bool  # a window begins that is there afterwards
    closes: int  # the window that was there before ends; 2 if the event's own access is in it, else 1
    whole_window: int  # accesses of a window that begins and ends in the event, or -1
    decision: Row


class Probe:
    """Asks one policy's loop for single steps."""

    def __init__(self, message: policy_pb2.PolicyTable, writable_dr6: int, *, is_computed: bool) -> None:
        """Make records of one vCPU on one physical CPU."""
        self._writable_dr6 = writable_dr6
        self._is_computed = is_computed
        self._is_svm = message.vendor == policy_pb2.VENDOR_SVM
        self._lane = Lane(message, writable_dr6, (0,), 1, is_computed=is_computed)
        self._fresh_vcpu = self._lane.state.vcpus[0].copy()
        self._fresh_cpu = self._lane.state.physical_cpus[0].copy()
        state = self._lane.state
        state.bill_keys = np.zeros((_BILL_ROWS, 2), np.uint64)
        state.bill_counts = np.zeros(_BILL_ROWS, np.uint64)
        state.decision_keys = np.zeros((_BILL_ROWS, 2), np.uint64)
        state.decision_numbers = np.zeros(_BILL_ROWS, np.uint64)
        state.decisions = np.zeros((_BILL_ROWS, 2), np.uint64)
        self._truth = ref.new_reference_state(1)
        self._counts = np.zeros(ref.REFERENCE_COUNTS, np.uint64)
        self._block = Block(*(np.zeros(1, COLUMN_DTYPES[column]) for column in Column))
        self._told = Truth.empty(1)
        self._outcomes = Outcomes(np.zeros(1, np.uint16), np.zeros(0, np.uint8), np.zeros(0, np.uint64))

    def step(self, state: State, word: int, reason: int) -> Step | None:
        """Return what a feature word does in a state, or None if that is the loop's to say.

        ``reason`` is the exit reason of a recorded exit.
        """
        vcpu, cpu = self._set_up(state, word, reason)
        lane = self._lane.state
        before = vcpu.copy()
        with np.errstate(over="ignore"):
            ref.run_reference(
                *(*self._block[:8], np.uint64(0)),
                *(self._is_computed, True, self._is_svm, np.uint64(self._writable_dr6), self._told.stories),
                *(self._truth, self._counts, *(self._told.stories, self._told.values, self._told.undefined)),
            )
        self._lane.call_loop(self._block, 0, self._told, LEVEL_DECISIONS, self._outcomes)
        if self._is_irregular():
            return None
        after = state_of(vcpu, cpu, 0)
        if after is None or self._truth[0, : ref.DR7 + 1].tolist() != vcpu[
            records.TRUE : records.TRUE + 6
        ].tolist():
            return None
        rows = [
            Row(int(key), int(operations))
            for (key, operations), count in zip(lane.bill_keys, lane.bill_counts, strict=True)
            for _ in range(int(count))
        ]
        entries = [row for row in rows if row.key & 0xFFFF_FFFF == _MARKER]
        pending = Row(int(vcpu[records.PENDING_KEY]), int(vcpu[records.PENDING_OPERATIONS]))
        if len(entries) != (state.rung != IN_GUEST) or (pending.key != 0) != (after.rung != IN_GUEST):
            return None
        windows = self._windows(state, after, vcpu)
        if windows is None:
            return None
        marker = records.ACCOUNT_EXIT << records.KEY_ACCOUNT_SHIFT | _MARKER
        counted = slice(records.EXECUTED, records.CLUSTERED + 1)
        number = int(self._outcomes.decisions[0])
        return Step(
            state=after,
            entry=Row(entries[0].key - marker, entries[0].operations) if entries else NO_ROW,
            rows=tuple(row for row in rows if row.key & 0xFFFF_FFFF != _MARKER),
            pending=pending,
            vcpu_counts=tuple((vcpu[counted] - before[counted]).astype(np.int64).tolist()),
            switches=int(lane.counts[records.SWITCHES]),
            opens=windows[0],
            closes=windows[1],
            whole_window=windows[2],
            decision=Row(*lane.decisions[number].tolist()),
        )

    def _set_up(self, state: State, word: int, reason: int) -> tuple[Words, Words]:
        """Put the event into the block and the state into the records; return the lane's two."""
        lane = self._lane.state
        for array in (
            *(lane.counts, lane.bill_keys, lane.bill_counts, lane.window_sizes, lane.leaks, lane.declared),
            *(lane.debug_exits, lane.decision_keys, lane.decision_numbers),
        ):
            array[:] = 0
        kind = EventKind(word & 0x3F) if not word & symbols.WORD_DR else EventKind.MOV_TO_DR
        truth = [*_ADDRESS, int(canonical_dr6(U64(_TRUE_DR6), U64(self._writable_dr6)))]
        dr7 = _TRUE_DR7[state.truth_dr7]
        truth.append(dr7 | _CONDITION.get(kind, 0) if dr7 != DR7_RESET else dr7)
        _put_event(self._block, word, reason)
        vcpu, cpu = lane.vcpus[0], lane.physical_cpus[0]
        vcpu[:], cpu[:] = self._fresh_vcpu, self._fresh_cpu
        vcpu[records.TRUE : records.TRUE + 6] = truth
        put_state(state, vcpu, cpu, 0)
        vcpu[records.PENDING_KEY] = 0
        if state.rung != IN_GUEST:
            vcpu[records.PENDING_KEY] = records.ACCOUNT_EXIT << records.KEY_ACCOUNT_SHIFT | _MARKER
        vcpu[records.WINDOW_SIZE] = _SIZE_BEFORE if state.window != records.WINDOW_CLOSED else 0
        self._truth[:] = 0
        self._truth[0, : ref.DR7 + 1] = truth
        self._truth[0, ref.HAS_DE] = state.has_de
        return vcpu, cpu

    def _is_irregular(self) -> bool:
        """Tell whether something happened that only the loop can count."""
        lane = self._lane.state
        counts = lane.counts
        return bool(
            counts[records.LATENT]
            or counts[records.HOST_BLIND]
            or counts[records.DIVERGED]
            or counts[records.REFUSED]
            or counts[records.FAILURE]
            or lane.declared.any()
            or lane.leaks.any()
            or lane.debug_exits.any()
            or self._told.undefined[0]
            or self._counts[ref.CONFLICTS]
        )

    def _windows(self, before: State, after: State, vcpu: Words) -> tuple[bool, int, int] | None:
        """Return which windows begin and end, or None if their sizes are not as counted."""
        told = int(self._told.stories[0])
        kind, marks = int(self._block.kinds[0]), int(self._block.marks[0])
        counts = int(
            kind in (EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR)
            and not marks & Mark.NOT_RETIRED
            and told in (ref.NOTHING, ref.READ, ref.DB_TRAP)
        )
        sizes = {
            int(bucket): int(self._lane.state.window_sizes[bucket])
            for bucket in self._lane.state.window_sizes.nonzero()[0]
        }
        is_before = before.window != records.WINDOW_CLOSED
        is_after = after.window != records.WINDOW_CLOSED
        closes = 0
        for place in range(1 + counts if is_before else 0):
            if sizes.pop(_SIZE_BEFORE + place, 0) == 1:
                closes = 1 + place
        opens = is_after and (closes != 0 or not is_before)
        whole = -1
        if sizes:
            whole, times = sizes.popitem()
            if sizes or times != 1 or whole > 1:
                return None
        if is_before and not is_after and closes == 0:
            return None
        if is_after:
            size = int(vcpu[records.WINDOW_SIZE])
            if size != (counts if opens else _SIZE_BEFORE + counts):
                return None
        return opens, closes, whole


def _put_event(block: Block, word: int, reason: int) -> None:
    """Write an event that has a feature word."""
    for column in block:
        column[:] = 0
    if word & symbols.WORD_STEPS:
        block.modes[0] |= Mode.TF
    if word & symbols.WORD_DR:
        _put_access(block, word)
        return
    kind = EventKind(word & 0x3F)
    detail = word >> symbols.WORD_DETAIL_SHIFT & 0xFF
    block.kinds[0] = kind
    block.marks[0] |= (word >> symbols.WORD_CLASS_SHIFT & 3) << 6
    if kind in (EventKind.FETCH, EventKind.READ, EventKind.WRITE):
        block.args[0] = 0 if kind == EventKind.FETCH else 4
        block.values[0] = _ADDRESS[0] if detail & symbols.DETAIL_HIT else 0x99_0000
    elif kind in (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS):
        block.args[0] = 1
        block.selectors[0] = _ADDRESS[0] if detail & symbols.DETAIL_HIT else 0x99
    elif kind in (EventKind.RDMSR, EventKind.WRMSR):
        block.selectors[0] = _MSRS[detail]
    elif kind == EventKind.MOV_TO_CR:
        block.args[0] = 4 if detail & symbols.DETAIL_CR4 else 0
        block.values[0] = 8 if detail & symbols.DETAIL_CR4_DE else 0
        if detail & symbols.DETAIL_CR4_UNKNOWN:
            block.marks[0] |= Mark.VALUE_UNKNOWN
    elif kind == EventKind.MMIO:
        block.selectors[0] = int(profile.LOCAL_APIC_PAGE) << 12 if detail else 0xFEB0_0000
    elif kind == EventKind.EXCEPTION:
        block.selectors[0] = detail
        block.values[0] = 1
    elif kind == EventKind.EXIT:
        block.selectors[0] = reason


def _put_access(block: Block, word: int) -> None:
    """Write a MOV DR that has a feature word."""
    register = word & 7
    is_write = bool(word & symbols.WORD_DR_WRITE)
    block.kinds[0] = EventKind.MOV_TO_DR if is_write else EventKind.MOV_FROM_DR
    block.args[0] = register
    if word & symbols.WORD_DR_USER:
        block.modes[0] |= 3
    if word & symbols.WORD_DR_RETIRED:
        block.marks[0] |= Mark.RETIRED
    if word & symbols.WORD_DR_NOT_RETIRED:
        block.marks[0] |= Mark.NOT_RETIRED
    if not is_write:
        return
    value = _WRITTEN + register
    if register in (4, 6):
        value = _WRITTEN_DR6
        value |= (0x800 if word & symbols.WORD_DR_BIT_11 else 0) | 1
        if not word & symbols.WORD_DR_BIT_16:
            value &= ~0x1_0000
        else:
            value |= 0x1_0000
    elif register in (5, 7):
        value = DR7_RESET if word & symbols.WORD_DR_RESET else _WRITTEN_DR7
        value |= (DR7_GD if word & symbols.WORD_DR_GD else 0) | (0xC if word & symbols.WORD_DR_ENABLES else 0)
        value |= 0x800 if word & symbols.WORD_DR_BIT_11 else 0
    if word & symbols.WORD_DR_WIDE:
        value |= 1 << 32
    if word & symbols.WORD_DR_CUT:
        value |= 1 << 33
        block.modes[0] |= Mode.OPERAND_32
    block.values[0] = value
