"""Versions of KVM with one fact put right: what makes each known bug of theirs go away."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from exitlab.debugreg import dr6_writable
from hypervisor_svc.policies.kvm import ERAS, Era, Kvm
from hypervisor_svc.policies.kvm_eras import Dr6Load
from tests.engine.build import VENDOR_OF
from tests.model.streams import Mix

Repair = Callable[[Era], Era]


def recomputing(era: Era) -> Era:
    """Return the version with the belief worked out anew when a window closes (70e4da7a8ff6)."""
    return replace(era, recomputes_after_save=True)


def loading_once(era: Era) -> Era:
    """Return the version with DR6 loaded before the run loop (c2fee09fc167)."""
    return replace(era, dr6_load=Dr6Load.ONCE, svm_dr6_load=Dr6Load.ONCE)


# B1 of 3.15 to 4.4, and D1 of 5.12 to 6.13.
REPAIRS: Final[dict[str, Repair]] = {
    "3.15": recomputing,
    "4.4": recomputing,
    "5.14": loading_once,
    "5.17": loading_once,
    "6.8": loading_once,
}
MARK: Final = " repaired"


def kvm(version: str, vendor: int, repair: Repair = lambda era: era, mix: Mix | None = None) -> Kvm:
    """Return a version on a vendor, repaired, for the guest CPU of ``mix``."""
    (era,) = (one for one in ERAS if one.version == version)
    features = mix or Mix()
    writable = dr6_writable(rtm=features.rtm, bus_lock_detect=features.bus_lock)
    return Kvm(repair(era), VENDOR_OF[vendor], dr6_writable=writable)


def repaired(version: str, vendor: int, mix: Mix) -> Kvm:
    """Return a version that has a bug on ``vendor`` without it, under a name of its own."""
    policy = kvm(version, vendor, REPAIRS[version], mix)
    policy.name += MARK
    policy.claims_correct = True
    return policy
