"""What a session hands its journal, and the outcomes that it keeps until they are confirmed."""

from dataclasses import replace

import pytest

from exitlab.serving.refusals import LimitReached, Unavailable, WrongState
from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.kept import KeptOutcomes
from hypervisor_svc.session import FINISHED, STREAMING, SUSPENDED, Session
from tests.durable.journaled import LIMITS, FakeJournal, after_blocks, journaled, sent_again
from tests.hypervisor.test_session import FakeEngine, Sender, opened, some_config, state_of


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
