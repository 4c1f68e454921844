"""Trap and cluster: emulate a group of back-to-back accesses in one exit.

At an exit of MOV DR the hypervisor looks at the instructions that follow and emulates those that would
exit too. A context switch's 13 accesses then cost one or two exits, and nothing but what emulation
costs anyway. No open hypervisor does this with debug registers: it is a "what if" beside the real ones.

Source: Agesen, Mattson, Rugina and Sheldon, "Software Techniques for Avoiding Hardware Virtualization
Exits" (USENIX ATC 2012), for the idea.
Assumed: a next access at most 60 guest cycles away is found by looking ahead, at most 16 in one exit.
Registers are loaded as KVM 3.14 does. Exit classes are those of kvm-default.
"""

from hypervisor_svc.engine.vocabulary import Action
from hypervisor_svc.policies.base import SVM, Vendor
from hypervisor_svc.policies.common import INT1_EXITS, IO_EXITS, RAW_READS, AlwaysEmulates


class TrapAndCluster(AlwaysEmulates):
    """Emulate, and stay for the next."""

    name = "trap-and-cluster"
    summary = "emulates back-to-back accesses in one exit: a what-if from the literature"
    source = "Agesen et al., USENIX ATC 2012, applied to debug registers"
    after_emulation = (Action.STAY,)
    cluster_gap_cycles = 60
    cluster_accesses = 16

    def __init__(self, vendor: Vendor, *, dr6_writable: int) -> None:
        """Make the policy; ``dr6_writable`` is what the guest CPU's features allow."""
        super().__init__(vendor, dr6_writable=dr6_writable)
        self.deviations = (IO_EXITS, RAW_READS, *(() if vendor == SVM else (INT1_EXITS,)))
