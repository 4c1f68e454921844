"""One open stream of events: reads, applies, answers, all three at the same time.

A reader takes messages off the wire into an inbox of a few blocks. The conversation hands them one
by one to an engine thread and writes each one's answers while the next is being applied. Somebody
else may end the stream between two blocks: a newer stream, FinishSession, or the server's drain.

A client need not read. Its stream then waits with what is stated in ``limits``, and once a newer
stream has the session, with no more than the one message that gRPC has in hand.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from exitlab.blocks import BadBlock, DecodedBlock, TooManyEvents, decode_request
from exitlab.v1 import hypervisor_pb2, outcome_pb2
from exitlab.wire import delimited
from hypervisor_svc.errors import Aborted, InvalidRequest, Refused, WrongState
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.logs import bound, log
from hypervisor_svc.registry import Ending, Held, Registry

WINDOW_BLOCKS: Final = 3  # read and not yet applied; the engine then never waits for the wire
RETRY_AFTER_MS: Final = 1000
_OUTCOMES: Final = hypervisor_pb2.StreamEventsResponse.OUTCOMES_FIELD_NUMBER

Result = TypeVar("Result")


class Home(Protocol):
    """What a stream needs of its server."""

    registry: Registry
    limits: ServerLimits
    incarnation: str
    is_draining: bool

    async def in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do engine work in a thread."""

    def refuse_if_draining(self) -> None:
        """Refuse what would not come to an end."""


class EventStream:
    """One stream; ``context`` reads and writes raw bytes."""

    def __init__(self, home: Home, context: Any) -> None:
        """Prepare to read."""
        self.epoch = 0
        self._home = home
        self._context = context
        self._ending: Ending | None = None
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()  # None wakes its reader: look again
        self._room = asyncio.Semaphore(WINDOW_BLOCKS)
        self._writing: asyncio.Task[None] | None = None
        # Of the block whose answers are being written, and of the next.
        self._unwritten: deque[deque[bytes]] = deque(maxlen=2)

    def end(self, why: Ending) -> None:
        """End the stream after the block in hand; what waits behind it is not applied."""
        self._ending = self._ending or why
        if self._ending is Ending.FENCED:
            self._let_go()
        self._inbox.put_nowait(None)

    def _let_go(self) -> None:
        """Drop what came and what would be answered: nobody waits for it, and perhaps nobody reads."""
        while not self._inbox.empty():
            self._inbox.get_nowait()
        for answers in self._unwritten:
            answers.clear()

    async def run(self) -> None:
        """Carry the stream to its end.

        Raises: Refused.
        """
        reader = asyncio.create_task(self._read())
        try:
            first = await self._take()
            if first is not None:
                await self._carry(*self._opening(first))
            elif self._ending is Ending.DRAINING:
                self._home.refuse_if_draining()
        finally:
            reader.cancel()

    def _opening(self, data: bytes) -> tuple[Held, hypervisor_pb2.Open]:
        """Return the session that the first message asks for."""
        try:
            message = hypervisor_pb2.StreamEventsRequest.FromString(data)
        except DecodeError as error:
            raise InvalidRequest("NOT_A_MESSAGE", f"not a StreamEventsRequest ({error})") from error
        if message.WhichOneof("message") != "open":
            raise WrongState("NOT_OPEN", "the first message of a stream is an Open", field="open")
        self._home.refuse_if_draining()
        return self._home.registry.find(message.open.session_id, "open.session_id"), message.open

    async def _carry(self, held: Held, opening: hypervisor_pb2.Open) -> None:
        with bound(session_id=held.session.session_id):
            why = "CUT"
            try:
                opened = await self._take_over(held, opening)
                log.info("opened", epoch=self.epoch, next_event=opened.next_event)
                await self._converse(held, opened)
                why = self._ending.name if self._ending else "ENDED"
            except Refused as refused:
                why = refused.reason
                raise
            finally:
                # A task of its own: if the call is cancelled while this waits for its turn, it goes on.
                await asyncio.wait([asyncio.create_task(self._close(held, why))])

    async def _close(self, held: Held, why: str) -> None:
        """Suspend the session, unless another stream has it."""
        await held.call(self._home.in_thread, lambda: held.session.cut(self.epoch))
        self._fence_older(held)
        if held.stream is self:
            held.stream = None
            self._home.registry.touch(held)
            log.info("stream ended", why=why, applied_events=held.session.applied_events)

    async def _take_over(self, held: Held, opening: hypervisor_pb2.Open) -> hypervisor_pb2.Opened:
        """Open the session and fence the stream that had it."""

        def take_over() -> hypervisor_pb2.Opened:
            opened = held.session.open(opening)
            self.epoch = opened.epoch  # here, as the client may be gone when this is done
            return opened

        opened = await held.call(self._home.in_thread, take_over)
        opened.limits.CopyFrom(self._home.limits.to_proto())
        opened.server_incarnation = self._home.incarnation
        self._fence_older(held)
        held.stream = self
        if self._home.is_draining:
            self.end(Ending.DRAINING)
        return opened

    def _fence_older(self, held: Held) -> None:
        """End the stream that had the session before this one."""
        if held.stream is not None and held.stream.epoch < self.epoch:
            held.stream.end(Ending.FENCED)

    async def _converse(self, held: Held, opened: hypervisor_pb2.Opened) -> None:
        await self._context.write(_response(opened=opened))
        try:
            while (data := await self._take()) is not None:
                answers = deque(await held.call(self._home.in_thread, self._apply, held, data))
                self._unwritten.append(answers)
                if self._ending is Ending.FENCED:
                    self._let_go()
                await self._written()
                self._writing = asyncio.create_task(self._write(answers))
        finally:
            await self._written()  # answers to what was applied come before any refusal
        await self._say_why(held)

    def _apply(self, held: Held, data: bytes) -> list[bytes]:
        """Do what a message asks and return the answers: the part that runs in an engine thread."""
        session = held.session
        try:
            message = decode_request(data, session.columns, self._home.limits.max_block_events)
        except BadBlock as bad:
            reason = "BLOCK_TOO_LARGE" if isinstance(bad, TooManyEvents) else "BAD_BLOCK"
            place = {} if bad.event is None else {"event": bad.event}
            raise InvalidRequest(reason, bad.message, field=bad.field, **place) from bad
        if isinstance(message, DecodedBlock):
            parts = session.apply(self.epoch, message)
            done = hypervisor_pb2.Acknowledgement(
                applied_events=session.applied_events, committed_events=session.committed_events
            )
            return [*map(_outcomes, parts), _response(acknowledgement=done)]
        match message.WhichOneof("message"):
            case "confirm":
                session.confirm(self.epoch, message.confirm.received_events)
                return []
            case "open":
                raise WrongState("ALREADY_OPEN", "the stream is open; open another", field="open")
            case _:
                raise InvalidRequest("EMPTY_MESSAGE", "neither a block, nor events, nor a confirmation")

    async def _say_why(self, held: Held) -> None:
        session = held.session
        if self._ending is Ending.FENCED:
            message = f"a newer stream has the session: its epoch is {session.epoch}, this one's {self.epoch}"
            raise Aborted("FENCED", message, epoch=session.epoch)
        if self._ending is Ending.DRAINING:
            draining = hypervisor_pb2.Draining(
                applied_events=session.applied_events,
                committed_events=session.committed_events,
                retry_after_ms=RETRY_AFTER_MS,
            )
            await self._context.write(_response(draining=draining))

    async def _read(self) -> None:
        """Read messages into the inbox, no more than there is room for."""
        data: bytes | None = b""
        while data is not None:
            await self._room.acquire()
            data = None
            with contextlib.suppress(grpc.aio.BaseError, grpc.RpcError):  # a cut is an end like any other
                message = await self._context.read()
                data = None if message is grpc.aio.EOF else message
            self._inbox.put_nowait(data)

    async def _take(self) -> bytes | None:
        """Return the next message; ``None`` at the end of the stream or once someone has ended it."""
        if self._ending is not None:
            return None
        data = await self._inbox.get()
        self._room.release()
        return None if self._ending is not None else data

    async def _write(self, answers: deque[bytes]) -> None:
        while answers:
            await self._context.write(answers.popleft())

    async def _written(self) -> None:
        """Wait until the last answers are written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing


def _response(**message: Any) -> bytes:
    return hypervisor_pb2.StreamEventsResponse(**message).SerializeToString()


def _outcomes(part: outcome_pb2.OutcomePart) -> bytes:
    """Return the response that carries a part; to put so much into a message would copy it once more."""
    return delimited(_OUTCOMES, part.SerializeToString())
