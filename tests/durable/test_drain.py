"""A server that is to stop: what its streams are told, and who has its state directory."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from exitlab.blocks import encode_block
from exitlab.serving.refusals import CannotServe, Unavailable
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc import stream
from hypervisor_svc.drain import HypervisorServer, ServeOptions
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.store import Store
from tests.durable.kept_server import Reader, Server, run
from tests.durable.stored import loaded
from tests.hypervisor.test_event_stream import until
from tests.hypervisor.test_server import LIMITS, PARTS, SECONDS, create_request
from tests.hypervisor.test_session import Sender, some_events

pb = hypervisor_pb2
Code = grpc.StatusCode


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_client_that_sends_no_open(monkeypatch: pytest.MonkeyPatch, is_draining: bool) -> None:
    """Its stream is ended: DEADLINE_EXCEEDED after a while, and at once when the server is to stop."""
    monkeypatch.setattr(stream, "OPEN_SECONDS", SECONDS if is_draining else 0.001)

    async def scenario() -> None:
        servicer, reader = HypervisorServicer(PARTS, LIMITS), Reader()
        carried = asyncio.ensure_future(servicer.StreamEvents(reader, reader))
        await until(lambda: bool(servicer._streams))
        if is_draining:
            servicer.drain()
        with pytest.raises(ConnectionAbortedError) as refused:
            await carried
        assert (reader.code, str(refused.value)) == (
            (Code.UNAVAILABLE, "the server is about to stop")
            if is_draining
            else (Code.DEADLINE_EXCEEDED, "the client has sent no Open for 0.001 seconds")
        )
        assert reader.got == []
        assert not servicer._streams

    run(scenario)


def test_a_drain_commits_and_gives_the_directory_back(tmp_path: Path) -> None:
    """Open streams are told that all is committed; the next server has the directory and goes on there."""

    async def scenario() -> None:
        options = ServeOptions(f"unix:{tmp_path}/s", LIMITS, state_dir=tmp_path / "state")
        server = HypervisorServer(options, PARTS)
        sender = Sender()
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            stub: Any = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
            session_id = (await stub.CreateSession(create_request("r"))).session_id
            call = stub.StreamEvents()
            await call.write(pb.StreamEventsRequest(open=pb.Open(session_id=session_id)))
            assert (await call.read()).opened.epoch == 1
            block = encode_block(some_events(1, 2), 0, sender.crcs)
            await call.write(pb.StreamEventsRequest.FromString(block))
            assert (await call.read()).acknowledgement.applied_events == 2
            draining = asyncio.create_task(server.drain())
            told = (await call.read()).draining
            assert (told.applied_events, told.committed_events) == (2, 2)
            assert await call.read() is grpc.aio.EOF
            await draining
        server = HypervisorServer(options, PARTS)
        async with grpc.aio.insecure_channel(await server.start()) as channel:
            stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
            status = (await stub.GetSession(pb.GetSessionRequest(session_id=session_id))).status
            assert (status.applied_events, status.epoch) == (2, 1)
            finish = pb.FinishSessionRequest(
                session_id=session_id, event_count=2, column_crcs=sender.crcs.values
            )
            assert (await stub.FinishSession(finish)).report
        await server.drain()

    run(scenario)


def test_a_drain_commits_what_could_not_be_stored_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events whose stream ended while the store failed are in it, once it works, when the server is gone."""

    def fails(*_: object) -> None:
        raise Unavailable("NOT_STORED", "no room")

    async def scenario() -> None:
        options = ServeOptions(f"unix:{tmp_path}/s", LIMITS, state_dir=tmp_path / "state")
        server, reader = HypervisorServer(options, PARTS), Reader()
        await server.start()
        created = await server._servicer.CreateSession(create_request("r"), reader)
        held = server._servicer.registry.find(created.session_id)
        reader.open(held)
        reader.send(1, 2)
        reader.half_close()
        with monkeypatch.context() as patch:
            patch.setattr(server._store, "save_checkpoint", fails)
            await server._servicer.StreamEvents(reader, reader)
        assert (held.session.applied_events, held.session.committed_events) == (2, 0)
        await server.drain()

    run(scenario)
    with contextlib.closing(Store(tmp_path / "state")) as store:
        (stored,) = loaded(store)
    assert isinstance(stored.last, Checkpoint)
    assert stored.last.applied_events == 2


def test_a_directory_in_use_serves_nobody_else(tmp_path: Path) -> None:
    """A second server does not start on it, and the first one goes on."""

    async def scenario() -> None:
        options = ServeOptions("127.0.0.1:0", LIMITS, state_dir=tmp_path)
        server = Server(tmp_path)
        with pytest.raises(CannotServe, match="another server uses it"):
            HypervisorServer(options, PARTS)
        assert await server.create("a")
        server.stop()

    run(scenario)


def test_a_server_that_stops_at_once_gives_the_directory_back(tmp_path: Path) -> None:
    """Without a drain too, the next server of the same process may have it."""

    async def scenario() -> None:
        options = ServeOptions(f"unix:{tmp_path}/s", LIMITS, state_dir=tmp_path / "state")
        for _ in range(2):
            server = HypervisorServer(options, PARTS)
            await server.start()
            await server.stop()

    run(scenario)
