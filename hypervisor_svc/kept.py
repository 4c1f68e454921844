"""Outcomes that a guest may not have: kept until it confirms them, and sent again on its next stream."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from exitlab.v1 import hypervisor_pb2, outcome_pb2
from exitlab.wire import delimited
from hypervisor_svc.engine_like import EngineLike

_OUTCOMES: Final = hypervisor_pb2.StreamEventsResponse.OUTCOMES_FIELD_NUMBER


class KeptOutcomes:
    """Responses that carry outcomes, in the order of their events."""

    def __init__(self, kept: Iterable[tuple[int, bytes]] = ()) -> None:
        """Keep what a checkpoint had: the event after the last that a response tells of, and the response."""
        self._responses = deque(kept)
        self.size_bytes = sum(len(data) for _, data in self._responses)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Go through all, oldest first."""
        return iter(self._responses)

    def add(self, end: int, responses: Iterable[bytes]) -> None:
        """Keep the responses to a block that ends before event ``end``."""
        for data in responses:
            self._responses.append((end, data))
            self.size_bytes += len(data)

    def forget(self, received_events: int) -> None:
        """Drop what the guest has: outcomes of all blocks that end at or before ``received_events``."""
        while self._responses and self._responses[0][0] <= received_events:
            self.size_bytes -= len(self._responses.popleft()[1])


def response_with(part: outcome_pb2.OutcomePart) -> bytes:
    """Return the response that carries a part; to put so much into a message would copy it once more."""
    return delimited(_OUTCOMES, part.SerializeToString())


def told_again(data: bytes, engine: EngineLike) -> bytes:
    """Return a response that carries outcomes, for a stream that was not told of any decision."""
    part = hypervisor_pb2.StreamEventsResponse.FromString(data).outcomes
    engine.tell_again(part)
    return response_with(part)
