"""A server's log: structured lines on standard error, for a machine or for people.

An id of a session or of a run is the capability to use it, so a log never has the whole of it.
"""

import contextlib
import logging
import sys
from typing import Any, Final

import structlog

SHOWN_ID_CHARACTERS: Final = 8

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Writer(structlog.WriteLogger):
    """Writes lines; a log whose reader has gone fails no call."""

    def msg(self, message: str) -> None:
        """Write a line if anybody still reads."""
        with contextlib.suppress(OSError, ValueError):
            super().msg(message)

    debug = info = warning = error = critical = exception = msg


def configure(log_format: str, level: str = "info") -> None:
    """Send the log to standard error in ``log_format``, ``console`` or ``json``."""
    if log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback  # not rich's, which would be loaded if installed
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Whatever standard error is when a line is written: a held one may have been closed.
        logger_factory=lambda *_: _Writer(sys.stderr),
        cache_logger_on_first_use=False,
    )


def bound(*, peer: str = "", **ids: str) -> contextlib.AbstractContextManager[None]:
    """Bind a peer, the ids of what it is about (``session``, ``run``), or all, to the lines logged inside."""
    values = {"peer": peer, **{name: an_id[:SHOWN_ID_CHARACTERS] for name, an_id in ids.items()}}
    return structlog.contextvars.bound_contextvars(**{name: value for name, value in values.items() if value})


if not structlog.is_configured():
    configure("console")  # its own default is standard output, which is not the log's
