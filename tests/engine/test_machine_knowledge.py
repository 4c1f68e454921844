"""What machines know of policies: how much is kept, and of which records."""

from collections.abc import Iterator

import numpy as np
import pytest

from exitlab.debugreg import DR7_RESET
from exitlab.events import EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.engine import gang, records
from hypervisor_svc.engine import knowledge as known_steps
from hypervisor_svc.engine.fleet import LoopReason
from hypervisor_svc.engine.states import states_of
from tests.engine.build import SUMMARY, VMX, Row, cpuid, engine_of, event, get_dr, set_dr, stream

ACCESSES = [
    row
    for register in (0, 1, 2, 3, 6, 7)
    for row in (set_dr(register, 0x400), get_dr(register), cpuid(), get_dr(register))
]


@pytest.fixture
def knowledge(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[known_steps.Knowledge]]:
    """Have nothing known at first, and list what is learned of."""
    known: list[known_steps.Knowledge] = []
    knowledge_of = known_steps.knowledge_of

    def listed(*arguments: object, **keywords: object) -> known_steps.Knowledge:
        known.append(knowledge_of(*arguments, **keywords))  # type: ignore[arg-type]  # passed on as they came
        return known[-1]

    known_steps._knowledge.cache_clear()
    monkeypatch.setattr("hypervisor_svc.engine.fleet.knowledge_of", listed)
    yield known
    known_steps._knowledge.cache_clear()


def report_of(rows: list[Row], *, least_events: int | None = 1) -> report_pb2.Report:
    """Return what kvm-6.14 makes of rows; by machine unless there is no least number of events."""
    engine = engine_of("kvm-6.14", vendor=VMX, least_events=least_events)
    engine.feed(stream(rows), SUMMARY)
    report = engine.report()
    (run,) = engine.lane_runs()
    assert run.machine_events == (0 if least_events is None else len(rows))
    return report


def test_what_is_kept_has_a_bound(
    knowledge: list[known_steps.Knowledge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is learned than is kept, it is learned again; counters grow with the steps."""
    monkeypatch.setattr(known_steps, "_KEPT_STEPS", 30)
    monkeypatch.setattr(gang, "_FIRST_STEPS", 2)
    assert report_of(ACCESSES) == report_of(ACCESSES, least_events=None)
    assert 0 < len(knowledge[0]._steps) <= 30


def test_steps_of_recorded_exits_are_known_by_their_reasons(knowledge: list[known_steps.Knowledge]) -> None:
    """A session that meets reasons in another order learns nothing new."""
    rows = [event(EventKind.EXIT, selector=code) for code in range(40)]
    report_of(rows)
    learned = len(knowledge[0]._steps)
    assert learned > 40
    report_of(rows[::-1])
    assert knowledge[0] is knowledge[1]
    assert len(knowledge[1]._steps) == learned


def test_steps_that_do_the_same_are_counted_together() -> None:
    """Many words of one answer take one of a machine's numbers, however often one of them is new."""
    engine = engine_of("kvm-6.14", vendor=VMX, least_events=1)
    for code in range(60):
        engine.feed(
            stream([event(EventKind.EXIT, selector=10), event(EventKind.CPUID), set_dr(0, code)]), SUMMARY
        )
        engine.feed(stream([event(EventKind.EXIT, selector=100 + code)]), SUMMARY)
    engine.report()
    (fleet,) = engine.fleets.values()
    (lane_machine,) = fleet._gang._machines
    assert len(set(lane_machine.steps[2:])) == len(lane_machine.steps) - 2
    assert len(lane_machine.steps) < 60 * 8


def test_the_reason_is_the_blocks_own() -> None:
    """After small blocks, a block that cannot begin by machine is not called small."""
    engine = engine_of("kvm-6.14", vendor=VMX, least_events=4)
    engine.feed(stream([cpuid(), event(EventKind.MOV_SS, arg=0)]), SUMMARY)
    engine.feed(stream([cpuid()] * 8), SUMMARY)
    (run,) = engine.lane_runs()
    shares = {int(share.reason): share.events for share in run.loop_shares}
    assert shares == {LoopReason.SMALL_BLOCKS: 2, LoopReason.RARE_EVENTS: 8}


@pytest.mark.parametrize(
    ("of_cpu", "word", "value", "has_state"),
    [
        (True, records.HOST_DR7, DR7_RESET, True),
        (True, records.HOST_DR7, 0x600, False),
        (True, records.HOST_ACTIVE, 1, False),
        (False, records.CONTROL, 1, False),
        (False, records.EXTRA, 1, False),
        (False, records.SHADOW, 0x1234, True),
    ],
)
def test_what_a_state_can_say(*, of_cpu: bool, word: int, value: int, has_state: bool) -> None:
    """A record has a state only if nothing but stale copies would be lost."""
    (lane,) = engine_of("kvm-6.14", vendor=VMX).lanes
    changed = lane.state.physical_cpus if of_cpu else lane.state.vcpus
    changed[0, word] = value
    _, found = states_of(lane.state.vcpus, lane.state.physical_cpus, np.zeros(1, np.uint64))
    assert found.tolist() == [has_state]
