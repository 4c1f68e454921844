"""The guests of docs/clients.md that the tests can run print what the page shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from exitlab.serving.refusals import Refused
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from tests.clients.node_program import NODE, node_environment
from tests.hypervisor.test_server import RunningServer

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SOURCES: Final = (
    *(ROOT / "hypervisor_svc").glob("*.py"),
    *(ROOT / "protos" / "exitlab" / "serving").glob("*.py"),
)


def blocks(language: str) -> list[str]:
    """Return the blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


# Reasons of calls that send no events; of those the page says where the field is named.
OF_OTHER_CALLS: Final = {
    *("BAD_PAGE_TOKEN", "BAD_POLICY", "BAD_PRICES", "BAD_REQUEST_ID", "INTERVAL_TOO_SHORT", "NO_IDENTITY"),
    *("NO_SUCH_VENDOR", "PRICES_MISSING", "REQUEST_TOO_LARGE", "TOO_MANY_PRICES", "UNKNOWN_POLICY"),
    *("UNKNOWN_PRICES", "INTERNAL_ERROR"),
}
# Reasons that are made of a session's state, or of an exception of the codec.
COMPUTED: Final = {"SESSION_FINISHED", "SESSION_SUSPENDED", "BAD_BLOCK"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Serve on the loopback."""
    server = RunningServer("127.0.0.1:0", ServerLimits(), Parts.installed())
    yield server
    server.close()


@pytest.mark.parametrize(("language", "program"), [("python", sys.executable), ("javascript", str(NODE))])
def test_a_guest_of_the_page_prints_what_is_shown(
    server: RunningServer, tmp_path: Path, language: str, program: str
) -> None:
    """Plain events and columns give one report, whose digest the page shows."""
    (code,), (shown,) = blocks(language), [block for block in blocks("") if "VERDICT" in block]
    script = tmp_path / f"guest.{'py' if language == 'python' else 'js'}"
    script.write_text(code, encoding="utf-8")
    environment = node_environment() if language == "javascript" else dict(os.environ)
    command = [program, str(script), server.address]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", shown)


def test_every_reason_of_a_stream_is_in_the_table() -> None:
    """Whatever a stream and a session may be refused for is in the page's table, and nothing else is."""
    table = PAGE.partition("## What is refused")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`([A-Z_]+)`", cell)}
    classes = "|".join(each.__name__ for each in Refused.__subclasses__())
    raised = {
        name
        for file in SOURCES
        for name in re.findall(rf'(?:{classes})\(\s*"([A-Z_]+)"', file.read_text(encoding="utf-8"))
    }
    assert named == (raised | COMPUTED) - OF_OTHER_CALLS
    assert raised >= OF_OTHER_CALLS
