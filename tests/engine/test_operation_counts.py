"""Operations counted on streams whose cost is known from the tables of real hypervisors."""

from typing import Final

import pytest

from exitlab.events import EventKind
from exitlab.exit_reasons import DR_ACCESS, reason_name
from exitlab.v1 import report_pb2
from tests.engine.build import (
    EXIT,
    HOST,
    START,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Counts,
    Row,
    bill_rows,
    by_class,
    context_switch,
    counts,
    cpuid,
    event,
    exits,
    get_dr,
    host_breakpoints,
    interrupt,
    mov_dr,
    policies_on,
    run,
    set_debugregs,
    set_dr,
    standing,
    stream,
    synchronization,
    total,
    windows,
    wrmsr,
)

QUIET: Final = event(EventKind.RDTSC)  # needs the guest, never exits
BURST: Final = context_switch()
GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
SKIP: Final = "kvm-6.14-skip-debug-controls"


def lane_of(policy: str, vendor: int, *parts: Row | list[Row]) -> report_pb2.LaneReport:
    """Return the lane of one vCPU that is alone."""
    return run(stream(*parts), policy, vendor=vendor).lanes[0]


def named_exits(lane: report_pb2.LaneReport) -> dict[str, int]:
    """Return the exits by the kernel's names."""
    found: dict[str, int] = {}
    for reason, count in exits(lane).items():
        name = reason_name(lane.vendor, reason)
        found[name] = found.get(name, 0) + count
    return found


def difference(more: Counts, less: Counts) -> Counts:
    """Return what ``more`` has beyond ``less``."""
    return Counts(*(a - b for a, b in zip(more, less, strict=True)))


# The burst and the interrupt that ends its window: the state machine of KVM, and the count of it.
WINDOW: Final[dict[int, Counts]] = {
    VMX: Counts(reads=5, writes=7, vmreads=3, vmwrites=3),
    SVM: Counts(reads=4, writes=5),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_window(vendor: int) -> None:
    """Under kvm-6.14 a burst is one exit, and its window 7 W, 5 R, 3 VMREAD and 3 VMWRITE on VMX."""
    lane = lane_of("kvm-6.14", vendor, BURST, interrupt())
    assert named_exits(lane)[DR_ACCESS] == 1
    assert sum(exits(lane).values()) == 2
    assert (mov_dr(lane), windows(lane), lane.intercept_switches) == ((13, 1), 1, 2)
    assert synchronization(lane) == WINDOW[vendor]
    assert standing(lane) == Counts()


@pytest.mark.parametrize("vendor", VENDORS)
def test_standing_cost_after_the_burst(vendor: int) -> None:
    """While DR7 stays enabled every further entry of kvm-6.14 costs 5 writes; with it off, none."""
    for dr7, writes in ((0x455, 5), (0x400, 0)):
        rows = [*context_switch(dr7=dr7), interrupt(), interrupt(), cpuid(), QUIET]
        lane = lane_of("kvm-6.14", vendor, rows)
        assert synchronization(lane) == WINDOW[vendor]
        assert standing(lane) == Counts(writes=3 * writes)


@pytest.mark.parametrize("vendor", VENDORS)
def test_stale_belief_costs_nothing(vendor: int) -> None:
    """KVM 3.15 does not load what the guest enabled in a window: the missed breakpoint is free."""
    assert standing(lane_of("kvm-3.15", vendor, BURST, interrupt(), interrupt(), QUIET)) == Counts()


@pytest.mark.parametrize(
    ("vendor", "opens_and_closes"),
    [
        # x86.c, vmx.c and svm.c of 3.15.5: 6 W to enter; 5 R, 2 VR, 1 VW to close; on SVM 6 W and 4 R.
        (VMX, Counts(reads=5, writes=6, vmreads=4, vmwrites=2)),
        (SVM, Counts(reads=4, writes=6)),
    ],
)
def test_one_window_of_3_15(vendor: int, opens_and_closes: Counts) -> None:
    """Under kvm-3.15 a window costs what that version's code does."""
    lane = lane_of("kvm-3.15", vendor, BURST, interrupt())
    assert synchronization(lane) == opens_and_closes


@pytest.mark.parametrize("vendor", VENDORS)
def test_emulated_burst(vendor: int) -> None:
    """Under kvm-3.14 each access exits; 7 of the 13 entries load, 5 writes each, between enabled tasks."""
    once = lane_of("kvm-3.14", vendor, BURST, QUIET)
    twice = lane_of("kvm-3.14", vendor, BURST, BURST, QUIET)
    assert (mov_dr(twice), windows(twice)) == ((26, 26), 0)
    assert synchronization(twice) == Counts()
    # Two VMREADs an exit, and GUEST_DR7 written for each of the two writes of DR7.
    control = Counts() if vendor == SVM else Counts(vmreads=26, vmwrites=2)
    assert difference(standing(twice), standing(once)) == total([Counts(writes=35), control])
    assert all(row.emulated for row in bill_rows(twice, EXIT))


@pytest.mark.parametrize(
    ("vendor", "entry", "leaving"),
    [(VMX, Counts(writes=6), Counts(reads=5, vmreads=1)), (SVM, Counts(writes=5), Counts(reads=4))],
)
def test_swap_each_entry(vendor: int, entry: Counts, leaving: Counts) -> None:
    """Swapping costs 6 W at each entry, 5 R and a VMREAD at each exit, whatever the guest does."""
    lane = lane_of("swap-each-entry", vendor, BURST, cpuid(), wrmsr(TSC_DEADLINE), interrupt(), QUIET)
    assert (mov_dr(lane), windows(lane), sum(exits(lane).values())) == ((13, 0), 0, 3)
    assert synchronization(lane) == Counts()
    assert standing(lane) == total([entry] * 4 + [leaving] * 3)
    start = next(bill_rows(lane, START))
    assert counts(start.standing) == entry


# Who pays though the guest uses no debug registers, and for what; KVM 4.16 to 5.16 clears DR6 at each put.
PAY_ANYHOW: Final = {
    **dict.fromkeys(("swap-each-entry", "bhyve", "openbsd", "haxm"), "each entry or exit"),
    "nvmm": "each run call",
    "virtualbox": "each ring-0 session",
}
CLEAR_DR6_AT_PUT: Final = ("kvm-5.4", "kvm-5.7", "kvm-5.14")


@pytest.mark.parametrize("vendor", VENDORS)
def test_nothing_without_debug_registers(vendor: int) -> None:
    """A guest that uses no debug registers costs most no operation on them; who swaps pays all the same."""
    rows = [cpuid(), event(EventKind.HLT), interrupt(), event(EventKind.OUT, selector=0x3F8), wrmsr(0x6E0)]
    heavy_exits = 2
    report = run(stream(rows, rows, QUIET), *policies_on(vendor), vendor=vendor)
    for lane in report.lanes:
        assert synchronization(lane) == Counts()
        paid = standing(lane)
        if lane.policy == SKIP:
            assert paid == Counts(vmwrites=1)
        elif lane.policy in CLEAR_DR6_AT_PUT:
            assert paid == Counts(writes=heavy_exits), lane.policy
        elif lane.policy in PAY_ANYHOW:
            is_free = (lane.policy, vendor) == ("virtualbox", SVM)  # DR7 goes into memory
            assert any(paid) != is_free, lane.policy
        else:
            assert paid == Counts(), lane.policy


# Exits and windows on VMX, from the start state; derived from handle_dr and vcpu_enter_guest.
WRITE_STATUS: Final = [set_dr(6, 0xFFFF_0FF1), wrmsr(TSC_DEADLINE), get_dr(6)]
SLEEP: Final = [get_dr(0), event(EventKind.HLT), get_dr(0)]
VECTORS: Final = (
    ("D1", "kvm-3.14", [*BURST, interrupt()], {"DR_ACCESS": 13, "EXTERNAL_INTERRUPT": 1}, 0),
    ("D1", "kvm-3.15", [*BURST, interrupt()], {"DR_ACCESS": 1, "EXTERNAL_INTERRUPT": 1}, 1),
    ("D1", "kvm-6.14", [*BURST, interrupt()], {"DR_ACCESS": 1, "EXTERNAL_INTERRUPT": 1}, 1),
    ("D3", "kvm-3.14", SLEEP, {"DR_ACCESS": 2, "HLT": 1}, 0),
    ("D3", "kvm-3.15", SLEEP, {"DR_ACCESS": 2, "HLT": 1}, 2),
    ("D3", "kvm-6.14", SLEEP, {"DR_ACCESS": 2, "HLT": 1}, 2),
    ("D4", "kvm-3.14", WRITE_STATUS, {"DR_ACCESS": 2, "MSR_WRITE": 1}, 0),
    ("D4", "kvm-3.15", WRITE_STATUS, {"DR_ACCESS": 2, "MSR_WRITE": 1}, 2),
    ("D4", "kvm-6.14", WRITE_STATUS, {"DR_ACCESS": 1, "MSR_WRITE": 1}, 1),
    ("D5", "kvm-3.14", [get_dr(0, modes=3)], {"DR_ACCESS": 1}, 0),
    ("D5", "kvm-6.14", [get_dr(0, modes=3)], {"DR_ACCESS": 1}, 0),
    ("D5 open", "kvm-6.14", [get_dr(0), get_dr(0, modes=3), get_dr(0)], {"DR_ACCESS": 1}, 1),
    ("D6", "kvm-3.14", [set_dr(7, GD), get_dr(0)], {"DR_ACCESS": 2}, 0),
    ("D6 closed", "kvm-6.14", [set_dr(7, GD), cpuid(), get_dr(0)], {"DR_ACCESS": 2, "CPUID": 1}, 1),
    ("D6 open", "kvm-6.14", [set_dr(7, GD), get_dr(0)], {"DR_ACCESS": 1, "EXCEPTION_NMI": 1}, 1),
    ("D7", "kvm-3.14", [DE, get_dr(4)], {"DR_ACCESS": 1}, 0),
    ("D7", "kvm-3.15", [DE, get_dr(4)], {"DR_ACCESS": 1, "EXCEPTION_NMI": 1}, 1),
    ("D7", "kvm-6.14", [DE, get_dr(4)], {"DR_ACCESS": 1}, 0),
    ("D8", "kvm-3.14", [set_dr(7, 1 << 32)], {"DR_ACCESS": 1}, 0),
    ("D8", "kvm-6.14", [set_dr(7, 1 << 32)], {"DR_ACCESS": 1}, 1),
    ("D10", "kvm-6.14", [*BURST, *set_debugregs(), QUIET], {"DR_ACCESS": 1, "EXTERNAL_INTERRUPT": 1}, 1),
)


@pytest.mark.parametrize(
    ("policy", "rows", "expected", "opened"),
    [vector[1:] for vector in VECTORS],
    ids=[f"{name} {policy}" for name, policy, *_ in VECTORS],
)
def test_window_vectors(policy: str, rows: list[Row], expected: dict[str, int], opened: int) -> None:
    """What opens, what closes, and what exits is as read in the kernel's source."""
    lane = lane_of(policy, VMX, rows)
    assert named_exits(lane) == expected
    assert windows(lane) == opened


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([get_dr(0, modes=3)], {}),  # D5: the processor refuses before it looks at the intercept
        ([DE, get_dr(4)], {"UD excp": 1}),
        ([set_dr(7, GD), cpuid(), get_dr(0)], {"DR_ACCESS": 1, "cpuid": 1, "DB excp": 1}),
        ([set_dr(7, 1 << 32)], {"DR_ACCESS": 1}),  # the operand is looked at last
    ],
)
def test_faults_before_the_intercept_on_svm(rows: list[Row], expected: dict[str, int]) -> None:
    """On SVM an access that faults does not cause a MOV DR exit, unless the operand is at fault."""
    assert named_exits(lane_of("kvm-6.14", SVM, rows)) == expected


# D12: 6 W at each exit; from 5.14 on also DR7 off before an entry that loads nothing.
HOSTED: Final = {"kvm-3.14": (0, 6), "kvm-3.15": (0, 6), "kvm-6.14": (1, 6)}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("policy", "per_entry_and_exit"), HOSTED.items())
def test_host_breakpoints(policy: str, per_entry_and_exit: tuple[int, int], vendor: int) -> None:
    """Where the host uses breakpoints it gets its registers back at each exit, as a standing cost."""
    rows = [*host_breakpoints(db0=0x1000, dr7=0x402), cpuid(), interrupt(), QUIET]
    lane = lane_of(policy, vendor, rows)
    entry, leaving = per_entry_and_exit
    assert standing(lane) == Counts(writes=3 * entry + 2 * leaving)
    assert synchronization(lane) == Counts()
    opened = lane_of(policy, vendor, *host_breakpoints(db0=0x1000, dr7=0x402), get_dr(0), cpuid())
    assert standing(opened).writes == 2 * leaving + entry  # the first entry; the second opens or is dear
    assert (opened.host_blind, list(opened.leaks)) == (0, [])


@pytest.mark.parametrize("vendor", VENDORS)
def test_accounts(vendor: int) -> None:
    """A first entry is billed to START, the host's own changes to HOST, and each once."""
    rows = stream(*set_debugregs(dr7=0x401), *set_debugregs(), event(EventKind.RESET), cpuid())
    lane = run(rows, "kvm-6.14", vendor=vendor, vcpus=2).lanes[0]
    host, start = list(bill_rows(lane, HOST)), list(bill_rows(lane, START))
    assert [(row.count, row.reason, row.exit_class) for row in host] == [(3, 0, 0)]
    assert counts(host[0].standing) == (Counts() if vendor == SVM else Counts(vmwrites=1))
    assert [(row.count, counts(row.standing)) for row in start] == [(1, Counts())]
    assert by_class(lane) == (0, 1, 0)


def test_an_entry_that_never_runs_is_not_billed() -> None:
    """What only the host touches has no exits; the last exit counts though no entry follows it."""
    untouched = lane_of("swap-each-entry", VMX, *set_debugregs(), event(EventKind.SCHED_OUT))
    assert not list(bill_rows(untouched, EXIT))
    assert not list(bill_rows(untouched, START))
    last = lane_of("swap-each-entry", VMX, cpuid())
    assert [counts(row.standing) for row in bill_rows(last, EXIT)] == [Counts(reads=5, vmreads=1)]


def test_skipped_debug_controls() -> None:
    """Controls change once, by one VMWRITE, whenever entries begin or cease to load the host's own DR7."""
    idle = lane_of(SKIP, VMX, cpuid(), cpuid(), QUIET)
    assert (synchronization(idle), standing(idle)) == (Counts(), Counts(vmwrites=1))
    assert all(row.skipped_debug_controls for row in idle.patterns)
    # On with the access that opens the window, off again after it has closed on DR7 = 0x400.
    used = lane_of(SKIP, VMX, cpuid(), get_dr(0), cpuid(), cpuid(), QUIET)
    assert synchronization(used) == total([WINDOW[VMX], Counts(vmwrites=1)])
    assert standing(used) == Counts(vmwrites=2)
    skipped = {row.skipped_debug_controls: 0 for row in used.patterns}
    for row in used.patterns:
        skipped[row.skipped_debug_controls] += row.count
    assert skipped == {False: 1, True: 4}
    # Never skipped while a breakpoint is enabled, or while the host has some.
    enabled = lane_of(SKIP, VMX, BURST, cpuid(), cpuid(), QUIET)
    assert not any(row.skipped_debug_controls for row in bill_rows(enabled, EXIT))
    hosted = lane_of(SKIP, VMX, *host_breakpoints(dr7=0x402), cpuid(), cpuid(), QUIET)
    assert not any(row.skipped_debug_controls for row in hosted.patterns)
