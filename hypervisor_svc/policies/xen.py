"""Xen HVM: a window that opens at the first MOV DR and closes when another vCPU needs the CPU.

The first access exits, the registers are loaded and the intercept goes off; no exit closes the window.
A vCPU that comes back with a breakpoint enabled is loaded at once: on VMX with the intercept still on,
so that its first access exits and costs no write; on SVM with the intercept off. The host keeps no
breakpoints of its own: that is the price.

Source: Xen 4.23-dev (c447b7308b) ``vmx.c``: ``vmx_save_dr``, ``__restore_debug_registers``,
``vmx_dr_access``, ``vmx_inject_event``, the #DB case of ``vmx_vmexit_handler``; ``svm.c`` alike;
``HVM_TRAP_MASK``; first in bb8fad6de5, 710f23ac8c and 6bada16efc (2006).
Assumed: on SVM CPU and guest have DBEXT, so that four address-mask MSRs are switched too. Registers
are set from outside while the vCPU is paused and saved: its own save then is not counted.
Not modelled, read in the source and untested. On VMX a #DB overwrites DR6 instead of merging into it:
BD, BS and BT of earlier exceptions are lost. On SVM an access while CLEAN loads the saved DR6 and DR7
over those that a #DB has just changed in the VMCB. What the host's breakpoints would do: none exist.
Not verified: exit classes, those of kvm-default; the policy acts on none.
"""

from enum import IntEnum
from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Control, Operations, Quirk
from hypervisor_svc.policies.base import SVM, Do, Policy, Sees, Vendor, do
from hypervisor_svc.policies.common import INT1_EXITS, IO_EXITS, LOAD, SAVE_ALL


class SvmPlace(IntEnum):
    """Where the guest's registers are; with OPEN ``flag_dr_dirty`` is set."""

    CLEAN = 0  # saved
    OPEN = 1  # in the hardware, the intercept off


class Place(IntEnum):
    """The same on VMX."""

    CLEAN = 0
    OPEN = 1
    LOADED = 2  # in the hardware, the intercept on


class Xen(Policy):
    """Xen HVM on one vendor."""

    name = "xen"
    summary = "a window opens at the first MOV DR and closes when another vCPU takes the CPU"
    source = "Xen xen/arch/x86/hvm vmx_dr_access, vmx_save_dr, svm_dr_access, svm_save_dr"
    check_order = ()  # the access is run again, and the processor makes the checks
    intercepted_exceptions = (debugreg.VECTOR_DB, debugreg.VECTOR_AC, debugreg.VECTOR_MC)
    refuses_host_breakpoints = True  # Xen uses no debug registers itself, and keeps none for itself

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor
        self.is_svm = vendor == SVM
        self.memories = SvmPlace if self.is_svm else Place
        if self.is_svm:
            self.deviations = (IO_EXITS,)
            self.costs = MappingProxyType(
                {
                    Action.LOAD_DR0_3: Operations(dr_writes=4, msr_accesses=4),
                    Action.SAVE_DR0_3: Operations(dr_reads=4, msr_accesses=4),
                }
            )
        else:
            self.deviations = (IO_EXITS, INT1_EXITS)
            self.trap_operations = Operations(vmreads=1)  # the exit qualification
            self.quirks = Quirk.NESTED_TRAPS_FIRST
            self.supports_nesting = True

    def enter_session(self, sees: Sees) -> Do | None:
        """Load a vCPU that comes in with a breakpoint enabled; also after its registers were set."""
        if sees.memory != Place.CLEAN or not sees.shadow_enables:
            return None
        if self.is_svm:
            return do(LOAD, Action.DISARM, memory=Place.OPEN)
        return do(LOAD, memory=Place.LOADED)

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Load if that is still to be done, and let the guest do it itself from here on."""
        load = LOAD if sees.memory == Place.CLEAN else ()
        return do(load, Action.DISARM, Action.REEXECUTE, memory=Place.OPEN)

    def lose_residence(self, sees: Sees) -> Do | None:
        """Save and arm. An idle CPU does not take residence, so a vCPU that comes back finds all."""
        return None if sees.memory == Place.CLEAN else do(SAVE_ALL, Action.ARM, memory=Place.CLEAN)

    def db_exit(self, sees: Sees) -> Do | None:
        """Put the cause into the hardware's DR6 (SVM: the VMCB's), and clear GD where it is kept too."""
        merge = (Action.MERGE_DB_HARDWARE, Action.MERGE_DB_SHADOW)
        if sees.memory == Place.CLEAN and not self.is_svm:
            return do(LOAD, merge, memory=Place.LOADED)
        return do(merge)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over what was set from outside; what was loaded no longer is."""
        control = sees.control
        if control is Control.HOST_BREAKPOINTS:
            return None
        if control is Control.NESTED:
            done = self.enter_session(sees) or do()
            return do(done.actions, Action.RECOMPUTE, memory=done.memory)
        taken = (Action.EFFECTIVE, Action.LOAD_DR7, *((Action.LOAD_DR6,) if self.is_svm else ()))
        if sees.memory == Place.CLEAN:
            return do(taken)
        return do(taken, Action.ARM, memory=Place.CLEAN)
