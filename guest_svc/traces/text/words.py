"""Digits of many lines at once: eight characters are one 64-bit word, and a word is read by arithmetic.

The first character of a word is its lowest byte. Every function takes and returns arrays of words, one a
line; nothing is done for a line by itself.

Source: the parallel addition of digits within a word is described by D. Lemire, "Quickly parsing
eight digits", 2018.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

U64 = np.uint64
Words = NDArray[np.uint64]
Counts = NDArray[np.int64]

WORD_BYTES: Final = 8


def _every_byte(byte: int) -> U64:
    return U64(byte * 0x0101_0101_0101_0101)


_ONES: Final = _every_byte(0x01)
_LOW_NIBBLES: Final = _every_byte(0x0F)
_LOW_BITS: Final = _every_byte(0x7F)
_HIGH_BITS: Final = _every_byte(0x80)
_ZERO_CHARACTERS: Final = _every_byte(ord("0"))
_ABOVE_NINE: Final = _every_byte(0x80 - 10)  # added to a nibble, sets the high bit of 10 and more
_LETTER_STEP: Final = U64(ord("a") - ord("0") - 10)
_PAIRS: Final = U64(0x00FF_00FF_00FF_00FF)
_QUADS: Final = U64(0x0000_FFFF_0000_FFFF)
_HALF: Final = U64(0xFFFF_FFFF)
_ONE: Final = U64(1)

#: ``FIRST_BYTES[n]`` keeps the first n characters of a word.
FIRST_BYTES: Final[Words] = np.array([(1 << 8 * n) - 1 for n in range(WORD_BYTES + 1)], U64)
# What moves the n digits that a word begins with to its end.
_TO_END: Final[Words] = np.array([8 * min(WORD_BYTES - n, 7) for n in range(WORD_BYTES + 1)], U64)
_TEN_TO: Final[Words] = np.array([10**n for n in range(WORD_BYTES + 1)], U64)


def first_marked(marks: Words) -> Counts:
    """Return how many bytes lie before the first whose high bit is set; 8 if none is."""
    lowest = marks & (~marks + _ONE)
    return (np.bitwise_count(lowest - _ONE) >> 3).astype(np.int64)


def bytes_before(words: Words, byte: int) -> Counts:
    """Return how many bytes lie before the first that equals ``byte``; 8 if none does."""
    return first_marked(_is_zero(words ^ _every_byte(byte)))


def bytes_equal_to(words: Words, byte: int) -> Counts:
    """Return how many of the first bytes equal ``byte``."""
    return first_marked(_is_not_zero(words ^ _every_byte(byte)))


def hex_digits(words: Words) -> tuple[Words, Counts]:
    """Return the value of the lower-case hexadecimal digits that each word begins with, and their number."""
    nibbles = (words & _LOW_NIBBLES) + ((words >> U64(6)) & _ONES) * U64(9)
    letters = ((nibbles + _ABOVE_NINE) >> U64(7)) & _ONES
    expected = nibbles + _ZERO_CHARACTERS + letters * _LETTER_STEP
    counts = first_marked(_is_not_zero(words ^ expected))
    digits = nibbles << _TO_END[counts]
    digits = ((digits << U64(4)) | (digits >> U64(8))) & _PAIRS
    digits = ((digits << U64(8)) | (digits >> U64(16))) & _QUADS
    return ((digits << U64(16)) | (digits >> U64(32))) & _HALF, counts


def decimal_digits(words: Words) -> tuple[Words, Counts]:
    """Return the value of the decimal digits that each word begins with, and their number."""
    nibbles = words & _LOW_NIBBLES
    wrong = _is_not_zero(words ^ (nibbles + _ZERO_CHARACTERS)) | ((nibbles + _ABOVE_NINE) & _HIGH_BITS)
    counts = first_marked(wrong)
    digits = nibbles << _TO_END[counts]
    digits = (digits * U64(10) + (digits >> U64(8))) & _PAIRS
    digits = (digits * U64(100) + (digits >> U64(16))) & _QUADS
    return (digits * U64(10_000) + (digits >> U64(32))) & _HALF, counts


def joined_hex(high: Words, low: Words, low_counts: Counts) -> Words:
    """Return the value of eight digits followed by ``low_counts`` others."""
    return (high << (U64(4) * low_counts.astype(U64))) | low


def joined_decimal(high: Words, low: Words, low_counts: Counts) -> Words:
    """Return the value of eight digits followed by ``low_counts`` others."""
    return high * _TEN_TO[low_counts] + low


def mixed(digests: Words, words: Words) -> Words:
    """Return digests of texts that go on with ``words``; texts of one length differ in 63 bits or more."""
    digests = (digests ^ words) * U64(0x9E37_79B9_7F4A_7C15)
    return digests ^ (digests >> U64(32))


def _is_not_zero(words: Words) -> Words:
    """Return the high bit of every byte that is not zero."""
    return (((words & _LOW_BITS) + _LOW_BITS) | words) & _HIGH_BITS


def _is_zero(words: Words) -> Words:
    return ~_is_not_zero(words) & _HIGH_BITS
