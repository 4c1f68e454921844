"""What the guest's commands say of sessions and cuts: the session's file, its hints, reconnects."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from guest_svc import attempts, embedded, progress, retry
from guest_svc import hypervisor as hypervisor_module
from guest_svc.cli import main
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor
from guest_svc.options import HYPERVISOR_VARIABLE
from guest_svc.stream import EventStream
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import LimitData
from tests.guest.scripted import Clock

RUN = ("run", "idle", "-p", "ticks=100")
LONG_RUN = ("compare", "context-switch", "-p", "switches=20000")
Guest = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a hypervisor of our own."""
    with EmbeddedHypervisor() as hypervisor:
        yield hypervisor.address


@pytest.fixture
def guest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Guest:
    """Return a function that runs a command and returns its exit code, output and errors."""
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_file_is_for_its_owner(address: str, guest: Guest, tmp_path: Path, umask: int) -> None:
    """Whoever knows the id can use the session, so nobody else may read it; it is the session's."""
    file = tmp_path / "session"
    before = os.umask(umask)
    try:
        assert guest(*RUN, "--hypervisor", address, "--session-file", str(file))[0] == 0
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    session, nothing = file.read_text().split("\n")
    assert nothing == ""
    with Hypervisor(address) as hypervisor:
        assert hypervisor.session(session).status.label == "idle"


def test_the_file_names_the_newest_session(address: str, guest: Guest, tmp_path: Path) -> None:
    """A file that is there is written anew, and is its owner's alone; a resumed session is named too."""
    file, other = tmp_path / "session", tmp_path / "other"
    file.write_text("something longer than any session's id\n" * 100)
    file.chmod(0o644)
    told = ("--hypervisor", address, "--session-file")
    sessions = []
    for _ in range(2):
        assert guest(*RUN, *told, str(file))[0] == 0
        sessions.append(file.read_text().strip())
        assert file.stat().st_mode & 0o777 == 0o600
    assert len({len(session) for session in sessions}) == 1
    assert sessions[0] != sessions[1]
    assert guest(*RUN, *told, str(other), f"--resume={sessions[0]}x")[0] == 2
    assert not other.exists()
    assert guest(*RUN, *told, str(other), f"--resume={sessions[0]}")[0] == 0
    assert other.read_text().strip() == sessions[0]


def test_what_is_no_file_is_written_as_it_is(address: str, guest: Guest) -> None:
    """A pipe takes an id too, and keeps its mode."""
    reading, writing = os.pipe()
    before = os.fstat(writing).st_mode
    assert guest(*RUN, "--hypervisor", address, "--session-file", f"/dev/fd/{writing}")[0] == 0
    assert os.fstat(writing).st_mode == before
    os.close(writing)
    with open(reading, encoding="ascii") as pipe, Hypervisor(address) as hypervisor:
        assert hypervisor.session(pipe.read().strip()).status.label == "idle"


@pytest.mark.parametrize("told_to", ["the file", "a terminal", "who resumes", "nobody"])
def test_giving_up_says_how_to_go_on(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_to: str
) -> None:
    """A hypervisor may come back later: who knows the session's id is told what to do then, in one line."""
    file, clock, send = tmp_path / "session", Clock(), EventStream.send
    retries = partial(retry.Retry, now=clock.now, sleep=clock.sleep)
    for module in (attempts, hypervisor_module):
        monkeypatch.setattr(module, "Retry", retries)
    with EmbeddedHypervisor() as hypervisor:
        known = ["--hypervisor", hypervisor.address, "--session-file", str(file)]

        def kill_and_send(stream: EventStream, events: Any) -> None:
            hypervisor._process.kill()
            hypervisor._process.wait()
            send(stream, events)

        assert guest(*RUN, *known)[0] == 0
        session = file.read_text().strip()
        if told_to == "who resumes":
            with Hypervisor(hypervisor.address) as client:
                config = client.session(session).config
                session = client.create_session(config).session_id
            known = [*known[:2], f"--resume={session}"]
        elif told_to != "the file":
            known = known[:2]
        monkeypatch.setattr(sys.stderr, "isatty", lambda: told_to == "a terminal")
        monkeypatch.setattr(EventStream, "send", kill_and_send)
        code, out, err = guest(*RUN, *known)
    said = err.splitlines()[-1]
    hints = {
        "the file": f"--resume with the id in {file}",
        "a terminal": f"--resume={err.partition('--resume=')[2][:48]}",
        "who resumes": "--resume",
    }
    hint = hints.get(told_to)
    way_on = "" if hint is None else f"; {hint} goes on if the hypervisor has the session still"
    assert (code, out) == (3, "")
    assert said.startswith("guest-svc: the stream broke at event 0: ")
    assert said.endswith(f"; gave up after 60 s{way_on}")
    assert len(said.replace(str(tmp_path), "")) <= 250


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing/session", "No such file or directory"),
        ("", "Is a directory"),
        ("file/session", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written(
    address: str, guest: Guest, tmp_path: Path, place: str, said: str
) -> None:
    """A run that could not be resumed as was asked for does not begin: one line, and 2."""
    (tmp_path / "file").write_text("")
    file = tmp_path / place
    answer = guest(*RUN, "--hypervisor", address, "--session-file", str(file))
    assert answer == (2, "", f"guest-svc: --session-file {file}: {said}\n")


@pytest.mark.parametrize("flag", ["--resume", "--session-file", "--with"])
def test_a_private_hypervisor_has_no_sessions_to_name(guest: Guest, address: str, flag: str) -> None:
    """Its sessions end with it; and a name that is empty is none."""
    code, out, err = guest(*RUN, flag, "some")
    assert (code, out, err) == (2, "", f"guest-svc: {flag}: say with --hypervisor where the session is\n")
    for more in ((), ("--hypervisor", address)):
        assert guest(*RUN, *more, flag, "") == (2, "", f"guest-svc: {flag}: expected a name\n")


def test_people_are_told_how_to_go_on(
    address: str, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a terminal, and where no file is asked for, a line names the session."""
    said = "guest-svc: should this guest end early, --resume="
    assert said not in guest(*RUN, "--hypervisor", address)[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = guest(*RUN, "--hypervisor", address)[2]
    session = told.partition(said)[2].split()[0]
    with Hypervisor(address) as hypervisor:
        assert hypervisor.session(session).status.label == "idle"
    assert said not in guest(*RUN, "--hypervisor", address, "--session-file", str(tmp_path / "session"))[2]
    assert said not in guest(*RUN)[2]  # a private hypervisor's session


@pytest.fixture
def proxy(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Return a proxy before the hypervisor whose first connection is cut while blocks are sent."""
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    with FaultProxy(address, f"unix:{tmp_path}/p") as proxy:
        proxy.add(LimitData(bytes=100_000), "upstream", only=[0])
        yield proxy


def found(output: str) -> dict[str, Any]:
    """Return what a run found, without what may depend on how its stream was cut."""
    document: dict[str, Any] = json.loads(output)
    return {name: value for name, value in document.items() if name not in {"reconnects", "lane_runs"}}


def test_reconnects_are_counted_and_told(address: str, proxy: FaultProxy, guest: Guest) -> None:
    """A run that was cut has the same figures; how often it was is told beside them."""
    code, out, err = guest(*LONG_RUN, "--hypervisor", proxy.address, "--output", "json")
    assert (code, json.loads(out)["reconnects"]) == (0, 1)
    assert err.startswith("guest-svc: the stream broke at event ")
    assert err.endswith("; trying to go on\n")
    assert err.count("\n") == 1
    _, uncut, _ = guest(*LONG_RUN, "--hypervisor", address, "--output", "json")
    assert json.loads(uncut)["reconnects"] == 0
    assert found(out) == found(uncut)


def test_people_see_that_it_was_cut(
    address: str, proxy: FaultProxy, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress bar says it while the run goes on, and the summary in the end."""
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = guest(*LONG_RUN, "--hypervisor", proxy.address)
    assert code == 0
    summary = "The stream was cut and went on once; no figure depends on that."
    assert summary in out
    assert summary not in guest(*LONG_RUN, "--hypervisor", address)[1]
    before, line, after = err.partition("; trying to go on\n")
    assert line
    assert ", cut" not in before
    assert "events, cut once" in after


def test_a_private_hypervisor_that_dies_is_told_at_once(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody starts it again, so nobody waits for it: one attempt, one line."""
    started: list[EmbeddedHypervisor] = []

    class Watched(EmbeddedHypervisor):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    send = EventStream.send

    def kill_and_send(stream: EventStream, events: Any) -> None:
        started[0]._process.send_signal(signal.SIGKILL)
        started[0]._process.wait()
        send(stream, events)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} seconds")

    monkeypatch.setattr(embedded, "EmbeddedHypervisor", Watched)
    monkeypatch.setattr(EventStream, "send", kill_and_send)
    for module in (attempts, hypervisor_module):
        monkeypatch.setattr(module, "Retry", partial(retry.Retry, sleep=sleep))
    code, out, err = guest(*RUN)
    assert (code, out) == (3, "")
    assert err.startswith("guest-svc: the stream broke at event 0: ")
    assert "trying to go on" not in err
    assert len(started) == 1
