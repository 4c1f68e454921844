"""What each version of KVM declares, where it shows, and what it tells a host debugger.

Source: Linux ``arch/x86/kvm`` of the versions named.
"""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind, Mode
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.vocabulary import Deviation, Quirk
from hypervisor_svc.policies import policy_table
from tests.engine.build import (
    NOT_RETIRED,
    SVM,
    VENDOR_OF,
    VENDORS,
    VMX,
    Row,
    cpuid,
    event,
    fetch,
    get_dr,
    set_debugregs,
    set_dr,
    table_of,
)
from tests.engine.kvm_versions import (
    ALWAYS,
    ATTACH,
    DECLARED,
    OWN,
    SAME,
    VERSIONS,
    Changes,
    Span,
    at,
    debugger,
    in_span,
    lanes,
)

A: Final = 0x40_1000
B: Final = 0x40_2000
GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
STEP: Final = int(DebuggerControl.ENABLE | DebuggerControl.SINGLESTEP)

# A rule or quirk, and the first and last version that has it on VMX and on SVM.
DEVIATIONS: Final[dict[Deviation, tuple[Span, Span]]] = {
    Deviation.CHECK_ORDER: (("3.14", "3.15"), None),
    Deviation.GD_KEEPS_TRAP_BITS: (("3.14", "3.15"), None),
    Deviation.DB_KEEPS_GD: (("3.14", "3.15"), None),
    Deviation.EMULATED_MASKS: (("3.14", "3.15"), ("3.14", "3.15")),
    Deviation.STALE_EFFECTIVE: (("3.14", "3.15"), ("3.14", "3.15")),
    Deviation.RAW_READS: (ALWAYS, ALWAYS),
    Deviation.SKIPS_ON_FAULT: (None, ("3.14", "5.7")),
    Deviation.FULL_OPERAND: (("3.14", "3.15"), ("3.14", "5.7")),
    Deviation.SHADOW_KEEPS_GD: (None, ("3.14", "3.15")),
    Deviation.IO_BREAKPOINT: (ALWAYS, ALWAYS),
    Deviation.INT1_AS_DB: (ALWAYS, None),
    Deviation.OPEN_SURVIVES_DEBUGGER: (("3.15", "7.1"), ("3.15", "7.1")),
}
QUIRKS: Final[dict[Quirk, tuple[Span, Span]]] = {
    Quirk.GD_KEEPS_TRAP_BITS: (("3.14", "3.15"), None),
    Quirk.DB_KEEPS_GD: (("3.14", "3.15"), None),
    Quirk.SKIPS_ON_FAULT: (None, ("3.14", "5.7")),
    Quirk.FULL_OPERAND: (("3.14", "3.15"), ("3.14", "5.7")),
    Quirk.STOP_WITHOUT_RTM: (("4.4", "5.4"), None),
    Quirk.STOP_SHOWS_SHADOW: (("3.14", "5.4"), None),
    Quirk.STOP_UNWRITTEN: (None, ("3.14", "5.4")),
    Quirk.INT1_NOT_SKIPPED: (("3.14", "3.15"), None),
    Quirk.NESTED_NEEDS_CONTROLS: (("3.14", "3.15"), None),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_deviations_and_quirks_of_each_version(vendor: int, version: str) -> None:
    """Each version has the deviations and quirks of its source, and each deviation names its source."""
    table = table_of(f"kvm-{version}", vendor)
    spans = {rule.name: both[vendor == SVM] for rule, both in DEVIATIONS.items()}
    assert {one.rule for one in table.deviations} == {
        name for name, span in spans.items() if in_span(version, span)
    }
    assert all(one.text and one.source for one in table.deviations)
    spans = {quirk.name or "": both[vendor == SVM] for quirk, both in QUIRKS.items()}
    assert set(table.quirks) == {name for name, span in spans.items() if in_span(version, span)}


@pytest.mark.parametrize(
    ("features", "last"),
    [
        (policy_pb2.CpuFeatures(rtm=True), "3.15"),
        (policy_pb2.CpuFeatures(bus_lock_detect=True), "5.7"),
    ],
)
@pytest.mark.parametrize("vendor", VENDORS)
def test_masks_of_features_that_a_version_does_not_know(
    vendor: int, features: policy_pb2.CpuFeatures, last: str
) -> None:
    """A version whose emulated masks lack what the guest's CPU has declares it: RTM, then bus locks."""
    for version in VERSIONS:
        table = policy_table(f"kvm-{version}", VENDOR_OF[vendor], features)
        declares = Deviation.EMULATED_MASKS.name in {one.rule for one in table.deviations}
        assert declares == in_span(version, ("3.14", last)), version


# A rule, a stream on which it shows at the last event, the versions on VMX and on SVM.
OUT_60: Final = event(EventKind.OUT, arg=1, selector=0x60)
NARROW: Final = int(Mode.OPERAND_32)
SHOWN: Final[tuple[tuple[Deviation, list[Row], Span, Span], ...]] = (
    (Deviation.CHECK_ORDER, [DE, *debugger(ATTACH), get_dr(4, modes=3)], ("3.14", "3.15"), None),
    (
        Deviation.GD_KEEPS_TRAP_BITS,
        [set_dr(6, 1), set_dr(7, GD), cpuid(), get_dr(0)],
        ("3.14", "3.15"),
        None,
    ),
    (Deviation.DB_KEEPS_GD, [set_dr(0, A), set_dr(7, GD | 1), fetch(A)], ("3.14", "3.15"), None),
    (
        Deviation.EMULATED_MASKS,
        [*debugger(ATTACH), set_dr(7, 0x800), get_dr(7)],
        ("3.14", "3.15"),
        ("3.14", "3.15"),
    ),
    (Deviation.RAW_READS, [*debugger(ATTACH), *set_debugregs(dr7=0), get_dr(7)], ALWAYS, ALWAYS),
    (Deviation.SKIPS_ON_FAULT, [*debugger(ATTACH), set_dr(7, 1 << 32)], None, ("3.14", "5.7")),
    (
        Deviation.FULL_OPERAND,
        [*debugger(ATTACH), set_dr(0, 1 << 40, modes=NARROW), get_dr(0)],
        ("3.14", "3.15"),
        ("3.14", "5.7"),
    ),
    (Deviation.SHADOW_KEEPS_GD, [*debugger(ATTACH), set_dr(7, GD), get_dr(0)], None, ("3.14", "3.15")),
    (Deviation.IO_BREAKPOINT, [DE, set_dr(0, 0x60), set_dr(7, 0x2_0401), OUT_60], ALWAYS, ALWAYS),
    (Deviation.INT1_AS_DB, [set_dr(6, 1), event(EventKind.INT1)], ALWAYS, None),
    (
        Deviation.OPEN_SURVIVES_DEBUGGER,
        [get_dr(0, marks=NOT_RETIRED), *debugger(OWN, db0=B, dr7=0x402), get_dr(0)],
        ("3.15", "7.1"),
        ("3.15", "7.1"),
    ),
)


ON_VENDORS: Final = [
    (rule, rows, span, vendor)
    for rule, rows, *spans in SHOWN
    for vendor, span in zip(VENDORS, spans, strict=True)
    if span is not None
]


@pytest.mark.parametrize(("rule", "rows", "span", "vendor"), ON_VENDORS)
def test_where_a_deviation_shows(rule: Deviation, rows: list[Row], span: Span, vendor: int) -> None:
    """A deviation shows, and is declared, in just the versions that have it; no other version differs."""
    for version, lane in lanes(rows, vendor=vendor).items():
        if in_span(version, span):
            first = {one.rule: one.first_event for one in lane.declared}
            assert (lane.verdict, first) == (DECLARED, {rule.name: len(rows) - 1}), version
        else:
            assert (lane.verdict, list(lane.declared)) == (SAME, []), version


def test_a_window_survives_a_debugger_that_only_steps() -> None:
    """On VMX it is told of a general detect that KVM would have given to the guest."""
    rows = [get_dr(0, marks=NOT_RETIRED), *debugger(STEP), *set_debugregs(dr7=GD), get_dr(0)]
    found = lanes(rows, vendor=VMX)
    for version in VERSIONS[VERSIONS.index("4.4") :]:
        (declared,) = found[version].declared
        assert declared.rule == Deviation.OPEN_SURVIVES_DEBUGGER.name, version
        assert (found[version].verdict, declared.first_event) == (DECLARED, len(rows) - 1)


def test_what_a_trap_shows_otherwise_outlives_the_write_that_it_follows() -> None:
    """With a DR7 that a general detect of its own refused, the step after a MOV to DR6 has another cause."""
    rows = [
        *(set_dr(7, 0xBEA3_24A4, modes=int(Mode.TF)), set_dr(7, 0x70_0000)),
        *(event(EventKind.MOV_SS, arg=1, value=2), set_dr(6, 0xFFFF_FFFF, modes=int(Mode.TF))),
    ]
    for version in ("3.14", "3.15"):
        lane = lanes(rows, vendor=VMX)[version]
        assert (lane.verdict, lane.declared[0].rule) == (DECLARED, Deviation.DB_KEEPS_GD.name)


# What a debugger does, what the guest does, and (exception, DR6, DR7) told on VMX and on SVM.
Told = tuple[int, int, int]
TF: Final = int(Mode.TF)
STOPS: Final[dict[str, tuple[list[Row], Changes[Told], Changes[Told]]]] = {
    "code breakpoint": (
        [*debugger(OWN, db0=A, dr7=0x402), fetch(A)],
        {"3.14": (1, 0xFFFF_0FF1, 0x402), "4.4": (1, 0xFFFE_0FF1, 0x402), "5.7": (1, 0xFFFF_0FF1, 0x402)},
        {"3.14": (1, 0, 0), "5.7": (1, 0xFFFF_0FF1, 0x402)},
    ),
    "single step": (
        [*debugger(STEP), event(EventKind.RDTSC, modes=TF)],
        {"3.14": (1, 0xFFFF_4FF0, 0x400), "4.4": (1, 0xFFFE_4FF0, 0x400), "5.7": (1, 0xFFFF_4FF0, 0x400)},
        {"3.14": (1, 0, 0), "5.7": (1, 0xFFFF_4FF0, 0x400)},
    ),
    "single step of an emulated instruction": (
        [*debugger(STEP), cpuid(modes=TF)],
        {"3.14": (1, 0xFFFF_4FF0, 0)},
        {"3.14": (1, 0xFFFF_4FF0, 0)},
    ),
    "software breakpoint": (
        [*debugger(ATTACH), event(EventKind.INT3)],
        {"3.14": (3, 0, 0)},
        {"3.14": (3, 0, 0)},
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("what", STOPS)
def test_what_a_debugger_is_told(what: str, vendor: int) -> None:
    """A host debugger is told of a stop as the version fills in KVM_EXIT_DEBUG."""
    rows, on_vmx, on_svm = STOPS[what]
    for version, lane in lanes(rows, vendor=vendor).items():
        told = [(one.exception, one.dr6, one.dr7) for one in lane.debug_exits]
        assert told == [at(on_svm if vendor == SVM else on_vmx, version)], version


def test_general_detect_of_a_debugger_on_vmx() -> None:
    """Told of the debugger's general detect: up to 5.6 with the guest's DR6, then with BD alone."""
    rows = [set_dr(6, 0x4), *debugger(OWN, dr7=0x2400), get_dr(0)]
    dr6 = {"3.14": 0xFFFF_0FF4, "5.7": 0xFFFF_2FF0}
    for version, lane in lanes(rows, vendor=VMX).items():
        told = [(one.exception, one.dr6, one.dr7) for one in lane.debug_exits]
        assert told == [(1, at(dr6, version), 0x2400)], version
