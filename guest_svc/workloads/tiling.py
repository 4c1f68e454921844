"""Patterns of events, built once and laid end to end.

A workload's stream is a row of *segments*; each segment is one of a few *patterns* (a context
switch of one task, a timer tick). Patterns are built event by event, once; blocks are gathered from
them whole arrays at a time. The first event of a segment takes the segment's own share of guest
time, so that a rate is kept exactly by whole numbers: the n-th segment begins at
floor(n * clock / rate) and nothing drifts.

Randomness is a function of (seed, number of the segment), never of what was drawn before: a block
is the same wherever the stream is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from guest_svc.workloads.base import BLOCK_EVENTS, BadParameter, Blocks, GeneratedWorkload

LARGEST_GAP_CYCLES: Final = (1 << 32) - 1

_MASK_64: Final = (1 << 64) - 1
# The finalizer and the increment of splitmix64 (Steele, Lea and Flood, "Fast splittable
# pseudorandom number generators"): each number is a pure function of its index.
_INCREMENT: Final = 0x9E37_79B9_7F4A_7C15
_FACTOR_1: Final = 0xBF58_476D_1CE4_E5B9
_FACTOR_2: Final = 0x94D0_49BB_1331_11EB


def random_number(seed: int, index: int) -> int:
    """Return the 64 random bits that ``seed`` has at ``index``."""
    return int(random_numbers(seed, index, index + 1)[0])


def random_numbers(seed: int, start: int, stop: int) -> NDArray[np.uint64]:
    """Return the 64 random bits that ``seed`` has at each index from ``start`` to ``stop``."""
    index = np.arange(start + 1, stop + 1, dtype=np.uint64)
    mixed = index * np.uint64(_INCREMENT) + np.uint64(seed & _MASK_64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FACTOR_1)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_FACTOR_2)
    numbers: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return numbers


def random_choices(seed: int, start: int, stop: int, weights: Sequence[int]) -> NDArray[np.int64]:
    """Return for each index from ``start`` to ``stop`` a choice among ``len(weights)``."""
    drawn = (random_numbers(seed, start, stop) >> np.uint64(32)) % np.uint64(sum(weights))
    choices: NDArray[np.int64] = np.searchsorted(np.cumsum(weights), drawn.astype(np.int64), side="right")
    return choices


@dataclass(frozen=True, slots=True)
class Pace:
    """Exact times at a rate: the n-th thing of a rate ``per_second`` begins at cycle ``starts(n)``."""

    clock_hertz: int
    per_second: int

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return floor(n * clock / rate) for each n."""
        common = gcd(self.clock_hertz, self.per_second)
        clock, rate = self.clock_hertz // common, self.per_second // common
        # In two steps: n * clock would pass 64 bits in a long stream.
        wholes, rests = np.divmod(numbers, rate)
        cycles: NDArray[np.int64] = wholes * clock + rests * clock // rate
        return cycles

    def cycles_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cycles from the start of each n to that of n + 1."""
        cycles: NDArray[np.int64] = self.starts(numbers + 1) - self.starts(numbers)
        return cycles

    @property
    def least_cycles(self) -> int:
        """The fewest cycles between two."""
        return self.clock_hertz // self.per_second


@dataclass(slots=True)
class Pattern:
    """Events of one segment, added one by one."""

    rows: list[dict[Column, int]] = field(default_factory=list)

    def add(
        self,
        kind: EventKind,
        arg: int = 0,
        *,
        marks: int = 0,
        vcpu: int = 0,
        gap_cycles: int = 0,
        selector: int = 0,
        value: int = 0,
    ) -> "Pattern":
        """Add one event."""
        self.rows.append(
            {
                Column.KINDS: int(kind),
                Column.ARGS: arg,
                Column.MARKS: marks,
                Column.VCPUS: vcpu,
                Column.GAP_CYCLES: gap_cycles,
                Column.SELECTORS: selector,
                Column.VALUES: value,
            }
        )
        return self

    @property
    def cycles(self) -> int:
        """The sum of the gaps."""
        return sum(row[Column.GAP_CYCLES] for row in self.rows)


@dataclass(frozen=True, slots=True)
class Segments:
    """Consecutive segments: the pattern of each, and cycles to add before its first event."""

    patterns: NDArray[np.int64]
    extra_cycles: NDArray[np.int64]


class PatternTable:
    """All patterns of a workload, ready to be laid end to end."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        """Turn the patterns into flat columns."""
        rows = [row for pattern in patterns for row in pattern.rows]
        self._flat: dict[Column, NDArray[Any]] = {
            column: np.array([row.get(column, 0) for row in rows], dtype=COLUMN_DTYPES[column])
            for column in Column
            if column in (Column.KINDS, Column.GAP_CYCLES) or any(row.get(column, 0) for row in rows)
        }
        self.lengths = np.array([len(pattern.rows) for pattern in patterns], dtype=np.int64)
        self.cycles = np.array([pattern.cycles for pattern in patterns], dtype=np.int64)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._is_even = bool((self.lengths == self.lengths[0]).all())

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns in which some event is not zero; kinds and gaps always."""
        return tuple(self._flat)

    def lay(self, segments: Segments) -> EventColumns:
        """Return the events of ``segments``."""
        gather = self._gather_even if self._is_even else self._gather_uneven
        columns, firsts = gather(segments.patterns)
        gaps = columns["gap_cycles"]
        gaps[firsts] += segments.extra_cycles.astype(np.uint32)
        return EventColumns(**columns)

    def _gather_even(self, chosen: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], Any]:
        # All patterns are equally long: whole patterns are copied, three times as fast as events.
        length = int(self.lengths[0])
        columns = {
            COLUMN_NAMES[column - 1]: flat.reshape(-1, length)[chosen].reshape(-1)
            for column, flat in self._flat.items()
        }
        return columns, slice(None, None, length)

    def _gather_uneven(self, chosen: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], Any]:
        lengths = self.lengths[chosen]
        ends = np.cumsum(lengths)
        firsts = ends - lengths
        rows = np.arange(int(ends[-1])) + np.repeat(self._starts[chosen] - firsts, lengths)
        columns = {COLUMN_NAMES[column - 1]: flat[rows] for column, flat in self._flat.items()}
        return columns, firsts


class TiledWorkload(GeneratedWorkload):
    """A workload of *steps* (switches, ticks, operations), each of one or a few segments.

    A subclass sets ``table``, ``default_steps``, ``step_events`` (the most events of one step) and
    ``clock_hertz``, answers ``segments`` and then calls ``_finish``.
    """

    table: PatternTable
    default_steps: int
    step_events: int

    def segments(self, start: int, stop: int) -> Segments:
        """Return the segments of the steps from ``start`` to ``stop``."""
        raise NotImplementedError

    def pace_of(self, parameter: str, needed_cycles: int) -> Pace:
        """Return the pace that a rate parameter asks for.

        Raises:
            BadParameter: A step does not fit between two, or the gap between two does not fit 32 bits.

        """
        pace = Pace(self.clock_hertz, self.number(parameter))
        if pace.least_cycles < needed_cycles:
            raise BadParameter(
                f"{self.name}: {parameter}={pace.per_second}: each needs {needed_cycles} cycles, so expected"
                f" at most {self.clock_hertz // needed_cycles} at clock_hertz={self.clock_hertz}"
            )
        if pace.least_cycles >= LARGEST_GAP_CYCLES:
            raise BadParameter(
                f"{self.name}: {parameter}={pace.per_second}: expected more than"
                f" {self.clock_hertz // LARGEST_GAP_CYCLES} at clock_hertz={self.clock_hertz}"
            )
        return pace

    def _finish(self) -> None:
        self.columns = self.table.columns
        self.total_events = self.records = self.events_asked or self._count_events(self.default_steps)

    def _count_events(self, steps: int) -> int:
        chunk = 1 << 16
        return sum(
            int(self.table.lengths[self.segments(start, min(start + chunk, steps)).patterns].sum())
            for start in range(0, steps, chunk)
        )

    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield all events from the start, at most ``block_events`` at a time."""
        steps = max(1, block_events // self.step_events)
        left, start = self.records, 0
        while left > 0:
            laid = self.table.lay(self.segments(start, start + steps))
            start += steps
            for row in range(0, min(len(laid), left), block_events):
                yield laid.rows(row, min(row + block_events, len(laid), left))
            left -= len(laid)
