"""HyperPlatform and hvpp: every access exits and is done on the physical register.

Both run the one operating system that was there before them, pinned to its CPUs: the hardware holds
the guest's registers and nobody else's. They claim to be wrong because that is all that makes it
right: vCPUs that share a CPU or move find foreign registers.

Source: tandasat/HyperPlatform ``vmm.cpp`` (02d59d33) ``VmmpHandleDrAccess``, its issue 20; wbenny/hvpp
``vmexit_passthrough.cpp`` ``handle_mov_dr``, its issue 5.
Not verified: newer versions of HyperPlatform; which exceptions exit (none is assumed); a way to set
registers from outside (none was seen, so the lanes refuse it). An INIT that reaches such a guest does
nothing here. Exit classes are those of kvm-default: nothing depends on them.
"""

from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import (
    NO_OPERATIONS,
    Action,
    Check,
    Deviation,
    Operations,
    RegisterClass,
)
from hypervisor_svc.policies.base import Declared, Do, Policy, Sees, Vendor, do
from hypervisor_svc.policies.common import IO_EXITS


class HyperPlatform(Policy):
    """HyperPlatform: no checks, and DR7 goes to the host's register, which the next entry replaces.

    A guest's DR7 is lost and reads as 0x400, so that no breakpoint of it ever hits. DR4 and DR5 are
    written as such by the source; here they name DR6 and DR7.
    """

    name = "hyperplatform"
    summary = "does every access on the physical register and checks nothing; DR7 is lost"
    source = "HyperPlatform vmm.cpp VmmpHandleDrAccess"
    claims_correct = False
    check_order: tuple[Check, ...] = ()
    trap_operations = Operations(vmreads=1)  # the exit qualification
    refuses_set_debugregs = True
    deviations: tuple[Declared, ...] = (IO_EXITS,)

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor

    def dr_trapped(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Do it."""
        return do(Action.WRITE_THROUGH)


class Hvpp(HyperPlatform):
    """hvpp: checks as the processor does, and DR7 goes to its field.

    With one guest for each CPU it is right, up to its order of checks. Writes of DR6 and DR7 are done
    on copies that are read first, so that an operand with high bits faults and changes nothing.
    """

    name = "hvpp"
    summary = "does every access on the physical register, DR7 on its field, after all checks"
    source = "hvpp vmexit_passthrough.cpp handle_mov_dr"
    check_order = (Check.GP, Check.UD, Check.GD)
    costs = MappingProxyType({Action.SAVE_DR6: NO_OPERATIONS})
    deviations = (
        IO_EXITS,
        Declared(
            Deviation.CHECK_ORDER,
            "the privilege level is tested before #UD of DR4 and DR5",
            "handle_mov_dr; read in the source, not tested",
        ),
    )

    def __init__(self, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        super().__init__(vendor)
        self.emulated_dr6_writable = dr6_writable
        self.emulated_dr6_fixed = debugreg.DR6_RESET & ~dr6_writable

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Fault, or do it."""
        if sees.check is Check.GD:  # BD goes to the physical DR6
            return do(Action.SAVE_DR6, Action.READ_DR6, Action.INJECT, Action.LOAD_DR6)
        if sees.check is not Check.NONE:
            return do(Action.INJECT)
        if sees.register_class is RegisterClass.CONTROL:
            written = (Action.EFFECTIVE, Action.LOAD_DR7) if sees.is_write else ()
            return do(Action.SAVE_DR7, Action.EMULATE, written)
        if sees.register_class is RegisterClass.STATUS and sees.is_write:
            return do(Action.SAVE_DR6, Action.EMULATE, Action.LOAD_DR6)
        return do(Action.WRITE_THROUGH)
