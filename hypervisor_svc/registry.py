"""The sessions that a server holds: by id, by owner and request id, within its limits.

Sessions without a stream are dropped once idle, all once too old, and the oldest that have ended (finished
or failed) when there are too many. Where sessions are stored, those that have ended may be idle. There is
no timer: the registry looks when a session is asked for or created.

A session belongs to the identity that created it; to another one it does not exist. Where callers have no
identity, the owner is NOBODY, and whoever knows the id may use the session.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol, TypeVar

from exitlab.v1 import hypervisor_pb2
from hypervisor_svc.config import MAX_TEXT_CHARACTERS
from hypervisor_svc.errors import AlreadyExists, InvalidRequest, LimitReached, NotFound
from hypervisor_svc.identity import NOBODY
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.logs import bound, log
from hypervisor_svc.session import ENDED, Session

Result = TypeVar("Result")
InThread = Callable[..., Awaitable[Any]]


class Wanted(NamedTuple):
    """A session that is to be made."""

    session_id: str
    number: int
    owner: str
    request: hypervisor_pb2.CreateSessionRequest


MakeSession = Callable[[Wanted], Awaitable[Session]]


class Ending(Enum):
    """Why the server ends a stream."""

    FENCED = auto()
    FINISHED = auto()
    DRAINING = auto()
    DROPPED = auto()
    NOT_STORED = auto()


class StreamLike(Protocol):
    """What is held of a session's open stream."""

    epoch: int

    def end(self, why: Ending) -> None:
        """End the stream after the block in hand."""

    def tell_committed(self) -> None:
        """Acknowledge anew, as more is committed."""


@dataclass(eq=False)
class Held:
    """A session as the server holds it; times are the registry's."""

    session: Session
    number: int  # counts the server's sessions from 1, for lists
    request: hypervisor_pb2.CreateSessionRequest
    last_used: float
    owner: str = NOBODY
    began_at: float = 0.0  # as if a server had run all the time
    committed_at: float = 0.0
    engine_fingerprint: str = ""
    is_dropped: bool = False
    is_commit_wanted: bool = False  # due or not
    committing: asyncio.Task[None] | None = None
    looked_at_again: asyncio.TimerHandle | None = None
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

    def __init__(
        self,
        limits: ServerLimits,
        now: Callable[[], float] = time.monotonic,
        *,
        last_number: int = 0,
        engine_fingerprint: str = "",
        on_drop: Callable[[list[str]], None] | None = None,
    ) -> None:
        """Hold nothing yet; ``now`` tells seconds.

        Where sessions are stored, ``last_number`` is the newest one's and ``on_drop`` forgets those of ids.
        """
        self._limits = limits
        self._now = now
        self._by_id: dict[str, Held] = {}  # oldest first
        self._by_request: dict[tuple[str, str], Held] = {}
        self._last_number = last_number
        self._engine_fingerprint = engine_fingerprint  # of new sessions
        self._on_drop = on_drop
        self._creating = asyncio.Lock()

    def adopt(
        self,
        session: Session,
        number: int,
        owner: str,
        request: hypervisor_pb2.CreateSessionRequest,
        age_seconds: float = 0.0,
        engine_fingerprint: str = "",
    ) -> Held:
        """Hold a session that has just been made, or that was stored at some age."""
        now = self._now()
        held = Held(session, number, request, now, owner, now - age_seconds, now, engine_fingerprint)
        if session.state in ENDED:
            held.ended.set()
        self._by_id[session.session_id] = self._by_request[owner, request.request_id] = held
        return held

    async def create(
        self, request: hypervisor_pb2.CreateSessionRequest, make: MakeSession, owner: str = NOBODY
    ) -> Held:
        """Return the owner's session of the request's id, made now if there is none.

        Raises: InvalidRequest, AlreadyExists, LimitReached, and what ``make`` raises.
        """
        if not 1 <= len(request.request_id) <= MAX_TEXT_CHARACTERS:
            message = f"{len(request.request_id)} characters, expected 1 to {MAX_TEXT_CHARACTERS}"
            raise InvalidRequest("BAD_REQUEST_ID", message, field="request_id")
        # A client that goes meanwhile may come back for the session.
        return await asyncio.shield(self._create(request, make, owner))

    async def _create(
        self, request: hypervisor_pb2.CreateSessionRequest, make: MakeSession, owner: str
    ) -> Held:
        async with self._creating:  # a repeat that comes meanwhile waits, and then finds the first
            self._drop_some()
            self.drop_ended(owner)
            held = self._by_request.get((owner, request.request_id))
            if held is not None:
                return self._repeated(held, request)
            self._check_count(owner)
            # The id is the capability to use the session, so nobody may guess it.
            wanted = Wanted(secrets.token_hex(24), self._last_number + 1, owner, request)
            session = await make(wanted)
            self._last_number = wanted.number
            return self.adopt(
                *(session, wanted.number, owner, request), engine_fingerprint=self._engine_fingerprint
            )

    def find(self, session_id: str, field_path: str = "session_id", owner: str = NOBODY) -> Held:
        """Return a session of the caller's and note that it is in use.

        Raises: NotFound.
        """
        self._drop_some()
        held = self._by_id.get(session_id)
        if held is None or held.owner != owner:
            why = "dropped (idle, too old, too many), the server restarted without --state-dir, or never was"
            message = f"no such session: {why}"
            raise NotFound("SESSION_NOT_FOUND", message, field=field_path)
        self.touch(held)
        return held

    def touch(self, held: Held) -> None:
        """Note that a session is in use, or was until now."""
        held.last_used = self._now()

    def after(self, number: int, owner: str | None = NOBODY) -> list[Held]:
        """Return an owner's sessions, or all if None, that came after the one of ``number``, oldest first."""
        self._drop_some()
        return [held for held in self._by_id.values() if held.number > number and owner in (None, held.owner)]

    def drop_if_too_old(self, held: Held) -> None:
        """Drop a session, and end its stream, if it is too old."""
        is_held = self._by_id.get(held.session.session_id) is held
        if is_held and self._now() - held.began_at > self._limits.max_session_seconds:
            self._drop([held], "too old")

    def _repeated(self, held: Held, request: hypervisor_pb2.CreateSessionRequest) -> Held:
        if held.request != request:
            message = "this request id was used with another config"
            raise AlreadyExists("REQUEST_ID_REUSED", message, field="request_id")
        self.touch(held)
        return held

    def _check_count(self, owner: str) -> None:
        """Refuse a session more than the owner, or all of them, may have unfinished."""
        limits = self._limits
        owners = [held.owner for held in self._by_id.values() if held.session.state not in ENDED]
        own = owners.count(owner)
        if own >= limits.max_sessions:
            message = f"{own} sessions are not finished, and no more are allowed"
            raise LimitReached("TOO_MANY_SESSIONS", message, max_sessions=limits.max_sessions)
        if len(owners) >= limits.max_all_sessions:
            message = f"{len(owners)} sessions of all callers are not finished, and no more are allowed"
            raise LimitReached("TOO_MANY_SESSIONS", message, max_all_sessions=limits.max_all_sessions)

    def _drop_some(self) -> None:
        """Drop what is too old, or idle."""
        now, limits = self._now(), self._limits
        self._drop(
            [
                held
                for held in self._by_id.values()
                if now - held.began_at > limits.max_session_seconds and held.session.state not in ENDED
            ],
            "too old",
        )
        is_stored = self._on_drop is not None
        self._drop(
            [
                held
                for held in self._by_id.values()
                if held.stream is None
                and now - held.last_used > limits.idle_seconds
                and not (is_stored and held.session.state in ENDED)
            ],
            "idle",
        )

    def drop_ended(self, owner: str) -> None:
        """Drop the oldest of an owner's sessions that have ended, if there are too many."""
        ended = [held for held in self._by_id.values() if held.session.state in ENDED and held.owner == owner]
        self._drop(ended[: -self._limits.max_reports], "too many ended")

    def _drop(self, dropped: list[Held], why: str) -> None:
        for held in dropped:
            held.is_dropped = True
            del self._by_id[held.session.session_id]
            key = held.owner, held.request.request_id
            if (
                self._by_request.get(key) is held
            ):  # else it was created anew while the old was being forgotten
                del self._by_request[key]
            held.ended.set()
            if held.stream is not None:
                held.stream.end(Ending.DROPPED)
            with bound(session_id=held.session.session_id):
                log.info("dropped", why=why, applied_events=held.session.applied_events)
        if dropped and self._on_drop is not None:
            self._on_drop([held.session.session_id for held in dropped])
