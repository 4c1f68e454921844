"""The policies that the hypervisor has, by name.

To add one: write its file, give its name a maker in ``_MAKERS``; everything else follows.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Final, TypeAlias

from exitlab.debugreg import dr6_writable
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.engine.tables import BadTable, make_table
from hypervisor_svc.policies.acrn import Acrn
from hypervisor_svc.policies.base import SVM, VMX, Policy, PolicyError, Vendor, tabulate
from hypervisor_svc.policies.bhyve import Bhyve
from hypervisor_svc.policies.hardware_switch import HardwareSwitch
from hypervisor_svc.policies.haxm import Haxm
from hypervisor_svc.policies.ignore import Ignore
from hypervisor_svc.policies.kvm import ERAS, Era, Kvm
from hypervisor_svc.policies.kvm_pvm import KvmPvm
from hypervisor_svc.policies.nvmm import Nvmm
from hypervisor_svc.policies.openbsd import OpenBsd
from hypervisor_svc.policies.pass_through import Hvpp, HyperPlatform
from hypervisor_svc.policies.swap_each_entry import SwapEachEntry
from hypervisor_svc.policies.trap_and_cluster import TrapAndCluster
from hypervisor_svc.policies.virtualbox import VirtualBox
from hypervisor_svc.policies.xen import Xen
from hypervisor_svc.policies.xen_pv import XenPv

DEFAULT_POLICY: Final = "kvm-6.14"
_BOTH: Final[tuple[Vendor, ...]] = (VMX, SVM)
_VMX_ONLY: Final[tuple[Vendor, ...]] = (VMX,)
_VENDOR_WORDS: Final = {VMX: "vmx", SVM: "svm"}


class UnknownPolicy(LookupError):
    """No policy has that name; the message gives the near ones."""


class NoSuchVendor(LookupError):
    """The policy does not exist on that vendor."""


_Maker: TypeAlias = Callable[[Vendor, int], Policy]


def _kvm_maker(era: Era) -> tuple[tuple[Vendor, ...], _Maker]:
    # DR7 is always part of the VMCB, so there are no debug controls to skip on SVM.
    vendors: tuple[Vendor, ...] = (VMX,) if era.skips_debug_controls else _BOTH
    return vendors, lambda vendor, writable: Kvm(era, vendor, dr6_writable=writable)


_MAKERS: Final[dict[str, tuple[tuple[Vendor, ...], _Maker]]] = {
    **{f"kvm-{era.version}": _kvm_maker(era) for era in ERAS},
    "kvm-pvm": (_VMX_ONLY, lambda vendor, writable: KvmPvm(vendor, dr6_writable=writable)),
    "xen": (_BOTH, lambda vendor, _: Xen(vendor)),
    "xen-pv": (_VMX_ONLY, lambda vendor, writable: XenPv(vendor, dr6_writable=writable)),
    "virtualbox": (_BOTH, lambda vendor, writable: VirtualBox(vendor, dr6_writable=writable)),
    "bhyve": (_BOTH, lambda vendor, _: Bhyve(vendor)),
    "openbsd": (_BOTH, lambda vendor, _: OpenBsd(vendor)),
    "nvmm": (_BOTH, lambda vendor, _: Nvmm(vendor)),
    "haxm": (_VMX_ONLY, lambda vendor, _: Haxm(vendor)),
    "hyperplatform": (_VMX_ONLY, lambda vendor, _: HyperPlatform(vendor)),
    "hvpp": (_VMX_ONLY, lambda vendor, writable: Hvpp(vendor, dr6_writable=writable)),
    "acrn": (_BOTH, lambda vendor, _: Acrn(vendor)),
    "hardware-switch": (_BOTH, lambda vendor, _: HardwareSwitch(vendor)),
    "trap-and-cluster": (_BOTH, lambda vendor, writable: TrapAndCluster(vendor, dr6_writable=writable)),
    "swap-each-entry": (_BOTH, lambda vendor, _: SwapEachEntry(vendor)),
    "ignore": (_BOTH, lambda vendor, _: Ignore(vendor)),
}


def policy_names() -> tuple[str, ...]:
    """Return the names of all policies."""
    return tuple(_MAKERS)


def policy_vendors(name: str) -> tuple[Vendor, ...]:
    """Return the vendors that a policy exists on.

    Raises:
        UnknownPolicy: with the near matches.

    """
    if name not in _MAKERS:
        raise unknown_policy(name)
    return _MAKERS[name][0]


def unknown_policy(name: str) -> UnknownPolicy:
    """Return the error of a name that no policy has, with the near ones."""
    near = difflib.get_close_matches(name, _MAKERS, cutoff=0.4)
    message = f"no policy is named {name!r}; " + (
        f"near: {', '.join(near)}" if near else f"there are {', '.join(_MAKERS)}"
    )
    if "," in name:
        message += "; several are named one by one: --policy A --policy B"
    return UnknownPolicy(message)


# A protobuf message can be changed by its holder, so its bytes are kept.
@cache
def _table_bytes(name: str, vendor: Vendor, writable: int) -> bytes:
    try:
        table = tabulate(_MAKERS[name][1](vendor, writable))
    except PolicyError:
        raise
    except Exception as error:  # whatever another's class raises is told as its own
        message = f"{name}: the policy cannot be made: {type(error).__name__}: {error}"
        raise PolicyError(message) from error
    return table.SerializeToString(deterministic=True)


def policy_table(name: str, vendor: Vendor, features: policy_pb2.CpuFeatures) -> policy_pb2.PolicyTable:
    """Return a policy's table for a vendor and the guest CPU's features.

    Raises:
        UnknownPolicy: with the near matches.
        NoSuchVendor: the policy does not exist on that vendor.
        PolicyError: its class has a mistake.

    """
    check_vendor(name, vendor, policy_vendors(name))
    writable = dr6_writable(rtm=features.rtm, bus_lock_detect=features.bus_lock_detect)
    return policy_pb2.PolicyTable.FromString(_table_bytes(name, vendor, writable))


def check_vendor(name: str, vendor: Vendor, vendors: Sequence[Vendor]) -> None:
    """Refuse a vendor that a policy does not exist on.

    Raises:
        NoSuchVendor: naming those that it does exist on.

    """
    if vendor not in vendors:
        message = f"policy {name!r} exists on {vendor_words(vendors)} only"
        raise NoSuchVendor(message)


def vendor_words(vendors: Iterable[Vendor]) -> str:
    """Return vendors as options name them."""
    return ", ".join(_VENDOR_WORDS[vendor] for vendor in vendors)


def _log_left_out(message: str) -> None:
    from exitlab.serving.logs import log  # noqa: PLC0415  (only a server has a log)

    log.warning("policy left out", why=message)


def policy_summaries(
    warn: Callable[[str], object] = _log_left_out,
) -> list[hypervisor_pb2.PolicySummary]:
    """Return what a list of policies shows; one that cannot be run is left out, with a warning."""
    summaries = []
    for name, (vendors, _) in _MAKERS.items():
        try:
            tables = [policy_table(name, vendor, policy_pb2.CpuFeatures()) for vendor in vendors]
            for table in tables:
                make_table(table)
        except (PolicyError, BadTable) as error:
            warn(str(error))
            continue
        summaries.append(summary_of(name, tables))
    return summaries


def summary_of(name: str, tables: Sequence[policy_pb2.PolicyTable]) -> hypervisor_pb2.PolicySummary:
    """Return what a list shows of a policy that has these tables, one for each of its vendors."""
    return hypervisor_pb2.PolicySummary(
        name=name,
        vendors=[one.vendor for one in tables],
        claims_correct=all(one.claims_correct for one in tables),
        correct_vendors=[one.vendor for one in tables if one.claims_correct],
        summary=tables[0].summary,
        source=tables[0].source,
        is_default=name == DEFAULT_POLICY,
    )
