"""Every deviation that a policy declares shows somewhere, and no policy declares one that never does.

A rule that never shows says of a hypervisor what nobody can check, and would excuse a later mistake.
Source of the rules: the declarations themselves, each with its own in the policy's file.
"""

from functools import cache
from itertools import product
from typing import Final

import pytest

from exitlab.events import EventKind, Mode
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.vocabulary import Deviation
from hypervisor_svc.policies import policy_table
from tests.engine.build import (
    NO_FEATURES,
    NOT_RETIRED,
    SVM,
    VENDOR_OF,
    VENDORS,
    VMX,
    Row,
    cpuid,
    event,
    fetch,
    get_dr,
    policies_on,
    run,
    set_debugregs,
    set_dr,
    stream,
)
from tests.engine.kvm_versions import ATTACH, OWN, debugger

A: Final = 0x40_1000
GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
FEATURES: Final = {
    "plain": NO_FEATURES,
    "rtm": policy_pb2.CpuFeatures(rtm=True),
    "bus_lock": policy_pb2.CpuFeatures(bus_lock_detect=True),
}
# Where a policy emulates only for a debugger, one is attached; a policy that refuses it goes on without.
EMULATED: Final = debugger(ATTACH)
STREAMS: Final[dict[Deviation, tuple[list[Row], ...]]] = {
    Deviation.CHECK_ORDER: ([DE, *EMULATED, get_dr(4, modes=3)],),
    Deviation.GD_KEEPS_TRAP_BITS: ([set_dr(6, 1), set_dr(7, GD), cpuid(), get_dr(0)],),
    Deviation.DB_KEEPS_GD: ([set_dr(0, A), set_dr(7, GD | 1), fetch(A)],),
    Deviation.EMULATED_MASKS: (
        [*EMULATED, set_dr(7, 0x800), get_dr(7)],
        [set_dr(7, 0xC000), get_dr(7)],
        [*EMULATED, set_dr(6, 0), get_dr(6)],
        [set_dr(7, GD), event(EventKind.INT3)],  # an exception shows DR7 without reading it
    ),
    Deviation.STALE_EFFECTIVE: ([*set_debugregs(db0=A, dr7=0x401), fetch(A)],),
    Deviation.RAW_READS: ([*EMULATED, *set_debugregs(dr7=0), get_dr(7)],),
    Deviation.SKIPS_ON_FAULT: ([*EMULATED, set_dr(7, 1 << 32)],),
    Deviation.FULL_OPERAND: ([*EMULATED, set_dr(0, 1 << 40, modes=int(Mode.OPERAND_32)), get_dr(0)],),
    Deviation.SHADOW_KEEPS_GD: ([*EMULATED, set_dr(7, GD), get_dr(0)],),
    Deviation.IO_BREAKPOINT: (
        [DE, set_dr(0, 0x60), set_dr(7, 0x2_0401), event(EventKind.OUT, arg=1, selector=0x60)],
    ),
    Deviation.INT1_AS_DB: ([set_dr(6, 1), event(EventKind.INT1)],),
    Deviation.OPEN_SURVIVES_DEBUGGER: (
        [get_dr(0, marks=NOT_RETIRED), *debugger(OWN, db0=A, dr7=0x402), get_dr(0)],
    ),
}


@cache
def shown_on(vendor: int, cpu: str) -> dict[str, set[str]]:
    """Return the rules that each policy of a vendor shows, each on a stream of its own."""
    names = policies_on(vendor)
    shown: dict[str, set[str]] = {name: set() for name in names}
    for rule, rows in ((rule.name, rows) for rule, several in STREAMS.items() for rows in several):
        for lane in run(stream(rows), *names, vendor=vendor, features=FEATURES[cpu]).lanes:
            shown[lane.policy] |= {one.rule for one in lane.declared} & {rule}
    return shown


def declared_by(policy: str, vendor: int, cpu: str) -> set[str]:
    """Return the rules that a policy declares for a guest CPU."""
    return {one.rule for one in policy_table(policy, VENDOR_OF[vendor], FEATURES[cpu]).deviations}


@pytest.mark.parametrize(
    ("cpu", "vendor", "policy"),
    [(cpu, vendor, policy) for cpu, vendor in product(FEATURES, VENDORS) for policy in policies_on(vendor)],
)
def test_every_declared_rule_shows(cpu: str, vendor: int, policy: str) -> None:
    """What a policy declares for a guest CPU is just what it shows on a few small streams."""
    assert shown_on(vendor, cpu)[policy] == declared_by(policy, vendor, cpu)


# The rules that each of the other hypervisors declares; those of KVM are in test_kvm_deviations.
IO, RAW, INT1 = Deviation.IO_BREAKPOINT, Deviation.RAW_READS, Deviation.INT1_AS_DB
ORDER, MASKS = Deviation.CHECK_ORDER, Deviation.EMULATED_MASKS
NEVER_INTERCEPT: Final = (
    *("bhyve", "openbsd", "nvmm", "acrn"),
    *("hardware-switch", "swap-each-entry", "ignore"),
)
DECLARED: Final[dict[str, dict[int, set[Deviation]]]] = {
    **{name: {VMX: {IO}, SVM: {IO}} for name in NEVER_INTERCEPT},
    "xen": {VMX: {IO, INT1}, SVM: {IO}},
    "virtualbox": {VMX: {RAW, INT1}, SVM: {RAW}},
    "trap-and-cluster": {VMX: {IO, RAW, INT1}, SVM: {IO, RAW}},
    "hyperplatform": {VMX: {IO}},
    "hvpp": {VMX: {IO, ORDER}},
    "haxm": {VMX: {IO, MASKS}},
    "kvm-pvm": {VMX: {IO, INT1, RAW, ORDER}},
    "xen-pv": {VMX: {INT1, RAW, ORDER, MASKS}},
}


@pytest.mark.parametrize("policy", DECLARED)
def test_rules_of_the_other_hypervisors(policy: str) -> None:
    """A policy that were to stop differing, and declaring it, would have left its source."""
    found = {
        vendor: declared_by(policy, vendor, "plain") for vendor in VENDORS if policy in policies_on(vendor)
    }
    assert found == {vendor: {rule.name for rule in rules} for vendor, rules in DECLARED[policy].items()}
