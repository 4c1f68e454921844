"""IA32_DEBUGCTL: what is kept, what nested entry and exit make of it, recordings, skipped debug controls.

Source: Intel SDM volume 3, chapters on VM entries and VM exits; kvm-unit-tests ``vmx_tests.c``, "debug
controls"; the decisions of ``docs/model.md``.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import EventKind, Mark, Mode, NestedControl
from exitlab.v1 import outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc.engine.validation import BadEvents
from tests.engine.build import (
    FULL,
    SUMMARY,
    SVM,
    TSC_DEADLINE,
    UNKNOWN,
    VENDORS,
    VMX,
    Counts,
    PolicyLike,
    Row,
    class_marks,
    cpuid,
    engine_of,
    event,
    fetch,
    outcomes,
    policies_on,
    run,
    set_dr,
    staged,
    standing,
    stream,
    table_of,
    wrmsr,
)

READ, VMEXIT = outcome_pb2.STORY_READ, outcome_pb2.STORY_VMEXIT
SAME, DIVERGED = report_pb2.VERDICT_SAME, report_pb2.VERDICT_DIVERGED
EXPECTED: Final = int(Mark.VALUE_EXPECTED)
LOAD: Final = NestedControl.LOADS_DEBUG_CONTROLS
SAVE: Final = NestedControl.SAVES_DEBUG_CONTROLS
SKIP: Final = "kvm-6.14-skip-debug-controls"


def put(value: int, **columns: int) -> Row:
    """Return a write of DEBUGCTL."""
    return event(EventKind.WRMSR, selector=MSR_DEBUGCTL, value=value, **columns)


def got(value: int = 0, **columns: int) -> Row:
    """Return a read of DEBUGCTL, with the value that a recording has."""
    return event(EventKind.RDMSR, selector=MSR_DEBUGCTL, value=value, **columns)


def enters(controls: int, debugctl: int) -> list[Row]:
    """Return the events with which L1 enters L2."""
    return [*staged(db0=debugctl, dr7=0x404, dr6=0xFFFF_0FF0), event(EventKind.VMRUN, value=controls)]


LEAVES: Final = event(EventKind.VMEXIT_TO_L1, selector=18)


def shown(vendor: int, *rows: Row | list[Row], computed: bool = True) -> list[int]:
    """Return what is read, and the bits 24 and 25 of what is left; every policy must show the same."""
    names = [name for name in policies_on(vendor) if table_of(name, vendor).supports_nesting]
    names = names if any(row.kind == EventKind.VMRUN for row in flat(*rows)) else list(policies_on(vendor))
    engine = engine_of(*names, vendor=vendor, computed=computed)
    parts = engine.feed(stream(*rows), FULL)
    for lane in engine.report().lanes:
        assert lane.refused_controls or lane.diverged_events == 0, (lane.policy, lane.first_divergence.what)
    truth = outcomes(parts, len(names))
    values = []
    for story, value in zip(truth.stories, truth.values, strict=True):
        values += [value] if story == READ else [value >> 24 & 0b11] if story == VMEXIT else []
    return values


def flat(*parts: Row | list[Row]) -> list[Row]:
    """Return events, or lists of events, as one list."""
    return [row for part in parts for row in ([part] if isinstance(part, Row) else part)]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ([got()], [0]),
        ([put(1), got(), put(2), got(), put(0), got()], [1, 2, 0]),
        ([put((1 << 64) - 1), got()], [3]),
        ([put(2), put(1, marks=UNKNOWN), got()], [2]),
        ([put(3), event(EventKind.RESET), got()], [0]),
        ([put(3), event(EventKind.INIT), got()], [3]),
        ([put(3, vcpu=0), cpuid(), wrmsr(TSC_DEADLINE), event(EventKind.OUT), got()], [3]),
        ([put(1), event(EventKind.SCHED_OUT), event(EventKind.SCHED_IN), got()], [1]),
        ([put(1), wrmsr(0x1A0), got(), event(EventKind.RDMSR, selector=0x1A0)], [1]),
        ([put(3, modes=int(Mode.TF)), got()], [3]),
    ],
)
def test_what_is_kept(rows: list[Row], values: list[int], vendor: int) -> None:
    """Bits 0 and 1 of the last known value, until a RESET; INIT leaves MSRs alone."""
    assert shown(vendor, rows) == values


@pytest.mark.parametrize(
    ("controls", "inside", "found"),
    [(LOAD | SAVE, 2, 3), (0, 1, 2), (LOAD, 2, 2), (SAVE, 1, 3)],
)
def test_nested_on_vmx(controls: int, inside: int, found: int) -> None:
    """L1 has 1 and gives 2, L2 writes 3: what L2 reads and L1 finds is as with DR7, and L1 has 0 then."""
    rows = [put(1), *enters(controls, 2), got(), put(3), LEAVES, got()]
    assert shown(VMX, rows) == [inside, found, 0]


@pytest.mark.parametrize("controls", [0, LOAD, SAVE, LOAD | SAVE])
def test_nested_on_svm(controls: int) -> None:
    """Without LBR virtualization VMRUN and #VMEXIT leave it alone: both guests have the same."""
    *reads, last = shown(SVM, [put(1), *enters(controls, 2), got(), put(3), LEAVES, got()])
    assert (reads[0], last) == (1, 3)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("rows", "disagreements"),
    [
        # Nobody knows what was there: no read is wrong, whatever comes.
        ([got(), cpuid(), got()], 0),
        ([put(0, marks=UNKNOWN), got()], 0),
        ([got(2, marks=EXPECTED), got(2, marks=EXPECTED), got()], 0),
        ([got(), got(0x4001, marks=EXPECTED), got(1, marks=EXPECTED), got(2, marks=EXPECTED)], 1),
        ([put(1), got(1, marks=EXPECTED), got(3, marks=EXPECTED)], 1),
        ([event(EventKind.RESET), got(3, marks=EXPECTED)], 1),
        ([event(EventKind.INIT), got(3, marks=EXPECTED), got(3, marks=EXPECTED)], 0),
        ([*enters(LOAD | SAVE, 1), got(1, marks=EXPECTED), LEAVES, got(0, marks=EXPECTED)], 0),
        ([*enters(SAVE, 1), LEAVES, got(0, marks=EXPECTED)], 0),
        ([*enters(SAVE, 1), got(2, marks=EXPECTED), got(2, marks=EXPECTED), LEAVES], 0),
    ],
)
def test_recordings(rows: list[Row], disagreements: int, vendor: int) -> None:
    """What a recording has not told yet is unknown, its first read tells, and no lane diverges for it."""
    if vendor == SVM and any(row.kind == EventKind.VMRUN for row in rows):
        rows = [put(1) if row.kind == EventKind.STAGE and row.arg == 0 else row for row in rows]
        disagreements = sum(row.marks == EXPECTED and row.value != 1 for row in rows)
    shown(vendor, rows, computed=False)
    engine = engine_of("kvm-6.14", vendor=vendor, computed=False)
    engine.feed(stream(rows), SUMMARY)
    (found,) = engine.report().references
    assert found.disagreements == disagreements
    assert found.recorded_reads == sum(row.marks == EXPECTED for row in rows)
    if disagreements:
        assert found.first_disagreement.what.startswith("RDMSR: the architecture reads ")


def test_a_read_is_not_stepped() -> None:
    """It shows its value, and one event shows one thing; what MOV SS has held comes with the next."""
    engine = engine_of("kvm-6.14")
    with pytest.raises(BadEvents, match="TF on RDMSR, which shows its value"):
        engine.feed(stream(got(modes=int(Mode.TF))), SUMMARY)
    engine.feed(stream(event(EventKind.RDMSR, selector=0x1A0, modes=int(Mode.TF))), SUMMARY)
    rows = [
        *(set_dr(0, 0x7000), set_dr(7, 0x30401), event(EventKind.MOV_SS, arg=2, value=0x7000)),
        *(fetch(0x1000), got(), cpuid()),
    ]
    for vendor in VENDORS:
        parts = engine_of("kvm-6.14", vendor=vendor).feed(stream(rows), FULL)
        assert outcomes(parts, 0).stories[-2:] == [READ, outcome_pb2.STORY_DB_FAULT]
        assert outcomes(parts, 0).stories == outcomes(parts, 1).stories


def _taking_dr7_for_all(table: policy_pb2.PolicyTable) -> policy_pb2.PolicyTable:
    """Return a policy that does not look at DEBUGCTL, for streams that keep DR7 at 0x400."""
    for moment in table.moments:
        if "debug_controls_at_reset" in moment.inputs:
            after = list(moment.sizes)[list(moment.inputs).index("debug_controls_at_reset") + 1 :]
            stride = math.prod(after)
            memory = bytearray(moment.next_memory)
            for row in range(len(memory)):
                if row // stride % 2 == 0:  # as if they were at reset
                    moment.actions[row] = moment.actions[row + stride]
                    memory[row] = memory[row + stride]
            moment.next_memory = bytes(memory)
    return table


def _passed_through(policy: PolicyLike, *rows: Row) -> report_pb2.LaneReport:
    """Return the lane of a hypervisor that does not intercept reads of DEBUGCTL."""
    engine = engine_of(policy)
    (lane,) = engine.lanes
    passed = np.append(lane.profile.passed_msrs, np.uint32(MSR_DEBUGCTL))
    lane.profile = replace(lane.profile, passed_msrs=passed)
    engine.feed(stream(rows), SUMMARY)
    return engine.report().lanes[0]


IN_L2: Final = [*staged(db0=1, dr7=0x400), event(EventKind.VMRUN, value=LOAD | SAVE), cpuid(), got()]


def test_dr7_alone_is_not_enough_to_skip_the_debug_controls() -> None:
    """Without a look at DEBUGCTL the guest runs with the host's: a hazard, seen where reads do not exit."""
    wrong = _taking_dr7_for_all(table_of(SKIP))
    for policy in (SKIP, "kvm-6.14"):
        lane = _passed_through(policy, cpuid(), *IN_L2)
        assert (lane.verdict, lane.latent_hazards) == (SAME, 0)
    lane = _passed_through(wrong, cpuid(), *IN_L2)
    assert (lane.verdict, lane.diverged_events) == (DIVERGED, 1)
    assert lane.first_divergence.what == "RDMSR: the guest sees 0x0; the architecture shows 0x1"
    # Where they exit, the hypervisor answers from what it holds, and only the hazard is there.
    lane = run(stream(cpuid(), IN_L2, cpuid()), wrong).lanes[0]
    assert lane.verdict == SAME
    assert lane.latent_hazards > 0


@pytest.mark.parametrize("exit_class", [1, 2, 3])
def test_skipped_debug_controls_come_back_for_debugctl(exit_class: int) -> None:
    """One VMWRITE when DEBUGCTL is no longer the host's, after a fast exit too, and one when it is again."""
    rows = [cpuid(), cpuid(), put(1, marks=class_marks(exit_class)), cpuid(), put(0), cpuid(), cpuid()]
    lane = run(stream(rows), SKIP).lanes[0]
    assert (lane.verdict, lane.latent_hazards) == (SAME, 0)
    assert standing(lane) == Counts(vmwrites=3)
    skipped = {row.skipped_debug_controls: 0 for row in lane.patterns}
    for row in lane.patterns:
        skipped[row.skipped_debug_controls] += row.count
    assert skipped[False] >= 2
