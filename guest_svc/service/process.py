"""One run's process, from outside: it is started, listened to, and stopped.

It has a pipe of ours as standard input, and so ends when the service does, however that ends.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from typing import Final, Protocol, Self

from exitlab.serving.logs import log
from guest_svc.service.frames import HEADER, LARGEST_PAYLOAD, Job, Kind, encode_frame

STOP_SECONDS: Final = 2.0  # from the request to stop to the end by force
SHOWN_LINES: Final = 50  # of what a process writes on standard error
SHOWN_CHARACTERS: Final = 500  # of a line
_PROGRAM: Final = (sys.executable, "-m", "guest_svc.service.child")


class RunProcess(Protocol):
    """What is asked of a run's process."""

    def frames(self) -> AsyncIterator[tuple[Kind, bytes]]:
        """Yield what it says, until it ends."""

    def stop(self) -> None:
        """Ask it to stop, and end it by force if it does not before long."""

    def kill(self) -> None:
        """End it by force."""

    async def ended(self) -> int:
        """Wait until it has ended; return its status, minus the number of a signal."""


class ChildProcess:
    """A process that runs ``child``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Take over a process that has just been started."""
        self._process = process
        self._errors = asyncio.create_task(self._log_errors())
        self._by_force: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, job: Job) -> Self:
        """Start a process and give it its job."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_PROGRAM,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # Ctrl-C is the service's to handle
        )
        assert process.stdin is not None
        process.stdin.write(encode_frame(Kind.JOB, job.encode()))
        return cls(process)

    async def frames(self) -> AsyncIterator[tuple[Kind, bytes]]:
        """Yield what it says, until it ends; a last frame that is cut short is none."""
        output = self._process.stdout
        assert output is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, size = HEADER.unpack(await output.readexactly(HEADER.size))
                if size > LARGEST_PAYLOAD:
                    log.error("a run says too much", bytes=size)
                    self.kill()
                    return
                yield Kind(kind), await output.readexactly(size)

    def stop(self) -> None:
        """Ask it to stop, and end it by force if it does not before long."""
        self._signal(signal.SIGTERM)
        if self._by_force is None:
            self._by_force = asyncio.get_running_loop().call_later(STOP_SECONDS, self.kill)

    def kill(self) -> None:
        """End it by force."""
        self._signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait until it has ended; return its status, minus the number of a signal."""
        status = await self._process.wait()
        if self._by_force is not None:
            self._by_force.cancel()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._errors
        return status

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._process.send_signal(number)

    async def _log_errors(self) -> None:
        """Log the first lines that it writes, and how many more there were."""
        errors = self._process.stderr
        assert errors is not None
        count, begun = 0, b""
        while data := await errors.read(1 << 16):
            *lines, begun = (begun + data).split(b"\n")
            begun = begun[:SHOWN_CHARACTERS]
            for line in lines:
                count += 1
                _log_line(line, count)
        if begun:
            count += 1
            _log_line(begun, count)
        if count > SHOWN_LINES:
            log.warning("the run wrote more lines", lines=count - SHOWN_LINES)


def _log_line(line: bytes, number: int) -> None:
    if number <= SHOWN_LINES:
        log.warning("the run wrote", line=line[:SHOWN_CHARACTERS].decode(errors="backslashreplace"))
