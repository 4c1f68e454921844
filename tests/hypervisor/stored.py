"""What the tests of a state directory store, and how they damage or fake it."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.errors import Unavailable
from hypervisor_svc.journal import Checkpoint, Ending, Start, Stored
from hypervisor_svc.store import FILE_NAME, Store
from tests.hypervisor.test_event_stream import Guest
from tests.hypervisor.test_session import VMX, some_config

KEPT = ((3, b"\x00three"), (5, b""), (7, b"five to seven" * 100))


def start(number: int = 1, **changes: Any) -> Start:
    """Return a session's start; what is stored of each number is different."""
    config = some_config(label=f"session {number}")
    runs = some_config(
        lanes=[policy_pb2.Lane(vendor=VMX, policy_table=policy_pb2.PolicyTable(name="known", vendor=VMX))]
    )
    fields: dict[str, Any] = {
        "session_id": f"id-{number}",
        "number": number,
        "owner": f"owner {number}",
        "request": hypervisor_pb2.CreateSessionRequest(request_id=f"request {number}", config=config),
        "resolved": runs,
        "engine_fingerprint": "fake",
    }
    return Start(**{**fields, **changes})


def checkpoint(applied_events: int = 7, kept: Iterable[tuple[int, bytes]] = KEPT) -> Checkpoint:
    """Return a checkpoint that the fake engine can go on from."""
    crcs = (0, 0xFFFF_FFFF)
    return Checkpoint(applied_events, 2, crcs, str(applied_events).encode(), tuple(kept))


def ending(applied_events: int = 7) -> Ending:
    """Return an ending."""
    runs = (hypervisor_pb2.LaneRun(machine_events=3), hypervisor_pb2.LaneRun())
    return Ending(applied_events, (1, 2), 0xFFFF_FFFF_FFFF_FFFF, b"\x00report", runs)


def loaded(store: Store) -> list[Stored]:
    """Return what a store has, none of it with a damaged start."""
    damaged: list[int] = []
    found = store.load(damaged.append)
    assert damaged == []
    return found


def execute(folder: Path, statement: str, *values: Any) -> list[Any]:
    """Change the database of a state directory, behind the store's back."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as database, database:
        return database.execute(statement, values).fetchall()


def damage(folder: Path, table: str, column: str) -> None:
    """Change one bit of a value, as a disk may."""
    ((rowid, value),) = execute(folder, f"SELECT rowid, {column} FROM {table}")
    if isinstance(value, bytes):
        changed: Any = value[:-1] + bytes([value[-1] ^ 1])
    elif isinstance(value, str):
        changed = value[:-1] + chr(ord(value[-1]) ^ 1)
    else:
        changed = value ^ 1
    execute(folder, f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changed, rowid)


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


class Reader(Guest):
    """A client's end of a stream that keeps all that it reads."""

    def __init__(self) -> None:
        """Have read nothing yet."""
        super().__init__()
        self.responses: list[hypervisor_pb2.StreamEventsResponse] = []
        self.code: grpc.StatusCode | None = None  # of the last call that was refused

    async def write(self, message: bytes) -> None:
        """Take an answer."""
        await super().write(message)
        self.responses.append(hypervisor_pb2.StreamEventsResponse.FromString(message))

    async def abort_with_status(self, status: grpc.Status) -> None:
        """Note the code, and end as gRPC would."""
        self.code = status.code
        await super().abort_with_status(status)

    @property
    def acknowledged(self) -> list[tuple[int, int]]:
        """What was applied and committed, as often as it was told."""
        found = [
            response.acknowledgement for response in self.responses if response.HasField("acknowledgement")
        ]
        return [(told.applied_events, told.committed_events) for told in found]

    @property
    def refused(self) -> list[str]:
        """The reasons of what was refused in band."""
        return [answer.refused.reason for answer in self.responses if answer.HasField("refused")]
