"""The guest's end of the wire: unary calls of a hypervisor, and one stream of events.

A stream has three threads: the caller's, which makes and encodes blocks; gRPC's, which sends them;
and a reader, which takes in acknowledgements and outcomes. They meet at one condition. Offsets are
event indexes, never block numbers, and the stream keeps what a resume needs: the next event, what
is applied and committed, which outcomes have arrived, and the epoch.
"""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import COLUMN_DTYPES, Column, EventColumns
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import BadInput, CouldNotFinish, GuestError, NotConnected

WINDOW_BLOCKS: Final = 4  # sent and not acknowledged; one would cost up to half of the rate
_FIRST_CALL_SECONDS: Final = 10.0
_FRAME_BYTES: Final = 512  # of a block beside its columns, at most
_DEFAULT_BLOCK_EVENTS: Final = 32_768
_STREAM_METHOD: Final = "/exitlab.v1.HypervisorService/StreamEvents"
_NOT_THERE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED}
)
_BUGS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_CHANNEL_OPTIONS: Final = [
    # What a message may weigh is for the server to say, in Limits.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_Answer = TypeVar("_Answer", bound=Message)


class Hypervisor:
    """A connection to a hypervisor. Its errors are GuestErrors of one line."""

    def __init__(self, address: str) -> None:
        """Name the hypervisor at ``address`` (``host:port`` or ``unix:PATH``); nothing is sent yet."""
        self.address = address
        self.channel = grpc.insecure_channel(address, _CHANNEL_OPTIONS)
        self._stub = hypervisor_pb2_grpc.HypervisorServiceStub(self.channel)

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.channel.close()

    def price_lists(self) -> dict[str, report_pb2.PriceList]:
        """Return the price lists that the hypervisor has, by name."""
        request = hypervisor_pb2.ListPricesRequest()
        answer = self._first_call(lambda: self._stub.ListPrices(request, timeout=_FIRST_CALL_SECONDS))
        return {prices.name: prices for prices in answer.price_lists}

    def policies(self) -> list[hypervisor_pb2.PolicySummary]:
        """Return the policies that the hypervisor has."""
        request = hypervisor_pb2.ListPoliciesRequest()
        answer = self._first_call(lambda: self._stub.ListPolicies(request, timeout=_FIRST_CALL_SECONDS))
        return list(answer.policies)

    def policy_table(self, name: str, vendor: policy_pb2.Vendor.ValueType) -> policy_pb2.PolicyTable:
        """Return a policy's table on a vendor."""
        request = hypervisor_pb2.DescribePolicyRequest(name=name, vendor=vendor)
        return self._first_call(lambda: self._stub.DescribePolicy(request)).table

    def create_session(self, config: hypervisor_pb2.SessionConfig) -> hypervisor_pb2.CreateSessionResponse:
        """Create a session."""
        request = hypervisor_pb2.CreateSessionRequest(request_id=uuid.uuid4().hex, config=config)
        return self._first_call(lambda: self._stub.CreateSession(request))

    def finish_session(self, session_id: str, event_count: int, crcs: tuple[int, ...]) -> report_pb2.Report:
        """End a session of ``event_count`` events and return its report."""
        request = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=event_count, column_crcs=crcs
        )
        try:
            return report_pb2.Report.FromString(self._stub.FinishSession(request).report)
        except grpc.RpcError as error:
            raise guest_error(error, "the session cannot be finished") from None

    def figures(
        self, session_id: str, choices: Iterable[hypervisor_pb2.PriceChoice]
    ) -> list[report_pb2.LaneFigures]:
        """Return every lane's figures at the first price list, then at the second, and so on."""
        request = hypervisor_pb2.GetReportRequest(session_id=session_id, prices=choices)
        try:
            return list(self._stub.GetReport(request).figures)
        except grpc.RpcError as error:
            raise guest_error(error, "the report cannot be priced") from None

    def _first_call(self, call: Callable[[], _Answer]) -> _Answer:
        """Make a call that comes before any event: a hypervisor that is not there shows here."""
        try:
            return call()
        except grpc.RpcError as error:
            status, message = _status(error)
            if status in _NOT_THERE:
                raise NotConnected(f"no hypervisor answers at {self.address}: {message}") from None
            if status in _BUGS:
                raise guest_error(error, "the hypervisor failed") from None
            raise BadInput(f"{message}{_details(error)}") from None


class EventStream:
    """One stream of a session: sends events, keeps the flow-control window, collects outcomes.

    Use it in a ``with``: leaving it closes the stream, at once if by an error.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        session: hypervisor_pb2.CreateSessionResponse,
        columns: Iterable[Column],
        on_outcomes: Callable[[outcome_pb2.OutcomePart], None] | None = None,
    ) -> None:
        """Prepare a stream of ``columns``; ``on_outcomes`` is called with each part as it arrives."""
        self._session_id = session.session_id
        self._limits = session.limits
        self._crcs = ColumnCrcs(columns)
        self._largest_block = _largest_block(session.limits, self._crcs.declared)
        self._on_outcomes = on_outcomes
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._in_flight: deque[int] = deque()  # the offset after each block that is not yet applied
        self._failure: BaseException | None = None
        self._is_open = False
        self._has_ended = False
        self.next_event = 0
        self.applied_events = 0
        self.committed_events = 0
        self.received_events = 0
        self.epoch = 0
        stream: grpc.StreamStreamMultiCallable[bytes, hypervisor_pb2.StreamEventsResponse]
        stream = hypervisor.channel.stream_stream(
            _STREAM_METHOD,
            request_serializer=None,  # blocks come encoded; what is sent is bytes as they are
            response_deserializer=hypervisor_pb2.StreamEventsResponse.FromString,
        )
        self._call = stream(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, args=(self._call,), daemon=True)

    @property
    def crcs(self) -> tuple[int, ...]:
        """The running digests of the columns at ``next_event``."""
        return self._crcs.values

    def __enter__(self) -> Self:
        """Open the stream and wait until the hypervisor has."""
        self._reader.start()
        opening = hypervisor_pb2.Open(session_id=self._session_id, received_events=self.received_events)
        self._requests.put(hypervisor_pb2.StreamEventsRequest(open=opening).SerializeToString())
        try:
            self._wait_for(lambda: self._is_open)
        except BaseException:
            self._call.cancel()
            self._requests.put(None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream."""
        if kind is not None:
            self._call.cancel()
        self._requests.put(None)
        self._reader.join()

    def send(self, events: EventColumns) -> None:
        """Send the next events, in blocks that the hypervisor takes; waits while the window is full."""
        for start in range(0, len(events), self._largest_block):
            self._send_block(events.rows(start, start + self._largest_block))

    def wait_until_applied(self) -> None:
        """Wait until all that was sent is applied, and its outcomes have arrived if they are wanted."""
        if self._on_outcomes is None:
            self._wait_for(lambda: self.applied_events == self.next_event)
        else:
            self._wait_for(lambda: self.applied_events == self.received_events == self.next_event)

    def _send_block(self, events: EventColumns) -> None:
        data = encode_block(events, self.next_event, self._crcs)
        end = self.next_event + len(events)
        self._wait_for(lambda: self._has_room(end))
        with self._changed:
            self._in_flight.append(end)
            self.next_event = end
        self._requests.put(data)

    def _has_room(self, end: int) -> bool:
        """Return whether a block up to event ``end`` may be sent now; an empty window takes any."""
        if not self._in_flight:
            return True
        limits = self._limits
        unapplied, uncommitted = end - self.applied_events, end - self.committed_events
        return (
            len(self._in_flight) < WINDOW_BLOCKS
            and (not limits.max_window_events or unapplied <= limits.max_window_events)
            and (not limits.max_uncommitted_events or uncommitted <= limits.max_uncommitted_events)
        )

    def _wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            while not is_true():
                if self._failure is not None:
                    raise self._failure
                if self._has_ended:
                    raise CouldNotFinish(f"the hypervisor ended the stream at event {self.applied_events:,}")
                self._changed.wait()

    def _read(self, responses: Iterator[hypervisor_pb2.StreamEventsResponse]) -> None:
        """Take in what the hypervisor sends until it ends: the reader thread."""
        try:
            for response in responses:
                self._take(response)
        except grpc.RpcError as error:
            self._end(guest_error(error, f"the stream broke at event {self.applied_events:,}"))
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._call.cancel()
            self._end(error)
        else:
            self._end(None)

    def _end(self, failure: BaseException | None) -> None:
        with self._changed:
            self._failure = failure
            self._has_ended = True
            self._changed.notify_all()

    def _take(self, response: hypervisor_pb2.StreamEventsResponse) -> None:
        which = response.WhichOneof("message")
        if which == "outcomes":
            self._take_outcomes(response.outcomes)
            return
        with self._changed:
            if which == "opened":
                self.epoch = response.opened.epoch
                self._is_open = True
            elif which == "acknowledgement":
                self.applied_events = response.acknowledgement.applied_events
                self.committed_events = response.acknowledgement.committed_events
                while self._in_flight and self._in_flight[0] <= self.applied_events:
                    self._in_flight.popleft()
            elif which == "draining":
                self._failure = CouldNotFinish(
                    f"the hypervisor is stopping at event {response.draining.applied_events:,}"
                )
            self._changed.notify_all()

    def _take_outcomes(self, part: outcome_pb2.OutcomePart) -> None:
        if self._on_outcomes is not None:
            self._on_outcomes(part)
        if not part.is_last_part:
            return
        with self._changed:
            self.received_events = part.first_event + part.event_count
            self._changed.notify_all()
        confirm = hypervisor_pb2.ConfirmOutcomes(received_events=self.received_events)
        self._requests.put(hypervisor_pb2.StreamEventsRequest(confirm=confirm).SerializeToString())


def _largest_block(limits: hypervisor_pb2.Limits, columns: Iterable[Column]) -> int:
    """Return how many events a block may have; 0 in a limit stands for none."""
    row_bytes = sum(COLUMN_DTYPES[column].itemsize for column in columns)
    allowed = [limits.max_block_events, limits.max_window_events]
    if limits.max_message_bytes:
        allowed.append(max(1, (limits.max_message_bytes - _FRAME_BYTES) // row_bytes))
    return min((limit for limit in allowed if limit), default=_DEFAULT_BLOCK_EVENTS)


def guest_error(error: grpc.RpcError, doing: str) -> GuestError:
    """Return what a failed call means to the guest, with the server's details in the line."""
    status, message = _status(error)
    text = f"{message}{_details(error)}"
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return BadInput(text)
    return CouldNotFinish(f"{doing}: {text} ({status.name})")


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return an error's code and its message on one line."""
    if not isinstance(error, grpc.Call):
        return grpc.StatusCode.UNKNOWN, str(error)
    return error.code(), " ".join((error.details() or "no reason given").split())


def _details(error: grpc.RpcError) -> str:
    """Return the fields and reasons of an error's google.rpc details, in brackets."""
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    if status is None:
        return ""
    parts: list[str] = []
    for detail in status.details:
        bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(bad_request):
            parts += [f"field {violation.field}" for violation in bad_request.field_violations]
        elif detail.Unpack(info):
            parts.append(f"reason {info.reason}")
    return f" [{', '.join(parts)}]" if parts else ""
