"""What a server with a state directory has after it was started anew, and what it forgets."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from exitlab.blocks import encode_block
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc import stream
from hypervisor_svc.drain import HypervisorServer, ServeOptions
from hypervisor_svc.errors import CannotServe, LimitReached, NotFound
from hypervisor_svc.journal import Ending
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.registry import Held, Registry
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.store import Store
from tests.hypervisor.stored import Reader, damage, loaded
from tests.hypervisor.test_event_stream import until
from tests.hypervisor.test_server import LIMITS, PARTS, SECONDS, create_request, make_session
from tests.hypervisor.test_session import Sender, some_config, some_events

pb = hypervisor_pb2
Code = grpc.StatusCode


class Server:
    """A servicer on a state directory, and the clock of its registry; needs a running event loop."""

    def __init__(self, folder: Path, limits: ServerLimits = LIMITS, parts: Parts = PARTS) -> None:
        """Start on what is there."""
        self.store = Store(folder)
        self.servicer = HypervisorServicer(parts, limits, self.store)
        self.reader = Reader()
        self.passed_seconds = 0.0
        registry, commits = self.servicer.registry, self.servicer.commits
        assert commits is not None
        now = int(registry._now())  # whole seconds, which add up to just what a test says
        registry._now = commits._now = lambda: now + self.passed_seconds

    def stop(self) -> None:
        """End as a crash does, once the threads have done what they had begun."""
        self.servicer._threads.shutdown()
        self.store.close()

    async def create(self, name: str) -> str:
        """Create a session and return its id."""
        request = pb.CreateSessionRequest(request_id=name, config=some_config(label=name))
        response = await self.servicer.CreateSession(request, self.reader)
        return str(response.session_id)

    async def status(self, session_id: str) -> pb.SessionStatus:
        """Return where a session stands."""
        request = pb.GetSessionRequest(session_id=session_id)
        response: pb.GetSessionResponse = await self.servicer.GetSession(request, self.reader)
        return response.status

    async def open(
        self, session_id: str, reader: Reader, **opening: int
    ) -> tuple["asyncio.Future[None]", pb.Opened]:
        """Open a session for a reader; return what carries its stream, and the answer."""
        reader.responses.clear()
        carried = asyncio.ensure_future(self.servicer.StreamEvents(reader, reader))
        reader.open(self.servicer.registry.find(session_id), **opening)
        await until(lambda: bool(reader.responses) or carried.done())
        if carried.done():
            self.reader.code = reader.code
            await carried
        return carried, reader.responses[0].opened

    async def send(self, session_id: str, *args: int, reader: Reader | None = None) -> None:
        """Send the next block of a reader, or else the first of a session, and end the stream."""
        reader = reader or Reader()
        carried, _ = await self.open(session_id, reader)
        reader.send(*args)
        reader.half_close()
        await carried

    async def finish(self, session_id: str, *args: int) -> bytes:
        """Finish a session that had these events, and return its report."""
        sender = Sender()
        sender.block(*args)
        request = pb.FinishSessionRequest(
            session_id=session_id, event_count=len(args), column_crcs=sender.crcs.values
        )
        return bytes((await self.servicer.FinishSession(request, self.reader)).report)

    async def page(self, token: str = "", size: int = 100) -> tuple[list[str], str]:
        """Return the labels of one page of the list, and the token of the next."""
        request = pb.ListSessionsRequest(page_size=size, page_token=token)
        response = await self.servicer.ListSessions(request, self.reader)
        return [status.label for status in response.sessions], response.next_page_token

    async def refusal(self, call: Awaitable[Any]) -> tuple[grpc.StatusCode | None, str]:
        """Return code and message of a call that is refused."""
        with pytest.raises(ConnectionAbortedError) as refused:
            await call
        return self.reader.code, str(refused.value)


def run(scenario: Callable[[], Awaitable[None]]) -> list[Any]:
    """Run a scenario, which takes no time unless it hangs, and return the lines that were logged."""

    async def whole() -> None:
        await asyncio.wait_for(scenario(), SECONDS)

    with capture_logs() as lines:
        asyncio.run(whole())
    return lines


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


DAY = 86_400
WEEK = 7 * DAY


@pytest.mark.parametrize(
    ("seconds", "limits", "left"),
    [
        (3600, {}, "new cut done"),
        (3601, {}, "done"),
        (WEEK + 1, {}, "done"),
        (WEEK + 1, {"idle_seconds": 2 * WEEK}, "done"),
        (WEEK, {"idle_seconds": 2 * WEEK}, "new cut done"),
        (52 * WEEK, {"idle_seconds": 1}, "done"),
    ],
)
def test_what_is_dropped_is_forgotten(
    tmp_path: Path, seconds: float, limits: dict[str, int], left: str
) -> None:
    """Idle and too old sessions go from the store as well; reports that are stored may be idle for ever."""

    async def scenario() -> None:
        server = Server(tmp_path, dataclasses.replace(LIMITS, **limits))
        for name in ("new", "cut", "done"):
            session_id = await server.create(name)
            if name == "cut":
                await server.send(session_id, 1)
        await server.finish(session_id)
        server.passed_seconds = seconds
        assert " ".join((await server.page())[0]) == left
        server.stop()
        server = Server(tmp_path)
        assert " ".join((await server.page())[0]) == left
        server.stop()

    run(scenario)


def test_ages_go_on(tmp_path: Path) -> None:
    """A session is too old after so many seconds in which servers ran; its idle time begins anew."""

    async def scenario() -> None:
        limits = dataclasses.replace(LIMITS, idle_seconds=100, max_session_seconds=250)
        server, reader = Server(tmp_path, limits), Reader()
        session_id = await server.create("a")
        for age_seconds in (90, 180):
            server.passed_seconds += 90
            await server.send(session_id, 1, reader=reader)
            (stored,) = loaded(server.store)
            assert stored.age_seconds == pytest.approx(
                age_seconds, abs=SECONDS
            )  # the start of a server takes
            server.stop()
            server = Server(tmp_path, limits)
        assert await server.create("a") == session_id
        server.passed_seconds += 90
        assert await server.page() == ([], "")
        server.stop()

    run(scenario)


def test_the_newest_reports_are_kept(tmp_path: Path) -> None:
    """When there are too many, the oldest go from the store too; with a lower limit more of them go."""

    async def scenario() -> None:
        for most, expected in ((3, "cdex"), (2, "dexy"), (1, "exyz")):
            server = Server(tmp_path, dataclasses.replace(LIMITS, max_reports=most))
            if most == 3:
                for name in "abcde":
                    await server.finish(await server.create(name))
            await server.create("xyz"[3 - most])
            assert "".join((await server.page())[0]) == expected
            server.stop()
        server = Server(tmp_path)
        assert "".join((await server.page())[0]) == expected
        server.stop()

    run(scenario)


@pytest.mark.parametrize(
    ("limits", "owners", "refused"),
    [
        ({"max_sessions": 2, "max_all_sessions": 9}, "aab", ""),
        ({"max_sessions": 2, "max_all_sessions": 9}, "aaa", "2 sessions are not finished"),
        ({"max_sessions": 2, "max_all_sessions": 9}, "ababa", "2 sessions are not finished"),
        ({"max_sessions": 9, "max_all_sessions": 3}, "abc", ""),
        ({"max_sessions": 9, "max_all_sessions": 3}, "abcd", "3 sessions of all callers"),
        ({"max_sessions": 9, "max_all_sessions": 3}, "aaaa", "3 sessions of all callers"),
        ({"max_sessions": 1, "max_all_sessions": 1}, "aa", "1 sessions are not finished"),
    ],
)
def test_how_many_sessions_there_may_be(limits: dict[str, int], owners: str, refused: str) -> None:
    """Each owner has a limit, and all together; one that ends makes room, and a repeat needs none."""

    async def scenario() -> None:
        registry = Registry(ServerLimits(**limits))
        helds: list[Held] = []

        async def create(number: int, owner: str) -> Held:
            return await registry.create(create_request(str(number)), make_session, owner)

        for number, owner in enumerate(owners[:-1]):
            helds.append(await create(number, owner))
        last = len(owners) - 1
        if refused:
            with pytest.raises(LimitReached, match=refused) as refusal:
                await create(last, owners[last])
            assert refusal.value.reason == "TOO_MANY_SESSIONS"
            helds[0].session.finish(0, (0, 0))
        assert await create(last - 1, owners[last - 1]) is helds[-1]
        assert (await create(last, owners[last])).number == len(owners)

    run(scenario)


def test_sessions_of_others_do_not_exist(tmp_path: Path) -> None:
    """An owner's ids, request ids and list are his own, before the next server and after."""

    async def scenario() -> None:
        server = Server(tmp_path)
        for _ in range(2):
            registry, make = server.servicer.registry, server.servicer._make_session
            ann, bob = [await registry.create(create_request("r"), make, owner) for owner in ("ann", "bob")]
            assert ann is not bob
            assert registry.find(ann.session.session_id, owner="ann") is ann
            for owner in ("bob", ""):
                with pytest.raises(NotFound):
                    registry.find(ann.session.session_id, owner=owner)
            assert [registry.after(0, owner) for owner in ("ann", "bob", "")] == [[ann], [bob], []]
            assert registry.after(0, None) == [ann, bob]
            server.stop()
            server = Server(tmp_path)
        server.stop()

    run(scenario)


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
