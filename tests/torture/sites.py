"""Places in the server at which it is killed, told to stop, or finds the disk full.

They are put around the product's methods from outside, in the process of one server: see ``served``. A
server writes a line into a pipe when something happens to it; such a line outlives it.
"""

import os
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any, Final

from exitlab.serving.refusals import Unavailable
from hypervisor_svc.engine import Engine
from hypervisor_svc.session import Session
from hypervisor_svc.store import Store

APPLIED: Final = "after apply"
CONFIRMED: Final = "after a confirmation"
FROZEN: Final = "checkpoint made, not stored"
IN_CHECKPOINT: Final = "inside the checkpoint, before COMMIT"
COMMITTED: Final = "after commit, before the acknowledgement"
IN_CREATE: Final = "inside create, before COMMIT"
CREATED: Final = "inside create, after COMMIT"
IN_OPEN: Final = "inside open, before COMMIT"
OPENED: Final = "after Opened is durable, before it is sent"
IN_FINISH: Final = "inside finish, before COMMIT"
FINISHED: Final = "inside finish, after COMMIT"
LOADED: Final = "while restoring, from the disk"
RESTORED: Final = "while restoring, the engine"
# What every session comes by; RESTORED and LOADED take a restart.
SITES: Final = (
    *(APPLIED, CONFIRMED, FROZEN, IN_CHECKPOINT, COMMITTED, IN_CREATE, CREATED),
    *(IN_OPEN, OPENED, IN_FINISH, FINISHED),
)
SITES_OF_A_RESTART: Final = (LOADED, RESTORED)
# What is saved, where it is killed before COMMIT, and where once all is durable.
_SAVES: Final = (
    ("create", IN_CREATE, CREATED),
    ("save_epoch", IN_OPEN, OPENED),
    ("save_checkpoint", IN_CHECKPOINT, COMMITTED),
    ("save_ending", IN_FINISH, FINISHED),
)
KILL: Final = "kill"
DRAIN: Final = "drain"
FILL: Final = "fill"
FULL: Final = "full"  # the line of a server that could not write
_YEARS: Final = 10 * 365 * 86_400.0


class Sites:
    """Counts how often each site was come by, and does at one what was asked for."""

    def __init__(self, notes: int, action: str, site: str, arrival: int) -> None:
        """Do ``action`` at the given arrival at a site, counted from 1."""
        self.arrivals: Counter[str] = Counter()
        self._notes = notes
        self._action = action
        self._wanted = site, arrival
        self._turn = threading.Lock()
        self._saving = threading.local()

    def note(self, *words: str) -> None:
        """Say something to whoever watches this server."""
        os.write(self._notes, ("\t".join(words) + "\n").encode())

    def reach(self, site: str) -> None:
        """Take note that a thread is at a site."""
        with self._turn:
            self.arrivals[site] += 1
            if (site, self.arrivals[site]) != self._wanted:
                return
            if self._action == FILL:
                # As a full disk: whatever grows a file is refused from now on.
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                return
            self.note(self._action, site)
            os.kill(os.getpid(), signal.SIGKILL if self._action == KILL else signal.SIGTERM)

    def install(self) -> None:
        """Put the sites around the methods of this process."""
        self._after(Session, "apply", APPLIED)
        self._after(Session, "confirm", CONFIRMED)
        self._after(Session, "checkpoint", FROZEN)
        self._after(Session, "restored", LOADED)
        self._after(Engine, "restore", RESTORED)
        for name, inside, after in _SAVES:
            self._saves(name, inside, after)
        start: Any = Store.__init__

        def started(store: Any, folder: Path) -> None:
            start(store, folder)
            store._database = _Database(store._database, self._commits)

        Store.__init__ = started  # type: ignore[method-assign, assignment]  # from outside

    def _after(self, owner: type, name: str, site: str) -> None:
        method = getattr(owner, name)

        @wraps(method)
        def wrapped(*args: Any) -> Any:
            result = method(*args)
            self.reach(site)
            return result

        is_class_method = isinstance(vars(owner)[name], classmethod)
        setattr(owner, name, staticmethod(wrapped) if is_class_method else wrapped)

    def _saves(self, name: str, inside: str, after: str) -> None:
        method = getattr(Store, name)

        @wraps(method)
        def wrapped(*args: Any) -> None:
            self._saving.site = inside
            try:
                method(*args)
            except Unavailable:
                self.note(FULL)
                raise
            finally:
                self._saving.site = ""
            self.reach(after)

        setattr(Store, name, wrapped)

    def _commits(self) -> None:
        if site := getattr(self._saving, "site", ""):
            self.reach(site)


class _Database:
    """A connection to SQLite that tells before it commits."""

    def __init__(self, database: sqlite3.Connection, on_commit: Callable[[], None]) -> None:
        self._database = database
        self._on_commit = on_commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            self._on_commit()
        return self._database.execute(statement, *values)


def let_the_clock_jump(seed: int) -> None:
    """Have the clock of the wall say anything from years ago to years ahead, each time it is asked."""
    chance, real = Random(seed), time.time
    time.time = lambda: real() + chance.uniform(-_YEARS, _YEARS)
