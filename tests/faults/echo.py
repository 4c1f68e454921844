"""A plain echo server, and time that a test moves: what the proxy's own tests need."""

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from tests.faults.proxy import FaultProxy
from tests.faults.sockets import UNIX, bound, new_socket, target_of
from tests.faults.toxics import Clock

SECONDS: Final = 60.0  # nothing here takes this long unless it hangs
DATA: Final = bytes(range(256)) * 400


class ManualClock(Clock):
    """Time that stands still until a test moves it, or that jumps to whatever is waited for."""

    def __init__(self, *, jumps: bool = False) -> None:
        """Start at 0."""
        self.deadlines: list[float] = []  # waited for, in order
        self._jumps = jumps
        self._now = 0.0
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        """Return the time in seconds."""
        return self._now

    async def sleep_until(self, deadline: float) -> None:
        """Wait until a test has moved the time there."""
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._lock:
            self.deadlines.append(deadline)
            if self._jumps:
                self._now = max(self._now, deadline)
            if deadline <= self._now:
                return
            self._sleepers.append((deadline, lambda: loop.call_soon_threadsafe(woken.set)))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        with self._lock:
            self._now += seconds
            due = [wake for deadline, wake in self._sleepers if deadline <= self._now]
            self._sleepers = [each for each in self._sleepers if each[0] > self._now]
        for wake in due:
            wake()


@dataclass
class Heard:
    """What the server saw of one connection."""

    data: bytes = b""
    ended: Literal["", "closed", "reset"] = ""


class EchoServer:
    """Sends back what comes, and keeps what it saw of each connection."""

    def __init__(self, listen: str) -> None:
        """Listen at ``127.0.0.1:0`` or ``unix:PATH``."""
        self.heard: list[Heard] = []
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._listener = bound(listen)
        self._listener.settimeout(None)
        self._listener.listen()
        name = self._listener.getsockname()
        self.address = listen if listen.startswith(UNIX) else "{}:{}".format(*name)

    def __enter__(self) -> Self:
        """Start to accept."""
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; its connections have to have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def end_of(self, number: int) -> Heard:
        """Wait until a connection has ended, counted from 0, and return what was heard of it."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.heard) > number and self.heard[number].ended != "", SECONDS
            )
        return self.heard[number]

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            heard = Heard()
            self.heard.append(heard)
            self._start(lambda end=end, heard=heard: self._echo(end, heard))  # type: ignore[misc]  # bound now

    def _echo(self, end: socket.socket, heard: Heard) -> None:
        with end:
            try:
                while data := end.recv(1 << 16):
                    heard.data += data
                    self._note()
                    end.sendall(data)
                heard.ended = "closed"
            except OSError:
                heard.ended = "reset"
        self._note()

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()


Start = Callable[..., tuple[EchoServer, FaultProxy]]


def connect(address: str) -> socket.socket:
    """Return a connection whose calls do not hang for ever."""
    end = new_socket(address)
    end.settimeout(SECONDS)
    try:
        end.connect(target_of(address))
    except OSError:
        end.close()
        raise
    return end


def read_exactly(end: socket.socket, count: int) -> bytes:
    """Return the next ``count`` bytes, or what comes before the end."""
    data = b""
    while len(data) < count and (more := end.recv(count - len(data))):
        data += more
    return data


def echoed(address: str, data: bytes) -> bytes:
    """Return what comes back of data sent over a connection of its own, up to the end."""
    with connect(address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_exactly(client, len(data) + 1)
