"""The sessions of a state directory, in SQLite: what survives the server's process, and the machine.

One process has a directory at a time. Every change is one transaction, in the write-ahead log and synced
to the disk before the call returns (``synchronous=FULL``). Nothing that is decided rests on the clock of
the wall: a session's age is counted while a server runs, and times of day are for people.
"""

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from hypervisor_svc.errors import RETRY_AFTER_MS, CannotServe, NotFound, Unavailable
from hypervisor_svc.journal import Checkpoint, Ending, Start, Stored
from hypervisor_svc.rows import (
    CHECKPOINTS,
    ENDINGS,
    SCHEMA,
    STARTS,
    as_text,
    check_kind,
    checkpoint_of,
    checkpoint_row,
    crc_of,
    ending_of,
    ending_row,
    start_of,
    start_row,
    write_row,
)

FILE_NAME: Final = "sessions.sqlite3"
LOCK_NAME: Final = "lock"
# What keeps a folder from being made or written, where the system's word for it says too little.
_TROUBLES: Final = {
    errno.EEXIST: "it is no folder",
    errno.ENOTDIR: "it cannot be made, as a part of its path is no folder",
    errno.EISDIR: f"its {LOCK_NAME} or {FILE_NAME} is a folder",
}


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
                why = error.strerror or error
                said = _TROUBLES.get(error.errno or 0, f"it cannot be made or written ({why})")
                raise CannotServe(f"--state-dir {folder}: {said}") from error
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
        database.text_factory = as_text
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        # Not the quick check: where an index is damaged, what is there would not be found.
        (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if not version and database.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
            database.executescript(f"BEGIN;{SCHEMA}COMMIT;")
        check_kind(database)
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
        values = start_row(start, time.time())
        with self._transaction() as database:
            epoch = {"epoch": 0, "epoch_crc": crc_of((start.session_id, 0))}
            write_row(database, "INSERT INTO sessions", STARTS, values, **epoch)
        self.last_number = max(self.last_number, start.number)

    def save_epoch(self, session_id: str, epoch: int) -> None:
        """Keep the epoch of the stream that is about to have the session."""
        with self._transaction() as database:
            crc = crc_of((session_id, epoch))
            update = "UPDATE sessions SET epoch = ?, epoch_crc = ? WHERE id = ?"
            if not database.execute(update, (epoch, crc, session_id)).rowcount:
                raise _not_there()

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep where a session stands, in place of where it stood."""
        values = checkpoint_row(session_id, checkpoint, age_seconds)
        with self._transaction() as database:
            if _is_going_on(database, session_id):
                write_row(database, "REPLACE INTO checkpoints", CHECKPOINTS, values)

    def save_ending(self, session_id: str, ending: Ending) -> None:
        """Keep a report, and no longer what led to it."""
        values = ending_row(session_id, ending, time.time())
        with self._transaction() as database:
            if _is_going_on(database, session_id):
                write_row(database, "INSERT INTO endings", ENDINGS, values)
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
            select = f"SELECT {', '.join(STARTS)}, crc, epoch, epoch_crc FROM sessions ORDER BY number"
            rows = self._database.execute(select).fetchall()
            for *values, crc, epoch, epoch_crc in rows:
                number, session_id = values[:2]
                if (crc_of(values), crc_of((session_id, epoch))) != (crc, epoch_crc):
                    on_damage(number)
                else:
                    found.append(self._stored(start_of(values), epoch))
        return found

    def _stored(self, start: Start, epoch: int) -> Stored:
        """Return a session with what was kept of it last."""
        found = Checkpoint(0, 0, (0,) * len(start.request.config.columns), b"", ())
        age_seconds = 0.0
        for table, names in (("endings", ENDINGS), ("checkpoints", CHECKPOINTS)):
            select = f"SELECT {', '.join(names)}, crc FROM {table} WHERE id = ?"
            row = self._database.execute(select, (start.session_id,)).fetchone()
            if row is not None:
                *values, crc = row
                if crc_of(values) != crc:
                    return Stored(start, epoch, 0.0, None)
                if names is ENDINGS:
                    return Stored(start, epoch, 0.0, ending_of(values))
                found, age_seconds = checkpoint_of(values), values[-1]
        return Stored(start, epoch, age_seconds, found)


def reports(folder: Path) -> list[Listed]:
    """Return the reports of a state directory, oldest first; a server may be using it.

    Raises:
        CannotServe: it is no state directory, or cannot be read.

    """
    path = folder / FILE_NAME
    names = [f"sessions.{name}" for name in STARTS] + [f"endings.{name}" for name in ENDINGS]
    select = f"SELECT {', '.join(names)}, sessions.crc, endings.crc FROM endings JOIN sessions USING (id)"
    if not os.path.exists(path):
        raise CannotServe(f"--state-dir {folder}: {path} cannot be read (no server has kept anything there)")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = as_text
            check_kind(database)
            rows = database.execute(f"{select} ORDER BY number").fetchall()
    except (sqlite3.Error, ValueError) as error:
        raise CannotServe(f"--state-dir {folder}: {path} cannot be read ({error})") from error
    return [_listed(row[: len(STARTS)], row[len(STARTS) : -2], row[-2:]) for row in rows]


def _listed(start: tuple[Any, ...], ending: tuple[Any, ...], crcs: tuple[int, int]) -> Listed:
    number, session_id = start[0], start[1]
    if (crc_of(start), crc_of(ending)) != crcs:
        return Listed(number, session_id, "(damaged)", 0, 0, None)
    config = start_of(start).request.config
    events = ending_of(ending).applied_events
    return Listed(number, session_id, config.label, events, len(config.lanes), ending[-1])


def _is_going_on(database: sqlite3.Connection, session_id: str) -> bool:
    """Tell whether a session has no report: it may have been finished meanwhile.

    Raises: NotFound if it was dropped.
    """
    if database.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone() is None:
        raise _not_there()
    return database.execute("SELECT 1 FROM endings WHERE id = ?", (session_id,)).fetchone() is None


def _not_there() -> NotFound:
    return NotFound("SESSION_NOT_FOUND", "the session was dropped meanwhile")
