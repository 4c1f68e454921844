"""KVM-PVM: a guest kernel in ring 3, whose MOV DR is a #GP that the host emulates.

It uses no virtualization extension; it is modelled on a VMX host, where a trapped MOV DR stands for
the #GP, and is always emulated in full. DR0 to DR3 are loaded as KVM does while a breakpoint is
enabled; DR7 is written just before the guest runs and cleared just after, under the same condition.
The host takes every exception, and reads and resets DR6 at a #DB.

Source: virt-pvm/linux ``pvm.c`` (02cf70ff): ``pvm_vcpu_run_noinstr``, ``pvm_eff_dr7``,
``handle_exit_exception``, ``pvm_sync_dirty_debug_regs``; ``x86_emulate_insn`` for the order of checks.
Measured on this backend of kernel 6.18: general detect clears B0 to B3 and DR7.GD, as here.
Not modelled, measured there: a write of DR6 or DR7 with high bits is #GP before general detect (here it
is #DB, the processor's order: a policy is not shown the operand); one of DR4 or DR5 with high bits does
nothing at all (here #GP); INT1 of a guest's kernel is not supported (here as on VMX).
A host debugger is refused, as what it does is different too: with hardware breakpoints the guest's own
general detect still goes to the guest, and that of the debugger's DR7 does nothing, while here the DR7
in use is tested, and is the debugger's.
Not modelled, read in the source: ``pvm_eff_dr7`` turns off a breakpoint whose address is not the
guest's; such a guest misses it. Exit classes are those of kvm-default, an assumption.
"""

from types import MappingProxyType

from hypervisor_svc.engine.vocabulary import NO_OPERATIONS, Action, Check, Deviation
from hypervisor_svc.policies.base import Declared, Do, Sees, do
from hypervisor_svc.policies.common import EVERY_EXCEPTION, AlwaysEmulates


class KvmPvm(AlwaysEmulates):
    """KVM's shadow, with DR7 written around each run of the guest."""

    name = "kvm-pvm"
    summary = "KVM-PVM: the guest runs in ring 3; every access is a #GP and is emulated"
    source = "virt-pvm/linux pvm.c"
    check_order = (Check.GP, Check.UD, Check.GD)
    intercepted_exceptions = EVERY_EXCEPTION
    costs = MappingProxyType({Action.RECOMPUTE: NO_OPERATIONS})  # there is no VMCS
    deviations = (
        *AlwaysEmulates.deviations,
        Declared(
            Deviation.CHECK_ORDER,
            "the privilege level is tested before #UD of DR4 and DR5",
            "x86_emulate_insn tests Priv before check_dr_read; read in the source, not tested",
        ),
    )

    def enter_guest(self, sees: Sees) -> Do | None:
        """Write DR7 where it enables something."""
        return do(Action.DR7_ON) if sees.breakpoints_enabled else None

    def leave_guest(self, sees: Sees) -> Do | None:
        """Clear it again."""
        return do(Action.DR7_OFF) if sees.breakpoints_enabled else None

    def db_exit(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Read the cause from DR6, reset it, and keep it for the exception that is injected."""
        return do(Action.READ_DR6, Action.RESET_DR6, Action.MERGE_DB_SHADOW)
