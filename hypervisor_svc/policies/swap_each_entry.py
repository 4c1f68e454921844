"""Synchronize always: never intercept, load the guest's six on every entry, save them on every exit.

The alternative that the patch of 2014 weighs and rejects: a cost paid always, while no guest
debugging is the common case. The host's own registers are restored only if it uses breakpoints.

Source: Paolo Bonzini, "KVM: x86: Allow the guest to run with dirty debug registers", 9 March 2014;
the order of operations follows bhyve and NVMM, which do synchronize always.
Assumed: which exceptions exit (#DB does not: the processor updates DR6).
"""

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action
from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.common import LOAD, SAVE_ALL, NeverIntercepts


class SwapEachEntry(NeverIntercepts):
    """Six registers each way at every entry and exit."""

    name = "swap-each-entry"
    summary = "never intercepts; loads six registers at every entry and saves them at every exit"
    source = "the alternative named in the kernel list mail of 9 March 2014"
    intercepted_exceptions = (debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC)

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Load everything, with DR7 off so that nothing matches half-way."""
        return do(Action.ZERO_DR7, LOAD)

    def leave_guest(self, sees: Sees) -> Do | None:
        """Save everything; restore the host's own only where it has any."""
        return do(SAVE_ALL, Action.HOST_RESTORE if sees.host_breakpoints else ())
