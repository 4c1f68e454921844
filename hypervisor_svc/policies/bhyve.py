"""bhyve: never intercept; at every entry and exit swap the host's registers with the guest's.

DR7 (on SVM also DR6) is part of the VMCS (VMCB). DEBUGCTL is saved, cleared and restored beside the
registers: three MSR accesses for an exit with its entry, shown with HOST_SAVE and HOST_RESTORE_SAVED.

Source: FreeBSD ``sys/amd64/vmm``: ``vmx_dr_enter_guest``, ``vmx_dr_leave_guest``, ``vmx_run``,
``svm_dr_enter_guest``, ``svm_dr_leave_guest`` since 65eefbe422 (January 2018; before that nothing was
switched); the exception bitmap of ``vmx_vcpu_init`` and ``vmcb_init``.
Not verified: that no SVM code intercepts MOV DR (none was seen). The trap flag that is cleared for a
host that single-steps is not modelled. Exit classes are those of kvm-default: nothing depends on them.
"""

from types import MappingProxyType

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Operations
from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.common import LOAD, SAVE, NeverIntercepts


class Bhyve(NeverIntercepts):
    """The host's six out and the guest's in, and back, whatever the exit."""

    name = "bhyve"
    summary = "never intercepts; swaps the host's registers with the guest's at every entry and exit"
    source = "FreeBSD sys/amd64/vmm vmx_dr_enter_guest, svm_dr_enter_guest"
    intercepted_exceptions = (debugreg.VECTOR_MC,)
    costs = MappingProxyType(
        {
            Action.HOST_SAVE: Operations(dr_reads=6, msr_accesses=2),
            Action.HOST_RESTORE_SAVED: Operations(dr_writes=6, msr_accesses=1),
        }
    )

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Save the host's, load the guest's."""
        return do(Action.HOST_SAVE, Action.ZERO_DR7, LOAD)

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Save the guest's, restore the host's."""
        return do(SAVE, Action.HOST_RESTORE_SAVED)
