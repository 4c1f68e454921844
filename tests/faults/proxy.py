"""A proxy between a client and a server that can be told to fail, for TCP and for unix sockets.

It runs in a thread of the test's process::

    with FaultProxy(server_address) as proxy:
        fault = proxy.add(LimitData(bytes=100), "upstream", only=[0])
        ...  # a client that connects to proxy.address
        assert fault.cuts == [0]

Addresses are gRPC's: ``host:port`` and ``unix:PATH``. Connections are numbered from 0, in the order in
which they were accepted. ``proxy.passed("upstream")`` after a clean run tells at how many places a
connection can be cut.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Container, Coroutine
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tests.faults.sockets import (
    READ_BYTES,
    UNIX,
    bound,
    end_data,
    new_socket,
    read_away,
    reset_at_close,
    send_at_once,
    target_of,
)
from tests.faults.toxics import Chunk, Clock, Cut, Fault, Link, Send, Stream, Stub, Toxic

SECONDS: Final = 60.0  # nothing here takes this long unless it hangs
HELD_CHUNKS: Final = 16  # of a link; then its sender feels that nothing is taken
_Result = TypeVar("_Result")


class Connection:
    """One connection through the proxy."""

    def __init__(self, number: int) -> None:
        """Start with nothing carried."""
        self.number = number
        self.upstream = Link(number, "upstream")
        self.downstream = Link(number, "downstream")
        self.is_open = True


class FaultProxy:
    """A proxy for the server at ``upstream``; it listens while it is up."""

    def __init__(
        self, upstream: str, listen: str = "127.0.0.1:0", *, seed: int = 0, clock: Clock | None = None
    ) -> None:
        """Choose the address; where toxics draw numbers, they are those of ``seed``."""
        self.upstream = upstream  # may be changed: it is looked at for every connection
        self.connections: list[Connection] = []
        self.unreached = 0  # connections closed at once, as the server was not there
        self._seed = seed
        self._clock = clock or Clock()
        self._faults: list[Fault] = []
        self._added = 0
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        # Never listens: it keeps the port ours while the proxy is down.
        self._keeper: socket.socket | None = None
        self.address = listen
        if not listen.startswith(UNIX):
            self._keeper = bound(listen)
            self.address = "{}:{}".format(*self._keeper.getsockname())
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._keep_error)
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        """Start and listen."""
        self._thread.start()
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut what is open, and end; a mistake of the proxy itself is raised here."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()
        if self._keeper is not None:
            self._keeper.close()
        else:
            os.unlink(self.address.removeprefix(UNIX))
        if self._errors and error is None:
            raise self._errors[0]

    def add(
        self, toxic: Toxic, stream: Stream = "downstream", *, only: Container[int] | None = None
    ) -> Fault:
        """Add a toxic to a direction, behind those that are there; what comes from now on meets it.

        ``only`` holds the numbers of the connections that it is for: with ``[0]``, the first is cut and
        whoever comes again goes on.
        """

        async def added() -> Fault:
            fault = Fault(toxic, stream, only, self._added, self._seed, self._clock, self._note)
            self._added += 1
            self._faults.append(fault)
            return fault

        return self._in_loop(added())

    def remove(self, fault: Fault) -> None:
        """Take a toxic away; what it held goes on."""

        async def removed() -> None:
            self._faults.remove(fault)
            fault.removed.set()

        self._in_loop(removed())

    def down(self) -> int:
        """Refuse connections, cut the open ones, and return how many were cut."""
        return self._in_loop(self._down())

    def up(self) -> None:
        """Listen, again at the same address."""
        self._in_loop(self._up())

    def received(self, stream: Stream) -> int:
        """Return how many bytes have come in a direction, over all connections."""
        return sum(link.received for link in self._links(stream))

    def passed(self, stream: Stream) -> int:
        """Return how many bytes have gone on in a direction, over all connections."""
        return sum(link.passed for link in self._links(stream))

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something is so of the proxy or of its faults.

        Raises: TimeoutError, only if it would hang.
        """
        with self._changed:
            if not self._changed.wait_for(is_true, SECONDS):
                raise TimeoutError("what is waited for has not happened")

    def _links(self, stream: Stream) -> list[Link]:
        return [each.upstream if stream == "upstream" else each.downstream for each in list(self.connections)]

    def _in_loop(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def _keep_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._errors.append(context.get("exception") or RuntimeError(context["message"]))

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _up(self) -> None:
        if self._listener is None:
            if self.address.startswith(UNIX):
                with suppress(FileNotFoundError):  # what the last listener left
                    os.unlink(self.address.removeprefix(UNIX))
            self._listener = bound(self.address)
            self._listener.listen(128)
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _down(self) -> int:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        cut = list(self._carrying)
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)
        return len(cut)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        client.setblocking(False)
        connection = Connection(len(self.connections))
        self.connections.append(connection)
        task = self._loop.create_task(self._carry(connection, client))
        self._carrying.add(task)

        def ended(_: object) -> None:  # also of a task that was cancelled before it began
            self._carrying.discard(task)
            client.close()
            connection.is_open = False
            self._note()

        task.add_done_callback(ended)
        self._note()

    async def _carry(self, connection: Connection, client: socket.socket) -> None:
        """Carry a connection until it ends."""
        server = new_socket(self.upstream)
        try:
            try:
                await asyncio.get_running_loop().sock_connect(server, target_of(self.upstream))
            except OSError:
                self.unreached += 1
                return
            send_at_once(client)
            send_at_once(server)
            await self._relay(connection, client, server)
        except Exception as error:
            self._errors.append(error)
        finally:
            server.close()

    async def _relay(self, connection: Connection, client: socket.socket, server: socket.socket) -> None:
        ways = ((connection.upstream, client, server), (connection.downstream, server, client))
        is_cut = is_reset = False
        try:
            async with asyncio.TaskGroup() as tasks:
                for link, source, target in ways:
                    held: asyncio.Queue[Chunk | None] = asyncio.Queue(HELD_CHUNKS)
                    tasks.create_task(self._read(link, source, held))
                    tasks.create_task(self._write(link, held, target))
        except* Cut as cuts:
            is_cut = True
            is_reset = any(isinstance(cut, Cut) and cut.is_reset for cut in cuts.exceptions)
        except* OSError:  # one end has reset it, so the other is to see the same
            is_reset = True
        if is_reset:
            for end in (client, server):
                reset_at_close(end)
        elif is_cut:
            # A socket closed with unread data resets, and what was passed might be lost with it.
            for end in (client, server):
                end_data(end)
            await asyncio.gather(read_away(client), read_away(server))

    async def _read(self, link: Link, source: socket.socket, held: "asyncio.Queue[Chunk | None]") -> None:
        while data := await asyncio.get_running_loop().sock_recv(source, READ_BYTES):
            chunk = Chunk(data, self._clock.now())
            link.received += len(data)
            self._note()
            await held.put(chunk)
        await held.put(None)

    async def _write(self, link: Link, held: "asyncio.Queue[Chunk | None]", target: socket.socket) -> None:
        async def write(chunk: Chunk) -> None:
            await asyncio.get_running_loop().sock_sendall(target, chunk.data)
            link.passed += len(chunk.data)
            self._note()

        stubs: dict[Fault, Stub] = {}

        def current() -> list[Stub]:
            faults = [fault for fault in self._faults if fault.is_for(link)]
            for fault in faults:
                if fault not in stubs:
                    stubs[fault] = Stub(fault, link)
            return [stubs[fault] for fault in faults]

        while (chunk := await held.get()) is not None:
            send: Send = write
            for stub in reversed(current()):
                send = partial(stub.pass_on, send)
            await send(chunk)
        for stub in current():
            await stub.fault.toxic.close(stub)
        end_data(target)
