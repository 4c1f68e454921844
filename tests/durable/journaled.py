"""A session whose journal is in memory, and what it hands over."""

from exitlab.serving.refusals import Unavailable
from exitlab.v1 import hypervisor_pb2, outcome_pb2
from hypervisor_svc.journal import Checkpoint, Ending, Stored
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.session import Session
from tests.durable.stored import start
from tests.hypervisor.test_session import FakeEngine, Sender, opened, some_config

FULL = outcome_pb2.OUTCOME_LEVEL_FULL
LIMITS = ServerLimits(max_block_events=8)
AT_5 = Checkpoint(5, 0, (1, 2), b"5", ((5, b""),))


class FakeJournal:
    """Keeps in memory what a session saves, and fails while it is told to."""

    def __init__(self) -> None:
        """Have nothing yet."""
        self.epochs: list[int] = []
        self.endings: list[Ending] = []
        self.checkpoints: list[Checkpoint] = []
        self.ages: list[float] = []
        self.fails = False

    def _check(self) -> None:
        if self.fails:
            raise Unavailable("NOT_STORED", "the disk is full", retry_after_ms=1)

    def save_epoch(self, session_id: str, epoch: int) -> None:
        """Keep an epoch."""
        self._check()
        assert session_id == "id"
        self.epochs.append(epoch)

    def save_ending(self, session_id: str, ending: Ending) -> None:
        """Keep an ending."""
        self._check()
        assert session_id == "id"
        self.endings.append(ending)

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep a checkpoint."""
        self._check()
        assert session_id == "id"
        self.checkpoints.append(checkpoint)
        self.ages.append(age_seconds)


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
