"""What the tests of a state directory store, how they damage it, and servers beside this one."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.journal import Checkpoint, Ending, Start, Stored
from hypervisor_svc.store import FILE_NAME, Store
from tests.hypervisor.test_session import VMX, some_config

KEPT = ((3, b"\x00three"), (5, b""), (7, b"five to seven" * 100))
FRESH = Checkpoint(0, 0, (0, 0), b"", ())
SECONDS = 60.0  # nothing here takes this long unless it hangs
# A process of its own, with one session in a state directory; its parts are put behind it.
ALONE = """
import resource, sys
from pathlib import Path
from exitlab.v1 import hypervisor_pb2 as pb
from exitlab.serving.refusals import CannotServe, Unavailable
from hypervisor_svc.journal import Checkpoint, Start
from hypervisor_svc.store import Store

def saved(store, number, size):
    kept = ((number, bytes([number % 256]) * size),)
    engine = str(number).encode()
    store.save_checkpoint("id", Checkpoint(number, 0, (number, number), engine, kept), float(number))

folder = Path(sys.argv[1])
"""
CREATE = """
store = Store(folder)
store.create(Start("id", 1, "", pb.CreateSessionRequest(), pb.SessionConfig(), "fake"))
"""


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


def overwrite(folder: Path, first: int, data: bytes) -> None:
    """Write bytes over those of the database of a state directory, from ``first``."""
    with (folder / FILE_NAME).open("r+b") as file:
        file.seek(first)
        file.write(data)


def alone(script: str, folder: Path) -> "subprocess.Popen[str]":
    """Start a script in a process of its own."""
    command = [sys.executable, "-c", ALONE + script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_alone(script: str, folder: Path) -> str:
    """Return what a script prints in a process of its own."""
    with alone(script, folder) as process:
        out, trouble = process.communicate(timeout=SECONDS)
    assert not process.returncode, trouble
    return out
