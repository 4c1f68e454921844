"""One gRPC stream of a session. A session that is cut goes on with another.

It has two threads beside the caller's: gRPC's, which sends, and a reader, which only hands over what
arrives. They meet the caller at two queues, and share nothing else.
"""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final

import grpc

from exitlab.v1 import hypervisor_pb2

_CLOSING_SECONDS: Final = 2.0  # for a hypervisor's part in the end of a stream
_METHOD: Final = "/exitlab.v1.HypervisorService/StreamEvents"
READER: Final = "stream-reader"  # the thread's name
# What the hypervisor sends; then what ended the stream, None if it was the hypervisor's wish.
Arrived = hypervisor_pb2.StreamEventsResponse | BaseException | None


class Attempt:
    """One stream, from its first message to its end."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Begin to send and to read."""
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._arrived: SimpleQueue[Arrived] = SimpleQueue()
        stream: grpc.StreamStreamMultiCallable[bytes, hypervisor_pb2.StreamEventsResponse]
        stream = channel.stream_stream(
            _METHOD,
            request_serializer=None,  # blocks come encoded; what is sent is bytes as they are
            response_deserializer=hypervisor_pb2.StreamEventsResponse.FromString,
        )
        self._call = stream(iter(self._requests.get, None))
        self._reader = threading.Thread(
            target=_hand_over, args=(self._call, self._arrived), name=READER, daemon=True
        )
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Send a message, after those before it."""
        self._requests.put(data)

    def get(self) -> Arrived:
        """Wait for what arrives next."""
        return self._arrived.get()

    def end(self, *, at_once: bool) -> None:
        """End the stream; a hypervisor that does not end it too is not waited for."""
        if at_once:
            self._call.cancel()
        self._requests.put(None)
        self._reader.join(_CLOSING_SECONDS)
        if self._reader.is_alive():
            self._call.cancel()
            self._reader.join(_CLOSING_SECONDS)


def _hand_over(
    responses: Iterator[hypervisor_pb2.StreamEventsResponse], arrived: "SimpleQueue[Arrived]"
) -> None:
    """Pass on what the hypervisor sends, and how it ended: the reader thread."""
    try:
        for response in responses:
            arrived.put(response)
    except BaseException as error:  # handed to the caller's thread, which raises it
        arrived.put(error)
    else:
        arrived.put(None)
