"""The VM profile ``kvm-default``: which events exit, under which reason and in which class.

Reasons are the kernel's numbers (VMX basic exit reasons, SVM exit codes). The profile is the
default; a policy's intercepted exceptions and class rules override it.

Source: Linux 6.14 ``arch/x86/kvm``: ``setup_vmcs_config``, ``vmx_possible_passthrough_msrs``,
``init_vmcb``; and what recorded guests show.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.events import EventKind

NAME: Final = "kvm-default"

MSR_TSC_DEADLINE: Final = np.uint64(0x6E0)
MSR_X2APIC_ICR: Final = np.uint64(0x830)
LOCAL_APIC_PAGE: Final = np.uint64(0xFEE00)
PASSED_MSRS: Final = (0xC0000100, 0xC0000101, 0xC0000102, 0x174, 0x175, 0x176, 0x10, 0x48, 0x49)

FAST: Final = 1
LIGHT: Final = 2
HEAVY: Final = 3

SUB_TSC_DEADLINE: Final = 1
SUB_X2APIC_ICR: Final = 2
SUB_LOCAL_APIC: Final = 3
SUB_KICK: Final = 4
SUB_DEVICE_MEMORY: Final = 5
SUB_REASONS: Final = 6

EXCEPTION_VECTORS: Final = 32
CLASSED_CODES: Final = 2048  # larger reasons are light


class Group(IntEnum):
    """What the loop does with a kind of event."""

    QUIET = 0  # needs the guest to run, never exits
    EXITING = 1
    DR = 2
    MATCH = 3
    MSR = 4
    CR_WRITE = 5
    MMIO = 6
    EXCEPTION = 7
    RECORDED_EXIT = 8
    SIGNAL = 9
    HOST = 10
    SOFTWARE = 11  # raises an exception by itself, or holds one back
    NESTED = 12


_SPECIAL_GROUPS: Final = {
    Group.DR: (EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR),
    Group.MATCH: (EventKind.FETCH, EventKind.READ, EventKind.WRITE),
    Group.MSR: (EventKind.RDMSR, EventKind.WRMSR),
    Group.CR_WRITE: (EventKind.MOV_TO_CR,),
    Group.MMIO: (EventKind.MMIO,),
    Group.EXCEPTION: (EventKind.EXCEPTION,),
    Group.RECORDED_EXIT: (EventKind.EXIT,),
    Group.SIGNAL: (EventKind.SIGNAL,),
    Group.SOFTWARE: (EventKind.INT1, EventKind.INT3, EventKind.INTN, EventKind.MOV_SS),
    Group.NESTED: (EventKind.VMRUN, EventKind.VMEXIT_TO_L1),
    Group.HOST: tuple(EventKind(number) for number in range(EventKind.SCHED_OUT, EventKind.ADVANCE + 1)),
}

# Kind: (VMX reason, SVM code). SVM's control-register writes are 0x10 + register.
_EXITS: Final[dict[EventKind, tuple[int, int]]] = {
    EventKind.MOV_TO_DR: (29, 0x30),
    EventKind.MOV_FROM_DR: (29, 0x20),
    EventKind.MOV_TO_CR: (28, 0x10),
    EventKind.CPUID: (10, 0x72),
    EventKind.HLT: (12, 0x78),
    EventKind.IN: (30, 0x7B),
    EventKind.OUT: (30, 0x7B),
    EventKind.INS: (30, 0x7B),
    EventKind.OUTS: (30, 0x7B),
    EventKind.RDMSR: (31, 0x7C),
    EventKind.WRMSR: (32, 0x7C),
    EventKind.RDPMC: (15, 0x6F),
    EventKind.MONITOR: (39, 0x8A),
    EventKind.MWAIT: (36, 0x8B),
    EventKind.VMCALL: (18, 0x81),
    EventKind.XSETBV: (55, 0x8D),
    EventKind.WBINVD: (54, 0x89),
    EventKind.INVD: (13, 0x76),
    EventKind.MMIO: (48, 0x400),
    EventKind.EPT_VIOLATION: (48, 0x400),
    EventKind.EXTERNAL_INTERRUPT: (1, 0x60),
    EventKind.NMI: (0, 0x61),
    EventKind.PREEMPTION_TIMER: (52, 0x60),
    EventKind.VMRUN: (20, 0x80),
}


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What exits, as arrays indexed by kind, vector or code."""

    groups: NDArray[np.uint8]  # (64,)
    exit_codes: NDArray[np.uint32]  # (64,)
    exception_codes: NDArray[np.uint32]  # (EXCEPTION_VECTORS,)
    classes: NDArray[np.uint8]  # (CLASSED_CODES, SUB_REASONS)
    passed_msrs: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class ClassRule:
    """An exit reason (with a sub-reason, or None for any) that is handled on another rung."""

    reason: int
    sub_reason: int | None
    exit_class: int


@lru_cache(maxsize=256)  # many sessions run the same policies
def make_profile(*, is_svm: bool, rules: tuple[ClassRule, ...]) -> Profile:
    """Return kvm-default on a vendor with a policy's class rules, of which the first that fits decides.

    Nobody may change the arrays.
    """
    groups = np.full(64, Group.QUIET, np.uint8)
    codes = np.zeros(64, np.uint32)
    for kind, numbers in _EXITS.items():
        groups[kind] = Group.EXITING
        codes[kind] = numbers[is_svm]
    for group, kinds in _SPECIAL_GROUPS.items():
        groups[list(kinds)] = group
    classes = np.full((CLASSED_CODES, SUB_REASONS), LIGHT, np.uint8)
    classes[codes[EventKind.IN]] = HEAVY
    classes[codes[EventKind.MMIO], SUB_DEVICE_MEMORY] = HEAVY
    for rule in reversed(rules):
        if rule.reason < CLASSED_CODES:
            classes[rule.reason, slice(None) if rule.sub_reason is None else rule.sub_reason] = (
                rule.exit_class
            )
    vectors = np.arange(EXCEPTION_VECTORS, dtype=np.uint32)
    exceptions = vectors + 0x40 if is_svm else np.zeros_like(vectors)
    return Profile(
        groups=groups,
        exit_codes=codes,
        exception_codes=exceptions.astype(np.uint32),
        classes=classes,
        passed_msrs=np.array(PASSED_MSRS, np.uint32),
    )
