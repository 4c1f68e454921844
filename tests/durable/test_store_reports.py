"""The reports of a state directory, listed without a server."""

from pathlib import Path

import pytest

from exitlab.serving.refusals import CannotServe
from hypervisor_svc.store import FILE_NAME, Listed, Store, reports
from tests.durable.stored import checkpoint, ending, execute, loaded, start


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


def test_a_report_whose_session_is_damaged_is_listed(tmp_path: Path) -> None:
    """Its label says so, since it cannot be known any more; the others are as they were."""
    store = Store(tmp_path)
    for number in (1, 2):
        store.create(start(number))
        store.save_ending(f"id-{number}", ending(10 * number))
    store.close()
    execute(tmp_path, "UPDATE sessions SET request = x'0aff' WHERE number = 1")
    listed = [report._replace(ended_at=0.0) for report in reports(tmp_path)]
    assert listed == [Listed(1, "id-1", "(damaged)", 0, 0, 0.0), Listed(2, "id-2", "session 2", 20, 1, 0.0)]
