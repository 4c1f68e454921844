"""A row of cursors, one a line, that walk along a format and take columns of numbers and texts.

It is scanf for thousands of lines at a time. A cursor that meets something else is lost: its line is
not of this format.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text import words as w
from guest_svc.traces.text.chunks import Chunk
from guest_svc.traces.text.lexicon import LONGEST_TEXT
from guest_svc.traces.text.words import FIRST_BYTES, U64, WORD_BYTES, Counts, Words

BLANK: Final = ord(" ")
_FIELD: Final = re.compile(r"\{(\w+):([dxs])\}")


@dataclass(frozen=True, slots=True)
class Literal:
    """Characters that must be there."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Number:
    """A number of at most 16 digits: lower-case hexadecimal, or decimal."""

    name: str
    is_hex: bool


@dataclass(frozen=True, slots=True)
class Text:
    """What is there up to some characters, or up to the line's end where they are empty."""

    name: str
    until: bytes


Step = Literal | Number | Text


@cache
def parse_format(text: str) -> tuple[Step, ...]:
    """Return the steps of a format such as ``vcpu {vcpu:d}, rip 0x{rip:x}``.

    ``:d`` stands for a decimal number, ``:x`` for a hexadecimal one, ``:s`` for any text.
    """
    pieces = _FIELD.split(text)
    steps: list[Step] = [Literal(pieces[0].encode())] if pieces[0] else []
    for name, kind, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        until = literal.encode()
        steps.append(Text(name, until) if kind == "s" else Number(name, kind == "x"))
        if until:
            steps.append(Literal(until))
    return tuple(steps)


class Cursors:
    """Where each of some lines is read; ``rows`` are those lines that are not lost."""

    def __init__(self, chunk: Chunk, rows: NDArray[np.int64], at: Counts) -> None:
        """Begin at some places of these rows of a chunk."""
        self._chunk = chunk
        self.rows = rows
        self.at = at
        self.numbers: dict[str, Words] = {}
        self.marks: dict[str, Counts] = {}
        self.texts: dict[str, tuple[Counts, Counts]] = {}

    def walk(self, steps: tuple[Step, ...], *, is_whole: bool = True) -> None:
        """Walk along a format; up to the line's end if it is to be the whole of it."""
        for step in steps:
            if not len(self.rows):
                break
            if isinstance(step, Literal):
                self.literal(step.text)
            elif isinstance(step, Number):
                self.number(step.name, is_hex=step.is_hex)
            else:
                self.text(step.name, step.until)
        if is_whole:
            self.keep(self.at == self._chunk.ends[self.rows])

    def literal(self, text: bytes) -> None:
        """Pass characters."""
        is_there = np.ones(len(self.rows), np.bool_)
        for skipped in range(0, len(text), WORD_BYTES):
            part = text[skipped : skipped + WORD_BYTES]
            found = self._words(self.at + skipped) & FIRST_BYTES[len(part)]
            is_there &= found == U64(int.from_bytes(part, "little"))
        self.at = self.at + len(text)
        self.keep(is_there)

    def number(self, name: str, *, is_hex: bool) -> None:
        """Take a number of at least one digit."""
        read, join = (w.hex_digits, w.joined_hex) if is_hex else (w.decimal_digits, w.joined_decimal)
        values, counts = read(self._words(self.at))
        longer = np.flatnonzero(counts == WORD_BYTES)
        if len(longer):
            more, more_counts = read(self._words(self.at[longer] + WORD_BYTES))
            is_more = more_counts > 0
            longer, more, more_counts = longer[is_more], more[is_more], more_counts[is_more]
            values[longer] = join(values[longer], more, more_counts)
            counts[longer] += more_counts
        self.numbers[name] = values
        self.at = self.at + counts
        self.keep(counts > 0)

    def text(self, name: str, until: bytes) -> None:
        """Take what is there up to some characters, of which the first is a blank or a colon."""
        starts = self.at
        if not until:
            self.at = self._chunk.ends[self.rows]
            self._take_text(name, starts, self.at - starts <= LONGEST_TEXT)
            return
        stops = starts.copy()
        is_found = np.zeros(len(starts), np.bool_)
        target = U64(int.from_bytes(until[:WORD_BYTES], "little"))
        kept = FIRST_BYTES[min(len(until), WORD_BYTES)]
        left = np.arange(len(starts))
        limit = starts + LONGEST_TEXT
        while len(left):
            steps = w.bytes_before(self._words(stops[left]), until[0])
            stops[left] += steps
            is_here = (self._words(stops[left]) & kept == target) & (steps < WORD_BYTES)
            is_found[left[is_here]] = True
            stops[left[~is_here]] += steps[~is_here] < WORD_BYTES
            left = left[~is_here & (stops[left] < np.minimum(limit[left], self._chunk.ends[self.rows[left]]))]
        self.at = stops
        self._take_text(name, starts, is_found & (stops > starts))

    def blanks(self) -> None:
        """Pass blanks, if there are any."""
        left = np.arange(len(self.rows))
        at = self.at.copy()
        while len(left):
            steps = w.bytes_equal_to(self._words(at[left]), BLANK)
            at[left] += steps
            left = left[steps == WORD_BYTES]
        self.at = at

    def _take_text(self, name: str, starts: Counts, is_taken: NDArray[np.bool_]) -> None:
        self.texts[name] = starts, self.at - starts
        self.keep(is_taken)

    def mark(self, name: str) -> None:
        """Take the place where each cursor is."""
        self.marks[name] = self.at

    def _words(self, at: Counts) -> Words:
        """Return the eight bytes from each place on; past the chunk there are newlines only.

        No cursor passes its line's end, and none looks further ahead than the chunk is padded.
        """
        found: Words = self._chunk.words[at]
        return found

    def keep(self, is_kept: NDArray[np.bool_]) -> None:
        """Lose the cursors that are not kept, with what they have taken."""
        if is_kept.all():
            return
        self.rows, self.at = self.rows[is_kept], self.at[is_kept]
        self.numbers = {name: values[is_kept] for name, values in self.numbers.items()}
        self.marks = {name: places[is_kept] for name, places in self.marks.items()}
        self.texts = {
            name: (starts[is_kept], lengths[is_kept]) for name, (starts, lengths) in self.texts.items()
        }
