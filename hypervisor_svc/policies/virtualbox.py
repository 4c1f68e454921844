"""VirtualBox: a window that opens at the first MOV DR and closes when the ring-0 session is left.

A session begins with the export of the guest's state. If DR7 enables a breakpoint or has GD, the host's
registers are saved, the guest's loaded and the intercept turned off at once; else the first MOV DR that
exits does so. Exits handled in ring 0 change nothing; on the way to ring 3 the guest's registers are
saved, and the host's come back: the host always keeps its own. While the VM's debugger has breakpoints
or steps, the hardware holds both's, merged, and every access exits and is emulated.

Source: VirtualBox ``HMVMXR0.cpp`` (4908d8d1), ``VMXAllTemplate.cpp.h``, ``HMSVMR0.cpp``, ``CPUMR0.cpp``,
``CPUMAllRegs.cpp``: ``hmR0VmxExportSharedDebugState``, ``vmxHCExitMovDRx``, ``hmR0VmxLeave``,
``CPUMR0LoadGuestDebugState``, ``CPUMRecalcHyperDRx``, ``hmR0SvmExitReadDRx``; ``DBGFBpCheckIo``.
Assumed: a debugger that is attached steps. HLT and MWAIT leave the session, interrupts do not (thread
context hooks); else the classes of kvm-default, with no port or device handled in ring 0. The intercept
goes on as the session is left; in the source at the next export, and not where DR7 stays enabled
(2 VMWRITEs a session less). DR7 is written as a nested guest is left, also where ring 3 does that and
the next export writes it anyway. Emulation makes its checks in the processor's order.
Not modelled, read in the source and untested: on VT-x a #DB while the guest's registers are loaded
puts into DR6 what CPUM last saved: BD, BS and BT that the guest has cleared itself come back. Not
verified: that the host's DR7 comes back after a session that loaded nothing.
"""

from enum import IntEnum
from types import MappingProxyType
from typing import Final

from exitlab import debugreg
from hypervisor_svc.engine import profile
from hypervisor_svc.engine.vocabulary import NO_OPERATIONS, Action, Check, Control, Debugger, Quirk
from hypervisor_svc.policies.base import SVM, Do, Policy, Sees, Vendor, do
from hypervisor_svc.policies.common import INT1_EXITS, RAW_READS, SAVE_ALL

_VMX_HEAVY: Final = (12, 36)  # HLT, MWAIT
_SVM_HEAVY: Final = (0x78, 0x8B)
_HOST_BACK: Final = (Action.READ_DR7, Action.HOST_RESTORE_SAVED)
_KEEP_DR7: Final = (Action.EFFECTIVE_RAW, Action.RECOMPUTE)  # the field's copy; written by the next export


class Owner(IntEnum):
    """Whose registers the hardware holds."""

    HOST = 0
    GUEST = 1
    HYPER = 2  # the debugger's and the guest's, merged


class VirtualBox(Policy):
    """VirtualBox on VT-x or AMD-V."""

    name = "virtualbox"
    summary = "a window opens at the first MOV DR and closes when the ring-0 session is left"
    source = "VirtualBox HMVMXR0.cpp, HMSVMR0.cpp, CPUMR0.cpp"
    memories = Owner
    intercepted_exceptions = (debugreg.VECTOR_DB, debugreg.VECTOR_AC)
    quirks = Quirk.MATCHES_IO
    costs = MappingProxyType({Action.RECOMPUTE: NO_OPERATIONS})
    refuses_debugger = False
    supports_nesting = True

    def __init__(self, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; its interpreter is assumed to know what the guest CPU's features allow."""
        self.vendor = vendor
        self.emulated_dr6_writable = dr6_writable
        self.emulated_dr6_fixed = debugreg.DR6_RESET & ~dr6_writable
        self.is_svm = vendor == SVM
        codes = _SVM_HEAVY if self.is_svm else _VMX_HEAVY
        self.class_rules = tuple(profile.ClassRule(code, None, profile.HEAVY) for code in codes)
        # On SVM DR6 is in the VMCB, as DR7 is.
        self.load = (Action.LOAD_DR0_3, *(() if self.is_svm else (Action.LOAD_DR6,)))
        self.deviations = (RAW_READS,) if self.is_svm else (RAW_READS, INT1_EXITS)

    def _take(self, sees: Sees) -> tuple[Action, ...]:
        """Return how the host's registers are put away; its DR7 is written only if it is in use."""
        return (Action.HOST_SAVE, *((Action.ZERO_DR7,) if sees.host_breakpoints else ()))

    def enter_session(self, sees: Sees) -> Do | None:
        """Export the guest's DR7, and all its registers if they can matter."""
        if sees.memory != Owner.HOST:
            return None
        export = (Action.EFFECTIVE_MERGED, Action.LOAD_DR7, *((Action.LOAD_DR6,) if self.is_svm else ()))
        if sees.debugger is not Debugger.NONE:
            clean = Action.CLEAN_DR6 if self.is_svm else Action.RESET_DR6
            merged = (Action.EFFECTIVE_MERGED, Action.LOAD_DR7, Action.LOAD_DR0_3, clean)
            return do(self._take(sees), merged, memory=Owner.HYPER)
        if sees.shadow_enables or sees.shadow_has_gd:
            return do(self._take(sees), export, self.load, Action.DISARM, memory=Owner.GUEST)
        return do(export)

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Open and run the access again; emulate it while the registers are merged."""
        if sees.memory == Owner.HYPER:
            if sees.check is not Check.NONE:
                return do(Action.INJECT)
            if not sees.is_write:
                return do(Action.EMULATE)
            return do(Action.EMULATE, Action.EFFECTIVE_MERGED, Action.LOAD_DR0_3, Action.LOAD_DR7)
        return do(self._take(sees), self.load, Action.DISARM, Action.REEXECUTE, memory=Owner.GUEST)

    def leave_session(self, sees: Sees) -> Do | None:
        """Save the guest's, arm, and give the host its own back."""
        if sees.memory == Owner.GUEST:
            return do(SAVE_ALL, Action.ARM, _HOST_BACK, memory=Owner.HOST)
        if sees.memory == Owner.HYPER:
            return do(_KEEP_DR7, _HOST_BACK, memory=Owner.HOST)
        return do(Action.SAVE_DR6, Action.SAVE_DR7) if self.is_svm else None

    def db_exit(self, sees: Sees) -> Do | None:
        """Put the cause where the guest's DR6 is: on SVM in the VMCB, and in the copy of a past session."""
        if sees.memory == Owner.HYPER or (sees.memory == Owner.HOST and not self.is_svm):
            return do(Action.MERGE_DB_SHADOW)
        return do(Action.MERGE_DB_HARDWARE, Action.MERGE_DB_SHADOW if self.is_svm else ())

    def control_changed(self, sees: Sees) -> Do | None:
        """Export a nested guest's DR7; what else is set from outside is exported at the next session."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        is_out = sees.memory == Owner.HOST and sees.debugger is not Debugger.NONE
        if sees.control is not Control.NESTED or is_out:
            return do(_KEEP_DR7)
        return self.enter_session(sees) or do(Action.EFFECTIVE_MERGED, Action.LOAD_DR7)
