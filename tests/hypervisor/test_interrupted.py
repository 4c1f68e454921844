"""Ctrl-C ends a command in silence, however early it comes."""

import subprocess
import sys
from typing import Final

import pytest

from exitlab.command_line import INTERRUPTED
from hypervisor_svc import cli

# Interrupts the program while it looks for a module.
PROGRAM: Final = """
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == wanted:
            raise KeyboardInterrupt

wanted = sys.argv.pop()
sys.meta_path.insert(0, Interrupting())
sys.argv.append("serve")
runpy.run_module("hypervisor_svc", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["hypervisor_svc.cli", "exitlab.command_line", "hypervisor_svc.limits", "hypervisor_svc.drain"]
)
def test_an_interrupt_during_an_import_is_silent(module: str) -> None:
    """What a start imports, before the parser, for it and for the command, can be interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_an_interrupt_of_the_parser_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed command goes to ``main`` at once, which sees to it as well."""

    def parser(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", parser)
    assert cli.main(["serve"]) == INTERRUPTED
