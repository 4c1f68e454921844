"""Records as bytes and back: what a checkpoint keeps of an engine.

Most of what an engine counts is zero, so of each array only what is not zero is written: its shape, how
many words are not zero, their places and they. All numbers are little-endian, places and lengths of 32
bits, words of 64. Hash tables keep their layout.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from hypervisor_svc.engine.records import Words

_PLACE: Final = np.dtype("<u4")
_WORD: Final = np.dtype("<u8")


class BadSnapshot(ValueError):
    """Bytes that are no snapshot of this engine."""


def pack(arrays: Iterable[Words]) -> bytes:
    """Return arrays as bytes."""
    made: list[bytes] = []
    for array in arrays:
        flat = array.ravel()
        places = np.flatnonzero(flat)
        made.append(np.array([array.ndim, *array.shape, len(places)], _PLACE).tobytes())
        made.append(places.astype(_PLACE).tobytes())
        made.append(flat[places].astype(_WORD).tobytes())
    return b"".join(made)


class Unpacker:
    """Takes arrays off a snapshot, in the order in which they were packed."""

    def __init__(self, data: bytes) -> None:
        """Begin with the first."""
        self._data = data
        self._at = 0

    def take(self) -> Words:
        """Return the next array.

        Raises:
            BadSnapshot: there is none.

        """
        (dimensions,) = self._numbers(1, _PLACE)
        *shape, count = self._numbers(int(dimensions) + 1, _PLACE).tolist()
        array: Words = np.zeros(shape, np.uint64)
        places = self._numbers(count, _PLACE)
        if count and int(places.max()) >= array.size:
            raise BadSnapshot("a word past its array's end")
        array.reshape(-1)[places] = self._numbers(count, _WORD)
        return array

    def take_like(self, array: Words) -> Words:
        """Return the next array, which must have another's shape.

        Raises:
            BadSnapshot: it has not, or there is none.

        """
        found = self.take()
        if found.shape != array.shape:
            raise BadSnapshot(f"an array of {found.shape}, expected {array.shape}")
        return found

    def end(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._data):
            raise BadSnapshot(f"{len(self._data) - self._at} bytes too many")

    def _numbers(self, count: int, kind: "np.dtype[np.uint32] | np.dtype[np.uint64]") -> Words:
        size = count * kind.itemsize
        if size > len(self._data) - self._at:
            raise BadSnapshot(f"ends after {len(self._data)} bytes")
        found: Words = np.frombuffer(self._data, kind, count, self._at).astype(np.uint64)
        self._at += size
        return found
