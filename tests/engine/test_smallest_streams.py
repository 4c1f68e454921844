"""The known faults are found in random streams, shrink to the kept examples' size, and are theirs alone."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

import pytest

from exitlab.events import EventColumns, EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.engine import BadEvents
from hypervisor_svc.engine.vocabulary import Deviation
from tests.engine.build import SUMMARY, VENDORS, PolicyLike, Row, engine_for, policies_on, run, stream
from tests.engine.repairs import REPAIRS, repaired
from tests.engine.shrinking import Shows, smallest
from tests.engine.smallest_streams import EXAMPLES, Example, Lane
from tests.engine.test_shrinking import PLAIN
from tests.model.second_model import MOV_DR
from tests.model.streams import Mix, random_stream

NOT_COMPARABLE: Final = report_pb2.VERDICT_NOT_COMPARABLE
SEEDS: Final = range(300)
EVENTS: Final = 60
TRIES: Final = 15  # streams that are shrunk
CASES: Final = [
    pytest.param(example, lane, id=f"{name} {lane}")
    for name, example in EXAMPLES.items()
    for lane in example.lanes
]


class Signature(NamedTuple):
    """What a lane first shows otherwise: by which rule or which stories, and whether at a MOV DR."""

    rule: str
    story: int
    expected_story: int
    kind: int


def signature(lane: report_pb2.LaneReport, events: EventColumns, rule: Deviation | None) -> Signature | None:
    """Return what a lane shows otherwise, undeclared or declared by ``rule``; None for nothing."""
    if rule is not None:
        fired = [one.first_event for one in lane.declared if one.rule == rule.name and one.events]
        return Signature(rule.name, 0, 0, _kind(int(events.kinds[fired[0]]))) if fired else None
    if not lane.diverged_events or lane.verdict == NOT_COMPARABLE:
        return None
    first = lane.first_divergence
    return Signature("", first.story, first.expected_story, _kind(first.kind))


def _kind(kind: int) -> int:
    """Return a kind of event, the same for both directions of a MOV DR."""
    return int(EventKind.MOV_TO_DR) if kind in MOV_DR else kind


def replayed(policy: PolicyLike, vendor: int, rows: list[Row]) -> report_pb2.LaneReport:
    """Return the lane of an example on its two vCPUs."""
    return run(stream(rows), policy, vendor=vendor, vcpus=2, physical_cpus=2, initial=(0, 0)).lanes[0]


def shown(example: Example, policy: PolicyLike, vendor: int, rows: list[Row]) -> Signature | None:
    """Return what rows show under a policy."""
    return signature(replayed(policy, vendor, rows), stream(rows), example.rule)


@pytest.mark.parametrize(("example", "lane"), CASES)
def test_an_example_shows_its_fault_and_is_minimal(example: Example, lane: Lane) -> None:
    """The last event shows the fault, and nothing of it is left without any one of the events."""
    rows = example.rows
    report = replayed(*lane, rows)
    first = (
        report.first_divergence.event
        if example.rule is None
        else next(one.first_event for one in report.declared if one.rule == example.rule.name)
    )
    assert first == len(rows) - 1
    assert shown(example, *lane, rows)
    for left_out in range(len(rows)):
        rest = rows[:left_out] + rows[left_out + 1 :]
        assert not rest or shown(example, *lane, rest) is None, left_out


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_the_others_show_none(example: Example, vendor: int) -> None:
    """No policy shows a fault that is not listed with it; a wrong one may, if it has others."""
    for policy in policies_on(vendor, correct=None if example.rule else True):
        found = shown(example, policy, vendor, example.rows)
        assert (found is not None) == ((policy, vendor) in example.lanes), policy


def streams_for(example: Example) -> tuple[Mix, Iterator[EventColumns]]:
    """Return the random streams in which an example is looked for."""
    mix = replace(PLAIN.switched(True, *example.groups), vcpus=example.vcpus)
    return mix, (random_stream(seed, EVENTS, mix) for seed in SEEDS)


def shows(example: Example, lane: Lane, mix: Mix) -> Shows:
    """Return the question whether a stream shows what the example shows."""
    policy, vendor = lane
    wanted = shown(example, policy, vendor, example.rows)

    def does(events: EventColumns) -> bool:
        engine = engine_for(mix, policy, vendor=vendor)
        with contextlib.suppress(BadEvents):
            engine.feed(events, SUMMARY)
        return signature(engine.report().lanes[0], events, example.rule) == wanted

    return does


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_the_shrinker_finds_it(example: Example) -> None:
    """In random streams the shrinker finds the same fault, in no more events; nor can it in fewer."""
    mix, found = streams_for(example)
    does_show = shows(example, example.lanes[0], mix)
    rows = smallest(islice(filter(does_show, found), TRIES), does_show)
    shortest = min(
        len(other.rows)
        for other in EXAMPLES.values()
        if set(example.lanes) & set(other.lanes)
        and shown(other, *example.lanes[0], other.rows) == shown(example, *example.lanes[0], example.rows)
    )
    assert len(rows) == shortest, rows


def test_every_wrong_policy_has_its_example() -> None:
    """Each policy that claims to be wrong has a smallest stream on each vendor where it claims so."""
    wrong = {(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor, correct=False)}
    assert wrong == {lane for example in EXAMPLES.values() if example.rule is None for lane in example.lanes}


@pytest.mark.parametrize(
    ("example", "policy", "vendor"),
    [
        (example, policy, vendor)
        for example in EXAMPLES.values()
        for policy, vendor in example.lanes
        if policy.removeprefix("kvm-") in REPAIRS and example.rule is None
    ],
)
def test_one_fact_makes_the_fault(example: Example, policy: str, vendor: int) -> None:
    """With the one fact put right the version shows nothing of B1 or D1: no special case makes them."""
    mended = repaired(policy.removeprefix("kvm-"), vendor, Mix())
    assert shown(example, mended, vendor, example.rows) is None
