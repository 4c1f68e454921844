"""What closes a window and what does not, the exits that no event records, and the sizes of windows."""

from typing import Final

import pytest

from exitlab.events import EventKind
from exitlab.exit_reasons import reason_name
from exitlab.v1 import report_pb2
from tests.engine.build import (
    EXIT,
    FAST,
    HEAVY,
    KICK,
    LIGHT,
    NOT_RETIRED,
    SIGNAL,
    TSC_DEADLINE,
    VENDORS,
    Row,
    bill_rows,
    by_class,
    class_marks,
    cpuid,
    event,
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
    windows,
    wrmsr,
)


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
