"""A small guest service in the test's process: keeps the contract, or breaks it where a test says so."""

# ruff: noqa: N802  (the contract names the methods)
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from exitlab.v1 import guest_pb2, guest_pb2_grpc, hypervisor_pb2
from guest_svc.errors import GuestError
from guest_svc.hypervisor import Hypervisor
from guest_svc.sessions import Talk, stream_workload
from guest_svc.workloads import WorkloadError, find_workload
from guest_svc.workloads.base import Workload

RUNNING = guest_pb2.RUN_STATE_RUNNING
NAME = "io"


@dataclass(eq=False)
class Run:
    """A run, in a thread of its own."""

    status: guest_pb2.RunStatus
    config: guest_pb2.RunConfig
    has_begun: threading.Event = field(default_factory=threading.Event)
    has_ended: threading.Event = field(default_factory=threading.Event)
    is_stopping: bool = False
    report: bytes = b""
    figures: list[Any] = field(default_factory=list)
    hypervisor: Hypervisor | None = None


class Service(guest_pb2_grpc.GuestServiceServicer):
    """The service; ``faults`` names what it does wrong."""

    def __init__(self, *faults: str) -> None:
        """Have no runs."""
        self.faults = set(faults)
        self._runs: dict[str, Run] = {}
        self._by_request: dict[str, Run] = {}
        self._lock = threading.Lock()

    def ListWorkloads(self, _request: Any, _context: Any) -> Any:
        """List one workload."""
        source = find_workload(NAME)
        parameters = [
            guest_pb2.WorkloadParameter(name=each.name, type=each.type_name, default_value=str(each.default))
            for each in source.parameters
        ]
        if "odd list" in self.faults:
            parameters[0].default_value = "many"
        listed = guest_pb2.Workload(
            name=NAME, summary=source.summary, parameters=parameters, api_version=source.api_version
        )
        return guest_pb2.ListWorkloadsResponse(workloads=[listed])

    def _workload(self, config: guest_pb2.RunConfig, context: Any) -> Workload:
        if config.workload != NAME:
            code = "INVALID_ARGUMENT" if "unknown is invalid" in self.faults else "NOT_FOUND"
            context.abort(grpc.StatusCode[code], "no such workload")
        parameters = {each.name: each.value for each in config.parameters}
        seed = config.seed
        if "any seed" in self.faults:
            seed = uuid.uuid4().int >> 64
        if "no check" in self.faults:
            parameters = {}
        try:
            return find_workload(NAME).make(parameters, seed, config.events or None)
        except WorkloadError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError("abort returned") from error

    def StartRun(self, request: Any, context: Any) -> Any:
        """Start a run in a thread, once its session is created."""
        workload = self._workload(request.config, context)
        known = request.config.prices == ["seed-2014"] and len(request.config.lanes) == 1
        if not known or request.config.lanes[0].policy_name != "kvm-6.14":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such policy or price list")
        with self._lock:
            run = self._by_request.get(request.request_id)
            if run is None or "starts again" in self.faults:
                status = guest_pb2.RunStatus(run_id=uuid.uuid4().hex, workload=NAME, state=RUNNING)
                run = Run(status, request.config)
                self._by_request[request.request_id] = self._runs[status.run_id] = run
                threading.Thread(target=self._carry, args=(run, workload), daemon=True).start()
        run.has_begun.wait()
        return guest_pb2.StartRunResponse(status=run.status)

    def _carry(self, run: Run, workload: Workload) -> None:
        def on_session(session_id: str) -> None:
            run.status.session_id = session_id
            run.has_begun.set()

        retry_seconds = 0.0 if "gives up" in self.faults else 30.0
        try:
            with Hypervisor(run.config.hypervisor_address, retry_seconds=retry_seconds) as hypervisor:
                run.hypervisor = hypervisor
                talk = Talk(on_session=on_session)
                streamed = stream_workload(hypervisor, workload, list(run.config.lanes), talk)
                choices = [hypervisor_pb2.PriceChoice(name="seed-2014")]
                priced = hypervisor.priced(streamed.session_id, choices)
            run.status.sent_events = run.status.applied_events = streamed.report.events
            run.status.reconnects = 0 if "no reconnects" in self.faults else streamed.reconnects
            run.report, run.figures = priced.report, list(priced.figures)
            if "other report" in self.faults:
                run.report += b"\x08\x01"
            run.status.state = guest_pb2.RUN_STATE_FINISHED
        except (GuestError, ValueError, grpc.RpcError) as error:
            if run.is_stopping:
                run.status.state = guest_pb2.RUN_STATE_STOPPED
            else:
                run.status.state, run.status.note = guest_pb2.RUN_STATE_FAILED, str(error)
        run.has_begun.set()
        run.has_ended.set()

    def _find(self, run_id: str, context: Any) -> Run:
        if run_id not in self._runs:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
        return self._runs[run_id]

    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:
        """Tell of a run now and at its end."""
        run = self._find(request.run_id, context)
        first = guest_pb2.RunStatus()
        first.CopyFrom(run.status)
        if "goes back" in self.faults and not run.has_ended.is_set():
            first.sent_events = 10**9
        yield guest_pb2.WatchRunResponse(status=first, report=run.report, figures=run.figures)
        if first.state == RUNNING:
            run.has_ended.wait()
            yield guest_pb2.WatchRunResponse(status=run.status, report=run.report, figures=run.figures)

    def StopRun(self, request: Any, context: Any) -> Any:
        """Stop a run by closing its connection."""
        run = self._find(request.run_id, context)
        if not run.has_ended.is_set() and "never stops" not in self.faults:
            run.is_stopping = True
            assert run.hypervisor is not None
            run.hypervisor.retry_seconds = 0.0
            run.hypervisor.channel.close()
            run.has_ended.wait()
        return guest_pb2.StopRunResponse(status=run.status)

    def ListRuns(self, request: Any, _context: Any) -> Any:
        """List runs, newest first."""
        runs = list(self._runs.values())
        if "oldest first" not in self.faults:
            runs.reverse()
        start = int(request.page_token or 0)
        end = start + (request.page_size or 10)
        token = str(end) if end < len(runs) else ""
        return guest_pb2.ListRunsResponse(runs=[run.status for run in runs[start:end]], next_page_token=token)


@contextmanager
def serving(folder: Path, *faults: str) -> Iterator[str]:
    """Serve, and yield the address."""
    server = grpc.server(ThreadPoolExecutor(16))
    guest_pb2_grpc.add_GuestServiceServicer_to_server(Service(*faults), server)
    address = f"unix:{folder}/g"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()
