"""Texts that come again and again, each read once: heads of lines, names of events and reasons.

A trace of a million lines has a handful of threads, events and reasons. A text's digest finds what
was read of it in a table; what is not there yet is read in plain Python, by the function that the
lexicon was made with. Two texts are told apart by 64 bits.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text.chunks import PADDING, Chunk
from guest_svc.traces.text.words import FIRST_BYTES, U64, WORD_BYTES, Counts, mixed

LONGEST_TEXT: Final = PADDING // 2 - WORD_BYTES
_SLOT_BITS: Final = 14
_MOST_TEXTS: Final = 1 << 16  # then all is forgotten and read again


class Lexicon:
    """What texts say, as one number each."""

    def __init__(self, read: Callable[[bytes], int]) -> None:
        """Take the function that reads a text; it must give the same number for the same text."""
        self._read = read
        self._digests = np.zeros(1 << _SLOT_BITS, U64)
        self._values = np.zeros(1 << _SLOT_BITS, np.int64)
        self._is_used = np.zeros(1 << _SLOT_BITS, np.bool_)
        self._known: dict[bytes, int] = {}

    def values(self, chunk: Chunk, starts: Counts, lengths: Counts) -> NDArray[np.int64]:
        """Return what each text says; it is at most ``LONGEST_TEXT`` bytes."""
        digests = lengths.astype(U64)
        for skipped in range(0, int(lengths.max(initial=0)), WORD_BYTES):
            kept = FIRST_BYTES[np.clip(lengths - skipped, 0, WORD_BYTES)]
            digests = mixed(digests, chunk.words[starts + skipped] & kept)
        slots = (digests >> U64(64 - _SLOT_BITS)).astype(np.int64)
        values = self._values[slots]
        missing = np.flatnonzero((self._digests[slots] != digests) | ~self._is_used[slots])
        if len(missing):
            _, first, which = np.unique(digests[missing], return_index=True, return_inverse=True)
            read = np.empty(len(first), np.int64)
            for number, at in enumerate(missing[first]):
                start = int(starts[at])
                read[number] = self._value(chunk.text[start : start + int(lengths[at])])
            values[missing] = read[which]
            kept_slots = slots[missing[first]]
            self._digests[kept_slots] = digests[missing[first]]
            self._values[kept_slots] = read
            self._is_used[kept_slots] = True
        return values

    def _value(self, text: bytes) -> int:
        value = self._known.get(text)
        if value is None:
            if len(self._known) == _MOST_TEXTS:
                self._known.clear()
            value = self._known[text] = self._read(text)
        return value
