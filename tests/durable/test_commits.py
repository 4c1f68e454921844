"""When sessions are committed."""

import pytest

from hypervisor_svc.journal import Checkpoint
from tests.durable.committing import Bench
from tests.durable.kept_server import run
from tests.hypervisor.test_session import Sender


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
