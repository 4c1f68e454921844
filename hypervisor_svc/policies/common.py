"""What several hypervisors have in common: groups of micro-actions, deviations, two ways of working."""

from typing import Final

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Check, Control, Deviation, RegisterClass
from hypervisor_svc.policies.base import SVM, Declared, Do, Policy, Sees, Vendor, do

LOAD: Final = (Action.LOAD_DR0_3, Action.LOAD_DR6)
SAVE: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.EFFECTIVE)  # DR7 stays in the VMCS
SAVE_ALL: Final = (*SAVE, Action.SAVE_DR7)

# All but NMI: of a guest that runs on the host's own interrupt table.
EVERY_EXCEPTION: Final = tuple(vector for vector in range(32) if vector != 2)

IO_EXITS: Final = Declared(
    Deviation.IO_BREAKPOINT,
    "an I/O instruction that exits is carried out by the hypervisor, which looks for no I/O breakpoint",
    "an instruction that exits is not executed by the processor (Intel SDM volume 3); assumed of this "
    "hypervisor's handler unless its file says that it was read",
)
INT1_EXITS: Final = Declared(
    Deviation.INT1_AS_DB,
    "INT1 exits as a #DB without a cause and is delivered as one",
    "an intercepted #DB covers INT1 on VMX (Intel SDM volume 3); its delivery is assumed to be KVM's",
)
RAW_READS: Final = Declared(
    Deviation.RAW_READS,
    "set from outside, DR6 and DR7 read back as set, without the fixed bits",
    "a limit of this model, where the hypervisor's file does not name its source",
)


class NeverIntercepts(Policy):
    """No MOV DR exits: the guest uses the registers that it finds."""

    initially_armed = False
    deviations: tuple[Declared, ...] = (IO_EXITS,)

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over registers that were set from outside; the next load takes them."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(Action.EFFECTIVE, Action.LOAD_DR7)


class AlwaysEmulates(Policy):
    """Every MOV DR exits and is emulated on a shadow, loaded only while a breakpoint is enabled.

    The host's own breakpoints are masked and given back as KVM does from 5.14 on.
    """

    deviations: tuple[Declared, ...] = (IO_EXITS, INT1_EXITS, RAW_READS)
    intercepted_exceptions: tuple[int, ...] = (debugreg.VECTOR_DB, debugreg.VECTOR_AC, debugreg.VECTOR_MC)
    after_emulation: tuple[Action, ...] = ()

    def __init__(self, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        self.vendor = vendor
        self.emulated_dr6_writable = dr6_writable
        self.emulated_dr6_fixed = debugreg.DR6_RESET & ~dr6_writable

    def enter_loop(self, sees: Sees) -> Do | None:
        """Load the addresses while they can matter; else keep the host's from matching in the guest."""
        if sees.breakpoints_enabled:
            return do(Action.ZERO_DR7, Action.LOAD_DR0_3)
        return do(Action.ZERO_DR7) if sees.host_breakpoints else None

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """On SVM, start from a clean DR6, so that a #DB shows its cause."""
        return do(Action.CLEAN_DR6) if self.vendor == SVM else None

    def leave_loop(self, sees: Sees) -> Do | None:
        """Give the host back what it uses; the guest cannot have changed anything."""
        return do(Action.HOST_RESTORE) if sees.host_breakpoints else None

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Fault or emulate, as the processor would."""
        if sees.check is not Check.NONE:
            return do(Action.INJECT)
        if sees.is_write and sees.register_class is RegisterClass.CONTROL:
            return do(Action.EMULATE, Action.RECOMPUTE, self.after_emulation)
        return do(Action.EMULATE, self.after_emulation)

    def db_exit(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Put the cause into the shadow DR6, for the exception that is injected."""
        return do(Action.MERGE_DB_SHADOW)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over registers that were set from outside."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(Action.EFFECTIVE, Action.RECOMPUTE)
