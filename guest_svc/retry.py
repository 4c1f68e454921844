"""How long a guest goes on trying, and how it waits between two attempts."""

import random
import time
from collections.abc import Callable

from guest_svc.errors import CouldNotFinish, GaveUp, GuestError

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
        """Go on for so many ``seconds`` of failing until something gets done; with 0, try nothing twice."""
        self.seconds = seconds
        self._now = now
        self._sleep = sleep
        self._chance = random.Random()
        self.progress()

    def progress(self) -> None:
        """Take note that something got done."""
        self._longest_wait = FIRST_WAIT_SECONDS
        self._left_seconds = self.seconds
        self._failing_since: float | None = None

    def has_reached(self) -> None:
        """Take note that an attempt reached the other end, which may now take its time to get further."""
        if self._failing_since is not None:
            self._left_seconds -= self._now() - self._failing_since
            self._failing_since = None

    def may_wait(self, least_seconds: float = 0.0) -> bool:
        """Wait before another attempt, at least so long; return False, at once, if it is time to give up.

        However long that least is, the last attempt is when the time is over.
        """
        now = self._now()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self._left_seconds - now
        if left <= 0:
            return False
        wait = max(least_seconds, self._chance.uniform(0, self._longest_wait))
        self._longest_wait = min(LONGEST_WAIT_SECONDS, 2 * self._longest_wait)
        self._sleep(min(left, wait))
        return True


def given_up(last: GuestError, seconds: float) -> GuestError:
    """Return what is told once ``seconds`` of attempts have not mended what the last one met."""
    said = f"{last}; gave up after {seconds:g} s" if seconds else str(last)
    return GaveUp(said) if isinstance(last, CouldNotFinish) else type(last)(said)
