"""A relay before a hypervisor: passes every call on, watches the streams, holds answers back, and cuts.

It knows nothing of what is passed but a stream's offsets. What a guest sends is taken at once, whatever the
hypervisor takes, so a guest that disregards its window shows.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

import grpc

from exitlab.v1 import hypervisor_pb2

_STREAM: Final = "/exitlab.v1.HypervisorService/StreamEvents"
_WATCH: Final = "/exitlab.v1.HypervisorService/WatchReport"
_THREADS: Final = 64
_UNLIMITED: Final = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_HELD_ANSWERS: Final = 5  # of a stream whose window is looked at
_HOLD_SECONDS: Final = 0.2  # in which a guest that disregards its window has sent more
_LOOK_SECONDS: Final = 0.1


class Watched:
    """What is to happen to the streams from now on, and what was seen of them."""

    def __init__(self, *, window: int = 0, cut_at: int | None = None, is_shut: bool = False) -> None:
        """Let all pass.

        Or hold the first answers back until ``window`` events are unanswered; cut the stream once the
        hypervisor has applied ``cut_at`` events; let no answer to events pass until ``open_up``.
        """
        self._window, self._cut_at = window, cut_at
        self._held = 0
        self._gate = threading.Event()
        if not is_shut:
            self._gate.set()
        self._changed = threading.Condition()
        self.streams = 0
        self.cuts = 0
        self.sent_events = 0  # by the guest, up to here
        self.told_events = 0  # to the guest, as applied, up to here
        self.most_unanswered = 0

    def open_up(self) -> None:
        """Let answers pass that were held."""
        self._gate.set()

    def wait_until_sent(self, events: int, seconds: float) -> bool:
        """Wait until a guest has sent so many events; tell whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self.sent_events >= events, seconds)

    def sends(self, data: bytes) -> None:
        """Take note of what a guest sends."""
        request = hypervisor_pb2.StreamEventsRequest.FromString(data)
        which = request.WhichOneof("message")
        with self._changed:
            if which == "open":
                self.streams += 1
            elif which == "block":
                self.sent_events = request.block.first_event + request.block.event_count
            elif which == "events":
                self.sent_events = request.events.first_event + len(request.events.events)
            self.most_unanswered = max(self.most_unanswered, self.sent_events - self.told_events)
            self._changed.notify_all()

    def answers(self, data: bytes, is_open: Callable[[], bool]) -> bool:
        """Take note of what the hypervisor answers; tell whether it may pass, or the stream is cut."""
        response = hypervisor_pb2.StreamEventsResponse.FromString(data)
        which = response.WhichOneof("message")
        if which == "opened":
            with self._changed:
                self.sent_events = self.told_events = response.opened.next_event
        outcomes, applied = response.outcomes, response.acknowledgement.applied_events
        if (
            self._cut_at is not None
            and max(applied, outcomes.first_event + outcomes.event_count) >= self._cut_at
        ):
            self._cut_at = None
            self.cuts += 1
            return False
        if which == "acknowledgement":
            while is_open() and not self._gate.wait(_LOOK_SECONDS):
                pass
            with self._changed:
                if self._window and self._held < _HELD_ANSWERS:
                    self._held += 1
                    full = self.told_events + self._window
                    self._changed.wait_for(lambda: self.sent_events > full, _HOLD_SECONDS)
                self.told_events = applied
        return True


class Relay(grpc.GenericRpcHandler):
    """A hypervisor's calls, passed on to it."""

    def __init__(self, address: str) -> None:
        """Listen on a port of this machine for guests of the hypervisor at ``address``."""
        self._channel = grpc.insecure_channel(address, _UNLIMITED)
        self._server = grpc.server(ThreadPoolExecutor(_THREADS), options=_UNLIMITED)
        self._server.add_generic_rpc_handlers((self,))
        self._watched = Watched()
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut whatever is open."""
        self._watched.open_up()
        self._server.stop(None).wait()
        self._channel.close()

    def watch(self, watched: Watched) -> Watched:
        """Have this be told of all streams that begin from now on."""
        self._watched.open_up()
        self._watched = watched
        return watched

    def service(self, handler_call_details: Any) -> Any:
        """Return what passes a call on, whichever it is."""
        method = handler_call_details.method
        if method == _STREAM:
            return grpc.stream_stream_rpc_method_handler(self._pass_stream)
        if method == _WATCH:
            return grpc.unary_stream_rpc_method_handler(self._passed(self._channel.unary_stream(method)))
        return grpc.unary_unary_rpc_method_handler(self._passed(self._channel.unary_unary(method)))

    def _passed(self, call: Any) -> Any:
        def forward(request: bytes, context: Any) -> Any:
            try:
                return call(request)
            except grpc.RpcError as error:
                return _refuse(error, context)

        return forward

    def _pass_stream(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        watched = self._watched
        taken: SimpleQueue[bytes | None] = SimpleQueue()

        def take() -> None:
            try:
                for data in requests:
                    watched.sends(data)
                    taken.put(data)
            except Exception:  # the guest has gone, which its call's end tells
                call.cancel()
            finally:
                taken.put(None)

        stream: Any = self._channel.stream_stream(_STREAM)  # without serializers it takes and gives bytes
        call = stream(iter(taken.get, None))
        context.add_callback(call.cancel)
        threading.Thread(target=take, daemon=True, name="relay").start()
        try:
            for data in call:
                if not watched.answers(data, context.is_active):
                    call.cancel()
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut, to see whether the guest goes on")
                yield data
        except grpc.RpcError as error:
            if context.is_active():
                _refuse(error, context)


def _refuse(error: Any, context: Any) -> None:
    """Refuse a call as the hypervisor has, with its details."""
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code(), error.details())
