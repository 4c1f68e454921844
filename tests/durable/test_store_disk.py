"""A state directory on a disk that is full, and under a server that is killed."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from exitlab.serving.refusals import Unavailable
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.store import Store
from tests.durable.stored import CREATE, SECONDS, alone, checkpoint, ending, loaded, said_alone, start


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
