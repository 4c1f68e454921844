"""The state directory: what was kept comes back equal, and one that cannot be used is refused."""

import contextlib
import dataclasses
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hypervisor_svc.errors import CannotServe, NotFound
from hypervisor_svc.journal import Checkpoint, Ending, Stored
from hypervisor_svc.store import FILE_NAME, LOCK_NAME, Store
from tests.durable.stored import FRESH, KEPT, checkpoint, ending, execute, loaded, said_alone, start


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
    """Once the report is kept, what led to it takes no room, nor does a checkpoint that was under way."""
    store = Store(tmp_path)
    store.create(start())
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    store.save_ending("id-1", ending())
    store.save_checkpoint("id-1", checkpoint(), 2.0)
    assert loaded(store) == [Stored(start(), 0, 0.0, ending())]
    store.close()
    assert execute(tmp_path, "SELECT count(*) FROM checkpoints") == [(0,)]
    assert execute(tmp_path, "SELECT count(*) FROM endings") == [(1,)]


def test_what_is_deleted_is_forgotten_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    """No row is left of deleted sessions, who saves something of them hears so, and numbers only go up."""
    store = Store(tmp_path)
    assert store.last_number == 0
    for number in (1, 2, 3):
        store.create(start(number))
    store.save_checkpoint("id-2", checkpoint(), 1.0)
    store.save_ending("id-3", ending())
    store.delete(["id-2", "id-3", "never was"])
    with pytest.raises(NotFound, match="the session was dropped meanwhile"):
        store.save_checkpoint("id-2", checkpoint(), 2.0)
    with pytest.raises(NotFound, match="the session was dropped meanwhile"):
        store.save_ending("id-3", ending())
    with pytest.raises(NotFound, match="the session was dropped meanwhile"):
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


def of_version(folder: Path, version: int) -> None:
    """Make a state directory of another version."""
    Store(folder).close()
    execute(folder, f"PRAGMA user_version = {version}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (file_in_place, "it is no folder"),
        (file_above, "it cannot be made, as a part of its path is no folder"),
        (lambda folder: (folder / LOCK_NAME).mkdir(), "its lock or sessions.sqlite3 is a folder"),
        (lambda folder: (folder / FILE_NAME).mkdir(), "its lock or sessions.sqlite3 is a folder"),
        (lambda folder: (folder / FILE_NAME).write_bytes(b"precious" * 99), "file is not a database"),
        (lambda folder: execute(folder, "CREATE TABLE theirs (a)"), "it is no database of sessions"),
        (
            lambda folder: of_version(folder, 2),
            "it is of version 2, this program is for 1",
        ),
        (
            lambda folder: of_version(folder, -1),
            "it is of version -1, this program is for 1",
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


def test_a_refused_directory_is_given_back(tmp_path: Path) -> None:
    """Who was refused holds no lock: once what was wrong is put right, the same process may serve."""
    (tmp_path / FILE_NAME).write_bytes(b"precious" * 99)
    with pytest.raises(CannotServe):
        Store(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    Store(tmp_path).close()
