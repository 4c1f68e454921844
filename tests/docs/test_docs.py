"""What the pages show is run as they show it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from exitlab.v1 import hypervisor_pb2, policy_pb2, report_pb2
from hypervisor_svc.engine import Engine, EngineConfig
from hypervisor_svc.policies.base import Policy, tabulate
from tests.model.streams import Mix, random_stream
from tests.system.programs import serving

ROOT = Path(__file__).parents[2]


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _shown_commands() -> list[str]:
    lines = (line.split("#")[0].strip() for block in _blocks("README.md", "") for line in block.splitlines())
    return [line for line in lines if line.startswith(".venv/bin/") and " serve " not in line]


ALONE = [line for line in _shown_commands() if not re.search("--hypervisor|--state-dir", line)]


def test_the_readme_shows_commands() -> None:
    """The pattern that finds the commands finds them."""
    assert len(_shown_commands()) >= 9


@pytest.mark.parametrize("command", ALONE)
def test_a_command_of_the_readme_runs(command: str) -> None:
    """Every command that the README shows exits with 0 and prints something."""
    program, *arguments = command.removeprefix(".venv/bin/").split()
    module = {"guest-svc": "guest_svc", "hypervisor-svc": "hypervisor_svc"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_stored_sessions_are_as_the_readme_shows(tmp_path: Path) -> None:
    """The block about a state directory runs line by line, in a folder of its own."""
    (block,) = [block for block in _blocks("README.md", "") if "--session-file" in block]
    serve, *lines = block.splitlines()
    address, python = f"unix:{tmp_path}/h", sys.executable
    assert serve == ".venv/bin/hypervisor-svc serve --state-dir ./state"
    with serving(tmp_path, address):
        for line in lines:
            command = line.replace(".venv/bin/guest-svc", f"{python} -m guest_svc")
            command = command.replace(".venv/bin/hypervisor-svc", f"{python} -m hypervisor_svc")
            command = command.replace("127.0.0.1:50551", address)
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout


def test_the_policy_that_the_page_writes_tells_the_architectures_story() -> None:
    """The example of docs/policies.md is a policy that passes the property that all must pass."""
    (code,) = _blocks("docs/policies.md", "python")
    names: dict[str, object] = {}
    exec(code, names)  # the page's own code
    (made,) = (
        thing
        for thing in names.values()
        if isinstance(thing, type) and issubclass(thing, Policy) and thing is not Policy
    )
    table = tabulate(made())
    mix = Mix(outside=False)  # registers set from outside are the page's example of a deviation
    config = hypervisor_pb2.SessionConfig(
        lanes=[policy_pb2.Lane(policy_table=table, vendor=table.vendor)],
        vcpus=mix.vcpus,
        physical_cpus=mix.physical_cpus,
        initial_physical_cpus=mix.initial_physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=table.vendor,
    )
    for seed in range(20):
        engine = Engine(EngineConfig.from_proto(config, lambda *_: table))
        engine.feed(random_stream(seed, 300, mix), 1)
        (lane,) = engine.report().lanes
        assert lane.verdict == report_pb2.VERDICT_SAME, (seed, lane.first_divergence.what)
