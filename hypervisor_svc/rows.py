"""The rows of a state directory's database: its tables, and what is kept of a session as their values.

Rows carry a CRC-32 of what they hold, since SQLite does not notice a damaged byte.
"""

import sqlite3
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final
from zlib import crc32

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.journal import Checkpoint, Ending, Start

_APPLICATION: Final = 0x4578_4C62
_VERSION: Final = 1
SCHEMA: Final = f"""
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    engine_fingerprint TEXT NOT NULL,
    request BLOB NOT NULL,
    resolved BLOB NOT NULL,
    crc INTEGER NOT NULL,
    created_at REAL NOT NULL,
    epoch INTEGER NOT NULL,
    epoch_crc INTEGER NOT NULL
);
CREATE TABLE checkpoints (
    id TEXT PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    applied_events INTEGER NOT NULL,
    confirmed_events INTEGER NOT NULL,
    column_crcs BLOB NOT NULL,
    engine BLOB NOT NULL,
    kept BLOB NOT NULL,
    crc INTEGER NOT NULL,
    age_seconds REAL NOT NULL
);
CREATE TABLE endings (
    id TEXT PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    applied_events INTEGER NOT NULL,
    column_crcs BLOB NOT NULL,
    state_digest BLOB NOT NULL,
    report BLOB NOT NULL,
    lane_runs BLOB NOT NULL,
    crc INTEGER NOT NULL,
    ended_at REAL NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_CRCS: Final = struct.Struct("<I")
_DIGEST: Final = struct.Struct("<Q")
_KEPT: Final = struct.Struct("<QI")  # before a response: the event after its last, and its length
# Columns in the order of what is written, the CRC of all these after them.
STARTS: Final = ("number", "id", "owner", "engine_fingerprint", "request", "resolved", "created_at")
CHECKPOINTS: Final = (
    "id",
    "applied_events",
    "confirmed_events",
    "column_crcs",
    "engine",
    "kept",
    "age_seconds",
)
ENDINGS: Final = ("id", "applied_events", "column_crcs", "state_digest", "report", "lane_runs", "ended_at")


def check_kind(database: sqlite3.Connection) -> None:
    """Refuse a database of somebody else, or of another version."""
    (kind,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if kind != _APPLICATION:
        raise sqlite3.DatabaseError("it is no database of sessions")
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, this program is for {_VERSION}")


def write_row(
    database: sqlite3.Connection, into: str, names: tuple[str, ...], values: tuple[Any, ...], **more: float
) -> None:
    """Write a row of ``values`` with their CRC, and of what is not in it."""
    row = {**dict(zip(names, values, strict=True)), "crc": crc_of(values), **more}
    database.execute(f"{into} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])


def as_text(data: bytes) -> str:
    """Return a text, or what is left of one: the CRC says then that it is damaged."""
    return data.decode(errors="replace")


def crc_of(values: Iterable[Any]) -> int:
    """Return the CRC-32 of a row's values and their types."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else f"{type(value).__name__} {value}".encode()
        crc = crc32(data, crc32(len(data).to_bytes(8, "little"), crc))
    return crc


def start_row(start: Start, created_at: float) -> tuple[Any, ...]:
    """Return the values of a new session."""
    return (
        *(start.number, start.session_id, start.owner, start.engine_fingerprint),
        *(start.request.SerializeToString(), start.resolved.SerializeToString(), created_at),
    )


def start_of(values: Sequence[Any]) -> Start:
    """Return the session of a row."""
    number, session_id, owner, fingerprint, request, resolved, _ = values
    return Start(
        *(session_id, number, owner),
        hypervisor_pb2.CreateSessionRequest.FromString(request),
        hypervisor_pb2.SessionConfig.FromString(resolved),
        fingerprint,
    )


def checkpoint_row(session_id: str, checkpoint: Checkpoint, age_seconds: float) -> tuple[Any, ...]:
    """Return the values of a checkpoint."""
    kept = b"".join(_KEPT.pack(end, len(data)) + data for end, data in checkpoint.kept)
    return (
        *(session_id, checkpoint.applied_events, checkpoint.confirmed_events),
        *(_crcs_bytes(checkpoint.column_crcs), checkpoint.engine, kept, age_seconds),
    )


def checkpoint_of(values: Sequence[Any]) -> Checkpoint:
    """Return the checkpoint of a row."""
    _, applied, confirmed, crcs, engine, data, _ = values
    kept, at = [], 0
    while at < len(data):
        end, size = _KEPT.unpack_from(data, at)
        at += _KEPT.size + size
        kept.append((end, data[at - size : at]))
    return Checkpoint(applied, confirmed, _crcs_of(crcs), engine, tuple(kept))


def ending_row(session_id: str, ending: Ending, ended_at: float) -> tuple[Any, ...]:
    """Return the values of a report and what belongs to it."""
    runs = hypervisor_pb2.GetReportResponse(lane_runs=ending.lane_runs).SerializeToString()
    return (
        *(session_id, ending.applied_events, _crcs_bytes(ending.column_crcs)),
        *(_DIGEST.pack(ending.state_digest), ending.report, runs, ended_at),
    )


def ending_of(values: Sequence[Any]) -> Ending:
    """Return the ending of a row."""
    _, applied, crcs, digest, report, runs, _ = values
    lane_runs = hypervisor_pb2.GetReportResponse.FromString(runs).lane_runs
    return Ending(applied, _crcs_of(crcs), _DIGEST.unpack(digest)[0], report, tuple(lane_runs))


def _crcs_bytes(crcs: Iterable[int]) -> bytes:
    return b"".join(map(_CRCS.pack, crcs))


def _crcs_of(data: bytes) -> tuple[int, ...]:
    return tuple(crc for (crc,) in _CRCS.iter_unpack(data))
