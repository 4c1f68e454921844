"""What the model is made of: messages, who holds what, and the ways in which it can be weakened.

An event is a letter, and a stream of events a word. The running digest of a column is the word so far: a
digest without collisions. The engine's state is the word of all events that it applied, so that an event
lost, doubled or out of place shows in it for ever. The outcome of an event is its letter, as the engine
has it: a capital where the engine went on under other rules.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple


class Weakening(Enum):
    """A rule of the protocol left out; the value says what happens instead."""

    KEPT_NOT_IN_CHECKPOINT = "a checkpoint holds no outcomes"
    COMMITTED_AT_APPLY = "what is applied is acknowledged as committed"
    EPOCH_NOT_DURABLE = "an epoch is durable with the next checkpoint only"
    OLDER_STREAM_NOT_FENCED = "an older stream goes on beside the newer one"
    OVERLAP_ACCEPTED = "a block is taken wherever it starts and whatever its digests"
    RULES_CHANGE_UNNOTICED = "after a restart the engine goes on under other rules"
    ANSWERED_BEFORE_STORED = "FinishSession is answered before the report is durable"
    FINISHED_WHILE_BEHIND = "FinishSession does not compare its count with what is applied"
    END_IS_FINISH = "the end of a stream finishes the session"
    NO_ACKNOWLEDGEMENT_AFTER_REPEATED = "nothing tells where the repeated outcomes end"
    OPEN_CONFIRMS = "Open confirms, and so may one of an earlier life that comes late"
    CONFIRMED_FOR_ANYBODY = "a confirmation above what is applied counts for whoever opens next, too"
    RECEIVED_ABOVE_APPLIED_REFUSED = "an Open is refused whose guest has more outcomes than are applied"
    CONFIRMATION_CUT = "a confirmation above what is applied counts up to there only"
    DROPS_AT_APPLIED = "the guest drops blocks once they are applied"
    RESUMED_KEEPS_FROM_NEXT_EVENT = "a restarted guest keeps no block below next_event"
    SENDS_UNCONFIRMED = "the guest sends without having confirmed what it has"
    EVERY_FENCE_IS_ANOTHERS = "the guest never takes FENCED for the late arrival of an Open of its own"
    MISSING_UNNOTICED = "the guest does not ask where the outcomes of acknowledged events are"
    FINISHES_AT_APPLIED = "the guest finishes once all is applied, whatever outcomes it has"
    ASKS_AGAIN = "a guest that hears that the server is behind calls FinishSession again"
    DELIVERS_REPEATED = "the guest delivers repeated outcomes again"
    FORGETS_BELOW_COMMITTED = "the guest forgets which parts it has of blocks below committed"
    COMPARES_WHOLE_PARTS = "the guest can compare a repeated part only with one of the same events"
    OPENED_UNCHECKED = "the guest does not compare the digests in Opened with its own"


class Reason(StrEnum):
    """Why something was refused, or why a guest stopped."""

    FENCED = "FENCED"
    GAP = "GAP"
    ALREADY_APPLIED = "ALREADY_APPLIED"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    RECEIVED_TOO_MANY = "RECEIVED_TOO_MANY"
    SESSION_FINISHED = "SESSION_FINISHED"
    EVENT_COUNT_MISMATCH = "EVENT_COUNT_MISMATCH"
    OTHER_STREAM = "the stream is not the one that the server has"
    CANNOT_SEND_AGAIN = "the server asks for events that were dropped"
    OUTCOMES_MISSING = "outcomes were skipped"
    OUTCOMES_DIFFER = "outcomes came again and differ"


@dataclass(frozen=True, slots=True)
class Open:
    """Opens a stream."""

    received_events: int


@dataclass(frozen=True, slots=True)
class EventBlock:
    """Carries events and the running digest at their end."""

    first_event: int
    events: str
    digest: str


@dataclass(frozen=True, slots=True)
class ConfirmOutcomes:
    """Confirms outcomes that have arrived."""

    received_events: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Tells an opened stream where to start."""

    next_event: int
    committed_events: int
    digest: str


@dataclass(frozen=True, slots=True)
class OutcomePart:
    """Carries one lane's outcomes of a block."""

    first_event: int
    outcomes: str
    lane: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Tells what is applied and committed; after Opened, also that all kept outcomes are sent."""

    applied_events: int
    committed_events: int


@dataclass(frozen=True, slots=True)
class Draining:
    """Announces that the server is about to stop."""

    applied_events: int
    committed_events: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Refuses a message; the stream ends after it."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class FinishSession:
    """Asks for the report of ``digest``'s events."""

    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """Answers FinishSession with the stored bytes."""

    stored: str


ToServer = Open | EventBlock | ConfirmOutcomes
ToGuest = Opened | OutcomePart | Acknowledgement | Draining | Refused


class Connection(NamedTuple):
    """One connection: what is on its way, and who still holds its end."""

    guest: int
    to_server: tuple[ToServer, ...] = ()
    to_guest: tuple[ToGuest, ...] = ()
    epoch: int = 0  # 0 until the server has taken its Open
    guest_holds: bool = True
    server_holds: bool = True


class Kept(NamedTuple):
    """The outcomes of a block, kept until they are confirmed."""

    first_event: int
    outcomes: str

    @property
    def end(self) -> int:
        """The event after the last."""
        return self.first_event + len(self.outcomes)


class Checkpoint(NamedTuple):
    """What it takes to go on."""

    applied: str = ""
    kept: tuple[Kept, ...] = ()
    confirmed_events: int = 0


class Storage(NamedTuple):
    """What survives a crash."""

    checkpoint: Checkpoint = Checkpoint()
    epoch: int = 0
    report: str | None = None


class ServerPhase(StrEnum):
    """What the server's process does."""

    UP = "up"
    DRAINING = "draining"
    DOWN = "down"


class Server(NamedTuple):
    """The server's memory."""

    phase: ServerPhase = ServerPhase.UP
    now: Checkpoint = Checkpoint()
    freezing: Checkpoint | None = None  # a checkpoint on its way to the disk
    epoch: int = 0
    report: str | None = None
    has_other_rules: bool = False


class Source(NamedTuple):
    """Where a guest's events come from: all that it will ever send, and where it cuts."""

    events: str
    block_ends: tuple[int, ...]

    def end_of_block(self, event: int) -> int:
        """Return where the block that holds ``event`` ends."""
        return next(end for end in self.block_ends if end > event)


class GuestPhase(StrEnum):
    """What a guest does."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    KILLED = "killed"


class Guest(NamedTuple):
    """A guest's memory."""

    source: Source
    is_resumed: bool = False
    phase: GuestPhase = GuestPhase.RUNNING
    stopped_by: Reason | None = None
    produced: int = 0  # events generated so far: the generator never goes back
    kept_from: int = 0  # blocks below are dropped
    sent: int = 0  # on this connection: the next event to send
    had: tuple[int, ...] = ()  # outcomes had, lane by lane; () where a restarted guest cannot know
    first_had: int = 0  # the event whose outcome was the first of this life
    delivered: tuple[str, ...] = ()  # what the guest's caller was given, lane by lane
    confirmed: int = 0
    is_open: bool = False
    unanswered: int = 0  # Opens sent and given up: each may still arrive, and fence a newer stream
    all_are_applied: bool = False
    finish: FinishSession | Report | Refused | None = None  # the call in flight, or its answer

    @property
    def received(self) -> int:
        """Outcomes that the guest has of every lane, as an offset."""
        return min(self.had, default=0)


class Faults(NamedTuple):
    """How many more of each fault may happen."""

    cuts: int = 0
    crashes: int = 0
    kills: int = 0
    drains: int = 0
    second_guests: int = 0


class World(NamedTuple):
    """A whole state; the last three are known to nobody in it, and serve the promises."""

    guests: tuple[Guest, ...]
    faults: Faults
    connections: tuple[Connection, ...] = ()
    server: Server = Server()
    storage: Storage = Storage()
    told_epoch: int = 0  # the highest that a guest may have heard of
    answered: str | None = None  # the report that a guest may have
    seen: int = 0  # outcomes that guests had which are no more


@dataclass(frozen=True)
class Setup:
    """What is explored: who takes part, what may fail, and what is left out of the protocol."""

    name: str
    source: Source
    faults: Faults
    window: int  # max_uncommitted_events
    is_closed_loop: bool = False
    lanes: int = 1
    later_source: Source | None = None  # of a restarted or second guest, if not the first's
    weakenings: frozenset[Weakening] = frozenset()

    def has(self, weakening: Weakening) -> bool:
        """Return whether the rule is left out."""
        return weakening in self.weakenings


class Step(NamedTuple):
    """Something that can happen, in words; a fault need not happen, everything else does at last."""

    text: str
    world: World
    is_fault: bool = False
