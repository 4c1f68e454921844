"""A hypervisor in the test's process that keeps the protocol, and breaks off where a test says so.

It has one session, whose events are those of ``keeper.events``. ``faults`` names the places: a point of the
conversation, and at which of the times that it is reached.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from operator import methodcaller
from typing import Any, Final, NoReturn
from unittest import mock

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.blocks import ColumnCrcs, DecodedBlock, decode_request
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from guest_svc import attempts as attempts_module
from guest_svc import hypervisor as hypervisor_module
from guest_svc.hypervisor import Hypervisor
from guest_svc.retry import Retry
from tests.guest.keeper import COLUMNS, Limits, Response, end_of, events

LANES: Final = 2
RETRY_SECONDS: Final = 30.0  # of the tests' own clock


class Point(Enum):
    """Where a conversation can break off."""

    OPEN = "before an Open is answered"
    OPENED = "after it is answered, and outcomes are sent again"
    BLOCK = "before a block is applied"
    APPLIED = "before its outcomes are sent"
    FIRST_LANE = "between the outcomes of two lanes"
    OUTCOMES = "after its outcomes, before the acknowledgement"
    ACKNOWLEDGED = "after the acknowledgement"
    FINISH = "before a session is finished"
    FINISHED = "after that, before the answer"
    REPORT = "before a report is priced"


class _Over(Exception):
    """A stream ends without an error."""


Fault = Callable[["Scripted", grpc.ServicerContext], list[Response]]
Faults = dict[tuple[Point, int], Fault]


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        """Begin."""
        self.seconds = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        """Return the time."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.waits.append(seconds)
        self.seconds += seconds


@dataclass
class Opening:
    """An Open that came, and what came after it on its stream."""

    received_events: int
    next_event: int = -1  # that it was answered with
    blocks: list[tuple[int, int]] = field(default_factory=list)  # first event and end
    confirmed: list[int] = field(default_factory=list)


@dataclass
class Scripted:
    """The hypervisor: its session, and what came."""

    faults: Faults = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(max_block_events=4, max_window_events=4))
    commit: Callable[[int], int] = lambda applied: applied  # how much of what is applied is committed
    applied_events: int = 0
    committed_events: int = 0
    epoch: int = 0
    values: list[int] = field(default_factory=list)  # of the events that are applied
    says: str = "a"  # the outcome of each event
    skew: int = 0  # in the digests that an Open is answered with
    openings: list[Opening] = field(default_factory=list)
    finishes: int = 0
    clock: Clock = field(default_factory=Clock)  # that its guest's retries go by
    _kept: list[outcome_pb2.OutcomePart] = field(default_factory=list)
    _reached: Counter[Point] = field(default_factory=Counter)

    def crash(self) -> None:
        """Go back to what is committed."""
        self.applied_events = self.committed_events
        del self.values[self.applied_events :]
        self._kept = [part for part in self._kept if _end(part) <= self.applied_events]

    def _at(self, point: Point, context: grpc.ServicerContext) -> Iterator[Response]:
        self._reached[point] += 1
        fault = self.faults.get((point, self._reached[point]))
        if fault is not None:
            yield from fault(self, context)
            raise _Over

    def create_session(self, _request: Any, _context: Any) -> hypervisor_pb2.CreateSessionResponse:
        """Create the session."""
        return hypervisor_pb2.CreateSessionResponse(session_id="s1", limits=self.limits)

    def stream_events(self, requests: Iterator[bytes], context: Any) -> Iterator[Response]:
        """Carry a stream until it breaks off."""
        try:
            for data in requests:
                request = decode_request(data, COLUMNS)
                if isinstance(request, DecodedBlock):
                    yield from self._apply(request, context)
                elif request.HasField("confirm"):
                    self._confirm(request.confirm.received_events)
                else:
                    yield from self._open(request.open, context)
        except _Over:
            return

    def _open(self, opening: hypervisor_pb2.Open, context: grpc.ServicerContext) -> Iterator[Response]:
        assert opening.session_id == "s1"
        self.openings.append(Opening(opening.received_events))
        yield from self._at(Point.OPEN, context)
        self.epoch += 1
        self.openings[-1].next_event = self.applied_events
        opened = hypervisor_pb2.Opened(
            next_event=self.applied_events,
            committed_events=self.committed_events,
            epoch=self.epoch,
            column_crcs=[crc ^ self.skew for crc in digests(self.applied_events)],
            limits=self.limits,
        )
        yield Response(opened=opened)
        for part in [part for part in self._kept if _end(part) > opening.received_events]:
            yield Response(outcomes=part)
        if self.applied_events > opening.received_events:
            yield self._done()
        yield from self._at(Point.OPENED, context)

    def _confirm(self, received_events: int) -> None:
        assert received_events <= self.applied_events
        self.openings[-1].confirmed.append(received_events)
        self._kept = [part for part in self._kept if _end(part) > received_events]

    def _apply(self, block: DecodedBlock, context: grpc.ServicerContext) -> Iterator[Response]:
        yield from self._at(Point.BLOCK, context)
        end = end_of(block)
        self.openings[-1].blocks.append((block.first_event, end))
        assert block.first_event == self.applied_events
        assert block.events.values is not None
        self.values += block.events.values.tolist()
        assert block.column_crcs == digests(end)
        self.applied_events = end
        self.committed_events = max(self.committed_events, self.commit(end))
        parts = [self._outcomes(block, lane) for lane in range(LANES)]
        self._kept += parts
        yield from self._at(Point.APPLIED, context)
        yield Response(outcomes=parts[0])
        yield from self._at(Point.FIRST_LANE, context)
        yield Response(outcomes=parts[1])
        yield from self._at(Point.OUTCOMES, context)
        yield self._done()
        yield from self._at(Point.ACKNOWLEDGED, context)

    def _outcomes(self, block: DecodedBlock, lane: int) -> outcome_pb2.OutcomePart:
        return outcome_pb2.OutcomePart(
            first_event=block.first_event,
            event_count=len(block.events),
            lane=lane,
            stories=self.says.encode() * len(block.events),
            new_decisions=[outcome_pb2.Decision()] * self.epoch,  # not the same on every stream
            is_last_part=lane == LANES - 1,
        )

    @property
    def position(self) -> dict[str, int]:
        """What is applied and what is committed."""
        return {"applied_events": self.applied_events, "committed_events": self.committed_events}

    def _done(self) -> Response:
        return Response(acknowledgement=hypervisor_pb2.Acknowledgement(**self.position))

    def finish_session(self, request: Any, context: Any) -> hypervisor_pb2.FinishSessionResponse:
        """Finish the session if all events are there."""
        self.finishes += 1
        list(self._at(Point.FINISH, context))
        if request.event_count != self.applied_events:
            refuse(grpc.StatusCode.FAILED_PRECONDITION, "EVENT_COUNT_MISMATCH")(self, context)
        assert tuple(request.column_crcs) == digests(self.applied_events)
        self.committed_events = self.applied_events
        list(self._at(Point.FINISHED, context))
        report = report_pb2.Report(events=self.applied_events)
        return hypervisor_pb2.FinishSessionResponse(report=report.SerializeToString())

    def get_report(self, _request: Any, context: Any) -> hypervisor_pb2.GetReportResponse:
        """Return a report."""
        list(self._at(Point.REPORT, context))
        return hypervisor_pb2.GetReportResponse(report=b"priced")

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods as gRPC serves them."""
        to_bytes = methodcaller("SerializeToString")
        unary: dict[str, tuple[Any, Any]] = {
            "CreateSession": (self.create_session, hypervisor_pb2.CreateSessionRequest),
            "FinishSession": (self.finish_session, hypervisor_pb2.FinishSessionRequest),
            "GetReport": (self.get_report, hypervisor_pb2.GetReportRequest),
        }
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(method, request.FromString, to_bytes)
            for name, (method, request) in unary.items()
        }
        methods["StreamEvents"] = grpc.stream_stream_rpc_method_handler(self.stream_events, None, to_bytes)
        return grpc.method_handlers_generic_handler("exitlab.v1.HypervisorService", methods)


def digests(count: int) -> tuple[int, ...]:
    """Return the running digests of the first events."""
    crcs = ColumnCrcs(COLUMNS)
    crcs.update(events(count))
    return crcs.values


def cut(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, said: str = "cut") -> Fault:
    """Break off by a status that nothing but the way between may have said."""

    def fault(_: Scripted, context: grpc.ServicerContext) -> NoReturn:
        context.abort(code, said)

    return fault


def refuse(code: grpc.StatusCode, reason: str, domain: str = "exitlab") -> Fault:
    """Refuse with a reason, as a hypervisor does; in another domain, as what lies between may."""

    def fault(_: Scripted, context: grpc.ServicerContext) -> NoReturn:
        status = status_pb2.Status(code=code.value[0], message=f"because of {reason.lower()}")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
        context.abort_with_status(rpc_status.to_status(status))

    return fault


def crash(*, says: str = "a") -> Fault:
    """Go back to the last checkpoint, from which on the outcomes may be others."""

    def fault(hypervisor: Scripted, context: grpc.ServicerContext) -> list[Response]:
        hypervisor.crash()
        hypervisor.says = says
        return cut()(hypervisor, context)

    return fault


def shrink(fault: Fault, limits: Limits) -> Fault:
    """Break off, and come back with other limits."""

    def shrunk(hypervisor: Scripted, context: grpc.ServicerContext) -> list[Response]:
        hypervisor.limits = limits
        return fault(hypervisor, context)

    return shrunk


def drain(retry_after_ms: int) -> Fault:
    """Say that the hypervisor is stopping, and end the stream."""

    def fault(hypervisor: Scripted, _: grpc.ServicerContext) -> list[Response]:
        said = hypervisor_pb2.Draining(**hypervisor.position, retry_after_ms=retry_after_ms)
        return [Response(draining=said)]

    return fault


def _end(part: outcome_pb2.OutcomePart) -> int:
    return part.first_event + part.event_count


@contextmanager
def connected(scripted: Scripted, retry_seconds: float = RETRY_SECONDS) -> Iterator[Hypervisor]:
    """Serve a scripted hypervisor and connect to it."""
    retry = partial(Retry, now=scripted.clock.now, sleep=scripted.clock.sleep)
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((scripted.handlers(),))
    with (
        tempfile.TemporaryDirectory(prefix="exitlab-") as folder,
        mock.patch.object(attempts_module, "Retry", retry),
        mock.patch.object(hypervisor_module, "Retry", retry),
    ):
        address = f"unix:{folder}/h"
        server.add_insecure_port(address)
        server.start()
        with Hypervisor(address, retry_seconds=retry_seconds) as hypervisor:
            yield hypervisor
        server.stop(None).wait()
