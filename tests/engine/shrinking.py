"""A shrinker: from a stream that shows a fault to a smallest one that still does, the same every time.

Delta debugging over events: leave out ever smaller runs of them, then single ones, then make columns zero,
or at least clear bits of them from the top. What is left loses the fault if any one event goes.
"""

from collections.abc import Callable, Iterable

from exitlab.events import COLUMN_NAMES, EventColumns
from tests.engine.build import Row, stream

Shows = Callable[[EventColumns], bool]


def rows_of(events: EventColumns) -> list[Row]:
    """Return the events of a stream that has every column."""
    columns = (getattr(events, name).tolist() for name in COLUMN_NAMES)
    return [Row(*row) for row in zip(*columns, strict=True)]


def shrunk(rows: list[Row], shows: Shows) -> list[Row]:
    """Return a smallest part of ``rows`` that still shows the fault, with as few bits set as can be."""
    size = len(rows) // 2
    while size:
        rows, is_smaller = _without(rows, size, shows)
        size = size // 2 if size > 1 else int(is_smaller)
    for at in range(len(rows)):
        for field in Row._fields[1:]:
            rows = _with_fewer_bits(rows, at, field, shows)
    return rows


def _with_fewer_bits(rows: list[Row], at: int, field: str, shows: Shows) -> list[Row]:
    """Return ``rows`` with one column of one event zero, or without those of its bits that do not matter."""
    value = getattr(rows[at], field)
    bits = [1 << bit for bit in reversed(range(value.bit_length())) if value >> bit & 1]
    for cleared in [value, *bits] if bits else []:
        now = getattr(rows[at], field)
        simpler = [*rows[:at], rows[at]._replace(**{field: now & ~cleared}), *rows[at + 1 :]]
        if now & cleared and shows(stream(simpler)):
            rows = simpler
    return rows


def smallest(streams: Iterable[EventColumns], shows: Shows) -> list[Row]:
    """Return the shortest of what those of ``streams`` that show the fault shrink to."""
    found = [shrunk(rows_of(events), shows) for events in streams if shows(events)]
    return min(found, key=len)


def _without(rows: list[Row], size: int, shows: Shows) -> tuple[list[Row], bool]:
    """Return ``rows`` without the runs of ``size`` events that are not needed, and whether there were any."""
    at, is_smaller = 0, False
    while at < len(rows):
        left = rows[:at] + rows[at + size :]
        if left and shows(stream(left)):
            rows, is_smaller = left, True
        else:
            at += size
    return rows, is_smaller
