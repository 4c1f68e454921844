"""The foundation: a policy that claims to be correct changes what a guest pays, never what it sees."""

from collections import Counter
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.v1 import report_pb2
from hypervisor_svc.engine.vocabulary import Deviation
from tests.engine.build import SUMMARY, VENDOR_WORDS, VENDORS, engine_for, policies_on, table_of
from tests.engine.foundation import STREAMS, lanes_of
from tests.engine.repairs import MARK, REPAIRS
from tests.model.streams import Mix, mixes, streams

SAME: Final = report_pb2.VERDICT_SAME
DECLARED: Final = report_pb2.VERDICT_SAME_BUT_DECLARED
NOT_COMPARABLE: Final = report_pb2.VERDICT_NOT_COMPARABLE
RIGHT: Final = [(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor, correct=True)]


def check(lane: report_pb2.LaneReport, where: str) -> None:
    """Hold a lane to its claim.

    Registers leak only where a window survives a debugger that takes over, which KVM declares; a lane
    that refused a change of the guest's state has nothing to be compared with.
    """
    if lane.refused_controls:
        assert lane.verdict == NOT_COMPARABLE, (lane.policy, where)
        return
    assert lane.verdict in (SAME, DECLARED), (lane.policy, where, lane.first_divergence.what)
    rules = {one.rule for one in lane.declared}
    assert (lane.verdict == DECLARED) == bool(rules), (lane.policy, where)
    declares = table_of(lane.policy.removesuffix(MARK), lane.vendor).deviations
    assert rules <= {one.rule for one in declares} | FEATURES
    assert not lane.leaks or Deviation.OPEN_SURVIVES_DEBUGGER.name in rules, (lane.policy, where, lane.leaks)


# Declared for the guest CPUs whose features a version does not know.
FEATURES: Final = {Deviation.EMULATED_MASKS.name}


@pytest.mark.parametrize(("policy", "vendor"), RIGHT)
def test_one_story(policy: str, vendor: int) -> None:
    """On random streams of everything each policy tells its vendor's story, up to what it declares."""
    verdicts: Counter[int] = Counter()
    for run, lane in lanes_of(vendor, policy):
        check(lane, f"seed {run.seed}")
        verdicts[lane.verdict] += 1
    # Whatever it refuses, there are streams without that.
    assert verdicts[SAME] + verdicts[DECLARED] >= STREAMS // 8, verdicts


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), vendor=st.sampled_from(VENDORS))
def test_one_story_shrinking(data: st.DataObject, vendor: int) -> None:
    """The same on streams that shrink when they fail, with any groups of events left out."""
    mix = data.draw(mixes(Mix.everything(VENDOR_WORDS[vendor])))
    engine = engine_for(mix, *policies_on(vendor, correct=True), vendor=vendor)
    engine.feed(data.draw(streams(mix)), SUMMARY)
    for lane in engine.report().lanes:
        check(lane, "")


WRONG: Final = [(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor, correct=False)]
BUGGY: Final = [(policy, vendor) for policy, vendor in WRONG if policy.removeprefix("kvm-") in REPAIRS]


@pytest.mark.parametrize(("policy", "vendor"), BUGGY)
def test_every_divergence_is_the_known_bug(policy: str, vendor: int) -> None:
    """What a version of KVM with a bug shows otherwise is the bug's, or declared.

    On the same stream the version with one fact put right tells the story: B1 is a belief that is not
    worked out anew, D1 a DR6 that is loaded at each entry.
    """
    right = {run.seed: lane for run, lane in lanes_of(vendor, policy + MARK)}
    assert len(right) == STREAMS
    for run, lane in lanes_of(vendor, policy):
        check(right[run.seed], f"seed {run.seed}")
        assert lane.refused_controls == right[run.seed].refused_controls


@pytest.mark.parametrize(("policy", "vendor"), WRONG)
def test_wrong_policies_are_seen_to_be(policy: str, vendor: int) -> None:
    """Each policy that admits to be wrong diverges on some of the streams, and hazards come before that."""
    wrong = [lane for _, lane in lanes_of(vendor, policy) if lane.diverged_events]
    assert len(wrong) >= STREAMS // 50
    assert all(lane.first_divergence.what for lane in wrong)
    assert sum(lane.latent_hazards for lane in wrong) > 0
