"""Runs whose processes are the test's to command."""

import asyncio
from collections.abc import AsyncIterator

from exitlab.serving.refusals import Refused
from exitlab.v1 import guest_pb2
from guest_svc.service.frames import Failure, Kind
from guest_svc.service.held import Run
from guest_svc.service.limits import ServiceLimits
from guest_svc.service.process import RunProcess
from guest_svc.service.runs import Runs

LIMITS = ServiceLimits(max_runs=3, max_all_runs=5, max_ended_runs=2, max_watchers=2)
_END = None


class ScriptedProcess:
    """A process that says what a test puts, and ends when it is told to."""

    def __init__(self) -> None:
        """Say nothing yet."""
        self._said: asyncio.Queue[tuple[Kind, bytes] | None] = asyncio.Queue()
        self.status = 0
        self.stops = 0
        self.kills = 0
        self.is_deaf = False

    def say(self, kind: Kind, payload: bytes = b"") -> None:
        """Say something."""
        self._said.put_nowait((kind, payload))

    def begin(self) -> None:
        """Say that the session is created."""
        self.say(Kind.BEGUN, guest_pb2.RunStatus(session_id="session").SerializeToString())

    def fail(self, code: str = "INVALID_ARGUMENT", field: str = "config.lanes") -> None:
        """Say that it is refused or failed, and end."""
        self.say(Kind.FAILED, Failure(code, "WHY", "because", field).encode())
        self.end()

    def finish(self, report: bytes = b"report") -> None:
        """Say what came of it, and end."""
        status = guest_pb2.RunStatus(sent_events=9, applied_events=9, reconnects=1)
        done = guest_pb2.WatchRunResponse(status=status, report=report)
        done.figures.add(prices="p", lane=3)
        self.say(Kind.DONE, done.SerializeToString())
        self.end()

    def end(self, status: int = 0) -> None:
        """End."""
        self.status = status
        self._said.put_nowait(_END)

    async def frames(self) -> AsyncIterator[tuple[Kind, bytes]]:
        """Yield what is said."""
        while (said := await self._said.get()) is not None:
            yield said

    def stop(self) -> None:
        """End by SIGTERM, unless it is deaf."""
        self.stops += 1
        if not self.is_deaf:
            self.end(-15)

    def kill(self) -> None:
        """End by SIGKILL."""
        self.kills += 1
        self.end(-9)

    async def ended(self) -> int:
        """Return the status."""
        return self.status


class Place:
    """Runs, and the processes that they started."""

    def __init__(self, limits: ServiceLimits = LIMITS) -> None:
        """Start none."""
        self.processes: list[ScriptedProcess] = []
        self.refusal: Refused | None = None
        self.runs = Runs(limits, self._launch)

    async def _launch(self, _config: guest_pb2.RunConfig) -> RunProcess:
        if self.refusal is not None:
            raise self.refusal
        self.processes.append(ScriptedProcess())
        return self.processes[-1]

    async def starting(
        self, request_id: str, owner: str = "", **config: object
    ) -> tuple["asyncio.Task[Run]", ScriptedProcess]:
        """Begin to start a run; return the call and its process."""
        request = some_request(request_id, **config)
        count = len(self.processes)
        call = asyncio.create_task(self.runs.start(request, owner))
        while len(self.processes) == count and not call.done():
            await asyncio.sleep(0)
        if call.done():
            await call  # raises why there is no process
        return call, self.processes[-1]

    async def running(self, request_id: str, owner: str = "") -> tuple[Run, ScriptedProcess]:
        """Return a run that has begun, and its process."""
        call, process = await self.starting(request_id, owner)
        process.begin()
        return await call, process

    async def finished(self, request_id: str, owner: str = "", report: bytes = b"report") -> Run:
        """Return a run that is finished."""
        run, process = await self.running(request_id, owner)
        process.finish(report)
        await run.ended.wait()
        return run


def some_request(request_id: str, **config: object) -> guest_pb2.StartRunRequest:
    """Return a request that is fine."""
    return guest_pb2.StartRunRequest(
        request_id=request_id,
        config=guest_pb2.RunConfig(**{"workload": "idle", **config}),  # type: ignore[arg-type]  # any field
    )
