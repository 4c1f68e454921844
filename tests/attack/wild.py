"""Messages that nobody would send: any field of a valid one set to something, any byte of it changed."""

import copy
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.contract.wire import length_delimited, tag, varint

_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
_EDGES: Final = (0, 1, 2, 3, 255, 256, 257, 1000, 65_535, 65_536, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 63)
_TEXTS: Final = ("", "kvm-6.14", "kvm-default", "seed-2014", "0", "\0", "x" * 257, "\N{GRINNING FACE}" * 99)
_MOST_ITEMS: Final = 66  # one more than a session has lanes and a report prices


def _scalar(field: FieldDescriptor, texts: tuple[str, ...]) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        edges = [low, high, *(edge for edge in _EDGES if edge <= high)]
        return st.integers(0, 5) | st.sampled_from(edges) | st.integers(low, high)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(width=32)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    return st.sampled_from((*_TEXTS, *texts)) | st.text(max_size=20)


def _value(draw: st.DrawFn, field: FieldDescriptor, texts: tuple[str, ...], depth: int) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        kind: Any = field.message_type
        return _message(draw, kind, texts, depth + 1)
    return draw(_scalar(field, texts))


def _message(draw: st.DrawFn, kind: Descriptor, texts: tuple[str, ...], depth: int = 0) -> Message:
    """Draw a message of a few fields, the deeper the fewer."""
    message = GetMessageClass(kind)()
    if kind.fields and depth < 4:
        for _ in range(draw(st.integers(0, 3))):
            set_wildly(draw, message, texts, depth)
    return message


def set_wildly(draw: st.DrawFn, message: Message, texts: tuple[str, ...], depth: int = 0) -> None:
    """Set one field of a message, or of one somewhere in it, to anything that its type allows."""
    if not message.DESCRIPTOR.fields:
        return
    field: Any = draw(st.sampled_from(tuple(message.DESCRIPTOR.fields)))
    found = getattr(message, field.name)
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if hasattr(found, "extend"):
        if is_message and len(found) and draw(st.booleans()):
            set_wildly(draw, found[draw(st.integers(0, len(found) - 1))], texts, depth)
            return
        items = [_value(draw, field, texts, depth) for _ in range(draw(st.integers(0, 3)))]
        if items and draw(st.integers(0, 9)) == 0:
            items = [items[0]] * _MOST_ITEMS
        if draw(st.booleans()):
            del found[:]
        found.extend(items)
    elif is_message:
        if message.HasField(field.name) and draw(st.booleans()):
            set_wildly(draw, found, texts, depth)
        else:
            found.CopyFrom(_value(draw, field, texts, depth))
            found.SetInParent()
    else:
        setattr(message, field.name, _value(draw, field, texts, depth))


@st.composite
def near(draw: st.DrawFn, message: Message, texts: tuple[str, ...] = ()) -> bytes:
    """Draw what is a few changes away from a message: of its fields, and perhaps of its bytes."""
    changed = copy.deepcopy(message)
    for _ in range(draw(st.integers(0, 3))):
        set_wildly(draw, changed, texts)
    return draw(mangled(changed.SerializeToString()))


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw what may become of bytes: the same, cut, with bits flipped, with more behind or doubled."""
    how = draw(st.integers(0, 6))
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == 3:
        return data[:place]
    if how == 4 and data:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    if how == 5:
        number, content = draw(st.integers(1, (1 << 29) - 1)), draw(st.binary(max_size=40))
        return data + draw(
            st.sampled_from([length_delimited(number, content), tag(number, 0) + varint(7), content])
        )
    return data * 2 if how == 6 else data
