"""Ignore MOV DR altogether: never intercept, never switch.

The upper bound that the mail of 2014 measured its patch against, and wrong on purpose: registers
stay where they are when the physical CPU changes hands or the vCPU moves.

Source: Paolo Bonzini, "KVM: x86: Allow the guest to run with dirty debug registers", 9 March 2014.
"""

from exitlab import debugreg
from hypervisor_svc.policies.base import Policy, Vendor


class Ignore(Policy):
    """Nothing at any moment."""

    name = "ignore"
    summary = "never intercepts and never switches: the upper bound, wrong on purpose"
    source = "the comparison of the kernel list mail of 9 March 2014"
    claims_correct = False
    initially_armed = False
    intercepted_exceptions = (debugreg.VECTOR_UD, debugreg.VECTOR_AC, debugreg.VECTOR_MC)

    def __init__(self, vendor: Vendor) -> None:
        """Make the policy for a vendor."""
        self.vendor = vendor
