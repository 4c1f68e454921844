"""Cutting a stream into blocks anywhere changes nothing."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.events import EventColumns, EventKind
from hypervisor_svc.engine import Engine
from tests.engine.build import (
    FULL,
    SUMMARY,
    VENDORS,
    Row,
    class_marks,
    engine_for,
    engine_of,
    event,
    get_dr,
    outcomes,
    policies_on,
    stream,
)
from tests.engine.decorate import GROUPS, any_stream, mix_of
from tests.engine.test_machines import by_machine, mix_alone


class Result(NamedTuple):
    """All that a run leaves: report, state and outcomes."""

    report: bytes
    state: int
    outcomes: str


def result(engine: Engine, events: EventColumns, cuts: Iterable[int]) -> Result:
    """Run a stream in blocks that end at ``cuts``."""
    parts = []
    for start, stop in pairwise([0, *cuts, len(events)]):
        parts.extend(engine.feed(events.rows(start, stop), FULL))
    told = hashlib.sha256()
    for lane in range(len(engine.lanes) + 1):
        stories, values, decisions = outcomes(parts, lane)
        told.update(repr((stories, values)).encode())
        for decision in decisions:
            told.update(decision.SerializeToString(deterministic=True))
    report = engine.report().SerializeToString(deterministic=True)
    return Result(report, engine.state_digest(), told.hexdigest())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_any_size_of_block(vendor: int, group: str) -> None:
    """Blocks of one size, down to one event a block, leave the same bytes, state and outcomes."""
    mix = mix_of(group, vendor)
    for seed in range(2):
        events = any_stream(seed, 250, mix)
        results = {
            result(
                engine_for(mix, *policies_on(vendor), vendor=vendor), events, range(size, len(events), size)
            )
            for size in (1, 2, 7, 64, len(events))
        }
        assert len(results) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 999),
    cuts=st.sets(st.integers(1, 150), max_size=6),
    vendor=st.sampled_from(VENDORS),
    group=st.sampled_from(GROUPS),
)
def test_any_cuts(seed: int, cuts: set[int], vendor: int, group: str) -> None:
    """Blocks of any sizes leave the same bytes, state and outcomes as one block."""
    mix = mix_of(group, vendor)
    events = any_stream(seed, 151, mix)
    whole, cut = (
        result(engine_for(mix, *policies_on(vendor), vendor=vendor), events, at) for at in ((), sorted(cuts))
    )
    assert whole == cut


def by_loop_or_machine(vendor: int, group: str, seed: int, cuts: Iterable[int]) -> tuple[Result, Result, int]:
    """Return what the loop says of a stream in one block and machines of its parts; and the events of these.

    The state's digest is left out: it depends on the cuts where machines ran.
    """
    mix = mix_alone(group, vendor)
    events = any_stream(seed, 151, mix)
    loop, machines = (
        engine_for(mix, *policies_on(vendor), vendor=vendor, least_events=least) for least in (None, 1)
    )
    whole, cut = result(loop, events, ()), result(machines, events, (at for at in cuts if at < len(events)))
    return whole._replace(state=0), cut._replace(state=0), sum(by_machine(machines))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_small_blocks_by_machine(vendor: int, group: str) -> None:
    """Machines that begin anew with every few events leave the same bytes and outcomes as the loop."""
    whole, cut, machine_events = by_loop_or_machine(vendor, group, 0, range(7, 1000, 7))
    assert whole == cut
    assert machine_events


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 3),
    cuts=st.sets(st.integers(1, 150), max_size=6),
    vendor=st.sampled_from(VENDORS),
    group=st.sampled_from(GROUPS),
)
def test_any_cuts_by_machine(seed: int, cuts: set[int], vendor: int, group: str) -> None:
    """Machines that go on in blocks of any sizes leave the same bytes and outcomes as the loop."""
    whole, cut, _ = by_loop_or_machine(vendor, group, seed, sorted(cuts))
    assert whole == cut


REASONS: Final = 1024


def _many_exits() -> Iterator[Row]:
    """Yield recorded exits of every reason that a session may have, in each class, closing windows or not."""
    for reason in range(REASONS):
        for exit_class in (1, 2, 3):
            yield event(EventKind.EXIT, selector=reason, marks=class_marks(exit_class))
            yield get_dr(0)
            yield event(EventKind.EXIT, selector=reason, marks=class_marks(exit_class))


def test_many_kinds_of_exit_in_one_block() -> None:
    """A block may hold more different exits than the bill has room for at first."""
    events = stream(_many_exits())
    reports = []
    for size in (500, len(events)):
        engine = engine_of("kvm-6.14", "kvm-3.14", computed=False)
        for start in range(0, len(events), size):
            engine.feed(events.rows(start, start + size), SUMMARY)
        reports.append(engine.report().SerializeToString(deterministic=True))
    assert reports[0] == reports[1]
