"""One stream without a wire: what happens when clients do not read, go away, or come at the same time."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Ending, Held, Wanted
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.session import Session
from hypervisor_svc.stream import EventStream
from tests.hypervisor.test_server import PARTS, SECONDS, GatedEngine, create_request
from tests.hypervisor.test_session import COLUMNS, some_config, some_events
from tests.hypervisor.test_turns import settle

SUSPENDED = hypervisor_pb2.SESSION_STATE_SUSPENDED
FULL = outcome_pb2.OUTCOME_LEVEL_FULL
Gate = threading.Event


class GatedOpening(GatedEngine):
    """Stops when a stream opens, and in a digest, while it is told to."""

    def __init__(self) -> None:
        """Stop nowhere yet."""
        super().__init__()
        self.gate: Gate | None = None
        self.is_reached = threading.Event()

    def _pass(self) -> None:
        if self.gate is not None:
            self.is_reached.set()
            assert self.gate.wait(SECONDS)

    def start_stream(self) -> None:
        """Wait where the test wants it."""
        self._pass()
        super().start_stream()

    def state_digest(self) -> int:
        """Wait where the test wants it."""
        self._pass()
        return super().state_digest()


class Guest:
    """A client's end of a stream: it reads only what it is let."""

    def __init__(self) -> None:
        """Send nothing yet, and read everything."""
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.got: list[str] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.crcs = ColumnCrcs(COLUMNS)
        self.next_event = 0

    def peer(self) -> str:
        """Return who it is."""
        return "guest"

    def auth_context(self) -> dict[str, list[bytes]]:
        """Show no certificate."""
        return {}

    async def read(self) -> Any:
        """Return what was sent."""
        return await self.sent.get()

    async def write(self, message: bytes) -> None:
        """Take an answer once the guest reads."""
        name = hypervisor_pb2.StreamEventsResponse.FromString(message).WhichOneof("message")
        await self.reads.wait()
        self.got.append(str(name))

    async def abort_with_status(self, status: grpc.Status) -> None:
        """End as gRPC would."""
        raise ConnectionAbortedError(status.details)

    def open(self, held: Held, **opening: int) -> None:
        """Send an Open."""
        opened = hypervisor_pb2.Open(session_id=held.session.session_id, **opening)
        self.sent.put_nowait(hypervisor_pb2.StreamEventsRequest(open=opened).SerializeToString())

    def send(self, *args: int) -> None:
        """Send the next events as a block."""
        events: EventColumns = some_events(*args)
        self.sent.put_nowait(encode_block(events, self.next_event, self.crcs))
        self.next_event += len(args)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.sent.put_nowait(grpc.aio.EOF)


class Place:
    """A servicer with one session."""

    def __init__(self) -> None:
        """Make the servicer; needs a running event loop."""
        self.servicer = HypervisorServicer(PARTS, ServerLimits())
        self.engine = GatedOpening()

    async def start(self) -> Held:
        """Create the session."""

        async def make(wanted: Wanted) -> Session:
            config = some_config(outcome_level=FULL)
            limits = ServerLimits(max_block_events=64)
            return Session(wanted.session_id, config, lambda: self.engine, limits)

        return await self.servicer.registry.create(create_request("r"), make)

    def stream(self, guest: Guest) -> "asyncio.Future[None]":
        """Begin to carry a guest's stream."""
        return asyncio.ensure_future(self.servicer.StreamEvents(guest, guest))

    async def status(self, held: Held) -> hypervisor_pb2.SessionStatus:
        """Return where the session stands, after all that was asked before."""
        return await held.call(self.servicer.in_thread, held.session.status)


def run(scenario: Callable[[Place, Held], Awaitable[None]]) -> list[Any]:
    """Run a scenario and return the lines that were logged."""

    async def whole() -> None:
        place = Place()
        held = await place.start()
        await asyncio.wait_for(scenario(place, held), SECONDS)

    with capture_logs() as lines:
        asyncio.run(whole())
    return lines


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something that is under way has happened."""
    while not is_so():
        await asyncio.sleep(0)


async def reached(event: threading.Event) -> None:
    """Wait for an engine thread."""
    assert await asyncio.to_thread(event.wait, SECONDS)


def test_a_fenced_stream_lets_go_of_what_nobody_reads() -> None:
    """A client that reads nothing and comes again leaves one answer in hand behind it, not all of them."""

    async def scenario(place: Place, held: Held) -> None:
        older, newer = Guest(), Guest()
        carried = place.stream(older)
        older.open(held)
        await until(lambda: older.got == ["opened"])
        older.reads.clear()
        for _ in range(6):
            older.send(1, 2)
        stream = held.stream
        assert isinstance(stream, EventStream)
        # Of two blocks, one in the writing; and no further, as nothing is read.
        await until(lambda: [len(answers) for answers in stream._unwritten] == [1, 2])
        await settle()
        assert [len(answers) for answers in stream._unwritten] == [1, 2]
        assert stream._inbox.qsize() == 3
        place.stream(newer)
        newer.open(held, received_events=4)
        await until(lambda: newer.got == ["opened"])
        assert [len(answers) for answers in stream._unwritten] == [0, 0]
        assert stream._inbox.qsize() <= 1  # what wakes it
        assert stream in place.servicer._streams  # it counts until the client reads or goes
        older.reads.set()
        with pytest.raises(ConnectionAbortedError, match="newer stream"):
            await carried
        assert older.got == ["opened", "outcomes", "refused"]
        assert (await place.status(held)).applied_events == 4

    run(scenario)


def test_answers_that_come_after_the_fence_are_let_go() -> None:
    """A block that is being applied when a newer stream comes is answered to nobody."""

    async def scenario(place: Place, held: Held) -> None:
        GatedEngine.reached.clear()
        GatedEngine.go_on.clear()
        older, newer = Guest(), Guest()
        carried = place.stream(older)
        older.open(held)
        older.send(100, 1)
        await reached(GatedEngine.reached)
        stream = held.stream
        assert isinstance(stream, EventStream)
        stream.end(Ending.FENCED)
        GatedEngine.go_on.set()
        with pytest.raises(ConnectionAbortedError):
            await carried
        assert older.got == ["opened", "refused"]
        place.stream(newer)
        newer.open(held, received_events=2)
        await until(lambda: newer.got == ["opened"])

    run(scenario)


def test_a_client_that_goes_while_it_opens_leaves_the_session_suspended() -> None:
    """The Open takes effect in its thread, and the cut follows it; an older stream is fenced all the same."""

    async def scenario(place: Place, held: Held) -> None:
        older, gone = Guest(), Guest()
        fenced = place.stream(older)
        older.open(held)
        await until(lambda: older.got == ["opened"])
        place.engine.gate = Gate()
        carried = place.stream(gone)
        gone.open(held)
        await reached(place.engine.is_reached)
        carried.cancel()
        await settle()
        place.engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await carried
        with pytest.raises(ConnectionAbortedError, match="its epoch is 2, this one's 1"):
            await fenced
        status = await place.status(held)
        assert (status.state, status.epoch) == (SUSPENDED, 2)
        assert held.stream is None

    run(scenario)


def test_a_client_that_goes_while_its_stream_closes_leaves_the_session_suspended() -> None:
    """A stream that has ended and waits for its turn to say so does not forget it."""

    async def scenario(place: Place, held: Held) -> None:
        guest = Guest()
        carried = place.stream(guest)
        guest.open(held)
        await until(lambda: guest.got == ["opened"])
        place.engine.gate = Gate()
        asked = asyncio.create_task(place.status(held))
        await reached(place.engine.is_reached)
        guest.half_close()
        await settle()
        carried.cancel()
        with pytest.raises(asyncio.CancelledError):
            await carried
        place.engine.gate.set()
        assert (await asked).state == hypervisor_pb2.SESSION_STATE_STREAMING
        assert (await place.status(held)).state == SUSPENDED
        await until(lambda: held.stream is None)

    run(scenario)


def finish(place: Place, held: Held, guest: Guest) -> Awaitable[Any]:
    """Finish the session of a guest."""
    request = hypervisor_pb2.FinishSessionRequest(
        session_id=held.session.session_id, event_count=guest.next_event, column_crcs=guest.crcs.values
    )
    return place.servicer.FinishSession(request, guest)


@pytest.mark.parametrize("why", ["ENDED", "FINISHED", "DRAINING", "GAP", "CUT"])
def test_the_log_says_why_a_stream_ended(why: str) -> None:
    """CUT is a stream whose client went away; one that was closed in order, ended or refused says so."""

    async def scenario(place: Place, held: Held) -> None:
        guest = Guest()
        carried = place.stream(guest)
        guest.open(held)
        guest.send(1)
        await until(lambda: guest.got[-1:] == ["acknowledgement"])
        if why == "ENDED":
            guest.half_close()
        elif why == "FINISHED":
            await finish(place, held, guest)
        elif why == "DRAINING":
            place.servicer.drain()
        elif why == "GAP":
            guest.next_event = 7
            guest.send(1)
        else:
            carried.cancel()
        await asyncio.wait([carried])

    lines = [line for line in run(scenario) if line["event"] == "stream ended"]
    assert [line["why"] for line in lines] == [why]
