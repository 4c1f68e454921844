"""Where in a line the time stands, and what it says: all that comes before it is the line's head.

The place differs by the widths of names and numbers, so a trace has a few distinct ones. Each is found
once, in one line, by a regular expression, and then tried on all lines at once.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text.chunks import Chunk
from guest_svc.traces.text.cursors import Cursors
from guest_svc.traces.text.heads import TIME, read_head
from guest_svc.traces.text.lexicon import LONGEST_TEXT
from guest_svc.traces.text.words import Counts

_NANOSECONDS: Final = 1_000_000_000
_MICROSECOND_DIGITS: Final = 6
_NANOSECOND_DIGITS: Final = 9
_LONGEST_TIME: Final = 32
_FEW: Final = 32  # lines that are looked through one by one for a new place
_MOST_SECONDS: Final = 9_000_000_000  # below 2^63 nanoseconds


@dataclass(frozen=True, slots=True, eq=False)
class Timed:
    """Lines of a chunk that have a time, in order.

    Attributes:
        rows: Which lines.
        head_lengths: Bytes before the time.
        at: Where what follows the time begins.
        time_ns: The time in nanoseconds.

    """

    rows: NDArray[np.int64]
    head_lengths: Counts
    at: Counts
    time_ns: NDArray[np.int64]


class Times:
    """The places at which the time has begun so far, the likeliest first."""

    def __init__(self) -> None:
        """Know no place yet."""
        self._lines_at: Counter[int] = Counter()

    def find(self, chunk: Chunk) -> tuple[Timed, list[int]]:
        """Return the lines that have a time, and which others there are."""
        left = np.arange(len(chunk))
        found: list[Timed] = []
        for place, _ in self._lines_at.most_common():
            if not len(left):
                break
            left = self._take(chunk, left, place, found)
        others: list[int] = []
        while len(left):
            few, left = left[:_FEW], left[_FEW:]
            rows_at: dict[int, list[int]] = {}
            for row in few.tolist():
                first = _time_place(chunk.line(row))
                if first is None:
                    others.append(row)
                else:
                    rows_at.setdefault(first, []).append(row)
            for place, rows in rows_at.items():
                is_new = place not in self._lines_at
                others += self._take(chunk, np.array(rows, np.int64), place, found).tolist()
                if is_new:
                    left = self._take(chunk, left, place, found)
        return _in_order(found), sorted(others)

    def _take(
        self, chunk: Chunk, rows: NDArray[np.int64], place: int, found: list[Timed]
    ) -> NDArray[np.int64]:
        """Add those lines to ``found`` whose time begins at a place, and return the others."""
        cursors = Cursors(chunk, rows, chunk.starts[rows] + place - (place > 0))
        if place:
            cursors.literal(b" ")
        cursors.number("seconds", is_hex=False)
        cursors.literal(b".")
        cursors.mark("point")
        cursors.number("fraction", is_hex=False)
        digits = cursors.at - cursors.marks["point"]
        is_micro = digits == _MICROSECOND_DIGITS
        seconds = cursors.numbers["seconds"].astype(np.int64)
        cursors.keep((is_micro | (digits == _NANOSECOND_DIGITS)) & (seconds < _MOST_SECONDS))
        cursors.literal(b": ")
        rows_taken = cursors.rows
        if not len(rows_taken):
            return rows
        digits = cursors.at - cursors.marks["point"] - len(": ")
        seconds = cursors.numbers["seconds"].astype(np.int64)
        fraction = cursors.numbers["fraction"].astype(np.int64)
        scale = np.where(digits == _MICROSECOND_DIGITS, 1000, 1)
        lengths = np.full(len(rows_taken), place, np.int64)
        found.append(Timed(rows_taken, lengths, cursors.at, seconds * _NANOSECONDS + fraction * scale))
        self._lines_at[place] += len(rows_taken)
        if len(rows_taken) == len(rows):
            return rows[:0]
        return rows[~chunk.mask(rows_taken)[rows]]


def _time_place(line: bytes) -> int | None:
    """Return where a line's time begins: the first that has a head before it, as a name may look like one."""
    for time in TIME.finditer(line, 0, LONGEST_TEXT + _LONGEST_TIME):
        if time.start() <= LONGEST_TEXT and not time[1] and read_head(line[: time.start()]) is not None:
            return time.start()
    return None


def _in_order(found: list[Timed]) -> Timed:
    """Return lines that were found place by place in the order of the trace."""
    if len(found) == 1:
        return found[0]
    none = np.zeros(0, np.int64)
    columns = [
        np.concatenate([none, *(getattr(part, name) for part in found)])
        for name in ("rows", "head_lengths", "at", "time_ns")
    ]
    order = np.argsort(columns[0])
    return Timed(*(column[order] for column in columns))
