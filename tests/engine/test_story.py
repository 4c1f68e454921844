"""A policy may change the bill, never the story."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.events import EventColumns, EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.engine import Engine, ReferenceKey, records
from hypervisor_svc.engine.truth import Reference, Truth
from hypervisor_svc.engine.validation import complete
from hypervisor_svc.engine.vocabulary import Deviation
from tests.engine.build import (
    FULL,
    SUMMARY,
    SVM,
    VENDOR_OF,
    VENDORS,
    VMX,
    Told,
    engine_for,
    outcomes,
    policies_on,
    table_of,
)
from tests.engine.decorate import GROUPS, decorated, mix_of
from tests.model.second_model import Story, events_of
from tests.model.streams import Mix, mixes, random_stream, streams

SAME: Final = report_pb2.VERDICT_SAME
DECLARED: Final = report_pb2.VERDICT_SAME_BUT_DECLARED
DIVERGED: Final = report_pb2.VERDICT_DIVERGED
NOT_COMPARABLE: Final = report_pb2.VERDICT_NOT_COMPARABLE
# Tell the story of these streams with no deviation to declare; what some of them have no answer to.
_EXACT: Final = ("kvm-4.6", "kvm-5.4", "kvm-5.7", "kvm-6.14", "kvm-7.1")
_SWAPPING: Final = ("virtualbox", "bhyve", "openbsd", "nvmm", "swap-each-entry")
EXACT: Final[dict[int, tuple[str, ...]]] = {
    VMX: (*_EXACT, "kvm-5.14", "kvm-6.14-skip-debug-controls", *_SWAPPING),
    SVM: (*_EXACT, *_SWAPPING),
}
EXACT_WITHOUT: Final = {"xen": "host", "hardware-switch": "outside"}
MIXES: Final = {
    f"{'computed' if computed else 'recorded'}{' rtm' if rtm else ''}{' bus lock' if bus_lock else ''}": Mix(
        computed=computed, rtm=rtm, bus_lock=bus_lock
    )
    for computed, rtm, bus_lock in product((True, False), repeat=3)
}
SHOWING: Final = (Story.READ, Story.DB_FAULT, Story.DB_TRAP, Story.UD, Story.GP)
SEEDS: Final = range(6)


def differences(ours: Told, truth: Truth) -> list[int]:
    """Return the events of which a lane's story is not the architecture's."""
    stories = np.array(ours.stories, np.uint8)
    unlike = (np.array(ours.values, np.uint64) ^ truth.values) & ~truth.undefined.astype(np.uint64)
    different = (stories != truth.stories) | (np.isin(stories, SHOWING) & (unlike != 0))
    found: list[int] = different.nonzero()[0].tolist()
    return found


def truth_of(events: EventColumns, mix: Mix, vendor: int) -> Truth:
    """Return what the architecture alone shows of ``events``."""
    key = ReferenceKey(VENDOR_OF[vendor], mix.rtm, mix.bus_lock)
    return Reference(key, mix.vcpus, is_computed=mix.computed).run(complete(events), 0, leading=None)


def assert_exact(events: EventColumns, mix: Mix, vendor: int, *policies: str) -> None:
    """Run policies that need no deviation, and hold all that they show against the reference."""
    told = truth_of(events, mix, vendor)
    engine = engine_for(mix, *(policies or EXACT[vendor]), vendor=vendor)
    parts = engine.feed(events, FULL)
    report = engine.report()
    for number, lane in enumerate(report.lanes):
        assert differences(outcomes(parts, number), told) == [], lane.policy
        assert (lane.verdict, list(lane.declared), lane.diverged_events) == (SAME, [], 0), lane
        assert (list(lane.leaks), lane.latent_hazards) == ([], 0), lane.policy


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_same_story(mix: Mix, vendor: int) -> None:
    """Policies without a deviation show every event as the architecture does; none leaks or may."""
    for seed in SEEDS:
        assert_exact(random_stream(seed, 400, mix), mix, vendor)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("policy", EXACT_WITHOUT)
def test_same_story_without_what_a_policy_has_no_answer_to(policy: str, vendor: int) -> None:
    """The same of policies that cannot live with one group of events, on streams without it."""
    for seed, mix in product(range(2), MIXES.values()):
        lacking = mix.switched(False, EXACT_WITHOUT[policy])
        assert_exact(random_stream(seed, 400, lacking), lacking, vendor, policy)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), vendor=st.sampled_from(VENDORS), mix=st.sampled_from(list(MIXES.values())))
def test_same_story_shrinking(data: st.DataObject, vendor: int, mix: Mix) -> None:
    """The same on streams that shrink when they fail."""
    chosen = replace(data.draw(mixes(mix)), rtm=mix.rtm, bus_lock=mix.bus_lock)
    assert_exact(data.draw(streams(chosen)), chosen, vendor)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_same_story_whatever_the_marks(mix: Mix, vendor: int) -> None:
    """The same with events of every kind, and with any class bits, unknown operands and MOVs not retired."""
    for seed in SEEDS:
        events = decorated(random_stream(seed, 300, mix), seed, computed=mix.computed)
        assert_exact(events, mix, vendor)


@pytest.mark.parametrize("vendor", VENDORS)
def test_same_story_same_digest(vendor: int) -> None:
    """A lane with the verdict same has the reference's story digest, conditional events included."""
    for report in reports(Mix(), vendor, *EXACT[vendor]):
        assert {lane.story_digest for lane in report.lanes} == {report.references[0].story_digest}


def reports(mix: Mix, vendor: int, *policies: str) -> Iterator[report_pb2.Report]:
    """Return the reports of a few random streams of ``mix``."""
    for seed in SEEDS:
        engine: Engine = engine_for(mix, *policies, vendor=vendor)
        engine.feed(random_stream(100 + seed, 400, mix), SUMMARY)
        yield engine.report()


def assert_right(lane: report_pb2.LaneReport) -> None:
    """Hold a lane to its claim to be correct; one that refused a change of the guest's state has none."""
    if lane.refused_controls:
        assert lane.verdict == NOT_COMPARABLE, lane.policy
        return
    assert lane.verdict in (SAME, DECLARED), (lane.policy, lane.first_divergence.what)
    assert list(lane.leaks) == [], lane.policy
    assert (lane.verdict == SAME) == (not lane.declared)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_every_correct_policy(mix: Mix, vendor: int) -> None:
    """Every policy that claims to be correct tells the story up to what it declares, and leaks nothing."""
    for report in reports(mix, vendor, *policies_on(vendor, correct=True)):
        for lane in report.lanes:
            assert_right(lane)


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_correct_policy_whatever_the_marks(vendor: int) -> None:
    """The same with events of every kind and mark."""
    for seed, mix in product(SEEDS, MIXES.values()):
        engine = engine_for(mix, *policies_on(vendor, correct=True), vendor=vendor)
        engine.feed(decorated(random_stream(seed, 300, mix), seed, computed=mix.computed), SUMMARY)
        for lane in engine.report().lanes:
            assert_right(lane)


# Lose a DR6 of their own, and take nobody else's registers for theirs.
LOSES_DR6: Final = ("kvm-5.14", "kvm-5.17", "kvm-6.8")


@pytest.mark.parametrize("vendor", VENDORS)
def test_wrong_policies_are_found(vendor: int) -> None:
    """Where vCPUs share a CPU and use breakpoints, each policy that admits to be wrong is seen to be."""
    wrong = policies_on(vendor, correct=False)
    assert {"ignore", "kvm-3.15", "kvm-6.8"} <= set(wrong)
    unseen, unleaking = set(wrong), set(wrong) - set(LOSES_DR6) - {"hyperplatform"}
    for report in reports(Mix(outside=False), vendor, *wrong):
        for lane in report.lanes:
            if lane.verdict == DIVERGED:
                assert lane.first_divergence.what
                assert lane.latent_hazards > 0
                unseen.discard(lane.policy)
            if lane.leaks:
                assert lane.policy not in LOSES_DR6
                unleaking.discard(lane.policy)
    assert (unseen, unleaking) == (set(), set())


def _rules_of(era: str, mix: Mix, vendor: int) -> set[str]:
    """Return the deviations that happened on a few random streams."""
    return {rule.rule for report in reports(mix, vendor, era) for rule in report.lanes[0].declared}


WITHOUT: Final = {  # groups of a mix, and the rules that cannot happen without them
    "outside": {Deviation.RAW_READS, Deviation.STALE_EFFECTIVE},
    "operand_32": {Deviation.FULL_OPERAND},
    "general_detect": {Deviation.GD_KEEPS_TRAP_BITS, Deviation.SHADOW_KEEPS_GD, Deviation.DB_KEEPS_GD},
    "high_bits": {Deviation.SKIPS_ON_FAULT},
}


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("group", WITHOUT)
def test_a_rule_needs_its_cause(group: str, vendor: int, computed: bool) -> None:
    """A deviation is not declared on streams that lack what the rule is about, and is on others."""
    whole = Mix(computed=computed)
    lacking = whole.switched(False, group)
    rules = {rule.name for rule in WITHOUT[group]}
    declares = {Deviation(rule).name for rule in _declared_by("kvm-3.14", vendor)}
    assert _rules_of("kvm-3.14", lacking, vendor) & rules == set()
    assert _rules_of("kvm-3.14", whole, vendor) & rules <= declares
    assert _rules_of("kvm-3.14", whole, vendor) & rules or not rules & declares


def _declared_by(policy: str, vendor: int) -> list[Deviation]:
    """Return the deviations that a policy's table declares."""
    return [Deviation[one.rule] for one in table_of(policy, vendor).deviations]


PLAIN: Final = Mix(
    general_detect=False,
    high_bits=False,
    operand_32=False,
    debug_extensions=False,
    outside=False,
)


@pytest.mark.parametrize("vendor", VENDORS)
def test_old_kvm_on_plain_streams(vendor: int) -> None:
    """Without anything that its rules are about but DR7's bit 11, kvm-3.14 needs no other rule."""
    for report in reports(PLAIN, vendor, "kvm-3.14"):
        lane = report.lanes[0]
        assert {rule.rule for rule in lane.declared} <= {Deviation.EMULATED_MASKS.name}
        assert lane.verdict in (SAME, DECLARED)


def final_reads(engine: Engine, lane: int, vcpu: int) -> int:
    """Return DR6 and DR7 as MOVs would read them now, in the form of a story value."""
    _, dr6, dr7 = engine.lanes[lane].final_registers()[vcpu]
    return dr6 | dr7 << 32


# The fixed bits of DR6 and DR7. Set from outside without them, registers that go through the processor
# before the next MOV get them back, of which an exception that a debugger injects may know too little.
FIXED: Final = 0xFFFF_1FF0 | 0xD400 << 32


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_an_exception_shows_what_its_handler_would_read(vendor: int, group: str) -> None:
    """Under every policy, right or wrong, an exception's DR6 and DR7 are what the next MOVs read.

    Not where a policy has refused a change, so that it is elsewhere than its stream.
    """
    mix = mix_of(group, vendor)
    names = policies_on(vendor)
    raised = 0
    for seed in range(3):
        events = random_stream(seed, 250, mix)
        engine = engine_for(mix, *names, vendor=vendor)
        for at, one in enumerate(events_of(events)):
            parts = engine.feed(events.rows(at, at + 1), FULL)
            for lane, name in enumerate(names):
                part = parts[lane]
                is_elsewhere = engine.lanes[lane].state.counts[records.REFUSED] != 0
                if part.stories[0] in (2, 3, 4, 5, 6, 9) and not is_elsewhere:
                    raised += 1
                    unlike = part.story_values[0] ^ final_reads(engine, lane, one.vcpu)
                    is_injected = one.kind == EventKind.HOST_DEBUGGER
                    assert unlike & ~(FIXED if is_injected else 0) == 0, (name, seed, at)
    assert raised > 50
