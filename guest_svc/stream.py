"""One stream of events to a session, however often it is cut.

All that is known of the stream is its caller's alone: a signal may interrupt it between any two
instructions, and must not find it with a lock that other threads wait for. Offsets are event indexes,
never block numbers. Blocks are kept until they are committed, so that a generator never goes back: after
a cut the hypervisor says where it stands, and what it lacks is sent again. Outcomes reach the caller once
each; those that come again have to be the same.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self

import grpc

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import COLUMN_DTYPES, Column, EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from guest_svc.attempt import Arrived, Attempt
from guest_svc.call_errors import is_fenced, may_pass, reason_of, session_error
from guest_svc.errors import BadInput, CouldNotFinish, GuestError, SessionIsBehind
from guest_svc.hypervisor import Hypervisor
from guest_svc.kept import Block, KeptBlocks, ToldOutcomes
from guest_svc.retry import Retry

WINDOW_BLOCKS: Final = 4  # sent and not acknowledged; one would cost up to half of the rate
_MOST_UNANSWERED: Final = 3
_LEFT_UNANSWERED: Final = 1  # as a guest makes one attempt at a time
_FRAME_BYTES: Final = 512  # of a block beside its columns, at most
_DEFAULT_BLOCK_EVENTS: Final = 65_536


class _Cut(Exception):
    """A stream has ended, and another may go on."""

    def __init__(self, told: GuestError, wait_seconds: float = 0.0, *, is_unanswered: bool = False) -> None:
        """Say what it is if none goes on, how long to wait, and whether an Open may still be on its way."""
        super().__init__(str(told))
        self.told = told
        self.wait_seconds = wait_seconds
        self.is_unanswered = is_unanswered


class EventStream:
    """The events of one session: sends them, keeps the flow-control window, collects outcomes.

    Use it in a ``with``: leaving it closes the stream, at once if by an error.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        session: hypervisor_pb2.CreateSessionResponse,
        columns: Iterable[Column],
        on_outcomes: Callable[[outcome_pb2.OutcomePart], None] | None = None,
        on_cut: Callable[[str], None] | None = None,
        *,
        is_resumed: bool = False,
    ) -> None:
        """Prepare a stream of ``columns``.

        ``on_outcomes`` is called with each part as it arrives, ``on_cut`` with the reason of each cut. Of a
        session that is resumed, the caller sends all events from the first; those that the hypervisor has
        are compared with what it has.
        """
        self._hypervisor = hypervisor
        self._session_id = session.session_id
        self._limits = session.limits
        self._crcs = ColumnCrcs(columns)
        self._largest_block = _largest_block(session.limits, self._crcs.declared)
        self._on_outcomes = on_outcomes
        self._on_cut = on_cut
        self._retry = Retry(hypervisor.retry_seconds)
        self._attempt: Attempt | None = None
        self._kept = KeptBlocks(self._crcs.declared)
        self._is_resumed = is_resumed
        self._is_proven = not is_resumed  # what is made here is what the hypervisor has
        self._there = hypervisor_pb2.Opened()  # where a resumed session stood
        self._told = ToldOutcomes()
        self._in_flight: deque[int] = deque()  # the offset after each block that is not yet applied
        self._failure: BaseException | None = None
        self._furthest_events = 0  # that were ever applied
        self._told_events = 0  # outcomes that have come on this stream, and did not have to
        self._reached_events = 0  # by any part
        # Streams that were given up before they were open; an earlier guest may have left some.
        self._unanswered = _LEFT_UNANSWERED if is_resumed else 0
        self.next_event = 0
        self.applied_events = 0
        self.committed_events = 0
        self.received_events = 0
        self.epoch = 0
        self.reconnects = 0

    @property
    def crcs(self) -> tuple[int, ...]:
        """The running digests of the columns at ``next_event``."""
        return self._crcs.values

    def __enter__(self) -> Self:
        """Open the stream and wait until the hypervisor has."""
        try:
            self._connect(None)
        except BaseException as error:
            self._leave(at_once=True)
            self._failure = error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream; a hypervisor that does not end it too is not waited for."""
        self._leave(at_once=kind is not None)

    def _leave(self, *, at_once: bool) -> None:
        if self._attempt is not None:
            self._attempt.end(at_once=at_once)

    def send(self, events: EventColumns) -> None:
        """Send the next events, in blocks that the hypervisor takes; waits while the window is full."""
        events = self._not_there(events)
        for start in range(0, len(events), self._largest_block):
            self._send_block(events.rows(start, start + self._largest_block))

    def wait_until_applied(self) -> None:
        """Wait until all that was sent is applied, and its outcomes have arrived if they are wanted."""
        if self._on_outcomes is None:
            self._take_until(lambda: self.applied_events == self.next_event)
        else:
            self._take_until(lambda: self.applied_events == self.received_events == self.next_event)

    def _not_there(self, events: EventColumns) -> EventColumns:
        """Return those of the next events that a resumed session does not have.

        What it has is kept all the same, if it is not committed: the hypervisor may crash.
        """
        while not self._is_proven and len(events):
            count = min(len(events), self._largest_block, self._there.next_event - self.next_event)
            data = encode_block(events.rows(0, count), self.next_event, self._crcs)
            self.next_event += count
            self._kept.add(Block(self.next_event, self.crcs, data))
            self._kept.sent()
            self._kept.forget(self._there.committed_events)
            self._compare_if_there()
            events = events.rows(count, len(events))
        return events

    def _compare_if_there(self) -> None:
        """Compare all events below with the session's, once a source is where a resumed session stood."""
        if not self._is_proven and self.next_event == self._there.next_event:
            if self.crcs != tuple(self._there.column_crcs):
                raise BadInput(
                    f"--resume: this source is not the session's: its first {self.next_event:,} events differ"
                )
            self._is_proven = True

    def finish(self) -> report_pb2.Report:
        """End the session once all is applied, and return its report."""
        self._compare_if_there()
        if not self._is_proven:
            raise BadInput(
                f"--resume: this source is not the session's: it ends after {self.next_event:,} events, and "
                f"the session has {self._there.next_event:,}"
            )
        while True:
            self.wait_until_applied()
            try:
                return self._hypervisor.finish_session(self._session_id, self.next_event, self.crcs)
            except SessionIsBehind as behind:
                self._guarded(partial(self._connect, _Cut(behind)))

    def _send_block(self, events: EventColumns) -> None:
        data = encode_block(events, self.next_event, self._crcs)
        end = self.next_event + len(events)
        self._take_until(lambda: self._kept.unsent is None and self._has_room(end))
        self.next_event = end
        self._kept.add(Block(end, self.crcs, data))
        self._send_kept()

    def _send_kept(self) -> None:
        """Send as many of the blocks that are kept and not sent as there is room for."""
        while (block := self._kept.unsent) is not None and self._has_room(block.end):
            assert self._attempt is not None  # a stream is open
            self._in_flight.append(block.end)
            self._attempt.send(block.data)
            self._kept.sent()

    def _has_room(self, end: int) -> bool:
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

    def _take_until(self, is_true: Callable[[], bool]) -> None:
        """Take in what has arrived, and wait for more, until something is so; a stream fails once."""

        def take() -> None:
            while not is_true():
                try:
                    self._take(self._arrived())
                except _Cut as cut:
                    self._connect(cut)
                self._send_kept()

        self._guarded(take)

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            work()
        except BaseException as error:
            self._failure = error
            raise

    def _arrived(self) -> Arrived:
        assert self._attempt is not None  # a stream is open
        return self._attempt.get()

    def _connect(self, cut: _Cut | None) -> None:
        """Open a stream: the first, or another in place of one that was cut."""
        is_told = False
        while True:
            if cut is not None:
                if not is_told and self._on_cut is not None and self._retry.seconds:
                    self._on_cut(str(cut))
                is_told = True
                self._leave(at_once=True)
                if not self._retry.may_wait(cut.wait_seconds):
                    raise cut.told
            self._attempt = Attempt(self._hypervisor.channel)
            opening = hypervisor_pb2.Open(session_id=self._session_id, received_events=self.received_events)
            self._attempt.send(hypervisor_pb2.StreamEventsRequest(open=opening).SerializeToString())
            try:
                arrived = self._arrived()
                if isinstance(arrived, hypervisor_pb2.StreamEventsResponse) and arrived.HasField("opened"):
                    self.reconnects += cut is not None
                    self._retry.has_reached()
                    self._go_on(arrived.opened)
                    return
                self._take(arrived)
                raise CouldNotFinish("the hypervisor did not answer that the stream is open")
            except _Cut as another:
                self._unanswered = min(self._unanswered + another.is_unanswered, _MOST_UNANSWERED)
                cut = another

    def _go_on(self, opened: hypervisor_pb2.Opened) -> None:
        """Go on where the hypervisor stands, if that is in this stream."""
        event = opened.next_event
        if not self._is_proven and event >= self.next_event:
            self._wait_there(opened)
            return
        crcs = self._kept.go_back(event)
        if event < self.committed_events:
            raise CouldNotFinish(
                f"the hypervisor goes on at event {event:,}, but had committed {self.committed_events:,}"
            )
        if crcs is None:
            other = "; another guest has sent to the session" if event > self.next_event else ""
            raise CouldNotFinish(
                f"the hypervisor goes on at event {event:,}, this stream at {self.next_event:,}{other}"
            )
        if crcs != tuple(opened.column_crcs):
            raise CouldNotFinish(f"the hypervisor has other events than this stream below event {event:,}")
        self._is_proven = True
        self.epoch = opened.epoch
        self._has_applied(event)
        if self.received_events:
            self._confirm(min(event, self.received_events))
        self._told_events = min(event, self.received_events)
        # Where outcomes begin that come to a guest which was restarted, only they can tell.
        has_none = self._is_resumed and not self.received_events
        self._reached_events = event if has_none else self._told_events
        self._in_flight.clear()
        self._commit(opened.committed_events)
        self._send_kept()

    def _wait_there(self, opened: hypervisor_pb2.Opened) -> None:
        """Take note of where a resumed session stands, which the source has not reached yet."""
        self._there = opened
        self.epoch = opened.epoch
        self.applied_events, self.committed_events = opened.next_event, opened.committed_events
        self._reached_events = opened.next_event
        self._compare_if_there()

    def _has_applied(self, events: int) -> None:
        """Take note of where the hypervisor is; what it does again after a crash is no progress.

        Else a block that brings it down each time would be sent for ever.
        """
        self.applied_events = events
        if events > self._furthest_events:
            self._furthest_events = events
            self._retry.progress()

    def _commit(self, committed: int) -> None:
        self.committed_events = committed
        self._kept.forget(committed)
        self._told.forget(min(committed, self.received_events))

    def _take(self, arrived: Arrived) -> None:
        where = f"at event {self.applied_events:,}"
        if arrived is None:
            raise CouldNotFinish(f"the hypervisor ended the stream {where}")
        if isinstance(arrived, grpc.RpcError):
            told = session_error(arrived, f"the stream broke {where}")
            if may_pass(arrived) or self._fenced_itself(arrived):
                raise _Cut(told, is_unanswered=not reason_of(arrived)) from None
            raise told from None
        if isinstance(arrived, BaseException):
            raise arrived
        which = arrived.WhichOneof("message")
        if which == "outcomes":
            self._take_outcomes(arrived.outcomes)
        elif which == "acknowledgement":
            self._take_acknowledgement(arrived.acknowledgement)
        elif which == "draining":
            said = f"the hypervisor is stopping at event {arrived.draining.applied_events:,}"
            raise _Cut(CouldNotFinish(said), arrived.draining.retry_after_ms / 1000)

    def _fenced_itself(self, error: grpc.RpcError) -> bool:
        """Tell whether a stream that was given up may have come late, and fenced the one after it."""
        may_have = is_fenced(error) and self._unanswered > 0
        self._unanswered -= may_have
        return may_have

    def _take_acknowledgement(self, acknowledgement: hypervisor_pb2.Acknowledgement) -> None:
        applied = acknowledgement.applied_events
        if not self.applied_events <= applied <= self.next_event:
            raise CouldNotFinish(
                f"the hypervisor acknowledged event {applied:,}: expected {self.applied_events:,}, which it "
                f"had acknowledged, to {self.next_event:,}, which were sent"
            )
        if self._on_outcomes is not None and applied > max(self._told_events, self.received_events):
            raise CouldNotFinish(
                f"the hypervisor acknowledged event {applied:,}, but outcomes from event "
                f"{self._told_events:,} on have not come"
            )
        self._has_applied(applied)
        self._commit(acknowledgement.committed_events)
        while self._in_flight and self._in_flight[0] <= applied:
            self._in_flight.popleft()

    def _take_outcomes(self, part: outcome_pb2.OutcomePart) -> None:
        end = part.first_event + part.event_count
        if not self._told_events <= end <= self.next_event:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes up to event {end:,}: expected {self._told_events:,}, "
                f"which had arrived, to {self.next_event:,}, which were sent"
            )
        if part.first_event > self._reached_events:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes from event {part.first_event:,} on: those from event "
                f"{self._reached_events:,} on have not come"
            )
        self._reached_events = max(self._reached_events, end)
        if self._told.is_new(part) and self._on_outcomes is not None:
            self._on_outcomes(part)
        if not part.is_last_part:
            return
        self._told_events = end
        self.received_events = max(self.received_events, end)
        self._confirm(end)

    def _confirm(self, received_events: int) -> None:
        assert self._attempt is not None  # a stream is open
        confirm = hypervisor_pb2.ConfirmOutcomes(received_events=received_events)
        self._attempt.send(hypervisor_pb2.StreamEventsRequest(confirm=confirm).SerializeToString())


def _largest_block(limits: hypervisor_pb2.Limits, columns: Iterable[Column]) -> int:
    """Return how many events a block may have; 0 in a limit stands for none."""
    row_bytes = sum(COLUMN_DTYPES[column].itemsize for column in columns)
    allowed = [limits.max_block_events, limits.max_window_events]
    if limits.max_uncommitted_events:
        allowed.append(max(1, limits.max_uncommitted_events // 2))
    if limits.max_message_bytes:
        allowed.append(max(1, (limits.max_message_bytes - _FRAME_BYTES) // row_bytes))
    return min((limit for limit in allowed if limit), default=_DEFAULT_BLOCK_EVENTS)
