"""How many calls are being answered, and how long a client may be silent."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from exitlab.serving.refusals import TimedOut

Result = TypeVar("Result")


class Calls:
    """Counts the calls that are being answered, so that somebody can wait until there are none."""

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0
        self.none = asyncio.Event()
        self.none.set()

    def __enter__(self) -> None:
        """Count a call."""
        self._count += 1
        self.none.clear()

    def __exit__(self, *_: object) -> None:
        """Count it off."""
        self._count -= 1
        if not self._count:
            self.none.set()


async def within(seconds: float, work: Awaitable[Result], silence: str) -> Result:
    """Wait for something of the client's for so long.

    Raises: TimedOut.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise TimedOut("SILENT", f"the client has {silence} for {seconds:g} seconds") from error
