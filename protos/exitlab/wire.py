"""The few bytes around a field whose content is already as it goes over the wire.

protobuf for Python copies what is put into a message, and has no fast way into a packed field.
"""

from typing import Final

_LENGTH_DELIMITED: Final = 2


def delimited(field_number: int, content: bytes) -> bytes:
    """Return a field of a message, of a packed array or of bytes, as protobuf writes it."""
    return b"".join([_varint(field_number << 3 | _LENGTH_DELIMITED), _varint(len(content)), content])


def _varint(number: int) -> bytes:
    """Return a number in base 128, low digits first, the high bit on all but the last."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
