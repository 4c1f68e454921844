"""A session as the next server has it: where it goes on, and why one cannot."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from exitlab.serving.refusals import DataLoss, OutOfRange, Refused, WrongState
from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.journal import Checkpoint, Ending
from hypervisor_svc.session import FAILED, SUSPENDED, Session
from tests.durable.journaled import AT_5, after_blocks, journaled, restored, sent_again
from tests.hypervisor.test_session import Sender, fails_alike, opened, state_of


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


def of_another_engine(session: Session) -> Refused:
    """Refuse a session as the server does whose engine is not that of the checkpoint."""
    refusal = WrongState("ENGINE_CHANGED", "the session began under a, and this server has b")
    session.fail(refusal)
    return refusal


LOST = DataLoss("STATE_DAMAGED", "what was stored of the session is damaged")


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


@pytest.mark.parametrize("ask", [opened, Session.running_report, lambda session: session.finish(5, (1, 2))])
def test_a_snapshot_that_the_engine_does_not_take(ask: Callable[[Session], object]) -> None:
    """What comes back whole and is no state all the same ends the session, before the epoch is used."""
    session, journal = restored(replace(AT_5, engine=b"no state"))
    refusal = DataLoss("STATE_DAMAGED", "what was stored of the session cannot be used: no number")
    fails_alike(session, [partial(ask, session), partial(opened, session), session.report], refusal)
    assert (session.epoch, journal.epochs) == (1, [])


def test_the_status_tells_of_a_snapshot_that_the_engine_does_not_take() -> None:
    """Who asks for the status alone is answered, the first time and the next, and reads what is wrong."""
    session, journal = restored(replace(AT_5, engine=b"no state"))
    note = "STATE_DAMAGED: what was stored of the session cannot be used: no number"
    expected = hypervisor_pb2.SessionStatus(
        session_id="id",
        state=FAILED,
        applied_events=5,
        committed_events=5,
        epoch=1,
        column_crcs=AT_5.column_crcs,
        label="test",
        note=note,
    )
    for _ in range(2):
        assert session.status() == expected
    assert not journal.epochs
