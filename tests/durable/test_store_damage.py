"""A state directory that is damaged: it is noticed, and said in one line or told of one session."""

import contextlib
from pathlib import Path

import pytest

from hypervisor_svc.errors import CannotServe
from hypervisor_svc.journal import Stored
from hypervisor_svc.store import FILE_NAME, Store
from tests.durable.stored import FRESH, checkpoint, damage, ending, execute, loaded, overwrite, start


def create(store: Store, table: str) -> None:
    """Keep a session of which something is in ``table``."""
    store.create(start(1))
    if table == "endings":
        store.save_ending("id-1", ending())
    else:
        store.save_checkpoint("id-1", checkpoint(), 1.5)


@pytest.mark.parametrize("page", range(1, 9))
def test_a_damaged_page_is_noticed_before_anything_is_served(tmp_path: Path, page: int) -> None:
    """Whichever page of the database is overwritten, one line says so, and the server does not start."""
    store = Store(tmp_path)
    store.create(start())
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    store.close()
    ((page_bytes,),) = execute(tmp_path, "PRAGMA page_size")
    overwrite(tmp_path, (page - 1) * page_bytes, b"\xff" * page_bytes)
    with pytest.raises(CannotServe, match=r"^--state-dir .* cannot be used \(.*\); move it away") as refused:
        Store(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "session_id"), [("sessions", b"id-1"), ("checkpoints", b"id-1"), ("endings", b"id-2")]
)
def test_a_damaged_index_is_noticed_before_anything_is_served(
    tmp_path: Path, table: str, session_id: bytes
) -> None:
    """Where an index has another id, what is there would not be found, and the server does not start."""
    store = Store(tmp_path)
    store.create(start(1))
    store.create(start(2))
    store.save_checkpoint("id-1", checkpoint(), 1.0)
    store.save_ending("id-2", ending())
    store.close()
    name = f"sqlite_autoindex_{table}_1"
    ((root,),) = execute(tmp_path, "SELECT rootpage FROM sqlite_schema WHERE name = ?", name)
    ((page_bytes,),) = execute(tmp_path, "PRAGMA page_size")
    data = (tmp_path / FILE_NAME).read_bytes()
    overwrite(tmp_path, data.index(session_id, (root - 1) * page_bytes), b"ie-1")
    with pytest.raises(CannotServe, match="cannot be used"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [(b"age_seconds", b"age_secon\xe4s"), (b"(name,seq)", b"(name,sex)")]
)
def test_a_damaged_schema_is_noticed_before_anything_is_served(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    """Where a column has another name, the server says that the file cannot be used, and does not start."""
    store = Store(tmp_path)
    store.create(start())
    store.close()
    data = (tmp_path / FILE_NAME).read_bytes()
    overwrite(tmp_path, data.index(old), new)
    # One is noticed when the directory is opened, the other when its sessions are read.
    with (
        pytest.raises(CannotServe, match=r"^--state-dir .* cannot be used"),
        contextlib.closing(Store(tmp_path)) as store,
    ):
        loaded(store)


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
    create(store, table)
    store.create(start(2))
    store.close()
    damage(tmp_path, table, column)
    store = Store(tmp_path)
    assert loaded(store) == [Stored(start(1), 0, 0.0, None), Stored(start(2), 0, 0.0, FRESH)]
    store.close()


@pytest.mark.parametrize(
    ("column", "number"),
    [
        *((name, 7) for name in ("id", "owner", "engine_fingerprint", "request", "resolved", "crc")),
        *((name, 7) for name in ("epoch", "epoch_crc")),
        ("number", 6),
    ],
)
def test_a_damaged_start_is_told_by_its_number(tmp_path: Path, column: str, number: int) -> None:
    """A session that nobody can know any more is left out and told; its number stays used."""
    store = Store(tmp_path)
    store.create(start(7))
    store.close()
    damage(tmp_path, "sessions", column)
    store = Store(tmp_path)
    store.create(start(8))
    damaged: list[int] = []
    assert store.load(damaged.append) == [Stored(start(8), 0, 0.0, FRESH)]
    assert damaged == [number]
    assert store.last_number == 8
    store.close()


@pytest.mark.parametrize(
    ("table", "column", "damaged", "left"),
    [
        ("sessions", "request", [1], [2]),
        ("checkpoints", "kept", [], [1, 2]),
        ("endings", "report", [], [1, 2]),
    ],
)
@pytest.mark.parametrize("value", ["CAST({} AS TEXT)", "CAST(x'fffe00' AS TEXT)"])
def test_a_value_of_another_type_costs_one_session(
    tmp_path: Path, table: str, column: str, damaged: list[int], left: list[int], value: str
) -> None:
    """Text in the place of bytes, also of those that are no text, costs no other session."""
    store = Store(tmp_path)
    create(store, table)
    store.close()
    execute(tmp_path, f"UPDATE {table} SET {column} = {value.format(column)}")
    with contextlib.closing(Store(tmp_path)) as store:
        store.create(start(2))
        told: list[int] = []
        found = store.load(told.append)
    assert (told, [stored.start.number for stored in found]) == (damaged, left)
    assert [stored.last for stored in found] == [None, FRESH][-len(left) :]


def test_numbers_go_on_where_their_count_is_damaged(tmp_path: Path) -> None:
    """The newest session that is there counts as well, so that no number is given twice."""
    store = Store(tmp_path)
    for number in (1, 2, 3):
        store.create(start(number))
    store.close()
    execute(tmp_path, "UPDATE sqlite_sequence SET seq = 0")
    with contextlib.closing(Store(tmp_path)) as store:
        assert store.last_number == 3
        store.create(start(4))
        assert [stored.start for stored in loaded(store)] == [start(number) for number in (1, 2, 3, 4)]
