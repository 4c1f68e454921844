"""Wire vectors: bytes, what they say, and the bytes that say it.

``vectors.json`` is the record. Its first rows were written by hand: legal forms that Python never writes,
fields and numbers that v1 does not know. The others have each field of each message once, with telling
values; rows are only ever added, for messages and fields that have none yet. A row has

- ``hex``, the bytes, of ``message``, and ``json``, what they say in protobuf's JSON form;
- ``written``, where another reader that keeps all would write something else than ``hex``;
- ``plain``, where the bytes of ``json`` alone are something else than ``hex``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

VECTORS: Final = Path(__file__).parent / "vectors.json"
Row = dict[str, Any]
_ABOVE_2_53: Final = 0xFEDC_BA98_7654_3200
_NUMBERS: Final = {
    FieldDescriptor.TYPE_UINT64: _ABOVE_2_53,
    FieldDescriptor.TYPE_FIXED64: _ABOVE_2_53,
    FieldDescriptor.TYPE_UINT32: 0xFEDC_BA00,
    FieldDescriptor.TYPE_FIXED32: 0xFEDC_BA00,
}


def read_vectors(path: Path = VECTORS) -> list[Row]:
    """Return the rows."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def write_vectors(rows: list[Row], path: Path = VECTORS) -> None:
    """Write the rows, a line for each of their parts."""
    texts = []
    for row in rows:
        parts = (
            f"{json.dumps(name)}: {json.dumps(part, ensure_ascii=False, sort_keys=True)}"
            for name, part in row.items()
        )
        texts.append("{{\n  {}\n}}".format(",\n  ".join(parts)))
    path.write_text("[{}]\n".format(", ".join(texts)), encoding="utf-8")


def message_types(pool: DescriptorPool, files: list[str]) -> Iterator[Descriptor]:
    """Go through the messages of files."""
    for name in files:
        yield from pool.FindFileByName(name).message_types_by_name.values()


def message_class(described: Descriptor) -> type[Message]:
    """Return the class of a message."""
    return message_factory.GetMessageClass(described)


def says(message: Message) -> dict[str, Any]:
    """Return a message in JSON form, fields by their own names."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def lacking_rows(types: list[Descriptor], rows: list[Row]) -> list[Row]:
    """Return rows for the messages and fields that ``rows`` do not have."""
    covered = {(row["message"], field) for row in rows for field in row["json"]}
    known = {row["message"] for row in rows}
    lacking = []
    for described in types:
        name = described.full_name
        left = [field for field in described.fields if (name, field.name) not in covered]
        alone = [[field] for field in left if field.containing_oneof is not None]
        together = [field for field in left if field.containing_oneof is None]
        if together or (name not in known and not alone):
            alone.insert(0, together)
        for fields in alone:
            message = message_class(described)()
            for field in fields:
                _fill(message, field)
            what = f"{described.name}: {', '.join(field.name for field in fields) or 'nothing'}"
            data = message.SerializeToString(deterministic=True)
            lacking.append({"what": what, "message": name, "hex": data.hex(), "json": says(message)})
    return lacking


def _fill(message: Message, field: FieldDescriptor) -> None:
    """Set a field; a list has two values, or a number, 0 and another."""
    if field.message_type is not None:
        target = getattr(message, field.name)
        for inner in [target.add(), target.add()] if _is_repeated(field) else [target]:
            inner.SetInParent()
            for first in list(field.message_type.fields)[:1]:
                _fill(inner, first)
        return
    value = _value(field)
    if not _is_repeated(field):
        setattr(message, field.name, value)
    elif isinstance(value, int):
        getattr(message, field.name).extend([value, 0, 1])
    else:
        getattr(message, field.name).extend([value, value])


def _value(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return max(value.number for value in field.enum_type.values)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"{field.name} \u00e9\u4e2d\U0001f300"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes([0, 0x7F, 0x80, 0xFF, field.number])
    return _NUMBERS[field.type] + field.number


def _is_repeated(field: FieldDescriptor) -> bool:
    return isinstance(field.default_value, list)
