"""Synchronize always: never intercept, load the guest's six on every entry, save them on every exit.

The alternative that the patch of 2014 weighs and rejects: a cost paid always, while no guest
debugging is the common case. The host's own registers are restored only if it uses breakpoints.

Source: Paolo Bonzini, "KVM: x86: Allow the guest to run with dirty debug registers", 9 March 2014;
the order of operations follows bhyve and NVMM, which do synchronize always.
"""

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Control
from hypervisor_svc.policies.base import Do, Policy, Sees, Vendor, do


class SwapEachEntry(Policy):
    """Six registers each way at every entry and exit."""

    name = "swap-each-entry"
    summary = "never intercepts; loads six registers at every entry and saves them at every exit"
    source = "the alternative named in the kernel list mail of 9 March 2014"
    initially_armed = False
    intercepted_exceptions = (debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC)

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Load everything, with DR7 off so that nothing matches half-way."""
        return do(Action.ZERO_DR7, Action.LOAD_DR0_3, Action.LOAD_DR6)

    def leave_guest(self, sees: Sees) -> Do | None:
        """Save everything; restore the host's own only where it has any."""
        host = (Action.HOST_RESTORE,) if sees.host_breakpoints else ()
        return do(Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7, Action.EFFECTIVE, host)

    def control_changed(self, sees: Sees) -> Do | None:
        """Take over registers that were set from outside; the next entry loads them."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(Action.EFFECTIVE, Action.LOAD_DR7)
