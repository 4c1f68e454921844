"""The sending end of a raw unix socket: the same bytes as over gRPC, and nothing else."""

import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from exitlab.v1 import hypervisor_pb2, report_pb2
from guest_svc.window import WINDOW_BLOCKS
from tests.bench.pair import Process

LENGTH: Final = struct.Struct("<I")
_BUFFER_BYTES: Final = 1 << 22


def buffered(connection: socket.socket) -> socket.socket:
    """Give a connection the largest buffers that the system allows, up to 4 MiB."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    return connection


def receiver(path: Path, config: hypervisor_pb2.SessionConfig | None = None) -> Process:
    """Start the receiving process; with a config it decodes and feeds an engine."""
    given = [] if config is None else [config.SerializeToString().hex()]
    return Process([sys.executable, "-m", "tests.bench.raw_receiver", str(path), *given])


def send(path: Path, messages: Sequence[bytes]) -> tuple[float, report_pb2.Report]:
    """Send all messages with a stream's window; return seconds until all are answered, and the report."""
    with socket.socket(socket.AF_UNIX) as connection:
        buffered(connection).connect(str(path))
        start = time.perf_counter()
        for number, message in enumerate(messages):
            if number >= WINDOW_BLOCKS:
                connection.recv(1)
            connection.sendall(LENGTH.pack(len(message)))
            connection.sendall(message)
        connection.recv(min(WINDOW_BLOCKS, len(messages)), socket.MSG_WAITALL)
        seconds = time.perf_counter() - start
        connection.sendall(LENGTH.pack(0))
        (size,) = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))
        return seconds, report_pb2.Report.FromString(connection.recv(size, socket.MSG_WAITALL))
