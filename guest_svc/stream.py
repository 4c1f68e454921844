"""One stream of events to a session, however often it is cut.

All that is known of the stream is its caller's alone: a signal may interrupt it between any two
instructions, and must not find it with a lock that other threads wait for. Offsets are event indexes,
never block numbers. Blocks are kept until they are committed, so that a generator never goes back: after
a cut the hypervisor says where it stands, and what it lacks is sent again. Outcomes reach the caller once
each; those that come again have to be the same.
"""

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Self

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import Column, EventColumns
from exitlab.v1 import hypervisor_pb2, report_pb2
from guest_svc.arrivals import Arrivals, OnOutcomes
from guest_svc.attempts import Attempts, Cut
from guest_svc.errors import CouldNotFinish, SessionIsBehind
from guest_svc.hypervisor import Hypervisor
from guest_svc.kept import Block, KeptBlocks
from guest_svc.resumed import Proof
from guest_svc.window import Window


class EventStream:
    """The events of one session: sends them, keeps the flow-control window, collects outcomes.

    Use it in a ``with``: leaving it closes the stream, at once if by an error.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        session: hypervisor_pb2.CreateSessionResponse,
        columns: Iterable[Column],
        on_outcomes: OnOutcomes | None = None,
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
        self._crcs = ColumnCrcs(columns)
        self._attempts = Attempts(hypervisor, session.session_id, on_cut, is_resumed=is_resumed)
        self._window = Window(session.limits, self._crcs.declared)
        self._kept = KeptBlocks(self._crcs.declared)
        self._outcomes = Arrivals(on_outcomes)
        self._is_resumed = is_resumed
        self._proof = Proof(is_resumed=is_resumed)
        self._failure: BaseException | None = None
        self.next_event = 0
        self.epoch = 0

    @property
    def applied_events(self) -> int:
        """Events that the hypervisor has applied."""
        return self._window.applied_events

    @property
    def committed_events(self) -> int:
        """Events that it need not be sent again."""
        return self._window.committed_events

    @property
    def received_events(self) -> int:
        """Events whose outcomes have arrived."""
        return self._outcomes.received_events

    @property
    def reconnects(self) -> int:
        """How often the stream was cut and went on."""
        return self._attempts.reconnects

    @property
    def crcs(self) -> tuple[int, ...]:
        """The running digests of the columns at ``next_event``."""
        return self._crcs.values

    def __enter__(self) -> Self:
        """Open the stream and wait until the hypervisor has."""
        try:
            self._connect(None)
        except BaseException as error:
            self._attempts.leave(at_once=True)
            self._failure = error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the stream; a hypervisor that does not end it too is not waited for."""
        self._attempts.leave(at_once=kind is not None)

    def send(self, events: EventColumns) -> None:
        """Send the next events, in blocks that the hypervisor takes; waits while the window is full."""
        events = self._not_there(events)
        while len(events):
            block = events.rows(0, self._window.largest_block)
            self._send_block(block)
            events = events.rows(len(block), len(events))

    def wait_until_applied(self) -> None:
        """Wait until all that was sent is applied, and its outcomes have arrived if they are wanted."""
        if self._outcomes.are_wanted:
            self._take_until(lambda: self.applied_events == self.received_events == self.next_event)
        else:
            self._take_until(lambda: self.applied_events == self.next_event)

    def finish(self) -> report_pb2.Report:
        """End the session once all is applied, and return its report."""
        self._proof.check_end(self.next_event, self.crcs)
        while True:
            self.wait_until_applied()
            try:
                return self._hypervisor.finish_session(self._session_id, self.next_event, self.crcs)
            except SessionIsBehind as behind:
                self._guarded(partial(self._connect, Cut(behind)))

    def _not_there(self, events: EventColumns) -> EventColumns:
        """Return those of the next events that a resumed session does not have.

        What it has is kept all the same, if it is not committed: the hypervisor may crash.
        """
        while not self._proof.is_done and len(events):
            count = min(len(events), self._window.largest_block, self._proof.next_event - self.next_event)
            data = encode_block(events.rows(0, count), self.next_event, self._crcs)
            self.next_event += count
            self._kept.add(Block(self.next_event, self.crcs, data))
            self._kept.sent()
            self._kept.forget(self._proof.committed_events)
            self._proof.compare(self.next_event, self.crcs)
            events = events.rows(count, len(events))
        return events

    def _send_block(self, events: EventColumns) -> None:
        data = encode_block(events, self.next_event, self._crcs)
        end = self.next_event + len(events)

        def has_room() -> bool:
            # After a cut the hypervisor may take less than this, which is then sent in parts.
            return self._window.has_room(end) or len(events) > self._window.largest_block

        self._take_until(lambda: self._kept.unsent is None and has_room())
        self.next_event = end
        self._kept.add(Block(end, self.crcs, data))
        self._kept.cut_unsent(self._window.largest_block, self._outcomes.heard_events)
        self._send_kept()

    def _send_kept(self) -> None:
        """Send as many of the blocks that are kept and not sent as there is room for."""
        while (block := self._kept.unsent) is not None and self._window.has_room(block.end):
            self._window.sent(block.end)
            self._attempts.send(block.data)
            self._kept.sent()

    def _take_until(self, is_true: Callable[[], bool]) -> None:
        """Take in what has arrived, and wait for more, until something is so; a stream fails once."""

        def take() -> None:
            while not is_true():
                try:
                    self._take(self._attempts.get(self.applied_events))
                except Cut as cut:
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

    def _connect(self, cut: Cut | None) -> None:
        """Open a stream: the first, or another in place of one that was cut."""
        opened = self._attempts.open(self.received_events, self.applied_events, cut)
        if opened.HasField("limits"):  # the hypervisor may have come back with others
            self._window.allow(opened.limits)
        self.epoch = opened.epoch
        if not self._proof.is_done and opened.next_event >= self.next_event:
            self._wait_there(opened)
        else:
            self._go_on(opened)

    def _go_on(self, opened: hypervisor_pb2.Opened) -> None:
        """Go on where the hypervisor stands, if that is in this stream."""
        event = opened.next_event
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
        self._proof.is_done = True
        self._window.begin(event)
        self._attempts.has_applied(event)
        if self.received_events:
            self._attempts.confirm(min(event, self.received_events))
        self._outcomes.begin(event, is_resumed=self._is_resumed)
        self._commit(opened.committed_events)
        self._kept.cut_unsent(self._window.largest_block, self._outcomes.heard_events)
        self._send_kept()

    def _wait_there(self, opened: hypervisor_pb2.Opened) -> None:
        """Take note of where a resumed session stands, which the source has not reached yet."""
        self._proof.stands_at(opened)
        self._window.begin(opened.next_event)
        self._window.committed_events = opened.committed_events
        self._outcomes.begin(opened.next_event, is_resumed=True)
        self._proof.compare(self.next_event, self.crcs)

    def _commit(self, committed: int) -> None:
        self._window.committed_events = committed
        self._kept.forget(committed)
        self._outcomes.forget(committed)

    def _take(self, response: hypervisor_pb2.StreamEventsResponse) -> None:
        which = response.WhichOneof("message")
        if which == "outcomes":
            received = self._outcomes.take(response.outcomes, self.next_event)
            if received is not None:
                self._attempts.confirm(received)
        elif which == "acknowledgement":
            told = response.acknowledgement
            self._window.acknowledge(told.applied_events, self.next_event)
            self._outcomes.check_acknowledged(told.applied_events)
            self._attempts.has_applied(told.applied_events)
            self._commit(told.committed_events)
