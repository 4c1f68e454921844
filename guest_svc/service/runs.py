"""The runs of a service: by id, by owner and request id, within its limits. No gRPC.

A run is first *starting*: its process checks what was asked for, and has the hypervisor create the
session. Only then does it exist, RUNNING, until it is FINISHED, FAILED or STOPPED; what was refused
before leaves nothing behind. Those that have ended are kept, the newest of each owner.

A run belongs to the identity that started it; to another one it does not exist. Where callers have no
identity, the owner is NOBODY, and the runs are everybody's who reaches the service.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterator

from exitlab.serving.identity import NOBODY
from exitlab.serving.logs import bound, log
from exitlab.serving.refusals import (
    RETRY_AFTER_MS,
    AlreadyExists,
    LimitReached,
    NotFound,
    OurFault,
    Refused,
    TimedOut,
    Unavailable,
)
from exitlab.v1 import guest_pb2
from guest_svc.service.frames import Failure, Kind
from guest_svc.service.held import FAILED, FINISHED, RUNNING, STOPPED, Key, Run
from guest_svc.service.limits import ServiceLimits
from guest_svc.service.process import RunProcess

Launch = Callable[[guest_pb2.RunConfig], Awaitable[RunProcess]]


class Runs:
    """All runs of one service; used from its event loop only."""

    def __init__(self, limits: ServiceLimits, launch: Launch) -> None:
        """Hold nothing yet; ``launch`` starts the process of a run, or refuses it."""
        self._limits = limits
        self._launch = launch
        self._by_key: dict[Key, Run] = {}  # those that start, too
        self._by_id: dict[str, Run] = {}  # oldest first
        self._last_number = 0
        self._at_work: set[asyncio.Task[None]] = set()
        self._is_draining = False

    async def start(self, request: guest_pb2.StartRunRequest, owner: str = NOBODY) -> Run:
        """Return the owner's run of the request's id, started now if there is none.

        A caller that goes meanwhile may come back for it.

        Raises: AlreadyExists, LimitReached, Unavailable, and whatever the run is refused for.
        """
        key = Key(owner, request.request_id)
        digest = hashlib.sha256(request.config.SerializeToString(deterministic=True)).digest()
        run = self._by_key.get(key)
        if run is None:
            run = self._new(key, digest, request.config)
        elif run.request_digest != digest:
            message = "this request id was used with another config"
            raise AlreadyExists("REQUEST_ID_REUSED", message, field="request_id")
        await asyncio.shield(run.begun)
        return run

    def _new(self, key: Key, digest: bytes, config: guest_pb2.RunConfig) -> Run:
        self._check_room(key.owner)
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun.add_done_callback(asyncio.Future.exception)  # looked at, as whoever asked may be gone
        status = guest_pb2.RunStatus(run_id=secrets.token_hex(16), workload=config.workload)
        run = self._by_key[key] = Run(key, digest, status, begun)
        task = asyncio.create_task(self._carry(run, config))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return run

    def _check_room(self, owner: str) -> None:
        """Refuse a run more than the owner, or all of them, may have at once."""
        if self._is_draining:
            raise _draining()
        owners = [run.key.owner for run in self._by_key.values() if not run.ended.is_set()]
        own, limits = owners.count(owner), self._limits
        if own >= limits.max_runs:
            message = f"{own} runs have not ended, and no more are allowed"
            raise LimitReached("TOO_MANY_RUNS", message, max_runs=limits.max_runs)
        if len(owners) >= limits.max_all_runs:
            message = f"{len(owners)} runs of all callers have not ended, and no more are allowed"
            raise LimitReached("TOO_MANY_RUNS", message, max_all_runs=limits.max_all_runs)

    def find(self, run_id: str, owner: str = NOBODY) -> Run:
        """Return a run of the caller's.

        Raises: NotFound.
        """
        run = self._by_id.get(run_id)
        if run is None or run.key.owner != owner:
            message = "no such run: never was, ended and dropped (too many), or the service restarted"
            raise NotFound("RUN_NOT_FOUND", message, field="run_id")
        return run

    def newest(self, before: int | None, owner: str = NOBODY) -> Iterator[Run]:
        """Yield an owner's runs that began before the one of a number, or all, newest first."""
        for run in reversed(self._by_id.values()):
            if run.key.owner == owner and (before is None or run.number < before):
                yield run

    @contextlib.contextmanager
    def watched(self, run: Run) -> Iterator[None]:
        """Count a watcher of a run; refuse one too many."""
        if run.watchers >= self._limits.max_watchers:
            message = f"{run.watchers} callers watch this run, and no more are allowed"
            raise LimitReached("TOO_MANY_WATCHERS", message, max_watchers=self._limits.max_watchers)
        run.watchers += 1
        try:
            yield
        finally:
            run.watchers -= 1

    async def stop_all(self) -> None:
        """Take no new runs, stop those that there are, and wait until they have ended."""
        self._is_draining = True
        for run in self._by_key.values():
            if not run.ended.is_set():
                run.stop()
        if self._at_work:
            await asyncio.wait(self._at_work)

    def kill_all(self) -> None:
        """End all processes by force."""
        self._is_draining = True
        for run in self._by_key.values():
            if run.process is not None and not run.ended.is_set():
                run.process.kill()

    async def _carry(self, run: Run, config: guest_pb2.RunConfig) -> None:
        """Carry a run from its start to its end."""
        with bound(run=run.status.run_id):
            try:
                await self._listen(run, config)
            except Refused as refused:
                self._end(run, FAILED, refused.message, refused)
            except Exception:
                log.exception("fault of a run")
                if run.process is not None:  # nobody listens to it any more
                    run.process.kill()
                    await run.process.ended()
                fault = OurFault("INTERNAL_ERROR", "a fault of the service; its log says more")
                self._end(run, FAILED, fault.message, fault)
            finally:
                if not run.ended.is_set():  # cancelled
                    self._end(run, STOPPED, "", _draining())

    async def _listen(self, run: Run, config: guest_pb2.RunConfig) -> None:
        """Start a run's process and take what it says, until it has ended."""
        failure: Failure | None = None
        done: guest_pb2.WatchRunResponse | None = None
        late = asyncio.get_running_loop().call_later(self._limits.start_seconds, self._give_up, run)
        try:
            process = run.process = await self._launch(config)
            if run.is_stopping:
                process.stop()
            async for kind, payload in process.frames():
                if kind == Kind.FAILED:
                    failure = Failure.decode(payload)
                elif kind == Kind.DONE:
                    done = guest_pb2.WatchRunResponse.FromString(payload)
                elif done is None:
                    self._take(run, kind, payload)
                if run.begun.done():
                    late.cancel()
        finally:
            late.cancel()
        ending = await process.ended()
        if done is not None and run.begun.done():
            run.finish(done)
            self._end(run, FINISHED)
        elif run.is_stopping:
            self._end(run, STOPPED, "", _draining())  # nobody else stops a run that has not begun
        else:
            if failure is None:
                how = f"by signal {-ending}" if ending < 0 else f"with status {ending}"
                message = f"the run's process ended {how}; the service's log says more"
                failure = Failure("INTERNAL", "RUN_BROKE", message)
            self._end(run, FAILED, failure.message, _refusal(failure))

    def _give_up(self, run: Run) -> None:
        """Refuse a run that does not get to its beginning."""
        if not run.begun.done():
            seconds = self._limits.start_seconds
            late = TimedOut("START_TIMED_OUT", f"the run has not begun within {seconds} seconds")
            self._forget(run)
            run.begun.set_exception(late)
            run.is_stopping = True
            if run.process is not None:
                run.process.kill()

    def _take(self, run: Run, kind: Kind, payload: bytes) -> None:
        """Take in what a run's process says."""
        if kind == Kind.CUT:
            log.info("cut", why=payload.decode())
        elif kind == Kind.BEGUN:
            self._begin(run, guest_pb2.RunStatus.FromString(payload).session_id)
        elif kind == Kind.POSITION:
            run.move(guest_pb2.RunStatus.FromString(payload))

    def _begin(self, run: Run, session_id: str) -> None:
        if run.begun.done():  # with an error: nobody waits any more
            return
        self._last_number += 1
        run.number = self._last_number
        run.status.state = RUNNING
        run.status.session_id = session_id
        self._by_id[run.status.run_id] = run
        run.begun.set_result(None)
        with bound(session=session_id):
            log.info("run began", workload=run.status.workload)

    def _end(
        self, run: Run, state: guest_pb2.RunState.ValueType, note: str = "", refusal: Refused | None = None
    ) -> None:
        """Note how a run has ended; one that had not begun is forgotten, and its caller gets the refusal."""
        run.process = None
        run.status.state = state
        run.status.note = note
        run.ended.set()
        if run.status.run_id not in self._by_id:
            self._forget(run)
            if not run.begun.done():
                run.begun.set_exception(refusal or OurFault("RUN_BROKE", "the run ended before it began"))
            return
        name = guest_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()
        log.info(f"run {name}", events=run.status.applied_events, **({"note": note} if note else {}))
        self._drop_some(run.key.owner)

    def _forget(self, run: Run) -> None:
        """Let a request id be used again."""
        if self._by_key.get(run.key) is run:
            del self._by_key[run.key]

    def _drop_some(self, owner: str) -> None:
        """Drop the oldest runs that have ended, if the owner has too many, or all take too much."""
        ended = [run for run in self._by_id.values() if run.ended.is_set()]
        own = [run for run in ended if run.key.owner == owner]
        for run in own[: -self._limits.max_ended_runs]:
            self._drop(run)
        kept = [run for run in ended if run.status.run_id in self._by_id]
        size = sum(run.kept_bytes for run in kept)
        for run in kept[:-1]:
            if size <= self._limits.max_kept_bytes:
                break
            size -= run.kept_bytes
            self._drop(run)

    def _drop(self, run: Run) -> None:
        del self._by_id[run.status.run_id]
        self._forget(run)


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the service is about to stop", retry_after_ms=RETRY_AFTER_MS)


def _refusal(failure: Failure) -> Refused:
    kind = {each.code: each for each in Refused.__subclasses__()}[failure.code]
    return kind(failure.reason, failure.message, field=failure.field)
