"""What a run or a list starts: none of it holds up the service, and none of ours outlives it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exitlab.lifeline import Lifeline
from exitlab.serving.refusals import OurFault, TimedOut, Unavailable
from guest_svc.service import listing
from guest_svc.service import process as module
from guest_svc.service.frames import Kind
from guest_svc.service.listing import Listing
from guest_svc.service.private import PrivateHypervisor
from tests.service.test_process import SECONDS, played

SLEEPS = """
import subprocess, sys, time
print("pid", subprocess.Popen(["sleep", "600"]).pid, file=sys.stderr, flush=True)
time.sleep(600)
"""


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Path]:
    """Return where a process writes its number that nobody else ends."""
    path = tmp_path / "pid"
    yield path
    os.kill(int(path.read_text()), signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Wait for the end of a process that is no child of ours."""
    try:
        ending = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(ending)
    try:
        return bool(poll.poll(SECONDS * 1000))
    finally:
        os.close(ending)


def test_a_run_ends_though_it_left_a_process_behind(monkeypatch: pytest.MonkeyPatch, left: Path) -> None:
    """One in a session of its own holds all its pipes: what the run said counts, and it has ended."""
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.1)
    program = f"""
import subprocess
process = subprocess.Popen(["sleep", "600"], start_new_session=True)
open({str(left)!r}, "w").write(str(process.pid))
os.write(1, encode_frame(Kind.DONE, b"result"))
sys.stderr.write("the last")
"""
    frames, status, logs = played(monkeypatch, program)
    assert (frames, status) == ([(Kind.DONE, b"result")], 0)
    said = {line["event"]: line.get("line") for line in logs}
    assert said == {
        "the run wrote": "the last",
        "the run has left a process behind that holds its output": None,
    }


@pytest.mark.parametrize(
    "command",
    [
        ("guest_svc", "workloads", "--output", "json", "--parent-pipe", "{pipe}"),
        ("guest_svc.check.elsewhere", '{{"text": "slow.py:Slow", "pipe": {pipe}}}'),
    ],
)
def test_what_imports_others_code_ends_with_its_parent(command: tuple[str, ...], tmp_path: Path) -> None:
    """A package that never comes back from its import, and what it has started, end when the parent does."""
    info = tmp_path / "slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[exitlab.workloads]\nslow = slow:Slow\n")
    (tmp_path / "slow.py").write_text(SLEEPS)
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    lifeline = Lifeline()
    with lifeline as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", *(word.format(pipe=pipe) for word in command)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            pass_fds=(pipe,),
            start_new_session=True,
            text=True,
        )
    with process:
        assert process.stderr is not None
        word, pid = process.stderr.readline().split()
        assert word == "pid"
        lifeline.cut()
        assert process.wait(SECONDS) == -signal.SIGKILL
        assert has_ended(int(pid))


def test_a_list_that_does_not_come_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has started is ended with it, though it does not listen."""
    monkeypatch.setattr(listing, "SECONDS", 0.0)
    monkeypatch.setattr(listing, "_COMMAND", (sys.executable, "-c", SLEEPS))
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def starting(*command: str, **settings: Any) -> asyncio.subprocess.Process:
        started.append(await start(*command, **settings))
        return started[-1]

    async def play() -> None:
        with pytest.raises(TimedOut):
            await Listing().workloads()
        (process,) = started
        assert process.returncode == -signal.SIGKILL
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.wait_for(asyncio.gather(process.stdout.read(), process.stderr.read()), SECONDS)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starting)
    asyncio.run(play())


def test_what_is_no_list_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list with something behind it is a fault of the service's, and its log says what it was."""
    monkeypatch.setattr(listing, "_COMMAND", (sys.executable, "-c", "print('{} bye')"))
    with capture_logs() as logs, pytest.raises(OurFault):
        asyncio.run(Listing().workloads())
    assert [line["said"] for line in logs] == ["{} bye\n"]


def test_a_private_hypervisor_ends_once() -> None:
    """Ended twice, as when serving fails after a drain, it closes nobody else's descriptor."""

    async def play() -> PrivateHypervisor:
        private = PrivateHypervisor()
        await private.close()
        with pytest.raises(Unavailable, match="the service is about to stop"):
            await private.address()
        return private

    private = asyncio.run(play())
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    private.end()
    for descriptor in others:
        os.close(descriptor)


def test_another_private_hypervisor_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as such, and what was there before is ended once."""

    def none() -> None:
        raise OSError(11, "no more processes")

    async def play() -> PrivateHypervisor:
        private = PrivateHypervisor()
        private.end()
        monkeypatch.setattr("guest_svc.service.private._start", none)
        with (
            capture_logs(),
            pytest.raises(Unavailable, match="no process for a hypervisor: no more processes"),
        ):
            await private.address()
        return private

    asyncio.run(play()).end()
