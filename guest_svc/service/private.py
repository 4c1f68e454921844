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
        self._is_closed = False

    async def address(self) -> str:
        """Return its address, once it listens.

        Raises: Unavailable.
        """
        async with self._turn:
            if self._is_closed:
                raise Unavailable("NO_HYPERVISOR", "the service is about to stop")
            if not self._embedded.is_running:
                log.error("the private hypervisor has ended; another is started")
                await asyncio.to_thread(self._embedded.close)
                try:
                    self._embedded = _start()
                except OSError as error:
                    said = f"no process for a hypervisor: {error.strerror or error}"
                    raise Unavailable("NO_HYPERVISOR", said) from error
            embedded = self._embedded
            try:
                return await asyncio.to_thread(lambda: embedded.address)
            except NotConnected as error:
                raise Unavailable("NO_HYPERVISOR", str(error)) from error

    async def close(self) -> None:
        """End it for good; the event loop goes on meanwhile."""
        async with self._turn:
            self._is_closed = True
            await asyncio.to_thread(self._embedded.close)

    def end(self) -> None:
        """End it, and remove what it had, after the event loop; one that has ended stays so."""
        self._embedded.close()


def _start() -> EmbeddedHypervisor:
    return EmbeddedHypervisor(warn=lambda line: log.warning("private hypervisor", said=line))
