"""A server with a state directory, without a wire, and a client that keeps all it reads."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.store import Store
from tests.hypervisor.test_event_stream import Guest, until
from tests.hypervisor.test_server import LIMITS, PARTS, SECONDS
from tests.hypervisor.test_session import Sender, some_config

pb = hypervisor_pb2


class Reader(Guest):
    """A client's end of a stream that keeps all that it reads."""

    def __init__(self) -> None:
        """Have read nothing yet."""
        super().__init__()
        self.responses: list[hypervisor_pb2.StreamEventsResponse] = []
        self.code: grpc.StatusCode | None = None  # of the last call that was refused

    async def write(self, message: bytes) -> None:
        """Take an answer."""
        await super().write(message)
        self.responses.append(hypervisor_pb2.StreamEventsResponse.FromString(message))

    async def abort_with_status(self, status: grpc.Status) -> None:
        """Note the code, and end as gRPC would."""
        self.code = status.code
        await super().abort_with_status(status)

    @property
    def acknowledged(self) -> list[tuple[int, int]]:
        """What was applied and committed, as often as it was told."""
        found = [
            response.acknowledgement for response in self.responses if response.HasField("acknowledgement")
        ]
        return [(told.applied_events, told.committed_events) for told in found]

    @property
    def refused(self) -> list[str]:
        """The reasons of what was refused in band."""
        return [answer.refused.reason for answer in self.responses if answer.HasField("refused")]


class Server:
    """A servicer on a state directory, and the clock of its registry; needs a running event loop."""

    def __init__(self, folder: Path, limits: ServerLimits = LIMITS, parts: Parts = PARTS) -> None:
        """Start on what is there."""
        self.store = Store(folder)
        self.servicer = HypervisorServicer(parts, limits, self.store)
        self.reader = Reader()
        self.passed_seconds = 0.0
        registry, commits = self.servicer.registry, self.servicer.commits
        assert commits is not None
        now = int(registry._now())  # whole seconds, which add up to just what a test says
        registry._now = commits._now = lambda: now + self.passed_seconds
        commits._rests_until = now

    def stop(self) -> None:
        """End as a crash does, once the threads have done what they had begun."""
        self.servicer._threads.shutdown()
        self.store.close()

    async def create(self, name: str) -> str:
        """Create a session and return its id."""
        request = pb.CreateSessionRequest(request_id=name, config=some_config(label=name))
        response = await self.servicer.CreateSession(request, self.reader)
        return str(response.session_id)

    async def status(self, session_id: str) -> pb.SessionStatus:
        """Return where a session stands."""
        request = pb.GetSessionRequest(session_id=session_id)
        response: pb.GetSessionResponse = await self.servicer.GetSession(request, self.reader)
        return response.status

    async def open(
        self, session_id: str, reader: Reader, **opening: int
    ) -> tuple["asyncio.Future[None]", pb.Opened]:
        """Open a session for a reader; return what carries its stream, and the answer."""
        reader.responses.clear()
        carried = asyncio.ensure_future(self.servicer.StreamEvents(reader, reader))
        reader.open(self.servicer.registry.find(session_id), **opening)
        await until(lambda: bool(reader.responses) or carried.done())
        if carried.done():
            self.reader.code = reader.code
            await carried
        return carried, reader.responses[0].opened

    async def send(self, session_id: str, *args: int, reader: Reader | None = None) -> None:
        """Send the next block of a reader, or else the first of a session, and end the stream."""
        reader = reader or Reader()
        carried, _ = await self.open(session_id, reader)
        reader.send(*args)
        reader.half_close()
        await carried

    async def finish(self, session_id: str, *args: int) -> bytes:
        """Finish a session that had these events, and return its report."""
        sender = Sender()
        sender.block(*args)
        request = pb.FinishSessionRequest(
            session_id=session_id, event_count=len(args), column_crcs=sender.crcs.values
        )
        return bytes((await self.servicer.FinishSession(request, self.reader)).report)

    async def page(self, token: str = "", size: int = 100) -> tuple[list[str], str]:
        """Return the labels of one page of the list, and the token of the next."""
        request = pb.ListSessionsRequest(page_size=size, page_token=token)
        response = await self.servicer.ListSessions(request, self.reader)
        return [status.label for status in response.sessions], response.next_page_token

    async def refusal(self, call: Awaitable[Any]) -> tuple[grpc.StatusCode | None, str]:
        """Return code and message of a call that is refused."""
        with pytest.raises(ConnectionAbortedError) as refused:
            await call
        return self.reader.code, str(refused.value)


def run(scenario: Callable[[], Awaitable[None]]) -> list[Any]:
    """Run a scenario, which takes no time unless it hangs, and return the lines that were logged."""

    async def whole() -> None:
        await asyncio.wait_for(scenario(), SECONDS)

    with capture_logs() as lines:
        asyncio.run(whole())
    return lines
