"""OpenBSD's vmm: never intercept; load the guest's registers at every entry, save them at every exit.

The host's own DR0 to DR3 and DR6 are neither saved nor restored. It claims to be correct all the same:
every guest sees its own registers, and the host does not run with foreign breakpoints armed, since its
DR7 stays 0x400 after a VM exit. Host breakpoints are lost instead, which is counted as ``host_blind``.

Source: OpenBSD ``sys/arch/amd64/amd64/vmm_support.S`` 1.25: ``vmx_enter_guest``,
``vmx_exit_handler_asm``, ``svm_enter_guest``.
Not verified: which exceptions exit (none is assumed); the default of the MOV DR intercept, which
``vmm_machdep.c`` does not name, and DR7 after an exit on SVM. Exit classes are those of kvm-default:
nothing depends on them.
"""

from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.common import LOAD, SAVE, NeverIntercepts


class OpenBsd(NeverIntercepts):
    """The guest's in, the guest's out; the host has none."""

    name = "openbsd"
    summary = "never intercepts; loads and saves the guest's registers at every entry and exit"
    source = "OpenBSD vmm_support.S vmx_enter_guest, svm_enter_guest"

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Load; DR7 is not turned off before."""
        return do(LOAD)

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Save."""
        return do(SAVE)
