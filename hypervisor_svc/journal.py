"""What of a session outlives the server's process, as plain data, and what keeps it.

Without a state directory there is no journal: a session is then as safe as the process.
"""

from dataclasses import dataclass
from typing import Protocol

from exitlab.v1 import hypervisor_pb2


@dataclass(frozen=True, slots=True)
class Start:
    """What a session begins with."""

    session_id: str
    number: int  # counts the sessions of a state directory, or of a server without one, from 1
    owner: str  # who may use it; "" for anybody who knows the id
    request: hypervisor_pb2.CreateSessionRequest
    resolved: hypervisor_pb2.SessionConfig  # the request's, with every policy's table in place of its name
    engine_fingerprint: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a session stands, so that it can go on from there."""

    applied_events: int
    confirmed_events: int
    column_crcs: tuple[int, ...]
    engine: bytes  # a snapshot; empty before any event
    kept: tuple[tuple[int, bytes], ...]  # outcomes that the guest may not have: last event plus one, response


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished session answers from."""

    applied_events: int
    column_crcs: tuple[int, ...]
    state_digest: int
    report: bytes
    lane_runs: tuple[hypervisor_pb2.LaneRun, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A session as it was found when the server started."""

    start: Start
    epoch: int
    age_seconds: float  # without the time in which no server ran
    last: Checkpoint | Ending | None  # None if it is damaged


class Journal(Protocol):
    """What a session needs of durable storage. What a call saves survives a crash once it has returned.

    Every method raises Unavailable where the storage does not work.
    """

    def save_epoch(self, session_id: str, epoch: int) -> None:
        """Keep the epoch of the stream that is about to have the session."""

    def save_ending(self, session_id: str, ending: Ending) -> None:
        """Keep a report, and no longer what led to it."""
