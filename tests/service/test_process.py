"""A run's process from outside, played by small programs; and the real one, whose service goes."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exitlab.v1 import guest_pb2, policy_pb2
from guest_svc.service import process as module
from guest_svc.service.frames import LARGEST_PAYLOAD, Job, Kind, encode_frame
from guest_svc.service.process import ChildProcess

SECONDS = 20.0
JOB = Job(guest_pb2.RunConfig(workload="idle"), "unix:/nowhere")
READ_JOB = """
import os, signal, sys, time
from guest_svc.service.frames import HEADER, Job, Kind, encode_frame
size = HEADER.unpack(os.read(0, HEADER.size))[1]
job = Job.decode(os.read(0, size))
"""


def played(monkeypatch: pytest.MonkeyPatch, program: str, *, stops: bool = False) -> tuple[Any, int, Any]:
    """Play a process; return its frames, its status and what was logged."""
    monkeypatch.setattr(module, "_PROGRAM", (sys.executable, "-c", READ_JOB + program))

    async def play() -> tuple[Any, int]:
        process = await ChildProcess.start(JOB)
        frames = []
        async for frame in process.frames():
            frames.append(frame)
            if stops:
                process.stop()
        return frames, await process.ended()

    with capture_logs() as logs:
        frames, status = asyncio.run(asyncio.wait_for(play(), SECONDS))
    return frames, status, logs


def test_it_gets_its_job_and_says_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job arrives whole, and frames come as they were said, whatever pieces they are written in."""
    program = """
for byte in encode_frame(Kind.CUT, job.config.workload.encode()) + encode_frame(Kind.DONE, b""):
    os.write(1, bytes([byte]))
raise SystemExit(3)
"""
    assert played(monkeypatch, program) == ([(Kind.CUT, b"idle"), (Kind.DONE, b"")], 3, [])


@pytest.mark.parametrize("last", [b"", encode_frame(Kind.DONE, b"12345")[:-1], b"\1\2"])
def test_a_frame_that_is_cut_short_is_none(monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    """What a process that dies has half said is left out."""
    program = f'os.write(1, encode_frame(Kind.BEGUN, b"x") + {last!r}); os.kill(os.getpid(), 9)'
    assert played(monkeypatch, program) == ([(Kind.BEGUN, b"x")], -9, [])


def test_a_process_that_says_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read of a frame that is larger than any may be."""
    program = f"os.write(1, HEADER.pack(Kind.DONE, {LARGEST_PAYLOAD + 1})); time.sleep({SECONDS})"
    frames, status, logs = played(monkeypatch, program)
    assert (frames, status) == ([], -9)
    assert [line["event"] for line in logs] == ["a run says too much"]


def test_one_that_does_not_stop_is_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM is asked first; what ignores it gets SIGKILL."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.0)
    program = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, encode_frame(Kind.BEGUN, b""))
time.sleep({SECONDS})
"""
    assert played(monkeypatch, program, stops=True) == ([(Kind.BEGUN, b"")], -9, [])


def test_one_that_stops_is_not_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends it in its own way, which takes no longer than it needs."""
    program = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
os.write(1, encode_frame(Kind.BEGUN, b""))
time.sleep({SECONDS})
"""
    assert played(monkeypatch, program, stops=True) == ([(Kind.BEGUN, b"")], 7, [])


def test_what_it_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies, and another of its own that holds its pipes: the run has ended all the same."""
    program = f"""
import subprocess
subprocess.Popen(["sleep", "{SECONDS * 10:g}"])
os.write(1, encode_frame(Kind.BEGUN, b""))
os.kill(os.getpid(), 9)
"""
    assert played(monkeypatch, program) == ([(Kind.BEGUN, b"")], -9, [])


def test_what_it_writes_besides_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lines, none of them long, and how many more there were; also one that does not end."""
    program = """
sys.stderr.write("x" * 100_000 + "\\n")
sys.stderr.write("line\\n" * 70 + "the last")
"""
    _, status, logs = played(monkeypatch, program)
    assert status == 0
    assert [line["event"] for line in logs] == ["the run wrote"] * 50 + ["the run wrote more lines"]
    assert {len(line["line"]) for line in logs[:-1]} == {500, 4}
    assert logs[-1]["lines"] == 22


def test_it_ends_with_the_service(tmp_path: Path) -> None:
    """The real process, waiting for a hypervisor that does not answer, ends when its pipe does."""
    lanes = [policy_pb2.Lane(policy_name="ignore", vendor=policy_pb2.VENDOR_VMX)]
    job = Job(guest_pb2.RunConfig(workload="idle", lanes=lanes), f"unix:{tmp_path}/s")
    program = (sys.executable, "-m", "guest_svc.service.child")
    pipe = subprocess.PIPE
    with (
        socket.socket(socket.AF_UNIX) as mute,
        subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe) as process,
    ):
        mute.bind(f"{tmp_path}/s")
        mute.listen()
        assert process.stdin is not None
        process.stdin.write(encode_frame(Kind.JOB, job.encode()))
        process.stdin.flush()
        with mute.accept()[0]:  # it has connected, and waits
            process.stdin.close()
            assert process.wait(SECONDS) == 0
