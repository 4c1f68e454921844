"""The engine: references and lanes over the same stream of events."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from exitlab.wire import delimited
from hypervisor_svc.arch import reference
from hypervisor_svc.arch.compiled import rules_digest
from hypervisor_svc.engine.fleet import LEAST_EVENTS, Fleet, Work
from hypervisor_svc.engine.lane import UNNUMBERED, Lane, Outcomes, outcomes_for
from hypervisor_svc.engine.oracle import LEVEL_DECISIONS, LEVEL_FULL
from hypervisor_svc.engine.report import decision, make_report
from hypervisor_svc.engine.snapshot import Unpacker, pack
from hypervisor_svc.engine.truth import Reference, ReferenceKey, Truth
from hypervisor_svc.engine.validation import Checker, complete

ENGINE_FINGERPRINT: Final = f"exitlab-engine-1-{rules_digest()}"
LEVEL_REFERENCE: Final = 2
_MAX_PART_BYTES: Final = 3 << 20
_BYTES_AN_EVENT: Final = 13
_STORY_VALUES: Final = outcome_pb2.OutcomePart.STORY_VALUES_FIELD_NUMBER
_UNDEFINED_DR6: Final = outcome_pb2.OutcomePart.UNDEFINED_DR6_FIELD_NUMBER

Resolve = Callable[[str, policy_pb2.Vendor.ValueType, policy_pb2.CpuFeatures], policy_pb2.PolicyTable]


@dataclass(frozen=True, slots=True, eq=False)
class LaneSpec:
    """A lane with its policy resolved to a table."""

    table: policy_pb2.PolicyTable
    key: ReferenceKey


@dataclass(frozen=True, slots=True, eq=False)
class EngineConfig:
    """What an engine runs."""

    lanes: tuple[LaneSpec, ...]
    leading: ReferenceKey
    vcpus: int
    physical_cpus: int
    initial_physical_cpus: tuple[int, ...]
    is_computed: bool

    @classmethod
    def from_proto(cls, config: hypervisor_pb2.SessionConfig, resolve: Resolve) -> "EngineConfig":
        """Make it from a checked session config; ``resolve`` turns a policy's name into its table."""
        lanes = []
        for lane in config.lanes:
            is_named = lane.WhichOneof("policy") == "policy_name"
            table = resolve(lane.policy_name, lane.vendor, lane.features) if is_named else lane.policy_table
            lanes.append(LaneSpec(table, ReferenceKey.of(lane.vendor, lane.features)))
        physical = config.physical_cpus or config.vcpus
        return cls(
            lanes=tuple(lanes),
            leading=ReferenceKey.of(config.leading_vendor, config.leading_features),
            vcpus=config.vcpus,
            physical_cpus=physical,
            initial_physical_cpus=tuple(config.initial_physical_cpus)
            or tuple(n % physical for n in range(config.vcpus)),
            is_computed=config.breakpoints == hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        )


class Engine:
    """Runs blocks of events through the references and all lanes; deterministic."""

    def __init__(self, config: EngineConfig, *, least_events: int | None = LEAST_EVENTS) -> None:
        """Make references and lanes after reset.

        Blocks of ``least_events`` go by machine where they can, smaller ones, or all if it is None, through
        the oracle loop; what comes out is the same.

        Raises:
            BadTable: a lane's table cannot be run.

        """
        self.config = config
        keys = dict.fromkeys([config.leading, *(lane.key for lane in config.lanes)])
        self.references = {key: Reference(key, config.vcpus, is_computed=config.is_computed) for key in keys}
        self.lanes = [
            Lane(
                spec.table,
                spec.key.dr6_writable,
                config.initial_physical_cpus,
                config.physical_cpus,
                is_computed=config.is_computed,
                number=number,
            )
            for number, spec in enumerate(config.lanes)
        ]
        self.fleets = {
            key: Fleet(
                [lane for spec, lane in zip(config.lanes, self.lanes, strict=True) if spec.key == key],
                config.vcpus,
                is_computed=config.is_computed,
                least_events=least_events,
            )
            for key in keys
        }
        self._checker = Checker(config.vcpus, config.physical_cpus, is_computed=config.is_computed)
        self.applied_events = 0
        self.events_by_kind = np.zeros(64, np.uint64)
        self.start_stream()

    def start_stream(self) -> None:
        """Begin to tell decisions anew: whoever reads the next outcomes may not know those before."""
        self._is_told = np.zeros((len(self.lanes), UNNUMBERED), np.bool_)

    def feed(self, events: EventColumns, level: int) -> list[outcome_pb2.OutcomePart]:
        """Check and apply a block; return outcomes as the level asks, in parts that fit a message.

        Raises:
            BadEvents: the block cannot be applied; nothing has changed.
            PolicyFailed: a lane's table cannot go on; the engine must not be used again.
            EngineError: the engine's own limits are exceeded; the engine must not be used again.

        """
        first = self.applied_events
        whole = complete(events)
        counts = self._checker.check(whole, first)
        truths: dict[ReferenceKey, Truth] = {}
        leading: Truth | None = None
        for key, one in self.references.items():
            truths[key] = one.run(whole, first, leading=leading)
            leading = leading or truths[key]
        outcomes = [outcomes_for(len(events), level) for _ in self.lanes]
        for key, fleet in self.fleets.items():
            fleet.run(
                Work(
                    *(whole, first, truths[key], self.references[key], level, outcomes),
                    self._checker.recorded_reasons,
                )
            )
        parts: list[outcome_pb2.OutcomePart] = []
        for number in range(len(self.lanes)):
            if level >= LEVEL_DECISIONS:
                fresh = self._not_yet_told(number, outcomes[number].decisions)
                parts += _lane_parts(number, first, level, outcomes[number], fresh)
        if level >= LEVEL_REFERENCE and leading is not None:
            parts += _reference_parts(len(self.lanes), first, leading)
        self.events_by_kind += counts
        self.applied_events = first + len(events)
        if parts:
            parts[-1].is_last_part = True
        return parts

    def _not_yet_told(self, number: int, decisions: NDArray[np.uint16]) -> list[outcome_pb2.Decision]:
        """Return the decisions that occur for the first time in this stream, and take note of them."""
        occurs = np.zeros(UNNUMBERED + 1, np.bool_)
        occurs[decisions] = True
        fresh: list[int] = np.flatnonzero(occurs[:UNNUMBERED] & ~self._is_told[number]).tolist()
        self._is_told[number, fresh] = True
        lane = self.lanes[number]
        return [decision(k, lane.state.decisions[k], lane.profile) for k in fresh]

    def tell_again(self, part: outcome_pb2.OutcomePart) -> None:
        """Have a part of outcomes that is sent again carry the decisions that this stream was not told."""
        if part.lane < len(self.lanes):
            decisions = np.frombuffer(part.decisions, "<u2").astype(np.uint16)
            del part.new_decisions[:]
            part.new_decisions.extend(self._not_yet_told(part.lane, decisions))

    def report(self) -> report_pb2.Report:
        """Return the report so far; the session adds its columns and digests.

        Raises:
            PolicyFailed: a lane cannot tell its registers; the engine can still be used.

        """
        self._settle()
        return make_report(self)

    def lane_runs(self) -> list[hypervisor_pb2.LaneRun]:
        """Return how each lane was run so far: by machine, or by the loop and why."""
        runs = [run for fleet in self.fleets.values() for run in fleet.lane_runs()]
        return sorted(runs, key=lambda run: run.lane)

    def _settle(self) -> None:
        for key, fleet in self.fleets.items():
            fleet.settle(self.references[key].state)

    def size_bytes(self) -> int:
        """Return how much memory the state takes that a snapshot keeps."""
        return sum(lane.state.size_bytes for lane in self.lanes)

    def snapshot(self) -> bytes:
        """Return the whole state, for ``restore`` of an engine with this config and fingerprint."""
        self._settle()
        arrays = [np.array([self.applied_events], np.uint64), self.events_by_kind, self._checker.reasons]
        for one in self.references.values():
            arrays += [one.state, one.counts]
        for lane in self.lanes:
            arrays += lane.state.arrays()
        for fleet in self.fleets.values():
            arrays += fleet.counted()
        return pack(arrays)

    def restore(self, snapshot: bytes) -> None:
        """Take over the state of another engine, before any event.

        Raises:
            BadSnapshot: it is of another config, or damaged; the engine must not be used.

        """
        found = Unpacker(snapshot)
        applied, self.events_by_kind = found.take(), found.take_like(self.events_by_kind)
        self.applied_events = int(applied[0])
        self._checker.reasons = found.take()
        for one in self.references.values():
            one.state, one.counts = found.take_like(one.state), found.take_like(one.counts)
        for lane in self.lanes:
            lane.state = lane.state.taken_from(found)
        for fleet in self.fleets.values():
            fleet.take_over([found.take_like(counted) for counted in fleet.counted()])
        found.end()

    def state_digest(self) -> int:
        """Return 64 bits that stand for the whole state."""
        self._settle()
        digest = hashlib.sha256(self.applied_events.to_bytes(8, "little"))
        for one in self.references.values():
            digest.update(one.state.astype("<u8").tobytes())
            digest.update(one.counts.astype("<u8").tobytes())
        for lane in self.lanes:
            for part in lane.state.digest_parts():
                digest.update(part)
        return int.from_bytes(digest.digest()[:8], "little")


def _slices(count: int) -> list[tuple[int, int]]:
    step = _MAX_PART_BYTES // _BYTES_AN_EVENT
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _lane_parts(
    number: int, first: int, level: int, outcomes: Outcomes, decisions: list[outcome_pb2.Decision]
) -> list[outcome_pb2.OutcomePart]:
    made = []
    for start, stop in _slices(len(outcomes.decisions)):
        part = outcome_pb2.OutcomePart(
            first_event=first + start,
            event_count=stop - start,
            lane=number,
            decisions=outcomes.decisions[start:stop].astype("<u2").tobytes(),
            new_decisions=decisions if start == 0 else (),
        )
        if level >= LEVEL_FULL:
            part.stories = outcomes.stories[start:stop].tobytes()
            _put_words(part, _STORY_VALUES, outcomes.values[start:stop].astype("<u8"))
        made.append(part)
    return made


def _put_words(part: outcome_pb2.OutcomePart, number: int, words: np.ndarray[Any, Any]) -> None:
    """Set a packed fixed-width field from an array: on the wire it is byte for byte the array."""
    data = words.tobytes()
    if data:
        part.MergeFromString(delimited(number, data))


def _reference_parts(number: int, first: int, truth: Truth) -> list[outcome_pb2.OutcomePart]:
    seen = np.where((truth.stories != 0) & (truth.stories != reference.NOT_TAKEN), truth.values, np.uint64(0))
    has_undefined = bool(truth.undefined.any())
    parts = []
    for start, stop in _slices(len(truth.stories)):
        part = outcome_pb2.OutcomePart(
            first_event=first + start,
            event_count=stop - start,
            lane=number,
            stories=truth.stories[start:stop].tobytes(),
        )
        _put_words(part, _STORY_VALUES, seen[start:stop].astype("<u8"))
        if has_undefined:
            _put_words(part, _UNDEFINED_DR6, truth.undefined[start:stop].astype("<u4"))
        parts.append(part)
    return parts
