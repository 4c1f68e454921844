"""Messages of the contract as JSON text, for scripts."""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message


def as_json(message: Message) -> str:
    """Return a message with all its fields, by their names in the contract.

    It differs from protobuf's own mapping, which reads it all the same, in that numbers of 64 bits are
    numbers like all others, and no strings.
    """
    return to_json(as_object(message))


def as_object(message: Message) -> dict[str, Any]:
    """Return what ``as_json`` says as an object."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _make_numbers(found, message.DESCRIPTOR)
    return found


def as_line(message: Message) -> str:
    """Return a message in a line by protobuf's own mapping: nothing is lost, and every reader knows it."""
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True))


def to_json(found: object) -> str:
    """Return an object as text."""
    return json.dumps(found, indent=2)


def _make_numbers(found: dict[str, Any], descriptor: Any) -> None:
    """Turn numbers of 64 bits from strings into numbers, in place."""
    for field in descriptor.fields:
        value = found.get(field.name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if field.message_type is not None:
            for one in values:
                _make_numbers(one, field.message_type)
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            found[field.name] = [int(one) for one in values] if isinstance(value, list) else int(value)
