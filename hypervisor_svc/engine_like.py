"""What a session needs of an engine, so that a test can hand in another."""

from collections.abc import Callable
from typing import Protocol

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2


class EngineLike(Protocol):
    """What a session needs of an engine."""

    def feed(self, events: EventColumns, level: int) -> list[outcome_pb2.OutcomePart]:
        """Apply all events, or none and raise BadEvents; after anything else it is not used again."""

    def start_stream(self) -> None:
        """Tell every decision anew when it next occurs."""

    def tell_again(self, part: outcome_pb2.OutcomePart) -> None:
        """Have a part that is sent again carry the decisions that this stream was not told."""

    def report(self) -> report_pb2.Report:
        """Return what was found so far, or raise PolicyFailed."""

    def lane_runs(self) -> list[hypervisor_pb2.LaneRun]:
        """Return how each lane was run so far."""

    def state_digest(self) -> int:
        """Return a digest of the whole state."""

    def size_bytes(self) -> int:
        """Return how much memory the state takes."""

    def snapshot(self) -> bytes:
        """Return the whole state."""

    def restore(self, snapshot: bytes) -> None:
        """Take over the state of another engine of the same config, before any event."""


EngineFactory = Callable[[], EngineLike]
