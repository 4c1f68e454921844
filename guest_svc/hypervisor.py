"""A connection to a hypervisor, and its unary calls.

A call of a session that is under way is made again where that makes sense: all of them may be repeated,
as creating goes by a request id, and finishing returns the stored report.
"""

import threading
import uuid
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc, policy_pb2, report_pb2
from guest_svc.call_errors import first_error, may_pass, session_error
from guest_svc.errors import CouldNotFinish, GuestError
from guest_svc.retry import Retry, given_up
from guest_svc.tls import Tls

_FIRST_CALL_SECONDS: Final = 10.0
_CLOSING_SECONDS: Final = 2.0
_CHANNEL_OPTIONS: Final = [
    # What a message may weigh is for the server to say, in Limits.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A hypervisor that vanished without a word is noticed, and looked for again.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name, this is also the least time that a connection has to be made in, TLS and all.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels to one address would share their backoff: one that failed would have others fail.
    ("grpc.use_local_subchannel_pool", 1),
]
_Answer = TypeVar("_Answer", bound=Message)


class Hypervisor:
    """A connection to a hypervisor. Its errors are GuestErrors of one line."""

    def __init__(
        self,
        address: str,
        tls: Tls | None = None,
        *,
        retry_seconds: float = 0.0,
        is_known: bool = False,
    ) -> None:
        """Name the hypervisor at ``address`` (``host:port`` or ``unix:PATH``); nothing is sent yet.

        Once it has answered, or if it ``is_known`` to have been there, it is looked for again for so long if
        it is gone.

        Raises: BadInput, if a file of ``tls`` cannot be used.
        """
        self.address, self._tls = address, tls
        self.retry_seconds = retry_seconds
        make_channel = grpc.insecure_channel if tls is None else tls.channel
        self.channel = make_channel(wire_text(address), _CHANNEL_OPTIONS)
        self._stub = hypervisor_pb2_grpc.HypervisorServiceStub(self.channel)
        self._has_answered = is_known
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

    def session(self, session_id: str) -> hypervisor_pb2.GetSessionResponse:
        """Return where a session stands."""
        request = hypervisor_pb2.GetSessionRequest(session_id=wire_text(session_id))
        answer = self._first_call(lambda: self._stub.GetSession(request))
        self._has_begun = True
        return answer

    def finish_session(self, session_id: str, event_count: int, crcs: tuple[int, ...]) -> report_pb2.Report:
        """End a session of ``event_count`` events and return its report.

        Raises:
            SessionIsBehind: the hypervisor has crashed, and has not all events any more.
            GuestError: it cannot be finished.

        """
        request = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=event_count, column_crcs=crcs
        )

        answer = self._again(
            lambda: self._stub.FinishSession(request),
            lambda error: session_error(error, "the session cannot be finished"),
        )
        try:
            return report_pb2.Report.FromString(answer.report)
        except DecodeError:
            raise CouldNotFinish("the hypervisor's report cannot be read") from None

    def priced(
        self, session_id: str, choices: Iterable[hypervisor_pb2.PriceChoice]
    ) -> hypervisor_pb2.GetReportResponse:
        """Return every lane's figures at the first price list, then at the second, and how each was run."""
        request = hypervisor_pb2.GetReportRequest(session_id=session_id, prices=choices)
        return self._again(
            lambda: self._stub.GetReport(request),
            lambda error: session_error(error, "the report cannot be priced"),
        )

    def _first_call(self, call: Callable[[], _Answer]) -> _Answer:
        """Make a call that may come before any event: a hypervisor that is not there shows here."""
        return self._again(
            call, lambda error: first_error(error, self.address, self._tls, has_begun=self._has_begun)
        )

    def _again(self, call: Callable[[], _Answer], told: Callable[[grpc.RpcError], GuestError]) -> _Answer:
        """Make a call, and make it again while that makes sense; ``told`` says what an error means."""
        retry = Retry(self.retry_seconds)
        while True:
            try:
                answer = call()
            except grpc.RpcError as error:
                if not (self._has_answered and may_pass(error)):
                    raise told(error) from None
                if not retry.may_wait():
                    raise given_up(told(error), self.retry_seconds) from None
            else:
                self._has_answered = True
                return answer


def wire_text(text: str) -> str:
    """Return a text as a message can carry it: what is not Unicode, as in a file's name, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
