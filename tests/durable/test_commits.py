"""When sessions are committed."""

import asyncio

import pytest
from structlog.testing import capture_logs

from exitlab.serving.refusals import OurFault
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.registry import Ending
from tests.durable.committing import Bench
from tests.durable.kept_server import run
from tests.hypervisor.test_session import FakeEngine, Sender


@pytest.mark.parametrize(
    ("room", "seconds", "events", "is_due"),
    [
        (10, 0.0, 4, False),
        (10, 0.0, 5, True),
        (10, 0.999, 4, False),
        (10, 1.0, 4, True),
        (10, 1.0, 1, True),
        (10, 99.0, 0, False),
        (9, 0.0, 4, False),
        (9, 0.0, 5, True),
        (1, 0.0, 1, True),
        (1, 0.0, 0, False),
        (1 << 22, 0.999, 200, False),
    ],
)
def test_when_a_checkpoint_is_due(room: int, seconds: float, events: int, is_due: bool) -> None:
    """After a second, if there is anything to commit, or at once when half of the room is used."""

    async def scenario() -> None:
        bench = Bench(room)
        bench.apply(events)
        bench.clock.seconds += seconds
        assert await bench.look() == is_due
        assert bench.saved == [events] * is_due
        assert bench.held.session.committed_events == events * is_due
        assert bench.stream.told == ["committed"] * is_due

    run(scenario)


def test_the_second_counts_from_the_last_checkpoint() -> None:
    """A second after one ended the next is due, not a second after it began."""

    async def scenario() -> None:
        bench = Bench()
        for seconds, is_due in ((1.0, True), (0.999, False), (0.001, True), (0.5, False), (0.5, True)):
            bench.apply(1)
            bench.clock.seconds += seconds
            assert await bench.look() == is_due
        assert bench.saved == [1, 3, 5]

    run(scenario)


@pytest.mark.parametrize(
    ("copy_seconds", "disk_seconds", "thread_seconds"),
    [(0.0, 2.0, 0.0), (2.0, 0.0, 0.0), (1.5, 0.5, 0.0), (0.5, 1.5, 5.0)],
)
@pytest.mark.parametrize(
    ("after_seconds", "events", "is_due"),
    [(37.9, 4, False), (38.0, 4, True), (0.0, 5, True), (38.0, 0, False)],
)
def test_checkpoints_take_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
    copy_seconds: float,
    disk_seconds: float,
    thread_seconds: float,
    after_seconds: float,
    events: int,
    is_due: bool,
) -> None:
    """After one of 2 seconds there is none for 38, of any session, unless half of its room is used.

    The copy counts and what the disk takes, and not the wait for a thread.
    """

    async def scenario() -> None:
        bench = Bench()
        other = bench.hold()
        make = bench.held.session.checkpoint

        def copied() -> Checkpoint | None:
            bench.clock.seconds += copy_seconds
            return make()

        monkeypatch.setattr(bench.held.session, "checkpoint", copied)
        bench.apply(1)
        bench.clock.seconds += 1.0
        bench.disk.takes_seconds = disk_seconds
        bench.thread_seconds = thread_seconds
        assert await bench.look()
        bench.clock.seconds += after_seconds
        if events:
            other.session.apply(1, Sender().block(*range(events)))
        assert await bench.look(other) == is_due

    run(scenario)


@pytest.mark.parametrize("age_seconds", [0.0, 60.0])
def test_a_checkpoint_tells_the_age_of_its_session(age_seconds: float) -> None:
    """An age goes on from what was stored, so that it counts while servers run."""

    async def scenario() -> None:
        bench = Bench()
        held = bench.hold(age_seconds)
        held.session.apply(1, bench.sender.block(1))
        bench.clock.seconds += 2.5
        assert await bench.look(held)
        assert bench.disk.ages == [age_seconds + 2.5]

    run(scenario)


def test_one_checkpoint_at_a_time() -> None:
    """While one is being stored, none begins, however many events come; what came later is not in it."""

    async def scenario() -> None:
        bench = Bench()
        bench.disk.go_on.clear()
        bench.apply(5)
        bench.commits.look(bench.held)
        first = bench.held.committing
        assert first is not None
        await bench.reached()
        bench.apply(5)
        bench.commits.look(bench.held)
        assert bench.held.committing is first
        assert (bench.held.session.committed_events, bench.stream.told) == (0, [])
        bench.disk.go_on.set()
        await first
        assert (bench.saved, bench.stream.told) == ([5], ["committed"])
        assert bench.held.session.committed_events == 5
        assert await bench.look()
        assert bench.saved == [5, 10]

    run(scenario)


def test_sessions_are_committed_in_turn_and_all_pause_for_each() -> None:
    """However many are due at once, one checkpoint is made at a time, and the next waits for its pause."""

    async def scenario() -> None:
        bench = Bench()
        others = [bench.hold() for _ in range(8)]
        for held in others:
            held.session.apply(1, Sender().block(1))
        bench.apply(1)
        bench.clock.seconds += 1.0
        bench.disk.takes_seconds = 0.5
        for held in (bench.held, *others):
            bench.commits.look(held)
        await asyncio.wait([held.committing for held in (bench.held, *others) if held.committing])
        assert bench.saved == [1]
        assert not await bench.look(others[-1])
        bench.clock.seconds += 9.5
        assert await bench.look(others[-1])
        assert bench.saved == [1, 1]

    asyncio.run(scenario())


def test_a_fault_in_a_checkpoint_is_logged_and_ends_the_stream_only() -> None:
    """What no refusal is, as a bug of the engine, is told as ours; the session is tried again later."""

    class Broken(FakeEngine):
        def snapshot(self) -> bytes:
            raise ZeroDivisionError("a bug")

    async def scenario() -> None:
        bench = Bench()
        bench.apply(1)
        bench.held.session._engine = Broken()
        with capture_logs() as lines, pytest.raises(OurFault):
            await bench.commits.commit(bench.held)
        assert [line["event"] for line in lines] == ["fault", "not committed"]
        assert bench.stream.told == [Ending.NOT_STORED]
        assert bench.held.session.committed_events == 0

    asyncio.run(scenario())
