"""A private hypervisor that all runs of a service share, and that ends with it."""

import asyncio

from exitlab.serving.logs import log
from exitlab.serving.refusals import Unavailable
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.errors import NotConnected


class PrivateHypervisor:
    """One that has ended by itself takes its sessions with it; another is started for the next run."""

    def __init__(self) -> None:
        """Start it, and return at once."""
        self._embedded = _start()
        self._turn = asyncio.Lock()

    async def address(self) -> str:
        """Return its address, once it listens.

        Raises: Unavailable.
        """
        async with self._turn:
            if not self._embedded.is_running:
                log.error("the private hypervisor has ended; another is started")
                await self.close()
                self._embedded = _start()
            embedded = self._embedded
            try:
                return await asyncio.to_thread(lambda: embedded.address)
            except NotConnected as error:
                raise Unavailable("NO_HYPERVISOR", str(error)) from error

    async def close(self) -> None:
        """End it; the event loop goes on meanwhile."""
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """End it, and remove what it had."""
        self._embedded.__exit__(None, None, None)


def _start() -> EmbeddedHypervisor:
    return EmbeddedHypervisor(warn=lambda line: log.warning("private hypervisor", said=line))
