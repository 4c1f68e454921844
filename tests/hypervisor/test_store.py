"""The state directory: what was kept comes back equal, and what cannot be kept or read is said."""

import contextlib
import dataclasses
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hypervisor_svc.errors import CannotServe, Unavailable
from hypervisor_svc.journal import Checkpoint, Ending, Stored
from hypervisor_svc.store import FILE_NAME, LOCK_NAME, Listed, Store, reports
from tests.hypervisor.stored import KEPT, checkpoint, damage, ending, execute, loaded, start

FRESH = Checkpoint(0, 0, (0, 0), b"", ())
SECONDS = 60.0  # nothing here takes this long unless it hangs
# A process of its own, with one session in a state directory; its parts are put behind it.
ALONE = """
import resource, sys
from pathlib import Path
from exitlab.v1 import hypervisor_pb2 as pb
from hypervisor_svc.errors import CannotServe, Unavailable
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


@pytest.mark.parametrize(
    "last",
    [
        FRESH,
        checkpoint(),
        checkpoint(kept=()),
        checkpoint(applied_events=1 << 62),
        ending(),
        dataclasses.replace(ending(), lane_runs=(), report=b"", state_digest=0),
    ],
    ids=["fresh", "checkpoint", "nothing kept", "far", "ending", "empty ending"],
)
def test_what_is_kept_comes_back_equal(tmp_path: Path, last: Checkpoint | Ending) -> None:
    """Start, epoch, age and all of a checkpoint or an ending are the same in the next server."""
    folder = tmp_path / "made" / "on the way"
    store = Store(folder)
    store.create(start())
    age_seconds = 0.0
    if isinstance(last, Ending):
        store.save_checkpoint("id-1", checkpoint(), 1.25)
        store.save_ending("id-1", last)
    elif last is not FRESH:
        age_seconds = 1.25
        store.save_checkpoint("id-1", last, age_seconds)
    store.save_epoch("id-1", 5)
    expected = [Stored(start(), 5, age_seconds, last)]
    assert loaded(store) == expected
    store.close()
    store = Store(folder)
    assert loaded(store) == expected
    store.close()


def test_sessions_are_kept_apart(tmp_path: Path) -> None:
    """What is saved of one session changes no other, and all come back in the order of their numbers."""
    store = Store(tmp_path)
    for number in (1, 2, 3, 4):
        store.create(start(number))
    store.save_checkpoint("id-3", checkpoint(3), 3.5)
    store.save_checkpoint("id-1", checkpoint(1), 1.5)
    store.save_ending("id-2", ending())
    store.save_epoch("id-2", 2)
    expected = [
        Stored(start(1), 0, 1.5, checkpoint(1)),
        Stored(start(2), 2, 0.0, ending()),
        Stored(start(3), 0, 3.5, checkpoint(3)),
        Stored(start(4), 0, 0.0, FRESH),
    ]
    assert loaded(store) == expected
    store.close()


def test_a_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    """Of many checkpoints, one row is left: the last."""
    store = Store(tmp_path)
    store.create(start())
    for events in range(1, 20):
        store.save_checkpoint("id-1", checkpoint(events, KEPT[: events % 4]), float(events))
    assert loaded(store) == [Stored(start(), 0, 19.0, checkpoint(19, KEPT))]
    store.close()
    assert execute(tmp_path, "SELECT count(*) FROM checkpoints") == [(1,)]


def test_an_ending_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Once the report is kept, what led to it takes no room."""
    store = Store(tmp_path)
    store.create(start())
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    store.save_ending("id-1", ending())
    store.close()
    assert execute(tmp_path, "SELECT count(*) FROM checkpoints") == [(0,)]
    assert execute(tmp_path, "SELECT count(*) FROM endings") == [(1,)]


def test_what_is_deleted_is_forgotten_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    """No row is left of deleted sessions, nothing can be saved of them, and numbers only go up."""
    store = Store(tmp_path)
    assert store.last_number == 0
    for number in (1, 2, 3):
        store.create(start(number))
    store.save_checkpoint("id-2", checkpoint(), 1.0)
    store.save_ending("id-3", ending())
    store.delete(["id-2", "id-3", "never was"])
    store.save_checkpoint("id-2", checkpoint(), 2.0)
    store.save_ending("id-3", ending())
    store.save_epoch("id-3", 3)
    assert loaded(store) == [Stored(start(1), 0, 0.0, FRESH)]
    assert store.last_number == 3
    store.delete(["id-1"])
    store.close()
    for table in ("sessions", "checkpoints", "endings"):
        assert execute(tmp_path, f"SELECT count(*) FROM {table}") == [(0,)]
    store = Store(tmp_path)
    assert (loaded(store), store.last_number) == ([], 3)
    store.close()


def test_one_server_has_the_directory(tmp_path: Path) -> None:
    """A second store is refused in this process and in another, until the first gives the directory back."""
    script = "try: Store(folder)\nexcept CannotServe as error: print(error)\nelse: print('had it')"
    refusal = f"--state-dir {tmp_path}: another server uses it"
    store = Store(tmp_path)
    with pytest.raises(CannotServe) as refused:
        Store(tmp_path)
    assert str(refused.value) == refusal
    assert said_alone(script, tmp_path) == f"{refusal}\n"
    store.create(start())
    store.close()
    assert said_alone(script, tmp_path) == "had it\n"
    Store(tmp_path).close()


def test_nobody_else_can_read_the_directory(tmp_path: Path) -> None:
    """The folder is its owner's alone, and so is every file: a session's id gives access to it."""
    folder = tmp_path / "state"
    store = Store(folder)
    store.create(start())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    names = (LOCK_NAME, FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm")
    assert found == dict.fromkeys(names, 0o600)
    store.close()


def test_a_change_is_on_the_disk_before_the_call_returns(tmp_path: Path) -> None:
    """The log is written ahead, and synced at each commit: 2 is FULL."""
    store = Store(tmp_path)
    (mode,) = store._database.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._database.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)
    store.close()


def file_in_place(folder: Path) -> None:
    """Put a file where the folder is to be."""
    folder.rmdir()
    folder.write_text("precious")


def file_above(folder: Path) -> None:
    """Put a file where the folder's parent is to be."""
    folder.rmdir()
    folder.parent.rmdir()
    folder.parent.write_text("precious")


def overwritten(first: int, data: bytes) -> Callable[[Path], None]:
    """Return what writes bytes over those of a database, from ``first``."""

    def write(folder: Path) -> None:
        with (folder / FILE_NAME).open("r+b") as file:
            file.seek(first)
            file.write(data)

    return write


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (file_in_place, "File exists"),
        (file_above, "Not a directory"),
        (lambda folder: (folder / LOCK_NAME).mkdir(), "Is a directory"),
        (lambda folder: (folder / FILE_NAME).mkdir(), "Is a directory"),
        (lambda folder: (folder / FILE_NAME).write_bytes(b"precious" * 99), "file is not a database"),
        (
            lambda folder: execute(folder, "PRAGMA user_version = 2"),
            "it is of version 2, this is a server for 1",
        ),
        (
            lambda folder: execute(folder, "PRAGMA user_version = -1"),
            "it is of version -1, this is a server for 1",
        ),
    ],
)
def test_a_directory_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    """What is wrong is said in one line that names the directory, and nothing is overwritten."""
    folder = tmp_path / "above" / "state"
    folder.mkdir(parents=True)
    spoil(folder)
    with pytest.raises(CannotServe) as refused:
        Store(folder)
    message = str(refused.value)
    assert message.startswith(f"--state-dir {folder}: ")
    assert said in message
    assert "\n" not in message
    for file in (folder.parent, folder, folder / FILE_NAME):
        with contextlib.suppress(OSError):
            assert file.read_bytes().startswith((b"precious", b"SQLite format 3"))


@pytest.mark.parametrize("page", range(1, 9))
def test_a_damaged_page_is_noticed_before_anything_is_served(tmp_path: Path, page: int) -> None:
    """Whichever page of the database is overwritten, the server does not start on what is left."""
    store = Store(tmp_path)
    store.create(start())
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    store.close()
    ((page_bytes,),) = execute(tmp_path, "PRAGMA page_size")
    overwritten((page - 1) * page_bytes, b"\xff" * page_bytes)(tmp_path)
    with pytest.raises(CannotServe, match=r"(?s)^--state-dir .* cannot be used \(.*move it away"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("checkpoints", name) for name in ("applied_events", "confirmed_events", "column_crcs")),
        *(("checkpoints", name) for name in ("engine", "kept", "crc")),
        *(("endings", name) for name in ("applied_events", "column_crcs", "state_digest")),
        *(("endings", name) for name in ("report", "lane_runs", "crc")),
    ],
)
def test_a_damaged_byte_costs_one_session(tmp_path: Path, table: str, column: str) -> None:
    """A session of which any value has another bit comes back without it; the others are as they were."""
    store = Store(tmp_path)
    store.create(start(1))
    if table == "endings":
        store.save_ending("id-1", ending())
    else:
        store.save_checkpoint("id-1", checkpoint(), 1.5)
    store.create(start(2))
    store.close()
    damage(tmp_path, table, column)
    store = Store(tmp_path)
    age_seconds = 0.0 if table == "endings" else 1.5
    assert loaded(store) == [Stored(start(1), 0, age_seconds, None), Stored(start(2), 0, 0.0, FRESH)]
    store.close()


@pytest.mark.parametrize("column", ["id", "owner", "engine_fingerprint", "request", "resolved", "crc"])
def test_a_damaged_start_is_told_by_its_number(tmp_path: Path, column: str) -> None:
    """A session that nobody can know any more is left out and told; its number stays used."""
    store = Store(tmp_path)
    store.create(start(7))
    store.close()
    damage(tmp_path, "sessions", column)
    store = Store(tmp_path)
    store.create(start(8))
    damaged: list[int] = []
    assert store.load(damaged.append) == [Stored(start(8), 0, 0.0, FRESH)]
    assert damaged == [7]
    assert store.last_number == 8
    store.close()


@pytest.mark.parametrize(
    "save",
    [
        lambda store: store.create(start(2, owner="x" * 100_000)),
        lambda store: store.save_checkpoint("id-1", checkpoint(8, [(8, b"x" * 100_000)]), 2.0),
        lambda store: store.save_ending("id-1", dataclasses.replace(ending(), report=b"x" * 100_000)),
    ],
    ids=["create", "checkpoint", "ending"],
)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, save: Callable[[Store], None]) -> None:
    """What does not fit is refused as NOT_STORED and changes nothing; with room, it is kept."""
    store = Store(tmp_path)
    store.create(start())
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    before = loaded(store)
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        with pytest.raises(Unavailable) as refused:
            save(store)
        said = "the server's state directory takes nothing now: database or disk is full"
        assert (refused.value.reason, refused.value.message) == ("NOT_STORED", said)
        assert refused.value.place["retry_after_ms"] > 0
        assert loaded(store) == before
        store.save_epoch("id-1", 0)  # what takes no page still fits
    store._database.execute("PRAGMA max_page_count = 1000000")
    save(store)
    after = loaded(store)
    assert after != before
    store.close()
    store = Store(tmp_path)
    assert loaded(store) == after
    store.close()


NO_ROOM = """
import json
told = []
saved(store, 1, 100)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (0, 1, 4096, 20_000, 70_000, 150_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        for number in range(2, 50):
            saved(store, number, 10_000 * number)
    except Unavailable as refused:
        told.append((refused.reason, number))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    (stored,) = store.load(print)
    assert stored.last.applied_events == max(1, number - 1), (room, number, stored.last.applied_events)
    store.save_epoch("id", room)
    saved(store, 1, 100)
print(json.dumps(told))
saved(store, 7, 1_000_000)
"""


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """Where the system itself refuses to write, the last checkpoint stays, and the next one is kept again."""
    said = said_alone(CREATE + NO_ROOM, tmp_path)
    assert said.count("NOT_STORED") == 6
    store = Store(tmp_path)
    (stored,) = loaded(store)
    assert stored.epoch == 150_000
    assert stored.last == Checkpoint(7, 0, (7, 7), b"7", ((7, b"\7" * 1_000_000),))
    store.close()


SAVE_FOR_EVER = """
import itertools, os
for number in itertools.count(1):
    saved(store, number, number % 7 * 3000)
    os.write(1, b"%d\\n" % number)
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_server_leaves_whole_checkpoints(tmp_path: Path, seed: int) -> None:
    """After SIGKILL among many saves there is the last one that returned, or the one that was begun."""
    with alone(CREATE + SAVE_FOR_EVER, tmp_path) as process:
        assert process.stdout is not None
        for _ in range(1 + 17 * seed):
            assert process.stdout.readline()
        process.kill()
        lines = process.stdout.read().split()
        assert process.wait(SECONDS) == -signal.SIGKILL
    returned = int(lines[-1]) if lines else 1 + 17 * seed
    store = Store(tmp_path)
    (stored,) = loaded(store)
    assert isinstance(stored.last, Checkpoint)
    number = stored.last.applied_events
    assert number in (returned, returned + 1)
    kept = ((number, bytes([number % 256]) * (number % 7 * 3000)),)
    assert stored.last == Checkpoint(number, 0, (number, number), str(number).encode(), kept)
    assert stored.age_seconds == number
    store.close()


def test_reports_are_listed_while_a_server_runs(tmp_path: Path) -> None:
    """Whoever lists reports needs no server, stops none, and sees what the last one finished."""
    folder = tmp_path / "a folder?#%20"
    store = Store(folder)
    assert reports(folder) == []
    for number in (1, 2, 3):
        store.create(start(number))
    store.save_ending("id-3", ending(30))
    store.save_ending("id-1", ending(10))
    store.save_checkpoint("id-2", checkpoint(), 1.0)
    expected = [Listed(1, "id-1", "session 1", 10, 1, 0.0), Listed(3, "id-3", "session 3", 30, 1, 0.0)]
    running = reports(folder)
    assert [report._replace(ended_at=0.0) for report in running] == expected
    store.save_ending("id-2", ending(20))
    store.close()
    after = reports(folder)
    assert [report.events for report in after] == [10, 20, 30]
    assert [after[0], after[2]] == running
    store = Store(folder)
    assert [stored.start.number for stored in loaded(store)] == [1, 2, 3]
    store.close()


@pytest.mark.parametrize("content", [None, b"", b"precious" * 99])
def test_reports_of_no_state_directory(tmp_path: Path, content: bytes | None) -> None:
    """Where there is nothing to list, one line says so, and nothing is made there."""
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    before = [(file.name, file.read_bytes()) for file in tmp_path.iterdir()]
    with pytest.raises(CannotServe) as refused:
        reports(tmp_path)
    assert str(refused.value).startswith(f"--state-dir {tmp_path}: {tmp_path / FILE_NAME} cannot be read (")
    assert "\n" not in str(refused.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == before
