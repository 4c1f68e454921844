"""A connection that swallows acknowledgements: the guest learns how far it is only by opening again."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import grpc

from exitlab.v1 import hypervisor_pb2
from guest_svc.hypervisor import Hypervisor


class MuteChannel:
    """A channel that takes acknowledgements out of every stream, and cuts it after some of them.

    It also cuts at the one that tells of ``last_event``, as none comes after it.
    """

    def __init__(self, channel: grpc.Channel, swallowed: int, last_event: int) -> None:
        """Cut each stream once ``swallowed`` acknowledgements are gone."""
        self.lost = 0  # acknowledgements that the guest has not seen
        self.last_event = last_event
        self._channel = channel
        self._swallowed = swallowed

    def __getattr__(self, name: str) -> Any:
        """Do all else as the channel does."""
        return getattr(self._channel, name)

    def stream_stream(self, method: str, **codec: Any) -> Callable[[Iterator[bytes]], Any]:
        """Return what opens a stream."""
        opening: Any = self._channel.stream_stream(method, **codec)

        def opened(requests: Iterator[bytes]) -> Any:
            return _MuteCall(self, opening(requests), self._swallowed)

        return opened


class _MuteCall:
    def __init__(self, channel: MuteChannel, call: Any, left: int) -> None:
        self._channel, self._call, self._left = channel, call, left

    def cancel(self) -> None:
        self._call.cancel()

    def __iter__(self) -> Iterator[hypervisor_pb2.StreamEventsResponse]:
        for response in self._call:
            if not response.HasField("acknowledgement"):
                yield response
                continue
            self._channel.lost += 1
            self._left -= 1
            if not self._left or response.acknowledgement.applied_events == self._channel.last_event:
                self._call.cancel()  # what comes next is the end


def muted(hypervisor: Hypervisor, swallowed: int, last_event: int) -> MuteChannel:
    """Put a mute channel between a guest and its hypervisor."""
    channel = MuteChannel(hypervisor.channel, swallowed, last_event)
    hypervisor.channel = cast("grpc.Channel", channel)
    return channel
