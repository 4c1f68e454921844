"""What a SOURCE stands for, and what no source can be."""

from pathlib import Path

import numpy as np
import pytest

from guest_svc.captures import FOLDER
from guest_svc.errors import BadInput
from guest_svc.sources import SourceChoice, open_source
from guest_svc.traces.records import COLUMN_TYPES, RecordKind
from guest_svc.workloads import workload_names


def write_trace(path: Path, kinds: list[int]) -> str:
    """Write a trace of one record a kind, and return its path."""
    columns = {name: np.zeros(len(kinds), dtype) for name, dtype in COLUMN_TYPES.items()}
    columns["kind"][:] = kinds
    with path.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]  # the stub takes a keyword for allow_pickle
    return str(path)


@pytest.mark.parametrize("name", ["idle", "context-switch", "capture:idle-shell", "idle-shell"])
def test_a_name_of_ours_is_never_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the working directory hides no workload and no shipped trace; a path to it is the file."""
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / name, [RecordKind.CPUID])
    is_trace = "idle-shell" in name
    found = open_source(SourceChoice(name, events=10, must_be_recorded=is_trace))
    assert (found.is_recorded, found.total_events) == (is_trace, 10)
    assert name in workload_names() or f"capture:{name}" in workload_names()
    assert open_source(SourceChoice(f"./{name}")).total_events == 1


def test_a_bare_name_that_is_not_ours_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file needs no suffix and no folder to be found."""
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "mine", [RecordKind.CPUID])
    assert open_source(SourceChoice("mine")).total_events == 1


def test_cycles_per_instruction_are_said_once() -> None:
    """The option and the parameter are one thing: both at once is refused with both."""
    choice = SourceChoice("capture:idle-shell", {"cpi": "2"}, events=1, cycles_per_instruction="3")
    with pytest.raises(BadInput, match=r"^--cpi 3: -p cpi=2 is given too; say it once$"):
        open_source(choice)


def test_a_trace_without_events_is_refused(tmp_path: Path) -> None:
    """Records of which none is an event make no run, and are named."""
    path = write_trace(tmp_path / "notes.npz", [RecordKind.MARK, RecordKind.CTXSW, RecordKind.MARK])
    with pytest.raises(BadInput, match=r"notes\.npz: none of its 3 records is an event: 1 CTXSW, 2 MARK$"):
        open_source(SourceChoice(path))


def test_the_format_of_a_trace_is_found_from_the_readme() -> None:
    """Whoever has a recording of his own is led to what its columns mean."""
    readme = FOLDER.parents[1] / "README.md"
    assert "(guest_svc/captures/README.md)" in readme.read_text(encoding="utf-8")
    assert (FOLDER / "README.md").is_file()
