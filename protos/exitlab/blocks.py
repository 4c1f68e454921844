"""The codec between event columns and the wire: the only place that knows how a block is laid out.

On the wire a packed fixed-width column is byte for byte the little-endian array, and ``kinds`` is
one byte a value. protobuf for Python has no fast way into or out of a packed field, but a fast one
for ``bytes``. So plain blocks go through a *twin*: the contract's own messages, rebuilt in a private
descriptor pool with each packed field declared ``repeated bytes``, one element a chunk. Both
declarations write the same bytes.

protobuf also allows what Python never writes: unpacked elements, kinds as overlong varints, and
others. The twin sees such a block as unknown fields or as a wrong length; it is then decoded
through the contract's message, which alone decides what is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.message import DecodeError
from isal import isal_zlib
from numpy.typing import NDArray

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from exitlab.v1 import events_pb2, hypervisor_pb2

FIRST_KIND: Final = int(min(EventKind))
LAST_KIND: Final = int(max(EventKind))
CRC_DTYPE: Final[np.dtype[Any]] = np.dtype("<u4")
# The field of Event that a column holds; kinds, an enum, is read apart.
EVENT_FIELDS: Final[dict[Column, str]] = {
    Column.ARGS: "arg",
    Column.MODES: "modes",
    Column.MARKS: "marks",
    Column.VCPUS: "vcpu",
    Column.GAP_CYCLES: "gap_cycles",
    Column.SELECTORS: "selector",
    Column.VALUES: "value",
    Column.RIPS: "rip",
}


# What a column of a block is called in plain events.
_PLAIN_NAMES: Final = {COLUMN_NAMES[column - 1]: name for column, name in EVENT_FIELDS.items()}


class BadBlock(ValueError):
    """Events that break the contract, refused whole.

    ``field`` is the path in StreamEventsRequest, e.g. ``block.args``; empty if the bytes are no such
    message. ``event`` is the index in the session of the offending event; ``None`` if there is none.
    """

    def __init__(self, message: str, *, field: str, event: int | None = None) -> None:
        """Keep what is wrong, and where."""
        self.field = field
        self.event = event
        self.message = message
        place = [part for part in (field, "" if event is None else f"event {event}") if part]
        super().__init__(": ".join([*place, message]))


class TooManyEvents(BadBlock):
    """More events than a reader takes at once."""


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """Events as they arrived; ``column_crcs`` is ``None`` if they came in plain form."""

    first_event: int
    events: EventColumns
    column_crcs: tuple[int, ...] | None

    @property
    def is_plain(self) -> bool:
        """Whether the events came in plain form."""
        return self.column_crcs is None


class ColumnCrcs:
    """Running CRC-32 (IEEE) of each declared column's little-endian bytes since a session's start.

    The values depend on the events alone, not on how the stream was cut into blocks.
    """

    def __init__(self, declared: Iterable[Column], values: Sequence[int] | None = None) -> None:
        """Start at the first event, or go on from the ``values`` of an earlier end."""
        self.declared = tuple(sorted(declared))
        self.values = (0,) * len(self.declared) if values is None else tuple(values)
        if len(self.values) != len(self.declared):
            raise ValueError(f"{len(self.values)} digests for {len(self.declared)} declared columns")

    def update(self, events: EventColumns) -> None:
        """Take in the next events.

        Raises: BadBlock if their columns are not the declared ones; the digests are then untouched.
        """
        self._advance(_checked_columns(events, self.declared))

    def copy(self) -> "ColumnCrcs":
        """Return an independent copy."""
        return ColumnCrcs(self.declared, self.values)

    def _advance(self, arrays: dict[Column, NDArray[Any]]) -> None:
        pairs = zip(self.declared, self.values, strict=True)
        self.values = tuple(isal_zlib.crc32(arrays[column].data, crc) for column, crc in pairs)


def encode_block(columns: EventColumns, first_event: int, crcs: ColumnCrcs) -> bytes:
    """Return a serialized StreamEventsRequest that carries ``columns``, and advance ``crcs``.

    Raises: BadBlock if the columns are not those that ``crcs`` has declared, differ in length or
    type, or hold an unknown kind; ``crcs`` is then untouched.
    """
    arrays = _checked_columns(columns, crcs.declared)
    # A kind above 127 would not merely be refused: as a byte it would damage the value after it.
    _check_kinds(columns.kinds, "block.kinds", first_event)
    request = _REQUEST_TWIN()
    block = request.block
    block.first_event = first_event
    block.event_count = len(columns)
    crcs._advance(arrays)
    for column, name, _, is_packed in _LAYOUT:
        raw = arrays[column].tobytes() if column in arrays else b""
        if not is_packed:
            setattr(block, name, raw)
        elif raw:  # an empty chunk is legal, but not what the contract's message writes
            getattr(block, name).append(raw)
    block.column_crcs.append(np.array(crcs.values, CRC_DTYPE).tobytes())
    return bytes(request.SerializeToString())


def decode_request(
    data: bytes, declared: Sequence[Column], most_events: int | None = None
) -> hypervisor_pb2.StreamEventsRequest | DecodedBlock:
    """Return the events that ``data`` carries, or the message if it carries none.

    ``declared`` are the columns of the session and of the result, ``kinds`` among them. The arrays
    may be read-only. Plain events, which take long to decode, are only looked at up to ``most_events``.

    Raises: BadBlock; TooManyEvents.
    """
    plain = _decode_plain(data, declared)
    if plain is not None:
        return plain
    request = hypervisor_pb2.StreamEventsRequest()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise BadBlock(f"not a StreamEventsRequest ({error})", field="") from None
    match request.WhichOneof("message"):
        case "block":
            return _decode_block(request.block, declared)
        case "events":
            count = len(request.events.events)
            if most_events is not None and count > most_events:
                message = f"{count} events, but a block has at most {most_events}"
                raise TooManyEvents(message, field="events.events")
            return _decode_list(request.events, declared)
        case _:
            return request


def plain_field(path: str) -> str:
    """Return where plain events have what a block has at ``path``, e.g. ``block.args``."""
    return f"events.events.{_PLAIN_NAMES.get(path.removeprefix('block.'), 'kind')}"


# The twin: blocks that are written plainly.


def _make_twin() -> Any:
    """Return the class of StreamEventsRequest with the packed fields of its block as bytes."""
    request, block = descriptor_pb2.DescriptorProto(), descriptor_pb2.DescriptorProto()
    hypervisor_pb2.StreamEventsRequest.DESCRIPTOR.CopyToProto(request)
    events_pb2.EventBlock.DESCRIPTOR.CopyToProto(block)
    # Whatever else a request may carry is left to the contract's message.
    kept = next(field for field in request.field if field.name == "block")
    request.ClearField("field")
    request.field.append(kept)
    for field in block.field:
        if field.label == field.LABEL_REPEATED:
            field.type = field.TYPE_BYTES
            field.ClearField("type_name")
            field.ClearField("options")
    contract = hypervisor_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(name=contract.name, package=contract.package, syntax="proto3")
    file.message_type.extend([request, block])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    name = hypervisor_pb2.StreamEventsRequest.DESCRIPTOR.full_name
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _make_layout() -> tuple[tuple[Column, str, np.dtype[Any], bool], ...]:
    """Return column, field name, type, and whether the field is packed (else bytes), of each column."""
    fields = events_pb2.EventBlock.DESCRIPTOR.fields_by_name
    packed = {name for name, field in fields.items() if field.type != field.TYPE_BYTES}
    return tuple((c, n, COLUMN_DTYPES[c], n in packed) for c, n in zip(Column, COLUMN_NAMES, strict=True))


_REQUEST_TWIN: Final = _make_twin()
_LAYOUT: Final = _make_layout()


def _decode_plain(data: bytes, declared: Sequence[Column]) -> DecodedBlock | None:
    """Decode a block that is written plainly and breaks no rule; ``None`` for anything else."""
    request = _REQUEST_TWIN()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return None
    block = request.block
    if not request.HasField("block") or _has_unknown(request) or _has_unknown(block):
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for column, name, dtype, is_packed in _LAYOUT:
        content = getattr(block, name)
        raw = _joined(content, dtype.itemsize) if is_packed else content
        is_declared = column in declared
        if raw is None or len(raw) != (block.event_count * dtype.itemsize if is_declared else 0):
            return None
        if is_declared:
            arrays[name] = np.frombuffer(raw, dtype)
    crcs = _joined(block.column_crcs, CRC_DTYPE.itemsize)
    if crcs is None or len(crcs) != len(declared) * CRC_DTYPE.itemsize:
        return None
    events = EventColumns(**arrays)
    if _first_bad_kind(events.kinds) is not None:
        return None
    return DecodedBlock(block.first_event, events, tuple(np.frombuffer(crcs, CRC_DTYPE).tolist()))


def _has_unknown(message: Any) -> bool:
    return len(unknown_fields.UnknownFieldSet(message)) > 0


def _joined(chunks: Sequence[bytes], itemsize: int) -> bytes | None:
    """Return the chunks of a packed field as one; ``None`` if one of several ends inside a value."""
    if len(chunks) == 1:
        return chunks[0]
    return None if any(len(chunk) % itemsize for chunk in chunks) else b"".join(chunks)


# The contract's own messages: blocks in any other form, plain events, and every refusal.


def _decode_block(block: events_pb2.EventBlock, declared: Sequence[Column]) -> DecodedBlock:
    """Decode a block that came in another legal form, or say what is wrong with it."""
    arrays: dict[Column, NDArray[Any]] = {}
    for column, name, dtype, _ in _LAYOUT:
        content: Sequence[int] = getattr(block, name)
        if column not in declared and content:
            raise BadBlock("the session does not declare this column", field=f"block.{name}")
        if column in declared and len(content) != block.event_count:
            message = f"{len(content)} values, but event_count is {block.event_count}"
            raise BadBlock(message, field=f"block.{name}")
        # An enum's numbers have 32 bits until they have been checked; the others have their range.
        wide = np.int32 if column is Column.KINDS else dtype
        arrays[column] = np.fromiter(content, wide, len(content))
    _check_kinds(arrays[Column.KINDS], "block.kinds", block.first_event)
    if len(block.column_crcs) != len(declared):
        message = f"{len(block.column_crcs)} digests, but the session declares {len(declared)} columns"
        raise BadBlock(message, field="block.column_crcs")
    return DecodedBlock(block.first_event, _as_events(arrays, declared), tuple(block.column_crcs))


def _decode_list(events: events_pb2.EventList, declared: Sequence[Column]) -> DecodedBlock:
    """Turn plain events into the columns that a block of them would have."""
    kinds = np.fromiter((event.kind for event in events.events), np.int32)
    _check_kinds(kinds, "events.events.kind", events.first_event)
    arrays: dict[Column, NDArray[Any]] = {Column.KINDS: kinds}
    for column, name in EVENT_FIELDS.items():
        values = np.fromiter((getattr(event, name) for event in events.events), np.uint64)
        largest = int(np.iinfo(COLUMN_DTYPES[column]).max) if column in declared else 0
        beyond = np.flatnonzero(values > np.uint64(largest))
        if len(beyond):
            reason = f"at most {largest} fits" if largest else "the session does not declare its column"
            message = f"{values[beyond[0]]}, but {reason}"
            event = events.first_event + int(beyond[0])
            raise BadBlock(message, field=f"events.events.{name}", event=event)
        arrays[column] = values
    return DecodedBlock(events.first_event, _as_events(arrays, declared), None)


def _as_events(arrays: dict[Column, NDArray[Any]], declared: Sequence[Column]) -> EventColumns:
    """Return the declared ones of ``arrays``, whose values are in range, in their columns' types."""
    kept = [(column, name, dtype) for column, name, dtype, _ in _LAYOUT if column in declared]
    return EventColumns(**{name: arrays[column].astype(dtype, copy=False) for column, name, dtype in kept})


def _checked_columns(events: EventColumns, declared: Sequence[Column]) -> dict[Column, NDArray[Any]]:
    """Return the declared columns as contiguous arrays, or refuse what is not in wire form."""
    arrays: dict[Column, NDArray[Any]] = {}
    for column, name, dtype, _ in _LAYOUT:
        array = events.column(column)
        if (array is not None) != (column in declared):
            raise BadBlock("not declared" if array is not None else "missing", field=f"block.{name}")
        if array is None:
            continue
        if array.dtype != dtype or array.shape != (len(events),):
            message = f"{array.dtype} of shape {array.shape}, expected {dtype} of shape {(len(events),)}"
            raise BadBlock(message, field=f"block.{name}")
        arrays[column] = np.ascontiguousarray(array)
    return arrays


def _first_bad_kind(kinds: NDArray[Any]) -> int | None:
    """Return the row of the first kind that is 0 or unknown."""
    if not len(kinds) or FIRST_KIND <= kinds.min() <= kinds.max() <= LAST_KIND:
        return None
    return int(np.flatnonzero((kinds < FIRST_KIND) | (kinds > LAST_KIND))[0])


def _check_kinds(kinds: NDArray[Any], field: str, first_event: int) -> None:
    row = _first_bad_kind(kinds)
    if row is not None:
        message = f"{kinds[row]} is no event kind ({FIRST_KIND} to {LAST_KIND})"
        raise BadBlock(message, field=field, event=first_event + row)
