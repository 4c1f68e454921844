"""Blocks that other writers of protobuf may send: each decodes to the same columns as the plain one."""

import pytest

from exitlab.blocks import DecodedBlock, decode_request
from exitlab.events import Column
from exitlab.v1 import hypervisor_pb2

from .wire import FIXED32, FIXED64, VARINT, length_delimited, overlong, request_of, rows_of, tag, varint

DECLARED = (Column.KINDS, Column.ARGS, Column.GAP_CYCLES, Column.VALUES)
ROWS = {
    "kinds": [1, 7, 57],  # MOV_TO_DR, CPUID, ADVANCE
    "args": [7, 0, 255],
    "gap_cycles": [1, 0x0403_0201, 0xFFFF_FFFF],
    "values": [0x401, 2**53 + 1, 2**64 - 1],
}
CRCS = (0x11, 0x2222_2222, 0, 0xFFFF_FFFF)

# The plain block, written by hand: tag, then what the wire type asks for.
FIRST = bytes.fromhex("08 ac02")  # first_event 300
COUNT = bytes.fromhex("10 03")
KINDS = bytes.fromhex("1a 03  01 07 39")
ARGS = bytes.fromhex("22 03  07 00 ff")
GAPS = bytes.fromhex("42 0c  01000000 01020304 ffffffff")
VALUES = bytes.fromhex("52 18  0104000000000000 0100000000002000 ffffffffffffffff")
DIGESTS = bytes.fromhex("62 10  11000000 22222222 00000000 ffffffff")
PLAIN = request_of(FIRST + COUNT + KINDS + ARGS + GAPS + VALUES + DIGESTS)

KIND_VALUES = [b"\x01", b"\x07", b"\x39"]
GAP_VALUES = [GAPS[2 + i : 6 + i] for i in (0, 4, 8)]
LONG_VALUES = [VALUES[2 + i : 10 + i] for i in (0, 8, 16)]
DIGEST_VALUES = [DIGESTS[2 + i : 6 + i] for i in (0, 4, 8, 12)]
REST = ARGS + GAPS + VALUES + DIGESTS
OPEN = length_delimited(1, length_delimited(1, b"session"))
OTHER_KINDS = length_delimited(3, b"\x02\x02")


def unpacked(field: int, wire_type: int, values: list[bytes]) -> bytes:
    """Return a repeated field with a tag before each value."""
    return b"".join(tag(field, wire_type) + value for value in values)


def chunks(field: int, *parts: list[bytes]) -> bytes:
    """Return a packed field in several chunks."""
    return b"".join(length_delimited(field, b"".join(part)) for part in parts)


LEGAL = {
    "fields in reverse order": request_of(DIGESTS + VALUES + GAPS + ARGS + KINDS + COUNT + FIRST),
    "kinds unpacked": request_of(FIRST + COUNT + unpacked(3, VARINT, KIND_VALUES) + REST),
    "kinds packed and unpacked": request_of(
        FIRST + COUNT + chunks(3, KIND_VALUES[:1]) + unpacked(3, VARINT, KIND_VALUES[1:2])
        + chunks(3, KIND_VALUES[2:]) + REST
    ),
    "kinds in chunks": request_of(FIRST + COUNT + chunks(3, KIND_VALUES[:2], [], KIND_VALUES[2:]) + REST),
    "kinds in chunks between other fields": request_of(
        chunks(3, KIND_VALUES[:1]) + FIRST + REST + chunks(3, KIND_VALUES[1:]) + COUNT
    ),
    "kinds as overlong varints": request_of(
        FIRST + COUNT + chunks(3, [overlong(1), overlong(7), overlong(57)]) + REST
    ),
    "one kind as an overlong varint": request_of(
        FIRST + COUNT + chunks(3, [b"\x01", b"\x87\x80\x80\x80\x00", b"\x39"]) + REST
    ),
    "gaps unpacked": request_of(
        FIRST + COUNT + KINDS + ARGS + unpacked(8, FIXED32, GAP_VALUES) + VALUES + DIGESTS
    ),
    "gaps in chunks": request_of(
        FIRST + COUNT + KINDS + ARGS + chunks(8, GAP_VALUES[:1], GAP_VALUES[1:]) + VALUES + DIGESTS
    ),
    "values unpacked": request_of(
        FIRST + COUNT + KINDS + ARGS + GAPS + unpacked(10, FIXED64, LONG_VALUES) + DIGESTS
    ),
    "values in chunks": request_of(
        FIRST + COUNT + KINDS + ARGS + GAPS + chunks(10, [], LONG_VALUES[:2], LONG_VALUES[2:], []) + DIGESTS
    ),
    "digests unpacked": request_of(
        FIRST + COUNT + KINDS + ARGS + GAPS + VALUES + unpacked(12, FIXED32, DIGEST_VALUES)
    ),
    "digests in chunks": request_of(
        FIRST + COUNT + KINDS + ARGS + GAPS + VALUES + chunks(12, DIGEST_VALUES[:3], DIGEST_VALUES[3:])
    ),
    "bytes twice, the last counts": request_of(
        FIRST + COUNT + KINDS + length_delimited(4, b"\x09") + ARGS + GAPS + VALUES + DIGESTS
    ),
    "numbers twice, the last counts": request_of(b"\x08\x01\x10\x09" + FIRST + COUNT + KINDS + REST),
    "the block twice, merged": request_of(
        FIRST + b"\x10\x01" + chunks(3, KIND_VALUES[:1]) + length_delimited(4, b"\x07")
        + chunks(8, GAP_VALUES[:1]) + chunks(10, LONG_VALUES[:1]) + chunks(12, DIGEST_VALUES[:2])
    )
    + request_of(
        COUNT + chunks(3, KIND_VALUES[1:]) + ARGS + chunks(8, GAP_VALUES[1:])
        + chunks(10, LONG_VALUES[1:]) + chunks(12, DIGEST_VALUES[2:])
    ),
    "a block, an Open that drops it, a block": request_of(OTHER_KINDS) + OPEN + PLAIN,
    "an Open, then a block": OPEN + PLAIN,
    "an unknown field in the block": request_of(FIRST + COUNT + KINDS + REST + length_delimited(99, b"new")),
    "an unknown field in the request": PLAIN + tag(15, VARINT) + b"\x01",
    "an unknown group": request_of(tag(20, 3) + b"\x08\x01" + tag(20, 4) + FIRST + COUNT + KINDS + REST),
    "an undeclared column of no values": request_of(
        FIRST + COUNT + KINDS + REST + b"".join(length_delimited(field, b"") for field in (5, 6, 7, 9, 11))
    ),
    "overlong tags, lengths and numbers": request_of(
        overlong(8) + overlong(300) + overlong(16) + overlong(3)
        + overlong(26) + overlong(3) + b"".join(KIND_VALUES) + REST
    ),
    "an overlong length of the block": b"\x12" + overlong(len(PLAIN) - 2) + PLAIN[2:],
}  # fmt: skip


def columns_of(data: bytes) -> tuple[int, dict[str, list[int]], tuple[int, ...] | None]:
    """Return what the codec makes of ``data``."""
    decoded = decode_request(data, DECLARED)
    assert isinstance(decoded, DecodedBlock)
    return decoded.first_event, rows_of(decoded.events), decoded.column_crcs


def test_the_plain_block_is_what_python_writes() -> None:
    """The bytes that were written by hand are those of the contract's message."""
    message = hypervisor_pb2.StreamEventsRequest()
    message.ParseFromString(PLAIN)
    assert message.SerializeToString() == PLAIN
    assert len(PLAIN) == 2 + PLAIN[1]
    assert columns_of(PLAIN) == (300, ROWS, CRCS)


@pytest.mark.parametrize("data", LEGAL.values(), ids=LEGAL)
def test_every_legal_form_means_the_same(data: bytes) -> None:
    """Another form of the plain block gives the same events and digests."""
    assert data != PLAIN
    assert columns_of(data) == (300, ROWS, CRCS)


@pytest.mark.parametrize("data", LEGAL.values(), ids=LEGAL)
def test_every_legal_form_is_legal(data: bytes) -> None:
    """The contract's own message reads the plain block from each form, so that none is made up."""
    message, plain = hypervisor_pb2.StreamEventsRequest(), hypervisor_pb2.StreamEventsRequest()
    message.ParseFromString(data)
    plain.ParseFromString(PLAIN)
    message.DiscardUnknownFields()
    assert message == plain


def test_a_kind_of_two_bytes_can_be_written() -> None:
    """The helper writes what the tables above say it does."""
    assert (varint(300), overlong(7), overlong(300)) == (b"\xac\x02", b"\x87\x00", b"\xac\x82\x00")
