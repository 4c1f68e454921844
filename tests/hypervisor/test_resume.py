"""A session that is kept: what is sent again, what a checkpoint has, and how a later server goes on."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from exitlab.blocks import ColumnCrcs, DecodedBlock
from exitlab.events import Column
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from hypervisor_svc.config import resolved
from hypervisor_svc.errors import DataLoss, LimitReached, OutOfRange, Refused, Unavailable, WrongState
from hypervisor_svc.journal import Checkpoint, Ending, Start, Stored
from hypervisor_svc.kept import KeptOutcomes
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.session import FAILED, FINISHED, STREAMING, SUSPENDED, Session
from hypervisor_svc.store import Store
from tests.hypervisor.stored import FakeJournal, loaded, start
from tests.hypervisor.test_session import (
    SVM,
    VMX,
    FakeEngine,
    Sender,
    fails_alike,
    opened,
    some_config,
    state_of,
)
from tests.model.streams import Mix, random_stream

FULL = outcome_pb2.OUTCOME_LEVEL_FULL
LIMITS = ServerLimits(max_block_events=8)


def journaled(limits: ServerLimits = LIMITS) -> tuple[Session, FakeJournal]:
    """Return a session that tells all outcomes, and its journal."""
    journal = FakeJournal()
    return Session("id", some_config(outcome_level=FULL), FakeEngine, limits, journal), journal


def as_stored(last: Checkpoint | Ending | None, epoch: int = 1) -> Stored:
    """Return a session as a store has it."""
    config = some_config(outcome_level=FULL)
    request = hypervisor_pb2.CreateSessionRequest(request_id="r", config=config)
    return Stored(start(session_id="id", request=request), epoch, 0.0, last)


def restored(last: Checkpoint | Ending | None, epoch: int = 1) -> tuple[Session, FakeJournal]:
    """Return a session as the next server has it, and its journal."""
    journal = FakeJournal()
    return Session.restored(as_stored(last, epoch), FakeEngine, LIMITS, journal), journal


def sent_again(session: Session, received_events: int = 0) -> list[tuple[int, int]]:
    """Open the session and return first event and length of the outcomes that are sent again."""
    opening = hypervisor_pb2.Open(session_id="id", received_events=received_events)
    _, again = session.open(opening)
    parts = [hypervisor_pb2.StreamEventsResponse.FromString(data).outcomes for data in again]
    assert all(part.lane == 100 for part in parts)  # the engine was asked to tell decisions again
    return [(part.first_event, part.event_count) for part in parts]


def after_blocks(session: Session, *counts: int) -> Sender:
    """Send blocks of so many events on a new stream."""
    sender = Sender()
    epoch = opened(session)
    for count in counts:
        session.apply(epoch, sender.block(*range(count)))
    return sender


@pytest.mark.parametrize(
    ("confirmed", "received", "expected"),
    [
        ([], 0, [(0, 2), (2, 3), (5, 1)]),
        ([], 1, [(0, 2), (2, 3), (5, 1)]),
        ([], 2, [(2, 3), (5, 1)]),
        ([], 5, [(5, 1)]),
        ([], 6, []),
        ([2], 2, [(2, 3), (5, 1)]),
        ([2, 4], 4, [(2, 3), (5, 1)]),
        ([5, 2], 5, [(5, 1)]),
        ([2], 6, []),
        ([6], 6, []),
    ],
)
def test_outcomes_are_sent_again_until_they_are_confirmed(
    confirmed: list[int], received: int, expected: list[tuple[int, int]]
) -> None:
    """A new stream gets what its guest lacks, block by block; one that came late may lack more of it."""
    session, _ = journaled()
    after_blocks(session, 2, 3, 1)
    for events in confirmed:
        session.confirm(1, events)
    assert sent_again(session, received) == expected
    assert sent_again(session, received) == expected
    most = max(confirmed, default=0)
    assert session.confirmed_events == most
    assert sent_again(session, most) == [(0, 2), (2, 3), (5, 1)][(most >= 2) + (most >= 5) + (most >= 6) :]


def test_new_outcomes_follow_those_sent_again() -> None:
    """After a cut, what is applied next is kept behind what was kept before."""
    session, _ = journaled()
    sender = after_blocks(session, 2)
    session.cut(1)
    assert sent_again(session) == [(0, 2)]
    session.apply(2, sender.block(9))
    assert sent_again(session) == [(0, 2), (2, 1)]


def test_kept_outcomes_know_their_size() -> None:
    """What is forgotten is the oldest, up to the event that was received, and it takes no room any more."""
    kept = KeptOutcomes([(2, b"12"), (2, b"345")])
    kept.add(5, [b"6", b"789"])
    kept.add(5, [])
    assert (list(kept), kept.size_bytes) == ([(2, b"12"), (2, b"345"), (5, b"6"), (5, b"789")], 9)
    for received, rest, size_bytes in ((1, 4, 9), (2, 2, 4), (4, 2, 4), (5, 0, 0), (9, 0, 0)):
        kept.forget(received)
        assert (len(list(kept)), kept.size_bytes) == (rest, size_bytes)


def test_a_checkpoint_has_all_that_it_takes() -> None:
    """Events, digests, the engine's state, what is confirmed, and the outcomes that are not."""
    session, _ = journaled()
    sender = after_blocks(session, 2, 3)
    session.confirm(1, 2)
    made = session.checkpoint()
    assert made is not None
    (end, response) = made.kept[0]
    assert made == Checkpoint(5, 2, sender.crcs.values, b"5", ((end, response),))
    part = hypervisor_pb2.StreamEventsResponse.FromString(response).outcomes
    assert (end, part.first_event, part.event_count, part.lane) == (5, 2, 3, 0)


def test_no_checkpoint_is_made_in_vain() -> None:
    """There is none while nothing is applied that is not committed, and none of a session at its end."""
    session, _ = journaled()
    assert session.checkpoint() is None
    sender = after_blocks(session, 2)
    assert session.checkpoint() is not None
    session.committed(2)
    assert (session.committed_events, session.checkpoint()) == (2, None)
    session.apply(1, sender.block(1))
    assert (session.committed_events, session.checkpoint() is None) == (2, False)
    session.committed(1)  # of a checkpoint that was overtaken
    assert session.committed_events == 2
    session.finish(3, sender.crcs.values)
    assert (session.committed_events, session.checkpoint()) == (3, None)


def test_nothing_is_committed_by_itself() -> None:
    """With a journal, events are committed once whoever stores checkpoints says so, and status tells it."""
    session, _ = journaled()
    after_blocks(session, 2, 3)
    session.committed(2)
    session.cut(1)
    status = session.status()
    assert (status.applied_events, status.committed_events) == (5, 2)
    opened_again, _ = session.open(hypervisor_pb2.Open(session_id="id"))
    assert (opened_again.next_event, opened_again.committed_events) == (5, 2)


@pytest.mark.parametrize(
    ("confirmed", "received", "again"),
    [
        (0, 0, [(0, 2), (2, 3)]),
        (0, 2, [(2, 3)]),
        (2, 2, [(2, 3)]),
        (2, 5, []),
        (0, 6, []),
        (2, 99, []),
    ],
)
def test_a_restored_session_goes_on_where_it_was_stored(
    confirmed: int, received: int, again: list[tuple[int, int]]
) -> None:
    """After a crash the guest may have more than is applied; its outcomes are not asked for again."""
    session, _ = journaled()
    sender = after_blocks(session, 2, 3)
    session.confirm(1, confirmed)
    before = session.status()
    session, _ = restored(session.checkpoint())
    status = session.status()
    assert status.committed_events == 5
    before.committed_events, before.state = 5, SUSPENDED
    assert status == before
    assert session.confirmed_events == confirmed
    if confirmed:
        with pytest.raises(WrongState) as refused:
            opened(session, received_events=confirmed - 1)
        assert refused.value.reason == "OUTCOMES_NOT_KEPT"
    assert sent_again(session, received) == again
    assert session.confirmed_events == confirmed
    session.apply(2, sender.block(7))
    assert session.finish(6, sender.crcs.values)


def test_only_a_restored_session_was_ever_further() -> None:
    """While the server that applied the events lives, a guest cannot have outcomes of later ones."""
    session, _ = journaled()
    after_blocks(session, 2, 3)
    before = state_of(session)
    with pytest.raises(OutOfRange) as refused:
        opened(session, received_events=6)
    assert refused.value.reason == "RECEIVED_TOO_MANY"
    assert state_of(session) == before
    session, _ = restored(session.checkpoint())
    epoch = opened(session, received_events=6)
    with pytest.raises(OutOfRange):  # a confirmation is of what this server has sent
        session.confirm(epoch, 6)


def test_a_session_without_a_checkpoint_starts_anew() -> None:
    """One that was created and no more comes back at event 0, suspended, with the epoch that it had."""
    session, journal = restored(Checkpoint(0, 0, (0, 0), b"", ()), epoch=4)
    expected = hypervisor_pb2.SessionStatus(
        session_id="id", state=SUSPENDED, epoch=4, column_crcs=[0, 0], state_digest=1, label="test"
    )
    assert session.status() == expected
    assert opened(session, received_events=3) == 5
    assert journal.epochs == [5]


def test_a_restored_report_is_the_stored_one() -> None:
    """A finished session answers from what was stored, byte by byte, and takes no more."""
    session, journal = journaled()
    sender = after_blocks(session, 2)
    stored = session.finish(2, sender.crcs.values)
    (ending,) = journal.endings
    assert ending == Ending(2, sender.crcs.values, 3, stored, (hypervisor_pb2.LaneRun(),))
    expected = session.status()
    session, journal = restored(ending)
    assert session.status() == expected
    assert session.finish(2, sender.crcs.values) == session.report() == stored
    assert session.lane_runs == [hypervisor_pb2.LaneRun()]
    with pytest.raises(WrongState) as refused:
        opened(session)
    assert refused.value.reason == "SESSION_FINISHED"
    assert not journal.epochs
    assert not journal.endings


@pytest.mark.parametrize("was_streaming", [False, True])
def test_an_epoch_counts_once_it_is_kept(was_streaming: bool) -> None:
    """Where the epoch cannot be kept, nobody gets the session, and an older stream still has it."""
    session, journal = journaled()
    sender = Sender()
    if was_streaming:
        assert opened(session) == 1
        session.apply(1, sender.block(1, 2))
    before = state_of(session)
    journal.fails = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            opened(session, received_events=session.applied_events)
        assert state_of(session) == before
        assert session.confirmed_events == 0
    journal.fails = False
    if was_streaming:
        session.apply(1, sender.block(3))
    assert session.state == (STREAMING if was_streaming else SUSPENDED)
    assert opened(session) == 1 + was_streaming
    assert journal.epochs == list(range(1, 2 + was_streaming))


def test_an_epoch_is_kept_before_it_is_used() -> None:
    """When the journal hears of an epoch, the session still has the older one."""

    class Looking(FakeJournal):
        def save_epoch(self, session_id: str, epoch: int) -> None:
            super().save_epoch(session_id, epoch)
            seen.append((session.epoch, session.state, epoch))

    seen: list[tuple[int, int, int]] = []
    session = Session("id", some_config(), FakeEngine, LIMITS, Looking())
    opened(session)
    opened(session)
    assert seen == [(0, SUSPENDED, 1), (1, STREAMING, 2)]


def test_a_report_that_cannot_be_kept_is_no_report() -> None:
    """Where the ending cannot be kept, the session goes on as if nobody had asked, and ends later."""
    session, journal = journaled()
    sender = after_blocks(session, 2)
    before = state_of(session)
    journal.fails = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            session.finish(2, sender.crcs.values)
        assert state_of(session) == before
        with pytest.raises(WrongState) as refused:
            session.report()
        assert refused.value.reason == "SESSION_NOT_FINISHED"
    session.apply(1, sender.block(3))
    journal.fails = False
    assert sent_again(session) == [(0, 2), (2, 1)]
    stored = session.finish(3, sender.crcs.values)
    assert session.state == FINISHED
    assert [ending.report for ending in journal.endings] == [stored]
    assert session.finish(3, sender.crcs.values) == stored
    assert len(journal.endings) == 1


def test_a_state_that_is_too_large_takes_no_block_until_there_is_room() -> None:
    """The refusal leaves the state as it was; outcomes that the guest confirms make room."""
    session, _ = journaled(replace(LIMITS, max_state_bytes=200))
    sender = after_blocks(session, 1, 1)
    kept_bytes = sum(len(data) for _, data in session._kept)
    assert kept_bytes
    before = state_of(session)
    block = sender.block(3)
    for _ in range(2):
        with pytest.raises(LimitReached) as refused:
            session.apply(1, block)
        assert refused.value.reason == "STATE_TOO_LARGE"
        # The fake engine has 200 of them.
        assert refused.value.place == {"state_bytes": 200 + kept_bytes, "max_state_bytes": 200}
        assert state_of(session) == before
    session.confirm(1, 2)
    session.apply(1, block)
    assert session.finish(3, sender.crcs.values)


@pytest.mark.parametrize(("past", "is_taken"), [(0, True), (1, False)])
def test_the_edge_of_a_state(past: int, is_taken: bool) -> None:
    """A state of just the largest size takes another block, one byte more does not."""
    session, _ = journaled()
    sender = after_blocks(session, 1, 1)
    size_bytes = 200 + sum(len(data) for _, data in session._kept)
    session._limits = replace(LIMITS, max_state_bytes=size_bytes - past)
    if is_taken:
        session.apply(1, sender.block(3))
    else:
        with pytest.raises(LimitReached):
            session.apply(1, sender.block(3))
    assert session.applied_events == 2 + is_taken


def of_another_engine(session: Session) -> Refused:
    """Refuse a session as the server does whose engine is not that of the checkpoint."""
    refusal = WrongState("ENGINE_CHANGED", "the session began under a, and this server has b")
    session.fail(refusal)
    return refusal


LOST = DataLoss("STATE_DAMAGED", "what was stored of the session is damaged")
AT_5 = Checkpoint(5, 0, (1, 2), b"5", ((5, b""),))


@pytest.mark.parametrize(
    ("last", "refuse", "events"),
    [
        (None, lambda _: LOST, 0),
        (AT_5, of_another_engine, 5),
        (replace(AT_5, applied_events=0, engine=b""), of_another_engine, 0),
    ],
)
def test_a_session_that_cannot_go_on_says_why(
    last: Checkpoint | None, refuse: Callable[[Session], Refused], events: int
) -> None:
    """Whatever is asked of it is refused with one reason, which its status tells beside where it stood."""
    session, journal = restored(last, epoch=3)
    refusal = refuse(session)
    attempts: list[Callable[[], object]] = [
        partial(opened, session),
        partial(opened, session, received_events=9),
        partial(session.confirm, 3, 0),
        lambda: session.apply(3, Sender().block(1)),
        partial(session.finish, events, (1, 2)),
        session.report,
        session.running_report,
    ]
    fails_alike(session, attempts, refusal)
    status = session.status()
    assert (status.applied_events, status.committed_events, status.epoch) == (events, events, 3)
    assert session.checkpoint() is None
    session.cut(3)
    assert session.state == FAILED
    assert not journal.epochs
    assert not journal.endings


@pytest.mark.parametrize("ask", [opened, Session.running_report])
def test_a_snapshot_that_the_engine_does_not_take(ask: Callable[[Session], object]) -> None:
    """What comes back whole and is no state all the same ends the session, before the epoch is used."""
    session, journal = restored(replace(AT_5, engine=b"no state"))
    refusal = DataLoss("STATE_DAMAGED", "what was stored of the session cannot be used: no number")
    fails_alike(session, [partial(ask, session), partial(opened, session), session.report], refusal)
    assert (session.epoch, journal.epochs) == (1, [])


EVENTS = 60
MIX = Mix()
# One of the lanes is not correct.
LANES = [("kvm-6.14", VMX), ("ignore", VMX), ("kvm-6.14", SVM)]
Told = dict[tuple[int, int], tuple[list[int], list[int], list[bytes]]]


def real_start(parts: Parts) -> Start:
    """Return a session of the installed engine, on two physical CPUs."""
    config = some_config(
        lanes=[policy_pb2.Lane(policy_name=name, vendor=vendor) for name, vendor in LANES],
        columns=list(Column),
        vcpus=MIX.vcpus,
        physical_cpus=MIX.physical_cpus,
        initial_physical_cpus=MIX.initial_physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        outcome_level=FULL,
    )
    request = hypervisor_pb2.CreateSessionRequest(request_id="r", config=config)
    runs = resolved(config, parts.policy_table)
    return Start("id", 1, "", request, runs, parts.engine_fingerprint)


class RealGuest:
    """A guest of the installed engine that keeps what it is told, by lane and first event."""

    def __init__(self, folder: Path) -> None:
        """Create the session in a state directory."""
        self.parts = Parts.installed()
        self.start = real_start(self.parts)
        self.events = random_stream(11, EVENTS, MIX)
        self.told: Told = {}
        self.repeats = 0
        self._decisions: dict[tuple[int, int], bytes] = {}
        self._folder = folder
        self.store = Store(folder)
        self.store.create(self.start)
        self.session = self._restored()

    def _restored(self) -> Session:
        (stored,) = loaded(self.store)
        make_engine = partial(self.parts.make_engine, stored.start.resolved)
        return Session.restored(stored, make_engine, ServerLimits(), self.store)

    def crash(self) -> None:
        """Have the session as the next server would."""
        self.store.close()
        self.store = Store(self._folder)
        self.session = self._restored()

    def open(self) -> int:
        """Open the session as one that has all it was told, in order, and return the next event."""
        received = max((first for _, first in self.told), default=0)  # not the last block's
        self._decisions.clear()
        opened, again = self.session.open(hypervisor_pb2.Open(received_events=received))
        crcs = ColumnCrcs(list(Column))
        crcs.update(self.events.rows(0, opened.next_event))
        assert crcs.values == tuple(opened.column_crcs)
        self._take(again)
        return opened.next_event

    def send(self, first: int, stop: int) -> None:
        """Send events as one block."""
        block = DecodedBlock(first, self.events.rows(first, stop), None)
        self._take(self.session.apply(self.session.epoch, block))

    def _take(self, responses: Iterable[bytes]) -> None:
        """Keep what is new, and compare what comes again."""
        for data in responses:
            part = hypervisor_pb2.StreamEventsResponse.FromString(data).outcomes
            for new in part.new_decisions:
                self._decisions[part.lane, new.number] = new.SerializeToString(deterministic=True)
            numbers = np.frombuffer(part.decisions, "<u2").tolist()
            decisions = [self._decisions[part.lane, number] for number in numbers]
            told = ([*part.stories], [*part.story_values], decisions)
            key = (part.lane, part.first_event)
            self.repeats += key in self.told
            assert self.told.setdefault(key, told) == told

    def commit(self) -> None:
        """Store a checkpoint, if there is anything new."""
        made = self.session.checkpoint()
        if made is not None:
            self.store.save_checkpoint("id", made, 0.0)
            self.session.committed(made.applied_events)

    def finish(self) -> bytes:
        """Finish and return the report."""
        crcs = ColumnCrcs(list(Column))
        crcs.update(self.events)
        return self.session.finish(EVENTS, crcs.values)


CUTS = [0, 7, 15, 16, 30, 38, 45, 53, EVENTS]


@pytest.mark.parametrize("commits", [(), (15,), (7, 30, 53), tuple(CUTS[1:-1])])
def test_a_server_that_crashes_after_every_block_changes_nothing(
    tmp_path: Path, commits: tuple[int, ...]
) -> None:
    """Report and outcomes are those of a session that nothing happened to, wherever it was committed."""
    whole = RealGuest(tmp_path / "whole")
    whole.open()
    for first, stop in pairwise(CUTS):
        whole.send(first, stop)
    expected = whole.finish()
    whole.store.close()
    guest = RealGuest(tmp_path / "crashing")
    for reached in CUTS[1:]:
        next_event = guest.open()
        assert next_event == max((cut for cut in commits if cut < reached), default=0)
        for first, stop in pairwise(cut for cut in CUTS if next_event <= cut <= reached):
            guest.send(first, stop)
            if stop in commits:
                guest.commit()
        guest.crash()
    assert guest.open() == max(commits, default=0)
    for first, stop in pairwise(cut for cut in CUTS if cut >= max(commits, default=0)):
        guest.send(first, stop)
    assert guest.finish() == expected
    assert guest.told == whole.told
    assert guest.repeats
    guest.crash()
    assert guest.finish() == expected
    guest.store.close()
