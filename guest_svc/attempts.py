"""The gRPC streams of one session, one after another: another is opened while that makes sense."""

from collections.abc import Callable
from typing import Final

import grpc

from exitlab.v1 import hypervisor_pb2
from guest_svc.attempt import Attempt
from guest_svc.call_errors import is_fenced, may_pass, reason_of, session_error
from guest_svc.errors import CouldNotFinish, GuestError
from guest_svc.hypervisor import Hypervisor
from guest_svc.retry import Retry, given_up

_MOST_UNANSWERED: Final = 3
_LEFT_UNANSWERED: Final = 1  # as a guest makes one attempt at a time


class Cut(Exception):
    """A stream has ended, and another may go on."""

    def __init__(self, told: GuestError, wait_seconds: float = 0.0, *, is_unanswered: bool = False) -> None:
        """Say what it is if none goes on, how long to wait, and whether an Open may still be on its way."""
        super().__init__(str(told))
        self.told = told
        self.wait_seconds = wait_seconds
        self.is_unanswered = is_unanswered


class Attempts:
    """The stream there is, and what opens another in its place."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        session_id: str,
        on_cut: Callable[[str], None] | None,
        *,
        is_resumed: bool,
    ) -> None:
        """Have no stream yet; ``on_cut`` is told the reason of each cut."""
        self._hypervisor = hypervisor
        self._session_id = session_id
        self._on_cut = on_cut
        self._retry = Retry(hypervisor.retry_seconds)
        self._attempt: Attempt | None = None
        self._furthest_events = 0  # that were ever applied
        # Streams that were given up before they were open; an earlier guest may have left some.
        self._unanswered = _LEFT_UNANSWERED if is_resumed else 0
        self.reconnects = 0

    def leave(self, *, at_once: bool) -> None:
        """End the stream; a hypervisor that does not end it too is not waited for."""
        if self._attempt is not None:
            self._attempt.end(at_once=at_once)

    def send(self, data: bytes) -> None:
        """Send a message on the stream."""
        assert self._attempt is not None  # a stream is open
        self._attempt.send(data)

    def confirm(self, received_events: int) -> None:
        """Say that the outcomes of all events below have arrived."""
        confirm = hypervisor_pb2.ConfirmOutcomes(received_events=received_events)
        self.send(hypervisor_pb2.StreamEventsRequest(confirm=confirm).SerializeToString())

    def has_applied(self, events: int) -> None:
        """Take note of where the hypervisor is; what it does again after a crash is no progress.

        Else a block that brings it down each time would be sent for ever.
        """
        if events > self._furthest_events:
            self._furthest_events = events
            self._retry.progress()

    def open(self, received_events: int, applied_events: int, cut: Cut | None) -> hypervisor_pb2.Opened:
        """Open a stream, the first or another in place of one that was cut, and return the answer.

        Raises:
            GuestError: the hypervisor refuses, or it is time to give up.

        """
        is_told = False
        opening = hypervisor_pb2.Open(session_id=self._session_id, received_events=received_events)
        while True:
            if cut is not None:
                if not is_told and self._on_cut is not None and self._retry.seconds:
                    self._on_cut(str(cut))
                is_told = True
                self.leave(at_once=True)
                if not self._retry.may_wait(cut.wait_seconds):
                    raise given_up(cut.told, self._retry.seconds)
            self._attempt = Attempt(self._hypervisor.channel)
            self._attempt.send(hypervisor_pb2.StreamEventsRequest(open=opening).SerializeToString())
            try:
                answer = self.get(applied_events)
            except Cut as another:
                self._unanswered = min(self._unanswered + another.is_unanswered, _MOST_UNANSWERED)
                cut = another
                continue
            if not answer.HasField("opened"):
                raise CouldNotFinish("the hypervisor did not answer that the stream is open")
            self.reconnects += cut is not None
            self._retry.has_reached()
            return answer.opened

    def get(self, applied_events: int) -> hypervisor_pb2.StreamEventsResponse:
        """Wait for what comes next; ``applied_events`` says where, should the stream have ended.

        Raises:
            Cut: another stream may go on.
            GuestError: none can.

        """
        assert self._attempt is not None  # a stream is open
        arrived = self._attempt.get()
        where = f"at event {applied_events:,}"
        if arrived is None:
            raise CouldNotFinish(f"the hypervisor ended the stream {where}")
        if isinstance(arrived, grpc.RpcError):
            told = session_error(arrived, f"the stream broke {where}")
            if may_pass(arrived) or self._fenced_itself(arrived):
                raise Cut(told, is_unanswered=not reason_of(arrived)) from None
            raise told from None
        if isinstance(arrived, BaseException):
            raise arrived
        if arrived.HasField("draining"):
            said = f"the hypervisor is stopping at event {arrived.draining.applied_events:,}"
            raise Cut(CouldNotFinish(said), arrived.draining.retry_after_ms / 1000)
        return arrived

    def _fenced_itself(self, error: grpc.RpcError) -> bool:
        """Tell whether a stream that was given up may have come late, and fenced the one after it."""
        may_have = is_fenced(error) and self._unanswered > 0
        self._unanswered -= may_have
        return may_have
