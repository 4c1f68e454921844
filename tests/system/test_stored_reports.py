"""Reports that outlive their server: listed from its folder, and set beside a later run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.programs import guest, hypervisor, serving

RUN = ("compare", "context-switch", "--events", "3000", "--policy", "kvm-3.14", "--policy", "kvm-6.14")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """Return a folder with a report, the session's id, and the address of a later server that has it."""
    folder = tmp_path_factory.mktemp("stored")
    address = f"unix:{folder}/h"
    with serving(folder, address):
        guest(*RUN, "--hypervisor", address, "--session-file", str(folder / "id"))
    with serving(folder, address):
        yield folder, (folder / "id").read_text().strip(), address


def test_reports_are_listed(stored: tuple[Path, str, str]) -> None:
    """A report is listed with its session, source, events and lanes, while a server has the folder."""
    folder, session_id, _ = stored
    text = hypervisor("reports", "--state-dir", str(folder / "state")).stdout
    assert re.search(rf"1 +\S+ +context-switch +3,000 +2 +{re.escape(session_id)}$", text, re.MULTILINE)
    (listed,) = json.loads(
        hypervisor("reports", "--state-dir", str(folder / "state"), "--output", "json").stdout
    )["reports"]
    told = {key: listed[key] for key in ("number", "session_id", "label", "events", "lanes")}
    assert told == {
        "number": 1,
        "session_id": session_id,
        "label": "context-switch",
        "events": 3000,
        "lanes": 2,
    }


def test_no_state_directory_is_told(tmp_path: Path) -> None:
    """A folder without reports of ours is named in one line."""
    ran = hypervisor("reports", "--state-dir", str(tmp_path), code=2)
    assert ran.stderr.startswith(f"hypervisor-svc: --state-dir {tmp_path}: ")
    assert ran.stderr.count("\n") == 1


def test_a_later_run_is_set_beside(stored: tuple[Path, str, str]) -> None:
    """The same events give the same figures; policies of one run only are named as such."""
    _, session_id, address = stored
    options = ("--hypervisor", address, "--with", session_id, "--policy", "ignore")
    document = json.loads(guest(*RUN[:-2], *options, "--output", "json").stdout)
    earlier = document["earlier"]
    assert (earlier["label"], earlier["events"], earlier["same_events"]) == ("context-switch", 3000, True)
    now = {lane["policy"]: lane for lane in document["lanes"]}
    then = {lane["policy"]: lane for lane in earlier["lanes"]}
    assert sorted(then) == ["kvm-3.14", "kvm-6.14"]
    unlike = {key for key, value in now["kvm-3.14"].items() if then["kvm-3.14"][key] != value}
    assert unlike <= {"throughput_loss_against_ignore"}  # there was no ignore then
    text = guest(*RUN[:-2], *options).stdout
    assert "Beside an earlier report on context-switch, of 3,000 events, the same ones:" in text
    assert re.search(r"^kvm-3.14 +same +same ", text, re.MULTILINE)
    assert "Only now: ignore\n" in text
    assert "Only then: kvm-6.14 " in text
    rows = guest(*RUN[:-2], *options, "--output", "csv").stdout
    assert ",kvm-6.14,vmx,seed-2014,earlier.exits.DR_ACCESS," in rows


def test_other_events_are_said_to_be_others(stored: tuple[Path, str, str]) -> None:
    """A run of another seed can be set beside too, but is not called the same."""
    _, session_id, address = stored
    ran = guest(*RUN, "--seed", "1", "--hypervisor", address, "--with", session_id, "--output", "json")
    assert json.loads(ran.stdout)["earlier"]["same_events"] is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--with", "nobody"), "no such session"),
        (("--with", "x", "--hypervisor", ""), "--with: say with --hypervisor where the session is"),
    ],
)
def test_no_report_to_set_beside(stored: tuple[Path, str, str], options: tuple[str, ...], said: str) -> None:
    """What is not there ends the run before any event, in one line."""
    ran = guest(*RUN, "--hypervisor", stored[2], *options, code=2)
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
