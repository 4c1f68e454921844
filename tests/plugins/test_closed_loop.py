"""Guests that act on what they saw, at a real hypervisor: alike for every policy and every cut."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from exitlab.command_line import BAD_INPUT
from exitlab.events import EventKind
from exitlab.plugins import Plugin
from exitlab.stories import Story
from exitlab.v1 import outcome_pb2, policy_pb2
from guest_svc.api import (
    DR6_RESET,
    ON_WRITE,
    Breakpoint,
    Event,
    Generated,
    Mark,
    Workload,
    dr7_of,
    event_rows,
    events,
    joined,
)
from guest_svc.authored import authored_source
from guest_svc.check.stand import Stand
from guest_svc.check.tapped import Tapped
from guest_svc.cli import main
from guest_svc.errors import BadInput
from guest_svc.outcomes import Outcomes
from guest_svc.sessions import QUIET, Talk, session_config, stream_workload
from guest_svc.workloads.base import Workload as Source
from tests.plugins.conftest import Write

WATCHED = Breakpoint(0x1000, ON_WRITE, 8)
DR7 = dr7_of({0: WATCHED})


class Asking(Workload):
    """Sets a watchpoint, hits it or not by the seed, and looks; a number of events by what it saw."""

    api_version = 1
    name = "asking"
    summary = "of a test"
    reads_outcomes = True
    seen: ClassVar[list[Outcomes]] = []

    def generate(self) -> Generated:
        """Write near the watchpoint, and read DR6 as often as it hit."""
        setting = [Event(EventKind.MOV_TO_DR, 0, value=0x1000), Event(EventKind.MOV_TO_DR, 7, value=DR7)]
        self.seen.append((yield event_rows(setting)))
        for _ in range(30):
            addresses = 0x1000 + 8 * self.random.integers(0, 3, 20)
            outcomes = yield events(kinds=EventKind.WRITE, args=8, values=addresses)
            self.seen.append(outcomes)
            assert (outcomes.is_exception == (addresses == 0x1000)).all()
            hits = int(np.count_nonzero(outcomes.is_exception))
            self.seen.append((yield events(kinds=[EventKind.MOV_FROM_DR] * hits, args=6)))


def asking() -> Source:
    """Return the guest, which has seen nothing yet."""
    Asking.seen.clear()
    return authored_source(Plugin(Asking, "this file", Path(__file__))).make({}, seed=3)


def lanes(*policies: str) -> list[policy_pb2.Lane]:
    """Return lanes of policies on VMX."""
    return [policy_pb2.Lane(policy_name=policy, vendor=policy_pb2.VENDOR_VMX) for policy in policies]


def seen() -> bytes:
    """Return all that the guest saw."""
    whole = Outcomes.joined(Asking.seen)
    return whole.stories.tobytes() + whole.values.tobytes() + whole.undefined_dr6.tobytes()


def test_outcomes_say_what_the_guest_saw(stand: Stand) -> None:
    """A hit is a trap with DR6 and DR7 as the handler reads them; a MOV from DR6 reads the same."""
    stream_workload(stand.hypervisor, asking(), lanes("kvm-6.14"), QUIET)
    whole = Outcomes.joined(Asking.seen)
    stories = {Story(number) for number in whole.stories}
    assert stories == {Story.NOTHING, Story.DB_TRAP, Story.READ}
    assert {int(number) for number in whole.dr6[whole.is_exception]} == {DR6_RESET | 1}
    assert {int(number) for number in whole.dr7[whole.is_exception]} == {DR7 | 0x400}
    assert {int(number) for number in whole.values[whole.is_read]} == {DR6_RESET | 1}
    assert np.count_nonzero(whole.is_read) == np.count_nonzero(whole.is_exception) > 100


def test_a_wrong_policy_changes_nothing_of_what_the_guest_does(stand: Stand) -> None:
    """The reference answers, whichever lanes there are, and however many."""
    found = []
    for chosen in (("kvm-6.14",), ("ignore",), ("ignore", "kvm-3.14", "swap-each-entry")):
        tapped = Tapped(asking())
        stream_workload(stand.hypervisor, tapped, lanes(*chosen), QUIET)
        found.append((tapped.taken.values.tobytes() if tapped.taken.values is not None else b"", seen()))
    assert found[0] == found[1] == found[2]


class Recorded(Workload):
    """What another guest has yielded, without asking."""

    api_version = 1
    name = "asking"
    summary = "of a test"
    events: ClassVar[list[object]] = []

    def generate(self) -> Generated:
        """Yield it all."""
        yield self.events[0]  # type: ignore[misc]  # a list of any, as mypy takes class variables


def test_the_same_events_without_asking_have_the_same_report(stand: Stand) -> None:
    """That a guest waits for its answers is no part of what it is billed."""
    tapped = Tapped(asking())
    policies = lanes("kvm-6.14", "xen")
    closed = stream_workload(stand.hypervisor, tapped, policies, QUIET).report
    Recorded.events[:] = [joined([tapped.taken])]
    replayed = authored_source(Plugin(Recorded, "this file", Path(__file__))).make({})
    assert stream_workload(stand.hypervisor, replayed, policies, QUIET).report == closed


@pytest.mark.parametrize("cut_at", [1, 2, 3, 22, 23, 100, 600])
def test_a_cut_loses_and_doubles_no_answer(cut_at: int, stand: Stand) -> None:
    """Wherever the stream is cut, the guest sees each outcome once, and does the same."""
    whole = stream_workload(stand.hypervisor, asking(), lanes("kvm-6.14"), QUIET)
    expected = seen()
    watched, told = stand.watch(cut_at=cut_at), list[str]()
    cut = stream_workload(stand.watched_hypervisor, asking(), lanes("kvm-6.14"), Talk(tell=told.append))
    assert (watched.cuts, cut.reconnects, watched.streams) == (1, 1, 2)
    assert seen() == expected
    assert cut.report == whole.report
    assert told[0].endswith("trying to go on")


def test_a_guest_that_asks_is_not_resumed(stand: Stand) -> None:
    """What it would have done next is not known: said before the session is looked for."""
    with pytest.raises(BadInput, match=r"^--resume: asking acts on what its events showed.*new session$"):
        stream_workload(stand.hypervisor, asking(), lanes("kvm-6.14"), QUIET, "any session")


def test_the_command_refuses_to_resume_it_too(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """At once, though nobody is there who could be asked."""
    text = write("reads_outcomes = True\ndef generate(self):\n    yield events(kinds=7)")
    assert main(["run", text, "--resume", "any", "--hypervisor", "unix:/nobody/is/here"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("guest-svc: --resume: mine acts on what its events showed")


def test_only_a_guest_that_asks_is_sent_outcomes() -> None:
    """An open loop pays for no answers."""
    levels = {True: outcome_pb2.OUTCOME_LEVEL_REFERENCE, False: outcome_pb2.OUTCOME_LEVEL_SUMMARY}
    for workload in (asking(), authored_source(Plugin(Recorded, "this file", Path(__file__))).make({})):
        assert session_config(workload, lanes("xen")).outcome_level == levels[workload.reads_outcomes]


def test_an_open_loop_is_answered_with_nothing(write: Write, stand: Stand) -> None:
    """One shape for both: yield gives None to whoever does not ask."""
    text = write(
        "def generate(self):\n"
        "    for _ in range(3):\n"
        "        answer = yield events(kinds=EventKind.CPUID)\n"
        "        assert answer is None, answer"
    )
    assert main(["run", text, "--hypervisor", stand.hypervisor.address]) == 0


REFUSED: list[tuple[str, str]] = [
    ("yield events(kinds=EventKind.MOV_TO_DR, args=[0] * 5 + [9])", "event 5: MOV_TO_DR of 9 does not exist"),
    ("yield events(kinds=EventKind.READ)", "event 0: "),
    ("yield events(kinds=7, marks=Mark.IF_OK | Mark.IF_FAULT)", "event 0: "),
    ("yield events(kinds=EventKind.EXCEPTION, selectors=1)", "event 0: "),
]


@pytest.mark.parametrize("asks", ["False", "True"])
@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_what_a_hypervisor_refuses_is_told_as_the_authors(
    line: str, said: str, asks: str, write: Write, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name, its file and the event, in one line; the session is left as by any guest that broke off."""
    assert Mark.IF_OK  # as the code below names it
    text = write(f"reads_outcomes = {asks}\ndef generate(self):\n    {line}")
    session_file = Path("session")
    options = ["--hypervisor", stand.hypervisor.address, "--session-file", str(session_file)]
    assert main(["run", text, *options]) == BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"guest-svc: workload mine (./mine.py): {said}")
    assert told.count("\n") == 1
    status = stand.hypervisor.session(session_file.read_text().strip()).status
    assert status.applied_events == 0


@pytest.mark.parametrize("asks", [False, True])
def test_an_author_who_breaks_off_leaves_a_session_that_waits(
    asks: bool, write: Write, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came before his error is applied; the session is suspended, neither finished nor failed."""
    text = write(
        f"reads_outcomes = {asks}\ndef generate(self):\n"
        "    yield events(kinds=[EventKind.CPUID] * 100_000)\n    yield 1 // 0"
    )
    options = ["--hypervisor", stand.hypervisor.address, "--session-file", "session"]
    assert main(["run", text, *options]) == BAD_INPUT
    assert "at event 100,000: ZeroDivisionError" in capsys.readouterr().err
    status = stand.hypervisor.session(Path("session").read_text().strip()).status
    assert 0 < status.applied_events <= 100_000
