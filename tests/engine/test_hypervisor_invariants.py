"""What holds for the other hypervisors on any stream, and where each is right.

Source: the invariants of their published state machines: never more MOV DR exits than runs, sessions,
residences or accesses, and no cost where none is due.
"""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings

from exitlab.events import EventColumns
from exitlab.v1 import policy_pb2, report_pb2
from hypervisor_svc.engine import Engine, records
from hypervisor_svc.engine.vocabulary import Moment
from tests.engine.build import (
    DR_VMX,
    EXIT,
    START,
    SUMMARY,
    SVM,
    VENDOR_WORDS,
    VENDORS,
    VMX,
    bill_rows,
    engine_for,
    mov_dr,
    table_of,
    windows,
)
from tests.engine.test_other_rungs import spy
from tests.model.second_model import events_of
from tests.model.streams import Mix, random_stream, streams

SAME: Final = report_pb2.VERDICT_SAME
DECLARED: Final = report_pb2.VERDICT_SAME_BUT_DECLARED
DIVERGED: Final = report_pb2.VERDICT_DIVERGED
FEW: Final = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SHARED: Final = Mix(host=False, outside=False)
ALONE: Final = replace(SHARED, scheduling=False, kicks=False)

Operations = tuple[int, int, int, int, int]
NO_OPERATIONS: Final[Operations] = (0, 0, 0, 0, 0)


def fed(events: EventColumns, mix: Mix, vendor: int, *policies: str | policy_pb2.PolicyTable) -> Engine:
    """Return an engine that has taken a stream."""
    engine = engine_for(mix, *policies, vendor=vendor)
    engine.feed(events, SUMMARY)
    return engine


def operations(row: report_pb2.PatternCount) -> Operations:
    """Return the operations of one row of a bill."""
    parts = (row.synchronization, row.standing)
    return (
        sum(part.dr_reads for part in parts),
        sum(part.dr_writes for part in parts),
        sum(part.vmreads for part in parts),
        sum(part.vmwrites for part in parts),
        sum(part.msr_accesses for part in parts),
    )


NEVER: Final = ("acrn", "bhyve", "openbsd", "nvmm", "hardware-switch", "swap-each-entry", "ignore")
ALWAYS: Final = ("haxm", "kvm-pvm", "xen-pv", "hyperplatform", "hvpp", "trap-and-cluster")


@FEW
@given(streams(Mix()))
def test_never_and_always(events: EventColumns) -> None:
    """P0, P1, P2 and P8 trap no access; P6, P7 and P9 have every one, and none runs free of them."""
    for vendor in VENDORS:
        for lane in fed(events, Mix(), vendor, *NEVER).report().lanes:
            assert (mov_dr(lane)[1], windows(lane), lane.intercept_switches) == (0, 0, 0)
    for lane in fed(events, Mix(), VMX, *ALWAYS).report().lanes:
        executed, trapped = mov_dr(lane)
        assert trapped + sum(vcpu.mov_dr_clustered for vcpu in lane.vcpus) == executed
        assert windows(lane) == 0


# P1: an entry, and an exit.
SWAPS: Final[dict[tuple[str, int], tuple[Operations, Operations]]] = {
    ("bhyve", VMX): ((6, 6, 0, 0, 2), (5, 6, 0, 0, 1)),
    ("bhyve", SVM): ((6, 5, 0, 0, 2), (4, 6, 0, 0, 1)),
    ("openbsd", VMX): ((0, 5, 0, 0, 0), (5, 0, 0, 0, 0)),
    ("openbsd", SVM): ((0, 4, 0, 0, 0), (4, 0, 0, 0, 0)),
}


@FEW
@given(streams(Mix()))
def test_a_swap_costs_the_same_at_each_exit(events: EventColumns) -> None:
    """P1: an exit with its entry costs one sum, whatever its reason; the last ones lack the entry."""
    for (policy, vendor), (entry, leaving) in SWAPS.items():
        lane = fed(events, Mix(), vendor, policy).report().lanes[0]
        both = tuple(a + b for a, b in zip(entry, leaving, strict=True))
        assert {operations(row) for row in bill_rows(lane, EXIT)} <= {both, leaving}
        assert {operations(row) for row in bill_rows(lane, START)} <= {entry}


@FEW
@given(streams(ALONE))
def test_a_run_costs_once(events: EventColumns) -> None:
    """P2: only an exit that leaves the run call costs anything."""
    lane = fed(events, ALONE, VMX, "nvmm").report().lanes[0]
    for row in bill_rows(lane, EXIT):
        expected = {(5, 6, 0, 0, 0), (5, 0, 0, 0, 0)} if row.exit_class == 3 else {NO_OPERATIONS}
        assert operations(row) in expected


def crossings(moment: Moment, policy: str, vendor: int) -> policy_pb2.PolicyTable:
    """Return a lane that counts a moment, with the exit classes of a policy."""
    table = spy(moment, vendor)
    table.classes.extend(table_of(policy, vendor).classes)
    return table


@FEW
@given(streams(SHARED))
def test_a_window_for_each_residence_or_session(events: EventColumns) -> None:
    """P4 and P5: an access traps at most once for each time that the vCPU came to its CPU, or to ring 0."""
    for vendor in VENDORS:
        for policy, moment in (("xen", Moment.GAIN_RESIDENCE), ("virtualbox", Moment.ENTER_SESSION)):
            counter = crossings(moment, policy, vendor)
            lane, counted = fed(events, SHARED, vendor, policy, counter).report().lanes
            times = sum(operations(row)[0] * row.count for row in counted.patterns)
            assert mov_dr(lane)[1] <= min(times, mov_dr(lane)[0])
            assert windows(lane) <= times


@FEW
@given(streams(SHARED))
def test_only_accesses_cost(events: EventColumns) -> None:
    """P7: one access to a register for each that exits, and nothing else; P0 and P8 cost nothing at all."""
    through, checked, *free = fed(
        events, SHARED, VMX, "hyperplatform", "hvpp", "acrn", "ignore", "hardware-switch"
    ).report().lanes  # fmt: skip
    for row in (*bill_rows(through, EXIT), *bill_rows(checked, EXIT)):
        if row.reason != DR_VMX:
            assert operations(row) == NO_OPERATIONS
    for row in bill_rows(through, EXIT):
        reads, writes, *_ = operations(row)
        assert reads + writes == (row.reason == DR_VMX)
    for lane in free:
        assert {operations(row) for row in lane.patterns} == {NO_OPERATIONS} or not lane.patterns


# From the rung on which the host runs with its own DR0 to DR3 again.
HOST_RUNGS: Final = {
    "bhyve": 1,
    "haxm": 1,
    "hardware-switch": 2,
    "kvm-pvm": 2,
    "trap-and-cluster": 2,
    "nvmm": 3,
    "virtualbox": 3,
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_host_has_its_own_back(vendor: int) -> None:
    """Where the host uses breakpoints, its addresses are in the hardware again on the policy's rung."""
    names = [name for name in HOST_RUNGS if vendor == VMX or name not in ("haxm", "kvm-pvm")]
    mix = Mix(outside=False)
    seen = 0
    for seed in range(3):
        events = random_stream(seed, 250, mix)
        engine = engine_for(mix, *names, vendor=vendor)
        for at, _ in enumerate(events_of(events)):
            engine.feed(events.rows(at, at + 1), SUMMARY)
            for name, lane in zip(names, engine.lanes, strict=True):
                for cpu in lane.state.physical_cpus:
                    resident = int(cpu[records.RESIDENT])
                    rung = int(lane.state.vcpus[resident - 1, records.RUNG]) if resident else 4
                    if cpu[records.HOST_ACTIVE] and rung >= HOST_RUNGS[name]:
                        seen += 1
                        assert cpu[:4].tolist() == cpu[records.HOST : records.HOST + 4].tolist(), name
    assert seen > 100


@pytest.mark.parametrize("vendor", VENDORS)
def test_openbsd_loses_the_hosts_own(vendor: int) -> None:
    """Where the host uses breakpoints, OpenBSD leaves it blind; its guests see nothing of that."""
    mix = Mix(outside=False)
    for seed in range(3):
        lane = fed(random_stream(seed, 400, mix), mix, vendor, "openbsd").report().lanes[0]
        assert (lane.verdict, list(lane.leaks)) == (SAME, [])
        assert lane.host_blind > 0


# Where each is right: a mix, and the policies that are so on it by vendor.
RIGHT: Final[dict[str, tuple[Mix, dict[int, tuple[str, ...]]]]] = {
    "anywhere": (
        Mix(),
        {
            VMX: ("virtualbox", "bhyve", "openbsd", "nvmm", "kvm-pvm", "trap-and-cluster"),
            SVM: ("virtualbox", "bhyve", "openbsd", "nvmm", "trap-and-cluster"),
        },
    ),
    "where the host keeps no breakpoints": (Mix(host=False), {VMX: ("xen", "xen-pv"), SVM: ("xen",)}),
    "where nobody sets registers": (
        Mix(outside=False),
        {VMX: ("hardware-switch",), SVM: ("hardware-switch",)},
    ),
    "with a CPU for each guest": (ALONE, {VMX: ("hvpp", "acrn", "ignore"), SVM: ("acrn", "ignore")}),
}
RIGHT_CASES: Final = [
    pytest.param(mix, vendor, names, id=f"{where} {VENDOR_WORDS[vendor]}")
    for where, (mix, by_vendor) in RIGHT.items()
    for vendor, names in by_vendor.items()
]


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize(("mix", "vendor", "names"), RIGHT_CASES)
def test_where_they_are_right(mix: Mix, vendor: int, names: tuple[str, ...], computed: bool) -> None:
    """A hypervisor tells the architecture's story under the conditions that it was made for."""
    for seed in range(4):
        for rtm in (True, False):
            chosen = replace(mix, computed=computed, rtm=rtm)
            report = fed(random_stream(seed, 400, chosen), chosen, vendor, *names).report()
            for lane in report.lanes:
                assert lane.verdict in (SAME, DECLARED), (lane.policy, lane.first_divergence.what)
                assert list(lane.leaks) == []


@pytest.mark.parametrize("policy", ["haxm", "hyperplatform", "hvpp", "acrn", "ignore"])
def test_where_they_are_wrong(policy: str) -> None:
    """Each policy that claims to be wrong is seen to be, where vCPUs share physical CPUs."""
    for computed in (True, False):
        mix = replace(SHARED, computed=computed)
        lane = fed(random_stream(1, 400, mix), mix, VMX, policy).report().lanes[0]
        assert (lane.verdict, lane.claims_correct) == (DIVERGED, False)
        assert lane.diverged_events > 0


def test_what_a_lone_guest_sees_of_hyperplatform() -> None:
    """HyperPlatform is wrong even with a CPU for each guest: DR7 never reaches it."""
    lane = fed(random_stream(1, 400, ALONE), ALONE, VMX, "hyperplatform").report().lanes[0]
    assert lane.verdict == DIVERGED
