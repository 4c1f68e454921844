"""A processor that switches the registers itself: TDX, and SEV-ES with DebugSwap.

MOV DR does not exit and the hypervisor touches no register of the guest, so that loads and saves are
free: the least that a correct policy can cost. KVM does not trust the processor with the host's own
registers and writes them back where the host uses breakpoints. Registers cannot be set from outside.

Source: Linux ``vcpu_enter_guest`` (KVM_DEBUGREG_AUTO_SWITCH), ``tdx.c``, ``sev.c``, commit 807cb9ce2ed9.
Not verified: what a TDX exit leaves in DR0 to DR3 (reset values by its specification; here the guest's
stay, under a DR7 of 0x400). Exit classes are those of kvm-default, an assumption.
"""

from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import NO_OPERATIONS, Action
from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.common import LOAD, SAVE_ALL, NeverIntercepts


class HardwareSwitch(NeverIntercepts):
    """Loads and saves at every entry and exit that cost the hypervisor nothing."""

    name = "hardware-switch"
    summary = "TDX and SEV-ES DebugSwap: the processor switches; the least that can be paid"
    source = "Linux vcpu_enter_guest KVM_DEBUGREG_AUTO_SWITCH, tdx.c, sev.c"
    intercepted_exceptions = (debugreg.VECTOR_MC,)
    refuses_set_debugregs = True
    costs = MappingProxyType(dict.fromkeys((*LOAD, *SAVE_ALL, Action.LOAD_DR7), NO_OPERATIONS))

    def enter_loop(self, sees: Sees) -> Do | None:
        """Turn the host's breakpoints off."""
        return do(Action.ZERO_DR7) if sees.host_breakpoints else None

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Let the processor load."""
        return do(LOAD)

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Let the processor save."""
        return do(SAVE_ALL)

    def leave_loop(self, sees: Sees) -> Do | None:
        """Write the host's registers back where it uses them."""
        return do(Action.HOST_RESTORE) if sees.host_breakpoints else None
