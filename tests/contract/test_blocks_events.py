"""Plain events mean the same as columns, and the digests do not depend on how a stream was cut."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlab.blocks import (
    EVENT_FIELDS,
    BadBlock,
    ColumnCrcs,
    DecodedBlock,
    decode_request,
    encode_block,
    plain_field,
)
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns
from exitlab.v1 import events_pb2, hypervisor_pb2

from .wire import ALL_COLUMNS, declared_columns, event_columns, plain_request, rows_of

U64 = 2**64 - 1


def decoded_rows(data: bytes, declared: tuple[Column, ...]) -> tuple[int, dict[str, list[int]]]:
    """Return the first event and the columns that ``data`` carries."""
    decoded = decode_request(data, declared)
    assert isinstance(decoded, DecodedBlock)
    return decoded.first_event, rows_of(decoded.events)


@settings(deadline=None)
@given(st.data(), declared_columns(), st.integers(0, U64))
def test_plain_events_are_the_rows_of_a_block(
    data: st.DataObject, declared: tuple[Column, ...], first_event: int
) -> None:
    """The same events, sent in either form, are the same columns."""
    events = data.draw(event_columns(declared))
    block = encode_block(events, first_event, ColumnCrcs(declared))
    plain = plain_request(events, first_event).SerializeToString()
    assert decoded_rows(plain, declared) == decoded_rows(block, declared) == (first_event, rows_of(events))


def test_plain_events_carry_no_digests() -> None:
    """Digests of plain events are the receiver's to make."""
    decoded = decode_request(
        plain_request(EventColumns(np.zeros(0, "u1")), 0).SerializeToString(), ALL_COLUMNS
    )
    assert isinstance(decoded, DecodedBlock)
    assert decoded.column_crcs is None
    assert rows_of(decoded.events) == {name: [] for name in COLUMN_NAMES}


@pytest.mark.parametrize("column", list(Column))
def test_each_column_has_its_field_in_plain_events(column: Column) -> None:
    """What is said of a block's column can be said of plain events, by a path that is there."""
    *path, name = plain_field(f"block.{COLUMN_NAMES[column - 1]}").split(".")
    assert path == ["events", "events"]
    assert name in events_pb2.Event.DESCRIPTOR.fields_by_name
    assert name == EVENT_FIELDS.get(column, "kind")


def test_no_events_in_either_form() -> None:
    """A block of no events is decoded like any other, and so are plain events that are none."""
    declared = (Column.KINDS, Column.ARGS, Column.VALUES)
    nothing = EventColumns(*(np.zeros(0, COLUMN_DTYPES[column]) for column in (Column.KINDS, Column.ARGS)))
    nothing = replace(nothing, values=np.zeros(0, COLUMN_DTYPES[Column.VALUES]))
    crcs = ColumnCrcs(declared, (1, 2, 3))
    block = decode_request(encode_block(nothing, 7, crcs), declared)
    plain = decode_request(plain_request(nothing, 7).SerializeToString(), declared)
    for decoded, digests in ((block, (1, 2, 3)), (plain, None)):
        assert isinstance(decoded, DecodedBlock)
        assert (decoded.first_event, len(decoded.events), decoded.column_crcs) == (7, 0, digests)
        assert decoded.events.declared == declared
        assert decoded.is_plain == (digests is None)


@pytest.mark.parametrize("value", [2**53 + 1, U64])
def test_values_survive_json(value: int) -> None:
    """An event written as JSON keeps a value that a double cannot hold."""
    text = (
        f'{{"events": {{"events": [{{"kind": "EVENT_KIND_WRMSR", "value": "{value}", "rip": "{value}"}}]}}}}'
    )
    request = json_format.Parse(text, hypervisor_pb2.StreamEventsRequest())
    declared = (Column.KINDS, Column.VALUES, Column.RIPS)
    rows = {"kinds": [14], "values": [value], "rips": [value]}
    assert decoded_rows(request.SerializeToString(), declared) == (0, rows)


def bitwise_crc32(content: bytes) -> int:
    """Return the CRC-32 of ``content`` one bit at a time, as the standard defines it."""
    crc = 0xFFFF_FFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB8_8320 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("column", "content", "crc"),
    [
        (Column.KINDS, b"123456789", 0xCBF4_3926),  # the check value of CRC-32; the digits are kinds
        (Column.ARGS, b"123456789", 0xCBF4_3926),
        (Column.GAP_CYCLES, b"1234", 0x9BE3_E0A3),
        (Column.SELECTORS, b"1234", 0x9BE3_E0A3),
        (Column.VALUES, b"12345678", 0x9AE0_DAAF),
        (Column.RIPS, b"12345678", 0x9AE0_DAAF),
    ],
)
def test_digests_have_the_known_answers(column: Column, content: bytes, crc: int) -> None:
    """A column of digits has the known value, the low byte of each number first."""
    array = np.frombuffer(content, COLUMN_DTYPES[column])
    columns = {"kinds": np.full(len(array), 1, "u1"), COLUMN_NAMES[column - 1]: array}
    crcs = ColumnCrcs({Column.KINDS, column})
    crcs.update(EventColumns(**columns))
    assert crcs.values[-1] == crc
    assert int(array[0]) & 0xFF == ord("1")


@settings(deadline=None)
@given(st.data(), declared_columns())
def test_digests_do_not_depend_on_the_cuts(data: st.DataObject, declared: tuple[Column, ...]) -> None:
    """However a stream is cut, and whoever computes them, the digests are those of whole columns."""
    events = data.draw(event_columns(declared))
    inner = data.draw(st.lists(st.integers(0, len(events)), max_size=4))
    cuts = sorted([0, *inner, len(events)])
    sender, receiver = ColumnCrcs(declared), ColumnCrcs(declared)
    for start, stop in itertools.pairwise(cuts):
        decoded = decode_request(encode_block(events.rows(start, stop), start, sender), declared)
        assert isinstance(decoded, DecodedBlock)
        receiver.update(decoded.events)
        assert decoded.column_crcs == sender.values == receiver.values
    whole = [events.column(column) for column in declared]
    assert sender.values == tuple(bitwise_crc32(array.tobytes()) for array in whole if array is not None)


def test_digests_are_those_of_the_events_and_not_of_their_memory() -> None:
    """Strided and unaligned columns count, and are sent, as the values that they hold."""
    declared = (Column.KINDS, Column.VALUES)
    values = np.array([2**40, 5, 2**63], "<u8")
    unaligned = np.frombuffer(b"x" + values.tobytes(), "<u8", offset=1)
    strided = np.repeat(values, 2)[::2]
    kinds = np.array([1, 2, 3], "u1")
    expected = ColumnCrcs(declared)
    data = encode_block(EventColumns(kinds, values=values), 0, expected)
    for array in (unaligned, strided):
        crcs = ColumnCrcs(declared)
        assert encode_block(EventColumns(kinds, values=array), 0, crcs) == data
        assert crcs.values == expected.values


def test_digests_go_on_from_a_copy_or_from_values() -> None:
    """A copy and a restart from values are independent of what they came from."""
    declared = (Column.KINDS,)
    events = EventColumns(np.frombuffer(b"123456789", "u1"))
    crcs = ColumnCrcs(declared)
    crcs.update(events.rows(0, 4))
    copy, restarted = crcs.copy(), ColumnCrcs(declared, crcs.values)
    before = crcs.values
    for other in (copy, restarted):
        other.update(events.rows(4, 9))
        assert other.values == (0xCBF4_3926,)
    assert crcs.values == before


def test_digests_refuse_other_columns_than_declared() -> None:
    """Events with other columns leave the digests untouched; so does a wrong number of values."""
    crcs = ColumnCrcs((Column.KINDS, Column.ARGS))
    with pytest.raises(BadBlock) as refusal:
        crcs.update(EventColumns(np.array([1], "u1")))
    assert refusal.value.field == "block.args"
    assert crcs.values == (0, 0)
    with pytest.raises(ValueError, match="3 digests for 2 declared columns"):
        ColumnCrcs((Column.KINDS, Column.ARGS), (1, 2, 3))
