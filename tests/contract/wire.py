"""protobuf's wire format written by hand, and random events, for the tests of the codec."""

import numpy as np
from hypothesis import strategies as st

from exitlab.blocks import EVENT_FIELDS
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from exitlab.v1 import events_pb2, hypervisor_pb2

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
ALL_COLUMNS = tuple(Column)


def varint(number: int) -> bytes:
    """Return ``number`` in base 128, low digits first, the high bit set on all but the last."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low]) if rest == 0 else bytes([low | 0x80]) + varint(rest)


def overlong(number: int) -> bytes:
    """Return ``number`` with one digit more than it needs, which readers must accept."""
    plain = varint(number)
    return plain[:-1] + bytes([plain[-1] | 0x80, 0])


def tag(field: int, wire_type: int) -> bytes:
    """Return what precedes a value of ``field``."""
    return varint(field << 3 | wire_type)


def length_delimited(field: int, content: bytes) -> bytes:
    """Return a field of bytes, a packed field's chunk, or a message in a message."""
    return tag(field, LENGTH) + varint(len(content)) + content


def little_endian(numbers: list[int], size: int) -> bytes:
    """Return ``numbers`` as integers of ``size`` bytes."""
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def request_of(block: bytes) -> bytes:
    """Return a StreamEventsRequest that carries ``block``."""
    return length_delimited(2, block)


def rows_of(events: EventColumns) -> dict[str, list[int]]:
    """Return the values of each declared column, with their types checked, for comparing."""
    rows = {}
    for column in events.declared:
        array = events.column(column)
        assert array is not None
        assert array.dtype == COLUMN_DTYPES[column]
        rows[COLUMN_NAMES[column - 1]] = array.tolist()
    return rows


def public_request(
    events: EventColumns, first_event: int, crcs: tuple[int, ...]
) -> hypervisor_pb2.StreamEventsRequest:
    """Return the contract's own message with these events, filled as any client would."""
    request = hypervisor_pb2.StreamEventsRequest()
    block = request.block
    block.first_event = first_event
    block.event_count = len(events)
    for column in events.declared:
        array, name = events.column(column), COLUMN_NAMES[column - 1]
        assert array is not None
        if column in (Column.ARGS, Column.MODES, Column.MARKS, Column.VCPUS):
            setattr(block, name, bytes(array.tolist()))
        else:
            getattr(block, name).extend(array.tolist())
    block.column_crcs.extend(crcs)
    return request


def plain_request(events: EventColumns, first_event: int) -> hypervisor_pb2.StreamEventsRequest:
    """Return the same events in plain form."""
    request = hypervisor_pb2.StreamEventsRequest(events=events_pb2.EventList(first_event=first_event))
    names = {**EVENT_FIELDS, Column.KINDS: "kind"}
    rows = rows_of(events)
    for row in range(len(events)):
        event = request.events.events.add()
        for column in events.declared:
            setattr(event, names[column], rows[COLUMN_NAMES[column - 1]][row])
    return request


@st.composite
def declared_columns(draw: st.DrawFn) -> tuple[Column, ...]:
    """Draw the columns of a session."""
    others = draw(st.sets(st.sampled_from(ALL_COLUMNS[1:])))
    return (Column.KINDS, *sorted(others))


@st.composite
def event_columns(draw: st.DrawFn, declared: tuple[Column, ...], max_events: int = 40) -> EventColumns:
    """Draw events of these columns, extreme values included."""
    count = draw(st.integers(0, max_events))
    arrays = {}
    for column in declared:
        dtype = COLUMN_DTYPES[column]
        largest = max(EventKind) if column is Column.KINDS else int(np.iinfo(dtype).max)
        smallest = min(EventKind) if column is Column.KINDS else 0
        values = draw(st.lists(st.integers(smallest, largest), min_size=count, max_size=count))
        arrays[COLUMN_NAMES[column - 1]] = np.array(values, dtype)
    return EventColumns(**arrays)
