"""Short ways to write a stream, to run it under policies, and to add up what was counted.

``stream(set_dr(0, 5), get_dr(0))`` is a stream; ``run(stream, "kvm-6.14")`` runs it in one block on one
vendor, and the lanes of its report are in the order of the policies.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, EventColumns, EventKind, Mark
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc.engine import Engine, EngineConfig
from hypervisor_svc.engine.fleet import LEAST_EVENTS
from hypervisor_svc.policies import policy_names, policy_table, policy_vendors
from hypervisor_svc.policies.base import Policy, tabulate
from tests.model.streams import Mix

VMX: Final = policy_pb2.VENDOR_VMX
SVM: Final = policy_pb2.VENDOR_SVM
VENDORS: Final = (VMX, SVM)
VENDOR_WORDS: Final[dict[int, str]] = {VMX: "vmx", SVM: "svm"}
VENDOR_OF: Final[dict[int, policy_pb2.Vendor.ValueType]] = {VMX: VMX, SVM: SVM}  # of a plain number
SUMMARY: Final = outcome_pb2.OUTCOME_LEVEL_SUMMARY
REFERENCE: Final = outcome_pb2.OUTCOME_LEVEL_REFERENCE
DECISIONS: Final = outcome_pb2.OUTCOME_LEVEL_DECISIONS
FULL: Final = outcome_pb2.OUTCOME_LEVEL_FULL
EXIT: Final = report_pb2.ACCOUNT_EXIT
START: Final = report_pb2.ACCOUNT_START
HOST: Final = report_pb2.ACCOUNT_HOST
SIGNAL: Final = report_pb2.ACCOUNT_SIGNAL
KICK: Final = policy_pb2.SUB_REASON_KICK
FAST, LIGHT, HEAVY = policy_pb2.EXIT_CLASS_FAST, policy_pb2.EXIT_CLASS_LIGHT, policy_pb2.EXIT_CLASS_HEAVY
NO_FEATURES: Final = policy_pb2.CpuFeatures()
DR_VMX: Final = 29
TSC_DEADLINE: Final = 0x6E0

PolicyLike = str | Policy | policy_pb2.PolicyTable


class Row(NamedTuple):
    """One event with all nine columns, zero where nothing is said."""

    kind: int
    arg: int = 0
    modes: int = 0
    marks: int = 0
    vcpu: int = 0
    gap_cycles: int = 0
    selector: int = 0
    value: int = 0
    rip: int = 0


def event(kind: EventKind, vcpu: int = 0, **columns: int) -> Row:
    """Return an event of ``kind`` on ``vcpu``."""
    return Row(kind, vcpu=vcpu, **columns)


def set_dr(register: int, value: int, vcpu: int = 0, **columns: int) -> Row:
    """Return a MOV of ``value`` to a debug register."""
    return Row(EventKind.MOV_TO_DR, arg=register, value=value, vcpu=vcpu, **columns)


def get_dr(register: int, vcpu: int = 0, **columns: int) -> Row:
    """Return a MOV from a debug register."""
    return Row(EventKind.MOV_FROM_DR, arg=register, vcpu=vcpu, **columns)


def fetch(address: int, vcpu: int = 0, **columns: int) -> Row:
    """Return the fetch of an instruction at ``address``."""
    return Row(EventKind.FETCH, value=address, vcpu=vcpu, **columns)


def cpuid(vcpu: int = 0, **columns: int) -> Row:
    """Return CPUID, a light exit under every policy."""
    return Row(EventKind.CPUID, vcpu=vcpu, **columns)


def wrmsr(msr: int, vcpu: int = 0) -> Row:
    """Return WRMSR of ``msr``."""
    return Row(EventKind.WRMSR, selector=msr, vcpu=vcpu)


def interrupt(vcpu: int = 0) -> Row:
    """Return an external interrupt."""
    return Row(EventKind.EXTERNAL_INTERRUPT, selector=0xEC, vcpu=vcpu)


def scheduled_in(cpu: int, vcpu: int = 0) -> Row:
    """Return the scheduling of ``vcpu`` on physical CPU ``cpu``."""
    return Row(EventKind.SCHED_IN, selector=cpu, vcpu=vcpu)


def class_marks(exit_class: int) -> int:
    """Return the mark bits that override the class of an exit."""
    return exit_class << 6


def staged(vcpu: int = 0, **values: int) -> list[Row]:
    """Return STAGE events for ``db0`` to ``db3``, ``dr6`` and ``dr7``."""
    slots = ("db0", "db1", "db2", "db3", "dr6", "dr7")
    return [
        Row(EventKind.STAGE, arg=slots.index(slot), value=value, vcpu=vcpu) for slot, value in values.items()
    ]


def set_debugregs(vcpu: int = 0, **values: int) -> list[Row]:
    """Return the events with which the host sets the guest's registers; DR6 and DR7 as after reset."""
    return [
        *staged(vcpu, **{"dr6": 0xFFFF_0FF0, "dr7": 0x400, **values}),
        event(EventKind.SET_DEBUGREGS, vcpu),
    ]


def host_breakpoints(cpu: int = 0, vcpu: int = 0, **values: int) -> list[Row]:
    """Return the events that change the host's own breakpoints; without ``values`` they go off."""
    return [
        *staged(vcpu, **{"dr7": 0x400, **values}),
        Row(EventKind.HOST_BREAKPOINTS, selector=cpu, vcpu=vcpu),
    ]


def context_switch(vcpu: int = 0, dr7: int = 0x455) -> list[Row]:
    """Return the 13 accesses of the seed: six reads, DR7 off, six writes that end in DR7 on."""
    return [
        *(get_dr(register, vcpu) for register in (0, 1, 2, 3, 6, 7)),
        set_dr(7, 0x400, vcpu),
        *(set_dr(slot, 0x1000 * (slot + 1), vcpu) for slot in range(4)),
        set_dr(6, 0xFFFF_0FF0, vcpu),
        set_dr(7, dr7, vcpu),
    ]


def stream(*parts: Row | Iterable[Row]) -> EventColumns:
    """Return events, or lists of events, as columns."""
    rows: list[Row] = []
    for part in parts:
        rows.extend([part] if isinstance(part, Row) else part)
    numbers = zip(*rows, strict=True) if rows else [()] * len(COLUMN_NAMES)
    arrays: dict[str, Any] = {
        name: np.array(column, dtype=dtype)
        for name, dtype, column in zip(COLUMN_NAMES, COLUMN_DTYPES.values(), numbers, strict=True)
    }
    return EventColumns(**arrays)


def policies_on(vendor: int, *, correct: bool | None = None) -> tuple[str, ...]:
    """Return the names of the policies that exist on ``vendor``; ``correct`` filters by their claim."""
    names = [name for name in policy_names() if vendor in policy_vendors(name)]
    if correct is None:
        return tuple(names)
    return tuple(name for name in names if table_of(name, vendor).claims_correct == correct)


def table_of(name: str, vendor: int = VMX) -> policy_pb2.PolicyTable:
    """Return a policy's table, to be changed freely."""
    return policy_table(name, policy_pb2.Vendor.ValueType(vendor), NO_FEATURES)


def lane_of(policy: PolicyLike, vendor: int, features: policy_pb2.CpuFeatures) -> policy_pb2.Lane:
    """Return the lane of a policy by name, object or table."""
    on = policy_pb2.Vendor.ValueType(vendor)
    if isinstance(policy, str):
        return policy_pb2.Lane(policy_name=policy, vendor=on, features=features)
    table = tabulate(policy) if isinstance(policy, Policy) else policy
    return policy_pb2.Lane(policy_table=table, vendor=on, features=features)


def engine_of(
    *policies: PolicyLike,
    vendor: int = VMX,
    vcpus: int = 1,
    physical_cpus: int = 0,
    initial: Sequence[int] = (),
    computed: bool = True,
    features: policy_pb2.CpuFeatures = NO_FEATURES,
    leading: int | None = None,
    least_events: int | None = LEAST_EVENTS,
) -> Engine:
    """Return an engine with a lane for each policy, all on one vendor and CPU."""
    config = hypervisor_pb2.SessionConfig(
        lanes=[lane_of(policy, vendor, features) for policy in policies],
        vcpus=vcpus,
        physical_cpus=physical_cpus,
        initial_physical_cpus=initial,
        breakpoints=(
            hypervisor_pb2.BREAKPOINT_MODE_COMPUTED if computed else hypervisor_pb2.BREAKPOINT_MODE_RECORDED
        ),
        leading_vendor=policy_pb2.Vendor.ValueType(leading or vendor),
        leading_features=features,
    )
    return Engine(EngineConfig.from_proto(config, policy_table), least_events=least_events)


def engine_for(
    mix: Mix, *policies: PolicyLike, vendor: int = VMX, least_events: int | None = LEAST_EVENTS
) -> Engine:
    """Return an engine that a random stream of ``mix`` fits."""
    return engine_of(
        *policies,
        vendor=vendor,
        vcpus=mix.vcpus,
        physical_cpus=mix.physical_cpus,
        initial=mix.initial_physical_cpus,
        computed=mix.computed,
        features=policy_pb2.CpuFeatures(rtm=mix.rtm, bus_lock_detect=mix.bus_lock),
        least_events=least_events,
    )


def run(events: EventColumns, *policies: PolicyLike, **options: Any) -> report_pb2.Report:
    """Return the report of a stream in one block."""
    engine = engine_of(*policies, **options)
    engine.feed(events, SUMMARY)
    return engine.report()


class Told(NamedTuple):
    """Outcomes of a stream: stories and values by event, and decisions where there are any."""

    stories: list[int]
    values: list[int]
    decisions: list[outcome_pb2.Decision]


def outcomes(parts: Iterable[outcome_pb2.OutcomePart], lane: int) -> Told:
    """Return the outcomes of one lane, or of the reference under the number of lanes."""
    told = Told([], [], [])
    known: dict[int, outcome_pb2.Decision] = {}
    for part in parts:
        if part.lane != lane:
            continue
        known.update((decision.number, decision) for decision in part.new_decisions)
        told.stories.extend(part.stories)
        told.values.extend(part.story_values)
        told.decisions.extend(known[number] for number in np.frombuffer(part.decisions, "<u2").tolist())
    return told


class Counts(NamedTuple):
    """Operations: DR reads and writes, VMREADs and VMWRITEs, and accesses to MSRs beside them."""

    reads: int = 0
    writes: int = 0
    vmreads: int = 0
    vmwrites: int = 0
    msrs: int = 0


def counts(operations: policy_pb2.OperationCounts, times: int = 1) -> Counts:
    """Return ``operations`` as plain numbers, ``times`` times."""
    numbers = (
        operations.dr_reads,
        operations.dr_writes,
        operations.vmreads,
        operations.vmwrites,
        operations.msr_accesses,
    )
    return Counts(*(times * number for number in numbers))


def total(parts: Iterable[Counts]) -> Counts:
    """Return the sum of ``parts``."""
    return Counts(*(sum(column) for column in zip(Counts(), *parts, strict=True)))


def bill_rows(lane: report_pb2.LaneReport, account: int) -> Iterator[report_pb2.PatternCount]:
    """Return the rows of a lane's bill that belong to ``account``."""
    return (row for row in lane.patterns if row.account == account)


def synchronization(lane: report_pb2.LaneReport) -> Counts:
    """Return all operations that opened or closed windows."""
    return total(counts(row.synchronization, row.count) for row in lane.patterns)


def standing(lane: report_pb2.LaneReport) -> Counts:
    """Return all other operations."""
    return total(counts(row.standing, row.count) for row in lane.patterns)


def exits(lane: report_pb2.LaneReport) -> dict[int, int]:
    """Return the number of exits by reason, kicks among the interrupts that they are."""
    found: dict[int, int] = {}
    for row in bill_rows(lane, EXIT):
        found[row.reason] = found.get(row.reason, 0) + row.count
    return found


def by_class(lane: report_pb2.LaneReport) -> tuple[int, int, int]:
    """Return the number of fast, light and heavy exits over all vCPUs."""
    columns = zip(*(vcpu.exits_by_class for vcpu in lane.vcpus), strict=True)
    fast, light, heavy = (sum(column) for column in columns)
    return fast, light, heavy


def mov_dr(lane: report_pb2.LaneReport) -> tuple[int, int]:
    """Return the MOV DRs that were executed and that trapped, over all vCPUs."""
    executed = sum(vcpu.mov_dr_executed for vcpu in lane.vcpus)
    return executed, sum(vcpu.mov_dr_trapped for vcpu in lane.vcpus)


def windows(lane: report_pb2.LaneReport) -> int:
    """Return the windows opened over all vCPUs."""
    return sum(vcpu.windows for vcpu in lane.vcpus)


UNKNOWN: Final = int(Mark.VALUE_UNKNOWN)
RETIRED: Final = int(Mark.RETIRED)
NOT_RETIRED: Final = int(Mark.NOT_RETIRED)
IF_FAULT: Final = int(Mark.IF_FAULT)
IF_OK: Final = int(Mark.IF_OK)
