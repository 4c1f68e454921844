"""One short session, spoiled in every way: report and outcomes are those of a session left alone."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import pytest

import guest_svc.retry
from exitlab.v1 import outcome_pb2, report_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.window import WINDOW_BLOCKS
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from tests.faults.cutting import FIRST, run_cut, run_spoiled, session_bytes
from tests.faults.guest import LOOPS, REFERENCE, SHORT, Loop, Ran, run_session
from tests.faults.mute import MuteChannel, muted
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import (
    STREAMS,
    Bandwidth,
    Latency,
    ResetPeer,
    Slicer,
    SlowClose,
    Stream,
    Timeout,
    Toxic,
)
from tests.hypervisor.test_server import RunningServer

PLACES: Final = 24  # where a session is cut in each direction; all places are for the torture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve on a unix socket."""
    folder = tmp_path_factory.mktemp("cuts")
    server = RunningServer(f"unix:{folder}/s", ServerLimits(max_sessions=10_000), Parts.installed())
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: RunningServer) -> dict[Loop, Ran]:
    """Return what comes of the sessions when nothing is between guest and hypervisor."""
    return {loop: run_session(server.address, loop) for loop in LOOPS}


@pytest.fixture
def listen(tmp_path: Path) -> Callable[[], str]:
    """Return a function that gives every proxy an address of its own."""
    numbers = count()
    return lambda: f"unix:{tmp_path}/{next(numbers)}"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have guests come again at once: what happens is looked at, not when."""
    monkeypatch.setattr(guest_svc.retry, "FIRST_WAIT_SECONDS", 0.001)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_session_is_worth_cutting(whole: dict[Loop, Ran], loop: Loop) -> None:
    """One lane tells another story than the others, each vCPU has a part in it, all events are answered."""
    report = report_pb2.Report.FromString(whole[loop].report)
    same, diverged = report_pb2.VERDICT_SAME, report_pb2.VERDICT_DIVERGED
    assert [each.verdict for each in report.lanes] == [same, same, diverged]
    assert all(vcpu.mov_dr_executed for each in report.lanes for vcpu in each.vcpus)
    parts = [outcome_pb2.OutcomePart.FromString(part) for part in whole[loop].told.parts]
    assert [part.lane for part in parts] == [0, 1, 2, REFERENCE] * len(SHORT)
    assert sum(part.event_count for part in parts if part.lane == REFERENCE) == report.events == sum(SHORT)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_cut_changes_nothing(
    server: RunningServer, whole: dict[Loop, Ran], listen: Callable[[], str], stream: Stream, loop: Loop
) -> None:
    """Wherever the connection is cut, the guest goes on by itself, unless its very first call was cut."""
    size = session_bytes(server.address, listen(), stream, loop)
    was_cut = went_on = 0
    for place in range(PLACES):
        spoiled = run_cut(server.address, listen(), stream, loop, size * place // PLACES)
        assert spoiled.ran == whole[loop]
        was_cut += spoiled.is_cut
        went_on += spoiled.is_cut and not spoiled.had_to_begin_again
    assert was_cut > PLACES * 3 // 4
    assert went_on > PLACES // 2


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "toxic",
    [Latency(latency=5, jitter=5), Bandwidth(rate=100), SlowClose(delay=20), Slicer(7, size_variation=6)],
    ids=lambda toxic: type(toxic).__name__,
)
def test_a_bad_line_changes_nothing(
    server: RunningServer,
    whole: dict[Loop, Ran],
    listen: Callable[[], str],
    stream: Stream,
    loop: Loop,
    toxic: Toxic,
) -> None:
    """A line that is slow, or that cuts the transport's bytes into pieces, is a line: nothing is cut."""
    spoiled = run_spoiled(server.address, listen(), toxic, stream, loop, only=None)
    assert spoiled.ran == whole[loop]
    assert not spoiled.is_cut


def test_a_hypervisor_far_away_is_reached(server: RunningServer, listen: Callable[[], str]) -> None:
    """A connection may take a while to be made: the first answer comes after 150 ms."""
    with FaultProxy(server.address, listen()) as proxy, Hypervisor(proxy.address) as hypervisor:
        proxy.add(Latency(latency=150), "downstream")
        assert hypervisor.price_lists()
        assert len(proxy.connections) == 1


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "toxic", [Timeout(timeout=20), ResetPeer(timeout=10)], ids=lambda toxic: type(toxic).__name__
)
def test_a_line_that_breaks_changes_nothing(
    server: RunningServer,
    whole: dict[Loop, Ran],
    listen: Callable[[], str],
    stream: Stream,
    loop: Loop,
    toxic: Toxic,
) -> None:
    """The first connection is ended, and what was on it is lost; the next one does it."""
    spoiled = run_spoiled(server.address, listen(), toxic, stream, loop, only=FIRST)
    assert spoiled.ran == whole[loop]
    assert spoiled.is_cut


@pytest.mark.parametrize("loop", LOOPS)
def test_a_proxy_that_is_down_for_a_while_changes_nothing(
    server: RunningServer, whole: dict[Loop, Ran], listen: Callable[[], str], loop: Loop
) -> None:
    """All connections are cut once a session is there, and nobody answers until the guest has tried."""
    with FaultProxy(server.address, listen()) as proxy:

        def down_and_up(_: str) -> None:
            assert proxy.down() == 1
            proxy.up()

        assert run_session(proxy.address, loop, on_session=down_and_up) == whole[loop]
        assert len(proxy.connections) == 2


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("swallowed", range(1, WINDOW_BLOCKS + 1))  # for the next, the guest would wait
def test_acknowledgements_that_never_arrive_are_not_needed(
    server: RunningServer, whole: dict[Loop, Ran], swallowed: int, loop: Loop
) -> None:
    """The guest sees no acknowledgement, and each stream is cut after some: Opened says where it stands."""
    mute: list[MuteChannel] = []

    def on_hypervisor(hypervisor: Hypervisor) -> None:
        # A closed loop waits for each block: its stream is cut at the first acknowledgement.
        mute.append(muted(hypervisor, swallowed if loop == "open" else 1, sum(SHORT)))

    assert run_session(server.address, loop, on_hypervisor=on_hypervisor) == whole[loop]
    assert mute[0].lost > 0
