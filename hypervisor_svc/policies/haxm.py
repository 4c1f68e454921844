"""Intel HAXM: every access exits and is done on a shadow, which is loaded once after a write.

An entry loads if the guest has written, if the vCPU's thread has changed its physical CPU, or if the
host uses breakpoints; every entry reads the host's DR7 to know. An exit reads DR6 only, since nothing
else can have changed.

It claims to be wrong, for three faults read in its source and not tested: two vCPUs that alternate on
one physical CPU keep each other's DR0 to DR3; CPL is never tested, so that user code can write debug
registers; general detect is tested before #UD.

Source: intel/haxm ``core/vcpu.c`` (4c524a10): ``exit_dr_access``, ``load_guest_dr``, ``save_guest_dr``,
``save_host_dr``, ``load_host_dr``, ``vcpu_update_exception_bitmap``.
Not modelled: high bits of DR6 and DR7 are taken without #GP; BD of an emulated general detect is not
loaded, so that the next exit reads it away (here it is loaded); general detect is tested on the shadow,
which still has GD after a #DB. A host debugger is refused: while one has hardware breakpoints, the
guest's writes are lost, its reads give reset values and its #DB exits, which no action here says. Exit
classes are those of kvm-default: nothing depends on them.
"""

from enum import IntEnum
from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Check, Control, Deviation, Operations, Quirk
from hypervisor_svc.policies.base import Declared, Do, Policy, Sees, Vendor, do
from hypervisor_svc.policies.common import IO_EXITS, LOAD


class Shadow(IntEnum):
    """Whether the shadow is newer than the hardware (``dr_dirty``)."""

    NEWER = 0
    LOADED = 1


class Haxm(Policy):
    """Intel HAXM, which exists on VMX only."""

    name = "haxm"
    summary = "emulates every access; loads after a write; wrong: keeps another vCPU's registers"
    source = "intel/haxm core/vcpu.c exit_dr_access, load_guest_dr"
    claims_correct = False
    memories = Shadow
    check_order = (Check.GD, Check.UD)
    intercepted_exceptions = (debugreg.VECTOR_MC,)
    emulated_dr6_writable = 0xFFFF_FFFF
    emulated_dr6_fixed = 0
    emulated_dr7_writable = 0xFFFF_FFFF
    quirks = Quirk.GD_KEEPS_TRAP_BITS
    costs = MappingProxyType({Action.HOST_SAVE: Operations(dr_reads=5)})  # DR7 is read at each entry
    deviations = (
        IO_EXITS,
        Declared(
            Deviation.EMULATED_MASKS,
            "DR7 takes any bit that is written",
            "exit_dr_access stores the operand as it is",
        ),
    )

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor

    def enter_guest(self, sees: Sees) -> Do | None:
        """Load if the shadow is newer, the CPU another one, or the host's registers are in the way."""
        host = (Action.HOST_SAVE,) if sees.host_breakpoints else ()
        if sees.host_breakpoints or sees.moved or sees.memory == Shadow.NEWER:
            load = (Action.ZERO_DR7, *LOAD, Action.LOAD_DR7)
            return do(Action.READ_DR7, host, load, memory=Shadow.LOADED)
        return do(Action.READ_DR7)

    def leave_guest(self, sees: Sees) -> Do | None:
        """Save DR6; restore the host's where it uses breakpoints."""
        return do(Action.SAVE_DR6, Action.HOST_RESTORE_SAVED if sees.host_breakpoints else ())

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Fault or emulate; a write is loaded at the next entry."""
        if sees.check is not Check.NONE:
            return do(Action.INJECT, memory=Shadow.NEWER if sees.check is Check.GD else None)
        return do(Action.EMULATE, memory=Shadow.NEWER if sees.is_write else None)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over what was set from outside; it is loaded at the next entry."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(Action.EFFECTIVE, memory=Shadow.NEWER)
