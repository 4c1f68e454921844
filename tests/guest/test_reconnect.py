"""A stream that is cut: wherever that is, the guest goes on and sends what is lacking, each once."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from exitlab.v1 import hypervisor_pb2, outcome_pb2
from guest_svc.attempt import READER
from guest_svc.errors import CouldNotFinish
from guest_svc.stream import EventStream
from tests.guest.keeper import COLUMNS, Limits, create, events
from tests.guest.scripted import LANES, Fault, Point, Scripted, connected, crash, cut, shrink
from tests.guest.test_stream_interrupted import Interrupted, interrupt

TOTAL = 12
BLOCK = 4
PARTS = [(first, lane) for first in range(0, TOTAL, BLOCK) for lane in range(LANES)]


@dataclass
class Ran:
    """What a guest saw of its run."""

    reported_events: int
    reconnects: int
    cuts: list[str] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)  # first event and lane of each that it had


def run(scripted: Scripted, retry_seconds: float = 30) -> Ran:
    """Send all events, one block at a time on the way, and finish the session."""
    ran = Ran(0, 0)

    def take(part: outcome_pb2.OutcomePart) -> None:
        ran.parts.append((part.first_event, part.lane))

    with connected(scripted, retry_seconds) as hypervisor:
        session = create(hypervisor)
        with EventStream(hypervisor, session, COLUMNS, take, ran.cuts.append) as stream:
            for start in range(0, TOTAL, BLOCK):
                stream.send(events(BLOCK, start))
            ran.reported_events = stream.finish().events
        assert hypervisor.priced("s1", []) == hypervisor_pb2.GetReportResponse(report=b"priced")
        ran.reconnects = stream.reconnects
    return ran


def openings(scripted: Scripted) -> list[tuple[int, int, list[int]]]:
    """Return of each Open what the guest had, where the hypervisor stood, and the blocks that came then."""
    return [
        (opening.received_events, opening.next_event, [first for first, _ in opening.blocks])
        for opening in scripted.openings
    ]


WHOLE = [(0, 0, [0, 4, 8])]


@pytest.mark.parametrize(
    ("point", "time", "expected"),
    [
        (Point.OPEN, 1, [(0, -1, []), *WHOLE]),
        (Point.OPENED, 1, [(0, 0, []), *WHOLE]),
        (Point.BLOCK, 1, [(0, 0, []), *WHOLE]),
        (Point.BLOCK, 2, [(0, 0, [0]), (4, 4, [4, 8])]),
        (Point.APPLIED, 1, [(0, 0, [0]), (0, 4, [4, 8])]),
        (Point.APPLIED, 3, [(0, 0, [0, 4, 8]), (8, 12, [])]),
        (Point.FIRST_LANE, 1, [(0, 0, [0]), (0, 4, [4, 8])]),
        (Point.FIRST_LANE, 2, [(0, 0, [0, 4]), (4, 8, [8])]),
        (Point.FIRST_LANE, 3, [(0, 0, [0, 4, 8]), (8, 12, [])]),
        (Point.OUTCOMES, 2, [(0, 0, [0, 4]), (8, 8, [8])]),
        (Point.OUTCOMES, 3, [(0, 0, [0, 4, 8]), (12, 12, [])]),
        (Point.ACKNOWLEDGED, 2, [(0, 0, [0, 4]), (8, 8, [8])]),
        (Point.ACKNOWLEDGED, 3, WHOLE),
        (Point.FINISH, 1, WHOLE),
        (Point.FINISHED, 1, WHOLE),
        (Point.REPORT, 1, WHOLE),
    ],
)
def test_a_cut_anywhere_changes_nothing(
    point: Point, time: int, expected: list[tuple[int, int, list[int]]]
) -> None:
    """The guest goes on where the hypervisor stands; each event is applied, each outcome had, once."""
    scripted = Scripted({(point, time): cut()})
    ran = run(scripted)
    assert openings(scripted) == expected
    assert (scripted.values, ran.parts, ran.reported_events) == ([*range(TOTAL)], PARTS, TOTAL)
    assert ran.reconnects == len(ran.cuts) == len(expected) - 1
    assert scripted.finishes == 1 + (point in (Point.FINISH, Point.FINISHED))


@pytest.mark.parametrize("committed", [0, 4, 8])
@pytest.mark.parametrize(
    ("point", "time", "received"),
    [
        (Point.BLOCK, 3, 8),
        (Point.FIRST_LANE, 3, 8),
        (Point.OUTCOMES, 3, 12),
        (Point.ACKNOWLEDGED, 2, 8),
        (Point.OPENED, 1, 0),
        (Point.FINISH, 1, 12),
    ],
)
def test_after_a_crash_all_above_the_last_checkpoint_is_sent_again(
    point: Point, time: int, received: int, committed: int
) -> None:
    """Blocks come again from there; outcomes that the guest has had are had no second time."""
    scripted = Scripted({(point, time): crash()}, commit=lambda applied: min(applied, committed))
    ran = run(scripted)
    back_at = min(committed, received if point is not Point.OPENED else 0)
    blocks = [*range(back_at, TOTAL, BLOCK)]
    assert openings(scripted)[1:] == [(received, back_at, blocks)]
    assert (scripted.values, ran.parts, ran.reported_events) == ([*range(TOTAL)], PARTS, TOTAL)
    assert ran.reconnects == 1


@pytest.mark.parametrize("point", Point)
def test_every_stream_may_be_cut_a_few_times(point: Point) -> None:
    """One cut after another, also before anything else gets done, is no different from one."""
    scripted = Scripted(
        {(point, time): crash() for time in range(1, 4)}, commit=lambda applied: applied // 8 * 8
    )
    ran = run(scripted)
    assert (scripted.values, ran.parts, ran.reported_events) == ([*range(TOTAL)], PARTS, TOTAL)


@pytest.mark.parametrize(
    ("committed", "is_told"), [(0, True), (4, True), (8, False)], ids=["all again", "one again", "none again"]
)
def test_outcomes_that_come_again_have_to_be_the_same(committed: int, is_told: bool) -> None:
    """A hypervisor that answers the same events otherwise after a crash ends the run."""
    scripted = Scripted({(Point.BLOCK, 3): crash(says="b")}, commit=lambda applied: min(applied, committed))
    if not is_told:
        assert run(scripted).parts == PARTS
        return
    said = f"sent outcomes of events {committed} to {committed + BLOCK} again, and others"
    with pytest.raises(CouldNotFinish, match=said):
        run(scripted)
    assert len(scripted.openings) == 2


def test_what_is_sent_ahead_comes_again_in_order() -> None:
    """With a window of several blocks, those that the cut stream had on the way are sent by the next."""
    scripted = Scripted({(Point.BLOCK, 2): cut()}, limits=Limits(max_block_events=2, max_window_events=8))
    ran = run(scripted)
    assert openings(scripted) == [(0, 0, [0]), (2, 2, [2, 4, 6, 8, 10])]
    assert (scripted.values, ran.reported_events) == ([*range(TOTAL)], TOTAL)


SMALLER = [
    (Limits(max_block_events=3), 3),
    (Limits(max_window_events=3), 3),
    (Limits(max_uncommitted_events=4), 2),
    (Limits(max_message_bytes=512 + 9 * 1), 1),
    (Limits(max_block_events=5), 4),
]


@pytest.mark.parametrize(("limits", "most"), SMALLER)
@pytest.mark.parametrize(
    ("point", "time", "fault", "back_at"),
    [
        (Point.OPENED, 1, cut(), 0),
        (Point.BLOCK, 1, crash(), 0),
        (Point.BLOCK, 2, cut(), 4),
        (Point.APPLIED, 3, cut(), 12),
    ],
)
def test_a_hypervisor_may_come_back_with_smaller_limits(
    limits: Limits, most: int, point: Point, time: int, fault: Fault, back_at: int
) -> None:
    """What it lacks is cut anew, into blocks that it takes, and so is all that comes after."""
    scripted = Scripted({(point, time): shrink(fault, limits)})
    ran = run(scripted)
    blocks = [first for start in range(back_at, TOTAL, BLOCK) for first in range(start, start + BLOCK, most)]
    assert openings(scripted)[1:] == [(min(back_at, 8), back_at, blocks)]
    assert (scripted.values, ran.reported_events) == ([*range(TOTAL)], TOTAL)


@pytest.mark.parametrize(("limits", "most"), SMALLER[:-1])
def test_blocks_whose_outcomes_have_come_are_not_cut_anew(limits: Limits, most: int) -> None:
    """Outcomes that come again in other parts could not be compared: the run ends, and says why."""
    scripted = Scripted({(Point.BLOCK, 3): shrink(crash(), limits)}, commit=lambda applied: applied // 8 * 4)
    with pytest.raises(CouldNotFinish, match=f"no more than {most} events in a block now.*start the run"):
        run(scripted)
    assert len(scripted.openings) == 2


def test_what_has_arrived_is_confirmed_anew() -> None:
    """A confirmation may have been lost on its way: the next stream begins with it."""
    scripted = Scripted({(Point.BLOCK, 3): crash(), (Point.BLOCK, 5): cut()}, commit=lambda _: 0)
    run(scripted)
    assert [opening.received_events for opening in scripted.openings] == [0, 8, 8]
    assert [opening.confirmed for opening in scripted.openings] == [[4, 8], [0, 4], [4, 8, 12]]


def test_a_cut_at_the_first_stream_is_told_too() -> None:
    """Whoever waits knows for what: the first failure of an outage is told, and not each attempt."""
    scripted = Scripted({(Point.OPEN, number): cut(said=f"attempt {number}") for number in range(1, 5)})
    ran = run(scripted)
    assert ran.cuts == ["the stream broke at event 0: attempt 1 (UNAVAILABLE)"]
    assert ran.reconnects == 1


def interrupt_reconnecting(place: int, stream: EventStream, cuts: list[str]) -> Callable[..., Any]:
    """Return a trace function that raises at a place, counted from a cut on until the next stream is open."""
    interrupted = interrupt(place)

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        is_cut = cuts and not stream.reconnects
        return interrupted(frame, event, value) if is_cut else trace

    return trace


def test_an_interruption_while_reconnecting_ends_the_stream() -> None:
    """A signal that comes after a cut leaves no reader behind, wherever it finds the caller."""
    place, is_interrupted = 0, True
    while is_interrupted:
        place += 1
        cuts: list[str] = []
        with connected(Scripted({(Point.BLOCK, 1): cut(), (Point.OPEN, 2): cut()})) as hypervisor:
            stream = EventStream(hypervisor, create(hypervisor), COLUMNS, on_cut=cuts.append)
            sys.settrace(interrupt_reconnecting(place, stream, cuts))
            try:
                with stream:
                    stream.send(events(1))
                    stream.wait_until_applied()
            except Interrupted:
                pass
            else:
                is_interrupted = False
            finally:
                sys.settrace(None)
        for reader in [thread for thread in threading.enumerate() if thread.name == READER]:
            reader.join(10)
            assert not reader.is_alive()
    assert place > 100  # it was interrupted in earnest
