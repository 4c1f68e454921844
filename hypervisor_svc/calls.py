"""How many calls there are that last, and whose."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from exitlab.serving.identity import NOBODY
from exitlab.serving.refusals import LimitReached
from hypervisor_svc.limits import ServerLimits


class LongCalls:
    """Streams, and watchers of reports, which hold as much as a stream does."""

    def __init__(self, limits: ServerLimits) -> None:
        """Start with none."""
        self._limits = limits
        self._open: Counter[str] = Counter()  # by owner

    @contextlib.contextmanager
    def counted(self, owner: str) -> Iterator[None]:
        """Count a call while it lasts; refuse one more than there may be.

        One owner has no use for more than he may have sessions, and others shall find room too.
        """
        count, own = self._open.total(), self._open[owner]
        if count >= self._limits.max_streams:
            message = f"{count} streams are open, and no more are allowed"
            raise LimitReached("TOO_MANY_STREAMS", message, max_streams=self._limits.max_streams)
        if owner != NOBODY and own >= self._limits.max_sessions:
            message = f"{own} streams of yours are open, as many as you may have sessions"
            raise LimitReached("TOO_MANY_STREAMS", message, max_sessions=self._limits.max_sessions)
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]
