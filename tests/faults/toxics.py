"""What can be wrong with a connection, in toxiproxy's names and units.

A toxic is what a test asks for. A fault is a toxic that was added to one direction of a proxy: it counts
what it did, so that a test can show that its fault has happened.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, Literal, NoReturn

Stream = Literal["upstream", "downstream"]  # client to server, server to client
STREAMS: Final[tuple[Stream, ...]] = ("upstream", "downstream")
MS: Final = 1e-3
US: Final = 1e-6


@dataclass(frozen=True)
class Chunk:
    """Bytes on their way, and when they came, in seconds of the proxy's clock."""

    data: bytes
    arrived_at: float


Send = Callable[[Chunk], Awaitable[None]]


class Clock:
    """The time that toxics wait for; a test may bring one of its own."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    async def sleep_until(self, deadline: float) -> None:
        """Wait until a time has come."""
        await asyncio.sleep(deadline - self.now())


class Cut(Exception):
    """A toxic ends the connection: in order, or with a reset."""

    def __init__(self, *, is_reset: bool) -> None:
        super().__init__()
        self.is_reset = is_reset


@dataclass(eq=False)
class Link:
    """One direction of one connection, counted in bytes."""

    connection: int
    stream: Stream
    received: int = 0  # have come from the one end
    passed: int = 0  # have gone to the other


class Toxic:
    """What is wrong; unless a toxic says otherwise, data and the end pass as they come."""

    async def pass_on(self, chunk: Chunk, send: Send, stub: "Stub") -> None:
        """Send a chunk on, as the toxic lets it."""
        del stub
        await send(chunk)

    async def close(self, stub: "Stub") -> None:
        """See to the end of the data, which is passed on afterwards."""


@dataclass(eq=False)
class Fault:
    """A toxic that was added, and what it has done so far."""

    toxic: Toxic
    stream: Stream
    only: Container[int] | None  # numbers of the connections that it is for; None: all
    number: int
    seed: int
    clock: Clock
    on_change: Callable[[], None]
    chunks: int = 0  # it had in hand
    pauses: int = 0
    paused_seconds: float = 0.0  # it was to wait in all; a fault that is removed waits no longer
    cuts: list[int] = field(default_factory=list)  # the connections that it ended
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    def is_for(self, link: Link) -> bool:
        """Return whether the fault is on a link."""
        return link.stream == self.stream and (self.only is None or link.connection in self.only)


class Stub:
    """One fault at one link: what a toxic can do there, and what it keeps."""

    def __init__(self, fault: Fault, link: Link) -> None:
        self.fault = fault
        self.link = link
        # Whatever happens on other connections, a link draws the same numbers.
        self.random = Random(f"{fault.seed} {fault.number} {link.connection}")
        self.free_at = 0.0  # when a line of limited bandwidth is free again

    async def pass_on(self, send: Send, chunk: Chunk) -> None:
        """Send a chunk on through the toxic, unless it was removed."""
        if self.fault.removed.is_set():
            await send(chunk)
            return
        self.fault.chunks += 1
        self.fault.on_change()
        await self.fault.toxic.pass_on(chunk, send, self)

    async def pause(self, seconds: float) -> None:
        """Wait; see ``pause_until``."""
        await self.pause_until(self.fault.clock.now() + seconds)

    async def pause_until(self, deadline: float) -> None:
        """Wait until a time has come, or the fault is removed."""
        seconds = deadline - self.fault.clock.now()
        if seconds <= 0 or self.fault.removed.is_set():
            return
        self.fault.pauses += 1
        self.fault.paused_seconds += seconds
        self.fault.on_change()
        waiting = {
            asyncio.ensure_future(self.fault.clock.sleep_until(deadline)),
            asyncio.ensure_future(self.fault.removed.wait()),
        }
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def hold(self) -> None:
        """Wait until the fault is removed."""
        self.fault.pauses += 1
        self.fault.on_change()
        await self.fault.removed.wait()

    def cut(self, *, is_reset: bool = False) -> NoReturn:
        """End the connection."""
        self.fault.cuts.append(self.link.connection)
        self.fault.on_change()
        raise Cut(is_reset=is_reset)


@dataclass(frozen=True)
class Latency(Toxic):
    """Delays all data by ``latency`` plus or minus ``jitter``, in ms. What is under way does not queue up."""

    latency: float
    jitter: float = 0

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Send a chunk on when its time has come."""
        delay = self.latency + stub.random.uniform(-self.jitter, self.jitter)
        due = chunk.arrived_at + max(delay, 0) * MS
        await stub.pause_until(due)
        await send(replace(chunk, arrived_at=due))


@dataclass(frozen=True)
class Bandwidth(Toxic):
    """Passes at most ``rate`` kB a second, in pieces of a tenth of a second."""

    rate: float

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Send a chunk on at the line's rate; what came before has the line first."""
        step = max(1, int(self.rate * 100))
        for start in range(0, len(chunk.data), step):
            piece = chunk.data[start : start + step]
            stub.free_at = max(stub.free_at, chunk.arrived_at) + len(piece) * MS / self.rate
            await stub.pause_until(stub.free_at)
            await send(Chunk(piece, stub.free_at))


@dataclass(frozen=True)
class SlowClose(Toxic):
    """Delays the end of the data by ``delay`` ms."""

    delay: float

    async def close(self, stub: Stub) -> None:
        """Wait before the end is passed on."""
        await stub.pause(self.delay * MS)


@dataclass(frozen=True)
class Timeout(Toxic):
    """Holds all data, and ends the connection ``timeout`` ms after the first of it; never if that is 0.

    What was held goes on when the toxic is removed: toxiproxy would drop it and close, which is a cut.
    The end of the data waits behind it.
    """

    timeout: float

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Hold a chunk."""
        if self.timeout:
            await stub.pause(self.timeout * MS)
        else:
            await stub.hold()
        if not stub.fault.removed.is_set():
            stub.cut()
        await send(chunk)


@dataclass(frozen=True)
class ResetPeer(Toxic):
    """Resets the connection ``timeout`` ms after the first data, which is lost."""

    timeout: float = 0

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Reset the connection."""
        await stub.pause(self.timeout * MS)
        if not stub.fault.removed.is_set():
            stub.cut(is_reset=True)
        await send(chunk)


@dataclass(frozen=True)
class Slicer(Toxic):
    """Slices data into ``average_size`` plus or minus ``size_variation`` bytes, ``delay`` µs after each."""

    average_size: int
    size_variation: int = 0
    delay: float = 0

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Send a chunk on in slices."""
        start = 0
        while start < len(chunk.data):
            varied = stub.random.randint(-self.size_variation, self.size_variation)
            end = start + max(1, self.average_size + varied)
            await send(replace(chunk, data=chunk.data[start:end]))
            await stub.pause(self.delay * US)
            start = end


@dataclass(frozen=True)
class LimitData(Toxic):
    """Ends a connection in order once ``bytes`` have passed; with 0, when there are data."""

    bytes: int

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Send on what is within the limit, and end the connection at it."""
        within = chunk.data[: max(0, self.bytes - stub.link.passed)]
        if within:
            await send(replace(chunk, data=within))
        if stub.link.passed >= self.bytes:
            stub.cut()
