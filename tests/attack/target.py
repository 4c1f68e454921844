"""What hostile clients are let loose on: a server, and a bystander who wants nothing but his report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.v1 import hypervisor_pb2, policy_pb2, report_pb2
from tests.attack.guest import FULL, POLICIES, SERVICE, Guest, Source, Stream, whole_run
from tests.attack.served import SECONDS, Served

Code = grpc.StatusCode
KNOWN: Final = frozenset(
    {
        *(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.OUT_OF_RANGE),
        *(Code.FAILED_PRECONDITION, Code.ABORTED, Code.DATA_LOSS, Code.RESOURCE_EXHAUSTED),
    }
)
# Room for all that the longest run makes.
FLAGS: Final = ("--max-sessions", "65536", "--max-all-sessions", "65536", "--log-level", "info")
EVENTS, BLOCK_EVENTS = 600, 50
_ATTEMPTS: Final = 1000
Result = TypeVar("Result")
METHODS: Final = tuple(method.name for method in SERVICE.methods if method.name != "StreamEvents")


SMALL_GROWTH: Final = 128 << 20  # of the resident memory, whatever is done


class Surprise(AssertionError):
    """Something that must not come of anything that a client says."""


def checked(error: Any) -> str:
    """Return the reason of a refusal, which has to be one of those that a client can expect."""
    status = rpc_status.from_call(error)
    if error.code() not in KNOWN or status is None:
        raise Surprise(f"{error.code()}: {error.details()}")
    info = error_details_pb2.ErrorInfo()
    if not status.details[0].Unpack(info) or info.domain != "exitlab" or not info.reason:
        raise Surprise(f"{error.code()} without a reason: {error.details()}")
    return str(info.reason)


@contextmanager
def check_small_growth(served: Served) -> Iterator[None]:
    """Refuse what makes a server's peak memory grow much."""
    served.forget_peak()
    before = served.resident_bytes()
    yield
    if (growth := served.peak_bytes() - before) > SMALL_GROWTH:
        raise Surprise(f"the server's memory grew by {growth / 1e6:.0f} MB")


def again(call: Callable[[], Result]) -> Result:
    """Make a call, and make it again as every guest does where gRPC itself turns it away.

    While more than a thousand calls wait for a server, gRPC refuses some of those that come, with CANCELLED.
    """
    for _ in range(_ATTEMPTS):
        try:
            return call()
        except grpc.RpcError as error:
            told: Any = error
            if told.code() is not Code.CANCELLED:
                raise
    raise Surprise("no call comes through any more")


class Target:
    """A server, a hostile guest, and a bystander with half a session."""

    def __init__(self, served: Served) -> None:
        """Run the bystander's source once, and again up to the middle."""
        self.served = served
        self.guest = Guest(served.address)
        self.source = Source(1, EVENTS, lanes=3, level=FULL)
        self.blocks = list(self.source.blocks(BLOCK_EVENTS))
        self._expected = whole_run(self.guest, self.source, BLOCK_EVENTS)
        self._alone: dict[int, tuple[int, bytes]] = {}
        self._bystander = Guest(served.address)
        self._session_id, self._crcs = (
            self._bystander.create(self.source.config),
            ColumnCrcs(self.source.columns),
        )
        self._send(self.blocks[: len(self.blocks) // 2], 0)
        self._before = self._status()
        self.finished = self._finished()
        self.texts = (self.guest.create(self.source.config), self.finished)

    def alone(self, count: int) -> tuple[int, bytes]:
        """Return the state's digest and the report of a session of the first blocks and nothing else."""
        if count not in self._alone:
            session_id, crcs, at = self.guest.create(self.source.config), ColumnCrcs(self.source.columns), 0
            stream = Stream(self.guest, session_id)
            for block in self.blocks[:count]:
                stream.put(encode_block(block, at, crcs))
                at += len(block)
            stream.half_close()
            digest = self.guest.status(session_id).state_digest
            self._alone[count] = digest, self.guest.finish(session_id, crcs, at)
        return self._alone[count]

    def _finished(self) -> str:
        session_id = self.guest.create(self.source.config)
        self.guest.finish(session_id, ColumnCrcs(self.source.columns), 0)
        return session_id

    def _send(self, blocks: list[Any], at: int) -> int:
        stream = self._opened()
        for block in blocks:
            stream.put(encode_block(block, at, self._crcs))
            at += len(block)
            while stream.applied() < at:
                pass
        stream.half_close()
        return at

    def _opened(self) -> Stream:
        def opened() -> Stream:
            stream = Stream(self._bystander, self._session_id)
            assert stream.get().HasField("opened")
            return stream

        return again(opened)

    def _status(self) -> hypervisor_pb2.SessionStatus:
        return again(lambda: self._bystander.status(self._session_id))

    def check_bystander(self) -> None:
        """Refuse any change of the bystander's session."""
        if self._status() != self._before:
            raise Surprise("the bystander's session is not as it was")

    def close(self) -> None:
        """Finish the bystander's session: its report, and the server's log, have to be as ever."""
        self.check_bystander()
        middle = len(self.blocks) // 2
        events = self._send(self.blocks[middle:], self._before.applied_events)
        report = self._bystander.finish(self._session_id, self._crcs, events)
        if report != self._expected:
            raise Surprise("the bystander's report is another than without the others")
        if self.served.faults() or not self.served.is_up:
            raise Surprise(f"the server failed: {self.served.faults()[:3]}")
        self.guest.close()
        self._bystander.close()

    def valid(self, method: str) -> Message:
        """Return a request that may well be answered, to begin with."""
        pb, session_id = hypervisor_pb2, self.texts[0]
        requests: dict[str, Message] = {
            "CreateSession": pb.CreateSessionRequest(request_id="wild", config=self.source.config),
            "GetSession": pb.GetSessionRequest(session_id=session_id),
            "FinishSession": pb.FinishSessionRequest(session_id=session_id, event_count=1),
            "GetReport": pb.GetReportRequest(
                session_id=self.finished, prices=[pb.PriceChoice(name="seed-2014"), self._inline()]
            ),
            "WatchReport": pb.WatchReportRequest(session_id=session_id, interval_ms=1000),
            "ListSessions": pb.ListSessionsRequest(page_size=3),
            "ListPolicies": pb.ListPoliciesRequest(),
            "DescribePolicy": pb.DescribePolicyRequest(name=POLICIES[0], vendor=policy_pb2.VENDOR_VMX),
            "ListPrices": pb.ListPricesRequest(),
        }
        return requests[method]

    def _inline(self) -> hypervisor_pb2.PriceChoice:
        lists = self.guest.stub.ListPrices(hypervisor_pb2.ListPricesRequest(), timeout=SECONDS).price_lists
        prices = report_pb2.PriceList()
        prices.CopyFrom(lists[0])
        prices.name = "mine"
        return hypervisor_pb2.PriceChoice(list=prices)

    def valid_requests(self) -> dict[str, Message]:
        """Return a valid request of each method; of creating, also one that brings a policy as a table."""
        requests = {method: self.valid(method) for method in METHODS}
        describe = hypervisor_pb2.DescribePolicyRequest(name=POLICIES[0], vendor=policy_pb2.VENDOR_VMX)
        table = self.guest.stub.DescribePolicy(describe, timeout=SECONDS).table
        config = hypervisor_pb2.SessionConfig()
        config.CopyFrom(self.source.config)
        config.lanes[0].policy_table.CopyFrom(table)
        requests["CreateSession, a table"] = hypervisor_pb2.CreateSessionRequest(
            request_id="table", config=config
        )
        return requests

    def say(self, method: str, data: bytes) -> str:
        """Send a request in bytes; return ``OK`` or the reason of the refusal."""
        path = f"/{SERVICE.full_name}/{method.partition(',')[0]}"
        try:
            if method == "WatchReport":
                method_of: Any = self.guest.channel.unary_stream(path)
                watch = method_of(data, timeout=SECONDS)
                next(watch)
                watch.cancel()
            else:
                call: Any = self.guest.channel.unary_unary(path)
                call(data, timeout=SECONDS)
        except grpc.RpcError as error:
            return checked(error)
        return "OK"
