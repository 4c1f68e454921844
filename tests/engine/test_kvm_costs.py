"""What each version of KVM pays: operations of each step of the dirty window, classes of exits, bills.

Source: Linux ``arch/x86/kvm`` of the versions named, counted in operations.
"""

from typing import Final

import pytest

from exitlab.events import EventKind
from tests.engine.build import (
    DECISIONS,
    FAST,
    HEAVY,
    LIGHT,
    NOT_RETIRED,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    Counts,
    Row,
    by_class,
    context_switch,
    counts,
    cpuid,
    engine_of,
    event,
    get_dr,
    host_breakpoints,
    interrupt,
    outcomes,
    set_debugregs,
    set_dr,
    stream,
    total,
    wrmsr,
)
from tests.engine.kvm_versions import VERSIONS, Changes, at, lanes

NOTHING: Final = Counts()
QUIET: Final = event(EventKind.RDTSC)  # needs the guest, never exits
BURST: Final = context_switch()
X2APIC_ICR: Final = 0x830
DEBUGCTL: Final = 0x1D9


def spent(version: str, vendor: int, *rows: Row | list[Row]) -> list[Counts]:
    """Return the operations of each event of one vCPU that is alone."""
    parts = engine_of(f"kvm-{version}", vendor=vendor).feed(stream(*rows), DECISIONS)
    return [
        total((counts(one.synchronization), counts(one.standing))) for one in outcomes(parts, 0).decisions
    ]


# What a step of the dirty window costs: event rows, which of them is measured, VMX, SVM.
OPENED: Final = [QUIET, get_dr(0, marks=NOT_RETIRED), QUIET, cpuid()]
TRAP, ENTRY, EXIT = 1, 2, 3
IS_SET: Final = set_debugregs(dr7=0x401)
HOSTED: Final = host_breakpoints(db0=0x1000, dr7=0x402)
RESET: Final = event(EventKind.RESET)
Case = tuple[list[Row], int, Changes[Counts], Changes[Counts]]
COSTS: Final[dict[str, Case]] = {
    "entry, clean": ([QUIET, cpuid(), QUIET], 2, {"3.14": NOTHING}, {"3.14": NOTHING}),
    "entry, breakpoints enabled": (
        [*IS_SET, QUIET, cpuid(), QUIET],
        len(IS_SET) + 2,
        {"3.14": Counts(writes=5), "3.15": Counts(writes=6), "5.17": Counts(writes=5)},
        {"3.14": Counts(writes=5), "3.15": Counts(writes=6), "5.17": Counts(writes=5)},
    ),
    # 3.14 emulates; 3.15 reads GUEST_DR7 and the control; from 3.17 on the qualification comes first.
    "MOV DR exit": (
        OPENED,
        TRAP,
        {
            "3.14": Counts(vmreads=2),
            "3.15": Counts(vmreads=2, vmwrites=1),
            "4.4": Counts(vmreads=3, vmwrites=1),
            "5.4": Counts(vmreads=2, vmwrites=1),
        },
        {"3.14": NOTHING},
    ),
    "entry, window open": (
        OPENED,
        ENTRY,
        {"3.14": NOTHING, "3.15": Counts(writes=6)},
        {"3.14": NOTHING, "3.15": Counts(writes=6), "5.17": Counts(writes=5)},
    ),
    "exit, window open": (
        OPENED,
        EXIT,
        {
            "3.14": NOTHING,
            "3.15": Counts(5, 0, 2, 1),
            "4.6": Counts(5, 0, 2, 2),
            "5.4": Counts(5, 0, 1, 2),
            "5.17": Counts(5, 1, 1, 2),
        },
        {"3.14": NOTHING, "3.15": Counts(reads=4)},
    ),
    "entry, host breakpoints, clean": (
        [*HOSTED, QUIET],
        len(HOSTED),
        {"3.14": NOTHING, "5.14": Counts(writes=1)},
        {"3.14": NOTHING, "5.14": Counts(writes=1)},
    ),
    "exit, host breakpoints": (
        [*HOSTED, cpuid()],
        len(HOSTED),
        {"3.14": Counts(writes=6), "5.14": Counts(writes=7)},  # the entry before it included
        {"3.14": Counts(writes=6), "5.14": Counts(writes=7)},
    ),
    # KVM_DEBUGREG_RELOAD, 4.1 to 5.16: set from outside and by a reset, cleared by the load.
    "entry after registers are set": (
        [*set_debugregs(), QUIET],
        len(set_debugregs()),
        {"3.14": NOTHING, "4.4": Counts(writes=6), "5.17": NOTHING},
        {"3.14": NOTHING, "4.4": Counts(writes=6), "5.17": NOTHING},
    ),
    "entry after a reset": (
        [RESET, QUIET],
        1,
        {"3.14": NOTHING, "4.4": Counts(writes=6), "5.17": NOTHING},
        {"3.14": NOTHING, "4.4": Counts(writes=6), "5.17": NOTHING},
    ),
    "second entry after a reset": ([RESET, cpuid(), QUIET], 2, {"3.14": NOTHING}, {"3.14": NOTHING}),
    # kvm_arch_vcpu_put, 4.16 to 5.16, when the run ioctl is left.
    "exit to user space": (
        [QUIET, event(EventKind.OUT)],
        1,
        {"3.14": NOTHING, "5.4": Counts(writes=1), "5.17": NOTHING},
        {"3.14": NOTHING, "5.4": Counts(writes=1), "5.17": NOTHING},
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("what", COSTS)
def test_operations_of_each_step(what: str, vendor: int, version: str) -> None:
    """Each step of the dirty window costs what the version's source does."""
    rows, place, on_vmx, on_svm = COSTS[what]
    assert spent(version, vendor, rows)[place] == at(on_svm if vendor == SVM else on_vmx, version)


@pytest.mark.parametrize("vendor", VENDORS)
def test_operations_of_emulation(vendor: int) -> None:
    """An emulated access of 3.14 reads the qualification and GUEST_DR7, and writes the latter for DR7."""
    read, control = spent("3.14", vendor, get_dr(0), set_dr(7, 0x400))
    assert read == (NOTHING if vendor == SVM else Counts(vmreads=2))
    assert control == (NOTHING if vendor == SVM else Counts(vmreads=2, vmwrites=1))


# An event, and its class on VMX and on SVM.
CLASSES: Final[tuple[tuple[Row, Changes[int], Changes[int]], ...]] = (
    (wrmsr(TSC_DEADLINE), {"3.14": LIGHT, "5.14": FAST}, {"3.14": LIGHT, "5.14": FAST}),
    (wrmsr(X2APIC_ICR), {"3.14": LIGHT, "5.14": FAST}, {"3.14": LIGHT, "5.14": FAST}),
    (wrmsr(DEBUGCTL), {"3.14": LIGHT}, {"3.14": LIGHT}),
    (event(EventKind.PREEMPTION_TIMER), {"3.14": LIGHT, "5.14": FAST}, {"3.14": LIGHT}),
    (event(EventKind.HLT), {"3.14": LIGHT, "7.1": FAST}, {"3.14": LIGHT, "7.1": FAST}),
    (event(EventKind.INVD), {"3.14": LIGHT, "7.1": FAST}, {"3.14": LIGHT, "7.1": FAST}),
    (event(EventKind.OUT), {"3.14": HEAVY}, {"3.14": HEAVY}),
)


@pytest.mark.parametrize(("row", "on_vmx", "on_svm"), CLASSES)
@pytest.mark.parametrize("vendor", VENDORS)
def test_class_of_exits(row: Row, on_vmx: Changes[int], on_svm: Changes[int], vendor: int) -> None:
    """An exit is fast in the versions that handle it inside the run loop, and in no other."""
    for version, lane in lanes(row, vendor=vendor).items():
        exit_class = at(on_svm if vendor == SVM else on_vmx, version)
        assert by_class(lane) == tuple(int(exit_class == one) for one in (FAST, LIGHT, HEAVY)), version


@pytest.mark.parametrize("vendor", VENDORS)
def test_entry_after_the_burst(vendor: int) -> None:
    """D2: a burst that ends with breakpoints enabled makes later entries dear, but for B1's stale belief."""
    writes = {"3.14": 5, "3.15": 0, "4.6": 6, "5.17": 5}
    for version in VERSIONS:
        *_, last = spent(version, vendor, BURST, interrupt(), QUIET, interrupt(), QUIET)
        assert last == Counts(writes=at(writes, version)), version
