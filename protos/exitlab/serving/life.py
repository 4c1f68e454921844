"""The life of a server's process: serve, drain at a signal, stop at a second.

The end of a stream proves nothing, and stopping a gRPC server does not drain a stream that stays
open. So a drain is the service's own work: it tells everybody, and only then does the server stop.
"""

import asyncio
import signal
from collections.abc import Callable
from typing import Final, Protocol

import grpc

from exitlab.command_line import NOT_FINISHED

CLOSING_SECONDS: Final = 0.5  # for the last answers to get out
MIN_PING_INTERVAL_MS: Final = 10_000  # what a client's keepalive may use; gRPC's default is 5 minutes
KEEPALIVE_MS: Final = 30_000


class Server(Protocol):
    """What is served."""

    async def start(self) -> str:
        """Bind, serve, and return the address.

        Raises: CannotServe.
        """

    async def drain(self) -> bool:
        """End all work in order, and stop; tell whether all of it could be."""

    async def stop(self) -> None:
        """Stop at once."""


def grpc_server(concurrent_calls: int, max_message_bytes: int) -> grpc.aio.Server:
    """Return a server that shares its port with no other, and notices peers that vanish."""
    return grpc.aio.server(
        maximum_concurrent_rpcs=concurrent_calls,
        options=[
            # Without this, a second server silently shares the port of the first.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_message_bytes),
            # A peer that vanished without a word keeps nothing for long.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ],
    )


async def serve_until_signals(make: Callable[[], Server], on_listening: Callable[[str], None]) -> int:
    """Serve until a signal and return the exit code: 0 once drained, 3 if not in order, 128 + a second.

    A signal before it serves ends it at once.

    Raises: CannotServe.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = make()
    starting, first = asyncio.create_task(server.start()), asyncio.create_task(signals.get())
    await asyncio.wait({starting, first}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await server.stop()
        return 128 + first.result()
    on_listening(starting.result())
    await first
    draining = asyncio.create_task(server.drain())
    second = asyncio.create_task(signals.get())
    await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        second.cancel()
        return 0 if await draining else NOT_FINISHED
    await server.stop()
    return 128 + second.result()
