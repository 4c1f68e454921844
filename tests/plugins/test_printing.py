"""What a plug-in prints is never taken for what a command writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.conftest import Write
from tests.plugins.test_loading import Install, package

# Printed by Python, past it, and by a program.
PRINTS = "import os; print({0!r}); os.write(1, b'{0} below\\n'); os.system('echo {0} outside')"
CHATTY = f"""
def prepare(self):
    {PRINTS.format("prepared")}

def generate(self):
    {PRINTS.format("generated")}
    yield events(kinds=EventKind.CPUID)
"""


def guest(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the guest's to its end."""
    command = [sys.executable, "-m", "guest_svc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def told(done: "subprocess.CompletedProcess[str]", *words: str) -> bool:
    """Tell whether all that is printed with some words stands on standard error."""
    lines = done.stderr.splitlines()
    return all(f"{word}{how}" in lines for word in words for how in ("", " below", " outside"))


@pytest.mark.parametrize("command", ["run", "check-workload"])
def test_an_output_holds_nothing_of_an_author(command: str, write: Write) -> None:
    """At import, while it is prepared, and between events: the document is all there is."""
    text = write(CHATTY)
    path = Path("mine.py")
    path.write_text(f"{PRINTS.format('imported')}\n{path.read_text()}")
    done = guest(command, text, "--output", "json")
    assert json.loads(done.stdout), done.stderr
    assert told(done, "imported", "prepared", "generated")


def test_a_chatty_package_spoils_no_list(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of all workloads is whole, and whoever runs the command sees what was printed."""
    install("one", {"theirs": "theirs_d:Theirs"}, theirs_d=f"{PRINTS.format('hello')}\n{package('theirs')}")
    site = str(Path("installed").resolve())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((site, os.environ.get("PYTHONPATH", ""))))
    done = guest("workloads", "--output", "json")
    assert "theirs" in [workload["name"] for workload in json.loads(done.stdout)["workloads"]]
    assert told(done, "hello")
