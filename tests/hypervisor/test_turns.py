"""Who may use a session next: one call at a time, in the order of asking, whoever goes away meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Held
from hypervisor_svc.session import Session
from tests.hypervisor.test_session import FakeEngine, some_config


class Threads:
    """Stands in for the engine's threads: work goes on until the test lets it end."""

    def __init__(self) -> None:
        """Have no work yet."""
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Future[None]] = {}

    async def run(self, method: Callable[[str], str], name: str) -> str:
        """Begin to work, and return or raise when let."""
        self.begun.append(name)
        self._ends[name] = asyncio.get_running_loop().create_future()
        await self._ends[name]
        return method(name)

    def end(self, name: str, error: Exception | None = None) -> None:
        """Let work end."""
        if error is None:
            self._ends[name].set_result(None)
        else:
            self._ends[name].set_exception(error)


async def settle() -> None:
    """Let everything run that can, until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


class Asked:
    """A session, and the calls to it that a test has begun."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        session = Session("id", some_config(), FakeEngine, ServerLimits(max_block_events=8))
        self.held = Held(session, 1, hypervisor_pb2.CreateSessionRequest(), 0.0)
        self.threads = Threads()
        self.calls: dict[str, asyncio.Task[str]] = {}

    async def call(self, *names: str) -> None:
        """Begin calls, and wait until they wait."""
        for name in names:
            self.calls[name] = asyncio.create_task(self.held.call(self.threads.run, str, name))
            await settle()

    async def end(self, name: str, error: Exception | None = None) -> None:
        """Let a call's work end."""
        self.threads.end(name, error)
        await settle()

    async def cancel(self, name: str) -> None:
        """Let whoever called go away."""
        self.calls[name].cancel()
        await settle()


def run(scenario: Callable[[Asked], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in a loop of its own, in which nothing may be left over."""

    async def whole() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        await scenario(Asked())
        assert complaints == []

    asyncio.run(whole())


def test_calls_come_in_the_order_of_asking() -> None:
    """The next call begins when the one before has ended, and gets its own result."""

    async def scenario(asked: Asked) -> None:
        await asked.call("a", "b", "c")
        for position, name in enumerate("abc"):
            assert asked.threads.begun == list("abc")[: position + 1]
            await asked.end(name)
            assert asked.calls[name].result() == name

    run(scenario)


@pytest.mark.parametrize("error", [None, KeyError("x")])
def test_work_that_nobody_waits_for_goes_on(error: Exception | None) -> None:
    """Whoever asked may go away: the next call still waits for the end of the work, however it ends."""

    async def scenario(asked: Asked) -> None:
        await asked.call("a", "b")
        await asked.cancel("a")
        assert asked.calls["a"].cancelled()
        assert asked.threads.begun == ["a"]
        await asked.end("a", error)
        assert asked.threads.begun == ["a", "b"]
        await asked.end("b")
        assert asked.calls["b"].result() == "b"

    run(scenario)


def test_whoever_stops_waiting_holds_nobody_up() -> None:
    """A call that is cancelled before its turn never begins, and the turn is not lost with it."""

    async def scenario(asked: Asked) -> None:
        await asked.call("a", "b", "c", "d")
        await asked.cancel("b")
        asked.threads.end("a")
        asked.calls["c"].cancel()  # at the very moment at which its turn comes
        await settle()
        assert asked.threads.begun[:1] + asked.threads.begun[-1:] == ["a", "d"]
        assert "b" not in asked.threads.begun
        await asked.end("d")
        assert asked.calls["d"].result() == "d"

    run(scenario)


def test_an_error_is_the_callers() -> None:
    """What the work raises reaches whoever asked, and nobody else."""

    async def scenario(asked: Asked) -> None:
        await asked.call("a", "b")
        await asked.end("a", KeyError("x"))
        with pytest.raises(KeyError):
            asked.calls["a"].result()
        await asked.end("b")
        assert asked.calls["b"].result() == "b"

    run(scenario)
