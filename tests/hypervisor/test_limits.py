"""Every limit of the server, at the edge and one past it: who passes it is told, and nothing has changed."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from exitlab.blocks import encode_block
from exitlab.serving.limits import limit_flags
from exitlab.serving.refusals import LimitReached, NotFound
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from hypervisor_svc.cli import main
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Held, Registry
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.session import Session
from hypervisor_svc.store import Store
from hypervisor_svc.stream import EventStream
from tests.contract.wire import length_delimited
from tests.durable.kept_server import Reader
from tests.hypervisor.test_event_stream import Place, until
from tests.hypervisor.test_server import (
    PARTS,
    SECONDS,
    Client,
    Code,
    GatedEngine,
    RunningServer,
    Stream,
    create_request,
    edited,
    make_session,
    plain_events,
    set_field,
)
from tests.hypervisor.test_session import VMX, FakeEngine, Sender, opened, some_config, some_events, state_of
from tests.hypervisor.test_turns import settle

pb = hypervisor_pb2
FULL = outcome_pb2.OUTCOME_LEVEL_FULL
SUSPENDED = pb.SESSION_STATE_SUSPENDED
COVERED: set[str] = set()
Test = TypeVar("Test", bound=Callable[..., object])


def covers(*limits: str) -> Callable[[Test], Test]:
    """Mark a test as that of limits."""

    def mark(test: Test) -> Test:
        COVERED.update(limits)
        return test

    return mark


def test_every_limit_has_its_test(capsys: pytest.CaptureFixture[str]) -> None:
    """What ``serve --help`` calls a limit is tried here, and stands in the contract's Limits."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    limits = capsys.readouterr().out.partition("\nlimits:\n")[2]
    flags = {flag.replace("-", "_") for flag in re.findall(r"^  --([a-z-]+) N", limits, re.MULTILINE)}
    assert flags == COVERED == {name for name, *_ in limit_flags(ServerLimits)}
    assert flags <= set(pb.Limits.DESCRIPTOR.fields_by_name)


@contextmanager
def a_client(folder: Path, **limits: int) -> Iterator[Client]:
    """Yield a client of a server with some limits."""
    server = RunningServer(f"unix:{folder}/s", ServerLimits(**limits))
    client = Client(server)
    yield client
    client.channel.close()
    server.close()


def told_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str, dict[str, str]]:
    """Make a call that is refused, and return code, reason, field and place from its details."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    field = ""
    if len(status.details) > 1:
        assert status.details[1].Unpack(bad)
        field = bad.field_violations[0].field
    return error.code(), info.reason, field, dict(info.metadata)


def exhausted(reason: str, **place: int) -> tuple[grpc.StatusCode, str, str, dict[str, str]]:
    """Return what is told of a limit that is reached."""
    return Code.RESOURCE_EXHAUSTED, reason, "", {key: str(value) for key, value in place.items()}


def padded(message: bytes, size: int) -> bytes:
    """Return a message of ``size`` bytes that says the same: a field that nobody knows fills it."""
    missing = size - len(message)
    (padding,) = (
        field
        for room in range(max(missing - 8, 0), missing)
        if len(field := length_delimited(1000, b"x" * room)) == missing
    )
    return message + padding


@covers("max_message_bytes")
def test_a_message_may_be_as_large_as_it_says(tmp_path: Path) -> None:
    """One of as many bytes is taken, on a stream or in a call; one byte more is refused, unread."""
    with a_client(tmp_path, max_message_bytes=4096) as client:
        session_id = client.create("large")
        stream = Stream(client, session_id)
        stream.opened()
        stream.put_bytes(padded(encode_block(some_events(1, 2), 0, stream.crcs), 4096))
        assert stream.applied() == 2
        before = client.status(session_id)
        stream.put_bytes(padded(encode_block(some_events(3), 2, stream.crcs), 4097))
        with pytest.raises(grpc.RpcError) as refused:
            stream.get()
        assert refused.value.code() is Code.RESOURCE_EXHAUSTED  # gRPC's own, without details
        get: Any = client.channel.unary_unary(
            f"/{pb.DESCRIPTOR.services_by_name['HypervisorService'].full_name}/GetSession",
            response_deserializer=pb.GetSessionResponse.FromString,
        )
        asked = pb.GetSessionRequest(session_id=session_id).SerializeToString()
        before.state = SUSPENDED
        statuses = (get(padded(asked, 4096), timeout=SECONDS).status for _ in iter(int, 1))
        assert next(status for status in statuses if status.state == SUSPENDED) == before
        with pytest.raises(grpc.RpcError) as refused:
            get(padded(asked, 4097), timeout=SECONDS)
        assert refused.value.code() is Code.RESOURCE_EXHAUSTED
        assert client.status(session_id) == before


@covers("max_block_events")
@pytest.mark.parametrize(
    ("send", "field"),
    [
        (edited(set_field("first_event", 16), *[1] * 9), "block.event_count"),
        (plain_events(*[1] * 9, first_event=16), "events.events"),
    ],
    ids=["columns", "plain"],
)
def test_a_block_may_have_so_many_events(tmp_path: Path, send: Callable[[Stream], None], field: str) -> None:
    """As many are applied, in columns or plain; one more is refused whole."""
    with a_client(tmp_path, max_block_events=8) as client:
        session_id = client.create("block")
        stream = Stream(client, session_id)
        stream.opened()
        stream.put_block(*range(8))
        assert stream.applied() == 8
        plain_events(*range(8), first_event=8)(stream)
        assert stream.applied() == 16
        before = client.status(session_id)
        send(stream)
        assert told_of(stream.get)[:3] == (Code.INVALID_ARGUMENT, "BLOCK_TOO_LARGE", field)
        before.state = SUSPENDED
        assert client.status(session_id) == before


@covers("max_window_events")
def test_who_ignores_the_window_is_read_no_faster() -> None:
    """It is for the guest to keep; of one that does not, three messages are taken behind the one in hand."""

    async def scenario(place: Place, held: Held) -> None:
        GatedEngine.reached.clear()
        GatedEngine.go_on.clear()
        guest = Reader()
        carried = place.stream(guest)
        guest.open(held)
        guest.send(100)
        for _ in range(20):
            guest.send(*[1] * 64)
        assert await asyncio.to_thread(GatedEngine.reached.wait, SECONDS)
        await settle()
        assert guest.sent.qsize() == 20 - 3
        GatedEngine.go_on.set()
        guest.half_close()
        await carried
        assert guest.acknowledged[-1] == (1 + 20 * 64,) * 2

    in_a_place(scenario)
    assert ServerLimits(max_window_events=5).to_proto().max_window_events == 5


@covers("max_lanes", "max_vcpus")
@pytest.mark.parametrize(
    ("most", "past", "reason", "field"),
    [
        (
            {"lanes": [policy_pb2.Lane(policy_name="known", vendor=VMX)] * 3},
            {"lanes": [policy_pb2.Lane(policy_name="known", vendor=VMX)] * 4},
            "LANE_COUNT",
            "config.lanes",
        ),
        ({"vcpus": 16}, {"vcpus": 17}, "CPU_COUNT", "config.vcpus"),
        ({"physical_cpus": 16}, {"physical_cpus": 17}, "CPU_COUNT", "config.physical_cpus"),
    ],
    ids=["lanes", "vCPUs", "physical CPUs"],
)
def test_a_config_may_have_so_much(
    tmp_path: Path, most: dict[str, Any], past: dict[str, Any], reason: str, field: str
) -> None:
    """As many lanes, vCPUs and physical CPUs make a session; one more is refused, and makes none."""
    with a_client(tmp_path, max_lanes=3, max_vcpus=16) as client:
        refused = told_of(lambda: client.create("1", **past))
        assert refused == (Code.INVALID_ARGUMENT, reason, field, {})
        assert not client.stub.ListSessions(pb.ListSessionsRequest(), timeout=SECONDS).sessions
        assert client.create("1", **most)


@covers("max_sessions", "max_all_sessions")
@pytest.mark.parametrize(
    ("limits", "place"),
    [
        ({"max_sessions": 2}, {"max_sessions": 2}),
        ({"max_all_sessions": 2}, {"max_all_sessions": 2}),
        ({"max_sessions": 2, "max_all_sessions": 2}, {"max_sessions": 2}),
    ],
)
def test_so_many_sessions_may_be_unfinished(
    tmp_path: Path, limits: dict[str, int], place: dict[str, int]
) -> None:
    """One more is refused, and the others are as they were; a repeat is none, and an end makes room."""
    with a_client(tmp_path, **limits) as client:
        first, second = client.create("1"), client.create("2")
        before = [client.status(each) for each in (first, second)]
        assert told_of(lambda: client.create("3")) == exhausted("TOO_MANY_SESSIONS", **place)
        assert client.create("2") == second
        assert [client.status(each) for each in (first, second)] == before
        finish = pb.FinishSessionRequest(session_id=first, column_crcs=[0, 0])
        client.stub.FinishSession(finish, timeout=SECONDS)
        assert client.create("3")


@covers("max_streams")
@pytest.mark.parametrize("kind", ["stream", "watcher"])
def test_so_many_streams_may_be_open(tmp_path: Path, kind: str) -> None:
    """A watcher counts as a stream; one more is refused, of either kind, and what is open goes on."""
    with a_client(tmp_path, max_streams=2) as client:
        session_id = client.create("streams")
        stream = Stream(client, session_id)
        stream.opened()
        hour = pb.WatchReportRequest(session_id=session_id, interval_ms=3_600_000)
        watch = client.stub.WatchReport(hour, timeout=SECONDS)
        next(watch)
        before = client.status(session_id)
        further: Callable[[], object] = (
            Stream(client, session_id).get
            if kind == "stream"
            else lambda: next(client.stub.WatchReport(hour, timeout=SECONDS))
        )
        assert told_of(further) == exhausted("TOO_MANY_STREAMS", max_streams=2)
        assert client.status(session_id) == before
        stream.put_block(1)
        assert stream.applied() == 1
        stream.half_close()
        with pytest.raises(StopIteration):
            stream.get()
        assert Stream(client, session_id).opened().epoch == 2


@covers("max_state_bytes")
def test_a_state_may_have_so_many_bytes() -> None:
    """Outcomes that are not confirmed are part of it; past the limit nothing is taken until there is room."""
    session = Session("id", some_config(outcome_level=FULL), FakeEngine, ServerLimits())
    sender = Sender()
    epoch = opened(session)
    part = len(session.apply(epoch, sender.block(1, 2))[0])
    for spare in (0, -1):
        limits = ServerLimits(max_state_bytes=200 + part + spare)
        session = Session("id", some_config(outcome_level=FULL), FakeEngine, limits)
        sender = Sender()
        epoch = opened(session)
        session.apply(epoch, sender.block(1, 2))
        before = state_of(session)
        block = sender.block(3)
        if spare == 0:
            session.apply(epoch, block)
            continue
        with pytest.raises(LimitReached) as refused:
            session.apply(epoch, block)
        assert (refused.value.code, refused.value.reason) == ("RESOURCE_EXHAUSTED", "STATE_TOO_LARGE")
        assert refused.value.place == {"state_bytes": 200 + part, "max_state_bytes": 199 + part}
        assert state_of(session) == before
        session.confirm(epoch, 2)
        session.apply(epoch, block)
        assert session.applied_events == 3


class Clock:
    """Tells the time that a test says it is."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


@covers("idle_seconds", "max_session_seconds")
@pytest.mark.parametrize("limits", [{"idle_seconds": 10}, {"max_session_seconds": 10}], ids=["idle", "age"])
def test_a_session_may_wait_so_long(limits: dict[str, int]) -> None:
    """At its last second it is found as it was; after that it is as if it had never been."""

    async def scenario() -> None:
        clock = Clock()
        registry = Registry(ServerLimits(**limits), clock)
        held = await registry.create(create_request("r"), make_session)
        before = state_of(held.session)
        clock.seconds = 10
        assert registry.after(0) == [held]
        assert state_of(held.session) == before
        clock.seconds = 10.001
        with pytest.raises(NotFound) as refused:
            registry.find(held.session.session_id)
        assert refused.value.reason == "SESSION_NOT_FOUND"
        assert registry.after(0) == []
        again = await registry.create(create_request("r"), make_session)
        assert again.session.session_id != held.session.session_id

    asyncio.run(scenario())


class Stopping(Reader):
    """A client that reads the answer to its Open and nothing more."""

    async def write(self, message: bytes) -> None:
        """Take an answer, if it is the first."""
        await super().write(message)
        if self.got == ["opened"]:
            self.reads.clear()


class Hours(asyncio.SelectorEventLoop):
    """A loop whose clock a test puts forward."""

    ahead = 0.0

    def time(self) -> float:
        """Return the time."""
        return super().time() + self.ahead


def in_a_place(scenario: Callable[[Place, Held], Awaitable[None]], clock: Clock | None = None) -> None:
    """Run a scenario with one session, in a loop whose clock it can put forward."""

    async def whole() -> None:
        place = Place()
        if clock is not None:
            place.servicer.registry = Registry(ServerLimits(), clock)
        held = await place.start()
        await scenario(place, held)

    with asyncio.Runner(loop_factory=Hours) as runner:
        runner.run(whole())


def put_forward(seconds: float) -> None:
    """Put the clock forward."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Hours)
    loop.ahead += seconds


@covers("idle_seconds")
@pytest.mark.parametrize("does", ["sends", "reads", "reads again"])
def test_a_client_may_be_silent_so_long(does: str) -> None:
    """One that sends nothing, does not read what it waits for, or what is sent again, is ended once idle."""

    async def scenario(place: Place, held: Held) -> None:
        first, guest = Reader(), Stopping() if does == "reads again" else Reader()
        carried = place.stream(first)
        first.open(held)
        first.send(1, 2)
        first.half_close()
        await carried
        if does == "reads":
            guest.reads.clear()
        carried = place.stream(guest)
        guest.open(held)
        await until(lambda: held.stream is not None)
        if does == "reads again":  # else it would be one that sends nothing
            guest.next_event, guest.crcs = first.next_event, first.crcs
            guest.send(3)
            await until(lambda: held.session.applied_events == 3)
        before = await place.status(held)
        await settle()
        put_forward(3595)
        await settle()
        assert not carried.done()
        put_forward(10)
        verb = "sent" if does == "sends" else "read"
        with pytest.raises(ConnectionAbortedError, match=f"the client has {verb} nothing for 3600 seconds"):
            await carried
        assert guest.code is Code.DEADLINE_EXCEEDED
        before.state = SUSPENDED
        assert await place.status(held) == before

    in_a_place(scenario)


def test_a_fenced_stream_lets_go_of_what_is_sent_again() -> None:
    """Outcomes that a client asks for again and does not read are dropped when it comes anew."""

    async def scenario(place: Place, held: Held) -> None:
        first, older, newer = Reader(), Stopping(), Reader()
        carried = place.stream(first)
        first.open(held)
        for _ in range(5):
            first.send(1, 2)
        first.half_close()
        await carried
        carried = place.stream(older)
        older.open(held)
        await until(lambda: older.got == ["opened"])
        await settle()
        stream = held.stream
        assert isinstance(stream, EventStream)
        assert [len(answers) for answers in stream._unwritten] == [5]  # the sixth is in hand
        place.stream(newer)
        newer.open(held)
        await until(lambda: newer.got[-1:] == ["acknowledgement"])
        assert [len(answers) for answers in stream._unwritten] == [0]
        older.reads.set()
        with pytest.raises(ConnectionAbortedError, match="newer stream"):
            await carried
        assert older.got == ["opened", "outcomes", "refused"]

    in_a_place(scenario)


@covers("max_session_seconds")
def test_a_stream_ends_with_a_session_that_is_too_old() -> None:
    """At its last second a block is applied; the next one finds no session, and no stream goes on."""
    clock = Clock()
    most = ServerLimits().max_session_seconds

    async def scenario(place: Place, held: Held) -> None:
        guest = Reader()
        carried = place.stream(guest)
        guest.open(held)
        await until(lambda: guest.got == ["opened"])
        clock.seconds = most
        guest.send(1, 2)
        await until(lambda: guest.got[-1:] == ["acknowledgement"])
        before = await place.status(held)
        clock.seconds = most + 1
        guest.send(3)
        with pytest.raises(ConnectionAbortedError, match="dropped as too old"):
            await carried
        assert guest.code is Code.NOT_FOUND
        assert guest.refused == ["SESSION_NOT_FOUND"]
        before.state = SUSPENDED
        assert await place.status(held) == before
        with pytest.raises(NotFound):
            place.servicer.registry.find(held.session.session_id)

    in_a_place(scenario, clock)


@covers("max_reports")
def test_so_many_reports_are_kept() -> None:
    """As many ended sessions stay as they are; of one more, the oldest goes when a session is created."""

    async def scenario() -> None:
        registry = Registry(ServerLimits(max_reports=3))
        for number in range(3):
            held = await registry.create(create_request(str(number)), make_session)
            held.session.finish(0, (0, 0))
        before = [state_of(held.session) for held in registry.after(0)]
        running = await registry.create(create_request("running"), make_session)
        assert [state_of(held.session) for held in registry.after(0)][:3] == before
        running.session.finish(0, (0, 0))
        await registry.create(create_request("another"), make_session)
        kept = [held.request.request_id for held in registry.after(0)]
        assert kept == ["1", "2", "running", "another"]
        assert [state_of(held.session) for held in registry.after(0)][:2] == before[1:]

    asyncio.run(scenario())


@covers("max_uncommitted_events")
def test_so_many_events_may_be_uncommitted(tmp_path: Path) -> None:
    """Where the limit is reached, the next block waits until a checkpoint is durable; none is refused."""

    async def scenario() -> None:
        limits = ServerLimits(max_uncommitted_events=8)
        store = Store(tmp_path)
        servicer = HypervisorServicer(PARTS, limits, store)
        is_stored = asyncio.Event()
        waiting = asyncio.Event()
        commits = servicer.commits
        assert commits is not None
        commit = commits._commit

        async def slow(held: Held) -> None:
            waiting.set()
            await is_stored.wait()
            await commit(held)

        commits._commit = slow  # type: ignore[method-assign]  # a disk that waits for the test
        held = await servicer.registry.create(create_request("r"), servicer._make_session)
        guest = Reader()
        carried = asyncio.ensure_future(servicer.StreamEvents(guest, guest))
        guest.open(held)
        for _ in range(2):
            guest.send(1, 2, 3, 4)
        guest.send(5)
        await until(lambda: guest.acknowledged[-1:] == [(8, 0)])
        await waiting.wait()
        before = await held.call(servicer.in_thread, held.session.status)
        await settle()
        assert await held.call(servicer.in_thread, held.session.status) == before
        is_stored.set()
        await until(lambda: guest.acknowledged[-1] == (9, 8))
        guest.half_close()
        await carried
        assert held.session.committed_events == 9
        store.close()

    asyncio.run(asyncio.wait_for(scenario(), SECONDS))
