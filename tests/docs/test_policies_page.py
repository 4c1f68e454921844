"""What docs/policies.md shows of the commands is what they print."""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from guest_svc import cli as guest
from guest_svc.options import HYPERVISOR_VARIABLE
from hypervisor_svc import cli as hypervisor

PAGE: Final = Path(__file__).parents[2] / "docs" / "policies.md"
PROGRAMS: Final = {"guest-svc": guest.main, "hypervisor-svc": hypervisor.main}
# What the page shows of a bug: where, the versions that have it on VMX and on SVM, what is said of it.
BUGS: Final = (
    ("context-switch", {"vmx": {"3.15", "4.4"}, "svm": {"3.15", "4.4"}}, "FETCH: the guest sees nothing"),
    ("debugger", {"vmx": {"5.17", "6.8"}, "svm": {"5.14", "5.17", "6.8"}}, "MOV from DR6: the guest sees "),
)


def shown_commands() -> list[tuple[str, str]]:
    """Return each command of the page with what is shown of its output; ``...`` leaves lines out."""
    found: list[tuple[str, str]] = re.findall(
        r"^```\n\$ (.*?)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return found


@pytest.fixture(autouse=True)
def private_hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command start a hypervisor of its own, whatever the environment names."""
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)


@pytest.mark.parametrize(("command", "shown"), shown_commands())
def test_a_command_prints_what_is_shown(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The output has the lines that are shown, in their order, and others only where some are left out."""
    program, *arguments = command.split()
    assert PROGRAMS[program](arguments) == 0
    printed, at = capsys.readouterr().out, 0
    parts = [part for part in shown.split("...\n") if part]
    assert parts
    for part in parts:
        assert part in printed[at:]
        at = printed.index(part, at) + len(part)


@pytest.mark.parametrize("vendor", ["vmx", "svm"])
@pytest.mark.parametrize(("workload", "versions", "said"), BUGS)
def test_a_bug_is_seen_in_the_versions_that_have_it(
    workload: str,
    versions: dict[str, set[str]],
    said: str,
    vendor: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The guest that shows a bug shows it in every version of KVM that has it, and nothing in the others."""
    (command,) = (one for one, _ in shown_commands() if one.split()[2] == workload)
    source = command.split(" --policy ")[0].split()[1:]
    assert guest.main([*source, "--policy", "all", "--vendor", vendor, "--output", "json"]) == 0
    lanes = {lane["policy"]: lane for lane in json.loads(capsys.readouterr().out)["lanes"]}
    wrong = {name for name, lane in lanes.items() if lane["story"]["verdict"] == "diverged"}
    assert {name.removeprefix("kvm-") for name in wrong if name.startswith("kvm-")} == versions[vendor]
    assert not {name for name in wrong if lanes[name]["claims_correct"]}
    for version in versions[vendor]:
        assert lanes[f"kvm-{version}"]["story"]["first_divergence"]["what"].startswith(said)
