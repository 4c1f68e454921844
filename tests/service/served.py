"""A guest service in the test's process, and a client of it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import grpc

from exitlab.v1 import guest_pb2, guest_pb2_grpc, policy_pb2
from guest_svc.service.held import Run
from guest_svc.service.life import GuestServer, ServeOptions
from guest_svc.service.limits import ServiceLimits
from guest_svc.service.private import PrivateHypervisor

SECONDS = 60.0  # no call of these tests takes this long unless it hangs
VMX = policy_pb2.VENDOR_VMX
FOR_EVER = 10**12  # events


class RunningService:
    """A service in a thread with its own event loop."""

    def __init__(self, options: ServeOptions) -> None:
        """Start it and wait until it listens."""
        self._options = options
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(),), daemon=True)
        self._thread.start()
        self.address = self._started.result(SECONDS)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        try:
            self.server = GuestServer(self._options)
            self._started.set_result(await self.server.start())
        except Exception as error:
            self._started.set_exception(error)
            return
        await self._closing.wait()
        await self.server.drain()

    def run(self, run_id: str, owner: str = "") -> Run:
        """Return a run as the service holds it."""
        return self.server.runs.find(run_id, owner)

    def pid(self, run_id: str, owner: str = "") -> int:
        """Return the number of a run's process."""
        process: Any = self.run(run_id, owner).process
        number: int = process._process.pid
        return number

    def start_drain(self) -> "Future[bool]":
        """Begin to drain and return the future of its end."""
        return asyncio.run_coroutine_threadsafe(self.server.drain(), self._loop)

    def close(self) -> None:
        """Drain it."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(SECONDS)


@contextmanager
def serving(
    hypervisor: str | PrivateHypervisor, listen: str = "127.0.0.1:0", **options: Any
) -> Iterator[RunningService]:
    """Serve until the block is left."""
    options.setdefault("limits", ServiceLimits())
    service = RunningService(ServeOptions(listen, hypervisor=hypervisor, **options))
    try:
        yield service
    finally:
        service.close()


class Client:
    """Somebody who starts runs."""

    def __init__(self, channel: grpc.Channel) -> None:
        """Talk over a channel."""
        self.channel = channel
        self.stub = guest_pb2_grpc.GuestServiceStub(channel)

    def start(self, request_id: str, config: guest_pb2.RunConfig) -> guest_pb2.RunStatus:
        """Start a run."""
        request = guest_pb2.StartRunRequest(request_id=request_id, config=config)
        return self.stub.StartRun(request, timeout=SECONDS).status

    def watch(self, run_id: str, interval_ms: int = 10) -> Any:
        """Watch a run."""
        request = guest_pb2.WatchRunRequest(run_id=run_id, interval_ms=interval_ms)
        return self.stub.WatchRun(request, timeout=SECONDS)

    def until(self, run_id: str, is_so: Callable[[guest_pb2.RunStatus], bool]) -> guest_pb2.RunStatus:
        """Watch a run until something is so."""
        call = self.watch(run_id)
        for response in call:
            if is_so(response.status):
                call.cancel()
                status: guest_pb2.RunStatus = response.status
                return status
        raise AssertionError(f"it ended before: {response.status}")

    def end(self, run_id: str) -> guest_pb2.WatchRunResponse:
        """Watch a run to its end, and return what is said last."""
        last = guest_pb2.WatchRunResponse()
        for response in self.watch(run_id):
            last = response
        return last

    def stop(self, run_id: str) -> guest_pb2.RunStatus:
        """Stop a run."""
        return self.stub.StopRun(guest_pb2.StopRunRequest(run_id=run_id), timeout=SECONDS).status

    def list(self, **page: Any) -> guest_pb2.ListRunsResponse:
        """List runs."""
        return self.stub.ListRuns(guest_pb2.ListRunsRequest(**page), timeout=SECONDS)


def lanes(*policies: str) -> list[policy_pb2.Lane]:
    """Return a lane for each policy."""
    return [policy_pb2.Lane(policy_name=policy, vendor=VMX) for policy in policies]


def some_config(**changes: Any) -> guest_pb2.RunConfig:
    """Return a config that is fine, with changes."""
    fields: dict[str, Any] = {
        "workload": "context-switch",
        "lanes": lanes("kvm-6.14", "ignore"),
        "events": 20_000,
        "prices": ["seed-2014"],
    }
    return guest_pb2.RunConfig(**{**fields, **changes})
