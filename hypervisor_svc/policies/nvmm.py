"""NVMM of NetBSD and DragonFly: never intercept; swap once around each call of the run ioctl.

Exits that stay in the kernel are free; each that returns to user space, and each page that has to be
found there, pays for a swap.

Source: NetBSD ``sys/dev/nvmm/x86/nvmm_x86_vmx.c``: ``vmx_vcpu_run``, ``vmx_vcpu_guest_dbregs_enter``,
``vmx_vcpu_guest_dbregs_leave``; ``nvmm_x86_svm.c``. The exits that leave the loop are those of the
switch in ``vmx_vcpu_run``; of MSRs a few are answered in the kernel, which is not modelled.
Not verified: ``x86_dbregs_save`` of NetBSD saves only for a host thread that uses debug registers (seen
in DragonFly's shim); which exceptions exit (none is assumed). Newer DragonFly swaps inside the loop.
"""

from typing import Final

from hypervisor_svc.engine import profile
from hypervisor_svc.engine.vocabulary import Action
from hypervisor_svc.policies.base import SVM, Do, Sees, Vendor, do
from hypervisor_svc.policies.common import LOAD, SAVE, NeverIntercepts

# HLT, MSR accesses, nested page faults, MONITOR and MWAIT return from the run loop.
_VMX_HEAVY: Final = (12, 31, 32, 48, 39, 36)
_SVM_HEAVY: Final = (0x78, 0x7C, 0x400, 0x8A, 0x8B)


class Nvmm(NeverIntercepts):
    """In at the run call, out at its return."""

    name = "nvmm"
    summary = "never intercepts; loads and saves the guest's registers once a run call"
    source = "NetBSD nvmm_x86_vmx.c vmx_vcpu_run, nvmm_x86_svm.c"

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        super().__init__(vendor)
        codes = _SVM_HEAVY if vendor == SVM else _VMX_HEAVY
        self.class_rules = tuple(profile.ClassRule(code, None, profile.HEAVY) for code in codes)

    def enter_session(self, sees: Sees) -> Do | None:
        """Save what the host's thread uses, load the guest's."""
        return do(Action.HOST_SAVE if sees.host_breakpoints else (), Action.ZERO_DR7, LOAD)

    def leave_session(self, sees: Sees) -> Do | None:
        """Save the guest's, restore what the host's thread uses."""
        return do(SAVE, Action.HOST_RESTORE_SAVED if sees.host_breakpoints else ())
