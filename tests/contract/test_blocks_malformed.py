"""Blocks and plain events that break the contract: each refused whole, naming the field and the event."""

from dataclasses import replace

import numpy as np
import pytest

from exitlab.blocks import BadBlock, ColumnCrcs, DecodedBlock, TooManyEvents, decode_request, encode_block
from exitlab.events import COLUMN_NAMES, Column, EventColumns
from exitlab.v1 import events_pb2, hypervisor_pb2

from .wire import (
    ALL_COLUMNS,
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    length_delimited,
    little_endian,
    overlong,
    request_of,
    tag,
    varint,
)

FIRST_EVENT = 300
DECLARED = (Column.KINDS, Column.ARGS, Column.GAP_CYCLES, Column.VALUES)
# A block of three events, its fields by number.
PARTS = {
    1: tag(1, VARINT) + varint(FIRST_EVENT),
    2: tag(2, VARINT) + varint(3),
    3: length_delimited(3, b"\x01\x02\x03"),
    4: length_delimited(4, b"\x07\x00\x01"),
    8: length_delimited(8, little_endian([1, 2, 3], 4)),
    10: length_delimited(10, little_endian([1, 2, 3], 8)),
    12: length_delimited(12, little_endian([1, 2, 3, 4], 4)),
}
MINUS_ONE = varint(2**64 - 1)  # as an enum's number


def block_with(changes: dict[int, bytes]) -> bytes:
    """Return the block with some fields replaced or, by a number that it has not, added."""
    return request_of(b"".join((PARTS | changes).values()))


def packed(field: int, *numbers: int, size: int) -> bytes:
    """Return a packed fixed-width field."""
    return length_delimited(field, little_endian(list(numbers), size))


def kinds(*values: bytes) -> dict[int, bytes]:
    """Return a change of the kinds, given as they stand on the wire."""
    return {3: length_delimited(3, b"".join(values))}


# case: (bytes, field, event)
MALFORMED: dict[str, tuple[bytes, str, int | None]] = {
    "kinds missing": (block_with({3: b""}), "block.kinds", None),
    "kinds too few": (block_with(kinds(b"\x01\x02")), "block.kinds", None),
    "kinds too many": (block_with(kinds(b"\x01\x02\x03\x04")), "block.kinds", None),
    "kinds too few, in a byte that is no value": (block_with(kinds(b"\x81\x00\x01")), "block.kinds", None),
    "args missing": (block_with({4: b""}), "block.args", None),
    "args too few": (block_with({4: length_delimited(4, b"\x07\x00")}), "block.args", None),
    "args too many": (block_with({4: length_delimited(4, b"\x07\x00\x00\x00")}), "block.args", None),
    "gap_cycles missing": (block_with({8: b""}), "block.gap_cycles", None),
    "gap_cycles too few": (block_with({8: packed(8, 1, 2, size=4)}), "block.gap_cycles", None),
    "gap_cycles as twice as many halves": (
        block_with({8: packed(8, 1, 2, 3, size=8)}),
        "block.gap_cycles",
        None,
    ),
    "values missing": (block_with({10: b""}), "block.values", None),
    "values too many": (block_with({10: packed(10, 1, 2, 3, 4, size=8)}), "block.values", None),
    "one value unpacked and alone": (
        block_with({10: tag(10, FIXED64) + little_endian([1], 8)}),
        "block.values",
        None,
    ),
    "a kind more, unpacked": (block_with({13: b"\x18\x01"}), "block.kinds", None),
    "a value more, unpacked": (
        block_with({13: tag(10, FIXED64) + little_endian([1], 8)}),
        "block.values",
        None,
    ),
    "a digest more, unpacked": (
        block_with({13: tag(12, FIXED32) + little_endian([1], 4)}),
        "block.column_crcs",
        None,
    ),
    "an undeclared column, unpacked": (
        block_with({13: tag(9, FIXED32) + little_endian([1], 4)}),
        "block.selectors",
        None,
    ),
    "modes undeclared": (block_with({5: length_delimited(5, b"\x00\x00\x00")}), "block.modes", None),
    "marks undeclared": (block_with({6: length_delimited(6, b"\x00\x00\x00")}), "block.marks", None),
    "vcpus undeclared": (block_with({7: length_delimited(7, b"\x00\x00\x00")}), "block.vcpus", None),
    "selectors undeclared": (block_with({9: packed(9, 0, 0, 0, size=4)}), "block.selectors", None),
    "rips undeclared": (block_with({11: packed(11, 0, size=8)}), "block.rips", None),
    "event_count missing": (block_with({2: b""}), "block.kinds", None),
    "event_count too small": (block_with({2: tag(2, VARINT) + varint(2)}), "block.kinds", None),
    "event_count too large": (block_with({2: tag(2, VARINT) + varint(2**32 - 1)}), "block.kinds", None),
    "no block at all": (request_of(PARTS[2]), "block.kinds", None),
    "kind 0": (block_with(kinds(b"\x00\x02\x03")), "block.kinds", 300),
    "kind 0 unpacked": (block_with({3: b"\x18\x01\x18\x00\x18\x03"}), "block.kinds", 301),
    "kind 0 as an overlong varint": (block_with(kinds(b"\x01", overlong(0), b"\x03")), "block.kinds", 301),
    "kind after the last": (block_with(kinds(b"\x01\x02\x3a")), "block.kinds", 302),
    "kind 127": (block_with(kinds(b"\x01\x7f\x03")), "block.kinds", 301),
    "kind 128": (block_with(kinds(b"\x01", varint(128), b"\x03")), "block.kinds", 301),
    "kind of 32 bits whose low byte is a kind": (
        block_with(kinds(b"\x01\x02", varint(0x7F00_0001))),
        "block.kinds",
        302,
    ),
    "kind below 0": (block_with(kinds(MINUS_ONE, b"\x02\x03")), "block.kinds", 300),
    "two bad kinds, the first is named": (block_with(kinds(b"\x01\x3a\x00")), "block.kinds", 301),
    "digests missing": (block_with({12: b""}), "block.column_crcs", None),
    "digests too few": (block_with({12: packed(12, 1, 2, 3, size=4)}), "block.column_crcs", None),
    "digests too many": (block_with({12: packed(12, 1, 2, 3, 4, 5, size=4)}), "block.column_crcs", None),
    "digests for every column": (block_with({12: packed(12, *range(9), size=4)}), "block.column_crcs", None),
    "a chunk that ends inside a value": (block_with({8: length_delimited(8, bytes(11))}), "", None),
    "two chunks that meet inside a value": (
        block_with({8: length_delimited(8, bytes(5)) + length_delimited(8, bytes(7))}),
        "",
        None,
    ),
    "digests that meet inside a value": (
        block_with({12: length_delimited(12, bytes(7)) + length_delimited(12, bytes(9))}),
        "",
        None,
    ),
    "kinds that end inside a varint": (block_with(kinds(b"\x01\x02\x83")), "", None),
    "bytes cut off": (block_with({})[:-1], "", None),
    "no message": (b"GET / HTTP/1.1\r\n", "", None),
    "a length beyond the end": (tag(2, LENGTH) + varint(2**31 - 1) + b"\x08", "", None),
    "text that is no UTF-8": (length_delimited(1, length_delimited(1, b"\xff")), "", None),
}


def test_the_block_under_the_changes_is_right() -> None:
    """Without a change the block decodes, so that each case below fails by its change alone."""
    decoded = decode_request(block_with({}), DECLARED)
    assert isinstance(decoded, DecodedBlock)
    assert (decoded.first_event, decoded.column_crcs) == (FIRST_EVENT, (1, 2, 3, 4))
    events = decoded.events
    assert events.declared == DECLARED
    columns = (events.kinds, events.args, events.gap_cycles, events.values)
    assert [column.tolist() for column in columns if column is not None] == [
        [1, 2, 3],
        [7, 0, 1],
        [1, 2, 3],
        [1, 2, 3],
    ]


@pytest.mark.parametrize(("data", "field", "event"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_blocks_are_refused(data: bytes, field: str, event: int | None) -> None:
    """The error names the field, and the event where one event is at fault."""
    with pytest.raises(BadBlock) as refusal:
        decode_request(data, DECLARED)
    assert (refusal.value.field, refusal.value.event) == (field, event)
    assert str(refusal.value).startswith(field)
    assert refusal.value.message in str(refusal.value)
    assert event is None or f"event {event}" in str(refusal.value)


def test_a_column_declared_and_absent_is_not_zeros() -> None:
    """Every declared column must be there, whichever it is."""
    events = EventColumns(np.array([1], "u1"))
    data = encode_block(events, 0, ColumnCrcs((Column.KINDS,)))
    for column in ALL_COLUMNS[1:]:
        with pytest.raises(BadBlock) as refusal:
            decode_request(data, (Column.KINDS, column))
        assert refusal.value.field == f"block.{COLUMN_NAMES[column - 1]}"


RIGHT = EventColumns(np.array([1, 2], "u1"), args=np.zeros(2, "u1"), values=np.zeros(2, "<u8"))
UNENCODABLE: dict[str, tuple[EventColumns, str, int | None]] = {
    "a column too short": (replace(RIGHT, args=np.zeros(1, "u1")), "block.args", None),
    "a column too long": (replace(RIGHT, values=np.zeros(3, "<u8")), "block.values", None),
    "a column of another type": (replace(RIGHT, values=np.zeros(2, "<i8")), "block.values", None),
    "a column of another byte order": (replace(RIGHT, values=np.zeros(2, ">u8")), "block.values", None),
    "a column of two dimensions": (replace(RIGHT, args=np.zeros((2, 2), "u1")), "block.args", None),
    "a declared column missing": (replace(RIGHT, values=None), "block.values", None),
    "a column that is not declared": (replace(RIGHT, rips=np.zeros(2, "<u8")), "block.rips", None),
    "kind 0": (replace(RIGHT, kinds=np.array([1, 0], "u1")), "block.kinds", 301),
    "kind after the last": (replace(RIGHT, kinds=np.array([58, 1], "u1")), "block.kinds", 300),
    "a kind that would take two bytes": (replace(RIGHT, kinds=np.array([1, 200], "u1")), "block.kinds", 301),
}


@pytest.mark.parametrize(("events", "field", "event"), UNENCODABLE.values(), ids=UNENCODABLE)
def test_what_would_be_refused_is_not_sent(events: EventColumns, field: str, event: int | None) -> None:
    """Columns that are not in wire form are refused before a digest changes."""
    crcs = ColumnCrcs(RIGHT.declared, (5, 6, 7))
    with pytest.raises(BadBlock) as refusal:
        encode_block(events, FIRST_EVENT, crcs)
    assert (refusal.value.field, refusal.value.event) == (field, event)
    assert crcs.values == (5, 6, 7)


EVENTS_DECLARED = (Column.KINDS, Column.ARGS, Column.MODES, Column.MARKS, Column.VCPUS)
NARROW = ("arg", "modes", "marks", "vcpu")
WIDE = {"gap_cycles": 32, "selector": 32, "value": 64, "rip": 64}
BAD_EVENTS = [
    *[(EVENTS_DECLARED, {name: value}, name) for name in NARROW for value in (256, 2**32 - 1)],
    *[((Column.KINDS,), {name: 1}, name) for name in (*NARROW, *WIDE)],
    *[((Column.KINDS,), {name: 2**bits - 1}, name) for name, bits in WIDE.items()],
    *[(ALL_COLUMNS, {"kind": kind}, "kind") for kind in (0, 58, 128, 257, 2**31 - 1, -1)],
]


@pytest.mark.parametrize(("declared", "bad", "name"), BAD_EVENTS)
def test_plain_events_out_of_range_are_refused(
    declared: tuple[Column, ...], bad: dict[str, int], name: str
) -> None:
    """A number past its column's range, or for a column that is not declared, is never cut off."""
    events = hypervisor_pb2.StreamEventsRequest(events=events_pb2.EventList(first_event=FIRST_EVENT))
    for kind in (1, 2, 3):
        events.events.events.add().kind = kind  # type: ignore[assignment]  # an enum's number
    for field, value in bad.items():
        setattr(events.events.events[1], field, value)
        setattr(events.events.events[2], field, value)
    with pytest.raises(BadBlock) as refusal:
        decode_request(events.SerializeToString(), declared)
    assert (refusal.value.field, refusal.value.event) == (f"events.events.{name}", FIRST_EVENT + 1)
    assert str(bad[name]) in str(refusal.value)


def test_too_many_plain_events_are_not_looked_at() -> None:
    """Above what a reader takes, the number alone refuses them, whatever is in them."""
    events = [events_pb2.Event() for _ in range(4)]
    data = hypervisor_pb2.StreamEventsRequest(events=events_pb2.EventList(events=events)).SerializeToString()
    with pytest.raises(TooManyEvents) as refused:
        decode_request(data, DECLARED, most_events=3)
    assert (refused.value.field, refused.value.event) == ("events.events", None)
    assert refused.value.message == "4 events, but a block has at most 3"
    with pytest.raises(BadBlock, match="is no event kind"):
        decode_request(data, DECLARED, most_events=4)
