"""CVE-2025-21839 as L0 saw it: a DR6 that L1 wrote, a fast exit, and the guest that reads it.

The sequence is that of the commit message of c2fee09fc167 (Linux 6.14), which traces both hypervisors:
L2 reads DR6, which L1 intercepts; L1 writes DR7, for which L0 drops its own intercept and puts DR6 into the
processor; L1 writes DR6 without an exit; the preemption timer exits, is handled inside the run loop, and the
entry that follows loads the DR6 of before once more; L1 enters L2 without the intercept; L2 reads DR6. (The
trace ends at that entry, a VMRESUME there, and begins in L2; what brings L2 there is added.)

On SVM the timer is none, and what VMRUN loads into DR6 comes from memory: L1 gives L2 what it has itself.
So the fast exit is a write of the TSC deadline, and L1's own read shows what is lost.
"""

from typing import Final

import pytest

from exitlab.events import EventKind, NestedControl
from exitlab.exit_reasons import reason_name
from exitlab.v1 import outcome_pb2, report_pb2
from hypervisor_svc.engine import Engine
from tests.engine.build import (
    FAST,
    FULL,
    HEAVY,
    LIGHT,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Row,
    Told,
    class_marks,
    engine_of,
    event,
    get_dr,
    outcomes,
    policies_on,
    set_dr,
    staged,
    stream,
    table_of,
    wrmsr,
)

STALE: Final = 0xFFFF_0FF0
RIGHT: Final = 0xFFFF_0FF1
READ, VMEXIT = outcome_pb2.STORY_READ, outcome_pb2.STORY_VMEXIT
SAME, DIVERGED = report_pb2.VERDICT_SAME, report_pb2.VERDICT_DIVERGED
CONTROLS: Final = NestedControl.LOADS_DEBUG_CONTROLS | NestedControl.SAVES_DEBUG_CONTROLS


def enters_l2(controls: int, dr6: int) -> list[Row]:
    """Return the events with which L1 enters L2."""
    return [*staged(dr7=0x400, dr6=dr6), event(EventKind.VMRUN, value=CONTROLS | controls)]


L2_READS: Final = [*enters_l2(NestedControl.INTERCEPTS_MOV_DR, STALE), get_dr(6)]
L1_WRITES: Final = [set_dr(7, 0x400), set_dr(6, RIGHT)]
VMREAD: Final = event(EventKind.EXIT, selector=23)
AFTER: Final = [*enters_l2(0, RIGHT), get_dr(6)]
STREAMS: Final[dict[int, list[Row]]] = {
    VMX: [*L2_READS, VMREAD, VMREAD, *L1_WRITES, event(EventKind.PREEMPTION_TIMER), *AFTER],
    SVM: [*L2_READS, *L1_WRITES, wrmsr(TSC_DEADLINE), get_dr(6), *AFTER],
}
# What is read, by whoever does; and the versions of KVM that lose it.
READS: Final[dict[int, list[int]]] = {VMX: [RIGHT], SVM: [RIGHT, RIGHT]}
STALE_READS: Final[dict[int, list[int]]] = {VMX: [STALE], SVM: [STALE, RIGHT]}
AFFECTED: Final[dict[int, tuple[str, ...]]] = {
    VMX: ("kvm-5.17", "kvm-6.8"),
    SVM: ("kvm-5.14", "kvm-5.17", "kvm-6.8"),
}
NESTING: Final = [
    pytest.param(name, vendor, id=f"{name} {vendor}")
    for vendor in VENDORS
    for name in policies_on(vendor)
    if table_of(name, vendor).supports_nesting
]
# Exits by reason and class, by version.
Exits = list[tuple[str, int]]
TRAPPED: Final = ("DR_ACCESS", LIGHT)
OLD: Final = ("kvm-3.15", "kvm-4.4", "kvm-4.6", "kvm-5.4", "kvm-5.7")
NEW: Final = ("kvm-5.14", "kvm-5.17", "kvm-6.8", "kvm-6.14", "kvm-7.1")


def exits_on_vmx(exit_class: int, traps: int) -> Exits:
    """Return the exits where that of the timer is of a class, and L1's two writes trap ``traps`` times."""
    enters, reads_field = ("VMLAUNCH", LIGHT), ("VMREAD", LIGHT)
    middle = [*[TRAPPED] * traps, ("PREEMPTION_TIMER", exit_class)]
    return [enters, TRAPPED, reads_field, reads_field, *middle, enters, TRAPPED]


def exits_on_svm(exit_class: int, traps: int) -> Exits:
    """Return the same of the write of an MSR; a slow one closes the window, and L1's read traps again."""
    enters = ("vmrun", LIGHT)
    middle = [*[TRAPPED] * traps, ("msr", exit_class), *([] if exit_class == FAST else [TRAPPED])]
    return [enters, TRAPPED, *middle, enters, TRAPPED]


EXITS: Final[dict[int, dict[str, Exits]]] = {
    VMX: {
        "kvm-3.14": exits_on_vmx(LIGHT, 2),
        **dict.fromkeys(OLD, exits_on_vmx(LIGHT, 1)),
        **dict.fromkeys((*NEW, "kvm-6.14-skip-debug-controls"), exits_on_vmx(FAST, 1)),
    },
    SVM: {
        "kvm-3.14": exits_on_svm(LIGHT, 2),
        **dict.fromkeys(OLD, exits_on_svm(LIGHT, 1)),
        **dict.fromkeys(NEW, exits_on_svm(FAST, 1)),
    },
}


def told(policy: str, vendor: int) -> tuple[Engine, Told, Told]:
    """Return the engine, and what a policy's guest and one on the bare processor are shown."""
    engine = engine_of(policy, vendor=vendor)
    parts = engine.feed(stream(STREAMS[vendor]), FULL)
    return engine, outcomes(parts, 0), outcomes(parts, 1)


def reads(shown: Told) -> list[int]:
    """Return the values that were read."""
    return [value for story, value in zip(shown.stories, shown.values, strict=True) if story == READ]


@pytest.mark.parametrize(("policy", "vendor"), NESTING)
def test_what_is_read(policy: str, vendor: int) -> None:
    """The first read leaves L2; then KVM 5.17 to 6.13, on SVM from 5.12 on, shows the DR6 of before."""
    engine, ours, truth = told(policy, vendor)
    (lane,) = engine.report().lanes
    assert (reads(truth), truth.stories.count(VMEXIT)) == (READS[vendor], 1)
    assert truth.stories[len(L2_READS) - 1] == VMEXIT
    is_affected = policy in AFFECTED[vendor]
    assert reads(ours) == (STALE_READS if is_affected else READS)[vendor]
    assert ours.stories == truth.stories
    assert lane.diverged_events == is_affected
    assert (lane.verdict, lane.claims_correct) == (
        (DIVERGED, False) if is_affected else (SAME, table_of(policy, vendor).claims_correct)
    )
    if is_affected:
        first, at = lane.first_divergence, truth.stories.index(READ)
        assert (first.event, first.value, first.expected_value) == (at, STALE, RIGHT)


@pytest.mark.parametrize(
    ("policy", "vendor"), [(policy, vendor) for vendor in VENDORS for policy in EXITS[vendor]]
)
def test_the_exits_in_their_order(policy: str, vendor: int) -> None:
    """As in the trace: L2's access, L1's first one, the exit in the middle, the entry, L2's access again."""
    _, ours, _ = told(policy, vendor)
    found = [(reason_name(vendor, one.reason), one.exit_class) for one in ours.decisions if one.exited]
    assert found == EXITS[vendor][policy]


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_write_that_is_lost_is_free(vendor: int) -> None:
    """L1's write of DR6 does not exit, as L0 has dropped its intercept; without the fast exit it stays."""
    for policy in AFFECTED[vendor]:
        _, ours, _ = told(policy, vendor)
        write = STREAMS[vendor].index(L1_WRITES[-1])
        assert not ours.decisions[write].exited
        assert ours.decisions[write - 1].window_opened
        slow = [row for row in STREAMS[vendor] if row != STREAMS[vendor][write + 1]]
        engine = engine_of(policy, vendor=vendor)
        engine.feed(stream(slow), FULL)
        assert engine.report().lanes[0].verdict == SAME


@pytest.mark.parametrize(("policy", "vendor"), NESTING)
@pytest.mark.parametrize("exit_class", [FAST, LIGHT, HEAVY])
def test_what_is_loaded_stays_l1s(policy: str, vendor: int, exit_class: int) -> None:
    """L2 is left in the session or out of it: neither takes back or loses what L1 has written."""
    leaves = event(EventKind.VMEXIT_TO_L1, selector=18, marks=class_marks(exit_class))
    engine = engine_of(policy, vendor=vendor)
    engine.feed(stream(set_dr(0, 0x7000), *enters_l2(0, STALE), leaves), FULL)
    assert engine.report().lanes[0].verdict == SAME  # what is read at the end is part of it
