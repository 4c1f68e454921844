"""The guest service that is checked: its calls, with what it means if one fails."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import grpc

from exitlab.v1 import guest_pb2, guest_pb2_grpc
from guest_svc.check.musts import Broken
from guest_svc.check.stand import PRICES, Stand, lanes
from guest_svc.errors import BadInput, NotConnected
from guest_svc.workloads.base import unknown

_Answer = TypeVar("_Answer")
CALL_SECONDS: Final = 60.0  # in which a call is answered, and a run of a few thousand events ends
STATES: Final = {
    guest_pb2.RUN_STATE_UNSPECIFIED: "of no state",
    guest_pb2.RUN_STATE_RUNNING: "running",
    guest_pb2.RUN_STATE_FINISHED: "finished",
    guest_pb2.RUN_STATE_FAILED: "failed",
    guest_pb2.RUN_STATE_STOPPED: "stopped",
}


class Refused(Broken):
    """A call of the service failed."""

    def __init__(self, call: str, error: grpc.RpcError) -> None:
        """Say which, and with what status."""
        self.code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        super().__init__(f"{call} failed with {self.code.name}: {' '.join((details or 'no word').split())}")


@dataclass(slots=True)
class Remote:
    """A service, and the run that it is asked for again and again."""

    stub: guest_pb2_grpc.GuestServiceStub
    stand: Stand
    name: str
    is_recorded: bool
    parameters: Mapping[str, str]
    seed: int
    events: int
    seconds: float = CALL_SECONDS

    def config(
        self,
        *,
        workload: str | None = None,
        parameters: Mapping[str, str] | None = None,
        policy: str | None = "",
        prices: Sequence[str] = (PRICES,),
        seed: int | None = None,
    ) -> guest_pb2.RunConfig:
        """Return what the run does, with something changed; a policy of None is no lane."""
        run_lanes = lanes() if policy is not None else []
        for lane in run_lanes:
            lane.policy_name = policy or lane.policy_name
        values = {**self.parameters, **(parameters or {})}
        return guest_pb2.RunConfig(
            workload=self.name if workload is None else workload,
            parameters=[guest_pb2.ParameterValue(name=name, value=value) for name, value in values.items()],
            seed=self.seed if seed is None else seed,
            events=self.events,
            lanes=run_lanes,
            prices=prices,
            hypervisor_address=self.stand.address,
        )

    def workloads(self) -> list[guest_pb2.Workload]:
        """Return what it lists."""
        return listed(self.stub, self.seconds)

    def start(self, config: guest_pb2.RunConfig, request_id: str = "") -> guest_pb2.RunStatus:
        """Start a run."""
        request = guest_pb2.StartRunRequest(request_id=request_id or str(uuid.uuid4()), config=config)
        answer = _called("StartRun", partial(self.stub.StartRun, request, timeout=self.seconds))
        if not answer.status.run_id:
            raise Broken("StartRun answers without the id of a run")
        return answer.status

    def watch(self, run_id: str, interval_ms: int = 1000) -> list[guest_pb2.WatchRunResponse]:
        """Return all that is told of a run until the watch ends."""
        request = guest_pb2.WatchRunRequest(run_id=run_id, interval_ms=interval_ms)
        return _called("WatchRun", lambda: list(self.stub.WatchRun(request, timeout=self.seconds)))

    def stop(self, run_id: str) -> guest_pb2.StopRunResponse:
        """Stop a run."""
        request = guest_pb2.StopRunRequest(run_id=run_id)
        return _called("StopRun", partial(self.stub.StopRun, request, timeout=self.seconds))

    def end_of(
        self,
        started: guest_pb2.RunStatus,
        expected: guest_pb2.RunState.ValueType = guest_pb2.RUN_STATE_FINISHED,
    ) -> guest_pb2.WatchRunResponse:
        """Wait for a run's end and return what is told of it.

        Raises:
            Broken: It ends otherwise than is expected.

        """
        told = self.watch(started.run_id, interval_ms=50)
        if not told:
            raise Broken("WatchRun ends without a word")
        status = told[-1].status
        if status.state != expected:
            found = STATES.get(status.state, f"in state {status.state}")
            raise Broken(f"the run is {found}, expected {STATES[expected]}: {status.note or 'no note'}")
        return told[-1]

    def run(self, seed: int | None = None) -> guest_pb2.WatchRunResponse:
        """Run to the end."""
        return self.end_of(self.start(self.config(seed=seed)))

    def runs(self, page_size: int) -> list[str]:
        """Return the ids of all runs that it lists, page by page."""
        found: list[str] = []
        tokens = {""}
        token = ""
        while True:
            request = guest_pb2.ListRunsRequest(page_size=page_size, page_token=token)
            page = _called("ListRuns", partial(self.stub.ListRuns, request, timeout=self.seconds))
            if len(page.runs) > page_size:
                raise Broken(f"a page of {page_size} has {len(page.runs)} runs")
            found += [run.run_id for run in page.runs]
            token = page.next_page_token
            if not token:
                return found
            if token in tokens:
                raise Broken("a page leads to one that was there")
            tokens.add(token)

    def refuses(self, config: guest_pb2.RunConfig, codes: Sequence[grpc.StatusCode], what: str) -> None:
        """Check that a run is refused.

        Raises:
            Broken: It is not, or with another status.

        """
        request = guest_pb2.StartRunRequest(request_id=str(uuid.uuid4()), config=config)
        call = partial(self.stub.StartRun, request, timeout=self.seconds)
        self.check_refused(lambda: _called("StartRun", call), codes, what)

    def check_refused(self, call: Callable[[], Any], codes: Sequence[grpc.StatusCode], what: str) -> None:
        """Check that a call is refused.

        Raises:
            Broken: It is not, or with another status.

        """
        expected = " or ".join(code.name for code in codes)
        try:
            call()
        except Refused as refused:
            if refused.code not in codes:
                raise Broken(f"{what}: {refused}, expected {expected}") from None
            return
        raise Broken(f"{what} is not refused, expected {expected}")


def listed(stub: guest_pb2_grpc.GuestServiceStub, seconds: float = CALL_SECONDS) -> list[guest_pb2.Workload]:
    """Return the workloads that a service lists.

    Raises:
        Refused: It does not.

    """
    request = guest_pb2.ListWorkloadsRequest()
    return list(_called("ListWorkloads", partial(stub.ListWorkloads, request, timeout=seconds)).workloads)


def choose(stub: guest_pb2_grpc.GuestServiceStub, address: str, name: str | None) -> guest_pb2.Workload:
    """Return the workload of a name that a service has, or its first that is no recorded trace.

    Raises:
        NotConnected: No guest service answers there.
        BadInput: It has no such workload, or none at all.

    """
    try:
        found = {workload.name: workload for workload in listed(stub)}
    except Refused as refused:
        raise NotConnected(f"no guest service answers at {address}: {refused}") from None
    if not found:
        raise BadInput(f"{address}: it lists no workload")
    if name is None:
        return min(found.values(), key=lambda workload: workload.is_recorded)
    if name not in found:
        raise BadInput(f"{address}: {unknown('workload', name, found)}")
    return found[name]


def _called(name: str, call: Callable[[], _Answer]) -> _Answer:
    try:
        return call()
    except grpc.RpcError as error:
        raise Refused(name, error) from None
