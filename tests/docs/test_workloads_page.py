"""A newcomer who follows docs/workloads.md, and nothing else, gets what it shows."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from exitlab.command_line import BAD_INPUT
from guest_svc.check.workload import MUSTS
from guest_svc.cli import main
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.options import HYPERVISOR_VARIABLE

TEXT: Final = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


FILES: Final = {code.splitlines()[0].removeprefix("# "): code for code in blocks("python")}
COMMANDS: Final[list[tuple[str, str]]] = re.findall(
    r"^```\n\$ (.*?)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page's files, and install its package as pip would."""
    made = tmp_path_factory.mktemp("newcomer")
    for name, code in FILES.items():
        (made / name).write_text(code, encoding="utf-8")
    (project,) = (tomllib.loads(block)["project"] for block in blocks("toml"))
    info = made / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run one hypervisor for all commands."""
    with EmbeddedHypervisor() as hypervisor:
        yield hypervisor.address


@pytest.fixture(autouse=True)
def newcomer(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the folder of the page's files, which is installed."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv(HYPERVISOR_VARIABLE, address)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.removeprefix("_exitlab_plugin_") in {Path(file).stem for file in FILES}:
            del sys.modules[name]


def test_the_page_shows_files_and_commands() -> None:
    """The patterns that find them find them."""
    assert set(FILES) == {"watch.py", "walks.py", "hunt.py", "wrong.py"}
    assert len(COMMANDS) == 6
    assert len(FILES["watch.py"].splitlines()) <= 30


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_prints_what_is_shown(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The output has the lines that are shown, in their order, and others only where some are left out."""
    program, *arguments = command.split()
    assert program == "guest-svc"
    code, told = main(arguments), capsys.readouterr()
    assert code == (BAD_INPUT if "wrong" in command else 0), told.err
    printed, at = told.out + told.err, 0
    for part in (part for part in shown.split("...\n") if part):
        assert part in printed[at:]
        at = printed.index(part, at) + len(part)


def test_the_packages_workloads_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """They are there by their names, with their package."""
    assert main(["workloads"]) == 0
    told = capsys.readouterr()
    assert "watch: moves a watchpoint with every timer interrupt [my-guests 1.0]\n" in told.out
    assert told.err == ""


def test_every_must_is_told() -> None:
    """The page's table names each, and no other; what is only told is none."""
    (table,) = re.findall(r"^\| MUST \| .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    rows = [line.split("|")[1] for line in table.strip().splitlines()[2:]]
    named = [name.strip() for row in rows for name in row.split(",")]
    musts = {must.name for must in MUSTS if not must.is_told_only}
    assert sorted(named) == sorted(musts)
