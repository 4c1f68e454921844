"""The bill is the second model's, row by row, and its parts add up."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.events import EventColumns
from exitlab.v1 import report_pb2
from tests.engine.bill_model import BillModel, bill_of
from tests.engine.build import (
    EXIT,
    SUMMARY,
    SVM,
    VENDORS,
    by_class,
    engine_for,
    exits,
    mov_dr,
    policies_on,
)
from tests.engine.decorate import decorated
from tests.engine.hypervisors import HYPERVISORS
from tests.engine.kvm_bill import KVM_BILLS
from tests.model.streams import Mix, mixes, random_stream, streams

BILLS: Final[dict[str, type[BillModel]]] = {**HYPERVISORS, **KVM_BILLS}
WHOLE: Final = Mix()
# Streams on which what exits does not depend on what a policy does wrong or declares.
EMULATING: Final = Mix(general_detect=False, operand_32=False, outside=False)
RECORDED: Final = Mix(computed=False, general_detect=False)
MIXES: Final = {
    "kvm-3.14": (EMULATING, replace(EMULATING, computed=False)),
    "kvm-3.15": (RECORDED,),
    "kvm-4.4": (RECORDED,),
    **dict.fromkeys(
        (policy for policy in (*KVM_BILLS, "kvm-6.14") if policy != "kvm-4.4"),
        (WHOLE, replace(WHOLE, computed=False), replace(WHOLE, rtm=True, bus_lock=True)),
    ),
    "swap-each-entry": (WHOLE, replace(WHOLE, computed=False)),
    "ignore": (RECORDED,),
}


def sizes_of(lane: report_pb2.LaneReport) -> dict[int, int]:
    """Return the closed windows by size; all are small enough to have a bucket of their own."""
    assert all(bucket.from_accesses == bucket.to_accesses for bucket in lane.window_sizes)
    return {bucket.from_accesses: bucket.windows for bucket in lane.window_sizes}


def check(events: EventColumns, mix: Mix, policy: str, vendor: int) -> None:
    """Hold a lane's counts against the second bill."""
    model = BILLS[policy](mix, is_svm=vendor == SVM)
    model.run(events)
    engine = engine_for(mix, policy, vendor=vendor)
    engine.feed(events, SUMMARY)
    lane = engine.report().lanes[0]
    assert bill_of(lane) == model.bill
    assert sizes_of(lane) == model.sizes
    for ours, theirs in zip(lane.vcpus, model.vcpus, strict=True):
        assert (ours.mov_dr_executed, ours.mov_dr_trapped) == (theirs.executed, theirs.trapped)
        assert ours.windows == theirs.windows
        assert list(ours.exits_by_class) == [theirs.exits[n] for n in (1, 2, 3)]


CASES: Final = [(policy, mix, vendor) for policy in MIXES for mix in MIXES[policy] for vendor in VENDORS]


@pytest.mark.parametrize(("policy", "mix", "vendor"), CASES)
def test_second_bill(policy: str, mix: Mix, vendor: int) -> None:
    """On random streams each row of the bill, its operations and its count are the second model's."""
    for seed in range(3):
        check(random_stream(seed, 600, mix), mix, policy, vendor)


@pytest.mark.parametrize(("policy", "mix", "vendor"), CASES)
def test_second_bill_whatever_the_marks(policy: str, mix: Mix, vendor: int) -> None:
    """The same with events of every kind and any class bits."""
    for seed in range(3):
        events = random_stream(50 + seed, 400, mix)
        check(decorated(events, seed, computed=mix.computed, all_retire=True), mix, policy, vendor)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), case=st.sampled_from(CASES))
def test_second_bill_shrinking(data: st.DataObject, case: tuple[str, Mix, int]) -> None:
    """The same on streams that shrink when they fail."""
    policy, mix, vendor = case
    chosen = data.draw(mixes(mix))
    check(data.draw(streams(chosen)), chosen, policy, vendor)


# What holds these against their source instead.
BILLED_ELSEWHERE: Final = {
    "kvm-6.14-skip-debug-controls": "differs from kvm-6.14 in one VMWRITE: test_operation_counts",
    **dict.fromkeys(
        (
            *("kvm-pvm", "xen", "xen-pv", "virtualbox", "bhyve", "openbsd", "nvmm", "haxm"),
            *("hyperplatform", "hvpp", "acrn", "hardware-switch", "trap-and-cluster"),
        ),
        "each step and each exit against the published state machine: test_hypervisors and its invariants",
    ),
}


def test_every_policy_has_a_second_bill_or_says_why() -> None:
    """A policy has a second bill, or a place in the list of those that are counted otherwise, not both."""
    named = {policy for vendor in VENDORS for policy in policies_on(vendor)}
    assert named == {*BILLS, *BILLED_ELSEWHERE}
    assert not {*BILLS} & {*BILLED_ELSEWHERE}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("computed", [True, False])
def test_parts_add_up(vendor: int, computed: bool) -> None:
    """Exits by reason and by class are the same exits; no more MOV DRs trap than are executed."""
    mix = Mix(computed=computed)
    for seed in range(4):
        engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
        engine.feed(decorated(random_stream(seed, 500, mix), seed, computed=computed), SUMMARY)
        for lane in engine.report().lanes:
            executed, trapped = mov_dr(lane)
            assert trapped <= executed
            assert sum(exits(lane).values()) == sum(by_class(lane))
            for number in (1, 2, 3):
                of_class = sum(
                    row.count for row in lane.patterns if row.account == EXIT and row.exit_class == number
                )
                assert of_class == by_class(lane)[number - 1]
            assert sum(bucket.windows for bucket in lane.window_sizes) <= sum(v.windows for v in lane.vcpus)
            rows = [(row.account, row.reason, row.sub_reason, row.exit_class) for row in lane.patterns]
            assert all(row.count > 0 for row in lane.patterns)
            assert len(rows) == len(lane.patterns)


@pytest.mark.parametrize("vendor", VENDORS)
def test_guest_cycles_are_the_sum_of_gaps(vendor: int) -> None:
    """A vCPU's guest cycles are the gaps of its events that happened, in every lane the same."""
    mix = Mix(handlers=False)
    events = random_stream(5, 800, mix)
    assert events.vcpus is not None
    assert events.gap_cycles is not None
    engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
    engine.feed(events, SUMMARY)
    for lane in engine.report().lanes:
        for vcpu in lane.vcpus:
            assert vcpu.guest_cycles == int(events.gap_cycles[events.vcpus == vcpu.vcpu].sum(dtype="u8"))
