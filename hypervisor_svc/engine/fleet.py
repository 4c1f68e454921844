"""The lanes of one reference over a stream of events: by machine where they can be, else by the loop.

A block is taken in stretches. A stretch ends where an event has no symbol (a host's, a nested guest's, a
shadow's); what comes then is the oracle loop's for a while. Within a stretch every lane runs by its
machine, unless its records have no state (a debugger, a physical CPU that is shared, a deviation under
way) or the machine meets a step that belongs to the loop: then what it has counted in the stretch is
taken back, and the loop runs the stretch for this lane from the same records. Either way every counter
is the same.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_RESET, DR7_GD, DR7_RTM, DR7_WRITABLE, dr6_writable
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.arch.story import Story
from hypervisor_svc.engine import records
from hypervisor_svc.engine.gang import Gang
from hypervisor_svc.engine.knowledge import knowledge_of
from hypervisor_svc.engine.lane import Lane, Outcomes
from hypervisor_svc.engine.machine import MAX_STEPS, Machine
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS, LEVEL_FULL
from hypervisor_svc.engine.probe import Row
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.states import states_of
from hypervisor_svc.engine.stretch import Stretch, added_digest
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
# Bits of a value that its feature word tells of.
_TOLD_OF_DR6: Final = 1 << 11 | 1 << 16
_TOLD_OF_DR7: Final = DR7_GD | DR7_RTM
_NOT_TAKEN: Final = MAX_STEPS  # stands for a step where a conditional event is not taken


class LoopReason(IntEnum):
    """Why the loop runs events; the contract's numbers."""

    SMALL_BLOCKS = 1
    RARE_EVENTS = 2
    CLUSTERS = 3
    SHARED_CPU = 4
    STATE = 5
    MAY_DIVERGE = 6
    TOO_LARGE = 7
    RESERVED_BITS = 8


class _Share(NamedTuple):
    """Events that the loop ran for one reason."""

    events: int
    first: int


class Work(NamedTuple):
    """A block under way."""

    block: Block
    first_event: int
    truth: Truth
    reference: Reference
    level: int
    outcomes: list[Outcomes]
    recorded_reasons: int


@dataclass(slots=True, eq=False)
class _Run:
    """A lane with its machine, and who runs it."""

    lane: Lane
    machine: Machine
    decisions: NDArray[np.int32]  # the number of each step's decision, -1 where it has none yet
    is_by_machine: bool = False
    rest: int = 0  # stretches that the loop still takes, as the machine fell out of those before
    next_rest: int = 1
    why: LoopReason = LoopReason.SMALL_BLOCKS  # the loop runs it, where it does
    machine_events: int = 0
    shares: dict[LoopReason, _Share] = field(default_factory=dict)  # of the loop

    def count_loop(self, first: int, events: int) -> None:
        """Count events that the loop runs."""
        share = self.shares.get(self.why, _Share(0, first))
        self.shares[self.why] = share._replace(events=share.events + events)

    def told(self) -> hypervisor_pb2.LaneRun:
        """Return how the lane was run so far."""
        shares = [
            hypervisor_pb2.LoopShare(
                reason=hypervisor_pb2.LoopReason.ValueType(why), events=share.events, first_event=share.first
            )
            for why, share in sorted(self.shares.items())
        ]
        return hypervisor_pb2.LaneRun(
            lane=self.lane.number, machine_events=self.machine_events, loop_shares=shares
        )

    def counted(self) -> Words:
        """Return how the lane was run so far as words: events by machine, then two for each reason."""
        none = _Share(0, 0)
        shares = [word for why in LoopReason for word in self.shares.get(why, none)]
        return np.array([self.machine_events, *shares], np.uint64)

    def take_over(self, counted: Words) -> None:
        """Go on from what ``counted`` returned."""
        self.machine_events, *words = counted.tolist()
        shares = {why: _Share(*words[2 * n : 2 * n + 2]) for n, why in enumerate(LoopReason)}
        self.shares = {why: share for why, share in shares.items() if share.events}

    def first_states(self, truth: Words) -> list[int] | LoopReason:
        """Return the numbers of the states that the records have, or why they are the loop's."""
        lane = self.lane
        vcpus, cpus = lane.state.vcpus, lane.state.physical_cpus
        homes = vcpus[:, records.HOME].tolist()
        if lane.visits.size or lane.constants[records.CLUSTER_GAP]:
            return LoopReason.CLUSTERS
        if _keeps_reserved_bits(lane.message):
            return LoopReason.RESERVED_BITS
        if len(set(homes)) < len(homes):
            return LoopReason.SHARED_CPU
        # A lane that has refused a change is elsewhere than its stream.
        is_there = (vcpus[:, records.TRUE : records.TRUE + 6] == truth[:, : ref.DR7 + 1]).all()
        is_there = is_there and (vcpus[:, records.HAS_DE] == truth[:, ref.HAS_DE]).all()
        codes, has_state = states_of(vcpus, cpus[homes], np.arange(len(homes), dtype=np.uint64))
        if not is_there or not has_state.all():
            return LoopReason.STATE
        numbers = [self.machine.number_of(code.tobytes()) for code in codes]
        return LoopReason.TOO_LARGE if None in numbers else [number or 0 for number in numbers]

    def fall(self) -> None:
        """Leave the machine for a while, longer each time in a row."""
        self.is_by_machine = False
        self.why = LoopReason.TOO_LARGE if self.machine.is_full else LoopReason.MAY_DIVERGE
        self.rest = self.next_rest
        self.next_rest = min(2 * self.next_rest, _LONGEST_REST)

    def decision_of(self, step_number: int) -> int:
        """Return the number that the loop would tell for the decision of a step."""
        found = Row(0, 0)
        if step_number == _NOT_TAKEN:
            found = Row(int(Story.NOT_TAKEN) << records.KEY_STORY_SHIFT, 0)
        elif (step := self.machine.steps[step_number]) is not None:
            found = step.decision
        return self.lane.decision_number(*found)


def _keeps_reserved_bits(policy: policy_pb2.PolicyTable) -> bool:
    """Tell whether emulation has other masks than the architecture's, in bits that no symbol tells of."""
    unlike = policy.emulated_dr6_writable ^ dr6_writable(rtm=True, bus_lock_detect=True)
    unlike |= policy.emulated_dr6_fixed ^ DR6_RESET
    is_odd = bool(unlike & ~_TOLD_OF_DR6)
    return is_odd or bool((policy.emulated_dr7_writable ^ DR7_WRITABLE) & ~_TOLD_OF_DR7)


class Fleet:
    """Lanes that are held to the same reference."""

    def __init__(self, lanes: list[Lane], vcpus: int, *, is_computed: bool, least_events: int | None) -> None:
        """Take the lanes as they are; machines run blocks of ``least_events``, None for no block."""
        self._runs = [
            _Run(
                lane,
                Machine(knowledge_of(lane.message, lane.writable_dr6, is_computed=is_computed)),
                np.full(MAX_STEPS + 1, -1, np.int32),
            )
            for lane in lanes
        ]
        self._least_events = least_events
        self._vcpus = vcpus
        self._is_computed = is_computed
        self._loop_events = _LOOP_EVENTS

    # Made when machines run first: a session that only waits has none.

    @cached_property
    def _gang(self) -> Gang:
        return Gang([run.machine for run in self._runs], self._vcpus)

    @cached_property
    def _stretch(self) -> Stretch:
        return Stretch(self._vcpus, is_computed=self._is_computed)

    def run(self, work: Work) -> None:
        """Run a checked block through every lane."""
        at, count = 0, len(work.block.kinds)
        may_run = self._least_events is not None and count >= self._least_events and bool(self._runs)
        while at < count:
            stop = at
            before = work.reference.state_before(at) if may_run else None
            if before is not None and not before[:, ref.EXTRA].any():
                for row, run in enumerate(self._runs):
                    if not run.is_by_machine:
                        self._take_up(row, run, before)
                if any(run.is_by_machine for run in self._runs):
                    stop = self._stretch.read(work.block, work.truth, at, self._runs[0].lane.profile)
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
                self._stretch.break_off()
            at = stop

    def lane_runs(self) -> list[hypervisor_pb2.LaneRun]:
        """Return how each lane was run so far."""
        return [run.told() for run in self._runs]

    def counted(self) -> list[Words]:
        """Return how each lane was run so far, as words."""
        return [run.counted() for run in self._runs]

    def take_over(self, counted: list[Words]) -> None:
        """Go on from what ``counted`` returned; no machine is under way yet."""
        for run, words in zip(self._runs, counted, strict=True):
            run.take_over(words)

    def settle(self, reference: Words) -> None:
        """Bring every lane's records and counters up to date with its machine."""
        for row, run in enumerate(self._runs):
            if run.is_by_machine:
                self._gang.settle(row, run.lane, reference)

    def _run_stretch(self, work: Work, at: int, stop: int) -> None:
        """Run the symbols that were read; lanes that fall out, or never ran, go through the loop."""
        runners = [row for row, run in enumerate(self._runs) if run.is_by_machine]
        for row in self._gang.run(self._stretch, runners):
            run = self._runs[row]
            self._gang.settle(row, run.lane, work.reference.state_before(at))
            run.fall()
        self._gang.finish(self._stretch)
        self._loop(work, at, stop, [run for run in self._runs if not run.is_by_machine])
        is_whole = stop - at == len(work.block.kinds)
        digest = work.reference.added_digest
        if not is_whole:
            part = work.block.slice(at, stop)
            digest = added_digest(part, work.truth.slice(at, stop), work.first_event + at)
        for row, run in enumerate(self._runs):
            if run.is_by_machine:
                run.next_rest = 1
                run.machine_events += stop - at
                with np.errstate(over="ignore"):
                    run.lane.state.counts[records.DIGEST] += digest
                if work.level >= LEVEL_DECISIONS:
                    self._tell(work, at, stop, row)

    def _tell(self, work: Work, at: int, stop: int, row: int) -> None:
        """Write what a stretch by machine showed and decided."""
        run = self._runs[row]
        run.lane.state.make_room_for_decisions()
        stories = work.truth.stories[at:stop]
        steps = self._gang.steps(self._stretch, row, stop)[at:]
        steps[stories == Story.NOT_TAKEN] = _NOT_TAKEN
        numbers = run.decisions[steps]
        if (numbers < 0).any():
            fresh, firsts = np.unique(steps[numbers < 0], return_index=True)
            for step in fresh[np.argsort(firsts)].tolist():
                run.decisions[step] = run.decision_of(step)
            numbers = run.decisions[steps]
        outcomes = work.outcomes[run.lane.number]
        outcomes.decisions[at:stop] = numbers
        if work.level >= LEVEL_FULL:
            is_quiet = (stories == Story.NOTHING) | (stories == Story.NOT_TAKEN)
            outcomes.stories[at:stop] = stories
            outcomes.values[at:stop] = np.where(is_quiet, np.uint64(0), work.truth.values[at:stop])

    def _loop(self, work: Work, at: int, stop: int, runs: list[_Run]) -> None:
        for run in runs:
            run.count_loop(work.first_event + at, stop - at)
            run.lane.run(
                *(work.block.slice(at, stop), work.first_event + at, work.truth.slice(at, stop), work.level),
                work.outcomes[run.lane.number].slice(at, stop),
                recorded_reasons=work.recorded_reasons,
            )

    def _reason_to_leave(self, *, may_run: bool) -> LoopReason:
        """Return why lanes that can be run by machine are not."""
        if not may_run:
            return LoopReason.SMALL_BLOCKS
        return LoopReason.TOO_LARGE if self._stretch.is_full else LoopReason.RARE_EVENTS

    def _leave(self, reference: Words, why: LoopReason) -> None:
        self.settle(reference)
        for run in self._runs:
            if run.is_by_machine or LoopReason.SMALL_BLOCKS in (why, run.why):
                run.is_by_machine, run.why = False, why

    def _take_up(self, row: int, run: _Run, truth: Words) -> None:
        """Go on by machine, or take note why not."""
        if run.rest:
            run.rest -= 1
            return
        numbers = run.first_states(truth)
        if isinstance(numbers, LoopReason):
            run.why = numbers
            return
        self._gang.begin(row, numbers, run.lane.state.vcpus[:, records.WINDOW_SIZE])
        run.is_by_machine = True
