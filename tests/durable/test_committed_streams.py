"""What a stream hears of what is committed."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest

from exitlab.v1 import hypervisor_pb2, outcome_pb2
from hypervisor_svc import commits
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Held
from tests.durable.kept_server import Reader, Server, run
from tests.durable.stored import loaded
from tests.hypervisor.test_event_stream import until
from tests.hypervisor.test_turns import settle


class Streaming(NamedTuple):
    """A session of a server with a state directory, and its stream."""

    server: Server
    reader: Reader
    held: Held
    carried: "asyncio.Future[None]"


async def streaming(folder: Path, max_uncommitted_events: int) -> Streaming:
    """Start a server whose clock stands still, create a session, and open it."""
    server, reader = Server(folder, ServerLimits(max_uncommitted_events=max_uncommitted_events)), Reader()
    held = server.servicer.registry.find(await server.create("r"))
    carried, _ = await server.open(held.session.session_id, reader)
    return Streaming(server, reader, held, carried)


def test_a_stream_hears_of_each_commit(tmp_path: Path) -> None:
    """A block is acknowledged when it is applied, and again when it is committed; at the end all is."""

    async def scenario() -> None:
        server, reader, held, carried = await streaming(tmp_path, 4)
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
        await carried
        assert reader.acknowledged == [(1, 0), (2, 0), (2, 2), (3, 2), (4, 2), (4, 4), (5, 4)]
        assert held.session.committed_events == 5
        (stored,) = loaded(server.store)
        assert isinstance(stored.last, Checkpoint)
        assert stored.last.applied_events == 5
        server.stop()

    run(scenario)


def test_a_stream_that_pauses_is_committed_after_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no block follows that would have anybody look, what was sent last is committed in its time."""
    monkeypatch.setattr(commits, "EVERY_SECONDS", 0.001)

    async def scenario() -> None:
        server, reader, held, carried = await streaming(tmp_path, 1000)
        reader.send(1)
        await until(lambda: reader.acknowledged == [(1, 0)])
        await settle()
        assert held.looked_at_again is not None
        server.passed_seconds += 1.0
        await until(lambda: reader.acknowledged == [(1, 0), (1, 1)])
        assert held.looked_at_again is None
        reader.half_close()
        await carried
        server.stop()

    run(scenario)


def test_a_stream_never_has_more_uncommitted_than_it_may(tmp_path: Path) -> None:
    """Blocks that are sent ahead of the disk wait for it, and all are committed in the end."""

    async def scenario() -> None:
        server, reader, held, carried = await streaming(tmp_path, 4)
        for _ in range(20):
            reader.send(1, 2)
        reader.half_close()
        await carried
        told = reader.acknowledged
        assert {applied for applied, _ in told} == set(range(2, 41, 2))
        assert all(applied - committed <= 4 for applied, committed in told)
        assert sorted(told) == told
        assert held.session.committed_events == 40
        server.stop()

    run(scenario)


def test_a_stream_whose_events_cannot_be_kept(tmp_path: Path) -> None:
    """It ends UNAVAILABLE, with the reason in band; once there is room, the next stream goes on."""

    async def scenario() -> None:
        server, reader, held, carried = await streaming(tmp_path, 4)
        (most,) = server.store._database.execute("PRAGMA max_page_count").fetchone()
        server.store._database.execute("PRAGMA max_page_count = 1")
        large = outcome_pb2.OutcomePart(stories=b"x" * 100_000)  # the checkpoint needs more pages
        response = hypervisor_pb2.StreamEventsResponse(outcomes=large).SerializeToString()
        held.session._kept.add(4, [response])
        reader.send(1, 2, 3, 4)
        with pytest.raises(ConnectionAbortedError, match="takes nothing now"):
            await carried
        assert reader.refused == ["NOT_STORED"]
        assert reader.acknowledged == [(4, 0)]
        assert (held.session.applied_events, held.session.committed_events) == (4, 0)
        assert held.session.state == hypervisor_pb2.SESSION_STATE_SUSPENDED
        server.store._database.execute(f"PRAGMA max_page_count = {most}")
        carried = asyncio.ensure_future(server.servicer.StreamEvents(reader, reader))
        reader.open(held)
        reader.send(5)
        await until(lambda: reader.acknowledged[-1] == (5, 4))
        assert reader.acknowledged[-2:] == [(4, 0), (5, 4)]
        assert reader.got[-4:] == ["opened", "outcomes", "acknowledgement", "acknowledgement"]
        reader.half_close()
        await carried
        assert held.session.committed_events == 5
        server.stop()

    run(scenario)
