"""The other hypervisors: what each pays for a context switch side by side, and where some are wrong.

Source: their published code, as named in each policy's file; the counts are arithmetic on it, not
measured. P0 to P9 name the ways of working: P0 never switch, P1 swap each entry, P2 swap each run, P3
open until the next exit, P4 until another vCPU comes, P5 until a heavy exit, P6 always trap with a
shadow, P7 with the physical register, P8 the processor switches, P9 trap and cluster.
"""

from typing import Final

import pytest

from exitlab.events import EventKind
from exitlab.v1 import report_pb2
from tests.engine.build import (
    SVM,
    VENDOR_OF,
    VMX,
    Row,
    context_switch,
    cpuid,
    event,
    fetch,
    get_dr,
    mov_dr,
    run,
    scheduled_in,
    set_debugregs,
    set_dr,
    stream,
)
from tests.engine.paid import AWAY, HEAVY, HOSTED, LIGHT, NOTHING, QUIET, START, SWITCH, Paid, steps_of

SAME: Final = report_pb2.VERDICT_SAME
DIVERGED: Final = report_pb2.VERDICT_DIVERGED
A: Final = 0x40_1000
B: Final = 0x40_2000
GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
OTHER: Final = event(EventKind.RDTSC, vcpu=1)


# The first context switch, a light exit, a second switch (both tasks use breakpoints), out and in.
SIDE_BY_SIDE: Final[dict[tuple[str, int], tuple[Paid, Paid, Paid, Paid]]] = {
    # P0: nothing, ever.
    ("acrn", VMX): (NOTHING,) * 4,
    ("acrn", SVM): (NOTHING,) * 4,
    # P1: 11 R, 12 W and 3 MSR accesses an exit with its entry; OpenBSD saves no host: 5 R, 5 W.
    ("bhyve", VMX): (NOTHING, Paid(0, 11, 12, 0, 0, 3), NOTHING, Paid(0, 11, 12, 0, 0, 3)),
    ("bhyve", SVM): (NOTHING, Paid(0, 10, 11, 0, 0, 3), NOTHING, Paid(0, 10, 11, 0, 0, 3)),
    ("openbsd", VMX): (NOTHING, Paid(0, 5, 5), NOTHING, Paid(0, 5, 5)),
    ("openbsd", SVM): (NOTHING, Paid(0, 4, 4), NOTHING, Paid(0, 4, 4)),
    # P2: 6 W and 5 R for each run call, none inside.
    ("nvmm", VMX): (NOTHING, NOTHING, NOTHING, Paid(0, 5, 6)),
    ("nvmm", SVM): (NOTHING, NOTHING, NOTHING, Paid(0, 4, 5)),
    # P3: one exit; 7 W and 5 R for a window, whose closing the light exit pays; 5 W an entry after it.
    ("kvm-6.14", VMX): (Paid(1, 0, 6, 2, 1), Paid(0, 5, 6, 1, 2), Paid(1, 0, 6, 2, 1), Paid(0, 0, 5)),
    ("kvm-6.14", SVM): (Paid(1, 0, 5), Paid(0, 4, 5), Paid(1, 0, 5), Paid(0, 0, 5)),
    # P4: one exit and 5 W, and 5 R when another CPU is taken; there DR7 is on, so 5 W at once. On SVM
    # four address masks go with DR0 to DR3 each way, which the published row leaves out.
    ("xen", VMX): (Paid(1, 0, 5, 1, 1), NOTHING, NOTHING, Paid(0, 5, 5, 1, 1)),
    ("xen", SVM): (Paid(1, 0, 4, 0, 0, 4), NOTHING, NOTHING, Paid(0, 4, 4, 0, 0, 8)),
    # P5: one exit in a session that began with DR7 off; 12 R and 11 W a session (12 where the host's
    # DR7 is in use: WITH_HOST). The published row has no VMCS accesses: DR7 out and in, and the intercept.
    ("virtualbox", VMX): (Paid(1, 6, 5, 0, 1), NOTHING, NOTHING, Paid(0, 12, 11, 1, 3)),
    ("virtualbox", SVM): (Paid(1, 6, 4), NOTHING, NOTHING, Paid(0, 11, 10)),
    # P6a: 13 exits, 26 R, 42 W, 7 VMWRITEs; 2 R an exit with its entry; a new CPU loads again.
    ("haxm", VMX): (Paid(13, 26, 42, 0, 7), Paid(0, 2), Paid(13, 26, 42, 0, 7), Paid(0, 2, 6, 0, 1)),
    # P6b: 13 exits and 35 W where both tasks use breakpoints: 5 W for each of 7 entries, in the first
    # switch for the last alone. PVM writes DR7 once more at each of them, and at the exit after it.
    ("kvm-pvm", VMX): (Paid(13, 0, 6), Paid(0, 0, 7), Paid(13, 0, 49), Paid(0, 0, 7)),
    # P6c: each write goes through; DR7 on writes all six: 5 + 1 + 6. Out 1 W, in 6 W.
    ("xen-pv", VMX): (Paid(13, 0, 12), NOTHING, Paid(13, 0, 12), Paid(0, 0, 7)),
    # P7: 13 exits, each with one access and a VMREAD. hvpp's three accesses to DR7 are VMREADs and
    # VMWRITEs instead: 10 + 3, the published 13 if those count.
    ("hyperplatform", VMX): (Paid(13, 6, 7, 13), NOTHING, Paid(13, 6, 7, 13), NOTHING),
    ("hvpp", VMX): (Paid(13, 5, 5, 13 + 3, 2), NOTHING, Paid(13, 5, 5, 13 + 3, 2), NOTHING),
    # P8: nothing, and right.
    ("hardware-switch", VMX): (NOTHING,) * 4,
    ("hardware-switch", SVM): (NOTHING,) * 4,
    # P9: one exit; P6b's load at the one entry, and GUEST_DR7 for each of the two writes.
    ("trap-and-cluster", VMX): (Paid(1, 0, 5, 0, 2), Paid(0, 0, 5), Paid(1, 0, 5, 0, 2), Paid(0, 0, 5)),
    ("trap-and-cluster", SVM): (Paid(1, 0, 5), Paid(0, 0, 5), Paid(1, 0, 5), Paid(0, 0, 5)),
}


@pytest.mark.parametrize(("policy", "vendor"), SIDE_BY_SIDE, ids=str)
def test_side_by_side(policy: str, vendor: int) -> None:
    """A context switch, a light exit and a change of CPU cost what the published state machines say."""
    first, light, second, away = SIDE_BY_SIDE[policy, vendor]
    found = steps_of(policy, vendor, START, SWITCH, LIGHT, SWITCH, LIGHT, AWAY)
    assert found[1:] == [first, light, second, light, away]


# The same with breakpoints of the host's own, which come off before the guest runs and back after.
WITH_HOST: Final[dict[tuple[str, int], tuple[Paid, Paid, Paid, Paid]]] = {
    # P2: the published row leaves out 6 R and 6 W of host save and restore for each run call.
    ("nvmm", VMX): (NOTHING, NOTHING, NOTHING, Paid(0, 5 + 6, 6 + 6)),
    ("nvmm", SVM): (NOTHING, NOTHING, NOTHING, Paid(0, 4 + 6, 5 + 6)),
    # P5: 12 W a session. The published row's 13 would need a hardware DR7 other than 0x400 when the
    # session is left as well, and a VM exit has just made it 0x400.
    ("virtualbox", VMX): (Paid(1, 6, 5 + 1, 0, 1), NOTHING, NOTHING, Paid(0, 12, 11 + 1, 1, 3)),
    ("virtualbox", SVM): (Paid(1, 6, 4 + 1), NOTHING, NOTHING, Paid(0, 11, 10 + 1)),
    # P1: bhyve's host registers are always saved, so nothing changes.
    ("bhyve", VMX): SIDE_BY_SIDE["bhyve", VMX],
    ("bhyve", SVM): SIDE_BY_SIDE["bhyve", SVM],
    # P3: 6 W at each exit; the entry writes DR7 anyhow while it loads.
    ("kvm-6.14", VMX): (Paid(1, 0, 12, 2, 1), Paid(0, 5, 12, 1, 2), Paid(1, 0, 12, 2, 1), Paid(0, 0, 11)),
    ("kvm-6.14", SVM): (Paid(1, 0, 11), Paid(0, 4, 11), Paid(1, 0, 11), Paid(0, 0, 11)),
    # P8: the host's alone, 1 W an entry and 6 W an exit.
    ("hardware-switch", VMX): (NOTHING, Paid(writes=7), NOTHING, Paid(writes=7)),
    ("hardware-switch", SVM): (NOTHING, Paid(writes=7), NOTHING, Paid(writes=7)),
}


@pytest.mark.parametrize(("policy", "vendor"), WITH_HOST, ids=str)
def test_side_by_side_with_host_breakpoints(policy: str, vendor: int) -> None:
    """The host's own registers are paid for where its source puts them away, and only there."""
    first, light, second, away = WITH_HOST[policy, vendor]
    found = steps_of(policy, vendor, [*HOSTED, *START], SWITCH, LIGHT, SWITCH, LIGHT, AWAY)
    assert found[1:] == [first, light, second, light, away]


@pytest.mark.parametrize(
    ("policy", "vendor", "expected"),
    [
        # VirtualBox writes DR7 into the VMCS at each session, used or not; NVMM swaps at each run.
        ("virtualbox", VMX, Paid(vmwrites=1)),
        ("virtualbox", SVM, NOTHING),
        ("nvmm", VMX, Paid(reads=5, writes=6)),
        ("xen", VMX, NOTHING),
        ("xen-pv", VMX, NOTHING),
        ("kvm-pvm", VMX, NOTHING),
        ("haxm", VMX, Paid(reads=2)),
    ],
)
def test_a_guest_without_debug_registers(policy: str, vendor: int, expected: Paid) -> None:
    """What a heavy exit costs a guest that never touches a debug register."""
    assert steps_of(policy, vendor, START, HEAVY)[1] == expected


@pytest.mark.parametrize(
    ("vendor", "policy", "heavy"),
    [
        (VMX, "nvmm", {"HLT", "MWAIT", "MONITOR", "RDMSR", "WRMSR", "EPT_VIOLATION", "IN"}),
        (SVM, "nvmm", {"HLT", "MWAIT", "MONITOR", "RDMSR", "WRMSR", "EPT_VIOLATION", "IN"}),
        (VMX, "virtualbox", {"HLT", "MWAIT", "IN"}),
        (SVM, "virtualbox", {"HLT", "MWAIT", "IN"}),
    ],
)
def test_what_leaves_the_session(vendor: int, policy: str, heavy: set[str]) -> None:
    """NVMM returns to user space, and VirtualBox to ring 3, at other exits than KVM."""
    kinds = ("HLT", "MWAIT", "MONITOR", "RDMSR", "WRMSR", "EPT_VIOLATION", "IN", "CPUID", "XSETBV", "VMCALL")
    found = set()
    for name in kinds:
        rows = [event(EventKind[name], selector=0x1D9)]
        lane = run(stream(rows), policy, vendor=vendor).lanes[0]
        if lane.vcpus[0].exits_by_class[2]:
            found.add(name)
    assert found == heavy


def near(gap: int) -> list[Row]:
    """Return a context switch with ``gap`` guest cycles before each access."""
    return [row._replace(gap_cycles=gap) for row in context_switch()]


@pytest.mark.parametrize(
    ("rows", "traps"),
    [
        (near(60), 1),
        (near(61), 13),  # farther apart than it looks ahead
        ([*near(5)[:6], QUIET, *near(5)[6:]], 2),  # an instruction that runs in the guest ends a group
        ([*near(5)[:6], cpuid(), *near(5)[6:]], 2),  # and so does one that exits
        ([get_dr(0)] * 16, 1),
        ([get_dr(0)] * 17, 2),  # at most 16 in one exit
        ([get_dr(0), get_dr(0, modes=3), get_dr(0)], 2),  # a fault is delivered in the guest
    ],
)
def test_clusters(rows: list[Row], traps: int) -> None:
    """Accesses back to back are emulated in one exit, up to the gap and the number assumed."""
    lane = run(stream(rows), "trap-and-cluster").lanes[0]
    clustered = sum(vcpu.mov_dr_clustered for vcpu in lane.vcpus)
    executed, trapped = mov_dr(lane)
    assert (trapped, trapped + clustered) == (traps, executed)


# The smallest streams, all on two vCPUs of which both start on the first of two physical CPUs.
WRONG: Final[dict[str, tuple[str, list[Row], str]]] = {
    "haxm keeps another vCPU's addresses": (
        "haxm",
        [set_dr(0, A), set_dr(7, 0x401), QUIET, OTHER, fetch(A)],
        "FETCH: the guest sees nothing to be seen; "
        "the architecture shows #DB before the instruction (DR6 0xffff0ff1, DR7 0x401)",
    ),
    "haxm reads another vCPU's DR6": (
        "haxm",
        [QUIET, set_dr(6, 0xFFFF_0FF1, vcpu=1), OTHER, get_dr(6)],
        "MOV from DR6: the guest sees 0xffff0ff1; the architecture shows 0xffff0ff0",
    ),
    "haxm lets a user in": (
        "haxm",
        [get_dr(0, modes=3)],
        "MOV from DR0: the guest sees 0x0; the architecture shows #GP(0) (DR6 0xffff0ff0, DR7 0x400)",
    ),
    "haxm tests general detect before #UD": (
        "haxm",
        [DE, set_dr(7, GD), get_dr(4)],
        "MOV from DR6: the guest sees #DB before the instruction (DR6 0xffff2ff0, DR7 0x400); "
        "the architecture shows #UD (DR6 0xffff0ff0, DR7 0x2400)",
    ),
    "hyperplatform loses DR7": (
        "hyperplatform",
        [set_dr(7, 0x401), get_dr(7)],
        "MOV from DR7: the guest sees 0x400; the architecture shows 0x401",
    ),
    "hyperplatform checks nothing": (
        "hyperplatform",
        [get_dr(0, modes=3)],
        "MOV from DR0: the guest sees 0x0; the architecture shows #GP(0) (DR6 0xffff0ff0, DR7 0x400)",
    ),
    **{
        f"{policy} does not switch": (
            policy,
            [set_dr(0, A), get_dr(0, vcpu=1)],
            "MOV from DR0: the guest sees 0x401000; the architecture shows 0x0",
        )
        for policy in ("hyperplatform", "hvpp", "acrn", "ignore")
    },
    **{
        f"{policy} leaves registers behind": (
            policy,
            [set_dr(0, A), scheduled_in(1), get_dr(0)],
            "MOV from DR0: the guest sees 0x0; the architecture shows 0x401000",
        )
        for policy in ("hvpp", "acrn", "ignore")
    },
    "ignore does not notice what is set": (
        "ignore",
        [*set_debugregs(db0=A), get_dr(0)],
        "MOV from DR0: the guest sees 0x0; the architecture shows 0x401000",
    ),
}


def shared(policy: str, rows: list[Row]) -> report_pb2.LaneReport:
    """Return the lane of two vCPUs that start on the first of two physical CPUs."""
    return run(stream(rows), policy, vcpus=2, physical_cpus=2, initial=(0, 0)).lanes[0]


@pytest.mark.parametrize("name", WRONG)
def test_smallest_streams(name: str) -> None:
    """Each fault of a policy that claims to be wrong is seen in the last of a few events, undeclared."""
    policy, rows, what = WRONG[name]
    lane = shared(policy, rows)
    assert (lane.verdict, lane.diverged_events, lane.first_divergence.event) == (DIVERGED, 1, len(rows) - 1)
    assert lane.first_divergence.what == what
    assert not lane.claims_correct


@pytest.mark.parametrize("name", WRONG)
def test_no_event_can_be_left_out(name: str) -> None:
    """Without any one of the events before it, the last shows what the architecture does."""
    policy, rows, _ = WRONG[name]
    for left_out in range(len(rows) - 1):
        if rows[left_out].kind != EventKind.STAGE:  # what is not staged is zero, and so another stream
            lane = shared(policy, rows[:left_out] + rows[left_out + 1 :])
            assert lane.diverged_events == 0, left_out


@pytest.mark.parametrize("policy", ["xen", "virtualbox", "nvmm", "bhyve", "openbsd"])
@pytest.mark.parametrize("vendor", [VMX, SVM])
@pytest.mark.parametrize("name", WRONG)
def test_the_others_are_right_on_them(name: str, policy: str, vendor: int) -> None:
    """Those that claim to be correct are, on the same streams."""
    _, rows, _ = WRONG[name]
    options = {"vcpus": 2, "physical_cpus": 2, "initial": (0, 0)}
    lane = run(stream(rows), policy, vendor=VENDOR_OF[vendor], **options).lanes[0]
    assert (lane.verdict, lane.claims_correct) == (SAME, True)
