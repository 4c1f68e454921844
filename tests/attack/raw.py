"""Bytes on the socket that are no conversation, and connections that come to nothing."""

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from tests.faults.sockets import reset_at_close, target_of

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, DATA, CONTINUATION, PING, RST_STREAM, WINDOW_UPDATE = 4, 1, 0, 9, 6, 3, 8
_END_HEADERS, _SECONDS = 4, 10.0


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0, says: int | None = None) -> bytes:
    """Return an HTTP/2 frame, which may say another length than it has."""
    size = len(payload) if says is None else says
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


HELLO: Final = PREFACE + frame(SETTINGS)


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """Yield a connection; it is reset at the end."""
    made = socket.socket(socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET)
    try:
        made.settimeout(_SECONDS)
        made.connect(target_of(address))
        if made.family == socket.AF_INET:
            reset_at_close(made)
        yield made
    finally:
        made.close()


def literal(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK's literal, not indexed; lengths below 127 only for the name."""
    size = len(value)
    if size < 127:
        length = bytes([size])
    else:
        length, rest = b"\x7f", size - 127
        while rest >= 128:
            length, rest = length + bytes([rest & 127 | 128]), rest >> 7
        length += bytes([rest])
    return b"\0" + bytes([len(name)]) + name + length + value


_CALL: Final = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/exitlab.v1.HypervisorService/StreamEvents"),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)


def garbage(number: int) -> bytes:
    """Return what is not HTTP/2 at all, or becomes something else after a while."""
    draw = random.Random(number)
    noise = draw.randbytes(draw.randrange(1, 3000))
    begins = (b"", PREFACE[: draw.randrange(len(PREFACE))], PREFACE, HELLO, b"GET / HTTP/1.1\r\n\r\n")
    return draw.choice(begins) + noise


def frames(number: int) -> bytes:
    """Return frames in no order, some with a length, a stream or a payload that cannot be."""
    draw = random.Random(number)
    sent = HELLO
    for _ in range(draw.randrange(1, 40)):
        payload = draw.choice([_CALL, draw.randbytes(draw.randrange(60)), b"\0\0\0\0\x05hello", bytes(8)])
        length = draw.choice([None, None, None, draw.randrange(1 << 14), (1 << 24) - 1])
        stream = draw.choice([0, 1, 3, 5, 2, (1 << 31) - 1])
        sent += frame(draw.randrange(12), payload, stream, draw.randrange(256), length)
    return sent


def huge_headers(number: int) -> bytes:
    """Return a call with megabytes of headers, in one value or in many."""
    value = b"x" * 16_000
    parts = [frame(HEADERS, _CALL, 1)]
    parts += [
        frame(CONTINUATION, literal(b"x-%d" % (part % (1 + number % 50)), value), 1) for part in range(128)
    ]
    return HELLO + b"".join(parts) + frame(CONTINUATION, literal(b"last", b"one"), 1, _END_HEADERS)


def quick_resets(number: int) -> bytes:
    """Return a thousand calls that are taken back at once."""
    del number
    return HELLO + b"".join(
        frame(HEADERS, _CALL, stream, _END_HEADERS) + frame(RST_STREAM, bytes(4), stream)
        for stream in range(1, 2001, 2)
    )


def huge_message(number: int) -> bytes:
    """Return a call whose message says that it has almost 4 GiB, and some of it."""
    head = b"\0" + struct.pack(">I", (1 << 32) - 1 - number)
    return HELLO + frame(HEADERS, _CALL, 1, _END_HEADERS) + frame(DATA, head + bytes(16_000), 1)


def pings(number: int) -> bytes:
    """Return thousands of pings."""
    return HELLO + frame(PING, struct.pack(">Q", number)) * 5000


KINDS: Final[tuple[Callable[[int], bytes], ...]] = (
    *(garbage, frames, huge_headers, quick_resets, huge_message, pings),
)


def send_raw(address: str, data: bytes) -> None:
    """Send bytes on a connection of their own, and leave; a server that hangs up first may."""
    with suppress(OSError), connected(address) as end:
        end.sendall(data)
        end.setblocking(False)
        end.recv(1 << 16)


def open_and_drop(address: str, connections: int) -> None:
    """Open connections and drop each, with nothing said or half of a hello."""
    for number in range(connections):
        with suppress(OSError), connected(address) as end:
            end.sendall(HELLO[: number % len(HELLO)])


@contextmanager
def many_calls(address: str, connections: int, calls: int) -> Iterator[None]:
    """Hold connections with many calls of StreamEvents each, that say nothing more."""
    opened = [frame(HEADERS, _CALL, 1 + 2 * number, _END_HEADERS) for number in range(calls)]
    with ExitStack() as stack:
        for _ in range(connections):
            end = stack.enter_context(connected(address))
            end.sendall(HELLO + b"".join(opened))
        yield


@contextmanager
def byte_by_byte(address: str, connections: int) -> Iterator[Callable[[], None]]:
    """Yield what sends the next byte of a call on each of some connections."""
    data, sent = HELLO + frame(HEADERS, _CALL, 1, _END_HEADERS), 0
    ends = [socket.create_connection(target_of(address), _SECONDS) for _ in range(connections)]

    def send_next() -> None:
        nonlocal sent
        for end in ends:
            with suppress(OSError):
                end.sendall(data[sent % len(data) : sent % len(data) + 1])
        sent += 1

    try:
        yield send_next
    finally:
        for end in ends:
            end.close()
