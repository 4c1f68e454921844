"""The guest's end of the wire, against a hypervisor that only keeps what it was sent."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.blocks import ColumnCrcs, DecodedBlock, decode_request
from exitlab.events import Column, EventColumns, EventKind
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from guest_svc import embedded
from guest_svc import stream as stream_module
from guest_svc.errors import BadInput, CouldNotFinish, NotConnected
from guest_svc.stream import WINDOW_BLOCKS, EventStream, Hypervisor

COLUMNS = (Column.KINDS, Column.VALUES)
Response = hypervisor_pb2.StreamEventsResponse
Limits = hypervisor_pb2.Limits


def events(count: int, start: int = 0) -> EventColumns:
    """Return ``count`` fetches of consecutive addresses."""
    values = np.arange(start, start + count, dtype=np.uint64)
    return EventColumns(kinds=np.full(count, EventKind.FETCH, dtype=np.uint8), values=values)


@dataclass
class Keeper:
    """Keeps what arrives on a stream and answers each block through ``answer``."""

    limits: Limits = field(default_factory=lambda: Limits(max_block_events=100, max_window_events=1000))
    answer: Callable[["Keeper", DecodedBlock], Iterator[Response | bytes]] | None = None
    opened: hypervisor_pb2.Opened = field(default_factory=lambda: hypervisor_pb2.Opened(epoch=3))
    report: bytes | None = None
    blocks: list[DecodedBlock] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)
    finished: list[hypervisor_pb2.FinishSessionRequest] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    has_ended: threading.Event = field(default_factory=threading.Event)
    has_filled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Answer at once unless a test says otherwise."""
        self.may_answer.set()
        self.may_end.set()

    def create_session(self, request: Any, context: Any) -> hypervisor_pb2.CreateSessionResponse:
        """Create the one session, or refuse a label that asks for it."""
        if request.config.label == "refuse":
            detail = error_details_pb2.BadRequest(
                field_violations=[{"field": "config.lanes[0].policy_name", "description": "no such policy"}]
            )
            info = error_details_pb2.ErrorInfo(reason="UNKNOWN_POLICY", domain="exitlab")
            status = status_pb2.Status(
                code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="no policy\nkvm-3.13"
            )
            for each in (info, detail):
                status.details.add().Pack(each)
            context.abort_with_status(rpc_status.to_status(status))
        if request.config.label == "refuse with garbage":
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff"),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return hypervisor_pb2.CreateSessionResponse(session_id="s1", limits=self.limits)

    def stream_events(self, requests: Iterator[bytes], context: Any) -> Iterator[Response | bytes]:
        """Keep the blocks; hold the answers back until they may go."""
        del context
        arrived: list[DecodedBlock] = []
        for data in requests:
            request = decode_request(data, COLUMNS)
            if isinstance(request, DecodedBlock):
                self.blocks.append(request)
                arrived.append(request)
                if len(self.blocks) == WINDOW_BLOCKS:
                    self.has_filled.set()
                if not self.may_answer.is_set() and len(self.blocks) < WINDOW_BLOCKS:
                    continue
                self.may_answer.wait()
                for block in arrived:
                    yield from (self.answer or applied)(self, block)
                arrived.clear()
            elif request.HasField("confirm"):
                self.confirmed.append(request.confirm.received_events)
            else:
                assert request.open.session_id == "s1"
                yield Response(opened=self.opened)
        self.may_end.wait(10)
        self.has_ended.set()

    def finish_session(self, request: Any, context: Any) -> hypervisor_pb2.FinishSessionResponse:
        """Answer with a report of as many events as are stated."""
        del context
        self.finished.append(request)
        stored = report_pb2.Report(events=request.event_count).SerializeToString()
        return hypervisor_pb2.FinishSessionResponse(report=stored if self.report is None else self.report)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods as gRPC serves them; a stream's requests come as bytes."""

        def to_bytes(message: Message | bytes) -> bytes:
            return message if isinstance(message, bytes) else message.SerializeToString()

        return grpc.method_handlers_generic_handler(
            "exitlab.v1.HypervisorService",
            {
                "CreateSession": grpc.unary_unary_rpc_method_handler(
                    self.create_session, hypervisor_pb2.CreateSessionRequest.FromString, to_bytes
                ),
                "StreamEvents": grpc.stream_stream_rpc_method_handler(self.stream_events, None, to_bytes),
                "FinishSession": grpc.unary_unary_rpc_method_handler(
                    self.finish_session, hypervisor_pb2.FinishSessionRequest.FromString, to_bytes
                ),
            },
        )


def end_of(block: DecodedBlock) -> int:
    """Return the offset after a block."""
    return block.first_event + len(block.events)


def applied(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
    """Say that a block is applied and committed."""
    del keeper
    end = end_of(block)
    yield Response(acknowledgement=hypervisor_pb2.Acknowledgement(applied_events=end, committed_events=end))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Keeper], Hypervisor]]:
    """Serve a keeper on a unix socket and connect to it."""
    started: list[Any] = []

    def start(keeper: Keeper) -> Hypervisor:
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((keeper.handlers(),))
        address = f"unix:{tmp_path}/h{len(started)}"
        server.add_insecure_port(address)
        server.start()
        hypervisor = Hypervisor(address)
        started.append((server, hypervisor))
        return hypervisor

    yield start
    for server, hypervisor in started:
        hypervisor.channel.close()
        server.stop(None).wait()


def create(hypervisor: Hypervisor) -> hypervisor_pb2.CreateSessionResponse:
    """Create a session of no lanes."""
    return hypervisor.create_session(hypervisor_pb2.SessionConfig())


def send_five(
    hypervisor: Hypervisor,
    on_outcomes: Callable[[outcome_pb2.OutcomePart], None] | None = None,
    and_then: Callable[[EventStream], None] = EventStream.wait_until_applied,
) -> None:
    """Send five events in a session of their own."""
    with EventStream(hypervisor, create(hypervisor), COLUMNS, on_outcomes) as stream:
        stream.send(events(5))
        and_then(stream)


Serve = Callable[[Keeper], Hypervisor]


def test_all_events_arrive_once_in_order_with_running_digests(serve: Serve) -> None:
    """Blocks follow each other without gaps, and their digests are those of the whole stream."""
    keeper = Keeper()
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        for start, count in ((0, 250), (250, 1), (251, 99)):
            stream.send(events(count, start))
        stream.wait_until_applied()
        assert (stream.next_event, stream.applied_events, stream.committed_events) == (350, 350, 350)
        assert stream.epoch == 3
        crcs = stream.crcs
    assert [block.first_event for block in keeper.blocks] == [0, 100, 200, 250, 251]
    whole = np.concatenate([block.events.values for block in keeper.blocks])
    np.testing.assert_array_equal(whole, np.arange(350))
    expected = ColumnCrcs(COLUMNS)
    expected.update(events(350))
    assert crcs == expected.values == keeper.blocks[-1].column_crcs


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        (Limits(max_block_events=64), 64),
        (Limits(max_window_events=50, max_block_events=64), 50),
        (Limits(max_message_bytes=512 + 9 * 30), 30),
        (Limits(), 120),
    ],
)
def test_blocks_are_as_large_as_the_hypervisor_takes(serve: Serve, limits: Limits, largest: int) -> None:
    """Events are cut by whichever limit is the tightest, and sent whole where there is none."""
    keeper = Keeper(limits=limits)
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        stream.send(events(120))
        stream.wait_until_applied()
    assert max(len(block.events) for block in keeper.blocks) == largest
    assert sum(len(block.events) for block in keeper.blocks) == 120


@pytest.mark.parametrize(
    ("limits", "blocks"),
    [
        (Limits(max_block_events=10), WINDOW_BLOCKS),
        (Limits(max_block_events=10, max_window_events=25), 2),
        (Limits(max_block_events=10, max_uncommitted_events=10), 1),
    ],
)
def test_no_more_is_in_flight_than_the_window_allows(serve: Serve, limits: Limits, blocks: int) -> None:
    """Sending waits while the flow-control window is full, in blocks, events or what is uncommitted."""
    most = []

    def watch(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        # What was sent and not yet answered is at most what the sender has counted by now.
        most.append((sender.next_event - block.first_event) // 10)
        yield from applied(keeper, block)

    keeper = Keeper(limits=limits, answer=watch)
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as sender:
        for start in range(0, 400, 10):
            sender.send(events(10, start))
        sender.wait_until_applied()
    assert len(most) == 40
    assert max(most) <= blocks


def test_a_full_window_is_used(serve: Serve) -> None:
    """The sender does not wait for an answer to each block: four are under way at once."""
    keeper = Keeper(limits=Limits(max_block_events=10))
    keeper.may_answer.clear()
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        for start in range(0, 10 * WINDOW_BLOCKS, 10):
            stream.send(events(10, start))
        assert keeper.has_filled.wait(60)
        keeper.may_answer.set()
        stream.wait_until_applied()
    assert stream.applied_events == 10 * WINDOW_BLOCKS


def test_outcomes_are_handed_over_and_confirmed(serve: Serve) -> None:
    """A block counts as answered when the last part of its outcomes is there; the hypervisor is told."""

    def in_parts(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        yield from applied(keeper, block)
        for lane in (0, 1):
            yield Response(
                outcomes=outcome_pb2.OutcomePart(
                    first_event=block.first_event,
                    event_count=len(block.events),
                    lane=lane,
                    is_last_part=lane == 1,
                )
            )

    keeper = Keeper(answer=in_parts)
    hypervisor = serve(keeper)
    parts: list[outcome_pb2.OutcomePart] = []
    with EventStream(hypervisor, create(hypervisor), COLUMNS, parts.append) as stream:
        for start in (0, 5):
            stream.send(events(5, start))
            stream.wait_until_applied()
            assert stream.received_events == start + 5
    assert [(part.first_event, part.lane) for part in parts] == [(0, 0), (0, 1), (5, 0), (5, 1)]
    assert keeper.has_ended.wait(60)
    assert keeper.confirmed == [5, 10]


def test_finishing_states_count_and_digests(serve: Serve) -> None:
    """The end of a stream proves nothing: the guest says how much there was."""
    keeper = Keeper()
    hypervisor = serve(keeper)
    assert hypervisor.finish_session("s1", 350, (1, 2)) == report_pb2.Report(events=350)
    assert [(each.event_count, tuple(each.column_crcs)) for each in keeper.finished] == [(350, (1, 2))]


def refuse_block(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
    """End the stream by an error that names a field."""
    del keeper, block
    raise AssertionError("a hypervisor with a bug")
    yield


def drain(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
    """Announce the end."""
    del keeper
    yield Response(draining=hypervisor_pb2.Draining(applied_events=block.first_event))


@pytest.mark.parametrize(
    ("answer", "said"),
    [(refuse_block, "the stream broke at event 0"), (drain, "the hypervisor is stopping at event 0")],
)
def test_a_stream_that_is_cut_could_not_finish(serve: Serve, answer: Any, said: str) -> None:
    """A run that started and broke says where, in one line."""
    hypervisor = serve(Keeper(answer=answer))
    with pytest.raises(CouldNotFinish, match=said) as raised:
        send_five(hypervisor)
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


def say(*messages: Response | bytes) -> Callable[[Keeper, DecodedBlock], Iterator[Response | bytes]]:
    """Return an answer of fixed messages, after which the stream breaks."""

    def answer(keeper: Keeper, block: DecodedBlock) -> Iterator[Response | bytes]:
        del keeper, block
        yield from messages
        raise AssertionError("nothing more to say")

    return answer


def acknowledge(applied_events: int) -> Response:
    """Return an acknowledgement."""
    return Response(acknowledgement=hypervisor_pb2.Acknowledgement(applied_events=applied_events))


@pytest.mark.parametrize(
    ("keeper", "said"),
    [
        (
            Keeper(opened=hypervisor_pb2.Opened(next_event=5), answer=say()),
            "the hypervisor goes on at event 5, this stream at 0",
        ),
        (Keeper(answer=say(acknowledge(6))), "acknowledged event 6: expected 0, .* to 5, which were sent"),
        (Keeper(answer=say(acknowledge(3), acknowledge(2))), "acknowledged event 2: expected 3, "),
        (
            Keeper(answer=say(Response(outcomes=outcome_pb2.OutcomePart(event_count=6)))),
            "outcomes up to event 6: expected 0, .* to 5, which were sent",
        ),
        (Keeper(answer=say(b"\xff\xff")), "the stream broke at event 0: .*deserializing"),
    ],
)
def test_a_hypervisor_that_breaks_the_contract_is_told(serve: Serve, keeper: Keeper, said: str) -> None:
    """What cannot be true of the stream ends the run by one line that says what it is."""
    with pytest.raises(CouldNotFinish, match=said) as raised:
        send_five(serve(keeper), on_outcomes=lambda _: None)
    assert "\n" not in str(raised.value)


def test_the_first_reason_stands(serve: Serve) -> None:
    """A hypervisor that announces its end and then breaks the stream has said why it did."""
    drained = Response(draining=hypervisor_pb2.Draining(applied_events=0))

    def look_late(stream: EventStream) -> None:
        stream._reader.join()  # both have arrived
        stream.wait_until_applied()

    with pytest.raises(CouldNotFinish, match="the hypervisor is stopping at event 0"):
        send_five(serve(Keeper(answer=say(drained))), and_then=look_late)


def test_a_stream_that_the_hypervisor_never_ends_is_left(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all is applied, a hypervisor that stopped running does not keep the guest."""
    monkeypatch.setattr(stream_module, "_CLOSING_SECONDS", 0)
    keeper = Keeper()
    keeper.may_end.clear()
    send_five(serve(keeper))
    assert not keeper.has_ended.is_set()
    keeper.may_end.set()


def test_closing_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A channel that does not close, as one to a stopped process may not, does not keep the guest."""
    monkeypatch.setattr(stream_module, "_CLOSING_SECONDS", 0)
    has_left, was_left = threading.Event(), SimpleQueue[bool]()
    hypervisor = Hypervisor(f"unix:{tmp_path}/nobody")
    close = hypervisor.channel.close
    monkeypatch.setattr(hypervisor.channel, "close", lambda: was_left.put(has_left.wait(10)))
    with hypervisor:
        pass
    has_left.set()
    assert was_left.get()
    close()


def test_an_error_of_the_caller_closes_the_stream(serve: Serve) -> None:
    """A source that fails ends its stream, and its own error is what is told."""
    hypervisor = serve(Keeper())

    def fail(stream: EventStream) -> None:
        raise ZeroDivisionError(stream.next_event)

    with pytest.raises(ZeroDivisionError, match="5"):
        send_five(hypervisor, and_then=fail)


def test_an_error_in_taking_outcomes_reaches_the_caller(serve: Serve) -> None:
    """What goes wrong in the reader's thread is raised where the stream is used."""

    def part(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        del keeper
        yield Response(outcomes=outcome_pb2.OutcomePart(event_count=len(block.events), is_last_part=True))

    def refuse(part: outcome_pb2.OutcomePart) -> None:
        raise CouldNotFinish(f"part of lane {part.lane}")

    hypervisor = serve(Keeper(answer=part))
    with pytest.raises(CouldNotFinish, match="part of lane 0"):
        send_five(hypervisor, on_outcomes=refuse)


def test_refusals_carry_the_servers_field_and_reason(serve: Serve) -> None:
    """One line says what is wrong, the field and the reason; the command then exits with 2."""
    hypervisor = serve(Keeper())
    with pytest.raises(BadInput) as raised:
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="refuse"))
    expected = "no policy kvm-3.13 [reason UNKNOWN_POLICY, field config.lanes[0].policy_name]"
    assert (str(raised.value), raised.value.exit_code) == (expected, 2)


def test_details_that_nobody_can_read_are_left_out(serve: Serve) -> None:
    """An error whose details are no details is told by its message alone."""
    hypervisor = serve(Keeper())
    with pytest.raises(BadInput, match=r"^no$"):
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="refuse with garbage"))


def test_a_report_that_is_no_message_is_told(serve: Serve) -> None:
    """Bytes that are no report could not finish the run."""
    hypervisor = serve(Keeper(report=b"\xff"))
    with pytest.raises(CouldNotFinish, match="the hypervisor's report cannot be read"):
        hypervisor.finish_session("s1", 5, ())


def test_a_hypervisor_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing to connect to is told by its address, at once."""
    address = f"unix:{tmp_path}/nobody"
    with Hypervisor(address) as hypervisor, pytest.raises(NotConnected) as raised:
        hypervisor.price_lists()
    assert str(raised.value).startswith(f"no hypervisor answers at {address}: ")
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (2, False)


SERVER_THAT = """
import os, sys
listen, pipe = sys.argv[sys.argv.index("--listen") + 1], int(sys.argv[sys.argv.index("--parent-pipe") + 1])
print("compiling the engine", flush=True)
{then}
"""
LISTENS = 'print("listening on 127.0.0.1:4711", flush=True); os.read(pipe, 1)'
FAILS = 'sys.exit("hypervisor-svc: no engine\\nhypervisor-svc: look elsewhere")'


def test_an_embedded_hypervisor_ends_with_its_parents_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess gets a private folder, is waited for, and is gone with its folder at the end."""
    child = SERVER_THAT.format(then=LISTENS)
    real = embedded._command
    monkeypatch.setattr(embedded, "_command", lambda *given: [sys.executable, "-c", child, *real(*given)[3:]])
    with embedded.EmbeddedHypervisor() as hypervisor:
        address = hypervisor.address
        assert address.startswith("unix:")
        folder = Path(address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert hypervisor._process.returncode == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (FAILS, "status 1 before it listened: hypervisor-svc: no engine"),
        ('sys.exit("killed")', "status 1 before it listened: killed"),
        ("sys.exit(7)", "status 7 before it listened"),
    ],
)
def test_an_embedded_hypervisor_that_ends_says_why(
    monkeypatch: pytest.MonkeyPatch, then: str, said: str
) -> None:
    """A subprocess that never listens is told by its own word, as nothing to connect to."""
    child = SERVER_THAT.format(then=then)
    real = embedded._command
    monkeypatch.setattr(embedded, "_command", lambda *given: [sys.executable, "-c", child, *real(*given)[3:]])
    with (
        embedded.EmbeddedHypervisor() as hypervisor,
        pytest.raises(NotConnected, match=f"ended with {said}$"),
    ):
        hypervisor.address  # noqa: B018  (asking waits)


@pytest.mark.parametrize(
    ("line", "asked", "address"),
    [
        ("listening on unix:/tmp/x/h\n", "unix:/tmp/x/h", "unix:/tmp/x/h"),
        ('{"event": "listening on 127.0.0.1:4711"}\n', "127.0.0.1:0", "127.0.0.1:4711"),
        ("2026 [info] listening on 127.0.0.1:80 x=1\n", "127.0.0.1:0", "127.0.0.1:80"),
    ],
)
def test_the_listening_line_tells_the_port(line: str, asked: str, address: str) -> None:
    """Where there are no unix sockets, the system picks a port and the hypervisor names it."""
    assert embedded.listening_address(line, asked) == address


def test_a_listening_line_without_a_port_is_refused() -> None:
    """A hypervisor that does not say where it listens cannot be connected to."""
    with pytest.raises(NotConnected, match="does not say where: listening on something"):
        embedded.listening_address("listening on something\n", "127.0.0.1:0")
