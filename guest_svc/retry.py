"""How long a guest goes on trying, and how it waits between two attempts."""

import random
import time
from collections.abc import Callable

FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 5.0


class Retry:
    """Waits longer each time, by chance up to twice as long as the last, and gives up at some point.

    Many guests that one hypervisor has lost do not all come back at the same moment.
    """

    def __init__(
        self,
        seconds: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Go on for so many ``seconds`` in which nothing gets done; with 0, try nothing twice."""
        self.seconds = seconds
        self._now = now
        self._sleep = sleep
        self._chance = random.Random()
        self.progress()

    def progress(self) -> None:
        """Take note that something got done."""
        self._attempts = 0
        self._failing_since: float | None = None

    def may_wait(self, least_seconds: float = 0.0) -> bool:
        """Wait before another attempt, at least so long; return False, at once, if it is time to give up."""
        now = self._now()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= self.seconds:
            return False
        longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self._attempts)
        self._attempts += 1
        self._sleep(max(least_seconds, self._chance.uniform(0, longest)))
        return True
