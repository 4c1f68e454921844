"""The twin writes and reads what the contract's own message does, and copies nothing on the way."""

import tracemalloc

import numpy as np
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlab import blocks
from exitlab.blocks import BadBlock, ColumnCrcs, DecodedBlock, decode_request, encode_block
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from exitlab.v1 import events_pb2, hypervisor_pb2

from .wire import ALL_COLUMNS, declared_columns, event_columns, public_request, rows_of, varint

U64 = 2**64 - 1
Rows = dict[str, list[int]]


def many_events(count: int) -> EventColumns:
    """Return ``count`` events with every column, none of it constant."""
    kinds = np.arange(count) % len(EventKind) + 1
    arrays = {name: np.arange(count) for name in COLUMN_NAMES} | {"kinds": kinds}
    return EventColumns(
        **{COLUMN_NAMES[c - 1]: arrays[COLUMN_NAMES[c - 1]].astype(COLUMN_DTYPES[c]) for c in Column}
    )


def slow_decode(data: bytes, declared: tuple[Column, ...]) -> tuple[int, Rows, tuple[int, ...]] | None:
    """Decode a block by the contract's message and plain Python; ``None`` if it is to be refused."""
    request = hypervisor_pb2.StreamEventsRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return None
    if request.WhichOneof("message") != "block":
        return None
    block = request.block
    rows = {COLUMN_NAMES[column - 1]: list(getattr(block, COLUMN_NAMES[column - 1])) for column in Column}
    kept = {COLUMN_NAMES[column - 1] for column in declared}
    wanted = {name: block.event_count if name in kept else 0 for name in rows}
    is_right = (
        {name: len(values) for name, values in rows.items()} == wanted
        and all(kind in list(EventKind) for kind in rows["kinds"])
        and len(block.column_crcs) == len(declared)
    )
    if not is_right:
        return None
    return block.first_event, {name: rows[name] for name in rows if name in kept}, tuple(block.column_crcs)


def fast_decode(data: bytes, declared: tuple[Column, ...]) -> tuple[int, Rows, tuple[int, ...]] | None:
    """Decode a block by the codec, into the same form."""
    try:
        decoded = decode_request(data, declared)
    except BadBlock:
        return None
    if not isinstance(decoded, DecodedBlock) or decoded.column_crcs is None:
        return None
    return decoded.first_event, rows_of(decoded.events), decoded.column_crcs


@settings(deadline=None)
@given(st.data(), declared_columns(), st.integers(0, U64))
def test_the_codec_writes_what_the_message_writes(
    data: st.DataObject, declared: tuple[Column, ...], first_event: int
) -> None:
    """Encoded events are byte for byte the serialized message that any client would fill."""
    events = data.draw(event_columns(declared))
    crcs = ColumnCrcs(declared)
    encoded = encode_block(events, first_event, crcs)
    assert encoded == public_request(events, first_event, crcs.values).SerializeToString(deterministic=True)


@settings(deadline=None)
@given(st.data(), declared_columns(), st.integers(0, U64))
def test_the_codec_reads_what_the_message_writes(
    data: st.DataObject, declared: tuple[Column, ...], first_event: int
) -> None:
    """The message's bytes decode to the events that it was filled with, digests as they came."""
    events = data.draw(event_columns(declared))
    crcs = tuple(
        data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(declared), max_size=len(declared)))
    )
    serialized = public_request(events, first_event, crcs).SerializeToString()
    assert fast_decode(serialized, declared) == (first_event, rows_of(events), crcs)


@settings(deadline=None)
@given(st.data(), declared_columns())
def test_damaged_blocks_mean_what_the_message_takes_them_for(
    data: st.DataObject, declared: tuple[Column, ...]
) -> None:
    """Whatever a few overwritten bytes turn a block into, twin and message agree on it."""
    events = data.draw(event_columns(declared, max_events=6))
    encoded = bytearray(encode_block(events, data.draw(st.integers(0, 300)), ColumnCrcs(declared)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(encoded)))
        stop = data.draw(st.integers(start, min(start + 3, len(encoded))))
        encoded[start:stop] = data.draw(st.binary(max_size=3))
    assert fast_decode(bytes(encoded), declared) == slow_decode(bytes(encoded), declared)


@settings(deadline=None)
@given(st.data(), declared_columns())
def test_concatenated_blocks_mean_what_the_message_takes_them_for(
    data: st.DataObject, declared: tuple[Column, ...]
) -> None:
    """Two requests in a row merge into one message, refused or not by the same rules."""
    parts = [data.draw(event_columns(declared, max_events=3)) for _ in range(2)]
    encoded = b"".join(encode_block(events, 0, ColumnCrcs(declared)) for events in parts)
    total = sum(map(len, parts))
    # A block field that holds nothing but the right count, to be merged with the two before it.
    encoded += data.draw(
        st.sampled_from([b"", b"\x12" + varint(1 + len(varint(total))) + b"\x10" + varint(total)])
    )
    assert fast_decode(encoded, declared) == slow_decode(encoded, declared)


@pytest.mark.parametrize("declared", [ALL_COLUMNS, (Column.KINDS,), (Column.KINDS, Column.VALUES)])
def test_plain_blocks_stay_in_the_twin(declared: tuple[Column, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that Python or the message wrote is never read element by element."""
    monkeypatch.delattr(blocks, "_decode_block")
    full = many_events(1000)
    events = EventColumns(**{COLUMN_NAMES[c - 1]: full.column(c) for c in declared})  # type: ignore[arg-type]  # each its column's array
    crcs = ColumnCrcs(declared)
    for data in (
        encode_block(events, 7, crcs),
        public_request(events, 7, crcs.values).SerializeToString(),
    ):
        assert fast_decode(data, declared) is not None


def test_an_empty_block_has_every_declared_column() -> None:
    """No events are a legal block, with columns of length 0."""
    declared = (Column.KINDS, Column.ARGS, Column.VALUES)
    events = many_events(0)
    events = EventColumns(events.kinds, args=events.args, values=events.values)
    decoded = fast_decode(encode_block(events, 3, ColumnCrcs(declared)), declared)
    assert decoded == (3, {"kinds": [], "args": [], "values": []}, (0, 0, 0))


def test_a_plain_block_is_not_copied_by_the_codec() -> None:
    """Each array is a read-only view of the bytes that protobuf hands out.

    The runtime itself copies: it keeps the message in memory of its own and makes a bytes object
    at each access, so no array can share memory with the request.
    """
    events = many_events(50_000)
    data = encode_block(events, 0, ColumnCrcs(ALL_COLUMNS))
    tracemalloc.start()
    decoded = decode_request(data, ALL_COLUMNS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(decoded, DecodedBlock)
    for column in ALL_COLUMNS:
        array = decoded.events.column(column)
        assert array is not None
        assert isinstance(array.base, bytes)
        assert len(array.base) == array.nbytes
        assert not array.flags.writeable
        assert not np.shares_memory(array, np.frombuffer(data, np.uint8))
    if api_implementation.Type() == "upb":  # whose own copy is not Python's memory
        assert peak_bytes < 1.05 * len(data)


def test_the_twin_leaves_the_contract_alone() -> None:
    """The twin has the contract's names, numbers and columns, in a pool of its own."""
    twin = blocks._REQUEST_TWIN.DESCRIPTOR
    contract = hypervisor_pb2.StreamEventsRequest.DESCRIPTOR
    assert twin.full_name == contract.full_name
    assert twin.file.pool is not descriptor_pool.Default()
    assert [(field.name, field.number) for field in twin.fields] == [("block", 2)]
    twin_fields = twin.fields_by_name["block"].message_type.fields
    fields = events_pb2.EventBlock.DESCRIPTOR.fields
    assert [(f.name, f.number) for f in twin_fields] == [(f.name, f.number) for f in fields]
    retyped = {f.name for f, g in zip(twin_fields, fields, strict=True) if f.type != g.type}
    assert retyped == {"kinds", "gap_cycles", "selectors", "values", "rips", "column_crcs"}
    assert {twin_fields[2].type, fields[2].type} == {FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_ENUM}


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 + 1, U64])
def test_values_are_whole_numbers_of_64_bits(value: int) -> None:
    """Values and addresses that a double cannot hold arrive as they were sent."""
    declared = (Column.KINDS, Column.VALUES, Column.RIPS)
    column = np.array([value, 1, value - 1], "<u8")
    events = EventColumns(np.array([1, 2, 3], "u1"), values=column, rips=column[::-1])
    decoded = fast_decode(encode_block(events, value, ColumnCrcs(declared)), declared)
    rows = {"kinds": [1, 2, 3], "values": [value, 1, value - 1], "rips": [value - 1, 1, value]}
    assert decoded is not None
    assert decoded[:2] == (value, rows)


@pytest.mark.parametrize(
    "request_message",
    [
        hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id="a", received_events=7)),
        hypervisor_pb2.StreamEventsRequest(confirm=hypervisor_pb2.ConfirmOutcomes(received_events=2**60)),
        hypervisor_pb2.StreamEventsRequest(),
    ],
    ids=["open", "confirm", "none"],
)
def test_requests_without_events_come_back_as_they_are(
    request_message: hypervisor_pb2.StreamEventsRequest,
) -> None:
    """What is no block and no list is handed on as the contract's message."""
    assert decode_request(request_message.SerializeToString(), ALL_COLUMNS) == request_message


def test_the_last_of_two_messages_counts() -> None:
    """A block that another member of the oneof follows is dropped, as the contract's message does."""
    block = encode_block(many_events(3), 0, ColumnCrcs(ALL_COLUMNS))
    opening = hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id="a"))
    assert decode_request(block + opening.SerializeToString(), ALL_COLUMNS) == opening
    listing = hypervisor_pb2.StreamEventsRequest(events=events_pb2.EventList(first_event=9))
    decoded = decode_request(block + listing.SerializeToString(), ALL_COLUMNS)
    assert isinstance(decoded, DecodedBlock)
    assert (decoded.first_event, len(decoded.events)) == (9, 0)


def test_what_is_no_events_needs_no_columns() -> None:
    """The messages before a session's columns are known can be decoded without them."""
    opening = hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id="a"))
    assert decode_request(opening.SerializeToString(), ()) == opening
    assert decode_request(b"", ()) == hypervisor_pb2.StreamEventsRequest()
