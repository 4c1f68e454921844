"""Ctrl-C ends a command in silence, however early it comes."""

import subprocess
import sys
from typing import Final

import pytest

import guest_svc.cli
import hypervisor_svc.cli
from exitlab.command_line import INTERRUPTED

# Interrupts the program while it looks for a module.
PROGRAM: Final = """
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == wanted:
            raise KeyboardInterrupt

program, *sys.argv[1:], wanted = sys.argv[1:]
sys.meta_path.insert(0, Interrupting())
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
SERVE: Final = ("hypervisor_svc", "serve")
GUEST: Final = ("guest_svc", "serve")
WORKLOADS: Final = ("guest_svc", "workloads")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *((SERVE, module) for module in ("hypervisor_svc.cli", "exitlab.command_line")),
        *((SERVE, module) for module in ("hypervisor_svc.limits", "hypervisor_svc.drain")),
        *((GUEST, module) for module in ("guest_svc.service.command", "guest_svc.service.life")),
        *((WORKLOADS, module) for module in ("guest_svc.cli", "exitlab.command_line", "guest_svc.sources")),
    ],
)
def test_an_interrupt_during_an_import_is_silent(command: tuple[str, str], module: str) -> None:
    """What a start imports, before the parser, for it and for the command, can be interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command, module], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_an_interrupt_of_the_parser_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes to ``main`` at once is seen to as well."""

    def parser(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hypervisor_svc.cli, "_parser", parser)
    assert hypervisor_svc.cli.main(["serve"]) == INTERRUPTED


def test_an_interrupt_of_the_guests_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's commands end so too."""

    def workloads(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(guest_svc.cli._COMMANDS, "workloads", workloads)
    assert guest_svc.cli.main(["workloads"]) == INTERRUPTED
