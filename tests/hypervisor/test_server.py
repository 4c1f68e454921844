"""The hypervisor's service over a real socket, driven through the generated stubs."""

import asyncio
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import EventColumns
from exitlab.serving.refusals import CannotServe, NotFound, WrongState
from exitlab.v1 import events_pb2, hypervisor_pb2, hypervisor_pb2_grpc, outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc import pricing
from hypervisor_svc.drain import SERVICE_NAME, HypervisorServer, ServeOptions
from hypervisor_svc.engine import PolicyFailed
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.registry import Registry, Wanted
from hypervisor_svc.session import Session
from hypervisor_svc.stream import EventStream
from tests.hypervisor.test_session import (
    BAD_ARG,
    COLUMNS,
    FakeEngine,
    check_table,
    resolve_policy,
    some_config,
    some_events,
)

SECONDS = 20.0  # no call of these tests takes this long unless it hangs
Code = grpc.StatusCode
LIMITS = ServerLimits(max_block_events=64, max_lanes=3, max_vcpus=16, max_sessions=1000)


class GatedEngine(FakeEngine):
    """Stops in a block that starts with arg 100, until let go."""

    reached = threading.Event()
    go_on = threading.Event()

    def feed(self, events: EventColumns, level: int) -> list[outcome_pb2.OutcomePart]:
        """Wait where the test wants it; fail as no engine should at arg 200, as a policy may at 201."""
        first = 0 if events.args is None or not len(events) else events.args[0]
        if first == 100:
            self.reached.set()
            assert self.go_on.wait(SECONDS)
        if first == 200:
            raise RuntimeError("a secret of the engine")
        if first == 201:
            raise PolicyFailed("mine: live-lock", lane=0)
        return super().feed(events, level)


def fake_figures(report: report_pb2.Report, prices: report_pb2.PriceList) -> list[report_pb2.LaneFigures]:
    """Return one lane's figures that show what they were made of."""
    return [report_pb2.LaneFigures(prices=prices.name, guest_cycles=report.events)]


PARTS = Parts(
    make_engine=lambda _config: GatedEngine(),
    engine_fingerprint="fake",
    policy_table=resolve_policy,
    check_table=check_table,
    policy_summaries=lambda: [hypervisor_pb2.PolicySummary(name="known", is_default=True)],
    price_lists=pricing.price_lists,
    price_list=pricing.price_list,
    check_prices=pricing.validate,
    figures=fake_figures,
)


class RunningServer:
    """A server in a thread with its own event loop."""

    def __init__(self, listen: str, limits: ServerLimits = LIMITS, parts: Parts = PARTS) -> None:
        """Start it and wait until it listens."""
        self._options = ServeOptions(listen, limits)
        self._parts = parts
        self._started: Future[str] = Future()
        # asyncio.run ends what is left of the loop's tasks, so that none outlives its test.
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(),), daemon=True)
        self._thread.start()
        self.address = self._started.result(SECONDS)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self.server = HypervisorServer(self._options, self._parts)
        try:
            self._started.set_result(await self.server.start())
        except CannotServe as error:
            self._started.set_exception(error)
            return
        await self._closing.wait()
        await self.server.stop()

    def start_drain(self) -> Future[bool]:
        """Begin to drain and return the future of its end."""
        return asyncio.run_coroutine_threadsafe(self.server.drain(), self._loop)

    def close(self) -> None:
        """Stop it at once."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(SECONDS)


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    """Return a server on the loopback that all tests of this file may use."""
    server = RunningServer("127.0.0.1:0")
    yield server
    server.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    """Return a server on a unix socket for one test."""
    server = RunningServer(f"unix:{tmp_path}/s")
    yield server
    server.close()


class Client:
    """A guest in the small: one channel, one stub."""

    def __init__(self, server: RunningServer) -> None:
        """Connect."""
        self.channel = grpc.insecure_channel(server.address)
        self.stub = hypervisor_pb2_grpc.HypervisorServiceStub(self.channel)

    def create(self, request_id: str, **changes: object) -> str:
        """Create a session and return its id."""
        request = hypervisor_pb2.CreateSessionRequest(request_id=request_id, config=some_config(**changes))
        return self.stub.CreateSession(request, timeout=SECONDS).session_id

    def status(self, session_id: str) -> hypervisor_pb2.SessionStatus:
        """Return where a session stands."""
        request = hypervisor_pb2.GetSessionRequest(session_id=session_id)
        return self.stub.GetSession(request, timeout=SECONDS).status


class Stream:
    """One stream, driven step by step."""

    def __init__(self, client: Client, session_id: str | None = None, **opening: int) -> None:
        """Start it, and open a session if one is named."""
        self.crcs = ColumnCrcs(COLUMNS)
        self.next_event = 0
        self.refused: hypervisor_pb2.Refused | None = None
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        raw: Any = client.channel.stream_stream(
            f"/{SERVICE_NAME}/StreamEvents",
            response_deserializer=hypervisor_pb2.StreamEventsResponse.FromString,
        )
        self.call: Any = raw(iter(self._requests.get, None), timeout=SECONDS)
        if session_id is not None:
            self.put(open=hypervisor_pb2.Open(session_id=session_id, **opening))

    def put(self, **message: Any) -> None:
        """Send a message."""
        self._requests.put(hypervisor_pb2.StreamEventsRequest(**message).SerializeToString())

    def put_bytes(self, data: bytes) -> None:
        """Send bytes."""
        self._requests.put(data)

    def put_block(self, *args: int) -> None:
        """Send the next events as a block."""
        self.put_bytes(encode_block(some_events(*args), self.next_event, self.crcs))
        self.next_event += len(args)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._requests.put(None)

    def get(self) -> hypervisor_pb2.StreamEventsResponse:
        """Return the next answer; a refusal in band is followed by the status that says it again."""
        response: hypervisor_pb2.StreamEventsResponse = next(self.call)
        if response.WhichOneof("message") == "refused":
            self.refused = response.refused
            response = next(self.call)
        return response

    def opened(self) -> hypervisor_pb2.Opened:
        """Return the answer to the Open."""
        response = self.get()
        assert response.WhichOneof("message") == "opened"
        return response.opened

    def applied(self) -> int:
        """Return what the next acknowledgement says."""
        response = self.get()
        assert response.WhichOneof("message") == "acknowledgement"
        assert response.acknowledgement.applied_events == response.acknowledgement.committed_events
        return response.acknowledgement.applied_events


@pytest.fixture
def client(shared: RunningServer) -> Iterator[Client]:
    """Return a client of the shared server."""
    client = Client(shared)
    yield client
    client.channel.close()


def refusal_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str]:
    """Make a call that is refused, and return code, reason and field from its details."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return details_of(refused.value)


def details_of(error: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and field of a refusal."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, field = error_details_pb2.ErrorInfo(), ""
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            field = bad_request.field_violations[0].field
        else:
            assert detail.Unpack(info)
    assert info.domain == "exitlab"
    return error.code(), info.reason, field


def test_a_whole_session(client: Client) -> None:
    """Create, open, send, finish and price: every answer is as the contract says."""
    request = hypervisor_pb2.CreateSessionRequest(request_id="whole", config=some_config())
    created = client.stub.CreateSession(request, timeout=SECONDS)
    assert created.limits == LIMITS.to_proto()
    assert created.engine_fingerprint == "fake"
    stream = Stream(client, created.session_id)
    opened = stream.opened()
    assert (opened.next_event, opened.epoch, list(opened.column_crcs)) == (0, 1, [0, 0])
    assert opened.limits == LIMITS.to_proto()
    assert opened.server_incarnation == created.server_incarnation
    for count in (3, 1, 5):
        stream.put_block(*range(count))
        assert stream.applied() == stream.next_event
    finish = hypervisor_pb2.FinishSessionRequest(
        session_id=created.session_id, event_count=9, column_crcs=stream.crcs.values
    )
    stored = client.stub.FinishSession(finish, timeout=SECONDS).report
    assert report_pb2.Report.FromString(stored).events == 9
    with pytest.raises(StopIteration):
        stream.get()
    assert client.stub.FinishSession(finish, timeout=SECONDS).report == stored
    inline = pricing.price_list("seed-2014")
    inline.name = "mine"
    choices = [hypervisor_pb2.PriceChoice(name="seed-2014"), hypervisor_pb2.PriceChoice(list=inline)]
    get = hypervisor_pb2.GetReportRequest(session_id=created.session_id, prices=choices)
    priced = client.stub.GetReport(get, timeout=SECONDS)
    assert priced.report == stored
    assert [(lane.prices, lane.guest_cycles) for lane in priced.figures] == [("seed-2014", 9), ("mine", 9)]


def test_plain_events_mean_the_same_as_a_block(client: Client) -> None:
    """A client without columns sends an EventList; the digests come out the same."""
    session_id = client.create("plain")
    stream = Stream(client, session_id)
    stream.opened()
    kind = events_pb2.EVENT_KIND_MOV_TO_DR
    events = [events_pb2.Event(kind=kind, arg=1), events_pb2.Event(kind=kind, arg=2)]
    stream.put(events=events_pb2.EventList(first_event=0, events=events))
    assert stream.applied() == 2
    stream.crcs.update(some_events(1, 2))
    assert tuple(client.status(session_id).column_crcs) == stream.crcs.values


def test_no_events_are_acknowledged(client: Client) -> None:
    """A block of no events, and plain events that are none, are answered like any other."""
    session_id = client.create("no events")
    stream = Stream(client, session_id)
    stream.opened()
    stream.put_block()
    assert stream.applied() == 0
    stream.put_block(1, 2)
    assert stream.applied() == 2
    before = client.status(session_id)
    stream.put_block()
    assert stream.applied() == 2
    stream.put(events=events_pb2.EventList(first_event=2))
    assert stream.applied() == 2
    assert client.status(session_id) == before


def test_outcomes_come_before_their_acknowledgement(client: Client) -> None:
    """Above SUMMARY each block's outcomes are sent, then its acknowledgement; confirming is silent."""
    stream = Stream(client, client.create("outcomes", outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL))
    stream.opened()
    for first in (0, 2):
        stream.put_block(1, 2)
        outcomes = stream.get().outcomes
        assert (outcomes.first_event, outcomes.event_count, outcomes.is_last_part) == (first, 2, True)
        assert stream.applied() == first + 2
        stream.put(confirm=hypervisor_pb2.ConfirmOutcomes(received_events=first + 2))


def test_blocks_may_be_sent_ahead(client: Client) -> None:
    """A client may send many blocks before it reads; each gets its answer, in order."""
    stream = Stream(client, client.create("ahead"))
    for _ in range(50):
        stream.put_block(*range(7))
    stream.opened()
    assert [stream.applied() for _ in range(50)] == [7 * (i + 1) for i in range(50)]


def test_a_repeated_create_returns_the_same_session(client: Client) -> None:
    """A request id stands for one session; with another config it is refused."""
    assert client.create("twice") == client.create("twice") != client.create("once")
    refused = refusal_of(lambda: client.create("twice", label="other"))
    assert refused == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id")


def test_the_end_of_a_stream_proves_nothing(client: Client) -> None:
    """However a stream ends without FinishSession, the session is suspended, has no report, and goes on."""
    session_id = client.create("cut")
    ends: tuple[Callable[[Stream], object], ...] = (Stream.half_close, lambda stream: stream.call.cancel())
    for epoch, end in enumerate(ends, start=1):
        stream = Stream(client, session_id)
        assert stream.opened().epoch == epoch
        assert client.status(session_id).state == hypervisor_pb2.SESSION_STATE_STREAMING
        end(stream)
        with pytest.raises((StopIteration, grpc.RpcError)):
            stream.get()
        # A cancelled call ends for the client first, so the server is asked until it knows.
        statuses = (client.status(session_id) for _ in iter(int, 1))
        suspended = next(s for s in statuses if s.state == hypervisor_pb2.SESSION_STATE_SUSPENDED)
        assert suspended.epoch == epoch
        report = hypervisor_pb2.GetReportRequest(session_id=session_id)
        refused = refusal_of(partial(client.stub.GetReport, report, timeout=SECONDS))
        assert refused == (Code.FAILED_PRECONDITION, "SESSION_NOT_FINISHED", "")


def test_a_resumed_session_ends_like_an_uncut_one(client: Client) -> None:
    """A session that was cut after a block goes on where it was, and its report is the same."""
    reports = []
    for name, cut in (("uncut", False), ("resumed", True)):
        session_id = client.create(name)
        stream = Stream(client, session_id)
        stream.opened()
        stream.put_block(1, 2, 3)
        assert stream.applied() == 3
        if cut:
            stream.call.cancel()
            crcs, next_event = stream.crcs, stream.next_event
            stream = Stream(client, session_id)
            opened = stream.opened()
            assert (opened.next_event, tuple(opened.column_crcs)) == (next_event, crcs.values)
            stream.crcs, stream.next_event = crcs, next_event
        stream.put_block(4)
        assert stream.applied() == 4
        finish = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=4, column_crcs=stream.crcs.values
        )
        reports.append(client.stub.FinishSession(finish, timeout=SECONDS).report)
    assert reports[0] == reports[1]


def test_a_newer_stream_fences_the_older(client: Client) -> None:
    """The older stream ends ABORTED at once, even while it sends nothing, and the newer one goes on."""
    session_id = client.create("fenced")
    older = Stream(client, session_id)
    older.opened()
    newer = Stream(client, session_id)
    assert newer.opened().epoch == 2
    assert refusal_of(older.get) == (Code.ABORTED, "FENCED", "")
    newer.put_block(1)
    assert newer.applied() == 1


def open_wrongly(**opening: Any) -> Callable[[Stream, str], None]:
    """Return a first message that is an Open with these fields."""
    return lambda stream, session_id: stream.put(
        open=hypervisor_pb2.Open(**{"session_id": session_id, **opening})
    )


@pytest.mark.parametrize(
    ("send", "expected"),
    [
        (lambda stream, _: stream.put_block(1), (Code.FAILED_PRECONDITION, "NOT_OPEN", "open")),
        (
            lambda stream, _: stream.put(confirm=hypervisor_pb2.ConfirmOutcomes()),
            (Code.FAILED_PRECONDITION, "NOT_OPEN", "open"),
        ),
        (lambda stream, _: stream.put_bytes(b"\xff\xff"), (Code.INVALID_ARGUMENT, "NOT_A_MESSAGE", "")),
        (open_wrongly(session_id="guess"), (Code.NOT_FOUND, "SESSION_NOT_FOUND", "open.session_id")),
        (open_wrongly(expected_epoch=9), (Code.ABORTED, "EPOCH_MISMATCH", "open.expected_epoch")),
        (open_wrongly(received_events=1), (Code.OUT_OF_RANGE, "RECEIVED_TOO_MANY", "open.received_events")),
    ],
)
def test_a_stream_that_does_not_open(
    client: Client, send: Callable[[Stream, str], None], expected: tuple[grpc.StatusCode, str, str]
) -> None:
    """A stream starts with an Open of a session that is there."""
    session_id = client.create("not opened")
    stream = Stream(client)
    send(stream, session_id)
    assert refusal_of(stream.get) == expected
    assert client.status(session_id).state == hypervisor_pb2.SESSION_STATE_SUSPENDED


def edited(edit: Callable[[events_pb2.EventBlock], object], *args: int) -> Callable[[Stream], None]:
    """Return the next block with one thing made wrong."""

    def send(stream: Stream) -> None:
        data = encode_block(some_events(*args), stream.next_event, stream.crcs)
        request = hypervisor_pb2.StreamEventsRequest.FromString(data)
        edit(request.block)
        stream.put_bytes(request.SerializeToString())

    return send


def plain_events(*args: int, first_event: int = 2) -> Callable[[Stream], None]:
    """Return MOV DR events with these args in plain form."""
    kind = events_pb2.EVENT_KIND_MOV_TO_DR
    events = [events_pb2.Event(kind=kind, arg=arg) for arg in args]
    return lambda stream: stream.put(events=events_pb2.EventList(first_event=first_event, events=events))


def set_field(name: str, value: Any) -> Callable[[events_pb2.EventBlock], object]:
    """Return an edit that sets a field of the block."""
    return lambda block: setattr(block, name, value)


def set_item(name: str, index: int, value: int) -> Callable[[events_pb2.EventBlock], object]:
    """Return an edit that sets one value of a repeated field of the block."""
    return lambda block: getattr(block, name).__setitem__(index, value)


@pytest.mark.parametrize(
    ("send", "expected", "said"),
    [
        (
            edited(set_field("first_event", 9), 1),
            (Code.OUT_OF_RANGE, "GAP", "block.first_event"),
            "starts at event 9, but the next event is 2",
        ),
        (
            edited(set_field("first_event", 1), 1),
            (Code.ALREADY_EXISTS, "ALREADY_APPLIED", "block.first_event"),
            "starts at event 1, but all below 2 are applied",
        ),
        (
            edited(set_item("column_crcs", 1, 5), 1),
            (Code.DATA_LOSS, "DIGEST_MISMATCH", "block.column_crcs[1]"),
            "args",
        ),
        (
            edited(set_field("args", b"\1"), 1, 2),
            (Code.INVALID_ARGUMENT, "BAD_BLOCK", "block.args"),
            "1 values, but event_count is 2",
        ),
        (
            edited(set_field("modes", b"\1"), 1),
            (Code.INVALID_ARGUMENT, "BAD_BLOCK", "block.modes"),
            "does not declare",
        ),
        (
            edited(set_item("kinds", 1, 0), 1, 2),
            (Code.INVALID_ARGUMENT, "BAD_BLOCK", "block.kinds"),
            "event 3: 0 is no event kind",
        ),
        (
            edited(set_item("kinds", 1, 99), 1, 2),
            (Code.INVALID_ARGUMENT, "BAD_BLOCK", "block.kinds"),
            "event 3: 99 is no event kind",
        ),
        (
            lambda stream: stream.put_block(1, BAD_ARG),
            (Code.INVALID_ARGUMENT, "BAD_EVENT", "block.args"),
            "event 3: no such register",
        ),
        (
            lambda stream: stream.put_block(*range(65)),
            (Code.INVALID_ARGUMENT, "BLOCK_TOO_LARGE", "block.event_count"),
            "65 events, but a block has at most 64",
        ),
        (
            edited(set_field("first_event", 3)),
            (Code.OUT_OF_RANGE, "GAP", "block.first_event"),
            "starts at event 3, but the next event is 2",
        ),
        (
            edited(set_item("column_crcs", 0, 5)),
            (Code.DATA_LOSS, "DIGEST_MISMATCH", "block.column_crcs[0]"),
            "kinds",
        ),
        (
            plain_events(1, BAD_ARG),
            (Code.INVALID_ARGUMENT, "BAD_EVENT", "events.events.arg"),
            "event 3: no such register",
        ),
        (
            plain_events(1, 256),
            (Code.INVALID_ARGUMENT, "BAD_BLOCK", "events.events.arg"),
            "event 3: 256, but at most 255 fits",
        ),
        (
            plain_events(*range(65)),
            (Code.INVALID_ARGUMENT, "BLOCK_TOO_LARGE", "events.events"),
            "65 events, but a block has at most 64",
        ),
        (
            plain_events(1, first_event=1),
            (Code.ALREADY_EXISTS, "ALREADY_APPLIED", "events.first_event"),
            "starts at event 1, but all below 2 are applied",
        ),
        (lambda stream: stream.put(), (Code.INVALID_ARGUMENT, "EMPTY_MESSAGE", ""), "neither"),
        (
            lambda stream: stream.put(open=hypervisor_pb2.Open()),
            (Code.FAILED_PRECONDITION, "ALREADY_OPEN", "open"),
            "the stream is open",
        ),
        (
            lambda stream: stream.put(confirm=hypervisor_pb2.ConfirmOutcomes(received_events=3)),
            (Code.OUT_OF_RANGE, "RECEIVED_TOO_MANY", "confirm.received_events"),
            "3 events, but 2 are applied",
        ),
    ],
)
def test_a_message_that_is_refused(
    client: Client, send: Callable[[Stream], None], expected: tuple[grpc.StatusCode, str, str], said: str
) -> None:
    """Each refusal has its code, reason, field and place; the stream ends, and the session can go on."""
    session_id = client.create(f"refused {expected[1:]} {said}")
    stream = Stream(client, session_id)
    stream.opened()
    stream.put_block(1, 2)
    assert stream.applied() == 2
    before = client.status(session_id)
    send(stream)
    with pytest.raises(grpc.RpcError) as refused:
        stream.get()
    assert details_of(refused.value) == expected
    assert said in (refused.value.details() or "")
    in_band = stream.refused
    assert in_band is not None
    assert (in_band.reason, in_band.field, in_band.next_event) == (*expected[1:], 2)
    assert in_band.message in (refused.value.details() or "")
    before.state = hypervisor_pb2.SESSION_STATE_SUSPENDED
    assert client.status(session_id) == before


@pytest.mark.parametrize(
    ("arg", "expected", "said"),
    [
        (
            200,
            (Code.INTERNAL, "ENGINE_FAILED", ""),
            "the engine failed in the block at event 2: its log says more",
        ),
        (
            201,
            (Code.FAILED_PRECONDITION, "POLICY_FAILED", "config.lanes[0]"),
            "the policy cannot go on in the block at event 2: mine: live-lock",
        ),
    ],
)
def test_a_session_that_fails(
    client: Client, arg: int, expected: tuple[grpc.StatusCode, str, str], said: str
) -> None:
    """Whatever is asked of a failed session is refused for the same reason, and its status tells it."""
    session_id = client.create(f"fails at {arg}")
    pb, stub = hypervisor_pb2, client.stub
    hour = pb.WatchReportRequest(session_id=session_id, interval_ms=3_600_000)
    watch = stub.WatchReport(hour, timeout=SECONDS)
    next(watch)
    stream = Stream(client, session_id)
    stream.opened()
    stream.put_block(1, 2)
    assert stream.applied() == 2
    stream.put_block(arg)
    finish = pb.FinishSessionRequest(session_id=session_id, event_count=2, column_crcs=[0, 0])
    get = pb.GetReportRequest(session_id=session_id)
    attempts: tuple[Callable[[], object], ...] = (
        stream.get,
        lambda: next(watch),  # without waiting for its hour to pass
        lambda: Stream(client, session_id).get(),  # opened once the first is over
        lambda: stub.FinishSession(finish, timeout=SECONDS),
        lambda: stub.GetReport(get, timeout=SECONDS),
        lambda: next(stub.WatchReport(hour, timeout=SECONDS)),
    )
    for attempt in attempts:
        with pytest.raises(grpc.RpcError) as refused:
            attempt()
        assert details_of(refused.value) == expected
        assert refused.value.details() == said
    status = client.status(session_id)
    assert (status.state, status.applied_events) == (pb.SESSION_STATE_FAILED, 2)
    assert status.note == f"{expected[1]}: {said}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"lanes": [policy_pb2.Lane(policy_name="kvm", vendor=policy_pb2.VENDOR_VMX)]},
            "config.lanes[0].policy_name",
        ),
        ({"columns": [1, 1]}, "config.columns[1]"),
        ({"vcpus": 257}, "config.vcpus"),
        ({"breakpoints": 0}, "config.breakpoints"),
        ({"leading_vendor": 0}, "config.leading_vendor"),
    ],
)
def test_a_bad_config_is_refused_with_its_field(client: Client, changes: dict[str, Any], field: str) -> None:
    """Config errors arrive as INVALID_ARGUMENT with the field's path; test_session has every rule."""
    code, _, refused_field = refusal_of(lambda: client.create("bad config", **changes))
    assert (code, refused_field) == (Code.INVALID_ARGUMENT, field)


def test_calls_that_name_nothing(client: Client) -> None:
    """Unknown sessions, policies, vendors, prices, pages and intervals are refused by name."""
    session_id = client.create("unary refusals")
    stream = Stream(client, session_id)
    stream.opened()
    empty = hypervisor_pb2.FinishSessionRequest(session_id=session_id, column_crcs=[0, 0])
    client.stub.FinishSession(empty, timeout=SECONDS)
    stub, pb = client.stub, hypervisor_pb2
    not_found = (Code.NOT_FOUND, "SESSION_NOT_FOUND", "session_id")
    bad_list = report_pb2.PriceList(name="mine")
    cases: list[tuple[Any, Any, tuple[grpc.StatusCode, str, str]]] = [
        (stub.GetSession, pb.GetSessionRequest(session_id="guess"), not_found),
        (stub.FinishSession, pb.FinishSessionRequest(session_id="guess"), not_found),
        (stub.GetReport, pb.GetReportRequest(session_id="guess"), not_found),
        (
            stub.CreateSession,
            pb.CreateSessionRequest(config=some_config()),
            (Code.INVALID_ARGUMENT, "BAD_REQUEST_ID", "request_id"),
        ),
        (
            stub.GetReport,
            pb.GetReportRequest(
                session_id=session_id,
                prices=[pb.PriceChoice(name="seed-2014"), pb.PriceChoice(name="seed-2015")],
            ),
            (Code.INVALID_ARGUMENT, "UNKNOWN_PRICES", "prices[1].name"),
        ),
        (
            stub.GetReport,
            pb.GetReportRequest(session_id=session_id, prices=[pb.PriceChoice(list=bad_list)]),
            (Code.INVALID_ARGUMENT, "BAD_PRICES", "prices[0].list"),
        ),
        (
            stub.GetReport,
            pb.GetReportRequest(session_id=session_id, prices=[pb.PriceChoice()]),
            (Code.INVALID_ARGUMENT, "PRICES_MISSING", "prices[0]"),
        ),
        (
            stub.FinishSession,
            pb.FinishSessionRequest(session_id=session_id, event_count=1),
            (Code.FAILED_PRECONDITION, "EVENT_COUNT_MISMATCH", "event_count"),
        ),
        (
            stub.DescribePolicy,
            pb.DescribePolicyRequest(name="kvm", vendor=policy_pb2.VENDOR_VMX),
            (Code.NOT_FOUND, "UNKNOWN_POLICY", "name"),
        ),
        (
            stub.DescribePolicy,
            pb.DescribePolicyRequest(name="known", vendor=policy_pb2.VENDOR_SVM),
            (Code.NOT_FOUND, "NO_SUCH_VENDOR", "vendor"),
        ),
        (
            stub.DescribePolicy,
            pb.DescribePolicyRequest(name="broken", vendor=policy_pb2.VENDOR_VMX),
            (Code.INVALID_ARGUMENT, "BAD_POLICY", "name"),
        ),
        (
            stub.DescribePolicy,
            pb.DescribePolicyRequest(name="known"),
            (Code.INVALID_ARGUMENT, "CHOICE_MISSING", "vendor"),
        ),
        (
            stub.GetReport,
            pb.GetReportRequest(session_id=session_id, prices=[pb.PriceChoice(name="seed-2014")] * 65),
            (Code.INVALID_ARGUMENT, "TOO_MANY_PRICES", "prices"),
        ),
        *(
            (
                stub.ListSessions,
                pb.ListSessionsRequest(page_token=token),
                (Code.INVALID_ARGUMENT, "BAD_PAGE_TOKEN", "page_token"),
            )
            for token in ("x", "-1", "1\n", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}", "9" * 5000)
        ),
    ]
    for method, request, expected in cases:
        refused = refusal_of(partial(method, request, timeout=SECONDS))
        assert refused == expected
    watch = pb.WatchReportRequest(session_id="guess")
    assert refusal_of(lambda: next(stub.WatchReport(watch, timeout=SECONDS))) == not_found
    short = pb.WatchReportRequest(session_id=session_id, interval_ms=1)
    refused = refusal_of(lambda: next(stub.WatchReport(short, timeout=SECONDS)))
    assert refused == (Code.INVALID_ARGUMENT, "INTERVAL_TOO_SHORT", "interval_ms")


@pytest.mark.parametrize("letter", ["x", "\N{GREEK SMALL LETTER ALPHA}", "\N{GRINNING FACE}"])
def test_a_refusal_is_never_too_long_to_arrive(client: Client, letter: str) -> None:
    """What a client sent is quoted in part: gRPC drops details of more than some kilobytes."""
    lanes = [policy_pb2.Lane(policy_name=letter * 100_000, vendor=policy_pb2.VENDOR_VMX)]
    with pytest.raises(grpc.RpcError) as refused:
        client.create("long", lanes=lanes)
    expected = (Code.INVALID_ARGUMENT, "UNKNOWN_POLICY", "config.lanes[0].policy_name")
    assert details_of(refused.value) == expected
    said = refused.value.details() or ""
    assert said.startswith(f"unknown policy '{letter}{letter}")
    assert said.endswith(f"{letter}'; did you mean known?")
    assert 500 < len(said.encode()) <= 600


SERVICE = hypervisor_pb2.DESCRIPTOR.services_by_name["HypervisorService"]


@pytest.mark.parametrize("name", sorted({method.name for method in SERVICE.methods} - {"StreamEvents"}))
def test_bytes_that_are_no_message(client: Client, name: str) -> None:
    """Every method says of what it cannot read that it is no message."""
    path = f"/{SERVICE_NAME}/{name}"
    if SERVICE.methods_by_name[name].server_streaming:
        stream: Any = client.channel.unary_stream(path)
        refused = refusal_of(lambda: next(stream(b"\xff\xff", timeout=SECONDS)))
    else:
        method: Any = client.channel.unary_unary(path)
        refused = refusal_of(lambda: method(b"\xff\xff", timeout=SECONDS))
    assert refused == (Code.INVALID_ARGUMENT, "NOT_A_MESSAGE", "")


def test_a_large_request_that_is_no_block_is_refused_unread(client: Client) -> None:
    """Only blocks may be as large as a message: what a request of empty lanes takes is 35 times its bytes."""
    config = some_config(lanes=[policy_pb2.Lane()] * 600_000)
    request = hypervisor_pb2.CreateSessionRequest(request_id="bomb", config=config)
    refused = refusal_of(lambda: client.stub.CreateSession(request, timeout=SECONDS))
    assert refused == (Code.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "")


def test_what_nobody_knows_is_not_kept(client: Client) -> None:
    """Unknown fields of a request are dropped: a repeat without them is the same request."""
    known = hypervisor_pb2.CreateSessionRequest(request_id="unknown fields", config=some_config())
    raw: Any = client.channel.unary_unary(
        f"/{SERVICE_NAME}/CreateSession",
        response_deserializer=hypervisor_pb2.CreateSessionResponse.FromString,
    )
    more = known.SerializeToString() + b"\xfa\x7f\x04more"  # field 2047
    first = raw(more, timeout=SECONDS).session_id
    assert client.stub.CreateSession(known, timeout=SECONDS).session_id == first


def test_prices_are_read_in_an_engine_thread(tmp_path: Path) -> None:
    """Price lists are found and checked where they hold nobody else up."""
    threads = []

    def find(name: str) -> report_pb2.PriceList:
        threads.append(threading.current_thread().name)
        return pricing.price_list(name)

    def check(prices: report_pb2.PriceList) -> None:
        threads.append(threading.current_thread().name)
        pricing.validate(prices)

    parts = dataclasses.replace(PARTS, price_list=find, check_prices=check)
    server = RunningServer(f"unix:{tmp_path}/s", parts=parts)
    client = Client(server)
    session_id = client.create("priced")
    finish = hypervisor_pb2.FinishSessionRequest(session_id=session_id, column_crcs=[0, 0])
    client.stub.FinishSession(finish, timeout=SECONDS)
    one = hypervisor_pb2.PriceChoice(name="seed-2014")
    inline = hypervisor_pb2.PriceChoice(list=pricing.price_list("seed-2014"))
    get = hypervisor_pb2.GetReportRequest(session_id=session_id, prices=[one] * 63 + [inline])
    assert len(client.stub.GetReport(get, timeout=SECONDS).figures) == 64
    assert {thread.split("_")[0] for thread in threads} == {"engine"}
    assert len(threads) == 64
    server.close()


def test_a_busy_session_holds_up_nobody_else(own: RunningServer) -> None:
    """Calls that wait for a session take no thread from the others, however many they are."""
    client = Client(own)
    busy_id, other_id = client.create("busy"), client.create("other")
    stream = Stream(client, busy_id)
    stream.opened()
    GatedEngine.reached.clear()
    GatedEngine.go_on.clear()
    stream.put_block(100)
    assert GatedEngine.reached.wait(SECONDS)
    get = hypervisor_pb2.GetSessionRequest(session_id=busy_id)
    waiting = [client.stub.GetSession.future(get, timeout=SECONDS) for _ in range((os.cpu_count() or 1) + 2)]
    assert client.status(other_id).applied_events == 0
    assert not any(call.done() for call in waiting)
    GatedEngine.go_on.set()
    assert [call.result().status.applied_events for call in waiting] == [1] * len(waiting)


def test_lists(client: Client) -> None:
    """Policies, a policy's table and the price lists come as they are."""
    policies = client.stub.ListPolicies(hypervisor_pb2.ListPoliciesRequest(), timeout=SECONDS).policies
    assert list(policies) == PARTS.policy_summaries()
    describe = hypervisor_pb2.DescribePolicyRequest(name="known", vendor=policy_pb2.VENDOR_VMX)
    table = client.stub.DescribePolicy(describe, timeout=SECONDS).table
    assert (table.name, table.vendor) == ("known", policy_pb2.VENDOR_VMX)
    prices = client.stub.ListPrices(hypervisor_pb2.ListPricesRequest(), timeout=SECONDS).price_lists
    assert list(prices) == list(pricing.price_lists().values())


def test_listing_gives_no_ids_away(own: RunningServer) -> None:
    """Sessions are listed in pages, oldest first, without what would let a stranger use them."""
    client = Client(own)
    for i in range(5):
        client.create(f"listed {i}", label=str(i))
    seen: list[str] = []
    token = ""
    while True:
        request = hypervisor_pb2.ListSessionsRequest(page_size=2, page_token=token)
        page = client.stub.ListSessions(request, timeout=SECONDS)
        assert len(page.sessions) <= 2
        assert not any(session.session_id for session in page.sessions)
        seen += [session.label for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert seen == list("01234")


def test_watching_a_session(client: Client) -> None:
    """A watcher sees the report at once, again in each interval, and last when it is finished."""
    session_id = client.create("watched")
    stream = Stream(client, session_id)
    stream.opened()
    stream.put_block(1, 2, 3)
    assert stream.applied() == 3
    request = hypervisor_pb2.WatchReportRequest(session_id=session_id, interval_ms=10)
    watch = client.stub.WatchReport(request, timeout=SECONDS)
    for _ in range(3):
        seen = next(watch)
        assert (seen.status.applied_events, seen.report.events) == (3, 3)
    finish = hypervisor_pb2.FinishSessionRequest(
        session_id=session_id, event_count=3, column_crcs=stream.crcs.values
    )
    stored = client.stub.FinishSession(finish, timeout=SECONDS).report
    *_, last = watch
    assert last.status.state == hypervisor_pb2.SESSION_STATE_FINISHED
    assert last.report == report_pb2.Report.FromString(stored)


def test_a_watcher_learns_of_the_end_without_waiting(client: Client) -> None:
    """The last report comes when the session is finished, not an interval later."""
    session_id = client.create("watched slowly")
    hour = hypervisor_pb2.WatchReportRequest(session_id=session_id, interval_ms=3_600_000)
    watch = client.stub.WatchReport(hour, timeout=SECONDS)
    assert next(watch).status.state == hypervisor_pb2.SESSION_STATE_SUSPENDED
    finish = hypervisor_pb2.FinishSessionRequest(session_id=session_id, column_crcs=[0, 0])
    client.stub.FinishSession(finish, timeout=SECONDS)
    assert [seen.status.state for seen in watch] == [hypervisor_pb2.SESSION_STATE_FINISHED]


def test_too_many_sessions(tmp_path: Path) -> None:
    """Unfinished sessions are limited; finishing one makes room, and a repeat needs none."""
    server = RunningServer(f"unix:{tmp_path}/s", ServerLimits(max_sessions=2))
    client = Client(server)
    first, _ = client.create("1"), client.create("2")
    assert refusal_of(lambda: client.create("3")) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS", "")
    assert client.create("1") == first
    finish = hypervisor_pb2.FinishSessionRequest(session_id=first, column_crcs=[0, 0])
    client.stub.FinishSession(finish, timeout=SECONDS)
    assert client.create("3")
    server.close()


def test_too_many_streams(tmp_path: Path) -> None:
    """Streams are limited, open or not; one that ends makes room."""
    server = RunningServer(f"unix:{tmp_path}/s", ServerLimits(max_streams=2))
    client = Client(server)
    session_id = client.create("streams")
    first, second = Stream(client, session_id), Stream(client, client.create("other"))
    assert first.opened().limits.max_streams == 2
    second.opened()
    third = Stream(client, session_id)
    assert refusal_of(third.get) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", "")
    first.half_close()
    with pytest.raises(StopIteration):
        first.get()
    assert Stream(client, session_id).opened().epoch == 2
    server.close()


def test_sessions_that_nobody_uses_are_dropped() -> None:
    """After the idle time a session is gone, finished or not, unless it was asked for or is streaming."""

    class Clock:
        seconds = 0.0

    async def scenario() -> None:
        registry = Registry(ServerLimits(idle_seconds=10), lambda: Clock.seconds)
        helds = [await registry.create(create_request(name), make_session) for name in ("a", "b", "c", "d")]
        idle, used, streaming, finished = helds
        streaming.stream = EventStream(None, None)  # type: ignore[arg-type]  # only its presence counts
        finished.session.finish(0, (0, 0))
        Clock.seconds = 9
        assert registry.find(used.session.session_id) is used
        Clock.seconds = 11
        assert registry.after(0) == [used, streaming]
        assert idle.ended.is_set()
        for gone in (idle, finished):
            with pytest.raises(NotFound):
                registry.find(gone.session.session_id)
        again = await registry.create(create_request("a"), make_session)
        assert again.session.session_id != idle.session.session_id

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", [False, True])
def test_ended_sessions_are_kept_up_to_a_number(fails: bool) -> None:
    """The newest finished or failed sessions stay; a server that runs for ever does not grow."""

    async def scenario() -> list[str]:
        registry = Registry(ServerLimits(max_reports=3))
        for number in range(10):
            held = await registry.create(create_request(str(number)), make_session)
            if fails:
                engine = held.session._running_engine
                assert isinstance(engine, FakeEngine)
                engine.report_failure = PolicyFailed("mine: live-lock", lane=0)
            with pytest.raises(WrongState) if fails else nullcontext():
                held.session.finish(0, (0, 0))
        await registry.create(create_request("running"), make_session)
        return [held.request.request_id for held in registry.after(0)]

    assert asyncio.run(scenario()) == ["7", "8", "9", "running"]


def create_request(request_id: str) -> hypervisor_pb2.CreateSessionRequest:
    """Return a request for a session."""
    return hypervisor_pb2.CreateSessionRequest(request_id=request_id, config=some_config())


async def make_session(wanted: Wanted) -> Session:
    """Make a session with a fake engine."""
    config = wanted.request.config
    return Session(wanted.session_id, config, FakeEngine, ServerLimits(max_block_events=8))


def test_a_message_over_the_limit(tmp_path: Path) -> None:
    """A message larger than the stated limit is refused before it is read, and the session lives."""
    server = RunningServer(f"unix:{tmp_path}/s", ServerLimits(max_message_bytes=4096))
    client = Client(server)
    session_id = client.create("large")
    stream = Stream(client, session_id)
    stream.opened()
    stream.put_block(*[1] * 4096)
    with pytest.raises(grpc.RpcError) as refused:
        stream.get()
    assert refused.value.code() == Code.RESOURCE_EXHAUSTED
    assert Stream(client, session_id).opened().next_event == 0
    server.close()


def health_of(client: Client, service: str) -> int:
    """Return a service's health."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    status: int = stub.Check(request, timeout=SECONDS).status
    return status


def test_health_and_reflection(client: Client) -> None:
    """The standard services say that the server serves, and what."""
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health_of(client, "") == health_of(client, SERVICE_NAME) == serving
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)
    assert SERVICE_NAME in {service.name for service in answer.list_services_response.service}


def test_draining(own: RunningServer) -> None:
    """A drain finishes the block in hand, tells every stream where it is, and takes nothing new."""
    client = Client(own)
    health: Any = health_pb2_grpc.HealthStub(client.channel)
    watched = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=SECONDS)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    busy, idle = Stream(client, client.create("busy")), Stream(client, client.create("idle"))
    busy.opened()
    idle.opened()
    unopened = Stream(client)
    GatedEngine.reached.clear()
    GatedEngine.go_on.clear()
    busy.put_block(100, 1)
    busy.put_block(2)
    assert GatedEngine.reached.wait(SECONDS)
    drained = own.start_drain()
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    draining = idle.get().draining
    assert (draining.applied_events, draining.retry_after_ms > 0) == (0, True)
    with pytest.raises(StopIteration):
        idle.get()
    assert not drained.done()
    GatedEngine.go_on.set()
    assert busy.applied() == 2
    assert busy.get().draining.applied_events == 2
    with pytest.raises(StopIteration):
        busy.get()
    drained.result(SECONDS)  # although the health is still watched
    assert refusal_of(unopened.get) == (Code.UNAVAILABLE, "DRAINING", "")


def test_what_a_draining_server_refuses(own: RunningServer) -> None:
    """While one stream holds the drain up, new sessions and streams are UNAVAILABLE."""
    client = Client(own)
    session_id, busy = client.create("other"), Stream(client, client.create("holding"))
    busy.opened()
    watch = hypervisor_pb2.WatchReportRequest(session_id=session_id, interval_ms=3_600_000)
    watched = client.stub.WatchReport(watch, timeout=SECONDS)
    next(watched)
    own.server._servicer.drain()  # the first half of a drain: the server still takes calls
    expected = (Code.UNAVAILABLE, "DRAINING", "")
    assert refusal_of(lambda: client.create("new")) == expected
    assert refusal_of(Stream(client, session_id).get) == expected
    assert refusal_of(lambda: list(watched)) == expected


def test_a_port_in_use(shared: RunningServer, own: RunningServer, tmp_path: Path) -> None:
    """A second server on an address does not start, and the first one lives on."""
    for server, said in ((shared, "Address already in use"), (own, "the socket is in use")):
        with pytest.raises(CannotServe, match=said) as refused:
            RunningServer(server.address)
        assert server.address in str(refused.value)
        assert Client(server).create("after")
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(CannotServe, match="is no socket of ours"):
        RunningServer(f"unix:{file}")
    assert file.read_text() == "precious"
    stale = tmp_path / "stale"
    RunningServer(f"unix:{stale}").close()
    RunningServer(f"unix:{stale}").close()


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("50551", "expected HOST:PORT or unix:PATH"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
        ("no.such.host.invalid:0", "cannot listen on no.such.host.invalid:0: "),
        ("x" * 70 + ":0", "x:0: no such host"),
        (".:0", "cannot listen on .:0: no such host"),
        ("0.0.0.0:0", "--insecure allows it"),
        ("[::]:0", "--insecure allows it"),
        ("192.0.2.1:0", "--tls-cert and --tls-key serve it with TLS"),
        ("unix:", "the path has 0 bytes"),
        ("unix:/" + "x" * 120, "the path has 121 bytes"),
        ("unix:/no/such/folder/s", "the folder does not exist"),
    ],
)
def test_addresses_that_are_not_served(listen: str, said: str) -> None:
    """An address that cannot or should not be bound is refused in one line."""
    with pytest.raises(CannotServe) as refused:
        RunningServer(listen)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
