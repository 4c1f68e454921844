"""A process at the other end of a raw unix socket, with no gRPC between.

``python -m tests.bench.raw_receiver PATH [CONFIG]``: each message is a length of four bytes and as
many bytes; each is answered by one byte, and the empty message by a serialized report. Without a
config the bytes are read and dropped; with one (serialized, in hexadecimal) every message is decoded
and fed to the engine.
"""

import socket
import struct
import sys

from exitlab.blocks import DecodedBlock, decode_request
from exitlab.events import Column
from exitlab.v1 import hypervisor_pb2, report_pb2
from hypervisor_svc.engine import Engine
from tests.bench.cases import engine
from tests.bench.raw import LENGTH, buffered


def main() -> None:
    """Answer one connection after the other until a signal."""
    config = None
    if len(sys.argv) > 2:
        config = hypervisor_pb2.SessionConfig.FromString(bytes.fromhex(sys.argv[2]))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        print("listening on", sys.argv[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with buffered(connection):
                _answer(connection, config)


def _answer(connection: socket.socket, config: hypervisor_pb2.SessionConfig | None) -> None:
    one = engine(config) if config else None
    columns = tuple(Column(column) for column in config.columns) if config else ()
    while True:
        header = connection.recv(LENGTH.size, socket.MSG_WAITALL)
        if not header:
            return
        (size,) = LENGTH.unpack(header)
        if not size:
            break
        data = connection.recv(size, socket.MSG_WAITALL)
        if one and config:
            _feed(one, data, columns, int(config.outcome_level))
        connection.sendall(b"\1")
    report = (one.report() if one else report_pb2.Report()).SerializeToString()
    connection.sendall(struct.pack("<I", len(report)) + report)


def _feed(one: Engine, data: bytes, columns: tuple[Column, ...], level: int) -> None:
    block = decode_request(data, columns)
    assert isinstance(block, DecodedBlock)
    one.feed(block.events, level)


if __name__ == "__main__":
    main()
