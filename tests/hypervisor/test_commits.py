"""When sessions are committed, with a clock and a disk that the tests turn; and what a stream hears of it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from exitlab.v1 import hypervisor_pb2, outcome_pb2
from hypervisor_svc.commits import Commits
from hypervisor_svc.errors import Unavailable
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Ending, Held, Registry
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.session import Session
from hypervisor_svc.store import Store
from tests.hypervisor.stored import FakeJournal, Reader, loaded
from tests.hypervisor.test_event_stream import until
from tests.hypervisor.test_server import PARTS, SECONDS, create_request
from tests.hypervisor.test_session import FakeEngine, Sender, opened, some_config
from tests.hypervisor.test_turns import settle


class Clock:
    """Tells the time that a test says it is."""

    def __init__(self) -> None:
        """Begin somewhere, long before what a machine's clock tells."""
        self.seconds = -1e6

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


class Disk(FakeJournal):
    """A store whose work takes as long as it is told, by the clock, and waits while it is told to."""

    def __init__(self, clock: Clock) -> None:
        """Take no time."""
        super().__init__()
        self.takes_seconds = 0.0
        self.is_reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._clock = clock

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep a checkpoint, in its time."""
        self.is_reached.set()
        assert self.go_on.wait(SECONDS)
        self._clock.seconds += self.takes_seconds
        super().save_checkpoint(session_id, checkpoint, age_seconds)


class Watcher:
    """A stream that notes what it is told."""

    epoch = 1

    def __init__(self) -> None:
        """Be told nothing yet."""
        self.told: list[Ending | str] = []

    def end(self, why: Ending) -> None:
        """Note an end."""
        self.told.append(why)

    def tell_committed(self) -> None:
        """Note a commit."""
        self.told.append("committed")


class Bench:
    """Commits with one session that is streaming."""

    def __init__(self, max_uncommitted_events: int = 10) -> None:
        """Make the session; needs a running event loop."""
        self.clock = Clock()
        self.disk = Disk(self.clock)
        self.limits = ServerLimits(max_uncommitted_events=max_uncommitted_events)
        self.commits = Commits(self.disk, self.limits, self.in_thread, self.clock)
        self.stream = Watcher()
        self.sender = Sender()
        self.held = self.hold()
        self.held.stream = self.stream

    def hold(self, age_seconds: float = 0.0) -> Held:
        """Return another session, as the registry holds it."""
        session = Session("id", some_config(), FakeEngine, self.limits, self.disk)
        opened(session)
        registry = Registry(self.limits, self.clock)
        return registry.adopt(session, 1, "", create_request("r"), age_seconds)

    @staticmethod
    async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
        """Do engine work at once."""
        return work(*args)

    def apply(self, events: int) -> None:
        """Apply more events to the session."""
        if events:
            self.held.session.apply(1, self.sender.block(*range(events)))

    async def look(self, held: Held | None = None) -> bool:
        """Look whether the session is due, and wait for what begins."""
        held = held or self.held
        self.commits.look(held)
        if held.committing is None:
            return False
        await held.committing
        return True

    async def reached(self) -> None:
        """Wait until a save has begun."""
        assert await asyncio.to_thread(self.disk.is_reached.wait, SECONDS)
        self.disk.is_reached.clear()

    @property
    def saved(self) -> list[int]:
        """The events of the checkpoints that were saved."""
        return [checkpoint.applied_events for checkpoint in self.disk.checkpoints]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario, which takes no time unless it hangs."""

    async def whole() -> None:
        await asyncio.wait_for(scenario(), SECONDS)

    asyncio.run(whole())


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
    ("after_seconds", "events", "is_due"),
    [(37.9, 4, False), (38.0, 4, True), (0.0, 5, True), (38.0, 0, False)],
)
def test_checkpoints_take_a_twentieth_of_the_time(after_seconds: float, events: int, is_due: bool) -> None:
    """After one of 2 seconds there is none for 38, of any session, unless half of its room is used."""

    async def scenario() -> None:
        bench = Bench()
        other = bench.hold()
        bench.apply(1)
        bench.clock.seconds += 1.0
        bench.disk.takes_seconds = 2.0
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


def test_room_is_made_by_waiting() -> None:
    """Who may have no more uncommitted events waits for the disk; with one event less nobody waits."""

    async def scenario() -> None:
        bench = Bench()
        bench.disk.go_on.clear()
        bench.apply(9)
        await bench.commits.make_room(bench.held)
        assert bench.held.committing is None
        bench.apply(1)
        waiting = asyncio.create_task(bench.commits.make_room(bench.held))
        await bench.reached()
        await settle()
        assert not waiting.done()
        bench.disk.go_on.set()
        await waiting
        assert (bench.saved, bench.held.session.committed_events) == ([10], 10)

    run(scenario)


def test_room_is_made_by_one_checkpoint_for_all_who_wait() -> None:
    """Who finds a checkpoint under way waits for it, and for another only if that was not enough."""

    async def scenario() -> None:
        bench = Bench()
        bench.disk.go_on.clear()
        bench.apply(8)
        bench.commits.look(bench.held)
        await bench.reached()
        bench.apply(2)
        waiting = [asyncio.create_task(bench.commits.make_room(bench.held)) for _ in range(3)]
        await settle()
        bench.disk.go_on.set()
        await asyncio.gather(*waiting)
        assert bench.saved == [8]

    run(scenario)


def test_all_that_is_applied_is_committed_when_it_has_to_be() -> None:
    """At a stream's end the clock does not count; a checkpoint that lacks the last events is followed."""

    async def scenario() -> None:
        bench = Bench()
        await bench.commits.commit(bench.held)
        assert bench.saved == []
        bench.disk.go_on.clear()
        bench.apply(5)
        bench.commits.look(bench.held)
        await bench.reached()
        bench.apply(1)
        waiting = asyncio.create_task(bench.commits.commit(bench.held))
        await settle()
        bench.disk.go_on.set()
        await waiting
        assert (bench.saved, bench.held.session.committed_events) == ([5, 6], 6)
        await bench.commits.commit(bench.held)
        assert bench.saved == [5, 6]

    run(scenario)


@pytest.mark.parametrize("is_finished", [False, True])
def test_nothing_is_committed_of_a_session_at_its_end(is_finished: bool) -> None:
    """Who waits for a commit of a session that has ended waits no longer."""

    async def scenario() -> None:
        bench = Bench()
        bench.apply(1)
        if is_finished:
            bench.held.session.finish(1, bench.sender.crcs.values)
        else:
            bench.held.session.fail(Unavailable("ENGINE_FAILED", "it broke"))
        await bench.commits.commit(bench.held)
        bench.clock.seconds += 2
        await bench.look()
        assert bench.saved == []

    run(scenario)


@pytest.mark.parametrize("way", ["look", "commit", "make_room"])
def test_a_disk_that_fails_ends_the_stream(way: str) -> None:
    """Nothing is committed that is not stored; the stream is told why it ends, and the next try works."""

    async def scenario() -> None:
        bench = Bench()
        bench.apply(10)
        bench.disk.fails = True
        ways: dict[str, Callable[[Held], Awaitable[Any]]] = {
            "look": bench.look,
            "commit": bench.commits.commit,
            "make_room": bench.commits.make_room,
        }
        for tries in (1, 2):
            with pytest.raises(Unavailable, match="the disk is full"):
                await ways[way](bench.held)
            assert bench.stream.told == [Ending.NOT_STORED] * tries
            assert bench.held.session.committed_events == 0
            assert bench.held.committing is None
        assert bench.held.session.can_go_on
        bench.disk.fails = False
        await ways[way](bench.held)
        assert bench.held.session.committed_events == 10
        assert bench.stream.told[2:] == ["committed"]

    run(scenario)


def test_a_failure_that_nobody_waits_for_is_told_all_the_same() -> None:
    """A checkpoint beside a stream fails: the stream ends, and the session waits with what it has."""

    async def scenario() -> None:
        bench = Bench()
        bench.apply(5)
        bench.disk.fails = True
        bench.commits.look(bench.held)
        await until(lambda: bench.held.committing is None)
        assert bench.stream.told == [Ending.NOT_STORED]
        bench.held.stream = None
        bench.clock.seconds += 1
        bench.commits.look(bench.held)
        await until(lambda: bench.held.committing is None)
        assert (bench.held.session.applied_events, bench.held.session.committed_events) == (5, 0)

    run(scenario)


class Served:
    """A servicer on a state directory, with one session and one stream."""

    def __init__(self, folder: Path, max_uncommitted_events: int) -> None:
        """Make the servicer; needs a running event loop."""
        self.store = Store(folder)
        limits = ServerLimits(max_uncommitted_events=max_uncommitted_events)
        self.servicer = HypervisorServicer(PARTS, limits, self.store)
        assert self.servicer.commits is not None
        self.servicer.commits._now = Clock()  # no second passes
        self.reader = Reader()

    async def open(self) -> Held:
        """Create the session and open its stream."""
        created = await self.servicer.CreateSession(create_request("r"), self.reader)
        held = self.servicer.registry.find(created.session_id)
        self.carried = asyncio.ensure_future(self.servicer.StreamEvents(self.reader, self.reader))
        self.reader.open(held)
        await until(lambda: self.reader.got == ["opened"])
        return held


def test_a_stream_hears_of_each_commit(tmp_path: Path) -> None:
    """A block is acknowledged when it is applied, and again when it is committed; at the end all is."""

    async def scenario() -> None:
        served = Served(tmp_path, max_uncommitted_events=4)
        held = await served.open()
        reader = served.reader
        reader.send(1)
        await until(lambda: reader.acknowledged == [(1, 0)])
        await settle()
        assert held.committing is None  # neither half of the room nor a second
        reader.send(2)
        await until(lambda: reader.acknowledged[-1] == (2, 2))
        reader.send(3)
        await until(lambda: reader.acknowledged[-1] == (3, 2))
        reader.send(4)
        await until(lambda: reader.acknowledged[-1] == (4, 4))
        reader.send(5)
        reader.half_close()
        await served.carried
        assert reader.acknowledged == [(1, 0), (2, 0), (2, 2), (3, 2), (4, 2), (4, 4), (5, 4)]
        assert held.session.committed_events == 5
        (stored,) = loaded(served.store)
        assert isinstance(stored.last, Checkpoint)
        assert stored.last.applied_events == 5
        served.store.close()

    run(scenario)


def test_a_stream_never_has_more_uncommitted_than_it_may(tmp_path: Path) -> None:
    """Blocks that are sent ahead of the disk wait for it, and all are committed in the end."""

    async def scenario() -> None:
        served = Served(tmp_path, max_uncommitted_events=4)
        held = await served.open()
        for _ in range(20):
            served.reader.send(1, 2)
        served.reader.half_close()
        await served.carried
        told = served.reader.acknowledged
        assert {applied for applied, _ in told} == set(range(2, 41, 2))
        assert all(applied - committed <= 4 for applied, committed in told)
        assert sorted(told) == told
        assert held.session.committed_events == 40
        served.store.close()

    run(scenario)


def test_a_stream_whose_events_cannot_be_kept(tmp_path: Path) -> None:
    """It ends UNAVAILABLE, with the reason in band; once there is room, the next stream goes on."""

    async def scenario() -> None:
        served = Served(tmp_path, max_uncommitted_events=4)
        held = await served.open()
        (most,) = served.store._database.execute("PRAGMA max_page_count").fetchone()
        served.store._database.execute("PRAGMA max_page_count = 1")
        large = outcome_pb2.OutcomePart(stories=b"x" * 100_000)  # the checkpoint needs more pages
        response = hypervisor_pb2.StreamEventsResponse(outcomes=large).SerializeToString()
        held.session._kept.add(4, [response])
        served.reader.send(1, 2, 3, 4)
        with pytest.raises(ConnectionAbortedError, match="takes nothing now"):
            await served.carried
        assert served.reader.refused == ["NOT_STORED"]
        assert served.reader.acknowledged == [(4, 0)]
        assert (held.session.applied_events, held.session.committed_events) == (4, 0)
        assert held.session.state == hypervisor_pb2.SESSION_STATE_SUSPENDED
        served.store._database.execute(f"PRAGMA max_page_count = {most}")
        served.carried = asyncio.ensure_future(served.servicer.StreamEvents(served.reader, served.reader))
        served.reader.open(held)
        served.reader.send(5)
        await until(lambda: served.reader.acknowledged[-1] == (5, 4))
        assert served.reader.acknowledged[-2:] == [(4, 0), (5, 4)]
        assert served.reader.got[-4:] == ["opened", "outcomes", "acknowledgement", "acknowledgement"]
        served.reader.half_close()
        await served.carried
        assert held.session.committed_events == 5
        served.store.close()

    run(scenario)
