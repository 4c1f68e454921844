"""The sessions of a state directory, in SQLite: what survives the server's process, and the machine.

One process has a directory at a time. Every change is one transaction, in the write-ahead log and synced
to the disk before the call returns (``synchronous=FULL``). Rows carry a CRC-32 of what they hold, since
SQLite does not notice a damaged byte. Nothing that is decided rests on the clock of the wall: a session's
age is counted while a server runs, and times of day are for people.
"""

import contextlib
import fcntl
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple
from zlib import crc32

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.errors import RETRY_AFTER_MS, CannotServe, NotFound, Unavailable
from hypervisor_svc.journal import Checkpoint, Ending, Start, Stored

FILE_NAME: Final = "sessions.sqlite3"
LOCK_NAME: Final = "lock"
_APPLICATION: Final = 0x4578_4C62
_VERSION: Final = 1
_SCHEMA: Final = f"""
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
_STARTS: Final = ("number", "id", "owner", "engine_fingerprint", "request", "resolved", "created_at")
_CHECKPOINTS: Final = (
    "id",
    "applied_events",
    "confirmed_events",
    "column_crcs",
    "engine",
    "kept",
    "age_seconds",
)
_ENDINGS: Final = ("id", "applied_events", "column_crcs", "state_digest", "report", "lane_runs", "ended_at")


class Listed(NamedTuple):
    """A stored report, for people."""

    number: int
    session_id: str
    label: str
    events: int
    lanes: int
    ended_at: float | None  # of the clock of the wall


class Store:
    """Keeps sessions; may be used by several threads, one after the other."""

    def __init__(self, folder: Path) -> None:
        """Open a state directory, which is made if there is none.

        Raises:
            CannotServe: it cannot be used, or another server uses it.

        """
        self._path = folder / FILE_NAME
        self._turn = Lock()
        self.last_number = 0  # of the newest session that there ever was
        with contextlib.ExitStack() as opened:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Sessions' ids are in there, and an id gives access.
                lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                opened.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except BlockingIOError as error:
                raise CannotServe(f"--state-dir {folder}: another server uses it") from error
            except OSError as error:
                raise CannotServe(f"--state-dir {folder}: {error.strerror or error}") from error
            self._database = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=10
            )
            opened.callback(self._database.close)
            with self._as_cannot_serve():
                self._set_up()
            self._file = os.stat(self._path)
            self._opened = opened.pop_all()

    @contextlib.contextmanager
    def _as_cannot_serve(self) -> Iterator[None]:
        """Make one clear error of what a damaged file may raise."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:  # also where it garbles SQLite's own words
            said = " ".join(str(error).split())
            advice = "; move it away to start without its sessions"
            if isinstance(error, sqlite3.OperationalError):  # a matter of the disk, not of what is on it
                advice = ""
            message = f"{self._path} cannot be used ({said}){advice}"
            raise CannotServe(f"--state-dir {self._path.parent}: {message}") from error

    def _set_up(self) -> None:
        database = self._database
        database.text_factory = _as_text
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        # Not the quick check: where an index is damaged, what is there would not be found.
        (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if not version and database.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
            database.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
        _check_kind(database)
        newest = "SELECT max(seq) FROM sqlite_sequence UNION SELECT max(number) FROM sessions"
        self.last_number = max(int(number or 0) for (number,) in database.execute(newest))

    def close(self) -> None:
        """Give the directory back."""
        with self._turn:
            self._opened.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Make changes that are durable once the block is left, or none of them."""
        with self._turn:
            try:
                self._check_there()
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    message = f"the server's state directory takes nothing now: {error}"
                    raise Unavailable("NOT_STORED", message, retry_after_ms=RETRY_AFTER_MS) from error
                raise

    def _check_there(self) -> None:
        """Refuse to write where nobody would find it: the file may have been removed, or moved away."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self._path), self._file):
                return
        raise sqlite3.OperationalError("its file is there no longer")

    def create(self, start: Start) -> None:
        """Keep a new session."""
        values = (
            *(start.number, start.session_id, start.owner, start.engine_fingerprint),
            *(start.request.SerializeToString(), start.resolved.SerializeToString(), time.time()),
        )
        with self._transaction() as database:
            epoch = {"epoch": 0, "epoch_crc": _crc((start.session_id, 0))}
            _write(database, "INSERT INTO sessions", _STARTS, values, **epoch)
        self.last_number = max(self.last_number, start.number)

    def save_epoch(self, session_id: str, epoch: int) -> None:
        """Keep the epoch of the stream that is about to have the session."""
        with self._transaction() as database:
            crc = _crc((session_id, epoch))
            update = "UPDATE sessions SET epoch = ?, epoch_crc = ? WHERE id = ?"
            if not database.execute(update, (epoch, crc, session_id)).rowcount:
                raise _not_there()

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep where a session stands, in place of where it stood."""
        values = (
            *(session_id, checkpoint.applied_events, checkpoint.confirmed_events),
            *(_crcs_bytes(checkpoint.column_crcs), checkpoint.engine),
            *(b"".join(_KEPT.pack(end, len(data)) + data for end, data in checkpoint.kept), age_seconds),
        )
        with self._transaction() as database:
            if _is_going_on(database, session_id):
                _write(database, "REPLACE INTO checkpoints", _CHECKPOINTS, values)

    def save_ending(self, session_id: str, ending: Ending) -> None:
        """Keep a report, and no longer what led to it."""
        runs = hypervisor_pb2.GetReportResponse(lane_runs=ending.lane_runs).SerializeToString()
        values = (
            *(session_id, ending.applied_events, _crcs_bytes(ending.column_crcs)),
            *(_DIGEST.pack(ending.state_digest), ending.report, runs, time.time()),
        )
        with self._transaction() as database:
            if _is_going_on(database, session_id):
                _write(database, "INSERT INTO endings", _ENDINGS, values)
            database.execute("DELETE FROM checkpoints WHERE id = ?", (session_id,))

    def delete(self, session_ids: Iterable[str]) -> None:
        """Forget sessions."""
        with self._transaction() as database:
            database.executemany("DELETE FROM sessions WHERE id = ?", [(each,) for each in session_ids])

    def load(self, on_damage: Callable[[int], None]) -> list[Stored]:
        """Return all sessions, oldest first; of one whose start is damaged, only the number is told.

        Raises:
            CannotServe: the file is damaged.

        """
        found = []
        with self._turn, self._as_cannot_serve():
            select = f"SELECT {', '.join(_STARTS)}, crc, epoch, epoch_crc FROM sessions ORDER BY number"
            rows = self._database.execute(select).fetchall()
            for *values, crc, epoch, epoch_crc in rows:
                number, session_id, owner, fingerprint, request, resolved, _ = values
                if (_crc(values), _crc((session_id, epoch))) != (crc, epoch_crc):
                    on_damage(number)
                    continue
                start = Start(
                    *(session_id, number, owner),
                    hypervisor_pb2.CreateSessionRequest.FromString(request),
                    hypervisor_pb2.SessionConfig.FromString(resolved),
                    fingerprint,
                )
                found.append(self._stored(start, epoch))
        return found

    def _stored(self, start: Start, epoch: int) -> Stored:
        """Return a session with what was kept of it last."""
        found = Checkpoint(0, 0, (0,) * len(start.request.config.columns), b"", ())
        age_seconds = 0.0
        for table, names in (("endings", _ENDINGS), ("checkpoints", _CHECKPOINTS)):
            select = f"SELECT {', '.join(names)}, crc FROM {table} WHERE id = ?"
            row = self._database.execute(select, (start.session_id,)).fetchone()
            if row is not None:
                *values, crc = row
                if _crc(values) != crc:
                    return Stored(start, epoch, 0.0, None)
                if names is _ENDINGS:
                    return Stored(start, epoch, 0.0, _ending(values))
                found, age_seconds = _checkpoint(values), values[-1]
        return Stored(start, epoch, age_seconds, found)


def reports(folder: Path) -> list[Listed]:
    """Return the reports of a state directory, oldest first; a server may be using it.

    Raises:
        CannotServe: it is no state directory, or cannot be read.

    """
    path = folder / FILE_NAME
    names = [f"sessions.{name}" for name in _STARTS] + [f"endings.{name}" for name in _ENDINGS]
    select = f"SELECT {', '.join(names)}, sessions.crc, endings.crc FROM endings JOIN sessions USING (id)"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = _as_text
            _check_kind(database)
            rows = database.execute(f"{select} ORDER BY number").fetchall()
    except (sqlite3.Error, ValueError) as error:
        raise CannotServe(f"--state-dir {folder}: {path} cannot be read ({error})") from error
    return [_listed(row[: len(_STARTS)], row[len(_STARTS) : -2], row[-2:]) for row in rows]


def _listed(start: tuple[Any, ...], ending: tuple[Any, ...], crcs: tuple[int, int]) -> Listed:
    number, session_id = start[0], start[1]
    if (_crc(start), _crc(ending)) != crcs:
        return Listed(number, session_id, "(damaged)", 0, 0, None)
    config = hypervisor_pb2.CreateSessionRequest.FromString(start[4]).config
    return Listed(number, session_id, config.label, ending[1], len(config.lanes), ending[-1])


def _check_kind(database: sqlite3.Connection) -> None:
    """Refuse a database of somebody else, or of another version."""
    (kind,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if kind != _APPLICATION:
        raise sqlite3.DatabaseError("it is no database of sessions")
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, this program is for {_VERSION}")


def _write(
    database: sqlite3.Connection, into: str, names: tuple[str, ...], values: tuple[Any, ...], **more: float
) -> None:
    """Write a row of ``values`` with their CRC, and of what is not in it."""
    row = {**dict(zip(names, values, strict=True)), "crc": _crc(values), **more}
    database.execute(f"{into} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])


def _is_going_on(database: sqlite3.Connection, session_id: str) -> bool:
    """Tell whether a session has no report: it may have been finished meanwhile.

    Raises: NotFound if it was dropped.
    """
    if database.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone() is None:
        raise _not_there()
    return database.execute("SELECT 1 FROM endings WHERE id = ?", (session_id,)).fetchone() is None


def _not_there() -> NotFound:
    return NotFound("SESSION_NOT_FOUND", "the session was dropped meanwhile")


def _as_text(data: bytes) -> str:
    """Return a text, or what is left of one: the CRC says then that it is damaged."""
    return data.decode(errors="replace")


def _crc(values: Iterable[Any]) -> int:
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else f"{type(value).__name__} {value}".encode()
        crc = crc32(data, crc32(len(data).to_bytes(8, "little"), crc))
    return crc


def _crcs_bytes(crcs: Iterable[int]) -> bytes:
    return b"".join(map(_CRCS.pack, crcs))


def _crcs_of(data: bytes) -> tuple[int, ...]:
    return tuple(crc for (crc,) in _CRCS.iter_unpack(data))


def _checkpoint(values: list[Any]) -> Checkpoint:
    _, applied, confirmed, crcs, engine, data, _ = values
    kept, at = [], 0
    while at < len(data):
        end, size = _KEPT.unpack_from(data, at)
        at += _KEPT.size + size
        kept.append((end, data[at - size : at]))
    return Checkpoint(applied, confirmed, _crcs_of(crcs), engine, tuple(kept))


def _ending(values: list[Any]) -> Ending:
    _, applied, crcs, digest, report, runs, _ = values
    lane_runs = hypervisor_pb2.GetReportResponse.FromString(runs).lane_runs
    return Ending(applied, _crcs_of(crcs), _DIGEST.unpack(digest)[0], report, tuple(lane_runs))
