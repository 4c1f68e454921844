"""One lane: a policy's table, the state of its machine, and its counters."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_RESET
from exitlab.events import EventColumns, EventKind, Mark
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import records
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS, LEVEL_FULL, run_lane
from hypervisor_svc.engine.profile import Profile, make_profile
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.snapshot import Unpacker
from hypervisor_svc.engine.tables import MOST_CLUSTERED, Table, make_table, pack_operations, rung_of_saving
from hypervisor_svc.engine.truth import Truth
from hypervisor_svc.engine.validation import Block, complete
from hypervisor_svc.engine.vocabulary import Deviation

BILL_CAPACITY: Final = 1 << 12
DECISION_CAPACITY: Final = 1 << 14
UNNUMBERED: Final = 0xFFFF  # stands for a decision past the last number
# Most rows that a block can add to a bill: of the profile's own reasons, and of each recorded one.
_ROWS_OF_PROFILE: Final = 1 << 10
_ROWS_A_REASON: Final = 64
# What takes more room as there is more to count.
_GROWING: Final = ("bill_keys", "bill_counts", "decision_keys", "decision_numbers", "decisions")
_NO_U8: Final = np.zeros(0, np.uint8)
_NO_U16: Final = np.zeros(0, np.uint16)
_NO_U64: Final = np.zeros(0, np.uint64)


class PolicyFailed(RuntimeError):
    """A policy's table cannot go on with these events; ``lane`` is the place of its lane."""

    def __init__(self, message: str, lane: int) -> None:
        """Keep which lane it was."""
        super().__init__(message)
        self.lane = lane


class EngineError(RuntimeError):
    """The engine cannot go on; a broken promise of ours, not of the peer."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """A lane's answers to a block's events; empty arrays where the level does not ask for them."""

    decisions: NDArray[np.uint16]
    stories: NDArray[np.uint8]
    values: Words

    def slice(self, start: int, stop: int) -> "Outcomes":
        """Return the places of events ``start`` to ``stop``."""
        return Outcomes(self.decisions[start:stop], self.stories[start:stop], self.values[start:stop])


def outcomes_for(count: int, level: int) -> Outcomes:
    """Return arrays for ``count`` events at an outcome level, to be filled."""
    return Outcomes(
        np.zeros(count, np.uint16) if level >= LEVEL_DECISIONS else _NO_U16,
        np.zeros(count, np.uint8) if level >= LEVEL_FULL else _NO_U8,
        np.zeros(count, np.uint64) if level >= LEVEL_FULL else _NO_U64,
    )


@dataclass(slots=True, eq=False)
class LaneState:
    """Everything about a lane that changes as events are applied."""

    vcpus: Words
    physical_cpus: Words
    counts: Words
    bill_keys: Words
    bill_counts: Words
    window_sizes: Words
    leaks: Words
    declared: Words  # (deviations, 2): events, first event plus one
    debug_exits: Words  # (MOST_DEBUG_EXITS, DEBUG_EXIT_FIELDS)
    decision_keys: Words
    decision_numbers: Words
    decisions: Words

    @classmethod
    def new(cls, vcpus: Words, physical_cpus: Words) -> "LaneState":
        """Return these records with counters at zero, and no room for decisions yet."""
        return cls(
            vcpus=vcpus,
            physical_cpus=physical_cpus,
            counts=np.zeros(records.COUNT_FIELDS, np.uint64),
            bill_keys=np.zeros((BILL_CAPACITY, 2), np.uint64),
            bill_counts=np.zeros(BILL_CAPACITY, np.uint64),
            window_sizes=np.zeros(records.WINDOW_BUCKETS, np.uint64),
            leaks=np.zeros((3, 8, records.LEAK_OWNERS), np.uint64),
            declared=np.zeros((len(Deviation), 2), np.uint64),
            debug_exits=np.zeros((records.MOST_DEBUG_EXITS, records.DEBUG_EXIT_FIELDS), np.uint64),
            decision_keys=np.zeros((1, 2), np.uint64),
            decision_numbers=np.zeros(1, np.uint64),
            decisions=np.zeros((1, 2), np.uint64),
        )

    def scratch(self) -> "LaneState":
        """Return a copy of the records with counters of its own."""
        return LaneState.new(self.vcpus.copy(), self.physical_cpus.copy())

    def make_room_for_decisions(self) -> None:
        """Give the table of decisions its size, once they are asked for."""
        if len(self.decision_numbers) < DECISION_CAPACITY:
            self.decision_keys = np.zeros((DECISION_CAPACITY, 2), np.uint64)
            self.decision_numbers = np.zeros(DECISION_CAPACITY, np.uint64)
            self.decisions = np.zeros((DECISION_CAPACITY, 2), np.uint64)

    def arrays(self) -> list[Words]:
        """Return everything, in the order of the fields."""
        return [getattr(self, name) for name in self.__slots__]

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        return sum(array.nbytes for array in self.arrays())

    def taken_from(self, snapshot: Unpacker) -> "LaneState":
        """Return the state that a snapshot has next, of a lane of the same vCPUs and CPUs.

        Raises:
            BadSnapshot: it is of another lane.

        """
        return LaneState(
            *(
                snapshot.take() if name in _GROWING else snapshot.take_like(getattr(self, name))
                for name in self.__slots__
            )
        )

    def digest_parts(self) -> list[bytes]:
        """Return the bytes that a digest of the state covers, independent of hash-table layout."""
        rows = self.bill_counts.nonzero()[0]
        bill = np.column_stack([self.bill_keys[rows], self.bill_counts[rows]])
        bill = bill[np.lexsort(bill.T[::-1])]
        arrays = (
            *(self.vcpus, self.physical_cpus, self.counts, bill, self.window_sizes, self.leaks),
            *(self.declared, self.debug_exits),
        )
        return [np.ascontiguousarray(array, "<u8").tobytes() for array in arrays]


def _constants(
    message: policy_pb2.PolicyTable, table: Table, writable_dr6: int, *, is_computed: bool
) -> Words:
    lane = np.zeros(records.LANE_FIELDS, np.uint64)
    lane[records.IS_SVM] = message.vendor == policy_pb2.VENDOR_SVM
    lane[records.WRITABLE_DR6] = writable_dr6
    lane[records.EMULATED_DR6_WRITABLE] = message.emulated_dr6_writable
    lane[records.EMULATED_DR6_FIXED] = message.emulated_dr6_fixed
    lane[records.EMULATED_DR7_WRITABLE] = message.emulated_dr7_writable
    lane[records.INTERCEPTED] = message.intercepted_exceptions
    lane[records.TRAP_OPERATIONS] = pack_operations(message.trap_operations)
    lane[records.QUIRKS] = int(table.quirks)
    lane[records.DECLARES] = table.declares
    lane[records.CHECK_ORDER] = table.check_order
    lane[records.IS_COMPUTED] = is_computed
    lane[records.RUNG_OF_SAVING] = rung_of_saving(table)
    lane[records.RECOMPUTE_OPERATIONS] = table.recompute_operations
    lane[records.UNINTERCEPTED] = message.unintercepted_accesses
    lane[records.CLUSTER_GAP] = message.cluster_gap_cycles
    lane[records.CLUSTER_ACCESSES] = message.cluster_accesses or MOST_CLUSTERED
    lane[records.REFUSES] = (
        (records.REFUSES_DEBUGREGS if message.refuses_set_debugregs else 0)
        | (records.REFUSES_DEBUGGER if message.refuses_debugger else 0)
        | (records.REFUSES_HOST if message.refuses_host_breakpoints else 0)
        | (0 if message.supports_nesting else records.REFUSES_NESTING)
    )
    return lane


class Lane:
    """A policy on one vendor and CPU, run by the oracle loop."""

    def __init__(
        self,
        message: policy_pb2.PolicyTable,
        writable_dr6: int,
        initial_physical_cpus: tuple[int, ...],
        physical_cpus: int,
        *,
        is_computed: bool,
        number: int = 0,
    ) -> None:
        """Check the table and make the state after reset; ``number`` is the lane's place among others.

        Raises:
            BadTable: the table cannot be run.

        """
        self.message = message
        self.writable_dr6 = writable_dr6
        self.number = number
        self.table = make_table(message)
        self.profile: Profile = make_profile(
            is_svm=message.vendor == policy_pb2.VENDOR_SVM, rules=self.table.class_rules
        )
        self.constants = _constants(message, self.table, writable_dr6, is_computed=is_computed)
        self.visits: Words = _NO_U64  # of each cell, once they are counted
        self.state = LaneState.new(
            records.new_vcpus(initial_physical_cpus, is_armed=message.initially_armed),
            records.new_physical_cpus(physical_cpus),
        )

    def run(
        self,
        block: Block,
        first_event: int,
        truth: Truth,
        level: int,
        outcomes: Outcomes,
        *,
        recorded_reasons: int = 0,
    ) -> None:
        """Run a checked block, in which ``recorded_reasons`` different EXITs occur, through the lane.

        Raises:
            PolicyFailed: the policy's table cannot go on; the lane must not be used again.
            EngineError: the engine's own limits are exceeded.

        """
        state = self.state
        fresh = min(2 * len(block.kinds), _ROWS_A_REASON * recorded_reasons) + _ROWS_OF_PROFILE
        while 2 * (int(state.counts[records.BILL_ROWS]) + fresh) > len(state.bill_counts):
            self._grow_bill()
        if level >= LEVEL_DECISIONS:
            state.make_room_for_decisions()
        self.call_loop(block, first_event, truth, level, outcomes)
        failure = int(state.counts[records.FAILURE])
        if failure == records.FAILURE_LIVE_LOCK:
            message = f"{self.message.name}: a MOV DR that was run again exited again (live-lock)"
            raise PolicyFailed(message, self.number)
        if failure:
            message = f"{self.message.name}: more than {len(state.bill_counts)} kinds of exit in one block"
            raise EngineError(message)

    def call_loop(self, block: Block, first_event: int, truth: Truth, level: int, outcomes: Outcomes) -> None:
        """Run a checked block whose rows of the bill and decisions there is room for."""
        state, profile = self.state, self.profile
        with np.errstate(over="ignore"):
            run_lane(
                *(block.kinds, block.args, block.modes, block.marks, block.vcpus),
                *(block.gap_cycles, block.selectors, block.values, np.uint64(first_event)),
                *(truth.stories, truth.values, truth.undefined),
                *(self.constants, self.table.bases, self.table.strides, self.table.cells),
                *(self.table.next_memories, self.table.read_sources),
                *(self.table.cell_operations, self.table.cell_host_operations),
                *(profile.groups, profile.exit_codes, profile.exception_codes),
                *(profile.classes, profile.passed_msrs),
                *(state.vcpus, state.physical_cpus, state.counts, state.bill_keys, state.bill_counts),
                *(state.window_sizes, state.leaks, state.declared, state.debug_exits, self.visits, level),
                *(state.decision_keys, state.decision_numbers, state.decisions),
                *(outcomes.decisions, outcomes.stories, outcomes.values),
            )

    def decision_number(self, key: int, operations: int) -> int:
        """Return the number that the loop would tell for a decision, which is a new one if need be."""
        state = self.state
        capacity = len(state.decision_numbers)
        at = bill_slot(key, operations, capacity)
        while state.decision_numbers[at]:
            if state.decision_keys[at].tolist() == [key, operations]:
                return int(state.decision_numbers[at]) - 1
            at = (at + 1) % capacity
        number = int(state.counts[records.DECISION_ROWS]) + 1
        if number >= min(UNNUMBERED, capacity - 1):
            return UNNUMBERED
        state.counts[records.DECISION_ROWS] = number
        state.decision_numbers[at] = number
        state.decision_keys[at] = state.decisions[number - 1] = (key, operations)
        return number - 1

    def add_to_bill(self, key: int, operations: int, count: int) -> None:
        """Count exits as the loop would."""
        state = self.state
        if 2 * (int(state.counts[records.BILL_ROWS]) + 1) > len(state.bill_counts):
            self._grow_bill()
        capacity = len(state.bill_counts)
        at = bill_slot(key, operations, capacity)
        while state.bill_counts[at]:
            if state.bill_keys[at].tolist() == [key, operations]:
                break
            at = (at + 1) % capacity
        else:
            state.counts[records.BILL_ROWS] += 1
            state.bill_keys[at] = (key, operations)
        state.bill_counts[at] += np.uint64(count)

    def count_visits(self) -> None:
        """Count from now on how often each cell of the table is taken."""
        self.visits = np.zeros(len(self.table.cells), np.uint64)

    def _grow_bill(self) -> None:
        """Double the bill's table; its layout is not part of any result."""
        state = self.state
        rows = state.bill_counts.nonzero()[0]
        capacity = len(state.bill_counts) * 2
        keys = np.zeros((capacity, 2), np.uint64)
        counts = np.zeros(capacity, np.uint64)
        for row in rows:
            key, operations = (int(word) for word in state.bill_keys[row])
            at = bill_slot(key, operations, capacity)
            while counts[at]:
                at = (at + 1) % capacity
            keys[at] = (key, operations)
            counts[at] = state.bill_counts[row]
        state.bill_keys, state.bill_counts = keys, counts

    def bill(self) -> dict[tuple[int, int], int]:
        """Return the count of every (reason, operation pattern), exits without an entry yet included."""
        state = self.state
        rows = state.bill_counts.nonzero()[0]
        bill = {
            (int(state.bill_keys[row, 0]), int(state.bill_keys[row, 1])): int(state.bill_counts[row])
            for row in rows
        }
        for vcpu in state.vcpus:
            key = (int(vcpu[records.PENDING_KEY]), int(vcpu[records.PENDING_OPERATIONS]))
            is_start = key[0] >> records.KEY_ACCOUNT_SHIFT & 7 == records.ACCOUNT_START
            if key[0] and not (is_start and key[1] == 0):
                bill[key] = bill.get(key, 0) + 1
        return bill

    def final_registers(self) -> list[tuple[list[int], int, int]]:
        """Return every vCPU's DR0-3, DR6 and DR7 as guest MOVs would read them now.

        Each read runs on a scratch copy of the rows that it can touch, so that none changes anything.

        Raises:
            PolicyFailed: a read makes the policy's table fail; the lane can still be used.

        """
        state, visits = self.state, self.visits
        self.state, self.visits = state.scratch(), _NO_U64
        found = np.zeros((len(state.vcpus), 6), np.uint64)
        is_alone = _are_alone(state.vcpus, state.physical_cpus)
        try:
            for vcpus in (np.flatnonzero(is_alone), *np.flatnonzero(~is_alone)[:, None]):
                found[vcpus] = self._read_registers(state, vcpus)
        finally:
            self.state, self.visits = state, visits
        return [(row[:4], row[4], row[5]) for row in found.tolist()]

    def _read_registers(self, state: LaneState, vcpus: NDArray[np.int64]) -> Words:
        """Return what vCPUs would read that touch no rows of each other's; a row of six each."""
        count = len(vcpus)
        reads = complete(
            EventColumns(
                kinds=np.full(count, EventKind.MOV_FROM_DR, np.uint8),
                args=np.zeros(count, np.uint8),
                marks=np.full(count, Mark.RETIRED, np.uint8),  # general detect is looked through
                vcpus=vcpus.astype(np.uint8),
            )
        )
        truth = Truth(
            np.ones(count, np.uint8), np.zeros(count, np.uint64), np.full(count, DR6_RESET, np.uint32)
        )
        homes, resident_on = state.vcpus[vcpus, records.HOME], state.vcpus[vcpus, records.RESIDENT_ON]
        cpus = np.concatenate((homes, resident_on[resident_on != 0] - np.uint64(1))).astype(np.int64)
        others = state.physical_cpus[cpus, records.RESIDENT]
        touched = np.concatenate((vcpus, others[others != 0].astype(np.int64) - 1))
        found = np.zeros((count, 6), np.uint64)
        for place, register in enumerate((0, 1, 2, 3, 6, 7)):
            self.state.vcpus[touched] = state.vcpus[touched]
            self.state.physical_cpus[cpus] = state.physical_cpus[cpus]
            reads.args[:] = register
            outcomes = outcomes_for(count, LEVEL_FULL)
            self.run(reads, 0, truth, LEVEL_FULL, outcomes)
            found[:, place] = outcomes.values
        self.state.vcpus[touched] = state.vcpus[touched]
        self.state.physical_cpus[cpus] = state.physical_cpus[cpus]
        return found


def _are_alone(vcpus: Words, physical_cpus: Words) -> NDArray[np.bool_]:
    """Tell which vCPUs have their physical CPU for themselves."""
    homes = vcpus[:, records.HOME].astype(np.int64)
    own, residents = np.arange(1, len(vcpus) + 1, dtype=np.uint64), physical_cpus[homes, records.RESIDENT]
    resident_on = vcpus[:, records.RESIDENT_ON]
    found: NDArray[np.bool_] = np.bincount(homes)[homes] == 1
    found &= (resident_on == 0) | (resident_on == homes.astype(np.uint64) + np.uint64(1))
    found &= (residents == 0) | (residents == own)
    return found


def bill_slot(key: int, operations: int, capacity: int) -> int:
    """Return where the loop looks first for a row of the bill."""
    mask = (1 << 64) - 1
    at = (key ^ (operations * 0x9E37_79B9_7F4A_7C15 & mask)) * 0xBF58_476D_1CE4_E5B9 & mask
    return (at >> 40) & (capacity - 1)
