"""The Node client against a server that is told what to say: its window, and what it does not put up with."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn
from zlib import crc32

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.v1 import hypervisor_pb2, outcome_pb2
from tests.clients.node_program import NodeClient

pb = hypervisor_pb2
Requests = Iterator[pb.StreamEventsRequest]
Answers = Iterator[pb.StreamEventsResponse]
Conversation = Callable[[Requests], Answers]
LIMITS: Final = pb.Limits(max_block_events=8, max_window_events=20, max_uncommitted_events=40)
COUNT: Final = 64
ECHO_LANE: Final = 9  # of no lane: a client confirms a part of it like any other
CONFIG: Final = '{"lanes": [{}], "columns": ["COLUMN_KINDS"], "outcome_level": "OUTCOME_LEVEL_REFERENCE"}\n'
EVENTS: Final = json.dumps([{"kind": "EVENT_KIND_CPUID"}] * COUNT) + "\n"


class Refusal(Exception):
    """A call is refused, by the hypervisor with a reason, or by whatever lies between without one."""

    def __init__(self, code: grpc.StatusCode, reason: str = "") -> None:
        """Keep what is said."""
        super().__init__(reason)
        self._said = status_pb2.Status(code=code.value[0], message="refused by the test")
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="exitlab")
            self._said.details.add().Pack(info)

    def tell(self, context: grpc.ServicerContext) -> NoReturn:
        """End a call with it."""
        context.abort_with_status(rpc_status.to_status(self._said))
        raise AssertionError("abort returned")


class Server:
    """A server whose streams go as a test says, one after the other."""

    def __init__(self, *conversations: Conversation, late: Refusal | None = None) -> None:
        """Take the streams' courses; the first that would be finished is refused, if so asked for."""
        self._conversations = iter(conversations)
        self._late = late
        self.failure: BaseException | None = None

    def create_session(self, _request: Any, _context: Any) -> pb.CreateSessionResponse:
        """Create the one session."""
        return pb.CreateSessionResponse(session_id="s1", limits=LIMITS)

    def stream_events(self, requests: Requests, context: grpc.ServicerContext) -> Answers:
        """Carry a stream as the test says; it is cut if the client has more to send then."""
        try:
            conversation = next(self._conversations, None)
            assert conversation is not None, "a stream that nobody expects"
            yield from conversation(requests)
        except Refusal as refusal:
            refusal.tell(context)
        except AssertionError as error:
            self.failure = error
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the test has failed")
        if any(not request.HasField("confirm") for request in requests):
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")

    def finish_session(
        self, request: pb.FinishSessionRequest, context: grpc.ServicerContext
    ) -> pb.FinishSessionResponse:
        """Answer with a report that says what was asked."""
        if self._late is not None:
            late, self._late = self._late, None
            late.tell(context)
        report = f"{request.event_count} {list(request.column_crcs)}"
        return pb.FinishSessionResponse(report=report.encode())

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the three methods as gRPC wants them."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        methods: dict[str, Any] = {
            "CreateSession": unary(self.create_session, pb.CreateSessionRequest.FromString, _bytes),
            "StreamEvents": stream(self.stream_events, pb.StreamEventsRequest.FromString, _bytes),
            "FinishSession": unary(self.finish_session, pb.FinishSessionRequest.FromString, _bytes),
        }
        return grpc.method_handlers_generic_handler("exitlab.v1.HypervisorService", methods)


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


@contextmanager
def serving(address: str, server: Server) -> Iterator[None]:
    """Serve until the block is left; what went wrong in a stream is raised there."""
    process = grpc.server(ThreadPoolExecutor(4))
    process.add_generic_rpc_handlers((server.handlers(),))
    process.add_insecure_port(address)
    process.start()
    try:
        yield
    finally:
        process.stop(0).wait()
        if server.failure is not None:
            raise server.failure


def opened(events: int = 0, crc: int = 0) -> pb.StreamEventsResponse:
    """Return the answer to an Open."""
    return pb.StreamEventsResponse(opened=pb.Opened(next_event=events, epoch=1, column_crcs=[crc]))


def acknowledged(applied: int, committed: int) -> pb.StreamEventsResponse:
    """Return an acknowledgement."""
    acknowledgement = pb.Acknowledgement(applied_events=applied, committed_events=committed)
    return pb.StreamEventsResponse(acknowledgement=acknowledgement)


def outcomes(first: int, count: int, lane: int = 1, story: int = 0) -> pb.StreamEventsResponse:
    """Return outcomes of one lane, which are all there are."""
    part = outcome_pb2.OutcomePart(
        first_event=first,
        event_count=count,
        lane=lane,
        stories=bytes([story] * count),
        story_values=[0] * count,
        is_last_part=True,
    )
    return pb.StreamEventsResponse(outcomes=part)


def block(request: pb.StreamEventsRequest) -> tuple[int, int]:
    """Return the first event and the end of the block that a request is."""
    assert request.WhichOneof("message") == "block", request
    return request.block.first_event, request.block.first_event + request.block.event_count


def skip_confirms(requests: Requests) -> pb.StreamEventsRequest:
    """Return the next request that confirms no outcomes."""
    return next(request for request in requests if not request.HasField("confirm"))


def fill_windows(requests: Requests) -> Answers:
    """Take what each window allows, see that nothing more comes, and acknowledge it."""
    assert next(requests).open.session_id == "s1"
    yield opened()
    applied = committed = end = 0
    while applied < COUNT:
        allowed = min(applied + LIMITS.max_window_events, committed + LIMITS.max_uncommitted_events, COUNT)
        while end + LIMITS.max_block_events <= allowed:
            first, after = block(skip_confirms(requests))
            assert (first, after) == (end, end + LIMITS.max_block_events)
            yield outcomes(first, after - first)
            end = after
        for number in range(3):  # round trips, each through all that the client has to do
            yield outcomes(end, 0, ECHO_LANE + number)
            while (confirm := next(requests)).confirm.received_events < end:
                assert confirm.HasField("confirm"), "sent past the window"
            assert confirm.HasField("confirm"), "sent past the window"
        if end == applied:
            committed = end
        applied = end
        yield acknowledged(applied, committed)


REPORT: Final = f"{COUNT} [{crc32(bytes([7] * COUNT))}]".encode()


def test_the_window_is_kept(tmp_path: Path) -> None:
    """No more is sent than may be unapplied, nor than may be uncommitted; and no less."""
    address = f"unix:{tmp_path}/s"
    with serving(address, Server(fill_windows)), NodeClient(address) as client:
        client.give(CONFIG, EVENTS)
        assert client.finish() == REPORT


def one_block(*told: pb.StreamEventsResponse) -> Conversation:
    """Return a stream that takes one block, and says something then."""

    def conversation(requests: Requests) -> Answers:
        next(requests)
        yield opened()
        block(next(requests))
        yield from told

    return conversation


def goes_on(answer: pb.StreamEventsResponse, *told: pb.StreamEventsResponse) -> Conversation:
    """Return a stream that answers an Open with something, and goes on with something else."""

    def conversation(requests: Requests) -> Answers:
        next(requests)
        yield answer
        yield from told

    return conversation


CRC_8: Final = crc32(bytes([7] * 8))


@pytest.mark.parametrize(
    ("conversations", "said"),
    [
        ([one_block(acknowledged(8, 8))], "event 8 is acknowledged, but outcomes from 0 on have not come"),
        (
            [one_block(outcomes(0, 8)), goes_on(opened(8, CRC_8 ^ 1))],
            "the hypervisor has other events than this client below event 8",
        ),
        (
            [one_block(outcomes(0, 8)), goes_on(opened(12, 0))],
            "the hypervisor goes on at event 12, this client at ",
        ),
        (
            [one_block(outcomes(0, 8), acknowledged(8, 8)), goes_on(opened(0, 0))],
            "the hypervisor goes on at event 0, this client at ",
        ),
        (
            [one_block(outcomes(0, 8)), goes_on(opened(0, 0), outcomes(0, 8, story=1))],
            "the hypervisor sent outcomes from event 0 on again, and others",
        ),
    ],
    ids=["no outcomes", "other events", "a gap", "committed and gone", "other outcomes"],
)
def test_a_server_that_is_wrong_is_not_put_up_with(
    tmp_path: Path, conversations: list[Conversation], said: str
) -> None:
    """What would lose or change something ends the run, and is told."""
    address = f"unix:{tmp_path}/s"
    with serving(address, Server(*conversations)), NodeClient(address) as client:
        client.give(CONFIG, EVENTS)
        assert client.finish(code=3) == b""
        assert client.told[-1].startswith(f"error: {said}")


def refused(code: grpc.StatusCode, reason: str = "") -> Conversation:
    """Return a stream that is refused before it is open."""

    def conversation(requests: Requests) -> Answers:
        next(requests)
        raise Refusal(code, reason)
        yield  # which makes this a stream

    return conversation


Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("server", "reconnects"),
    [
        # An Open that was given up comes late, and fences the next.
        (Server(refused(Code.UNAVAILABLE), refused(Code.ABORTED, "FENCED"), fill_windows), 2),
        (Server(refused(Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS"), fill_windows), 1),
        (Server(refused(Code.UNAVAILABLE, "NOT_STORED"), fill_windows), 1),
        (Server(fill_windows, late=Refusal(Code.UNAVAILABLE)), 0),
    ],
    ids=["fenced by itself", "too many streams", "not stored", "cut at the end"],
)
def test_what_passes_is_tried_again(tmp_path: Path, server: Server, reconnects: int) -> None:
    """What another attempt may mend ends no run."""
    address = f"unix:{tmp_path}/s"
    with serving(address, server), NodeClient(address) as client:
        client.give(CONFIG, EVENTS)
        assert client.finish() == REPORT
        assert client.finding["reconnects"] == reconnects


def all_uncommitted(requests: Requests) -> Answers:
    """Take eight events, and commit none."""
    next(requests)
    yield opened()
    first, end = block(next(requests))
    yield outcomes(first, end - first)
    yield acknowledged(end, 0)


def test_events_that_a_crash_took_back_are_sent_again(tmp_path: Path) -> None:
    """A server that lacks events when it is to finish gets them again, over another stream."""
    address = f"unix:{tmp_path}/s"
    server = Server(
        all_uncommitted, all_uncommitted, late=Refusal(Code.FAILED_PRECONDITION, "EVENT_COUNT_MISMATCH")
    )
    with serving(address, server), NodeClient(address) as client:
        client.give(CONFIG, json.dumps([{"kind": "EVENT_KIND_CPUID"}] * 8) + "\n")
        assert client.finish() == f"8 [{CRC_8}]".encode()
        assert client.finding == {**client.finding, "events": 8, "reconnects": 1}
