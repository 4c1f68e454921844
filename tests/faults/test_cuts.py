"""One short session, cut at places all over its bytes: its report is the same, or there is none."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import CouldNotFinish, NotConnected
from guest_svc.hypervisor import Hypervisor
from guest_svc.run import lane
from guest_svc.stream import EventStream
from guest_svc.workloads import find_workload
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import STREAMS, LimitData, Slicer, Stream
from tests.hypervisor.test_server import RunningServer

VMX: Final = policy_pb2.VENDOR_VMX
POLICIES: Final = ("kvm-6.14", "swap-each-entry", "hyperplatform")  # the last one diverges
VCPUS: Final = 2
BLOCKS: Final = (1, 7, 2, 30, 5)  # events in each
PLACES: Final = 24  # where a session is cut in each direction


@dataclass(frozen=True)
class Ran:
    """What came of a session."""

    report: bytes
    outcomes: tuple[bytes, ...]


def run_session(address: str) -> Ran:
    """Run the session at an address, all blocks and outcomes, and finish it."""
    workload = find_workload("context-switch").make({"vcpus": str(VCPUS)}, 0, sum(BLOCKS))
    events = next(iter(workload.blocks()))
    outcomes: list[bytes] = []
    config = hypervisor_pb2.SessionConfig(
        lanes=[lane(policy, VMX) for policy in POLICIES],
        columns=[int(column) for column in workload.columns],  # type: ignore[misc]  # stubs want their own enum
        vcpus=VCPUS,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=VMX,
        outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL,
    )
    with Hypervisor(address) as hypervisor:
        session = hypervisor.create_session(config)
        with EventStream(
            hypervisor, session, workload.columns, lambda part: outcomes.append(part.SerializeToString())
        ) as stream:
            for block in cut(events):
                stream.send(block)
            stream.wait_until_applied()
        report = hypervisor.finish_session(session.session_id, stream.next_event, stream.crcs)
    return Ran(report.SerializeToString(deterministic=True), tuple(outcomes))


def cut(events: EventColumns) -> Iterator[EventColumns]:
    """Cut the events into unequal blocks."""
    start = 0
    for size in BLOCKS:
        yield events.rows(start, start + size)
        start += size


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve on a unix socket."""
    folder = tmp_path_factory.mktemp("cuts")
    server = RunningServer(f"unix:{folder}/s", ServerLimits(max_sessions=10_000), Parts.installed())
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: RunningServer) -> Ran:
    """Return what comes of the session when nothing is between guest and hypervisor."""
    return run_session(server.address)


@pytest.fixture
def listen(tmp_path: Path) -> Callable[[], str]:
    """Return a function that gives every proxy an address of its own.

    Clients of one process share what they know of an address, as that nobody answered there just now.
    """
    numbers = count()
    return lambda: f"unix:{tmp_path}/{next(numbers)}"


def run_cut(server: RunningServer, listen: str, stream: Stream, limit: int) -> tuple[Ran | None, bool]:
    """Run the session, its first connection cut after so many bytes of a direction.

    Returns what came of it, None if the guest said that it could not be finished; and whether it was cut:
    what a session takes varies by some frames of the transport's own.
    """
    with FaultProxy(server.address, listen) as proxy:
        fault = proxy.add(LimitData(bytes=limit), stream, only=[0])
        try:
            ran = run_session(proxy.address)
        except (CouldNotFinish, NotConnected):
            ran = None
    return ran, fault.cuts == [0]


def session_bytes(server: RunningServer, listen: str, stream: Stream) -> int:
    """Return how many bytes of a direction a session takes, and so at how many places it can be cut."""
    with FaultProxy(server.address, listen) as proxy:
        run_session(proxy.address)
        assert len(proxy.connections) == 1
        return proxy.passed(stream)


def test_the_session_is_worth_cutting(whole: Ran) -> None:
    """One lane tells another story than the others, each vCPU has a part in it, all events are answered."""
    report = report_pb2.Report.FromString(whole.report)
    same, diverged = report_pb2.VERDICT_SAME, report_pb2.VERDICT_DIVERGED
    assert [each.verdict for each in report.lanes] == [same, same, diverged]
    assert all(vcpu.mov_dr_executed for each in report.lanes for vcpu in each.vcpus)
    parts = [outcome_pb2.OutcomePart.FromString(part) for part in whole.outcomes]
    assert {part.lane for part in parts} == {0, 1, 2, 3}  # the last is the reference's
    assert parts[-1].first_event + parts[-1].event_count == report.events == sum(BLOCKS)


@pytest.mark.parametrize("stream", STREAMS)
def test_slices_change_nothing(
    server: RunningServer, whole: Ran, listen: Callable[[], str], stream: Stream
) -> None:
    """However the transport's bytes are cut into pieces, report and outcomes are the same."""
    with FaultProxy(server.address, listen()) as proxy:
        slicer = proxy.add(Slicer(average_size=7, size_variation=6), stream)
        assert run_session(proxy.address) == whole
        assert slicer.chunks > 0


@pytest.mark.parametrize("stream", STREAMS)
def test_a_cut_session_is_whole_or_not_finished(
    server: RunningServer, whole: Ran, listen: Callable[[], str], stream: Stream
) -> None:
    """Wherever the connection is cut, the report and the outcomes are the same, or the guest says no."""
    size = session_bytes(server, listen(), stream)
    was_cut = 0
    for place in range(PLACES):
        ran, is_cut = run_cut(server, listen(), stream, size * place // PLACES)
        assert ran in (None, whole)
        assert is_cut or ran == whole
        was_cut += is_cut
    assert was_cut > PLACES // 2
