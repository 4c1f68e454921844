"""One session's conversation, without I/O.

A session is one stream of guest events under the lanes of its config. It has four states, and
what may be done in each is the table below; a pair that is not there *is* the error::

    SUSPENDED --open--> STREAMING --finish--> FINISHED
        ^                |  ^  |
        |                |  |  +- open (a newer stream fences the older), apply, confirm
        +------cut-------+  +--+
    SUSPENDED --finish--> FINISHED, which answers finish again from what it stored
    SUSPENDED, STREAMING --a policy's table or the engine cannot go on--> FAILED, which takes nothing

Four rules carry the rest. Offsets are event indexes, so a stream may be cut into blocks in any way. A
block counts whole or not at all: its place, its digests and its events are checked before anything
changes. Where a lane fails nevertheless, lanes may stand at different events: the session is FAILED,
its status says why, and whatever else comes is refused with the very reason of the first. Outcomes are
kept until the guest confirms them: a cut may have lost them on their way. And the end of a stream proves
nothing: only ``finish``, with the number of events and their digests, makes a report, whose bytes are
then kept as they are.

With a journal, epochs and reports are durable before anybody hears of them. A ``checkpoint`` is what it
takes to go on; whoever has stored one says so with ``committed``.

Methods are for one thread at a time; ``registry.Held`` sees to that.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Self

from exitlab.blocks import DecodedBlock, plain_field
from exitlab.events import Column
from exitlab.serving.refusals import (
    Aborted,
    DataLoss,
    InvalidRequest,
    LimitReached,
    OurFault,
    OutOfRange,
    Refused,
    WrongState,
)
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from hypervisor_svc.engine import BadEvents, BadSnapshot, BadTable, EngineError, PolicyFailed
from hypervisor_svc.engine_like import EngineFactory, EngineLike
from hypervisor_svc.journal import Checkpoint, Ending, Journal, Stored
from hypervisor_svc.kept import KeptOutcomes, response_with, told_again
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.position import Position

SUSPENDED: Final = hypervisor_pb2.SESSION_STATE_SUSPENDED
STREAMING: Final = hypervisor_pb2.SESSION_STATE_STREAMING
FINISHED: Final = hypervisor_pb2.SESSION_STATE_FINISHED
FAILED: Final = hypervisor_pb2.SESSION_STATE_FAILED
ENDED: Final = (FINISHED, FAILED)

NEXT_STATE: Final = {
    (SUSPENDED, "open"): STREAMING,
    (STREAMING, "open"): STREAMING,
    (STREAMING, "apply"): STREAMING,
    (STREAMING, "confirm"): STREAMING,
    (STREAMING, "cut"): SUSPENDED,
    (SUSPENDED, "finish"): FINISHED,
    (STREAMING, "finish"): FINISHED,
    (FINISHED, "finish"): FINISHED,
}


class Session:
    """One session: its config, its engine, and how far they have come."""

    def __init__(
        self,
        session_id: str,
        config: hypervisor_pb2.SessionConfig,
        make_engine: EngineFactory,
        limits: ServerLimits,
        journal: Journal | None = None,
    ) -> None:
        """Start a suspended session of a checked ``config``, whose engine ``make_engine`` returns."""
        self.session_id = session_id
        self.config = config
        self.state: hypervisor_pb2.SessionState.ValueType = SUSPENDED
        self.epoch = 0
        self.confirmed_events = 0
        self.lane_runs: list[hypervisor_pb2.LaneRun] = []  # once it is finished
        self._make_engine = make_engine
        self._limits = limits
        self._journal = journal
        self._position = Position.start(tuple(map(Column, config.columns)))
        self._engine: EngineLike | None = None  # made when it is first needed
        self._snapshot = b""  # that the engine begins with
        self._committed_events = 0
        self._is_restored = False
        self._kept = KeptOutcomes()
        self._level = config.outcome_level or outcome_pb2.OUTCOME_LEVEL_SUMMARY
        self._failure: Callable[[], Refused] | None = None  # what makes the refusal of all that comes
        self._note = ""
        self._final_digest = 0
        self._stored_report = b""

    @classmethod
    def restored(
        cls, stored: Stored, make_engine: EngineFactory, limits: ServerLimits, journal: Journal
    ) -> Self:
        """Return a session as it was last kept, suspended or finished."""
        start, last = stored.start, stored.last
        session = cls(start.session_id, start.request.config, make_engine, limits, journal)
        session.epoch = stored.epoch
        if last is None:
            session.fail(DataLoss("STATE_DAMAGED", "what was stored of the session is damaged"))
            return session
        session._position = Position(session.columns, last.applied_events, last.column_crcs)
        session._committed_events = last.applied_events
        session._is_restored = True
        if isinstance(last, Checkpoint):
            session.confirmed_events = last.confirmed_events
            session._snapshot = last.engine
            session._kept = KeptOutcomes(last.kept)
        else:
            session._end_with(last)
        return session

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of every block."""
        return self._position.columns

    @property
    def applied_events(self) -> int:
        """Events applied."""
        return self._position.events

    @property
    def committed_events(self) -> int:
        """Events whose effect is as safe as it gets; without durable storage, those applied."""
        return self.applied_events if self._journal is None else self._committed_events

    @property
    def can_go_on(self) -> bool:
        """Whether more events may come."""
        return self.state not in ENDED

    def committed(self, events: int) -> None:
        """Take note that a checkpoint at ``events`` is stored."""
        self._committed_events = max(self._committed_events, events)

    def open(self, opening: hypervisor_pb2.Open) -> tuple[hypervisor_pb2.Opened, list[bytes]]:
        """Give the session to a new stream and fence the older one; also return what is sent again."""
        state = self._next_state("open")
        if opening.expected_epoch not in (0, self.epoch):
            message = f"the session's epoch is {self.epoch}, expected {opening.expected_epoch}"
            raise Aborted("EPOCH_MISMATCH", message, field="open.expected_epoch", epoch=self.epoch)
        # After a crash, more may have arrived than is applied; it will come again.
        if not self._is_restored:
            self._check_received(opening.received_events, "open.received_events")
        if (
            self._level > outcome_pb2.OUTCOME_LEVEL_SUMMARY
            and opening.received_events < self.confirmed_events
        ):
            message = (
                f"outcomes of events {opening.received_events} to {self.confirmed_events} were confirmed "
                "and are not kept; start a new session"
            )
            place = {"received_events": opening.received_events, "confirmed_events": self.confirmed_events}
            raise WrongState("OUTCOMES_NOT_KEPT", message, field="open.received_events", **place)
        engine = self._running_engine
        if self._journal is not None:
            self._journal.save_epoch(self.session_id, self.epoch + 1)
        self.state = state
        self.epoch += 1
        engine.start_stream()
        opened = hypervisor_pb2.Opened(
            next_event=self.applied_events,
            committed_events=self.committed_events,
            epoch=self.epoch,
            column_crcs=self._position.crcs,
        )
        # Not even what has arrived is forgotten here: this Open may be an old one that has come late.
        lacking = [data for end, data in self._kept if end > opening.received_events]
        return opened, [told_again(data, engine) for data in lacking]

    def apply(self, epoch: int, block: DecodedBlock) -> list[bytes]:
        """Apply a block that came on the stream of ``epoch``; refused whole, or applied whole.

        What is returned are the responses that carry its outcomes.
        """
        self._check_epoch(epoch)
        self._next_state("apply")
        position = self._position.after(block, self._limits.max_block_events)
        self._check_size()
        try:
            parts = self._running_engine.feed(block.events, self._level)
        except BadEvents as bad:
            message = str(bad).removeprefix(f"event {bad.event}: ")
            field = plain_field(bad.field) if block.is_plain else bad.field
            raise InvalidRequest("BAD_EVENT", message, field=field, event=bad.event) from bad
        except Exception as error:
            raise self._fail(error, f"in the block at event {self.applied_events}") from error
        self._position = position
        responses = [response_with(part) for part in parts]
        self._kept.add(self.applied_events, responses)
        return responses

    def confirm(self, epoch: int, received_events: int) -> None:
        """Take note that outcomes below ``received_events`` have arrived."""
        self._check_epoch(epoch)
        self._next_state("confirm")
        self._check_received(received_events, "confirm.received_events")
        self._confirm(received_events)

    def checkpoint(self) -> Checkpoint | None:
        """Return what it takes to go on from here; None if that is stored already, or nothing goes on."""
        if self.state in ENDED or self.committed_events == self.applied_events:
            return None
        return Checkpoint(
            applied_events=self.applied_events,
            confirmed_events=self.confirmed_events,
            column_crcs=self._position.crcs,
            engine=self._running_engine.snapshot(),
            kept=tuple(self._kept),
        )

    def cut(self, epoch: int) -> None:
        """Suspend the session because the stream of ``epoch`` ended; an older stream changes nothing."""
        if epoch == self.epoch and self.state == STREAMING:
            self.state = self._next_state("cut")

    def finish(self, event_count: int, column_crcs: Sequence[int]) -> bytes:
        """End the session and return its serialized report; again and again the same bytes."""
        self._next_state("finish")
        self._position.check_end(event_count, column_crcs)
        if self.state != FINISHED:
            # Everything that can fail comes before the state changes.
            engine = self._running_engine
            try:
                ending = Ending(
                    applied_events=self.applied_events,
                    column_crcs=self._position.crcs,
                    state_digest=engine.state_digest(),
                    report=self._report_so_far().SerializeToString(deterministic=True),
                    lane_runs=tuple(engine.lane_runs()),
                )
            except Exception as error:
                raise self._fail(error, "in the report") from error
            if self._journal is not None:
                self._journal.save_ending(self.session_id, ending)
            self._end_with(ending)
        return self._stored_report

    def _end_with(self, ending: Ending) -> None:
        self._final_digest, self._stored_report = ending.state_digest, ending.report
        self.lane_runs = [*ending.lane_runs]
        self._committed_events = ending.applied_events
        self.state = FINISHED
        self._let_go()

    def _let_go(self) -> None:
        """Drop what only a session needs that goes on."""
        self._engine, self._snapshot, self._kept = None, b"", KeptOutcomes()

    def report(self) -> bytes:
        """Return the stored report of a finished session."""
        self._check_failure()
        if self.state != FINISHED:
            raise WrongState("SESSION_NOT_FINISHED", "a session has a report once it is finished")
        return self._stored_report

    def running_report(self) -> report_pb2.Report:
        """Return the report so far."""
        if self.state == FINISHED:
            return report_pb2.Report.FromString(self._stored_report)
        self._check_failure()
        try:
            return self._report_so_far()
        except PolicyFailed as failed:
            # What a guest would read now cannot be told, but asking has changed nothing.
            raise _policy_failed(failed, "in the report") from failed

    def _report_so_far(self) -> report_pb2.Report:
        report = self._running_engine.report()
        report.columns[:] = self.config.columns
        report.column_crcs[:] = self._position.crcs
        return report

    def status(self, *, has_digest: bool = True) -> hypervisor_pb2.SessionStatus:
        """Return where the session stands; the state's digest takes longer than all else."""
        digest = self._final_digest
        if has_digest and self.state not in ENDED:
            with suppress(Refused):  # the session has failed then, and its status says why
                digest = self._running_engine.state_digest()
        return hypervisor_pb2.SessionStatus(
            session_id=self.session_id,
            state=self.state,
            applied_events=self.applied_events,
            committed_events=self.committed_events,
            epoch=self.epoch,
            column_crcs=self._position.crcs,
            state_digest=digest,
            label=self.config.label,
            note=self._note,
        )

    @property
    def _running_engine(self) -> EngineLike:
        assert self.state not in ENDED, "an ended session has no engine, and no move that needs one"
        if self._engine is None:
            try:
                self._engine = self._make_engine()
                if self._snapshot:
                    self._engine.restore(self._snapshot)
            except Exception as error:
                raise self._fail(error, "when it was to go on") from error
            self._snapshot = b""
        return self._engine

    def _next_state(self, action: str) -> hypervisor_pb2.SessionState.ValueType:
        """Return the state after ``action``, or refuse it in this one."""
        self._check_failure()
        state = NEXT_STATE.get((self.state, action))
        if state is None:
            name = hypervisor_pb2.SessionState.Name(self.state).removeprefix("SESSION_STATE_")
            raise WrongState(f"SESSION_{name}", f"a {name.lower()} session takes no {action}")
        return state

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise self._failure()

    def _fail(self, error: Exception, where: str) -> Refused:
        """End the session because of ``error``, and return the refusal of all that comes from now on."""
        refusal: Refused
        if isinstance(error, PolicyFailed):
            refusal = _policy_failed(error, where)
        elif isinstance(error, BadSnapshot | BadTable):
            refusal = DataLoss("STATE_DAMAGED", f"what was stored of the session cannot be used: {error}")
        else:
            why = str(error) if isinstance(error, EngineError) else "its log says more"
            refusal = OurFault("ENGINE_FAILED", f"the engine failed {where}: {why}")
        self.fail(refusal)
        return refusal

    def fail(self, refusal: Refused) -> None:
        """End the session with the refusal of all that comes from now on."""
        self._failure = partial(type(refusal), refusal.reason, refusal.message, field=refusal.field)
        self._note = f"{refusal.reason}: {refusal.message}"
        self.state = FAILED
        self._let_go()

    def _confirm(self, received_events: int) -> None:
        self.confirmed_events = max(self.confirmed_events, received_events)
        self._kept.forget(received_events)

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            message = f"a newer stream has the session: its epoch is {self.epoch}, this stream's {epoch}"
            raise Aborted("FENCED", message, epoch=self.epoch)

    def _check_received(self, received_events: int, field: str) -> None:
        if received_events > self.applied_events:
            message = f"outcomes of {received_events} events, but {self.applied_events} are applied"
            place = {"received_events": received_events, "next_event": self.applied_events}
            raise OutOfRange("RECEIVED_TOO_MANY", message, field=field, **place)

    def _check_size(self) -> None:
        """Refuse to grow past the limit; outcomes that the guest confirms make room."""
        kept = self._kept.size_bytes
        size = kept + self._running_engine.size_bytes()
        if size > self._limits.max_state_bytes:
            message = f"the session's state has {size:,} bytes, {kept:,} of them outcomes not confirmed"
            most = self._limits.max_state_bytes
            raise LimitReached("STATE_TOO_LARGE", message, state_bytes=size, max_state_bytes=most)


def _policy_failed(failed: PolicyFailed, where: str) -> WrongState:
    message = f"the policy cannot go on {where}: {failed}"
    return WrongState("POLICY_FAILED", message, field=f"config.lanes[{failed.lane}]")
