"""The smallest streams that show each known fault, as the shrinker finds them, with values made plain.

All are of two vCPUs that start on the first of two physical CPUs, with breakpoints computed. Their length
and what they show are the shrinker's; ``test_smallest_streams`` finds them again and holds each to be the
smallest.
"""

from typing import Final, NamedTuple

from exitlab.events import DebuggerControl, EventKind
from hypervisor_svc.engine.vocabulary import Deviation
from tests.engine.build import (
    NOT_RETIRED,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Row,
    event,
    fetch,
    get_dr,
    set_dr,
    staged,
    wrmsr,
)
from tests.engine.kvm_versions import VERSIONS

Lane = tuple[str, int]

A: Final = 0x40_1000
B: Final = 0x40_2000
GD: Final = 1 << 13
OWN: Final = DebuggerControl.ENABLE | DebuggerControl.USE_HW_BP
RUNS: Final = event(EventKind.RDTSC)  # needs the guest to run
OTHER_RUNS: Final = event(EventKind.RDTSC, vcpu=1)


class Example(NamedTuple):
    """A stream, the policies on which its last event shows a fault, and how it is found."""

    rows: list[Row]
    lanes: tuple[Lane, ...]
    rule: Deviation | None = None  # that declares it, if any does
    groups: tuple[str, ...] = ()  # of a mix, that random streams need to show it
    vcpus: int = 2  # in random streams; alone, nobody's faults hide others


def _kvm(*versions: str) -> tuple[Lane, ...]:
    return tuple((f"kvm-{version}", vendor) for version in versions for vendor in VENDORS)


def _on_vmx(*policies: str) -> tuple[Lane, ...]:
    return tuple((policy, VMX) for policy in policies)


_D1: Final = (("kvm-5.14", SVM), *_kvm("5.17", "6.8"))
_ALONE: Final = (*_on_vmx("hyperplatform", "hvpp", "acrn", "ignore"), ("acrn", SVM), ("ignore", SVM))

EXAMPLES: Final[dict[str, Example]] = {
    "B1, a missed breakpoint": Example(
        [set_dr(0, A), set_dr(7, 0x401), set_dr(0, B, vcpu=1), fetch(A)], _kvm("3.15", "4.4")
    ),
    "B1 at the address that no write is needed for": Example(
        [set_dr(7, 0x401), set_dr(0, A, vcpu=1), fetch(0)], _kvm("3.15", "4.4")
    ),
    "D1, a stale DR6": Example([set_dr(6, 0xF), wrmsr(TSC_DEADLINE), get_dr(6)], _D1),
    "a window survives a debugger": Example(
        [
            get_dr(0, marks=NOT_RETIRED),
            *staged(db0=A),
            event(EventKind.HOST_DEBUGGER, selector=OWN),
            get_dr(0),
        ],
        (*_kvm(*VERSIONS[1:]), ("kvm-6.14-skip-debug-controls", VMX)),
        Deviation.OPEN_SURVIVES_DEBUGGER,
        ("debugger", "not_retired"),
    ),
    "B2, registers set from outside come late": Example(
        [*staged(db0=A, dr7=0x401), event(EventKind.SET_DEBUGREGS), fetch(A)],
        _kvm("3.14", "3.15"),
        Deviation.STALE_EFFECTIVE,
        ("outside",),
    ),
    "HAXM keeps another vCPU's addresses": Example(
        [set_dr(0, A), set_dr(7, 0x401), RUNS, OTHER_RUNS, fetch(A)], _on_vmx("haxm")
    ),
    "HAXM lets a user in": Example(
        [set_dr(0, A, modes=3)], _on_vmx("haxm", "hyperplatform"), groups=("user_mode",)
    ),
    "HAXM tests general detect before #UD": Example(
        [event(EventKind.STATE, value=1), set_dr(7, GD), get_dr(4)],
        _on_vmx("haxm"),
        groups=("debug_extensions", "general_detect"),
        vcpus=1,
    ),
    "HAXM reads another vCPU's DR6": Example(
        [RUNS, set_dr(6, 0xF, vcpu=1), OTHER_RUNS, get_dr(6)], _on_vmx("haxm")
    ),
    "HyperPlatform loses DR7": Example([set_dr(7, 0x401), get_dr(7)], _on_vmx("hyperplatform")),
    "nobody switches": Example([set_dr(0, A), get_dr(0, vcpu=1)], _ALONE),
}
