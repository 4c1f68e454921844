"""When sessions are committed: checkpoints, beside the engine's threads.

A checkpoint is due when a second has passed since the last, or half of the events are in use that a
session may have uncommitted. One is made at a time. It takes a copy of the state in an engine thread, in
turn with the session's other work, and stores it in a thread of its own. So that checkpoints take no more
than a twentieth of a processor, the next waits for nineteen times as long as the last has taken, unless
a session's room is half used.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol, TypeVar

from exitlab.serving.logs import bound, log
from exitlab.serving.refusals import OurFault, Refused
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Ending, Held, InThread

EVERY_SECONDS: Final = 1.0
_PAUSE: Final = 19  # times as long as the last took

Result = TypeVar("Result")


class CheckpointStore(Protocol):
    """What keeps checkpoints."""

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep where a session stands; it is durable when this returns."""


class Commits:
    """Commits the sessions of one server; used from its event loop only."""

    def __init__(
        self,
        store: CheckpointStore,
        limits: ServerLimits,
        in_thread: InThread,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Have committed nothing yet; ``now`` tells seconds."""
        self._store = store
        self._limits = limits
        self._in_thread = in_thread
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._turn = asyncio.Lock()
        self._rests_until = now()

    def look(self, held: Held) -> None:
        """Begin to commit a session if it is due, else see to it that it is looked at again."""
        if held.committing is not None or not self._uncommitted(held):
            return
        wait = self._seconds_until_due(held)
        if wait <= 0:
            self._begin(held)
        elif held.looked_at_again is None:
            held.looked_at_again = asyncio.get_running_loop().call_later(wait, self._look_again, held)

    def _look_again(self, held: Held) -> None:
        held.looked_at_again = None
        self.look(held)

    async def commit(self, held: Held) -> None:
        """Commit all that is applied by now.

        Raises: Unavailable if it cannot be stored.
        """
        target = held.session.applied_events
        while held.session.committed_events < target and held.session.can_go_on:
            await self._committed(held)

    async def make_room(self, held: Held) -> None:
        """Wait, if need be, until the session may have more events that are not committed.

        Raises: Unavailable if it cannot be stored.
        """
        session = held.session
        most = self._limits.max_uncommitted_events
        while session.applied_events - session.committed_events >= most and session.can_go_on:
            await self._committed(held)

    async def _committed(self, held: Held) -> None:
        """Wait for a checkpoint; whoever leaves meanwhile leaves it to the others that wait."""
        held.is_commit_wanted = True
        await asyncio.shield(held.committing or self._begin(held))

    @staticmethod
    def _uncommitted(held: Held) -> int:
        session = held.session
        return session.applied_events - session.committed_events if session.can_go_on else 0

    def _seconds_until_due(self, held: Held) -> float:
        if 2 * self._uncommitted(held) >= self._limits.max_uncommitted_events:
            return 0.0
        return max(held.committed_at + EVERY_SECONDS, self._rests_until) - self._now()

    def _begin(self, held: Held) -> asyncio.Task[None]:
        held.committing = asyncio.create_task(self._commit(held))
        held.committing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return held.committing

    async def _commit(self, held: Held) -> None:
        """Store a checkpoint, in turn with others, and tell the session's stream; end it if that fails."""
        try:
            async with self._turn:
                if not held.is_commit_wanted and self._seconds_until_due(held) > 0:
                    return  # another's has taken its time meanwhile
                held.is_commit_wanted = False
                await self._store_checkpoint(held)
        except Refused as refused:
            self._give_up(held, refused.message)
            raise
        except Exception as error:
            log.exception("fault", method="checkpoint")
            self._give_up(held, "a fault of the hypervisor")
            raise OurFault("INTERNAL_ERROR", "the session cannot be stored; the log says more") from error
        finally:
            held.committing = None
        self.look(held)  # there may be more by now

    async def _store_checkpoint(self, held: Held) -> None:
        session = held.session
        checkpoint, copying = await held.call(self._in_thread, self._timed, session.checkpoint)
        if checkpoint is None:
            return
        age_seconds = self._now() - held.began_at
        save = partial(self._store.save_checkpoint, session.session_id, checkpoint, age_seconds)
        loop = asyncio.get_running_loop()
        _, storing = await loop.run_in_executor(self._thread, self._timed, save)
        held.committed_at = self._now()
        self._rests_until = held.committed_at + _PAUSE * (copying + storing)
        session.committed(checkpoint.applied_events)
        if held.stream is not None:
            held.stream.tell_committed()

    def _give_up(self, held: Held, why: str) -> None:
        """Say that a session is not committed; it waits in memory for its next stream, or for a drain."""
        held.committed_at = self._now()
        session = held.session
        with bound(session=session.session_id):
            log.error("not committed", applied_events=session.applied_events, why=why)
        if held.stream is not None:
            held.stream.end(Ending.NOT_STORED)

    def _timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """Do work and tell how many seconds it took."""
        begun = self._now()
        return work(), self._now() - begun
