"""The sessions that a server holds: by id and by request id, within its limits.

Sessions without a stream are dropped once idle, whether ended or not, and the oldest that have ended
(finished or failed) when there are too many. There is no timer: the registry looks when a session is
asked for or created.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.config import MAX_TEXT_CHARACTERS
from hypervisor_svc.errors import AlreadyExists, InvalidRequest, LimitReached, NotFound
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.logs import bound, log
from hypervisor_svc.session import ENDED, Session

Result = TypeVar("Result")
InThread = Callable[..., Awaitable[Any]]
# Makes the session of an id and a config.
MakeSession = Callable[[str, hypervisor_pb2.SessionConfig], Awaitable[Session]]


class Ending(Enum):
    """Why the server ends a stream."""

    FENCED = auto()
    FINISHED = auto()
    DRAINING = auto()


class StreamLike(Protocol):
    """What is held of a session's open stream."""

    epoch: int

    def end(self, why: Ending) -> None:
        """End the stream after the block in hand."""


@dataclass(eq=False)
class Held:
    """A session as the server holds it."""

    session: Session
    number: int  # counts the server's sessions from 1, for lists
    request: hypervisor_pb2.CreateSessionRequest
    last_used: float
    stream: StreamLike | None = None  # the newest one that is open
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # or dropped, or the server stops
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def call(self, in_thread: InThread, method: Callable[..., Result], *args: Any) -> Result:
        """Call a method of the session in a thread, in the order of asking, one at a time.

        Who waits for his turn holds no thread, and may be cancelled. Work that has begun goes on to its
        end even if nobody waits for it any more, and only then comes the next.
        """
        await self._lock.acquire()
        work = asyncio.ensure_future(in_thread(method, *args))
        work.add_done_callback(self._done)
        await asyncio.wait([work])  # which, unlike await, leaves the work alone when it is cancelled
        result: Result = work.result()
        return result

    def _done(self, work: asyncio.Future[Any]) -> None:
        self._lock.release()
        if not work.cancelled():
            work.exception()  # looked at, as whoever asked may be gone
        if self.session.state in ENDED:
            self.ended.set()


class Registry:
    """All sessions of one server; used from its event loop only."""

    def __init__(self, limits: ServerLimits, now: Callable[[], float] = time.monotonic) -> None:
        """Hold nothing yet; ``now`` tells seconds."""
        self._limits = limits
        self._now = now
        self._by_id: dict[str, Held] = {}  # oldest first
        self._by_request: dict[str, Held] = {}
        self._created = 0
        self._creating = asyncio.Lock()

    async def create(self, request: hypervisor_pb2.CreateSessionRequest, make: MakeSession) -> Held:
        """Return the session of the request's id, made now if there is none.

        Raises: InvalidRequest, AlreadyExists, LimitReached, and what ``make`` raises.
        """
        if not 1 <= len(request.request_id) <= MAX_TEXT_CHARACTERS:
            message = f"{len(request.request_id)} characters, expected 1 to {MAX_TEXT_CHARACTERS}"
            raise InvalidRequest("BAD_REQUEST_ID", message, field="request_id")
        async with self._creating:  # a repeat that comes meanwhile waits, and then finds the first
            self._drop_idle()
            self._drop_ended()
            held = self._by_request.get(request.request_id)
            if held is not None:
                return self._repeated(held, request)
            unfinished = sum(held.session.state not in ENDED for held in self._by_id.values())
            if unfinished >= self._limits.max_sessions:
                message = f"{unfinished} sessions are not finished, and no more are allowed"
                raise LimitReached("TOO_MANY_SESSIONS", message, max_sessions=self._limits.max_sessions)
            # The id is the capability to use the session, so nobody may guess it.
            session = await make(secrets.token_urlsafe(24), request.config)
            self._created += 1
            held = Held(session, self._created, request, self._now())
            self._by_id[session.session_id] = self._by_request[request.request_id] = held
            return held

    def find(self, session_id: str, field_path: str = "session_id") -> Held:
        """Return a session and note that it is in use.

        Raises: NotFound.
        """
        self._drop_idle()
        held = self._by_id.get(session_id)
        if held is None:
            message = "no such session; it never was, or it was idle for too long or the server restarted"
            raise NotFound("SESSION_NOT_FOUND", message, field=field_path)
        self.touch(held)
        return held

    def touch(self, held: Held) -> None:
        """Note that a session is in use, or was until now."""
        held.last_used = self._now()

    def after(self, number: int) -> list[Held]:
        """Return the sessions that were created after the one of ``number``, oldest first."""
        self._drop_idle()
        return [held for held in self._by_id.values() if held.number > number]

    def _repeated(self, held: Held, request: hypervisor_pb2.CreateSessionRequest) -> Held:
        if held.request != request:
            message = "this request id was used with another config"
            raise AlreadyExists("REQUEST_ID_REUSED", message, field="request_id")
        self.touch(held)
        return held

    def _drop_idle(self) -> None:
        oldest = self._now() - self._limits.idle_seconds
        streamless = [held for held in self._by_id.values() if held.stream is None]
        self._drop([held for held in streamless if held.last_used < oldest], "idle")

    def _drop_ended(self) -> None:
        ended = [held for held in self._by_id.values() if held.session.state in ENDED]
        self._drop(ended[: -self._limits.max_sessions], "too many ended")

    def _drop(self, dropped: list[Held], why: str) -> None:
        for held in dropped:
            del self._by_id[held.session.session_id]
            del self._by_request[held.request.request_id]
            held.ended.set()
            with bound(session_id=held.session.session_id):
                log.info("dropped", why=why, applied_events=held.session.applied_events)
