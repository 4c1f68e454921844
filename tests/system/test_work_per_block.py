"""The paths that carry events work by the block: Python's calls grow with blocks, not with events."""

import asyncio
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import FrameType

import pytest

from exitlab.v1 import policy_pb2
from guest_svc import run
from guest_svc.hypervisor import Hypervisor
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload
from hypervisor_svc.drain import HypervisorServer, ServeOptions
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts

SECONDS = 60.0
PLAN = run.Plan(("kvm-6.14", "kvm-3.14"), policy_pb2.VENDOR_VMX, ("seed-2014",))


class _Counter:
    """Counts calls of Python functions and of C, in all threads started while it is on."""

    def __init__(self) -> None:
        self.calls = 0

    def _profile(self, _frame: FrameType, event: str, _arg: object) -> None:
        self.calls += event in {"call", "c_call"}

    def __enter__(self) -> "_Counter":
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


def _serve(listen: str, started: "Future[asyncio.AbstractEventLoop]", stop: asyncio.Event) -> None:
    async def live() -> None:
        server = HypervisorServer(ServeOptions(listen, ServerLimits()), Parts.installed())
        await server.start()
        started.set_result(asyncio.get_running_loop())
        await stop.wait()
        await server.stop()

    asyncio.run(live())


def _calls_of_a_run(folder: Path, workload: Workload, block_events: int) -> int:
    """Return the calls that guest and hypervisor together make for one run over a socket."""
    blocks = workload.blocks
    workload.blocks = lambda _=0: blocks(block_events)  # type: ignore[method-assign,assignment]  # cut otherwise
    listen = f"unix:{folder}/s"
    started: Future[asyncio.AbstractEventLoop] = Future()
    stop = asyncio.Event()
    with _Counter() as counter:
        server = threading.Thread(target=_serve, args=(listen, started, stop))
        server.start()
        loop = started.result(SECONDS)
        with Hypervisor(listen) as hypervisor:
            before = counter.calls
            document = run.compare(hypervisor, workload, PLAN)
            calls = counter.calls - before
        loop.call_soon_threadsafe(stop.set)
        server.join(SECONDS)
    assert document["events"] == workload.total_events
    return calls


@pytest.mark.parametrize("name", ["context-switch", "io"])
def test_calls_grow_with_blocks_and_not_with_events(name: str, tmp_path: Path) -> None:
    """Eight times the events in as many blocks make no more calls; eight times the blocks make many more."""

    def calls(events: int, block_events: int) -> int:
        """Return the fewer calls of two runs: one may do what is done once a process."""
        folders = [tmp_path / f"{events}-{block_events}-{run}" for run in range(2)]
        for folder in folders:
            folder.mkdir()
        workload = find_workload(name)
        return min(_calls_of_a_run(folder, workload.make({}, 0, events), block_events) for folder in folders)

    # Blocks so large that every one runs by machine; what it learns is the same, however many there are.
    small = calls(32 * 4_096, 4_096)
    larger = calls(32 * 32_768, 32_768)
    more = calls(256 * 4_096, 4_096)
    assert larger < 1.5 * small
    assert more > 3 * small
    assert more < 256 * 4_096
