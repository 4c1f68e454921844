"""A progress bar for people: on a terminal's standard error only."""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

_WIDTH = 30
_REDRAW_SECONDS = 0.1


class Progress:
    """Draws how many events are sent; silent unless standard error is a terminal."""

    def __init__(self, label: str, total_events: int | None) -> None:
        """Start at zero of ``total_events``, or of an unknown number."""
        self._label = label
        self._total = total_events
        self._is_shown = sys.stderr.isatty()
        self._drawn_at = 0.0
        self._drawn_columns = 0
        self._cuts = 0

    def __enter__(self) -> Self:
        """Return the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wipe the bar."""
        self._wipe()

    def _wipe(self) -> None:
        if self._drawn_columns:
            sys.stderr.write("\r" + " " * self._drawn_columns + "\r")
            sys.stderr.flush()
            self._drawn_columns = 0

    def cut(self) -> None:
        """Count a cut of the stream, and make room for a line that tells of it."""
        self._cuts += 1
        self._wipe()

    def update(self, events: int, fraction_read: float | None = None) -> None:
        """Draw that ``events`` events are sent and how much of the source is read, ten times a second."""
        if not self._is_shown:
            return
        now = time.monotonic()
        if now - self._drawn_at < _REDRAW_SECONDS:
            return
        self._drawn_at = now
        line = bar(self._label, events, self._total, fraction_read)
        if self._cuts:
            line += f", cut {self._cuts} times" if self._cuts > 1 else ", cut once"
        padding = " " * max(0, self._drawn_columns - len(line))
        self._drawn_columns = len(line)
        sys.stderr.write("\r" + line + padding)
        sys.stderr.flush()


@contextlib.contextmanager
def notice(text: str) -> Iterator[None]:
    """Show one line on a terminal's standard error while something is waited for."""
    is_shown = sys.stderr.isatty()
    if is_shown:
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield
    finally:
        if is_shown:
            sys.stderr.write("\r" + " " * len(text) + "\r")
            sys.stderr.flush()


def bar(label: str, events: int, total_events: int | None, fraction_read: float | None = None) -> str:
    """Return one line that says how far a run is: by its events, else by what is read of its source."""
    if total_events:
        share, of = events / total_events, f"of {total_events:,} events"
    elif fraction_read is not None:
        share, of = fraction_read, f"read, {events:,} events"
    else:
        return f"{label} {events:,} events"
    filled = int(min(1.0, share) * _WIDTH)
    return f"{label} [{'#' * filled}{'.' * (_WIDTH - filled)}] {min(1.0, share):4.0%} {of}"
