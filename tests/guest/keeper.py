"""A hypervisor that only keeps what it was sent, for tests of the guest's end of the wire."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.blocks import DecodedBlock, decode_request
from exitlab.events import Column, EventColumns, EventKind
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.stream import EventStream
from guest_svc.window import WINDOW_BLOCKS

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
    opened: hypervisor_pb2.Opened = field(
        default_factory=lambda: hypervisor_pb2.Opened(epoch=3, column_crcs=[0, 0])
    )
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
        if request.config.label == "full":
            status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="the disk is full")
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NOT_STORED", domain="exitlab"))
            context.abort_with_status(rpc_status.to_status(status))
        if request.config.label == "stop":
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
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


Serve = Callable[[Keeper], Hypervisor]


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
