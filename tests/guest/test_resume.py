"""``--resume``: a guest that was killed is started anew, and the run ends as if nothing had been."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from guest_svc import window
from guest_svc.cli import main
from guest_svc.hypervisor import Hypervisor
from guest_svc.options import HYPERVISOR_VARIABLE
from guest_svc.stream import EventStream
from tests.hypervisor.test_hypervisor_cli import serving
from tests.traces.made import grown

# Ends itself by a signal once so many events are applied, and at least so many committed.
GUEST = """
import os, sys
from guest_svc import cli
from guest_svc.stream import EventStream

number, applied, committed = map(int, sys.argv[1:4])
send_block = EventStream._send_block

def send_and_end(stream, events):
    send_block(stream, events)
    if stream.applied_events >= applied:
        stream._take_until(lambda: stream.committed_events >= committed)
        os.kill(os.getpid(), number)

EventStream._send_block = send_and_end
sys.exit(cli.main(sys.argv[4:]))
"""
# Commits a session once by itself, after some events, and then only when a stream ends.
SERVER = (
    *(sys.executable, "-c"),
    """
from hypervisor_svc import cli
from hypervisor_svc.commits import Commits

def seconds_until_due(commits, held):
    is_due = held.session.applied_events > 500 and not held.session.committed_events
    return 0.0 if is_due else 3600.0

Commits._seconds_until_due = seconds_until_due
raise SystemExit(cli.main())
""",
)
TWO_VCPUS = ("compare", "context-switch", "-p", "switches=400", "-p", "vcpus=2")
IO = ("compare", "io", "--events", "5000")
SOURCES = [TWO_VCPUS, IO, ("replay", "capture:idle-shell", "--events", "5000", "--policy", "kvm-6.14")]


class Lab:
    """A hypervisor that can be killed and comes back, and guests that end early."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start the hypervisor with a state directory."""
        self._folder, self._stack = folder, stack
        self.address = f"unix:{folder}/h"
        self._session_file = folder / "session"
        self._server = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        options = ("--state-dir", str(self._folder / "state"), "--max-block-events", "70")
        server, _ = self._stack.enter_context(serving(self.address, *options, program=SERVER))
        return server

    def crash(self) -> None:
        """Kill the hypervisor and start another on what it has stored."""
        self._server.kill()
        self._server.wait()
        self._server = self._start()

    def left(self, *run: str, number: int = signal.SIGKILL, applied: int = 1000, committed: int = 0) -> str:
        """Run a guest that ends in mid-stream, or is stopped there, and return its session."""
        options = ("--hypervisor", self.address, "--session-file", str(self._session_file))
        place = [str(int(each)) for each in (number, applied, committed)]
        guest = subprocess.Popen([sys.executable, "-c", GUEST, *place, *run, *options])
        self._stack.callback(guest.wait)
        self._stack.callback(guest.kill)
        if number == signal.SIGKILL:
            assert guest.wait() == -number
        else:
            assert os.WIFSTOPPED(os.waitpid(guest.pid, os.WUNTRACED)[1])
        return self._session_file.read_text().strip()

    def status(self, session_id: str) -> Any:
        """Return where a session stands."""
        with Hypervisor(self.address) as hypervisor:
            return hypervisor.session(session_id).status


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Run a hypervisor for all tests of this file."""
    with ExitStack() as stack:
        yield Lab(tmp_path_factory.mktemp("resume"), stack)


Guest = Callable[..., tuple[int, str, str]]


@pytest.fixture
def guest(lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Guest:
    """Return a function that runs a command to its end and returns its exit code, output and errors."""
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--hypervisor", lab.address, "--output", "json"])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def found(output: str) -> dict[str, Any]:
    """Return what a run found, without what may depend on how its stream was cut."""
    document: dict[str, Any] = json.loads(output)
    return {name: value for name, value in document.items() if name not in {"reconnects", "lane_runs"}}


def whole(guest: Guest, run: tuple[str, ...]) -> dict[str, Any]:
    """Return what a run finds that nothing interrupts."""
    code, out, err = guest(*run)
    assert (code, err) == (0, "")
    return found(out)


@pytest.mark.parametrize("run", SOURCES, ids=["two vCPUs", "seeded", "recorded"])
@pytest.mark.parametrize("crashes", [False, True], ids=["the guest", "the guest and the hypervisor"])
def test_a_killed_guest_goes_on(lab: Lab, guest: Guest, run: tuple[str, ...], *, crashes: bool) -> None:
    """What its second life prints is what an uninterrupted one does, also of a hypervisor that was killed."""
    session = lab.left(*run, committed=1)
    if crashes:
        lab.crash()
    assert guest(*run, "--events", "500", f"--resume={session}")[0] == 2  # which changes nothing
    code, out, err = guest(*run, f"--resume={session}")
    assert (code, err) == (0, "")
    assert found(out) == whole(guest, run)
    assert json.loads(out)["reconnects"] == 0


REPLAYED = 32_000  # events of the trace before its late vCPU
LATE_LINE = re.compile(
    r"^guest-svc: trace: line \d+: a vCPU or CPU .*; begun again with all in a new session;.*\n$"
)


@pytest.mark.parametrize(
    ("late", "applied", "is_told"),
    [(0, 1000, False), (20, 1000, True), (20, REPLAYED - 500, False)],
    ids=["none comes late", "one comes late", "one has come late"],
)
def test_a_killed_replay_goes_on_whenever_its_vcpus_came(
    lab: Lab, guest: Guest, tmp_path: Path, late: int, applied: int, *, is_told: bool
) -> None:
    """The first stretch's session, or that of all vCPUs, goes on; the first begins again where it had to."""
    run = ("replay", str(grown(tmp_path / "trace", late)), "--policy", "ignore")
    session = lab.left(*run, applied=applied)
    assert lab.status(session).applied_events >= applied
    code, out, err = guest(*run, f"--resume={session}")
    assert (code, json.loads(out)["events"]) == (0, REPLAYED + late)
    assert bool(LATE_LINE.match(err)) == is_told
    assert is_told or not err


def test_a_crash_while_the_resumed_guest_catches_up(
    lab: Lab, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hypervisor goes back to where the first guest had cut its blocks, and the second one had not."""
    session = lab.left(*TWO_VCPUS, number=signal.SIGSTOP, applied=2000, committed=1)
    places: list[tuple[int, int]] = []
    not_there = EventStream._not_there

    def crash_first(stream: EventStream, events: Any) -> Any:
        if not places:
            places.append((stream.committed_events, stream.applied_events))
            lab.crash()
        return not_there(stream, events)

    monkeypatch.setattr(EventStream, "_not_there", crash_first)
    monkeypatch.setattr(window, "largest_block", lambda *_: 47)
    code, out, err = guest(*TWO_VCPUS, f"--resume={session}")
    ((committed, applied),) = places
    assert committed < applied
    assert committed % 47
    assert (code, found(out)) == (0, whole(guest, TWO_VCPUS))
    assert (json.loads(out)["reconnects"], err.count("; trying to go on\n"), err.count("\n")) == (1, 1, 1)


@pytest.fixture(scope="module")
def sessions(lab: Lab) -> dict[str, str]:
    """Return sessions that nobody can resume by what the tests below try, by their workload."""
    return {run[1]: lab.left(*run) for run in (TWO_VCPUS, IO)}


@pytest.mark.parametrize(
    ("workload", "run", "said"),
    [
        ("io", ("idle", "--events", "5000"), "this source is not the session's: its first "),
        ("io", (*IO[1:], "--seed", "1"), "this source is not the session's: its first "),
        ("io", (*IO[1:], "-p", "clock_hertz=2000000000"), "this source is not the session's: its first "),
        ("io", ("io", "--events", "500"), "this source is not the session's: it ends after 500 events, and"),
        ("io", TWO_VCPUS[1:], "was created for another run; columns, vcpus"),
        ("io", (*IO[1:], "--policy", "kvm-6.14"), "was created for another run; lanes differ"),
        ("io", (*IO[1:], "--policy", "all"), "was created for another run; lanes differ"),
        ("io", (*IO[1:], "--vendor", "svm"), "was created for another run; lanes, leading_vendor differ"),
        ("context-switch", (*TWO_VCPUS[1:4], "-p", "vcpus=3"), "was created for another run; vcpus"),
        (
            "context-switch",
            (*TWO_VCPUS[1:], "-p", "physical_cpus=1"),
            "another run; initial_physical_cpus, physical_cpus differ",
        ),
        ("context-switch", TWO_VCPUS[1:4], "was created for another run; columns, vcpus, initial"),
    ],
)
def test_another_run_is_not_resumed(
    lab: Lab, guest: Guest, sessions: dict[str, str], workload: str, run: tuple[str, ...], said: str
) -> None:
    """What is not proved to be the same is refused in one line, and the session is as it was."""
    session = sessions[workload]
    before = lab.status(session)
    code, out, err = guest("compare", *run, f"--resume={session}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    after = lab.status(session)
    assert (after.applied_events, after.column_crcs) == (before.applied_events, before.column_crcs)


@pytest.mark.parametrize("session", ["nobody's", "x" * 5000, "\udcff"])
def test_an_unknown_session_is_not_resumed(guest: Guest, session: str) -> None:
    """A session that never was, or is gone, is told in one line."""
    code, out, err = guest(*IO, f"--resume={session}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no such session" in err


def test_a_finished_session_has_its_report(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    """Its own source gets the stored report, as often as it asks; another source does not."""
    file = tmp_path / "session"
    code, out, _ = guest(*IO, "--session-file", str(file))
    assert code == 0
    session = file.read_text().strip()
    for _ in range(2):
        assert guest(*IO, f"--resume={session}") == (0, out, "")
        lab.crash()
    for run in (
        (*IO, "--seed", "1"),
        ("compare", "io", "--events", "4999"),
        ("compare", "io", "--events", "5001"),
    ):
        code, told, err = guest(*run, f"--resume={session}")
        assert (code, told, err.count("\n")) == (2, "", 1)
        assert "which has finished: its 5,000 events are not the " in err
