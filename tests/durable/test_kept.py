"""What a server with a state directory has after it was started anew."""

import asyncio
import dataclasses
import threading
from pathlib import Path

import grpc
import pytest

from exitlab.serving.refusals import NotFound
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.journal import Ending
from tests.durable.kept_server import Reader, Server, run
from tests.durable.stored import damage, loaded
from tests.hypervisor.test_server import PARTS, SECONDS, create_request
from tests.hypervisor.test_session import resolve_policy
from tests.hypervisor.test_turns import settle

pb = hypervisor_pb2
Code = grpc.StatusCode


def test_the_next_server_has_the_sessions(tmp_path: Path) -> None:
    """Status, request ids and reports are those of the server before, and sessions go on to the same end."""

    async def scenario() -> None:
        server = Server(tmp_path)
        new, cut, done = [await server.create(name) for name in ("new", "cut", "done")]
        await server.send(cut, 1, 2)
        await server.send(done, 3)
        report = await server.finish(done, 3)
        get = pb.GetReportRequest(session_id=done, prices=[pb.PriceChoice(name="seed-2014")])
        priced = await server.servicer.GetReport(get, server.reader)
        before = [await server.status(each) for each in (new, cut, done)]
        assert [status.committed_events for status in before] == [0, 2, 1]
        server.stop()
        for _ in range(2):
            server = Server(tmp_path)
            held = [server.servicer.registry.find(each) for each in (new, cut, done)]
            assert [each.ended.is_set() for each in held] == [False, False, True]
            assert [await server.status(each) for each in (new, cut, done)] == before
            assert [await server.create(name) for name in ("new", "cut", "done")] == [new, cut, done]
            other = server.servicer.CreateSession(create_request("cut"), server.reader)
            assert (await server.refusal(other))[0] == Code.ALREADY_EXISTS
            assert await server.finish(done, 3) == report
            assert await server.servicer.GetReport(get, server.reader) == priced
            server.stop()
        server = Server(tmp_path)
        assert await server.finish(cut, 1, 2)
        server.stop()

    run(scenario)


def test_page_tokens_go_on(tmp_path: Path) -> None:
    """A list that was begun with one server is ended with the next, and new sessions come last."""

    async def scenario() -> None:
        server = Server(tmp_path)
        ids = {name: await server.create(name) for name in "abcde"}
        seen, token = await server.page(size=2)
        server.store.delete([ids["c"], ids["e"]])
        server.stop()
        server = Server(tmp_path)
        await server.create("f")
        found, token = await server.page(token, size=1)
        assert (seen, found) == (["a", "b"], ["d"])
        assert (await server.page(token)) == (["f"], "")
        assert [stored.start.number for stored in loaded(server.store)] == [1, 2, 4, 6]
        server.stop()

    run(scenario)


def test_what_a_client_hears_of_is_stored(tmp_path: Path) -> None:
    """A session is in the store when its id is answered, an epoch when Opened is, a report when it is."""

    async def scenario() -> None:
        server = Server(tmp_path)
        session_id = await server.create("a")
        (stored,) = loaded(server.store)
        assert (stored.start.session_id, stored.start.request.request_id) == (session_id, "a")
        assert stored.start.resolved.lanes[0].policy_table.name == "known"
        reader = Reader()
        carried, opened = await server.open(session_id, reader)
        (stored,) = loaded(server.store)
        assert stored.epoch == opened.epoch == 1
        reader.half_close()
        await carried
        report = await server.finish(session_id)
        (stored,) = loaded(server.store)
        assert isinstance(stored.last, Ending)
        assert stored.last.report == report
        server.stop()

    run(scenario)


def test_epochs_go_on(tmp_path: Path) -> None:
    """A stream of the next server has a newer epoch than any before it, and may ask for the last."""

    async def scenario() -> None:
        epochs = []
        session_id = ""
        for expected in range(3):
            server = Server(tmp_path)
            session_id = session_id or await server.create("a")
            reader = Reader()
            carried, opened = await server.open(session_id, reader, expected_epoch=expected)
            epochs.append(opened.epoch)
            reader.half_close()
            await carried
            server.stop()
        assert epochs == [1, 2, 3]

    run(scenario)


def test_a_session_that_cannot_be_stored_is_none(tmp_path: Path) -> None:
    """Without room, CreateSession is UNAVAILABLE and holds nothing; with room, the same request works."""

    async def scenario() -> None:
        server = Server(tmp_path)
        database = server.store._database
        (most,) = database.execute("PRAGMA max_page_count").fetchone()
        database.execute("PRAGMA max_page_count = 1")
        names = [f"{number}{'x' * 250}" for number in range(40)]
        created: list[str] = []

        async def create_all() -> None:
            for name in names:
                created.append(await server.create(name))

        with pytest.raises(ConnectionAbortedError, match="takes nothing now"):
            await create_all()
        assert server.reader.code == Code.UNAVAILABLE
        assert len(server.servicer.registry.after(0)) == len(loaded(server.store)) == len(created)
        database.execute(f"PRAGMA max_page_count = {most}")
        assert await server.create(names[len(created)])
        assert [held.number for held in server.servicer.registry.after(0)] == [*range(1, len(created) + 2)]
        server.stop()

    run(scenario)


def test_a_client_that_gives_up_harms_no_other(tmp_path: Path) -> None:
    """Who goes while his session is made finds it when he comes back; the next client has another one."""
    reached, go_on = threading.Event(), threading.Event()

    def slow_table(
        name: str, vendor: policy_pb2.Vendor.ValueType, features: policy_pb2.CpuFeatures
    ) -> policy_pb2.PolicyTable:
        reached.set()
        assert go_on.wait(SECONDS)
        return resolve_policy(name, vendor, features)

    async def scenario() -> None:
        server = Server(tmp_path, parts=dataclasses.replace(PARTS, policy_table=slow_table))
        first = asyncio.create_task(server.create("first"))
        assert await asyncio.to_thread(reached.wait, SECONDS)
        first.cancel()
        second = asyncio.create_task(server.create("second"))
        await settle()
        assert (first.cancelled(), second.done()) == (True, False)
        go_on.set()
        ids = [await second, await server.create("first")]
        expected = [(1, "first", ids[1]), (2, "second", ids[0])]
        starts = [stored.start for stored in loaded(server.store)]
        assert [(each.number, each.request.request_id, each.session_id) for each in starts] == expected
        assert (await server.page())[0] == ["first", "second"]
        server.stop()

    run(scenario)


def test_sessions_of_another_engine(tmp_path: Path) -> None:
    """After an upgrade an unfinished session is refused and says why; its request id still stands for it."""

    async def scenario() -> None:
        server = Server(tmp_path)
        new, cut, done = [await server.create(name) for name in ("new", "cut", "done")]
        await server.send(cut, 1, 2)
        report = await server.finish(done)
        server.stop()
        server = Server(tmp_path, parts=dataclasses.replace(PARTS, engine_fingerprint="newer"))
        message = "the session began under fake, and this server has newer; start a new session"
        for session_id, events in ((new, 0), (cut, 2)):
            status = await server.status(session_id)
            assert (status.state, status.applied_events) == (pb.SESSION_STATE_FAILED, events)
            assert status.note == f"ENGINE_CHANGED: {message}"
            refused = await server.refusal(server.send(session_id, 3))
            assert refused[1] == message
        assert await server.finish(done) == report
        assert await server.create("cut") == cut
        server.stop()
        server = Server(tmp_path)  # back with the older engine
        assert (await server.status(cut)).state == pb.SESSION_STATE_SUSPENDED
        server.stop()

    run(scenario)


@pytest.mark.parametrize("table", ["checkpoints", "endings"])
def test_a_damaged_session_fails_alone(tmp_path: Path, table: str) -> None:
    """It says STATE_DAMAGED in its status and to whatever is asked of it; the other one goes on."""

    async def scenario() -> None:
        server = Server(tmp_path)
        bad, good = await server.create("bad"), await server.create("good")
        await server.send(bad, 1)
        if table == "endings":
            await server.finish(bad, 1)
        server.stop()
        damage(tmp_path, table, "column_crcs")
        server = Server(tmp_path)
        status = await server.status(bad)
        said = "what was stored of the session is damaged"
        assert (status.state, status.note) == (pb.SESSION_STATE_FAILED, f"STATE_DAMAGED: {said}")
        assert await server.refusal(server.finish(bad, 1)) == (Code.DATA_LOSS, said)
        get = pb.GetReportRequest(session_id=bad)
        asked = server.servicer.GetReport(get, server.reader)
        assert await server.refusal(asked) == (Code.DATA_LOSS, said)
        await server.send(good, 1, 2)
        assert await server.finish(good, 1, 2)
        server.stop()

    run(scenario)


def test_a_session_with_a_damaged_start_is_left_out(tmp_path: Path) -> None:
    """The log tells its number, the id is of nobody, and the others are there."""

    async def scenario() -> None:
        server = Server(tmp_path)
        bad = await server.create("bad")
        server.stop()
        damage(tmp_path, "sessions", "request")
        server = Server(tmp_path)
        with pytest.raises(NotFound):
            server.servicer.registry.find(bad)
        again = await server.create("bad")
        assert again != bad
        assert [held.number for held in server.servicer.registry.after(0)] == [2]
        server.stop()

    lines = [line for line in run(scenario) if line["log_level"] == "error"]
    assert lines == [{"event": "a stored session is damaged and left out", "log_level": "error", "number": 1}]
