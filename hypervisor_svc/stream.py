"""One open stream of events: reads, applies, answers, all three at the same time.

A reader takes messages off the wire into an inbox of a few blocks. The conversation hands them one
by one to an engine thread and writes each one's answers while the next is being applied. Somebody
else may end the stream between two blocks: a newer stream, FinishSession, or the server's drain. Where
sessions are stored, a checkpoint may be made meanwhile, and is acknowledged once it is durable.

A client need not read. Its stream then waits with what is stated in ``limits``, and once a newer
stream has the session, with no more than the one message that gRPC has in hand. One that neither reads
nor sends for as long as a session may be idle is ended.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from exitlab.blocks import BadBlock, DecodedBlock, TooManyEvents, decode_request
from exitlab.serving.calls import within
from exitlab.serving.logs import bound, log
from exitlab.serving.refusals import (
    RETRY_AFTER_MS,
    Aborted,
    InvalidRequest,
    NotFound,
    Refused,
    Unavailable,
    WrongState,
)
from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.commits import Commits
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Ending, Held, Registry

WINDOW_BLOCKS: Final = 3  # read and not yet applied; the engine then never waits for the wire
OPEN_SECONDS: Final = 10.0  # in which a stream's Open has to come
_REFUSAL_SECONDS: Final = 1.0  # for a refusal in band, which is said again by the status

Result = TypeVar("Result")


class _Wake(Enum):
    """What the inbox has beside messages."""

    LOOK = 0  # the stream has ended, or is to end
    COMMITTED = 1


class Home(Protocol):
    """What a stream needs of its server."""

    registry: Registry
    commits: Commits | None  # where sessions are stored
    limits: ServerLimits
    incarnation: str
    is_draining: bool

    async def in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do engine work in a thread."""

    def refuse_if_draining(self) -> None:
        """Refuse what would not come to an end."""


class EventStream:
    """One stream; ``context`` reads and writes raw bytes."""

    def __init__(self, home: Home, context: Any, owner: str = "") -> None:
        """Prepare to read what a caller sends."""
        self.epoch = 0
        self._owner = owner
        self._home = home
        self._context = context
        self._ending: Ending | None = None
        self._inbox: asyncio.Queue[bytes | _Wake] = asyncio.Queue()
        self._is_committed_told = True
        self._room = asyncio.Semaphore(WINDOW_BLOCKS)
        self._writing: asyncio.Task[None] | None = None
        # Of the block whose answers are being written, and of the next.
        self._unwritten: deque[deque[bytes]] = deque(maxlen=2)

    def end(self, why: Ending) -> None:
        """End the stream after the block in hand; what waits behind it is not applied."""
        self._ending = self._ending or why
        if self._ending is Ending.FENCED:
            self._let_go()
        self._inbox.put_nowait(_Wake.LOOK)

    def tell_committed(self) -> None:
        """Acknowledge anew, as more is committed."""
        if self._is_committed_told:
            self._is_committed_told = False
            self._inbox.put_nowait(_Wake.COMMITTED)

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
            first = await within(OPEN_SECONDS, self._take(), "sent no Open")
            if isinstance(first, bytes):
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
        held = self._home.registry.find(message.open.session_id, "open.session_id", self._owner)
        return held, message.open

    async def _carry(self, held: Held, opening: hypervisor_pb2.Open) -> None:
        with bound(session=held.session.session_id):
            why = "CUT"
            try:
                opened, again = await self._take_over(held, opening)
                log.info("opened", epoch=self.epoch, next_event=opened.next_event, sent_again=len(again))
                await self._converse(held, opened, again)
                why = self._ending.name if self._ending else "ENDED"
            except Refused as refused:
                why = refused.reason
                await self._refuse_in_band(held, refused)
                raise
            finally:
                # A task of its own: if the call is cancelled while this waits for its turn, it goes on.
                await asyncio.wait([asyncio.create_task(self._close(held, why))])

    async def _close(self, held: Held, why: str) -> None:
        """Suspend the session and commit what it has, unless another stream has it."""
        await held.call(self._home.in_thread, lambda: held.session.cut(self.epoch))
        self._fence_older(held)
        if held.stream is self:
            held.stream = None
            self._home.registry.touch(held)
            log.info("stream ended", why=why, applied_events=held.session.applied_events)
            if self._home.commits is not None:
                with contextlib.suppress(Refused):  # which is logged; the session waits in memory
                    await self._home.commits.commit(held)

    async def _take_over(
        self, held: Held, opening: hypervisor_pb2.Open
    ) -> tuple[hypervisor_pb2.Opened, list[bytes]]:
        """Open the session and fence the stream that had it; also return the answers that are sent again."""

        def take_over() -> tuple[hypervisor_pb2.Opened, list[bytes]]:
            opened, again = held.session.open(opening)
            self.epoch = opened.epoch  # here, as the client may be gone when this is done
            return opened, again

        opened, again = await held.call(self._home.in_thread, take_over)
        if held.is_dropped:
            message = "the session was dropped while it was opened"
            raise NotFound("SESSION_NOT_FOUND", message, field="open.session_id")
        opened.limits.CopyFrom(self._home.limits.to_proto())
        opened.server_incarnation = self._home.incarnation
        self._fence_older(held)
        held.stream = self
        if self._home.is_draining:
            self.end(Ending.DRAINING)
        return opened, again

    def _fence_older(self, held: Held) -> None:
        """End the stream that had the session before this one."""
        if held.stream is not None and held.stream.epoch < self.epoch:
            held.stream.end(Ending.FENCED)

    async def _converse(self, held: Held, opened: hypervisor_pb2.Opened, again: list[bytes]) -> None:
        commits = self._home.commits
        # Where what is sent again ends, an acknowledgement says so. It may be much, and nobody may read it.
        lacking = deque([*again, _done(held)] if again else [])
        again.clear()
        self._unwritten.append(lacking)
        first = self._context.write(_response(opened=opened))
        await within(self._home.limits.idle_seconds, first, "read nothing")
        self._writing = asyncio.create_task(self._write(lacking))
        try:
            while (message := await self._next(held)) is not None:
                if message is _Wake.COMMITTED:
                    answers = deque([_done(held)])
                else:
                    if commits is not None:
                        await commits.make_room(held)
                    answers = deque(await held.call(self._home.in_thread, self._apply, held, message))
                    if commits is not None:
                        commits.look(held)
                self._unwritten.append(answers)
                if self._ending is Ending.FENCED:
                    self._let_go()
                await self._written()
                self._writing = asyncio.create_task(self._write(answers))
        finally:
            await self._written()  # answers to what was applied come before any refusal
        await self._say_why(held)

    async def _next(self, held: Held) -> bytes | _Wake | None:
        """Return the next message, or that more is committed; None once the stream has ended."""
        message = await within(self._home.limits.idle_seconds, self._take(), "sent nothing")
        self._home.registry.drop_if_too_old(held)
        if message is _Wake.COMMITTED:
            self._is_committed_told = True
        return None if message is _Wake.LOOK or self._ending is not None else message

    def _apply(self, held: Held, data: bytes) -> list[bytes]:
        """Do what a message asks and return the answers: the part that runs in an engine thread."""
        session = held.session
        try:
            message = decode_request(data, session.columns, self._home.limits.max_block_events)
        except BadBlock as bad:
            reason = "BLOCK_TOO_LARGE" if isinstance(bad, TooManyEvents) else "BAD_BLOCK"
            place = {} if bad.event is None else {"event": bad.event}
            # Without its frames: they hold plain events, which take forty times the memory of their bytes.
            raise InvalidRequest(reason, bad.message, field=bad.field, **place) from bad.with_traceback(None)
        if isinstance(message, DecodedBlock):
            return [*session.apply(self.epoch, message), _done(held)]
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
        if self._ending is Ending.NOT_STORED:
            message = "the server's state directory takes nothing now"
            raise Unavailable("NOT_STORED", message, retry_after_ms=RETRY_AFTER_MS)
        if self._ending is Ending.DROPPED:
            raise NotFound("SESSION_NOT_FOUND", "the session was dropped as too old", field="open.session_id")
        if self._ending is Ending.DRAINING:
            if self._home.commits is not None:
                await self._home.commits.commit(held)
            draining = hypervisor_pb2.Draining(
                applied_events=session.applied_events,
                committed_events=session.committed_events,
                retry_after_ms=RETRY_AFTER_MS,
            )
            await self._context.write(_response(draining=draining))

    async def _refuse_in_band(self, held: Held, refused: Refused) -> None:
        """Say a refusal as a message before the status says it again; who does not read misses it."""
        if not self.epoch:
            return  # the stream never had the session
        refusal = hypervisor_pb2.Refused(
            reason=refused.reason,
            field=refused.field,
            message=refused.message,
            next_event=held.session.applied_events,
        )
        with contextlib.suppress(TimeoutError, grpc.aio.BaseError, grpc.RpcError):
            await asyncio.wait_for(self._context.write(_response(refused=refusal)), _REFUSAL_SECONDS)

    async def _read(self) -> None:
        """Read messages into the inbox, no more than there is room for."""
        data: bytes | _Wake = b""
        while data is not _Wake.LOOK:
            await self._room.acquire()
            data = _Wake.LOOK
            with contextlib.suppress(grpc.aio.BaseError, grpc.RpcError):  # a cut is an end like any other
                message = await self._context.read()
                data = _Wake.LOOK if message is grpc.aio.EOF else message
            self._inbox.put_nowait(data)

    async def _take(self) -> bytes | _Wake:
        """Return what the inbox has next; LOOK at the end of the stream or once someone has ended it."""
        if self._ending is not None:
            return _Wake.LOOK
        found = await self._inbox.get()
        if isinstance(found, bytes):
            self._room.release()
        return _Wake.LOOK if self._ending is not None else found

    async def _write(self, answers: deque[bytes]) -> None:
        while answers:
            await self._context.write(answers.popleft())

    async def _written(self) -> None:
        """Wait until the last answers are written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await within(self._home.limits.idle_seconds, writing, "read nothing")


def _response(**message: Any) -> bytes:
    return hypervisor_pb2.StreamEventsResponse(**message).SerializeToString()


def _done(held: Held) -> bytes:
    done = hypervisor_pb2.Acknowledgement(
        applied_events=held.session.applied_events, committed_events=held.session.committed_events
    )
    return _response(acknowledgement=done)
