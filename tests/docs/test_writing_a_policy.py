"""The tutorial of docs/writing-a-policy.md, followed step by step in an empty folder."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from exitlab.command_line import BAD_INPUT, CHECK_FAILED
from exitlab.plugins import POLICIES
from guest_svc import cli as guest
from guest_svc.options import HYPERVISOR_VARIABLE
from hypervisor_svc import cli as hypervisor
from hypervisor_svc.policies.find import find
from tests.hypervisor.plug_in_sources import changed

PAGE: Final = Path(__file__).parents[2] / "docs" / "writing-a-policy.md"
PROGRAMS: Final = {"guest-svc": guest.main, "hypervisor-svc": hypervisor.main}
BLOCKS: Final[list[tuple[str, str]]] = re.findall(
    r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
CARELESS: Final = """from hypervisor_svc.api import Action, Policy, do


class Careless(Policy):
    api_version = 1
    name = "careless"

    def dr_trapped(self, sees):
        return None if sees.check else do(Action.EMULATE)
"""


def run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command of the page: it prints the lines that are shown, and others where some are left out."""
    line, _, shown = block.partition("\n")
    program, *arguments = line.removeprefix("$ ").split()
    code = PROGRAMS[program](arguments)
    told = capsys.readouterr()
    printed = told.err if code == BAD_INPUT else told.out
    assert code == (BAD_INPUT if shown.startswith(program) else CHECK_FAILED if "FAILED" in shown else 0), (
        line
    )
    parts = re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE)
    assert printed.startswith(parts[0])
    assert printed.endswith(parts[-1])
    at = 0
    for part in parts:
        assert part in printed[at:], line
        at = printed.index(part, at) + len(part)


def edited(diff: str, source: str) -> str:
    """Return a source with the line that a diff takes out replaced by the one that it puts in."""
    old, new = diff.splitlines()
    assert (old[0], new[0], source.count(old[1:])) == ("-", "+", 1)
    return changed(old[1:], new[1:], source)


def test_the_tutorial_goes_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of the page is written and every command run, in the order in which they come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)
    (tmp_path / "careless.py").write_text(CARELESS, encoding="utf-8")
    commands = 0
    for language, block in BLOCKS:
        match language:
            case "python":
                (tmp_path / "lazy.py").write_text(block, encoding="utf-8")
            case "diff":
                source = edited(block, (tmp_path / "lazy.py").read_text(encoding="utf-8"))
                (tmp_path / "lazy.py").write_text(source, encoding="utf-8")
            case "json":
                (tmp_path / "trap-all.json").write_text(block, encoding="utf-8")
                (tmp_path / "short.json").write_text(
                    changed("[6, 1, 1, 1]", "[6, 1, 1]", block), encoding="utf-8"
                )
            case "toml":
                (group,) = tomllib.loads(block)["project"]["entry-points"]
                assert group == POLICIES
            case _:
                run(block, capsys)
                commands += 1
    assert commands == 10
    assert find("./lazy.py:Lazy").name == "lazy"


def test_the_class_is_as_short_as_is_said() -> None:
    """The tutorial's class has some twenty lines of code in its methods."""
    (source,) = [block for language, block in BLOCKS if language == "python"]
    methods = source[source.index("    def ") :]
    assert len([line for line in methods.splitlines() if line.strip()]) <= 20
