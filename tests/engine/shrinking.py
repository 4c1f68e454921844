"""A shrinker: from a stream that shows a fault to a smallest one that still does, the same every time.

Delta debugging over events: leave out ever smaller runs of them, then single ones, then make columns zero.
What is left loses the fault if any one event goes.
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
    """Return a smallest part of ``rows`` that still shows the fault, with as few columns set as can be."""
    size = len(rows) // 2
    while size:
        rows, is_smaller = _without(rows, size, shows)
        size = size // 2 if size > 1 else int(is_smaller)
    for at in range(len(rows)):
        for name in COLUMN_NAMES[1:]:
            simpler = [*rows[:at], rows[at]._replace(**{_FIELDS[name]: 0}), *rows[at + 1 :]]
            if simpler != rows and shows(stream(simpler)):
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


_FIELDS = dict(zip(COLUMN_NAMES, Row._fields, strict=True))
