"""One open stream of events: reads, applies, answers, all three at the same time.

A reader takes messages off the wire into an inbox of a few blocks. The conversation hands them one
by one to an engine thread and writes each one's answers while the next is being applied. Somebody
else may end the stream between two blocks: a newer stream, FinishSession, or the server's drain.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from exitlab.blocks import BadBlock, DecodedBlock, decode_request
from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.errors import Aborted, InvalidRequest, WrongState
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.logs import bound, log
from hypervisor_svc.registry import Ending, Held, Registry

WINDOW_BLOCKS: Final = 3  # read and not yet applied; the engine then never waits for the wire
RETRY_AFTER_MS: Final = 1000

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

    def end(self, why: Ending) -> None:
        """End the stream after the block in hand; what waits behind it is not applied."""
        self._ending = self._ending or why
        self._inbox.put_nowait(None)

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
            try:
                opened = await self._take_over(held, opening)
                log.info("opened", epoch=self.epoch, next_event=opened.next_event)
                await self._converse(held, opened)
            finally:
                await self._home.in_thread(held.call, held.session.cut, self.epoch)
                if held.stream is self:
                    held.stream = None
                    self._home.registry.touch(held)
                    why = self._ending.name if self._ending else "CUT"
                    log.info("stream ended", why=why, applied_events=held.session.applied_events)

    async def _take_over(self, held: Held, opening: hypervisor_pb2.Open) -> hypervisor_pb2.Opened:
        """Open the session and fence the stream that had it."""
        take_over = partial(held.call, held.session.open, opening)
        opened = await self._home.in_thread(take_over)
        opened.limits.CopyFrom(self._home.limits.to_proto())
        opened.server_incarnation = self._home.incarnation
        self.epoch = opened.epoch
        if held.stream is not None:
            # Two Opens may come out of their threads in either order.
            older = held.stream if held.stream.epoch < self.epoch else self
            older.end(Ending.FENCED)
        if self._ending is None:
            held.stream = self
        if self._home.is_draining:
            self.end(Ending.DRAINING)
        return opened

    async def _converse(self, held: Held, opened: hypervisor_pb2.Opened) -> None:
        await self._write([_response(opened=opened)])
        try:
            while (data := await self._take()) is not None:
                messages = await self._home.in_thread(held.call, self._apply, held, data)
                await self._written()
                self._writing = asyncio.create_task(self._write(messages))
        finally:
            await self._written()  # answers to what was applied come before any refusal
        await self._say_why(held)

    def _apply(self, held: Held, data: bytes) -> list[bytes]:
        """Do what a message asks and return the answers: the part that runs in an engine thread."""
        session = held.session
        try:
            message = decode_request(data, session.columns)
        except BadBlock as bad:
            place = {} if bad.event is None else {"event": bad.event}
            raise InvalidRequest("BAD_BLOCK", bad.message, field=bad.field, **place) from bad
        if isinstance(message, DecodedBlock):
            parts = session.apply(self.epoch, message)
            done = hypervisor_pb2.Acknowledgement(
                applied_events=session.applied_events, committed_events=session.committed_events
            )
            return [_response(outcomes=part) for part in parts] + [_response(acknowledgement=done)]
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
            await self._write([_response(draining=draining)])

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

    async def _write(self, messages: list[bytes]) -> None:
        for message in messages:
            await self._context.write(message)

    async def _written(self) -> None:
        """Wait until the last answers are written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing


def _response(**message: Any) -> bytes:
    return hypervisor_pb2.StreamEventsResponse(**message).SerializeToString()
