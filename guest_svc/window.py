"""What may be sent now: by the hypervisor's limits, and by what it has acknowledged."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from exitlab.events import COLUMN_DTYPES, Column
from exitlab.v1 import hypervisor_pb2
from guest_svc.errors import CouldNotFinish

WINDOW_BLOCKS: Final = 4  # sent and not acknowledged; one would cost up to half of the rate
_FRAME_BYTES: Final = 512  # of a block beside its columns, at most
_DEFAULT_BLOCK_EVENTS: Final = 65_536


class Window:
    """Counts what is applied, committed and under way on the stream there is."""

    def __init__(self, limits: hypervisor_pb2.Limits, columns: Iterable[Column]) -> None:
        """Begin with nothing sent of events of ``columns``."""
        self._columns = tuple(columns)
        self.allow(limits)
        self.applied_events = 0
        self.committed_events = 0
        self._in_flight: deque[int] = deque()  # the offset after each block that is not yet applied

    def allow(self, limits: hypervisor_pb2.Limits) -> None:
        """Go by these limits from now on."""
        self._limits = limits
        self.largest_block = largest_block(limits, self._columns)

    def begin(self, applied_events: int) -> None:
        """Begin another stream where the hypervisor stands: nothing is under way."""
        self.applied_events = applied_events
        self._in_flight.clear()

    def has_room(self, end: int) -> bool:
        """Return whether a block up to event ``end`` may be sent now.

        An empty window takes any that may be uncommitted.
        """
        limits = self._limits
        unapplied, uncommitted = end - self.applied_events, end - self.committed_events
        if limits.max_uncommitted_events and uncommitted > limits.max_uncommitted_events:
            return False  # more is committed before long: a block is at most half of what may be uncommitted
        return not self._in_flight or (
            len(self._in_flight) < WINDOW_BLOCKS
            and (not limits.max_window_events or unapplied <= limits.max_window_events)
        )

    def sent(self, end: int) -> None:
        """Take note that a block up to event ``end`` is under way."""
        self._in_flight.append(end)

    def acknowledge(self, applied: int, sent_events: int) -> None:
        """Take note of what is applied.

        Raises:
            CouldNotFinish: it is less than was applied before, or more than was sent.

        """
        if not self.applied_events <= applied <= sent_events:
            raise CouldNotFinish(
                f"the hypervisor acknowledged event {applied:,}: expected {self.applied_events:,}, which it "
                f"had acknowledged, to {sent_events:,}, which were sent"
            )
        self.applied_events = applied
        while self._in_flight and self._in_flight[0] <= applied:
            self._in_flight.popleft()


def largest_block(limits: hypervisor_pb2.Limits, columns: Iterable[Column]) -> int:
    """Return how many events a block may have; 0 in a limit stands for none."""
    row_bytes = sum(COLUMN_DTYPES[column].itemsize for column in columns)
    allowed = [limits.max_block_events, limits.max_window_events]
    if limits.max_uncommitted_events:
        allowed.append(max(1, limits.max_uncommitted_events // 2))
    if limits.max_message_bytes:
        allowed.append(max(1, (limits.max_message_bytes - _FRAME_BYTES) // row_bytes))
    return min((limit for limit in allowed if limit), default=_DEFAULT_BLOCK_EVENTS)
