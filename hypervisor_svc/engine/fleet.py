"""The lanes of one reference over a stream of events: by machine where they can be, else by the loop.

A block is taken in stretches. A stretch ends where an event has no symbol (a host's, a nested guest's, a
shadow's); what comes then is the oracle loop's for a while. Within a stretch every lane runs by its
machine, unless its records have no state (a debugger, a physical CPU that is shared, a deviation under
way) or the machine meets a step that belongs to the loop: then what it has counted in the stretch is
taken back, and the loop runs the stretch for this lane from the same records. Either way every counter
is the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.arch.story import Story
from hypervisor_svc.engine import records, symbols
from hypervisor_svc.engine.lane import Lane, Outcomes
from hypervisor_svc.engine.machine import (
    IDLE,
    IS_LOOPS,
    MAX_STATES,
    MAX_STEPS,
    ROW,
    UNKNOWN,
    Machine,
    knowledge_of,
    run_machines,
    step_number,
    tell_steps,
)
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS, LEVEL_FULL
from hypervisor_svc.engine.probe import Row
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.states import Part, put_states, states_of
from hypervisor_svc.engine.symbols import digest_of, read_symbols
from hypervisor_svc.engine.truth import Reference, Truth
from hypervisor_svc.engine.validation import Block

# Events that the loop takes after one that has no symbol, before symbols are tried again: more where
# stretches are short.
_LOOP_EVENTS: Final = 512
_MOST_LOOP_EVENTS: Final = 1 << 15
# Blocks with fewer events are the loop's: a step that is new costs as much to learn as a hundred thousand
# events to run.
LEAST_EVENTS: Final = 4096
_LONGEST_REST: Final = 64
_AT_ONCE: Final = 4
_NOT_TAKEN: Final = MAX_STEPS  # stands for a step where a conditional event is not taken
_STEP: Final = np.uint64(1)
_BACK: Final = ~np.uint64(0)


class LoopReason(IntEnum):
    """Why the loop runs events; the contract's numbers."""

    SMALL_BLOCKS = 1
    RARE_EVENTS = 2
    CLUSTERS = 3
    SHARED_CPU = 4
    STATE = 5
    MAY_DIVERGE = 6
    TOO_LARGE = 7


class Share(NamedTuple):
    """Events that the loop ran for one reason."""

    events: int
    first: int


@dataclass(slots=True, eq=False)
class _Run:
    """A lane with its machine."""

    lane: Lane
    machine: Machine
    decisions: NDArray[np.int32]  # the number of each step's decision, -1 where it has none yet
    is_by_machine: bool = False
    rest: int = 0  # stretches that the loop still takes, as machines fell out of those before
    next_rest: int = 1
    why: LoopReason = LoopReason.SMALL_BLOCKS  # it is the loop's, where it is
    events: int = 0  # by machine
    shares: dict[LoopReason, Share] = field(default_factory=dict)  # by the loop

    def count_loop(self, first: int, events: int) -> None:
        """Count events that the loop runs."""
        share = self.shares.get(self.why, Share(0, first))
        self.shares[self.why] = share._replace(events=share.events + events)

    def told(self) -> hypervisor_pb2.LaneRun:
        """Return how the lane was run so far."""
        return hypervisor_pb2.LaneRun(
            lane=self.lane.number,
            machine_events=self.events,
            loop_shares=[
                hypervisor_pb2.LoopShare(
                    reason=hypervisor_pb2.LoopReason.ValueType(why),
                    events=share.events,
                    first_event=share.first,
                )
                for why, share in sorted(self.shares.items())
            ],
        )


class Work(NamedTuple):
    """A block under way."""

    block: Block
    first_event: int
    truth: Truth
    reference: Reference
    level: int
    outcomes: list[Outcomes]
    recorded_reasons: int


class _Places(NamedTuple):
    """Where every vCPU's machines are; shape (vCPUs, rows) each."""

    states: Words  # a state's place in the table
    opened: Words  # MOV DRs before the open window
    last: Words  # the entry taken last since the lane was settled

    def copy(self) -> "_Places":
        return _Places(*(array.copy() for array in self))

    def restore(self, row: int, saved: "_Places") -> None:
        for array, before in zip(self, saved, strict=True):
            array[:, row] = before[:, row]


class Fleet:
    """Lanes that are held to the same reference."""

    def __init__(self, lanes: list[Lane], vcpus: int, *, is_computed: bool, least_events: int | None) -> None:
        """Take the lanes as they are; machines run blocks of ``least_events``, None for no block."""
        self._is_computed = is_computed
        self._runs = [
            _Run(
                lane,
                Machine(knowledge_of(lane.message, lane.writable_dr6, is_computed=is_computed)),
                np.full(MAX_STEPS + 1, -1, np.int32),
            )
            for lane in lanes
        ]
        self._least_events = least_events
        rows = len(lanes) + 1  # the last does nothing, and makes up four
        self._tables = np.zeros((rows, MAX_STATES * ROW), np.uint32)
        self._tables[-1, :ROW] = IDLE
        self._looks = np.zeros((rows, MAX_STEPS), np.uint8)
        self._taken = np.zeros((vcpus, rows, MAX_STEPS), np.uint64)
        self._places = _Places(*(np.zeros((vcpus, rows), np.uint64) for _ in _Places._fields))
        self._windows = np.zeros((rows, records.WINDOW_BUCKETS), np.uint64)
        self._accesses = np.zeros(vcpus, np.uint64)
        self._numbers = np.zeros(symbols.WORDS, np.uint8)
        self._words = np.zeros(symbols.MAX_SYMBOLS + 1, np.uint32)
        self._words[0] = symbols.QUIET_WORD
        self._reason_numbers = np.zeros(symbols.KNOWN_CODES, np.uint16)
        self._reasons = np.zeros(symbols.MAX_REASONS, np.uint32)
        self._stretch = np.zeros(symbols.STRETCH_FIELDS, np.uint64)
        self._stretch[symbols.KNOWN_WORDS] = 1
        self._per_vcpu = np.zeros((vcpus, symbols.VCPU_COLUMNS), np.uint64)
        self._per_vcpu[:, symbols.OWES] = 1
        self._vcpu_places = np.zeros(vcpus, np.int64)
        self._loop_events = _LOOP_EVENTS
        self._digest = np.uint64(0)
        self._symbols = np.zeros(0, np.uint8)
        self._accesses_before = np.zeros(0, np.uint32)
        self._events = np.zeros(0, np.uint32)

    def run(self, work: Work) -> None:
        """Run a checked block through every lane."""
        at, count = 0, len(work.block.kinds)
        may_run = self._least_events is not None and count >= self._least_events and bool(self._runs)
        self._make_room(count)
        while at < count:
            stop = at
            before = work.reference.state_before(at) if may_run else None
            if before is not None and not before[:, ref.EXTRA].any():
                for row, run in enumerate(self._runs):
                    if not run.is_by_machine:
                        self._take_up(row, run, before)
                if any(run.is_by_machine for run in self._runs):
                    stop = self._read(work, at)
            if stop > at:
                self._run_stretch(work, at, stop)
            is_short = stop - at < self._loop_events
            if stop < count:
                self._loop_events = (
                    min(2 * self._loop_events, _MOST_LOOP_EVENTS) if is_short else _LOOP_EVENTS
                )
                at, stop = stop, min(stop + self._loop_events, count) if may_run else count
                self._leave(work.reference.state_before(at), self._reason_to_leave(may_run=may_run))
                self._loop(work, at, stop, self._runs)
                self._per_vcpu[:, symbols.OWES] = 1
            at = stop

    def lane_runs(self) -> list[hypervisor_pb2.LaneRun]:
        """Return how each lane was run so far."""
        return [run.told() for run in self._runs]

    def _reason_to_leave(self, *, may_run: bool) -> LoopReason:
        """Return why lanes that can be run by machine are not."""
        if not may_run:
            return LoopReason.SMALL_BLOCKS
        is_full = int(self._stretch[symbols.KNOWN_WORDS]) == symbols.MAX_SYMBOLS
        return LoopReason.TOO_LARGE if is_full else LoopReason.RARE_EVENTS

    def settle(self, reference: Words) -> None:
        """Bring every lane's records and counters up to date with its machine."""
        for row, run in enumerate(self._runs):
            if run.is_by_machine:
                self._settle(row, run, reference)

    # Stretches.

    def _make_room(self, count: int) -> None:
        if len(self._symbols) < count:
            self._symbols = np.zeros(count, np.uint8)
            self._accesses_before = np.zeros(count, np.uint32)
            self._events = np.zeros(count, np.uint32)

    def _read(self, work: Work, at: int) -> int:
        """Read the symbols of a stretch; return where it ends."""
        block, truth = work.block, work.truth
        profile = self._runs[0].lane.profile
        if len(self._vcpu_places) > 1:
            counts = np.bincount(block.vcpus[at:], minlength=len(self._vcpu_places))
            self._vcpu_places[1:] = np.cumsum(counts)[:-1]
        self._per_vcpu[:, : symbols.OWES] = 0
        with np.errstate(over="ignore"):
            read_symbols(
                *(block.kinds, block.args, block.modes, block.marks, block.vcpus, block.selectors),
                *(block.values, np.uint64(at), np.uint64(len(block.kinds))),
                *(self._is_computed, truth.stories, truth.values, truth.undefined),
                *(profile.groups, profile.passed_msrs),
                *(self._numbers, self._words, self._reason_numbers, self._reasons),
                *(self._vcpu_places, self._per_vcpu),
                *(self._symbols, self._accesses_before, self._events, self._stretch),
            )
        return int(self._stretch[symbols.TAKEN])

    def _run_stretch(self, work: Work, at: int, stop: int) -> None:
        """Run the symbols that were read; lanes that fall out go through the loop."""
        saved = self._places.copy()
        runners = [row for row, run in enumerate(self._runs) if run.is_by_machine]
        fallen: list[int] = [row for row in range(len(self._runs)) if row not in runners]
        for vcpu in range(len(self._vcpu_places)):
            for begin in range(0, len(runners), _AT_ONCE):
                four = runners[begin : begin + _AT_ONCE]
                fallen += self._run_four(vcpu, [row for row in four if row not in fallen], saved)
        for row in runners:
            if row not in fallen and not self._is_determined(row):
                self._take_back(row, len(self._vcpu_places), 0, saved)
                fallen.append(row)
        if fallen:
            before = work.reference.state_before(at)
            for row in fallen:
                run = self._runs[row]
                if run.is_by_machine:
                    self._settle(row, run, before)
                    run.is_by_machine = False
                    run.why = LoopReason.TOO_LARGE if run.machine.is_full else LoopReason.MAY_DIVERGE
                    run.rest = run.next_rest
                    run.next_rest = min(2 * run.next_rest, _LONGEST_REST)
            self._loop(work, at, stop, [self._runs[row] for row in fallen])
        self._accesses += self._per_vcpu[:, symbols.ACCESSES]
        self._digest = self._digest_of(work, at, stop)
        for row in runners:
            if row not in fallen:
                self._runs[row].next_rest = 1
                self._runs[row].events += stop - at
                self._tell(work, at, stop, row, saved)

    @staticmethod
    def _digest_of(work: Work, at: int, stop: int) -> np.uint64:
        """Return what a stretch adds to the digest of every lane that it was right for."""
        if stop - at == len(work.block.kinds):
            return work.reference.added_digest
        part = work.truth.slice(at, stop)
        with np.errstate(over="ignore"):
            found = digest_of(
                *(part.stories, part.values, work.block.vcpus[at:stop], np.uint64(work.first_event + at))
            )
        return np.uint64(found)

    def _run_four(self, vcpu: int, four: list[int], saved: _Places) -> list[int]:
        """Run one vCPU's symbols through up to four machines; return those that fell out."""
        fallen: list[int] = []
        at, stop = 0, int(self._per_vcpu[vcpu, symbols.SYMBOLS])
        while at < stop and four:
            at = self._call(vcpu, four, at, stop, _STEP)
            if at < stop:
                symbol = int(self._symbols[int(self._vcpu_places[vcpu]) + at])
                for row in four:
                    self._learn(vcpu, row, symbol)
                out = [row for row in four if self._belongs_to_loop(vcpu, row, symbol)]
                for row in out:
                    self._take_back(row, vcpu, at, saved)
                fallen += out
                four = [row for row in four if row not in out]
        return fallen

    def _call(self, vcpu: int, four: Iterable[int], start: int, stop: int, step: np.uint64) -> int:
        rows = [*four]
        rows += [len(self._runs)] * (_AT_ONCE - len(rows))
        place = int(self._vcpu_places[vcpu])
        where = self._places
        with np.errstate(over="ignore"):
            reached: int = run_machines(
                *(self._symbols, self._accesses_before, np.uint64(place + start), np.uint64(place + stop)),
                *(self._accesses[vcpu], step, self._tables, self._looks, where.states[vcpu]),
                *(self._taken[vcpu], self._windows, where.opened[vcpu], where.last[vcpu]),
                np.array(rows, np.uint64),
            )
        return reached - place

    def _learn(self, vcpu: int, row: int, symbol: int) -> None:
        """Have a machine learn what its state does with this symbol, and with all others that are known."""
        place = int(self._places.states[vcpu, row])
        if self._tables[row, place | symbol] == UNKNOWN:
            count = int(self._stretch[symbols.KNOWN_WORDS])
            words = self._words[:count].tolist()
            reasons = [self._reason_of(word) for word in words]
            entries = self._tables[row, place : place + count]
            machine = self._runs[row].machine
            fresh = np.array(machine.learn(place // ROW, words, reasons), np.uint32)
            entries[:] = np.where(entries == UNKNOWN, fresh, entries)
            self._looks[row] = machine.looks

    def _reason_of(self, word: int) -> int:
        return int(self._reasons[symbols.recorded_reason(word)]) if symbols.is_recorded_exit(word) else 0

    def _belongs_to_loop(self, vcpu: int, row: int, symbol: int) -> bool:
        entry = int(self._tables[row, int(self._places.states[vcpu, row]) | symbol])
        return bool(self._looks[row, step_number(entry)] & IS_LOOPS)

    def _take_back(self, row: int, vcpu: int, at: int, saved: _Places) -> None:
        """Take back what a machine counted: the first ``at`` symbols of a vCPU, all of those before."""
        for before in range(vcpu + (at > 0)):
            self._places.restore(row, saved)
            count = at if before == vcpu else int(self._per_vcpu[before, symbols.SYMBOLS])
            self._call(before, [row], 0, count, _BACK)
        self._places.restore(row, saved)

    def _is_determined(self, row: int) -> bool:
        """Tell whether a machine's states and the guest's registers are all that the loop would need."""
        machine = self._runs[row].machine
        numbers = {int(place) // ROW for place in self._places.states[:, row]}
        return all(machine.knowledge.is_determined(machine.states[number]) for number in numbers)

    def _tell(self, work: Work, at: int, stop: int, row: int, saved: _Places) -> None:
        """Write what a stretch by machine showed and decided."""
        run = self._runs[row]
        with np.errstate(over="ignore"):
            run.lane.state.counts[records.DIGEST] += self._digest
        if work.level < LEVEL_DECISIONS:
            return
        run.lane.state.make_room_for_decisions()
        stories = work.truth.stories[at:stop]
        steps = np.zeros(len(work.block.kinds), np.uint16)
        steps[at:stop][stories == Story.NOT_TAKEN] = _NOT_TAKEN
        for vcpu, place in enumerate(self._vcpu_places):
            count = int(self._per_vcpu[vcpu, symbols.SYMBOLS])
            tell_steps(
                *(self._symbols, self._events, np.uint64(place), np.uint64(int(place) + count)),
                *(self._tables[row], saved.states[vcpu, row], steps),
            )
        steps = steps[at:stop]
        outcomes = work.outcomes[run.lane.number]
        numbers = run.decisions[steps]
        if (numbers < 0).any():
            fresh, firsts = np.unique(steps[numbers < 0], return_index=True)
            for step in fresh[np.argsort(firsts)].tolist():
                run.decisions[step] = run.lane.decision_number(*self._decision_of(run, step))
            numbers = run.decisions[steps]
        outcomes.decisions[at:stop] = numbers
        if work.level >= LEVEL_FULL:
            is_quiet = (stories == Story.NOTHING) | (stories == Story.NOT_TAKEN)
            outcomes.stories[at:stop] = stories
            outcomes.values[at:stop] = np.where(is_quiet, np.uint64(0), work.truth.values[at:stop])

    @staticmethod
    def _decision_of(run: _Run, number: int) -> Row:
        if number == _NOT_TAKEN:
            return Row(int(Story.NOT_TAKEN) << records.KEY_STORY_SHIFT, 0)
        step = run.machine.steps[number]
        return Row(0, 0) if step is None else step.decision

    # The loop.

    def _loop(self, work: Work, at: int, stop: int, runs: list[_Run]) -> None:
        for run in runs:
            run.count_loop(work.first_event + at, stop - at)
            outcomes = work.outcomes[run.lane.number]
            run.lane.run(
                *(work.block.slice(at, stop), work.first_event + at, work.truth.slice(at, stop), work.level),
                outcomes.slice(at, stop),
                recorded_reasons=work.recorded_reasons,
            )

    def _leave(self, reference: Words, why: LoopReason) -> None:
        self.settle(reference)
        for run in self._runs:
            if run.is_by_machine or why == LoopReason.SMALL_BLOCKS:
                run.is_by_machine, run.why = False, why

    # Between records and machines.

    def _take_up(self, row: int, run: _Run, truth: Words) -> None:
        """Go on by machine, or take note why not."""
        if run.rest:
            run.rest -= 1
            return
        numbers = self._states_to_begin_with(run, truth)
        if isinstance(numbers, LoopReason):
            run.why = numbers
            return
        where = self._places
        where.states[:, row] = np.array(numbers, np.uint64) * np.uint64(ROW)
        with np.errstate(over="ignore"):
            where.opened[:, row] = self._accesses - run.lane.state.vcpus[:, records.WINDOW_SIZE]
        where.last[:, row] = 0
        run.is_by_machine = True

    @staticmethod
    def _states_to_begin_with(run: _Run, truth: Words) -> list[int] | LoopReason:
        """Return the numbers of the states that a lane's records have, or why it is the loop's."""
        lane = run.lane
        vcpus, cpus = lane.state.vcpus, lane.state.physical_cpus
        homes = vcpus[:, records.HOME].tolist()
        if lane.visits.size or lane.constants[records.CLUSTER_GAP]:
            return LoopReason.CLUSTERS
        if len(set(homes)) < len(homes):
            return LoopReason.SHARED_CPU
        # A lane that has refused a change is elsewhere than its stream.
        is_there = (vcpus[:, records.TRUE : records.TRUE + 6] == truth[:, : ref.DR7 + 1]).all()
        is_there = is_there and (vcpus[:, records.HAS_DE] == truth[:, ref.HAS_DE]).all()
        codes, has_state = states_of(vcpus, cpus[homes], np.arange(len(homes), dtype=np.uint64))
        if not is_there or not has_state.all():
            return LoopReason.STATE
        numbers = [run.machine.number_of(code.tobytes()) for code in codes]
        return LoopReason.TOO_LARGE if None in numbers else [number or 0 for number in numbers]

    def _settle(self, row: int, run: _Run, reference: Words) -> None:
        """Bring a lane's records and counters up to date; it can go on by machine."""
        lane, machine = run.lane, run.machine
        for vcpu in range(len(self._vcpu_places)):
            if self._places.last[vcpu, row]:
                self._settle_vcpu(vcpu, row, run, reference[vcpu])
        lane.state.window_sizes += self._windows[row]
        self._windows[row] = 0
        taken = self._taken[:, row]
        for number in np.flatnonzero(taken.any(axis=0)).tolist():
            step = machine.steps[number]
            assert step is not None  # only steps of the machine are taken
            times = taken[:, number]
            total = int(times.sum())
            counted = np.array(step.vcpu_counts, np.uint64)
            lane.state.vcpus[:, records.EXECUTED : records.CLUSTERED + 1] += times[:, None] * counted
            lane.state.counts[records.SWITCHES] += np.uint64(step.switches * total)
            if step.whole_window >= 0:
                lane.state.window_sizes[step.whole_window] += np.uint64(total)
            for key, operations in step.rows:
                lane.add_to_bill(key, operations, total)
        taken[:] = 0

    def _settle_vcpu(self, vcpu: int, row: int, run: _Run, truth: Words) -> None:
        """Bring one vCPU's records up to date, and bill the exits whose entries have run."""
        lane, machine = run.lane, run.machine
        record = lane.state.vcpus[vcpu : vcpu + 1]
        home = int(record[0, records.HOME])
        cpu = lane.state.physical_cpus[home : home + 1]
        number = np.array([vcpu], np.uint64)
        waiting = record[0, records.PENDING_KEY : records.PENDING_OPERATIONS + 1]
        if waiting[0]:
            start = machine.number_of(states_of(record, cpu, number)[0].tobytes()) or 0
            lane.add_to_bill(*_together(waiting, machine.entries[start]), 1)
        last = step_number(int(self._places.last[vcpu, row]))
        taken = self._taken[vcpu, row]
        for step_taken in taken.nonzero()[0].tolist():
            step = machine.steps[step_taken]
            assert step is not None  # only steps of the machine are taken
            times = int(taken[step_taken]) - (step_taken == last)
            if step.pending.key and times:
                following = machine.entries[machine.number_of(step.state) or 0]
                lane.add_to_bill(*_together(step.pending, following), times)
        step = machine.steps[last]
        assert step is not None  # the last step is the machine's too
        record[0, records.TRUE : records.TRUE + 6] = truth[: ref.DR7 + 1]
        put_states(np.frombuffer(step.state, np.uint8)[None], record, cpu, number)
        waiting[:] = step.pending
        with np.errstate(over="ignore"):
            size = self._accesses[vcpu] - self._places.opened[vcpu, row]
        is_open = step.state[Part.WINDOW] != records.WINDOW_CLOSED
        record[0, records.WINDOW_SIZE] = size if is_open else 0
        self._places.last[vcpu, row] = 0


def _together(pending: Iterable[int], entry: Row) -> tuple[int, int]:
    """Return the row of a bill of an exit and the entry that it waited for."""
    key, operations = pending
    return int(key) + entry.key, int(operations) + entry.operations
