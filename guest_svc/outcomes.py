"""What the architecture showed for events: a guest that acts on it (a closed loop) is answered with this.

These are the outcomes of the session's leading reference: what a guest must see under every correct policy.
No lane's are among them, so a wrong policy never changes what the guest does next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from exitlab.stories import EXCEPTIONS, Story
from exitlab.v1 import outcome_pb2
from guest_svc.errors import CouldNotFinish

_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_HIGH_HALF: Final = np.uint64(32)
_IS_EXCEPTION: Final = np.isin(np.arange(256), sorted(EXCEPTIONS))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What consecutive events showed the guest, one row an event; arrays of one length."""

    #: What was shown: numbers of ``Story``, u8.
    stories: NDArray[np.uint8]
    #: The value that goes with it, u64: of a READ what was read, of an exception DR6 and DR7.
    values: NDArray[np.uint64]
    #: The bits of DR6 in the value that the architecture leaves undefined, u32: no guest may rely on them.
    undefined_dr6: NDArray[np.uint32]

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.stories)

    def story(self, row: int) -> Story:
        """Return what one event showed."""
        return Story(int(self.stories[row]))

    def value(self, row: int) -> int:
        """Return the value that goes with one event's story."""
        return int(self.values[row])

    @property
    def is_read(self) -> NDArray[np.bool_]:
        """Which events read a value."""
        found: NDArray[np.bool_] = self.stories == Story.READ
        return found

    @property
    def is_exception(self) -> NDArray[np.bool_]:
        """Which events ended in an exception that the guest's handler takes: #DB, #UD, #GP or #BP."""
        found: NDArray[np.bool_] = _IS_EXCEPTION[self.stories]
        return found

    @property
    def is_taken(self) -> NDArray[np.bool_]:
        """Which events happened: all but those whose condition (IF_FAULT, IF_OK) did not hold."""
        found: NDArray[np.bool_] = self.stories != Story.NOT_TAKEN
        return found

    @property
    def dr6(self) -> NDArray[np.uint64]:
        """DR6 as the handler's first MOV reads it, u64; 0 where there was no exception."""
        return np.where(self.is_exception, self.values & _LOW_HALF, np.uint64(0))

    @property
    def dr7(self) -> NDArray[np.uint64]:
        """DR7 as the handler's first MOV reads it, u64; 0 where there was no exception."""
        return np.where(self.is_exception, self.values >> _HIGH_HALF, np.uint64(0))

    def rows(self, start: int, stop: int) -> Self:
        """Return those of events ``start`` to ``stop`` (exclusive) as views."""
        at = slice(start, stop)
        return type(self)(self.stories[at], self.values[at], self.undefined_dr6[at])

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"]) -> "Outcomes":
        """Return consecutive outcomes as one; of none, there are none."""
        if len(parts) == 1:
            return parts[0]
        types = (np.uint8, np.uint64, np.uint32)
        columns: Any = zip(*((part.stories, part.values, part.undefined_dr6) for part in parts), strict=True)
        arrays: Any = [np.concatenate(column) for column in columns] or [np.zeros(0, each) for each in types]
        return cls(*arrays)


class ArrivingOutcomes:
    """Collects the reference's outcomes as a stream brings them, and hands them on in order."""

    def __init__(self, lanes: int) -> None:
        """Expect those of a session of ``lanes`` lanes."""
        self._lane = lanes  # the number that the reference has
        self._parts: list[Outcomes] = []
        self._next_event: int | None = None

    def take(self, part: outcome_pb2.OutcomePart) -> None:
        """Take in a part.

        Raises:
            CouldNotFinish: It is not what this session's hypervisor has to send next.

        """
        count = part.event_count
        if part.lane != self._lane or {len(part.stories), len(part.story_values)} != {count}:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes that nobody asked for: lane {part.lane}, {len(part.stories)} "
                f"stories and {len(part.story_values)} values of {count} events"
            )
        if self._next_event is not None and part.first_event != self._next_event:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes from event {part.first_event:,} on, expected those from "
                f"{self._next_event:,} on"
            )
        self._next_event = part.first_event + count
        undefined = np.zeros(count, np.uint32)
        if part.undefined_dr6:
            undefined[:] = part.undefined_dr6
        values = np.fromiter(part.story_values, np.uint64, count)
        self._parts.append(Outcomes(np.frombuffer(part.stories, np.uint8), values, undefined))

    def of(self, events: int) -> Outcomes:
        """Hand on the outcomes of the ``events`` that were sent last.

        Raises:
            CouldNotFinish: There are more or fewer.

        """
        joined, self._parts = Outcomes.joined(self._parts), []
        if len(joined) != events:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes of {len(joined):,} events, expected {events:,}"
            )
        return joined
