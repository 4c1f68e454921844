"""The life of a server's process, with a server that does as a test says."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from exitlab.command_line import NOT_FINISHED
from exitlab.serving.life import serve_until_signals
from exitlab.serving.refusals import CannotServe

SECONDS = 20.0


class Played:
    """Starts, drains and stops; each may wait for ever, and sends itself a signal before."""

    def __init__(self, waits_in: str = "", drains: bool = True, fails: bool = False) -> None:
        """Say what it does."""
        self.did: list[str] = []
        self._waits_in = waits_in
        self._drains = drains
        self._fails = fails

    async def start(self) -> str:
        """Start."""
        await self._do("start")
        if self._fails:
            raise CannotServe("in use")
        return "address"

    async def drain(self) -> bool:
        """Drain."""
        await self._do("drain")
        return self._drains

    async def stop(self) -> None:
        """Stop."""
        self.did.append("stop")

    async def _do(self, what: str) -> None:
        self.did.append(what)
        if what == self._waits_in:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()


def life_of(server: Played, on_listening: Callable[[str], None]) -> int:
    """Serve and return the exit code."""

    async def live() -> int:
        return await asyncio.wait_for(serve_until_signals(lambda: server, on_listening), SECONDS)

    return asyncio.run(live())


def terminate(_address: str) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("server", "code", "did"),
    [
        (Played(), 0, ["start", "drain"]),
        (Played(drains=False), NOT_FINISHED, ["start", "drain"]),
        (Played(waits_in="drain"), 128 + signal.SIGINT, ["start", "drain", "stop"]),
        (Played(waits_in="start"), 128 + signal.SIGINT, ["start", "stop"]),
    ],
)
def test_signals(server: Played, code: int, did: list[str]) -> None:
    """One drains, a second ends it at once; so does the first before it serves."""
    assert (life_of(server, terminate), server.did) == (code, did)


def test_a_server_that_cannot_serve() -> None:
    """It says why, and is never listening."""
    with pytest.raises(CannotServe, match="in use"):
        life_of(Played(fails=True), terminate)
