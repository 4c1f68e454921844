"""One run's process, from outside: it is started, listened to, and stopped.

It has a pipe of ours as standard input, and so ends when the service does, however that ends.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Final, Protocol, Self

from exitlab.serving.logs import log
from guest_svc.service.frames import HEADER, LARGEST_PAYLOAD, Job, Kind, encode_frame

STOP_SECONDS: Final = 2.0  # from the request to stop to the end by force
LINGER_SECONDS: Final = 1.0  # from a process's end to that of its output, should others hold it
SHOWN_LINES: Final = 50  # of what a process writes on standard error
SHOWN_CHARACTERS: Final = 500  # of a line
_BUFFERED_BYTES: Final = 1 << 16  # of a pipe
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


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """The pipes of a process, and whether it has exited, which need not end them."""

    def __init__(self) -> None:
        super().__init__(limit=_BUFFERED_BYTES, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        """Take note that it has."""
        super().process_exited()
        self.exited.set()


class ChildProcess:
    """A process that runs ``child``."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        exited: asyncio.Event,
        transport: asyncio.SubprocessTransport,
    ) -> None:
        """Take over a process that has just been started."""
        self._process = process
        self._exited = exited
        self._transport = transport
        self._ending = asyncio.create_task(self._wait())
        self._errors = asyncio.create_task(self._log_errors())
        self._by_force: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, job: Job) -> Self:
        """Start a process and give it its job."""
        pipe = asyncio.subprocess.PIPE
        loop = asyncio.get_running_loop()
        transport, streams = await loop.subprocess_exec(
            _Streams,
            *_PROGRAM,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,  # Ctrl-C is the service's to handle; all that a run starts is one group
        )
        process = asyncio.subprocess.Process(transport, streams, loop)
        assert process.stdin is not None
        process.stdin.write(encode_frame(Kind.JOB, job.encode()))
        return cls(process, streams.exited, transport)

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
                    while await output.read(1 << 16):  # all that was said before it heard
                        pass
                    return
                yield Kind(kind), await output.readexactly(size)

    def stop(self) -> None:
        """Ask it to stop, and end it by force if it does not before long."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        if self._by_force is None:
            self._by_force = asyncio.get_running_loop().call_later(STOP_SECONDS, self.kill)

    def kill(self) -> None:
        """End it by force, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> int:
        """Wait until it has ended; return its status, minus the number of a signal."""
        status = await self._ending
        await self._errors
        return status

    async def _wait(self) -> int:
        """Wait for its end, and leave nothing of it: what it has started may hold its pipes.

        What has left its group is not ours to end, and is not waited for either.
        """
        await self._exited.wait()
        status = self._process.returncode
        assert status is not None
        if self._by_force is not None:
            self._by_force.cancel()
        self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._let_go)
        return status

    def _let_go(self) -> None:
        """Read no more of pipes that somebody else still holds; what it said itself is read by now."""
        if not self._transport.is_closing():
            log.warning("the run has left a process behind that holds its output")
            self._transport.close()

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
