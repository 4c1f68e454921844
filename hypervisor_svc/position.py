"""How far a session has come: its next event, and the running digests of all before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from exitlab.blocks import ColumnCrcs, DecodedBlock
from exitlab.events import Column
from exitlab.serving.refusals import AlreadyExists, DataLoss, InvalidRequest, OutOfRange, WrongState


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a stream of ``columns``."""

    columns: tuple[Column, ...]
    events: int  # before it
    crcs: tuple[int, ...]

    @classmethod
    def start(cls, columns: tuple[Column, ...]) -> Self:
        """Return the place before the first event."""
        return cls(columns, 0, ColumnCrcs(columns).values)

    def after(self, block: DecodedBlock, max_block_events: int) -> "Position":
        """Return the place after a block, which has to start here and to be what was sent.

        Raises: OutOfRange, AlreadyExists, InvalidRequest, DataLoss.
        """
        self._check_start(block)
        event_count = len(block.events)
        if event_count > max_block_events:
            message = f"{event_count} events, but a block has at most {max_block_events}"
            path = "events.events" if block.is_plain else "block.event_count"
            place = {"first_event": block.first_event, "next_event": self.events}
            raise InvalidRequest("BLOCK_TOO_LARGE", message, field=path, **place)
        crcs = ColumnCrcs(self.columns, self.crcs)
        crcs.update(block.events)
        stated = crcs.values if block.column_crcs is None else block.column_crcs
        for i, (ours, theirs) in enumerate(zip(crcs.values, stated, strict=True)):
            if ours != theirs:
                name = self.columns[i].name.lower()
                message = f"the {name} that arrived give {ours:#010x}, but {theirs:#010x} is stated"
                field = f"block.column_crcs[{i}]"
                raise DataLoss("DIGEST_MISMATCH", message, field=field, first_event=block.first_event)
        return Position(self.columns, self.events + event_count, crcs.values)

    def _check_start(self, block: DecodedBlock) -> None:
        place = {"first_event": block.first_event, "next_event": self.events}
        path = "events.first_event" if block.is_plain else "block.first_event"
        if block.first_event > self.events:
            message = f"starts at event {block.first_event}, but the next event is {self.events}"
            raise OutOfRange("GAP", message, field=path, **place)
        if block.first_event < self.events:
            message = f"starts at event {block.first_event}, but all below {self.events} are applied"
            raise AlreadyExists("ALREADY_APPLIED", message, field=path, **place)

    def check_end(self, event_count: int, column_crcs: Sequence[int]) -> None:
        """Refuse an end that is elsewhere, or of other events.

        Raises: WrongState.
        """
        if event_count != self.events:
            message = f"{event_count} events were sent, but {self.events} are applied"
            place = {"event_count": event_count, "next_event": self.events}
            raise WrongState("EVENT_COUNT_MISMATCH", message, field="event_count", **place)
        if tuple(column_crcs) != self.crcs:
            names = ", ".join(column.name.lower() for column in self.columns)
            message = f"the digests of {names} are not those of the {self.events} events applied"
            raise WrongState("DIGEST_MISMATCH", message, field="column_crcs")
