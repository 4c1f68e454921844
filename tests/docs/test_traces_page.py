"""What the page on traces shows is so."""

import gzip
import random
import re
import subprocess
import sys
from pathlib import Path

from guest_svc.traces.exits.events import BURST
from tests.traces.writer import lines, random_records

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")


def test_the_commands_run(tmp_path: Path) -> None:
    """Each command of ours exits with 0 and prints something, beside a trace of the page's name."""
    text = lines(random_records(random.Random(1), 300), "raw")
    (tmp_path / "trace.txt").write_bytes(text)
    (tmp_path / "trace.txt.gz").write_bytes(gzip.compress(text))
    shown = re.findall(r"^guest-svc (.*)$", PAGE, re.MULTILINE)
    assert len(shown) == 3
    for arguments in shown:
        command = [sys.executable, "-m", "guest_svc", *arguments.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout != "") == (0, True), done.stderr


def test_the_burst_is_the_one_that_is_used() -> None:
    """The order in which accesses are assumed."""
    said = " ".join(PAGE.split())
    assert "read DR0 to DR3, DR6, DR7; write DR7, DR0 to DR3, DR6, DR7" in said
    order = [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
        (6, 1),
        (7, 1),
        (7, 0),
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (6, 0),
        (7, 0),
    ]
    assert [(register, int(is_read)) for register, is_read in BURST] == order
