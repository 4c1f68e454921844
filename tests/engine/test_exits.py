"""Which events exit, in which class and by which name."""

from typing import Final

import numpy as np
import pytest

from exitlab.events import EventKind, NestedControl
from exitlab.exit_reasons import reason_name
from exitlab.v1 import report_pb2
from hypervisor_svc.engine.profile import Group, make_profile
from tests.engine.bill_model import NAMES
from tests.engine.build import (
    FAST,
    HEAVY,
    LIGHT,
    SVM,
    VENDORS,
    VMX,
    by_class,
    event,
    exits,
    policies_on,
    run,
    stream,
    table_of,
)
from tests.engine.kvm_versions import VERSIONS, in_span

PASSED: Final = (0xC000_0100, 0xC000_0101, 0xC000_0102, 0x174, 0x175, 0x176, 0x10, 0x48, 0x49)

# Kind, columns, the class in the VM profile kvm-default.
EXITS: Final[tuple[tuple[EventKind, dict[str, int], int], ...]] = (
    *((kind, {}, LIGHT) for kind in (EventKind.CPUID, EventKind.HLT, EventKind.VMCALL)),
    *((kind, {}, LIGHT) for kind in (EventKind.WBINVD, EventKind.MONITOR, EventKind.MWAIT)),
    *((kind, {}, LIGHT) for kind in (EventKind.XSETBV, EventKind.EPT_VIOLATION)),
    *((kind, {}, LIGHT) for kind in (EventKind.RDPMC, EventKind.INVD, EventKind.NMI)),
    *((kind, {}, HEAVY) for kind in (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS)),
    (EventKind.EXTERNAL_INTERRUPT, {}, LIGHT),
    (EventKind.PREEMPTION_TIMER, {}, LIGHT),
    (EventKind.MOV_TO_CR, {"arg": 0}, LIGHT),
    (EventKind.MOV_TO_CR, {"arg": 4}, LIGHT),
    (EventKind.RDMSR, {"selector": 0x1D9}, LIGHT),
    (EventKind.RDMSR, {"selector": 0x6E0}, LIGHT),
    (EventKind.WRMSR, {"selector": 0x1D9}, LIGHT),
    (EventKind.WRMSR, {"selector": 0x6E0}, LIGHT),
    (EventKind.WRMSR, {"selector": 0x830}, LIGHT),
    (EventKind.MMIO, {"selector": 0xFEC0_0000}, HEAVY),
    (EventKind.MMIO, {"selector": 0xFEE0_0000}, LIGHT),
    (EventKind.MMIO, {"selector": 0xFEE0_0FFF}, LIGHT),
    (EventKind.MMIO, {"selector": 0xFEE0_1000}, HEAVY),
)
# Kind and selector, and the first version of KVM that handles it inside the run loop, on VMX and SVM.
FAST_SINCE: Final[dict[tuple[EventKind, int], dict[int, str]]] = {
    (EventKind.WRMSR, 0x6E0): {VMX: "5.14", SVM: "5.14"},
    (EventKind.WRMSR, 0x830): {VMX: "5.14", SVM: "5.14"},
    (EventKind.PREEMPTION_TIMER, 0): {VMX: "5.14"},
    (EventKind.HLT, 0): {VMX: "7.1", SVM: "7.1"},
    (EventKind.INVD, 0): {VMX: "7.1", SVM: "7.1"},
}
SLEEPS: Final = frozenset({EventKind.HLT, EventKind.MWAIT})
# What leaves the ring-0 session or the run call under others: hmR0VmxLeave's callers, vmx_vcpu_run.
HEAVY_UNDER: Final[dict[str, frozenset[EventKind]]] = {
    "virtualbox": SLEEPS,
    "nvmm": SLEEPS
    | {EventKind.MONITOR, EventKind.RDMSR, EventKind.WRMSR, EventKind.EPT_VIOLATION, EventKind.MMIO},
}
STAYS: Final[tuple[tuple[EventKind, dict[str, int]], ...]] = (
    *((EventKind.MOV_TO_CR, {"arg": register}) for register in (2, 3, 8)),
    *((EventKind.RDMSR, {"selector": msr}) for msr in PASSED),
    *((EventKind.WRMSR, {"selector": msr}) for msr in PASSED),
    *((kind, {}) for kind in (EventKind.RDTSC, EventKind.RDTSCP, EventKind.PAUSE, EventKind.INVLPG)),
    *((kind, {}) for kind in (EventKind.INVPCID, EventKind.MOV_FROM_CR, EventKind.CLTS, EventKind.LMSW)),
    *((kind, {}) for kind in (EventKind.INTN, EventKind.IRET, EventKind.FETCH, EventKind.POPF)),
    *((kind, {}) for kind in (EventKind.MOV_SS, EventKind.STI)),
    *((kind, {"arg": 8}) for kind in (EventKind.READ, EventKind.WRITE)),
)


def class_of(row: tuple[EventKind, dict[str, int], int], policy: str, vendor: int) -> int:
    """Return the class of an exit under a policy."""
    kind, columns, by_profile = row
    since = FAST_SINCE.get((kind, columns.get("selector", 0)), {}).get(vendor)
    version = policy.removeprefix("kvm-").removesuffix("-skip-debug-controls")
    if since and version in VERSIONS and in_span(version, (since, VERSIONS[-1])):
        return FAST
    return HEAVY if kind in HEAVY_UNDER.get(policy, ()) else by_profile


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("row", EXITS, ids=lambda row: f"{row[0].name} {row[1]}")
def test_exits(row: tuple[EventKind, dict[str, int], int], vendor: int) -> None:
    """An event of the profile exits once, by its own name, in the class that the policy has for it."""
    kind, columns = row[:2]
    report = run(stream(event(kind, **columns)), *policies_on(vendor), vendor=vendor)
    for lane in report.lanes:
        (reason,) = exits(lane)
        name = NAMES[kind][vendor == SVM].format(arg=columns.get("arg", 0))
        assert reason_name(vendor, reason) == name
        expected = class_of(row, lane.policy, vendor)
        assert by_class(lane) == tuple(int(expected == number) for number in (FAST, LIGHT, HEAVY)), (
            lane.policy
        )


@pytest.mark.parametrize("vendor", VENDORS)
def test_entering_and_leaving_a_nested_guest(vendor: int) -> None:
    """VMRUN exits, and so does the nested guest for L1; a policy that cannot nest refuses both."""
    reason = 0x78 if vendor == SVM else 12
    controls = NestedControl.LOADS_DEBUG_CONTROLS | NestedControl.SAVES_DEBUG_CONTROLS
    rows = stream(event(EventKind.VMRUN, value=controls), event(EventKind.VMEXIT_TO_L1, selector=reason))
    for lane in run(rows, *policies_on(vendor), vendor=vendor).lanes:
        nests = table_of(lane.policy, vendor).supports_nesting
        assert lane.refused_controls == (0 if nests else 2)
        assert exits(lane) == ({0x80 if vendor == SVM else 20: 1, reason: 1} if nests else {}), lane.policy
        is_not_comparable = lane.verdict == report_pb2.VERDICT_NOT_COMPARABLE
        assert is_not_comparable == (not nests)


@pytest.mark.parametrize("vendor", VENDORS)
def test_stays(vendor: int) -> None:
    """Nothing else exits, under any policy."""
    rows = [event(kind, **columns) for kind, columns in STAYS]
    for lane in run(stream(rows), *policies_on(vendor), vendor=vendor).lanes:
        assert exits(lane) == {}, lane.policy


UD_AC_MC: Final = frozenset({6, 17, 18})
DEPRIVILEGED: Final = frozenset(range(32)) - {2}  # guests that run on the host's own interrupt table
# The vectors that a policy intercepts, from each hypervisor's exception bitmap; KVM's are below.
CATCHES: Final[dict[str, frozenset[int]]] = {
    **dict.fromkeys(("kvm-pvm", "xen-pv"), DEPRIVILEGED),
    **dict.fromkeys(("xen", "trap-and-cluster"), frozenset({1, 17, 18})),
    "virtualbox": frozenset({1, 17}),
    "acrn": frozenset({17, 18}),
    **dict.fromkeys(("bhyve", "haxm", "hardware-switch"), frozenset({18})),
    **dict.fromkeys(("openbsd", "nvmm", "hyperplatform", "hvpp"), frozenset()),
    **dict.fromkeys(("swap-each-entry", "ignore"), UD_AC_MC),
}


def catches(policy: str, vendor: int) -> frozenset[int]:
    """Return the vectors that a policy intercepts; KVM on SVM takes #DB from 4.4 on."""
    takes_db = vendor == VMX or policy not in ("kvm-3.14", "kvm-3.15")
    return CATCHES.get(policy, UD_AC_MC | {1} if takes_db else UD_AC_MC)


@pytest.mark.parametrize("vector", [0, 1, 3, 6, 7, 13, 14, 17, 18, 31])
@pytest.mark.parametrize("vendor", VENDORS)
def test_exceptions(vendor: int, vector: int) -> None:
    """Of recorded exceptions those exit that the policy intercepts, and no other."""
    rows = stream(event(EventKind.EXCEPTION, selector=vector, value=0xFFFF_0FF1))
    report = run(rows, *policies_on(vendor), vendor=vendor, computed=False)
    for lane in report.lanes:
        reason = 0x40 + vector if vendor == SVM else 0
        assert exits(lane) == ({reason: 1} if vector in catches(lane.policy, vendor) else {}), lane.policy


# Of those that are computed the processor's own vectors count, but no intercept of #DB covers INT1 on SVM.
@pytest.mark.parametrize(("kind", "vector"), [(EventKind.INT1, 1), (EventKind.INT3, 3)])
@pytest.mark.parametrize("vendor", VENDORS)
def test_interrupt_instructions(vendor: int, kind: EventKind, vector: int) -> None:
    """INT1 and INT3 exit as the exceptions that they are, where those are intercepted."""
    for lane in run(stream(event(kind)), *policies_on(vendor), vendor=vendor).lanes:
        is_caught = vector in catches(lane.policy, vendor) and (kind, vendor) != (EventKind.INT1, SVM)
        reason = 0x40 + vector if vendor == SVM else 0
        assert exits(lane) == ({reason: 1} if is_caught else {}), lane.policy


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


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_kind_has_a_rung_and_a_name(vendor: int) -> None:
    """Each kind has a class and, where it exits, a reason that the kernel names."""
    profile = make_profile(is_svm=vendor == SVM, rules=())
    groups = {group: {kind for kind in EventKind if profile.groups[kind] == group} for group in Group}
    assert groups[Group.SOFTWARE] == {EventKind.INT1, EventKind.INT3, EventKind.INTN, EventKind.MOV_SS}
    assert groups[Group.NESTED] == {EventKind.VMRUN, EventKind.VMEXIT_TO_L1}
    assert groups[Group.HOST] == {EventKind(number) for number in range(EventKind.SCHED_OUT, 58)}
    exiting = set(EventKind) - groups[Group.QUIET] - groups[Group.HOST] - groups[Group.SOFTWARE]
    by_itself = {EventKind.FETCH, EventKind.READ, EventKind.WRITE, EventKind.EXCEPTION}
    without_a_name = {EventKind.EXIT, EventKind.SIGNAL, EventKind.VMEXIT_TO_L1}
    assert exiting == set(NAMES) | by_itself | without_a_name
    assert set(np.unique(profile.classes).tolist()) <= {FAST, LIGHT, HEAVY}
    for kind in NAMES:
        name = reason_name(vendor, int(profile.exit_codes[kind]))
        assert not name.startswith("0x")
