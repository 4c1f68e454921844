"""The smallest streams on which known versions are wrong, and what makes each of them right.

Source of the streams: exhaustive search on an earlier model, and the kernel's own commits: 70e4da7a8ff6
(missed breakpoints), c2fee09fc167 (stale DR6), ae561edeb421 (registers set from outside).
"""

from dataclasses import replace
from typing import Final

import pytest

from exitlab import debugreg
from exitlab.events import EventKind, Mode
from exitlab.v1 import outcome_pb2, report_pb2
from hypervisor_svc.engine.vocabulary import Action, Deviation
from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.kvm import ERA_3_15, ERA_6_14, Era, Kvm
from tests.engine.build import (
    FULL,
    SUMMARY,
    SVM,
    TSC_DEADLINE,
    VENDOR_OF,
    VENDORS,
    VMX,
    Row,
    engine_for,
    engine_of,
    event,
    fetch,
    get_dr,
    host_breakpoints,
    outcomes,
    policies_on,
    run,
    scheduled_in,
    set_debugregs,
    set_dr,
    stream,
    wrmsr,
)
from tests.engine.test_kvm_deviations import SHOWN
from tests.model.streams import Mix, random_stream

SAME: Final = report_pb2.VERDICT_SAME
DECLARED: Final = report_pb2.VERDICT_SAME_BUT_DECLARED
DIVERGED: Final = report_pb2.VERDICT_DIVERGED
NOTHING, READ = outcome_pb2.STORY_UNSPECIFIED, outcome_pb2.STORY_READ
DB_FAULT: Final = outcome_pb2.STORY_DB_FAULT
A: Final = 0x40_1000
B: Final = 0x40_2000
ARMED: Final = [set_dr(0, A), set_dr(7, 0x401)]

# What makes KVM 3.15 miss the breakpoint at A, whose fetch is always the last event.
MISSED: Final = {
    "another vCPU's register": [set_dr(0, B, vcpu=1)],
    "migration": [scheduled_in(1)],
    "host breakpoints": host_breakpoints(db1=B, dr7=0x408),
}


def kvm(era: Era, vendor: int) -> Kvm:
    """Return KVM of an era that need not exist."""
    return Kvm(era, VENDOR_OF[vendor], dr6_writable=debugreg.DR6_WRITABLE)


def shared(
    *rows: Row | list[Row], vendor: int, policies: tuple[str | Kvm, ...]
) -> list[report_pb2.LaneReport]:
    """Return the lanes of a stream on two vCPUs, both on the first of two physical CPUs."""
    report = run(stream(*rows), *policies, vendor=vendor, vcpus=2, physical_cpus=2, initial=(0, 0))
    return list(report.lanes)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("between", MISSED.values(), ids=MISSED)
def test_missed_breakpoint(between: list[Row], vendor: int) -> None:
    """KVM 3.15 misses a breakpoint once its registers are lost; every correct policy hits it."""
    rows = [*ARMED, *between, fetch(A)]
    old, *others = shared(rows, vendor=vendor, policies=("kvm-3.15", *policies_on(vendor, correct=True)))
    assert (old.verdict, old.diverged_events, list(old.declared)) == (DIVERGED, 1, [])
    found = old.first_divergence
    assert (found.event, found.vcpu, int(found.kind)) == (len(rows) - 1, 0, int(EventKind.FETCH))
    assert (found.story, found.expected_story) == (NOTHING, DB_FAULT)
    assert found.expected_value == 0xFFFF_0FF1 | 0x401 << 32
    assert found.what == (
        "FETCH: the guest sees nothing to be seen; "
        "the architecture shows #DB before the instruction (DR6 0xffff0ff1, DR7 0x401)"
    )
    without_host = {lane.policy for lane in others if lane.refused_controls}
    assert without_host <= {"xen", "xen-pv"}
    assert {lane.verdict for lane in others if lane.policy not in without_host} == {SAME}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("left_out", range(3))
def test_missed_breakpoint_needs_all_four_events(left_out: int, vendor: int) -> None:
    """The stream of four events is the smallest: without any of the first three nothing is missed."""
    rows = [*ARMED, *MISSED["another vCPU's register"], fetch(A)]
    del rows[left_out]
    assert [lane.verdict for lane in shared(rows, vendor=vendor, policies=("kvm-3.15",))] == [SAME]


class Recomputing(Kvm):
    """KVM 3.15 that works out again whether breakpoints are enabled when it closes a window."""

    def leave_loop(self, sees: Sees) -> Do | None:
        """Do what 3.15 does, and recompute."""
        done = super().leave_loop(sees)
        if done is None or Action.ARM not in done.actions:
            return done
        return do(done.actions, Action.RECOMPUTE, memory=done.memory)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("between", MISSED.values(), ids=MISSED)
def test_the_stale_belief_is_the_bug(between: list[Row], vendor: int) -> None:
    """With the belief recomputed, as from 4.6 on, KVM 3.15 misses nothing."""
    mended = Recomputing(ERA_3_15, VENDOR_OF[vendor], dr6_writable=debugreg.DR6_WRITABLE)
    era = replace(ERA_3_15, recomputes_after_save=True)
    lanes = shared(ARMED, between, fetch(A), vendor=vendor, policies=(mended, kvm(era, vendor)))
    assert [lane.verdict for lane in lanes] == [SAME, SAME]
    assert [lane.latent_hazards for lane in lanes] == [0, 0]


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_latent_hazard_need_not_be_seen(vendor: int) -> None:
    """Where nobody fetches the address, 3.15's wrong registers are counted and its story is the same."""
    lane = shared(ARMED, set_dr(0, B, vcpu=1), fetch(B + 1), vendor=vendor, policies=("kvm-3.15",))[0]
    assert (lane.verdict, lane.latent_hazards) == (SAME, 1)
    assert [(leak.kind, leak.register, leak.owner, leak.count) for leak in lane.leaks] == [
        (report_pb2.LEAK_KIND_ARMED_IN_GUEST, 0, 1, 1)
    ]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("rows", "register"),
    [
        ([set_dr(0, A), set_dr(0, B, vcpu=1), get_dr(0)], 0),  # two owners on one physical CPU
        ([set_dr(3, A), scheduled_in(1), get_dr(3)], 3),  # one vCPU that moves
    ],
)
def test_ignore_is_wrong(rows: list[Row], register: int, vendor: int) -> None:
    """Ignoring MOV DR is wrong when owners share a physical CPU, and when a vCPU moves."""
    lane = shared(rows, vendor=vendor, policies=("ignore",))[0]
    found = lane.first_divergence
    assert (lane.verdict, found.event, found.register) == (DIVERGED, 2, register)
    assert (found.expected_story, found.expected_value) == (READ, A)


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
def test_ignore_is_right_alone(vendor: int, computed: bool) -> None:
    """A guest alone on its physical CPU, which the host does not touch, needs no hypervisor."""
    mix = Mix(1, 1, computed, outside=False, host=False, scheduling=False, kicks=False)
    for seed in range(5):
        engine = engine_for(mix, "ignore", vendor=vendor)
        engine.feed(random_stream(seed, 500, mix), SUMMARY)
        lane = engine.report().lanes[0]
        assert (lane.verdict, list(lane.leaks), lane.latent_hazards) == (SAME, [], 0)


class LoadsDr6AtEachEntry(Kvm):
    """KVM with 5.17's mistake: DR6 is loaded inside the loop and saved outside of it."""

    def enter_guest(self, sees: Sees) -> Do | None:
        """Load the shadow's DR6 while the window is open."""
        return do(Action.LOAD_DR6) if self._is_open(sees) else super().enter_guest(sees)


@pytest.mark.parametrize("vendor", VENDORS)
def test_stale_dr6_after_a_fast_exit(vendor: int) -> None:
    """Written natively, DR6 survives a fast exit; a policy that loads it at each entry loses it."""
    wrong = LoadsDr6AtEachEntry(ERA_6_14, VENDOR_OF[vendor], dr6_writable=debugreg.DR6_WRITABLE)
    rows = [set_dr(6, 0xF), wrmsr(TSC_DEADLINE), get_dr(6)]
    report = run(stream(rows), "kvm-6.14", wrong, vendor=vendor)
    assert [lane.verdict for lane in report.lanes] == [SAME, DIVERGED]
    found = report.lanes[1].first_divergence
    assert (found.event, found.value, found.expected_value) == (2, 0xFFFF_0FF0, 0xFFFF_0FFF)


def test_a_stale_dr6_is_a_hazard_at_its_entry() -> None:
    """An entry with another DR6 than the guest's is counted, whoever reads it and when."""
    wrong = LoadsDr6AtEachEntry(ERA_6_14, VMX, dr6_writable=debugreg.DR6_WRITABLE)
    lane = run(stream(set_dr(6, 0xF), wrmsr(TSC_DEADLINE), event(EventKind.RDTSC)), wrong).lanes[0]
    assert (lane.latent_hazards, lane.diverged_events, lane.verdict) == (1, 0, DIVERGED)


def test_second_exception_after_general_detect() -> None:
    """On 3.15 a #DB that exits leaves GD set, so the handler's own first access faults again; declared."""
    rows = stream(set_dr(7, 0x2400), get_dr(0), get_dr(6), get_dr(6))
    engine = engine_of("kvm-3.15", "kvm-6.14")
    parts = engine.feed(rows, FULL)
    assert outcomes(parts, 0).stories == [NOTHING, DB_FAULT, DB_FAULT, READ]
    assert outcomes(parts, 1).stories == outcomes(parts, 2).stories == [NOTHING, DB_FAULT, READ, READ]
    old = engine.report().lanes[0]
    assert old.verdict == DECLARED
    assert [rule.rule for rule in old.declared] == [Deviation.DB_KEEPS_GD.name]


HANDED: Final = set_debugregs(db0=A, dr7=0x401)
GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
NARROW: Final = int(Mode.OPERAND_32)

# Rule, vendors, stream, the event that differs.
RULES: Final = (
    # handle_dr up to 3.16: CPL and general detect come before #UD.
    (Deviation.CHECK_ORDER, (VMX,), [DE, get_dr(4, modes=3)], 1),
    (Deviation.GD_KEEPS_TRAP_BITS, (VMX,), [set_dr(6, 1), set_dr(7, GD), get_dr(0)], 2),
    # handle_exception up to 3.16: GD is cleared in handle_dr only.
    (Deviation.DB_KEEPS_GD, (VMX,), [set_dr(0, A), set_dr(7, GD | 1), fetch(A)], 2),
    # kvm_host.h: DR7_VOLATILE 0xffff23ff up to 3.16.
    (Deviation.EMULATED_MASKS, VENDORS, [set_dr(7, 0x800), get_dr(7)], 1),
    # kvm_vcpu_ioctl_x86_set_debugregs: stored raw; eff_db not updated.
    (Deviation.RAW_READS, VENDORS, [*set_debugregs(dr7=0), get_dr(7)], 3),
    (Deviation.STALE_EFFECTIVE, VENDORS, [*HANDED, fetch(A)], 4),
    # dr_interception up to 5.11: the result of kvm_set_dr is ignored, and the instruction skipped.
    (Deviation.SKIPS_ON_FAULT, (SVM,), [set_dr(7, 1 << 32)], 0),
    # handle_dr: raw arch.regs[reg] up to 3.15.
    (Deviation.FULL_OPERAND, VENDORS, [set_dr(0, 1 << 40, modes=NARROW), get_dr(0)], 1),
    # svm.c: #DB is not intercepted on SVM up to 4.3.
    (Deviation.SHADOW_KEEPS_GD, (SVM,), [set_dr(7, GD), get_dr(0)], 1),
)


@pytest.mark.parametrize(
    ("rule", "vendor", "rows", "at"),
    [(rule, vendor, rows, at) for rule, vendors, rows, at in RULES for vendor in vendors],
)
def test_declared_deviations(rule: Deviation, vendor: int, rows: list[Row], at: int) -> None:
    """Each rule that kvm-3.14 declares happens on its smallest stream, at its event; 6.14 needs none."""
    old, new = run(stream(rows), "kvm-3.14", "kvm-6.14", vendor=vendor).lanes
    assert (new.verdict, list(new.declared)) == (SAME, [])
    assert old.verdict == DECLARED
    first = {declared.rule: declared.first_event for declared in old.declared}
    assert first == {rule.name: at}
    before = run(stream(rows[:-1]), "kvm-3.14", vendor=vendor).lanes[0]
    assert all(declared.events == 0 for declared in before.declared)


def test_every_rule_has_its_stream() -> None:
    """No deviation that the engine knows is without a stream, here or for the version that has it."""
    assert {rule for rule, *_ in (*RULES, *SHOWN)} == set(Deviation)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("policy", ["kvm-3.14", "kvm-3.15"])
def test_registers_set_from_outside_reach_hardware_late(policy: str, vendor: int) -> None:
    """On 3.14 and 3.15 a breakpoint set by SET_DEBUGREGS is not hit until the guest writes the address."""
    rows = stream(HANDED, fetch(A), set_dr(0, A), fetch(A))
    engine = engine_of(policy, vendor=vendor)
    parts = engine.feed(rows, FULL)
    ours, theirs = outcomes(parts, 0).stories, outcomes(parts, 1).stories
    assert (ours[4], theirs[4]) == (NOTHING, DB_FAULT)
    assert (ours[6], theirs[6]) == (DB_FAULT, DB_FAULT)
    lane = engine.report().lanes[0]
    assert (lane.verdict, lane.diverged_events) == (DECLARED, 0)
