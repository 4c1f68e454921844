"""KVM: intercept MOV DR, and from 3.15 on let the guest run with its own registers until the next exit.

The first access exits; the intercept goes off and the access runs again natively, as do all that
follow. The next exit that leaves the inner run loop saves the registers and arms the intercept in
the same place, so that one operation does both. While the guest keeps a breakpoint enabled, every
entry loads DR0 to DR3, since somebody else may have used them.

Versions differ in a few facts, held in ``Era``; the bugs of some follow from them.

Source: Linux ``arch/x86/kvm``: ``vcpu_enter_guest``, ``handle_dr``, ``dr_interception``,
``vmx_sync_dirty_debug_regs``, ``svm_sync_dirty_debug_regs``, ``kvm_set_dr``, ``kvm_update_dr7`` of the
version named; commits c77fb5fe6f03, 81908bf44340, facb01396989 (3.15), 70e4da7a8ff6 (4.6),
c2fee09fc167 (6.14).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from exitlab import debugreg
from hypervisor_svc.engine import profile
from hypervisor_svc.engine.vocabulary import (
    Action,
    Check,
    Control,
    Debugger,
    Deviation,
    Operations,
    Quirk,
    RegisterClass,
)
from hypervisor_svc.policies.base import SVM, Declared, Do, NoMemory, Policy, Sees, Vendor, do

_LOAD_ADDRESSES: Final = (Action.ZERO_DR7, Action.LOAD_DR0_3)
_SAVE_ALL: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)
_DR7_WRITABLE_BEFORE_3_17: Final = debugreg.DR7_WRITABLE & ~debugreg.DR7_RTM

# Exits that a version handles inside the run loop.
_MSR_FAST: Final = (profile.SUB_TSC_DEADLINE, profile.SUB_X2APIC_ICR)
_VMX_FAST_5_8: Final = (
    *(profile.ClassRule(32, sub, profile.FAST) for sub in _MSR_FAST),
    profile.ClassRule(52, None, profile.FAST),  # preemption timer
)
_SVM_FAST_5_12: Final = tuple(profile.ClassRule(0x7C, sub, profile.FAST) for sub in _MSR_FAST)


class Memory(IntEnum):
    """Whether KVM_DEBUGREG_WONT_EXIT is set."""

    CLOSED = 0
    OPEN = 1


class SkippingMemory(IntEnum):
    """WONT_EXIT, and whether entries leave the debug controls alone."""

    CLOSED = 0
    OPEN = 1
    CLOSED_SKIPPING = 2


NO_QUIRKS: Final = Quirk(0)


@dataclass(frozen=True, slots=True)
class Era:
    """What distinguishes the versions of KVM."""

    version: str
    summary: str
    opens_window: bool = True
    loads_dr6_with_addresses: bool = False  # at every load; else only when a window opens
    recomputes_after_save: bool = True
    resets_dr6_after_save: bool = True
    masks_host_dr7: bool = True  # on entries that load nothing
    refreshes_effective: bool = True  # when registers are set from outside
    tests_existence_first: bool = True  # kvm_require_dr
    reads_controls_before_writing: bool = False  # VMX: the execution controls are not cached
    svm_intercepts_db: bool = True
    svm_keeps_dr6_in_field: bool = False  # arch.dr6 is the VMCB's
    is_fast_path_there: bool = True
    quirks: Quirk = NO_QUIRKS
    dr7_writable: int = debugreg.DR7_WRITABLE
    knows_features: bool = True  # RTM and bus lock in the DR6 masks
    claims_correct: bool = True
    skips_debug_controls: bool = False


_OLD_QUIRKS: Final = Quirk.GD_KEEPS_TRAP_BITS | Quirk.DB_KEEPS_GD | Quirk.FULL_OPERAND

ERA_3_14: Final = Era(
    "3.14",
    "every MOV DR exits and is emulated",
    opens_window=False,
    masks_host_dr7=False,
    refreshes_effective=False,
    tests_existence_first=False,
    reads_controls_before_writing=True,
    svm_intercepts_db=False,
    svm_keeps_dr6_in_field=True,
    is_fast_path_there=False,
    quirks=_OLD_QUIRKS,
    dr7_writable=_DR7_WRITABLE_BEFORE_3_17,
    knows_features=False,
)
ERA_3_15: Final = Era(
    "3.15",
    "the first MOV DR exits, the rest run free; misses breakpoints (fixed in 4.6)",
    loads_dr6_with_addresses=True,
    recomputes_after_save=False,
    resets_dr6_after_save=False,
    masks_host_dr7=False,
    refreshes_effective=False,
    tests_existence_first=False,
    reads_controls_before_writing=True,
    svm_intercepts_db=False,
    svm_keeps_dr6_in_field=True,
    is_fast_path_there=False,
    quirks=_OLD_QUIRKS,
    dr7_writable=_DR7_WRITABLE_BEFORE_3_17,
    knows_features=False,
    claims_correct=False,
)
ERA_6_14: Final = Era("6.14", "the first MOV DR exits, the rest run free until the next slow exit")
ERA_6_14_SKIP: Final = Era(
    "6.14-skip-debug-controls",
    "6.14 that leaves the VM-entry debug controls alone while DR7 is the host's 0x400",
    skips_debug_controls=True,
)
ERAS: Final = (ERA_3_14, ERA_3_15, ERA_6_14, ERA_6_14_SKIP)


_SEEN: Final = "read in that version's source; not tested on it"
_EMULATED_DEVIATIONS: Final = (
    Declared(
        Deviation.EMULATED_MASKS,
        "an emulated write of DR7 cannot set bit 11, nor one of DR6 the RTM and bus-lock bits",
        "kvm_host.h DR7_VOLATILE, DR6_FIXED_1 up to 3.16; " + _SEEN,
    ),
    Declared(
        Deviation.RAW_READS,
        "DR6 and DR7 set by KVM_SET_DEBUGREGS read back as set, without the fixed bits",
        "kvm_vcpu_ioctl_x86_set_debugregs, kvm_get_dr; measured on a newer KVM's emulator",
    ),
)
_STALE: Final = Declared(
    Deviation.STALE_EFFECTIVE,
    "addresses set by KVM_SET_DEBUGREGS reach the hardware only after the guest writes them itself",
    "kvm_vcpu_ioctl_x86_set_debugregs of 3.14 and 3.15 leaves eff_db; fixed by ae561edeb421",
)
_FULL: Final = Declared(
    Deviation.FULL_OPERAND,
    "an emulated write outside 64-bit mode takes the register's high half too",
    "handle_dr up to 3.15 reads arch.regs unmasked; " + _SEEN,
)
_VMX_CHECKS: Final = (
    Declared(
        Deviation.CHECK_ORDER,
        "CPL and general detect are tested before #UD of DR4 and DR5",
        "handle_dr up to 3.16",
    ),
    Declared(
        Deviation.GD_KEEPS_TRAP_BITS,
        "an emulated general-detect exception leaves B0 to B3 of DR6 set",
        "handle_dr up to 3.16: dr6 |= BD",
    ),
    Declared(
        Deviation.DB_KEEPS_GD,
        "a debug exception that exits does not clear DR7.GD, so the handler's first MOV DR faults again",
        "handle_exception up to 3.16; " + _SEEN,
    ),
)
_SVM_ONLY: Final = (
    Declared(
        Deviation.SKIPS_ON_FAULT,
        "an emulated write whose high bits fault is skipped all the same",
        "dr_interception up to 5.11 ignores kvm_set_dr's result",
    ),
    Declared(
        Deviation.SHADOW_KEEPS_GD,
        "the processor clears DR7.GD without an exit, and emulated reads still show it",
        "#DB is not intercepted up to 4.3; inferred from the source",
    ),
)


def _deviations(era: Era, *, is_svm: bool) -> tuple[Declared, ...]:
    if era.refreshes_effective:
        return ()
    if era.opens_window:
        return (_STALE,) if is_svm else (_STALE, *_VMX_CHECKS)
    vendor_only = _SVM_ONLY if is_svm else _VMX_CHECKS
    return (*_EMULATED_DEVIATIONS, _STALE, _FULL, *vendor_only)


class Kvm(Policy):
    """KVM of one era on one vendor."""

    def __init__(self, era: Era, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        self.era = era
        self.is_svm = vendor == SVM
        self.name = f"kvm-{era.version}"
        self.vendor = vendor
        self.summary = era.summary
        self.source = f"Linux {era.version.split('-')[0]} arch/x86/kvm"
        self.claims_correct = era.claims_correct
        if era.skips_debug_controls:
            self.memories = SkippingMemory
        else:
            self.memories = Memory if era.opens_window else NoMemory
        if not era.tests_existence_first:
            self.check_order = (Check.GP, Check.GD, Check.UD)
        intercepts_db = era.svm_intercepts_db or not self.is_svm
        self.intercepted_exceptions = (
            *((debugreg.VECTOR_DB,) if intercepts_db else ()),
            *(debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC),
        )
        if era.is_fast_path_there:
            self.class_rules = _SVM_FAST_5_12 if self.is_svm else _VMX_FAST_5_8
        if era.reads_controls_before_writing and not self.is_svm:
            self.costs = {Action.ARM: Operations(vmreads=1, vmwrites=1)}
        # handle_dr reads the exit qualification, and GUEST_DR7 for general detect.
        self.trap_operations = Operations(vmreads=0 if self.is_svm else 2)
        if era.knows_features:
            self.emulated_dr6_writable = dr6_writable
            self.emulated_dr6_fixed = debugreg.DR6_RESET & ~dr6_writable
        self.emulated_dr7_writable = era.dr7_writable
        self.quirks = era.quirks
        if self.is_svm and not era.opens_window:
            self.quirks |= Quirk.SKIPS_ON_FAULT
        self.deviations = _deviations(era, is_svm=self.is_svm)

    def _is_open(self, sees: Sees) -> bool:
        return self.era.opens_window and sees.memory == Memory.OPEN

    def enter_loop(self, sees: Sees) -> Do | None:
        """Load what the guest needs, before the first entry of the run loop."""
        era = self.era
        is_skipping = era.skips_debug_controls and sees.memory == SkippingMemory.CLOSED_SKIPPING
        controls = (Action.CONTROLS_ON,) if is_skipping else ()
        closed = SkippingMemory.CLOSED if is_skipping else None
        # x86.c of 3.15 writes DR6 on both vendors. On SVM the VMCB's replaces it at once: a bare write.
        bare = (Action.DR7_OFF,) if era.loads_dr6_with_addresses and self.is_svm else ()
        if self._is_open(sees):
            return do(_LOAD_ADDRESSES, Action.LOAD_DR6, bare)
        if sees.breakpoints_enabled:
            dr6 = (Action.LOAD_DR6, *bare) if era.loads_dr6_with_addresses else ()
            return do(_LOAD_ADDRESSES, dr6, controls, memory=closed)
        if era.masks_host_dr7 and sees.host_breakpoints:
            return do(Action.ZERO_DR7, controls, memory=closed)
        if era.skips_debug_controls:
            if not sees.field_dr7_at_reset:
                return do(controls, memory=closed)
            if not is_skipping:
                return do(Action.CONTROLS_OFF, memory=SkippingMemory.CLOSED_SKIPPING)
        return None

    def enter_guest(self, sees: Sees) -> Do | None:
        """On SVM, put DR6 into the VMCB."""
        if not self.is_svm:
            return None
        if self.era.svm_keeps_dr6_in_field:
            return do(Action.LOAD_DR6)
        return None if self._is_open(sees) else do(Action.CLEAN_DR6)

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """On SVM up to 5.6, the VMCB's DR6 is the guest's."""
        return do(Action.SAVE_DR6) if self.is_svm and self.era.svm_keeps_dr6_in_field else None

    def leave_loop(self, sees: Sees) -> Do | None:
        """Close the window: save the registers and arm the intercept; give the host its own back."""
        host = (Action.HOST_RESTORE,) if sees.host_breakpoints else ()
        if not self._is_open(sees):
            return do(host) if host else None
        recompute = (Action.RECOMPUTE,) if self.era.recomputes_after_save else ()
        reset = (Action.RESET_DR6,) if self.era.resets_dr6_after_save and not self.is_svm else ()
        return do(_SAVE_ALL, Action.ARM, Action.EFFECTIVE, recompute, reset, host, memory=Memory.CLOSED)

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Fault as the architecture would, else open the window, else emulate."""
        era = self.era
        check = sees.check
        is_late = check is Check.UD and not era.tests_existence_first
        if check is not Check.NONE and not (is_late and era.opens_window):
            return do(Action.INJECT)
        if era.opens_window and sees.debugger is Debugger.NONE:
            controls: tuple[Action, ...] = ()
            if era.skips_debug_controls and sees.memory == SkippingMemory.CLOSED_SKIPPING:
                controls = (Action.CONTROLS_ON,)
            return do(Action.DISARM, Action.REEXECUTE, controls, memory=Memory.OPEN)
        if check is not Check.NONE:
            return do(Action.INJECT)
        if sees.is_write and sees.register_class is RegisterClass.CONTROL:
            return do(Action.EMULATE, Action.RECOMPUTE)
        return do(Action.EMULATE)

    def db_exit(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Put the cause into the shadow DR6, for the exception that is injected."""
        return do(Action.MERGE_DB_SHADOW)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over registers that were set from outside."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        effective = (Action.EFFECTIVE,) if self.era.refreshes_effective else ()
        return do(effective, Action.RECOMPUTE)
