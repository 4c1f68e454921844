"""Ignore MOV DR altogether: never intercept, never switch.

The upper bound that the mail of 2014 measured its patch against, and wrong on purpose: registers
stay where they are when the physical CPU changes hands or the vCPU moves, and what is set from
outside never reaches them.

Source: Paolo Bonzini, "KVM: x86: Allow the guest to run with dirty debug registers", 9 March 2014.
Assumed: which exceptions exit (#DB does not: the processor updates DR6).
"""

from exitlab import debugreg
from hypervisor_svc.policies.base import Do, Sees
from hypervisor_svc.policies.common import NeverIntercepts


class Ignore(NeverIntercepts):
    """Nothing at any moment."""

    name = "ignore"
    summary = "never intercepts and never switches: the upper bound, wrong on purpose"
    source = "the comparison of the kernel list mail of 9 March 2014"
    claims_correct = False
    intercepted_exceptions = (debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC)

    def control_changed(self, sees: Sees) -> Do | None:
        """Nobody notices."""
