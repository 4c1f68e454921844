"""Which outcomes have arrived: each reaches the caller once, and what comes again has to be the same."""

from collections.abc import Callable

from exitlab.v1 import outcome_pb2
from guest_svc.errors import CouldNotFinish
from guest_svc.kept import ToldOutcomes

OnOutcomes = Callable[[outcome_pb2.OutcomePart], None]


class Arrivals:
    """The outcomes of one session, as they come on one stream after another."""

    def __init__(self, on_outcomes: OnOutcomes | None) -> None:
        """Hand each part to ``on_outcomes``; where that is None, none is expected."""
        self._on_outcomes = on_outcomes
        self._told = ToldOutcomes()
        self._told_events = 0  # outcomes that have come on this stream, and did not have to
        self._reached_events = 0  # by any part
        self.received_events = 0
        self.heard_events = 0  # below which some outcomes have come, on any stream

    @property
    def are_wanted(self) -> bool:
        """Whether events count as answered only once their outcomes have come."""
        return self._on_outcomes is not None

    def begin(self, applied_events: int, *, is_resumed: bool) -> None:
        """Begin another stream where the hypervisor stands."""
        self._told_events = min(applied_events, self.received_events)
        # Where outcomes begin that come to a guest which was restarted, only they can tell.
        has_none = is_resumed and not self.received_events
        self._reached_events = applied_events if has_none else self._told_events

    def take(self, part: outcome_pb2.OutcomePart, sent_events: int) -> int | None:
        """Take in a part; return up to which event all have arrived, if it is the last of its block.

        Raises:
            CouldNotFinish: it does not follow on those that have come, or differs from what had come.

        """
        end = part.first_event + part.event_count
        if not self._told_events <= end <= sent_events:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes up to event {end:,}: expected {self._told_events:,}, "
                f"which had arrived, to {sent_events:,}, which were sent"
            )
        if part.first_event > self._reached_events:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes from event {part.first_event:,} on: those from event "
                f"{self._reached_events:,} on have not come"
            )
        self._reached_events = max(self._reached_events, end)
        self.heard_events = max(self.heard_events, end)
        if self._told.is_new(part) and self._on_outcomes is not None:
            self._on_outcomes(part)
        if not part.is_last_part:
            return None
        self._told_events = end
        self.received_events = max(self.received_events, end)
        return end

    def check_acknowledged(self, applied: int) -> None:
        """Refuse an acknowledgement of events whose outcomes are wanted and have not come.

        Raises: CouldNotFinish.
        """
        if self.are_wanted and applied > max(self._told_events, self.received_events):
            raise CouldNotFinish(
                f"the hypervisor acknowledged event {applied:,}, but outcomes from event "
                f"{self._told_events:,} on have not come"
            )

    def forget(self, committed: int) -> None:
        """Drop what is committed and has arrived, and so does not come again."""
        self._told.forget(min(committed, self.received_events))
