"""Whole lines of a text, some thousand at a time, in memory that does not grow with the text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text.words import Words

CHUNK_BYTES: Final = 1 << 21
LONGEST_LINE: Final = 4096  # a record's line is a few hundred bytes
#: Bytes that may be read past a chunk's lines, so that a cursor at a line's end may look ahead.
PADDING: Final = 256

_PADDING: Final = b"\n" * PADDING
_NEWLINE: Final = ord("\n")
_BLANK: Final = ord(" ")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive whole lines of a text.

    Attributes:
        text: The lines' bytes, then ``PADDING`` newlines; every line ends with a newline.
        words: The eight bytes from each place of ``text`` on, as one number.
        starts: Where each line begins, int64.
        ends: Where each line ends: at its newline, or at the blanks before it.
        lines: The number of each line, counted from 1.
        too_long: The numbers of lines left out among these, as longer than ``LONGEST_LINE``.
        cut_line: Whether the text ended here within a line, which is left out.

    """

    text: bytes
    words: Words
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]
    too_long: tuple[int, ...] = ()
    cut_line: bool = False

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self.starts)

    def mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each line whether it is among some."""
        is_there = np.zeros(len(self), np.bool_)
        is_there[rows] = True
        return is_there

    def line(self, at: int) -> bytes:
        """Return a line's bytes without its end."""
        return self.text[int(self.starts[at]) : int(self.ends[at])]


def chunks(parts: Iterable[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a text that comes in parts of any size into chunks of about ``chunk_bytes``.

    The chunks are the same however the parts are cut.
    """
    held = bytearray()
    first_line, is_inside_long = 1, False
    for part in parts:
        held += part
        while len(held) >= chunk_bytes:
            stop = held.rfind(b"\n", 0, chunk_bytes) + 1
            if not stop:
                # A line that fills a chunk: what is known of it is thrown away, its end is still to come.
                del held[:chunk_bytes]
                is_inside_long = True
                continue
            made = _chunk(_padded(held, stop), first_line, is_inside_long=is_inside_long)
            del held[:stop]
            is_inside_long = False
            first_line += len(made) + len(made.too_long)
            yield made
    stop = held.rfind(b"\n") + 1
    has_rest = stop < len(held) or (is_inside_long and not stop)
    if stop or has_rest:
        is_inside_long = is_inside_long and stop > 0
        yield _chunk(_padded(held, stop), first_line, is_inside_long=is_inside_long, is_cut=has_rest)


def _padded(held: bytearray, stop: int) -> bytes:
    """Return the first bytes of a text as a chunk holds them."""
    with memoryview(held) as whole, whole[:stop] as lines:
        text = b"".join((lines, _PADDING))
    return text.replace(b"\r\n", b"\n") if b"\r" in text else text


def _chunk(padded: bytes, first_line: int, *, is_inside_long: bool = False, is_cut: bool = False) -> Chunk:
    characters = np.frombuffer(padded, np.uint8)
    newlines = np.flatnonzero(characters[:-PADDING] == _NEWLINE)
    starts = np.empty_like(newlines)
    if len(starts):
        starts[0] = 0
        starts[1:] = newlines[:-1] + 1
    lines = np.arange(first_line, first_line + len(starts))
    is_kept = newlines - starts <= LONGEST_LINE
    if is_inside_long and len(is_kept):
        is_kept[0] = False
    too_long: tuple[int, ...] = ()
    if not is_kept.all():
        too_long = tuple(lines[~is_kept].tolist())
        starts, newlines, lines = starts[is_kept], newlines[is_kept], lines[is_kept]
    words: Words = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    return Chunk(padded, words, starts, _trimmed(characters, starts, newlines), lines, too_long, is_cut)


def _trimmed(
    characters: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return where the lines end without the blanks that they end with."""
    ends = ends.copy()
    left = np.flatnonzero((ends > starts) & (characters[ends - 1] == _BLANK))
    while len(left):
        ends[left] -= 1
        left = left[(ends[left] > starts[left]) & (characters[ends[left] - 1] == _BLANK)]
    return ends
