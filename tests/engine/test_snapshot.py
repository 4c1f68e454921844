"""An engine that is taken over by another, anywhere, goes on as if it had not been."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.events import EventColumns
from exitlab.v1 import outcome_pb2
from hypervisor_svc.engine import BadSnapshot, Engine
from tests.engine.build import DECISIONS, FULL, VENDORS, engine_for, engine_of, outcomes, policies_on
from tests.engine.decorate import GROUPS, any_stream, mix_of
from tests.engine.test_machines import by_machine, mix_alone

LEAST = {"loop": None, "machines": 1}
EVENTS = 160


def taken_over(make: Callable[[], Engine], engine: Engine) -> Engine:
    """Return a new engine that has taken over from another."""
    other = make()
    other.restore(engine.snapshot())
    return other


def told(
    make: Callable[[], Engine], events: EventColumns, cuts: Sequence[int], *, moves: bool
) -> list[bytes]:
    """Return report and outcomes of a stream in blocks; a new engine takes over after each if it moves."""
    engine, parts = make(), []
    for start, stop in pairwise([0, *cuts, len(events)]):
        parts += engine.feed(events.rows(start, stop), FULL)
        if moves:
            before = engine.state_digest()
            engine = taken_over(make, engine)
            assert engine.state_digest() == before
    said = [engine.report().SerializeToString(deterministic=True)]
    for lane in range(len(engine.lanes) + 1):
        stories, values, decisions = outcomes(parts, lane)
        said.append(repr((stories, values)).encode())
        said += [decision.SerializeToString(deterministic=True) for decision in decisions]
    for run in engine.lane_runs():
        assert run.machine_events + sum(share.events for share in run.loop_shares) == len(events)
    return said


@pytest.mark.parametrize("ran", LEAST)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_every_block_in_an_engine_of_its_own(vendor: int, group: str, ran: str) -> None:
    """Reports and outcomes are the same bytes if every block is another engine's."""
    mix = (mix_of if LEAST[ran] is None else mix_alone)(group, vendor)
    events = any_stream(1, EVENTS, mix)

    def make() -> Engine:
        return engine_for(mix, *policies_on(vendor), vendor=vendor, least_events=LEAST[ran])

    cuts = range(20, EVENTS, 20)
    stays, moves = (told(make, events, cuts, moves=moves) for moves in (False, True))
    assert stays == moves


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 999),
    cuts=st.sets(st.integers(1, EVENTS - 1), max_size=4).map(sorted),
    vendor=st.sampled_from(VENDORS),
    group=st.sampled_from(GROUPS),
    ran=st.sampled_from([*LEAST]),
)
def test_any_hand_over(seed: int, cuts: list[int], vendor: int, group: str, ran: str) -> None:
    """Reports and outcomes are the same bytes wherever other engines take over."""
    mix = (mix_of if LEAST[ran] is None else mix_alone)(group, vendor)
    events = any_stream(seed, EVENTS, mix)

    def make() -> Engine:
        return engine_for(mix, *policies_on(vendor), vendor=vendor, least_events=LEAST[ran])

    stays, moves = (told(make, events, cuts, moves=moves) for moves in (False, True))
    assert stays == moves


def test_machines_run_on_after_a_hand_over() -> None:
    """A machine takes a lane up again from what a snapshot kept."""
    mix = mix_alone(GROUPS[0], VENDORS[0])
    events = any_stream(0, EVENTS, mix)

    def make() -> Engine:
        return engine_for(mix, "kvm-6.14", vendor=VENDORS[0], least_events=1)

    engine = make()
    engine.feed(events.rows(0, 80), FULL)
    other = taken_over(make, engine)
    (before,) = by_machine(other)
    other.feed(events.rows(80, EVENTS), FULL)
    assert by_machine(other)[0] > before


def test_a_part_sent_again_tells_the_decisions_of_its_stream() -> None:
    """On a new stream, parts that are sent again carry each decision once, and new parts no more of them."""
    mix = mix_of(GROUPS[0], VENDORS[0])
    events = any_stream(3, EVENTS, mix)
    engine = engine_for(mix, "kvm-6.14", "kvm-3.14", vendor=VENDORS[0])
    first = engine.feed(events.rows(0, 80), DECISIONS)
    second = engine.feed(events.rows(80, 120), DECISIONS)
    engine.start_stream()
    again = [outcome_pb2.OutcomePart.FromString(part.SerializeToString()) for part in second]
    for part in again:
        engine.tell_again(part)
    third = engine.feed(events.rows(120, EVENTS), DECISIONS)
    for lane in range(2):
        whole = outcomes(first + second + third, lane)[2]
        anew = outcomes(again + third, lane)[2]
        assert [d.SerializeToString() for d in whole[80:]] == [d.SerializeToString() for d in anew]
        numbers = [d.number for part in again + third if part.lane == lane for d in part.new_decisions]
        assert len(numbers) == len(set(numbers)) > 0


@pytest.mark.parametrize(
    ("start", "end", "more"),
    [(0, -1, b""), (0, None, b"\0"), (0, 0, b""), (0, 0, b"\xff" * 99), (4, None, b"")],
)
def test_what_is_no_snapshot_is_refused(start: int, end: int | None, more: bytes) -> None:
    """Bytes that no such engine wrote are refused."""
    with pytest.raises(BadSnapshot):
        engine_of("kvm-6.14").restore(engine_of("kvm-6.14").snapshot()[start:end] + more)


def test_another_config_is_refused() -> None:
    """A snapshot of two lanes is not one of one lane."""
    with pytest.raises(BadSnapshot):
        engine_of("kvm-6.14").restore(engine_of("kvm-6.14", "kvm-3.14").snapshot())
