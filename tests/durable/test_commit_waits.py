"""Who waits until a session is committed, and what he hears if that fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from exitlab.serving.refusals import Unavailable
from hypervisor_svc.registry import Ending, Held
from tests.durable.committing import Bench
from tests.durable.kept_server import run
from tests.hypervisor.test_event_stream import until
from tests.hypervisor.test_turns import settle


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


def test_who_leaves_takes_no_checkpoint_from_the_others() -> None:
    """Of two who wait for the same checkpoint one goes away; it is stored, and the other has his room."""

    async def scenario() -> None:
        bench = Bench()
        bench.disk.go_on.clear()
        bench.apply(10)
        leaves, stays = [asyncio.create_task(bench.commits.make_room(bench.held)) for _ in range(2)]
        await bench.reached()
        leaves.cancel()
        await settle()
        assert (leaves.cancelled(), stays.done()) == (True, False)
        bench.disk.go_on.set()
        await stays
        assert (bench.saved, bench.held.session.committed_events) == ([10], 10)

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
    """Who waits for a commit of a session that has ended, or for room in it, waits no longer."""

    async def scenario() -> None:
        bench = Bench(1)
        bench.apply(1)
        if is_finished:
            bench.held.session.finish(1, bench.sender.crcs.values)
        else:
            bench.held.session.fail(Unavailable("ENGINE_FAILED", "it broke"))
        await bench.commits.commit(bench.held)
        await bench.commits.make_room(bench.held)
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
