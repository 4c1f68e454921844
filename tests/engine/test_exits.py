"""Which events exit, in which class and by which name; kicks; and the sizes of windows."""

from typing import Final

import numpy as np
import pytest

from exitlab.events import EventKind
from exitlab.exit_reasons import reason_name
from exitlab.v1 import report_pb2
from hypervisor_svc.engine.profile import Group, make_profile
from tests.engine.bill_model import NAMES
from tests.engine.build import (
    EXIT,
    FAST,
    HEAVY,
    KICK,
    LIGHT,
    NOT_RETIRED,
    SIGNAL,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Row,
    bill_rows,
    by_class,
    class_marks,
    cpuid,
    event,
    exits,
    fetch,
    get_dr,
    host_breakpoints,
    interrupt,
    policies_on,
    run,
    scheduled_in,
    set_debugregs,
    set_dr,
    stream,
    table_of,
    windows,
    wrmsr,
)

PASSED: Final = (0xC000_0100, 0xC000_0101, 0xC000_0102, 0x174, 0x175, 0x176, 0x10, 0x48, 0x49)

# Kind, columns, the class under kvm-6.14 on VMX and SVM: the VM profile kvm-default.
EXITS: Final[tuple[tuple[EventKind, dict[str, int], int, int], ...]] = (
    *((kind, {}, LIGHT, LIGHT) for kind in (EventKind.CPUID, EventKind.HLT, EventKind.VMCALL)),
    *((kind, {}, LIGHT, LIGHT) for kind in (EventKind.WBINVD, EventKind.MONITOR, EventKind.MWAIT)),
    *((kind, {}, LIGHT, LIGHT) for kind in (EventKind.XSETBV, EventKind.EPT_VIOLATION)),
    *((kind, {}, LIGHT, LIGHT) for kind in (EventKind.RDPMC, EventKind.INVD, EventKind.NMI)),
    *((kind, {}, HEAVY, HEAVY) for kind in (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS)),
    (EventKind.EXTERNAL_INTERRUPT, {}, LIGHT, LIGHT),
    (EventKind.PREEMPTION_TIMER, {}, FAST, LIGHT),
    (EventKind.MOV_TO_CR, {"arg": 0}, LIGHT, LIGHT),
    (EventKind.MOV_TO_CR, {"arg": 4}, LIGHT, LIGHT),
    (EventKind.RDMSR, {"selector": 0x1D9}, LIGHT, LIGHT),
    (EventKind.RDMSR, {"selector": 0x6E0}, LIGHT, LIGHT),
    (EventKind.WRMSR, {"selector": 0x1D9}, LIGHT, LIGHT),
    (EventKind.WRMSR, {"selector": 0x6E0}, FAST, FAST),
    (EventKind.WRMSR, {"selector": 0x830}, FAST, FAST),
    (EventKind.MMIO, {"selector": 0xFEC0_0000}, HEAVY, HEAVY),
    (EventKind.MMIO, {"selector": 0xFEE0_0000}, LIGHT, LIGHT),
    (EventKind.MMIO, {"selector": 0xFEE0_0FFF}, LIGHT, LIGHT),
    (EventKind.MMIO, {"selector": 0xFEE0_1000}, HEAVY, HEAVY),
)  # fmt: skip
STAYS: Final[tuple[tuple[EventKind, dict[str, int]], ...]] = (
    *((EventKind.MOV_TO_CR, {"arg": register}) for register in (2, 3, 8)),
    *((EventKind.RDMSR, {"selector": msr}) for msr in PASSED),
    *((EventKind.WRMSR, {"selector": msr}) for msr in PASSED),
    *((kind, {}) for kind in (EventKind.RDTSC, EventKind.RDTSCP, EventKind.PAUSE, EventKind.INVLPG)),
    *((kind, {}) for kind in (EventKind.INVPCID, EventKind.MOV_FROM_CR, EventKind.CLTS, EventKind.LMSW)),
    *((kind, {}) for kind in (EventKind.INT3, EventKind.INTN, EventKind.IRET, EventKind.FETCH)),
    *((kind, {"arg": 8}) for kind in (EventKind.READ, EventKind.WRITE)),
)
COLUMN_OF: Final[dict[int, int]] = {VMX: 2, SVM: 3}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("row", EXITS, ids=lambda row: f"{row[0].name} {row[1]}")
def test_exits(row: tuple[EventKind, dict[str, int], int, int], vendor: int) -> None:
    """An event of the profile exits once, by its own name, in its class; old KVM has no fast ones."""
    kind, columns = row[:2]
    report = run(stream(event(kind, **columns)), *policies_on(vendor), vendor=vendor)
    for lane in report.lanes:
        (reason,) = exits(lane)
        name = NAMES[kind][vendor == SVM].format(arg=columns.get("arg", 0))
        assert reason_name(vendor, reason) == name
        expected = row[COLUMN_OF[vendor]]
        if expected == FAST and not lane.policy.startswith("kvm-6.14"):
            expected = LIGHT
        assert by_class(lane) == tuple(int(expected == number) for number in (FAST, LIGHT, HEAVY))


@pytest.mark.parametrize("vendor", VENDORS)
def test_stays(vendor: int) -> None:
    """Nothing else exits, under any policy."""
    rows = [event(kind, **columns) for kind, columns in STAYS]
    for lane in run(stream(rows), *policies_on(vendor), vendor=vendor).lanes:
        assert exits(lane) == {}


CATCHES: Final[dict[tuple[str, int], bool]] = {  # KVM on SVM intercepts #DB from 4.4 on
    (policy, vendor): policy.startswith("kvm-6.14") or (vendor == VMX and policy.startswith("kvm"))
    for vendor in VENDORS
    for policy in policies_on(vendor)
}


@pytest.mark.parametrize("vector", [0, 1, 3, 6, 7, 13, 14, 17, 18, 31])
@pytest.mark.parametrize("vendor", VENDORS)
def test_exceptions(vendor: int, vector: int) -> None:
    """Of recorded exceptions #UD, #AC and #MC exit, #DB where the policy intercepts it, and no other."""
    rows = stream(event(EventKind.EXCEPTION, selector=vector, value=0xFFFF_0FF1))
    report = run(rows, *policies_on(vendor), vendor=vendor, computed=False)
    for lane in report.lanes:
        is_caught = vector in (6, 17, 18) or (vector == 1 and CATCHES[lane.policy, vendor])
        reason = 0x40 + vector if vendor == SVM else 0
        assert exits(lane) == ({reason: 1} if is_caught else {})


@pytest.mark.parametrize("vendor", VENDORS)
def test_any_vector_can_be_intercepted(vendor: int) -> None:
    """A table may intercept any exception, the divide error with its vector of 0 included."""
    table = table_of("kvm-6.14", vendor)
    table.intercepted_exceptions = 0xFFFF_FFFF
    for vector in range(32):
        rows = stream(event(EventKind.EXCEPTION, selector=vector, value=0xFFFF_0FF1))
        lane = run(rows, table, vendor=vendor, computed=False).lanes[0]
        assert exits(lane) == {0x40 + vector if vendor == SVM else 0: 1}, vector


def test_a_recorded_exit_is_its_own_reason() -> None:
    """EXIT exits by its number in full, and is in the class that the lane has for that number."""
    codes = (12, 30, 52, 2048, 0x8000_0021)
    rows = [event(EventKind.EXIT, selector=code) for code in codes]
    new, old = run(stream(rows), "kvm-6.14", "kvm-3.14", computed=False).lanes
    assert exits(new) == exits(old) == dict.fromkeys(codes, 1)
    assert (by_class(new), by_class(old)) == ((1, 3, 1), (0, 4, 1))


@pytest.mark.parametrize("lane_vendor", VENDORS)
def test_recorded_exits_of_the_other_vendor(lane_vendor: int) -> None:
    """Recorded exits are numbered as by the leading vendor: no lane of the other can be compared."""
    rows = stream(event(EventKind.EXIT, selector=12))
    leading = VMX if lane_vendor == SVM else SVM
    same = run(rows, "kvm-6.14", vendor=lane_vendor, computed=False).lanes[0]
    other = run(rows, "kvm-6.14", vendor=lane_vendor, leading=leading, computed=False).lanes[0]
    assert same.verdict == report_pb2.VERDICT_SAME
    assert other.verdict == report_pb2.VERDICT_NOT_COMPARABLE
    assert other.note


def test_a_signal_is_heavy_and_has_no_reason() -> None:
    """SIGNAL leaves the run session, closing windows, in an account of its own."""
    lane = run(stream(get_dr(0), event(EventKind.SIGNAL), get_dr(0)), "kvm-6.14").lanes[0]
    assert [(row.count, row.exit_class) for row in bill_rows(lane, SIGNAL)] == [(1, HEAVY)]
    assert (by_class(lane), windows(lane)) == ((0, 2, 0), 2)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("override", [FAST, LIGHT, HEAVY])
def test_class_override(override: int, vendor: int) -> None:
    """An event's own class replaces the lane's: a fast exit leaves the window open, others close it."""
    marks = class_marks(override)
    for one in (cpuid(marks=marks), event(EventKind.OUT, marks=marks), wrmsr(0x6E0)._replace(marks=marks)):
        lane = run(stream(get_dr(0), one, get_dr(0)), "kvm-6.14", vendor=vendor).lanes[0]
        assert by_class(lane)[override - 1] - (override == LIGHT) * (2 - (override == FAST)) == 1
        assert windows(lane) == (1 if override == FAST else 2)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    "rows",
    [
        [set_dr(0, 5), cpuid(), get_dr(0, marks=class_marks(FAST)), get_dr(6), get_dr(0)],
        [set_dr(6, 0xF), set_dr(0, 0x40), set_dr(7, 0x401), fetch(0x40, marks=class_marks(FAST)), get_dr(6)],
        [set_dr(7, 0x2400), get_dr(0, marks=class_marks(FAST)), get_dr(6), get_dr(7)],
    ],
)
def test_class_bits_cannot_change_the_story(rows: list[Row], vendor: int) -> None:
    """An exit that a policy has to answer is not made fast by the stream, whatever its class bits say."""
    report = run(stream(rows), *policies_on(vendor, correct=True), vendor=vendor)
    assert {lane.policy: lane.first_divergence.what for lane in report.lanes if lane.diverged_events} == {}


def kicks(lane: report_pb2.LaneReport) -> int:
    """Return the exits that no event records, all of them light interrupts."""
    rows = [row for row in bill_rows(lane, EXIT) if row.sub_reason == KICK]
    for row in rows:
        assert reason_name(lane.vendor, row.reason) in ("EXTERNAL_INTERRUPT", "interrupt")
        assert row.exit_class == LIGHT
    return sum(row.count for row in rows)


QUIET: Final = event(EventKind.RDTSC)
OTHER: Final = event(EventKind.RDTSC, vcpu=1)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([QUIET, OTHER], 1),  # another vCPU wants the physical CPU
        ([QUIET, OTHER, QUIET, OTHER], 3),
        ([cpuid(), OTHER], 0),  # it has left the guest already
        ([QUIET, cpuid(marks=class_marks(FAST)), OTHER], 0),
        ([QUIET, event(EventKind.SCHED_OUT)], 1),
        ([QUIET, event(EventKind.SCHED_OUT), event(EventKind.SCHED_OUT), OTHER], 1),
        ([event(EventKind.SCHED_OUT), QUIET], 0),  # it was not in the guest
        ([QUIET, scheduled_in(0)], 0),  # it is there already
        ([QUIET, scheduled_in(1), scheduled_in(1), QUIET], 1),
        ([QUIET, *set_debugregs()], 1),
        ([QUIET, event(EventKind.RESET), event(EventKind.INIT)], 1),
        ([QUIET, *host_breakpoints(cpu=0, vcpu=1)], 1),  # on the CPU where it runs
        ([QUIET, *host_breakpoints(cpu=1)], 0),
        ([get_dr(0, marks=NOT_RETIRED), OTHER], 0),  # the trapped access left it outside
    ],
)
def test_kicks(rows: list[Row], expected: int, vendor: int) -> None:
    """A vCPU that the host takes out of the guest exits once by an interrupt that no event records."""
    report = run(stream(rows), "kvm-6.14", vendor=vendor, vcpus=2, physical_cpus=2, initial=(0, 0))
    assert kicks(report.lanes[0]) == expected


@pytest.mark.parametrize(
    ("accesses", "bucket"),
    [
        ((1,), {(1, 1): 1}),
        ((3, 1, 3), {(1, 1): 1, (3, 3): 2}),
        ((63, 64), {(63, 63): 1, (64, 127): 1}),
        ((127, 128, 255, 256), {(64, 127): 1, (128, 255): 2, (256, 511): 1}),
    ],
)
def test_window_sizes(accesses: tuple[int, ...], bucket: dict[tuple[int, int], int]) -> None:
    """A closed window's size is its accesses; from 64 on sizes share a bucket a power of two."""
    rows = [one for number in accesses for one in ([get_dr(0)] * number, [cpuid()])]
    lane = run(stream(*rows), "kvm-6.14").lanes[0]
    assert windows(lane) == len(accesses)
    found = {(one.from_accesses, one.to_accesses): one.windows for one in lane.window_sizes}
    assert found == bucket
    assert list(found) == sorted(found)


def test_what_counts_as_an_access_of_a_window() -> None:
    """Neither a fault nor a MOV that did not retire is counted; a fast exit ends no window."""
    rows = [
        get_dr(0),
        get_dr(0, modes=3),
        get_dr(1, marks=NOT_RETIRED),
        wrmsr(TSC_DEADLINE),
        get_dr(2),
        interrupt(),
    ]
    lane = run(stream(rows), "kvm-6.14").lanes[0]
    assert [(one.from_accesses, one.windows) for one in lane.window_sizes] == [(2, 1)]
    still_open = run(stream(rows, get_dr(0)), "kvm-6.14").lanes[0]
    assert (windows(still_open), sum(one.windows for one in still_open.window_sizes)) == (2, 1)


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_kind_has_a_rung_and_a_name(vendor: int) -> None:
    """Each kind has a class and, where it exits, a reason that the kernel names."""
    profile = make_profile(is_svm=vendor == SVM, rules=())
    exiting = {kind for kind in EventKind if profile.groups[kind] not in (Group.QUIET, Group.HOST)}
    by_itself = {EventKind.FETCH, EventKind.READ, EventKind.WRITE, EventKind.EXCEPTION}
    assert exiting == set(NAMES) | by_itself | {EventKind.EXIT, EventKind.SIGNAL}
    assert set(np.unique(profile.classes).tolist()) <= {FAST, LIGHT, HEAVY}
    for kind in NAMES:
        name = reason_name(vendor, int(profile.exit_codes[kind]))
        assert not name.startswith("0x")
    assert {int(kind) for kind in EventKind if profile.groups[kind] == Group.HOST} == {
        *range(EventKind.SCHED_OUT, EventKind.ADVANCE + 1),
    }
