"""ACRN: never intercept, never switch; Jailhouse, NOVA and SimpleVisor do the same.

A guest that has its physical CPU to itself, as such partitioning hypervisors intend, sees nothing of
that. It claims to be wrong because two vCPUs that share a CPU read each other's DR0 to DR3 and DR6,
and a vCPU that moves leaves its own behind. A reset sets GUEST_DR7 and nothing else.

Source: projectacrn/acrn-hypervisor ``init_exec_ctrl``, ``vcpu.c`` (no ``%dr`` anywhere);
siemens/jailhouse ``vmx.c``, ``svm.c``; NOVA ``regs.cpp``; ionescu007/SimpleVisor ``shvvmx.c``. ACRN
itself exists on VMX only: on SVM the name stands for Jailhouse.
Not verified: a way to set registers from outside (none was seen, so the lane refuses it). Jailhouse
intercepts #DB and delivers it again, which is not modelled. Exit classes are those of kvm-default, an
assumption on which nothing here depends.
"""

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Control
from hypervisor_svc.policies.base import Do, Sees, do
from hypervisor_svc.policies.common import NeverIntercepts


class Acrn(NeverIntercepts):
    """Nothing at any moment but a reset."""

    name = "acrn"
    summary = "never intercepts and never switches: right only with one guest for each physical CPU"
    source = "ACRN init_exec_ctrl; Jailhouse, NOVA and SimpleVisor alike"
    claims_correct = False
    intercepted_exceptions = (debugreg.VECTOR_AC, debugreg.VECTOR_MC)
    refuses_set_debugregs = True

    def control_changed(self, sees: Sees) -> Do | None:
        """Let a reset put DR7 into its field."""
        if sees.control is Control.RESET:
            return do(Action.EFFECTIVE, Action.LOAD_DR7)
        return None
