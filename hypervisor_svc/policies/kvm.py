"""KVM: intercept MOV DR, and from 3.15 on let the guest run with its own registers until the next exit.

The first access exits; the intercept goes off and the access runs again natively, as do all that
follow. The next exit that leaves the inner run loop saves the registers and arms the intercept in
the same place, so that one operation does both. While the guest keeps a breakpoint enabled, every
entry loads DR0 to DR3, since somebody else may have used them. While a host debugger is attached no
window opens, and every access is emulated.

Versions differ in the facts of ``kvm_eras``; the bugs of some follow from them. What is known of them
and not modelled stands in ``kvm_deviations``.

Source: Linux ``arch/x86/kvm``: ``vcpu_enter_guest``, ``handle_dr``, ``dr_interception``,
``vmx_sync_dirty_debug_regs``, ``svm_sync_dirty_debug_regs``, ``svm_vcpu_run``, ``kvm_set_dr``,
``kvm_update_dr0123``, ``kvm_update_dr7``, ``kvm_arch_vcpu_put``,
``kvm_arch_vcpu_ioctl_set_guest_debug`` of the version named.
"""

from enum import IntEnum
from typing import Final

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import (
    Action,
    Check,
    Control,
    Debugger,
    Operations,
    RegisterClass,
)
from hypervisor_svc.policies.base import SVM, Do, NoMemory, Policy, Sees, Vendor, do
from hypervisor_svc.policies.kvm_deviations import deviations, quirks
from hypervisor_svc.policies.kvm_eras import ERA_3_15, ERA_6_14, ERAS, Dr6Load, Era

__all__ = ("ERAS", "ERA_3_15", "ERA_6_14", "Era", "Kvm")

_LOAD_ADDRESSES: Final = (Action.ZERO_DR7, Action.LOAD_DR0_3)
_SAVE_ALL: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)


class Memory(IntEnum):
    """Whether KVM_DEBUGREG_WONT_EXIT is set."""

    CLOSED = 0
    OPEN = 1


class ReloadMemory(IntEnum):
    """WONT_EXIT, and KVM_DEBUGREG_RELOAD; an entry with both does what it does for the first alone."""

    CLOSED = 0
    OPEN = 1
    RELOAD = 2


class SkippingMemory(IntEnum):
    """WONT_EXIT, and whether entries leave the debug controls alone."""

    CLOSED = 0
    OPEN = 1
    CLOSED_SKIPPING = 2


def _memories(era: Era) -> type[IntEnum]:
    if era.skips_debug_controls:
        return SkippingMemory
    if era.remembers_reload:
        return ReloadMemory
    return Memory if era.opens_window else NoMemory


class Kvm(Policy):
    """KVM of one era on one vendor."""

    supports_nesting = True
    refuses_debugger = False

    def __init__(self, era: Era, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        self.era = era
        self.is_svm = vendor == SVM
        self.name = f"kvm-{era.version}"
        self.vendor = vendor
        self.summary = era.summary
        self.source = f"Linux {era.version.split('-')[0]} arch/x86/kvm"
        self.claims_correct = vendor not in era.wrong_on
        self.memories = _memories(era)
        if not era.tests_existence_first:
            self.check_order = (Check.GP, Check.GD, Check.UD)
        intercepts_db = era.svm_intercepts_db or not self.is_svm
        self.intercepted_exceptions = (
            *((debugreg.VECTOR_DB,) if intercepts_db else ()),
            *(debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC),
        )
        self.class_rules = era.svm_fast_exits if self.is_svm else era.vmx_fast_exits
        self._count_operations()
        self.emulated_dr6_writable = debugreg.DR6_WRITABLE | (dr6_writable & era.emulated_dr6_features)
        self.emulated_dr6_fixed = debugreg.DR6_RESET & ~self.emulated_dr6_writable
        if not era.emulates_dr7_rtm:
            self.emulated_dr7_writable = debugreg.DR7_WRITABLE & ~debugreg.DR7_RTM
        has_other_masks = (
            self.emulated_dr6_writable != dr6_writable or self.emulated_dr7_writable != debugreg.DR7_WRITABLE
        )
        self.quirks = quirks(era, is_svm=self.is_svm)
        self.deviations = deviations(era, is_svm=self.is_svm, has_other_masks=has_other_masks)

    def _count_operations(self) -> None:
        """Say what VMX costs beyond the defaults; on SVM all of it is memory.

        handle_dr reads GUEST_DR7 for general detect and, from 3.17 on, the exit qualification before it.
        Up to 3.16 it reads the qualification only to emulate, and where it opens a window instead, the
        execution controls: two reads in each case. Of an access that it refuses it may read less.
        """
        if self.is_svm:
            return
        self.trap_operations = Operations(vmreads=2)
        if not self.era.caches_controls:
            read_and_write = Operations(vmreads=1, vmwrites=1)
            self.costs = {Action.ARM: read_and_write}
            if self.era.tests_existence_first:
                self.costs[Action.DISARM] = read_and_write

    def _is_open(self, sees: Sees) -> bool:
        return self.era.opens_window and sees.memory == Memory.OPEN

    def enter_loop(self, sees: Sees) -> Do | None:
        """Load what the guest needs, before the first entry of the run loop."""
        era = self.era
        if self._is_open(sees):
            return do(self._load(is_open=True))
        if era.remembers_reload and sees.memory == ReloadMemory.RELOAD:
            return do(self._load(is_open=False), memory=ReloadMemory.CLOSED)
        is_skipping = era.skips_debug_controls and sees.memory == SkippingMemory.CLOSED_SKIPPING
        controls = (Action.CONTROLS_ON,) if is_skipping else ()
        closed = SkippingMemory.CLOSED if is_skipping else None
        if sees.breakpoints_enabled:
            return do(self._load(is_open=False), controls, memory=closed)
        if era.masks_host_dr7 and sees.host_breakpoints:
            return do(Action.ZERO_DR7, controls, memory=closed)
        if era.skips_debug_controls:
            if not sees.debug_controls_at_reset:
                return do(controls, memory=closed)
            if not is_skipping:
                return do(Action.CONTROLS_OFF, memory=SkippingMemory.CLOSED_SKIPPING)
        return None

    def _load(self, *, is_open: bool) -> tuple[Action, ...]:
        """Return what a load before the run loop does."""
        era = self.era
        load = era.svm_dr6_load if self.is_svm else era.dr6_load
        is_loaded = load is Dr6Load.COMMON_ENTRY or (load is Dr6Load.ONCE and is_open)
        dr6 = (Action.LOAD_DR6,) if is_loaded else ()
        # x86.c writes DR6 on SVM too, where the VMCB's replaces it at once: a bare write.
        bare = (Action.DR7_OFF,) if self.is_svm and era.dr6_load is Dr6Load.COMMON_ENTRY else ()
        return (*_LOAD_ADDRESSES, *dr6, *bare)

    def enter_guest(self, sees: Sees) -> Do | None:
        """Load DR6 where the version does so in the run loop; clean the VMCB's if it is not the guest's.

        A fast exit does not lead back to ``enter_loop``, and may have been a write of DEBUGCTL.
        """
        if self.era.skips_debug_controls and sees.memory == SkippingMemory.CLOSED_SKIPPING:
            if sees.debug_controls_at_reset:
                return None
            return do(Action.CONTROLS_ON, memory=SkippingMemory.CLOSED)
        load = self.era.svm_dr6_load if self.is_svm else self.era.dr6_load
        if load is Dr6Load.KEPT or (load is Dr6Load.EACH_ENTRY and self._is_open(sees)):
            return do(Action.LOAD_DR6)
        return do(Action.CLEAN_DR6) if self.is_svm and not self._is_open(sees) else None

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """On SVM up to 5.6, the VMCB's DR6 is the guest's."""
        is_kept = self.is_svm and self.era.svm_dr6_load is Dr6Load.KEPT
        return do(Action.SAVE_DR6) if is_kept else None

    def leave_loop(self, sees: Sees) -> Do | None:
        """Close the window: save the registers and arm the intercept; give the host its own back."""
        era = self.era
        host = (Action.HOST_RESTORE,) if sees.host_breakpoints else ()
        if not self._is_open(sees):
            return do(host) if host else None
        effective = Action.EFFECTIVE_RAW if era.save_overrides_debugger else Action.EFFECTIVE
        recompute = (Action.RECOMPUTE,) if era.recomputes_after_save else ()
        reset = (Action.RESET_DR6,) if era.vmx_resets_dr6_after_save and not self.is_svm else ()
        return do(_SAVE_ALL, Action.ARM, effective, recompute, reset, host, memory=Memory.CLOSED)

    def leave_session(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Leave no DR6 of the guest behind when the vCPU is put."""
        return do(Action.RESET_DR6) if self.era.resets_dr6_at_put else None

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
        """Take over what was set from outside; a window that is about to open stays so."""
        control = sees.control
        if control is Control.HOST_BREAKPOINTS:
            return None
        if control is Control.DEBUGGER:
            return do(Action.EFFECTIVE, Action.RECOMPUTE)
        if control is Control.NESTED or not self.era.refreshes_effective:
            return do(Action.RECOMPUTE)
        reloads = self.era.remembers_reload and not (
            self._is_open(sees) or sees.debugger is Debugger.OWNS_BREAKPOINTS
        )
        return do(Action.EFFECTIVE, Action.RECOMPUTE, memory=ReloadMemory.RELOAD if reloads else None)
