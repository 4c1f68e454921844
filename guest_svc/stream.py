"""The guest's end of the wire: unary calls of a hypervisor, and one stream of events.

A stream has three threads: the caller's, which makes and encodes blocks and takes in what came
back; gRPC's, which sends them; and a reader, which only hands over what arrives. They meet at two
queues, and all that is known of the stream is the caller's alone: a signal may interrupt it between
any two instructions, and must not find it with a lock that the other threads wait for. Offsets are
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
from google.protobuf.message import DecodeError, Message

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import COLUMN_DTYPES, Column, EventColumns
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc, outcome_pb2, policy_pb2, report_pb2
from guest_svc.call_errors import first_error, guest_error
from guest_svc.errors import CouldNotFinish

WINDOW_BLOCKS: Final = 4  # sent and not acknowledged; one would cost up to half of the rate
_FIRST_CALL_SECONDS: Final = 10.0
_CLOSING_SECONDS: Final = 2.0  # for a hypervisor's part in the end of a stream, then of a connection
_FRAME_BYTES: Final = 512  # of a block beside its columns, at most
_DEFAULT_BLOCK_EVENTS: Final = 65_536
_STREAM_METHOD: Final = "/exitlab.v1.HypervisorService/StreamEvents"
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
        self.channel = grpc.insecure_channel(wire_text(address), _CHANNEL_OPTIONS)
        self._stub = hypervisor_pb2_grpc.HypervisorServiceStub(self.channel)
        self._has_begun = False  # a session was created, so what fails from then on is cut short

    def __enter__(self) -> Self:
        """Return the connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection; a hypervisor that no longer runs is not waited for."""
        closing = threading.Thread(target=self.channel.close, daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)

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
        created = self._first_call(lambda: self._stub.CreateSession(request))
        self._has_begun = True
        return created

    def finish_session(self, session_id: str, event_count: int, crcs: tuple[int, ...]) -> report_pb2.Report:
        """End a session of ``event_count`` events and return its report."""
        request = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=event_count, column_crcs=crcs
        )
        try:
            return report_pb2.Report.FromString(self._stub.FinishSession(request).report)
        except grpc.RpcError as error:
            raise guest_error(error, "the session cannot be finished") from None
        except DecodeError:
            raise CouldNotFinish("the hypervisor's report cannot be read") from None

    def priced(
        self, session_id: str, choices: Iterable[hypervisor_pb2.PriceChoice]
    ) -> hypervisor_pb2.GetReportResponse:
        """Return every lane's figures at the first price list, then at the second, and how each was run."""
        request = hypervisor_pb2.GetReportRequest(session_id=session_id, prices=choices)
        try:
            return self._stub.GetReport(request)
        except grpc.RpcError as error:
            raise guest_error(error, "the report cannot be priced") from None

    def _first_call(self, call: Callable[[], _Answer]) -> _Answer:
        """Make a call that may come before any event: a hypervisor that is not there shows here."""
        try:
            return call()
        except grpc.RpcError as error:
            raise first_error(error, self.address, has_begun=self._has_begun) from None


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
        # What the hypervisor sends; then what ended the stream, None if it was the hypervisor's wish.
        self._arrived: SimpleQueue[hypervisor_pb2.StreamEventsResponse | BaseException | None] = SimpleQueue()
        self._in_flight: deque[int] = deque()  # the offset after each block that is not yet applied
        self._failure: BaseException | None = None
        self._is_open = False
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
        self._reader = threading.Thread(target=_hand_over, args=(self._call, self._arrived), daemon=True)

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
            self._take_until(lambda: self._is_open)
        except BaseException:
            self._call.cancel()
            self._requests.put(None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream; a hypervisor that does not end it too is not waited for."""
        if kind is not None:
            self._call.cancel()
        self._requests.put(None)
        self._reader.join(_CLOSING_SECONDS)
        if self._reader.is_alive():
            self._call.cancel()
            self._reader.join(_CLOSING_SECONDS)

    def send(self, events: EventColumns) -> None:
        """Send the next events, in blocks that the hypervisor takes; waits while the window is full."""
        for start in range(0, len(events), self._largest_block):
            self._send_block(events.rows(start, start + self._largest_block))

    def wait_until_applied(self) -> None:
        """Wait until all that was sent is applied, and its outcomes have arrived if they are wanted."""
        if self._on_outcomes is None:
            self._take_until(lambda: self.applied_events == self.next_event)
        else:
            self._take_until(lambda: self.applied_events == self.received_events == self.next_event)

    def _send_block(self, events: EventColumns) -> None:
        data = encode_block(events, self.next_event, self._crcs)
        end = self.next_event + len(events)
        self._take_until(lambda: self._has_room(end))
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

    def _take_until(self, is_true: Callable[[], bool]) -> None:
        """Take in what has arrived, and wait for more, until something is so; a stream fails once."""
        if self._failure is not None:
            raise self._failure
        try:
            while not is_true():
                self._take(self._arrived.get())
        except BaseException as error:
            self._failure = error
            raise

    def _take(self, arrived: hypervisor_pb2.StreamEventsResponse | BaseException | None) -> None:
        if arrived is None:
            raise CouldNotFinish(f"the hypervisor ended the stream at event {self.applied_events:,}")
        if isinstance(arrived, grpc.RpcError):
            raise guest_error(arrived, f"the stream broke at event {self.applied_events:,}") from None
        if isinstance(arrived, BaseException):
            raise arrived
        which = arrived.WhichOneof("message")
        if which == "outcomes":
            self._take_outcomes(arrived.outcomes)
        elif which == "opened":
            self._take_opened(arrived.opened)
        elif which == "acknowledgement":
            self._take_acknowledgement(arrived.acknowledgement)
        elif which == "draining":
            raise CouldNotFinish(f"the hypervisor is stopping at event {arrived.draining.applied_events:,}")

    def _take_opened(self, opened: hypervisor_pb2.Opened) -> None:
        if opened.next_event != self.next_event:
            raise CouldNotFinish(
                f"the hypervisor goes on at event {opened.next_event:,}, this stream at {self.next_event:,}"
            )
        self.epoch = opened.epoch
        self._is_open = True

    def _take_acknowledgement(self, acknowledgement: hypervisor_pb2.Acknowledgement) -> None:
        applied = acknowledgement.applied_events
        if not self.applied_events <= applied <= self.next_event:
            raise CouldNotFinish(
                f"the hypervisor acknowledged event {applied:,}: expected {self.applied_events:,}, which it "
                f"had acknowledged, to {self.next_event:,}, which were sent"
            )
        self.applied_events = applied
        self.committed_events = acknowledgement.committed_events
        while self._in_flight and self._in_flight[0] <= applied:
            self._in_flight.popleft()

    def _take_outcomes(self, part: outcome_pb2.OutcomePart) -> None:
        end = part.first_event + part.event_count
        if not self.received_events <= end <= self.next_event:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes up to event {end:,}: expected {self.received_events:,}, "
                f"which had arrived, to {self.next_event:,}, which were sent"
            )
        if self._on_outcomes is not None:
            self._on_outcomes(part)
        if not part.is_last_part:
            return
        self.received_events = end
        confirm = hypervisor_pb2.ConfirmOutcomes(received_events=self.received_events)
        self._requests.put(hypervisor_pb2.StreamEventsRequest(confirm=confirm).SerializeToString())


def _hand_over(
    responses: Iterator[hypervisor_pb2.StreamEventsResponse],
    arrived: "SimpleQueue[hypervisor_pb2.StreamEventsResponse | BaseException | None]",
) -> None:
    """Pass on what the hypervisor sends, and how it ended: the reader thread."""
    try:
        for response in responses:
            arrived.put(response)
    except BaseException as error:  # handed to the caller's thread, which raises it
        arrived.put(error)
    else:
        arrived.put(None)


def _largest_block(limits: hypervisor_pb2.Limits, columns: Iterable[Column]) -> int:
    """Return how many events a block may have; 0 in a limit stands for none."""
    row_bytes = sum(COLUMN_DTYPES[column].itemsize for column in columns)
    allowed = [limits.max_block_events, limits.max_window_events]
    if limits.max_message_bytes:
        allowed.append(max(1, (limits.max_message_bytes - _FRAME_BYTES) // row_bytes))
    return min((limit for limit in allowed if limit), default=_DEFAULT_BLOCK_EVENTS)


def wire_text(text: str) -> str:
    """Return a text as a message can carry it: what is not Unicode, as in a file's name, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
