"""The streams of events that are measured."""

from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

import numpy as np

from exitlab.events import COLUMN_NAMES, Column, EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from guest_svc.captures import shipped_capture
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload
from hypervisor_svc.engine import Engine, EngineConfig
from hypervisor_svc.policies import policy_table
from tests.model.streams import Mix, random_stream

CAPTURE: Final = "ctxsw-dr4"
SWITCHES: Final = "context-switch"
DEVICE_IO: Final = "io"
RANDOM: Final = "random"
RANDOM_ALONE: Final = "random, each vCPU alone"
CASES: Final = (CAPTURE, SWITCHES, DEVICE_IO, RANDOM)
# With all that a host does on shared CPUs, which is the oracle loop's, and without.
MIXES: Final = {
    RANDOM: Mix(vcpus=3, cpus=2),
    RANDOM_ALONE: Mix(vcpus=3, scheduling=False, kicks=False, host=False, outside=False),
}
VMX: Final = policy_pb2.VENDOR_VMX
SVM: Final = policy_pb2.VENDOR_SVM
SUMMARY: Final = outcome_pb2.OUTCOME_LEVEL_SUMMARY


class Placed(Protocol):
    """What a case and a workload both say."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def vcpus(self) -> int:
        """Number of vCPUs."""

    @property
    def physical_cpus(self) -> int:
        """Number of physical CPUs."""

    @property
    def initial_physical_cpus(self) -> tuple[int, ...]:
        """The physical CPU that each vCPU starts on."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A stream with what a session must know of it."""

    name: str
    events: EventColumns
    vcpus: int
    physical_cpus: int
    initial_physical_cpus: tuple[int, ...]
    is_computed: bool

    def config(
        self, lanes: list[policy_pb2.Lane], level: outcome_pb2.OutcomeLevel.ValueType = SUMMARY
    ) -> hypervisor_pb2.SessionConfig:
        """Return the session of this stream under ``lanes``."""
        return _config(self, self.is_computed, self.events.declared, lanes, level)

    def blocks(self, block_events: int) -> list[EventColumns]:
        """Return the stream cut into blocks."""
        return [
            self.events.rows(start, start + block_events)
            for start in range(0, len(self.events), block_events)
        ]

    def first(self, events: int) -> "Case":
        """Return the stream's beginning as a case of its own."""
        rows = self.events.rows(0, events)
        return Case(
            self.name, rows, self.vcpus, self.physical_cpus, self.initial_physical_cpus, self.is_computed
        )


def config_of(workload: Workload, lanes: list[policy_pb2.Lane]) -> hypervisor_pb2.SessionConfig:
    """Return the session of a workload under ``lanes``, at the summary level."""
    return _config(workload, workload.computed_breakpoints, workload.columns, lanes, SUMMARY)


def _config(
    placed: Placed,
    is_computed: bool,
    columns: tuple[Column, ...],
    lanes: list[policy_pb2.Lane],
    level: outcome_pb2.OutcomeLevel.ValueType,
) -> hypervisor_pb2.SessionConfig:
    modes = (hypervisor_pb2.BREAKPOINT_MODE_RECORDED, hypervisor_pb2.BREAKPOINT_MODE_COMPUTED)
    return hypervisor_pb2.SessionConfig(
        lanes=lanes,
        columns=[int(column) for column in columns],  # type: ignore[misc]  # stubs want their own enum
        vcpus=placed.vcpus,
        physical_cpus=placed.physical_cpus,
        initial_physical_cpus=placed.initial_physical_cpus,
        breakpoints=modes[is_computed],
        leading_vendor=lanes[0].vendor,
        leading_features=lanes[0].features,
        outcome_level=level,
        label=placed.name,
    )


def lane(
    policy: str, vendor: policy_pb2.Vendor.ValueType = VMX, *, rtm: bool = False, bus_lock: bool = False
) -> policy_pb2.Lane:
    """Return a lane of a policy that the hypervisor has."""
    features = policy_pb2.CpuFeatures(rtm=rtm, bus_lock_detect=bus_lock)
    return policy_pb2.Lane(policy_name=policy, vendor=vendor, features=features)


def engine(config: hypervisor_pb2.SessionConfig) -> Engine:
    """Return an engine in this process for a session's config: by machine where it can be."""
    return Engine(EngineConfig.from_proto(config, policy_table))


def loop_engine(config: hypervisor_pb2.SessionConfig) -> Engine:
    """Return an engine that runs everything in the oracle loop: what all others are checked against."""
    return Engine(EngineConfig.from_proto(config, policy_table), least_events=None)


def joined(blocks: list[EventColumns]) -> EventColumns:
    """Return blocks of the same columns as one."""
    names = [COLUMN_NAMES[column - 1] for column in blocks[0].declared]
    return EventColumns(
        **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    )


@cache
def case(name: str, events: int) -> Case:
    """Return the stream called ``name``, of ``events`` events unless a trace has fewer."""
    if name in MIXES:
        mix = MIXES[name]
        rows = random_stream(1, events, mix)
        return Case(name, rows, mix.vcpus, mix.physical_cpus, mix.initial_physical_cpus, mix.computed)
    source = shipped_capture(name) if name == CAPTURE else find_workload(name)
    return of_workload(name, source.make({}, 0, events))


def of_workload(name: str, workload: Workload) -> Case:
    """Return a workload's whole stream."""
    return Case(
        name,
        joined(list(workload.blocks())),
        workload.vcpus,
        workload.physical_cpus,
        workload.initial_physical_cpus,
        workload.computed_breakpoints,
    )
