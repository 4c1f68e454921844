"""Sockets of addresses as gRPC writes them: ``host:port`` and ``unix:PATH``."""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Final

UNIX: Final = "unix:"
READ_BYTES: Final = 1 << 16


def new_socket(address: str) -> socket.socket:
    """Return a socket of an address's family, for an event loop."""
    made = socket.socket(socket.AF_UNIX if address.startswith(UNIX) else socket.AF_INET)
    made.setblocking(False)
    return made


def target_of(address: str) -> Any:
    """Return an address as sockets take it."""
    if address.startswith(UNIX):
        return address.removeprefix(UNIX)
    host, _, port = address.rpartition(":")
    return host, int(port)


def bound(address: str) -> socket.socket:
    """Return a socket that is bound and does not listen yet."""
    made = new_socket(address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(target_of(address))
    except OSError:
        made.close()
        raise
    return made


def send_at_once(end: socket.socket) -> None:
    """Let every piece go as it is, where sockets would collect them."""
    if end.family == socket.AF_INET:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def end_data(end: socket.socket) -> None:
    """Say that nothing more will be sent; an end that is gone need not know."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_WR)


def reset_at_close(end: socket.socket) -> None:
    """Have a reset sent when a socket is closed; a unix socket knows none."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read_away(source: socket.socket) -> None:
    """Read what comes, to the end, for nobody."""
    with suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(source, READ_BYTES):
            pass
