"""What a private hypervisor says reaches who started it: its log is nobody else's to read."""

import json
import sys
from typing import Final

import pytest

from exitlab import command_line
from guest_svc import embedded, options
from guest_svc.cli import main

FAILING: Final = """
import sys
from hypervisor_svc import cli, pricing

def figures(*_):
    raise KeyError("no such cell")

pricing.figures = figures
sys.exit(cli.main())
"""
DYING: Final = """
import os, sys
from hypervisor_svc import cli, pricing

def figures(*_):
    os.write(2, b"Fatal: out of luck\\n")
    os._exit(9)

pricing.figures = figures
sys.exit(cli.main())
"""
WITH_A_BROKEN_CLASS: Final = """
import sys
from hypervisor_svc import cli, policies
from hypervisor_svc.policies.base import VMX, Policy

class Broken(Policy):
    name = "broken"

    def enter_loop(self, sees):
        return {}[sees.moved]

policies._MAKERS["broken"] = (VMX,), lambda vendor, writable: Broken()
sys.exit(cli.main())
"""
SMALL: Final = ["-p", "ticks=10"]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the private hypervisor be another program, of the same arguments."""
    monkeypatch.delenv(options.HYPERVISOR_VARIABLE, raising=False)
    command = embedded._command

    def changed(*arguments: object) -> list[str]:
        return [sys.executable, "-c", request.param, *command(*arguments)[3:]]  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(embedded, "_command", changed)


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        (FAILING, ["  fault, method: GetReport", "  KeyError: 'no such cell'"]),
        (DYING, ["  Fatal: out of luck"]),
    ],
    indirect=["program"],
)
@pytest.mark.usefixtures("program")
def test_the_log_of_a_hypervisor_that_failed_is_shown(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that ends because the private hypervisor failed is told with the last lines of its log."""
    assert main(["run", "idle", *SMALL]) == command_line.NOT_FINISHED
    told = capsys.readouterr()
    first, *shown, last = told.err.splitlines()
    assert (told.out, first) == ("", "guest-svc: the hypervisor's log ends with:")
    assert last.startswith("guest-svc: the report cannot be priced: ")
    assert all(any(line.startswith(start) for line in shown) for start in lines)
    assert 0 < len(shown) <= 8


@pytest.mark.parametrize("program", [WITH_A_BROKEN_CLASS], indirect=True)
@pytest.mark.usefixtures("program")
def test_a_policy_that_is_left_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """One broken class among the policies is warned of, and all others run."""
    assert main(["compare", "idle", *SMALL, "--policy", "correct", "--output", "json"]) == 0
    told = capsys.readouterr()
    assert told.err == (
        "guest-svc: the hypervisor warns: policy left out, why: broken: at ENTER_LOOP (moved=no) the policy"
        " fails: KeyError: False\n"
    )
    policies = [lane["policy"] for lane in json.loads(told.out)["lanes"]]
    assert "kvm-6.14" in policies
    assert "broken" not in policies
    assert main(["compare", "idle", *SMALL, "--policy", "broken"]) == command_line.BAD_INPUT
    assert "broken: at ENTER_LOOP (moved=no) the policy fails: KeyError: False" in capsys.readouterr().err
