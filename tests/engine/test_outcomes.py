"""What is answered at each level, in parts, and that asking changes nothing."""

from typing import Final

import numpy as np
import pytest

from exitlab.events import EventColumns, EventKind
from hypervisor_svc.engine import Engine
from tests.engine.build import (
    DECISIONS,
    FULL,
    REFERENCE,
    RETIRED,
    SUMMARY,
    VENDORS,
    cpuid,
    engine_for,
    engine_of,
    get_dr,
    outcomes,
    policies_on,
    stream,
)
from tests.engine.decorate import GROUPS, any_stream, mix_of

LEVELS: Final = (SUMMARY, REFERENCE, DECISIONS, FULL)


@pytest.mark.parametrize("level", LEVELS)
def test_parts_by_level(level: int) -> None:
    """A level answers with its own columns for every event, and the last part says that it is the last."""
    parts = engine_of("kvm-6.14", "ignore").feed(stream(get_dr(0), cpuid(), get_dr(0)), level)
    lanes = {SUMMARY: [], REFERENCE: [2], DECISIONS: [0, 1, 2], FULL: [0, 1, 2]}[level]  # type: ignore[index]
    assert [part.lane for part in parts] == lanes
    assert [part.is_last_part for part in parts] == [False] * (len(parts) - 1) + [True] * bool(parts)
    for part in parts:
        is_reference = part.lane == 2
        assert (part.first_event, part.event_count) == (0, 3)
        assert len(part.decisions) == (0 if is_reference else 6)
        assert len(part.stories) == len(part.story_values) == (3 if is_reference or level == FULL else 0)


def test_a_long_answer_comes_in_parts() -> None:
    """Outcomes of more events than fit a message come in consecutive parts for each lane."""
    count = 300_000
    kinds = np.full(count, EventKind.RDTSC, np.uint8)
    kinds[-1] = EventKind.CPUID
    parts = engine_of("kvm-6.14").feed(EventColumns(kinds), FULL)
    assert len(parts) == 4
    for lane in (0, 1):
        own = [part for part in parts if part.lane == lane]
        ends = np.cumsum([0, *(part.event_count for part in own)]).tolist()
        assert [part.first_event for part in own] == ends[:-1]
        assert ends[-1] == count
        assert all(len(part.SerializeToString()) < 4 << 20 for part in own)
    numbers = np.concatenate([np.frombuffer(part.decisions, "<u2") for part in parts if part.lane == 0])
    assert (numbers[0], numbers[-1], len(np.unique(numbers))) == (0, 1, 2)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_levels_change_nothing(vendor: int, group: str) -> None:
    """The report's bytes do not depend on how much was asked for."""
    mix = mix_of(group, vendor)
    for seed in range(4):
        events = any_stream(seed, 300, mix)
        reports = set()
        for level in LEVELS:
            engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
            engine.feed(events, level)
            reports.add(engine.report().SerializeToString(deterministic=True))
        assert len(reports) == 1, seed


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_report_changes_nothing(vendor: int, group: str) -> None:
    """Reports may be made at any time: the state's digest and all that follows stay the same."""
    mix = mix_of(group, vendor)
    events = any_stream(5, 300, mix)
    asked, left = (engine_for(mix, *policies_on(vendor), vendor=vendor) for _ in range(2))
    for start in range(0, len(events), 50):
        block = events.rows(start, start + 50)
        asked.feed(block, FULL)
        left.feed(block, FULL)
        before = asked.state_digest()
        assert asked.report() == asked.report()
        assert asked.state_digest() == before == left.state_digest()
    assert asked.report() == left.report()


def test_no_events_change_nothing() -> None:
    """An empty block is applied without a trace."""
    engine = engine_of("kvm-6.14")
    engine.feed(stream(get_dr(0)), FULL)
    before = engine.state_digest()
    assert [part.event_count for part in engine.feed(stream(), FULL)] == []
    assert (engine.state_digest(), engine.applied_events) == (before, 1)


def _appended(engine: Engine, lane: int, vcpu: int) -> tuple[list[int], int, int]:
    """Return what real MOVs read now, general detect looked through."""
    rows = [get_dr(register, vcpu, marks=RETIRED) for register in (0, 1, 2, 3, 6, 7)]
    values = outcomes(engine.feed(stream(rows), FULL), lane).values
    return values[:4], values[4], values[5]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_final_registers(vendor: int, group: str) -> None:
    """Registers at the end are what MOVs appended to the stream would read, right or wrong."""
    mix = mix_of(group, vendor)
    names = policies_on(vendor)
    for seed in range(3):
        events = any_stream(seed, 120, mix)
        for vcpu in range(mix.vcpus):
            engine = engine_for(mix, *names, vendor=vendor)
            engine.feed(events, SUMMARY)
            found = [lane.final_registers()[vcpu] for lane in engine.lanes]
            in_report = [lane.vcpus[vcpu].registers for lane in engine.report().lanes]
            for number, (ours, shown) in enumerate(zip(found, in_report, strict=True)):
                assert ours == (list(shown.db), shown.dr6, shown.dr7)
                again = engine_for(mix, *names, vendor=vendor)
                again.feed(events, SUMMARY)
                assert ours == _appended(again, number, vcpu), (names[number], seed)
