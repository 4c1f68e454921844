"""A workload whose blocks are looked at on their way into a session."""

from collections.abc import Callable
from typing import Final

from exitlab.events import EventColumns
from guest_svc.columns import joined
from guest_svc.workloads.base import BLOCK_EVENTS, Blocks, Workload

_FACTS: Final = tuple(Workload.__annotations__)


class Tapped(Workload):
    """Another workload, with what it has yielded."""

    def __init__(self, workload: Workload, on_pull: Callable[[int], None] = lambda _: None) -> None:
        """Call ``on_pull`` with the rows that came so far, each time before it is asked for more."""
        for fact in _FACTS:
            if hasattr(workload, fact):
                setattr(self, fact, getattr(workload, fact))
        self._workload = workload
        self._on_pull = on_pull
        self._taken: list[EventColumns] = []
        self._answers: list[bytes] = []

    @property
    def told_as(self) -> str:
        """What it is called in an error of its own."""
        return self._workload.told_as

    @property
    def taken(self) -> EventColumns:
        """All rows that came."""
        return joined(self._taken)

    @property
    def answers(self) -> bytes:
        """All outcomes that it was sent, as bytes."""
        return b"".join(self._answers)

    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield the other's blocks."""
        blocks = self._workload.blocks(block_events)
        rows, outcomes = 0, None
        try:
            while True:
                self._on_pull(rows)
                try:
                    block = blocks.send(outcomes)
                except StopIteration:
                    return
                self._taken.append(joined([block]))  # a copy: its author may use the arrays again
                rows += len(block)
                outcomes = yield block
                if outcomes is not None:
                    self._answers += [outcomes.stories.tobytes(), outcomes.values.tobytes()]
        finally:
            blocks.close()
