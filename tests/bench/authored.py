"""Workloads that others write, beside ours: what the border and small yields cost, and a closed loop."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

from exitlab.events import COLUMN_NAMES, EventColumns
from exitlab.plugins import Plugin
from guest_svc.api import EventKind, Generated, Workload, events
from guest_svc.authored import AuthoredSource, authored_source
from guest_svc.columns import joined
from guest_svc.hypervisor import Hypervisor
from guest_svc.sessions import QUIET, session_config, stream_workload
from guest_svc.stream import EventStream
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload as Source
from tests.bench.cases import SWITCHES, lane
from tests.bench.measure import alternate, check_same, say
from tests.bench.pair import found, pair
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = f"workloads of others, two processes, unix socket, kvm-6.14, the events of {SWITCHES}"
LANES: Final = [lane("kvm-6.14")]
# One path for open and closed loops must cost an open one nothing that shows.
GOAL: Final = Goal(0.95)
SMALL_EVENTS: Final = 100
ANSWERS: Final = 2_000
_OURS: Final = "our workload, run as all are: speed of a plain loop over its blocks"
_THEIRS: Final = {
    "large parts": "an author's, yields of 65,536 events made before: speed of ours, made meanwhile",
    "all columns": "the same with all columns",
    "small parts": f"the same in yields of {SMALL_EVENTS} events",
}
_COLUMNS: Final = ("kinds", "args", "gap_cycles", "selectors", "values")


@cache
def _whole(count: int) -> EventColumns:
    return joined(list(find_workload(SWITCHES).make({}, 0, count).blocks()))


class _Author(Workload):
    """Yields events that were made before."""

    api_version = 1
    name = "authored"
    summary = "made before"
    columns: Sequence[str] = _COLUMNS
    part_events: ClassVar[int] = 65_536

    def generate(self) -> Generated:
        """Yield them part by part."""
        assert self.events_asked is not None
        whole = _whole(self.events_asked)
        for start in range(0, len(whole), self.part_events):
            yield whole.rows(start, start + self.part_events)


class _AllColumns(_Author):
    columns = COLUMN_NAMES


class _Small(_Author):
    part_events = SMALL_EVENTS


class _Closed(Workload):
    """Asks for an answer after each event."""

    api_version = 1
    name = "closed"
    summary = "one event, one answer"
    reads_outcomes = True

    def generate(self) -> Generated:
        """Read DR6, again and again."""
        while True:
            yield events(kinds=EventKind.MOV_FROM_DR, args=6)


def _source(made: type[Workload]) -> AuthoredSource:
    return authored_source(Plugin(made, "this file", Path(__file__)))


def rows(plan: Plan) -> list[Row]:
    """Return how fast each is beside our own workload in a plain loop."""
    say("workloads of others")
    count = plan.stream_events
    authors = {"large parts": _Author, "all columns": _AllColumns, "small parts": _Small}
    with pair(plan.folder, "authored") as (_, hypervisor):
        ours = find_workload(SWITCHES).make({}, 0, count)
        theirs = {what: _source(made).make({}, 0, count) for what, made in authors.items()}
        truth = _found(hypervisor, ours)
        for what, workload in theirs.items():
            check_same(what, truth, _found(hypervisor, workload))
        samples = alternate(
            {
                "loop": lambda: _seconds(lambda: _plain_loop(hypervisor, ours)),
                "ours": lambda: _seconds(lambda: _run(hypervisor, ours)),
                **{
                    what: lambda workload=workload: _seconds(lambda: _run(hypervisor, workload))  # type: ignore[misc]
                    for what, workload in theirs.items()
                },
            },
            plan.rounds,
        )
        closed = _source(_Closed).make({}, 0, ANSWERS)
        answered = alternate({"closed": lambda: _seconds(lambda: _run(hypervisor, closed))}, plan.rounds)
    rates = {f"{name} events/s": count / samples.median(name) for name in samples.seconds}
    found_rows = [Row(TOPIC, _OURS, samples.speed("ours", "loop"), goal=GOAL, numbers=rates)]
    for name, what in _THEIRS.items():
        found_rows.append(Row(TOPIC, what, samples.speed(name, "ours")))
    answers = ANSWERS / answered.median("closed")
    return [*found_rows, Row(TOPIC, "closed loop, one event an answer", answers, "events/s")]


def _run(hypervisor: Hypervisor, workload: Source) -> None:
    stream_workload(hypervisor, workload, LANES, QUIET)


def _found(hypervisor: Hypervisor, workload: Source) -> dict[str, object]:
    return found(stream_workload(hypervisor, workload, LANES, QUIET).report)


def _plain_loop(hypervisor: Hypervisor, workload: Source) -> None:
    session = hypervisor.create_session(session_config(workload, LANES))
    with EventStream(hypervisor, session, workload.columns) as stream:
        for block in workload.blocks():
            stream.send(block)
        stream.finish()


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
