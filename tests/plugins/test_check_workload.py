"""check-workload: every MUST is kept by ours, and each can be seen to fail."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import guest_svc
from exitlab.command_line import BAD_INPUT, CHECK_FAILED
from guest_svc.check import subject
from guest_svc.check.musts import Broken, Finding, Result, formatted, run_musts
from guest_svc.check.stand import Stand
from guest_svc.check.subject import Subject
from guest_svc.check.workload import MUSTS
from guest_svc.cli import main
from guest_svc.sources import load_source
from tests.plugins.conftest import Write

SCHEMA = json.loads(Path(guest_svc.__file__).with_name("schema").joinpath("check.json").read_text("utf-8"))
NAMES = [must.name for must in MUSTS]
ONE_EVENT = "def generate(self):\n    yield events(kinds=EventKind.CPUID)"
ASKING = """
reads_outcomes = True

def generate(self):
    yield events(kinds=EventKind.MOV_TO_DR, args=[0, 7], values=[0x1000, 0xD0401])
    while True:
        outcomes = yield events(kinds=EventKind.WRITE, args=4, values=0x1000 + 4 * self.random.integers(0, 2))
        if outcomes.is_exception[0]:
            yield events(kinds=[EventKind.MOV_FROM_DR, EventKind.MOV_TO_DR], args=6, values=DR6_RESET)
"""


def check(stand: Stand, text: str, events: int = 300, **more: Any) -> dict[str, Finding]:
    """Try a workload and return what was found, by MUST."""
    subject = Subject(text, load_source(text), stand, events_asked=events, **more)
    return {finding.name: finding for finding in run_musts(MUSTS, subject)}


def results(found: dict[str, Finding]) -> dict[str, Result]:
    """Return what came of each MUST that has not passed."""
    return {name: finding.result for name, finding in found.items() if finding.result is not Result.PASS}


@pytest.mark.parametrize("name", ["context-switch", "debugger", "idle", "io", "capture:idle-shell"])
def test_ours_keep_every_must(name: str, stand: Stand) -> None:
    """Generated or recorded, they promise the same."""
    assert results(check(stand, name, 3_000)) == {"seed": Result.TOLD}


@pytest.mark.parametrize(
    ("body", "none"), [(ONE_EVENT, {"bounds"}), (ASKING, {"bounds", "resume"})], ids=["smallest", "asking"]
)
def test_an_authors_keep_them_too(body: str, none: set[str], write: Write, stand: Stand) -> None:
    """One event is a workload; one that asks is one, and cannot be resumed."""
    found = results(check(stand, write(body), 100))
    assert found == {"seed": Result.TOLD, **dict.fromkeys(none, Result.NONE)}


# The MUST that is broken, the workload that breaks it, what is said, and the event.
BREAKING: list[tuple[str, str, str, int | None]] = [
    ("declarations", "api_version = 2\n" + ONE_EVENT, "it is written for api_version 2", None),
    ("facts", "vcpus = 0\n" + ONE_EVENT, "vcpus: 0, expected", None),
    (
        "blocks",
        "def generate(self):\n    yield events(kinds=[7] * 5)\n    yield 5",
        "at event 5 it yields int",
        5,
    ),
    (
        "same-seed",
        "count = []\ndef generate(self):\n    self.count.append(1)\n"
        "    yield events(kinds=[7, 7], selectors=[0, len(self.count)])",
        "a second run: event 1 has selectors 2, before it was 1",
        1,
    ),
    (
        "other-process",
        "def generate(self):\n    yield events(kinds=7, values=hash('a text') & 0xFFFF_FFFF)",
        "another process: event 0 has values",
        0,
    ),
    (
        "prefixes",
        "def generate(self):\n    yield events(kinds=7, selectors=[self.events_asked, 5])",
        "with --events 1: event 0",
        0,
    ),
    (
        "stops",
        "def generate(self):\n    try:\n        for _ in range(30):\n"
        "            yield events(kinds=[7] * 1_000)\n"
        "    except GeneratorExit:\n        raise RuntimeError('not yet') from None",
        "when it was to end: RuntimeError: not yet",
        None,
    ),
    (
        "session",
        "def generate(self):\n    yield events(kinds=EventKind.MOV_TO_DR, args=[0, 1, 9])",
        "event 2: MOV_TO_DR of 9",
        2,
    ),
    (
        "bounds",
        "parameters = (Parameter('a', 1, '', '', 0, 2),)\n"
        "def generate(self):\n    yield events(kinds=7, selectors=5 // self['a'])",
        "ZeroDivisionError",
        0,
    ),
]
# What the others of a broken one's own kind say: it does not fail alone.
WITH = {"prefixes": {"stops"}, "stops": {"prefixes", "resume"}, "same-seed": set(NAMES[4:12])}


@pytest.mark.parametrize(("name", "body", "said", "event"), BREAKING, ids=[row[0] for row in BREAKING])
def test_a_must_that_is_broken_fails(
    name: str, body: str, said: str, event: int | None, write: Write, stand: Stand
) -> None:
    """With its reason and the event; what builds on it is not run."""
    found = check(stand, write(body), 50_000 if name == "stops" else 300)
    assert found[name].result is Result.FAIL, found
    assert said in found[name].note
    if event is not None:
        assert found[name].event == event
    failed = {each for each, result in results(found).items() if result is Result.FAIL}
    assert failed <= {name} | WITH.get(name, set())
    building = {must.name for must in MUSTS if name in must.needs}
    assert all(found[each].result is Result.NOT_RUN for each in building)


def test_every_must_has_its_sentence_and_its_place() -> None:
    """A name and a sentence each, and what one builds on comes before it."""
    assert len(set(NAMES)) == len({must.sentence for must in MUSTS}) == len(MUSTS) == 14
    for place, must in enumerate(MUSTS):
        assert set(must.needs) <= set(NAMES[:place])


def test_the_command_prints_all_musts(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 if all is kept; the document has each MUST with what was seen."""
    assert main(["check-workload", write(ONE_EVENT), "--output", "json", "--seed", "7"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    jsonschema.validate(document, SCHEMA)
    assert (document["schema"], document["subject"], told.err) == ("exitlab.check/1", "./mine.py:Mine", "")
    assert (document["kind"], document["seed"], document["failed"]) == ("workload", 7, 0)
    assert [must["name"] for must in document["musts"]] == NAMES
    assert {must["result"] for must in document["musts"]} <= set(Result)
    assert SCHEMA["properties"]["musts"]["items"]["properties"]["result"]["enum"] == list(Result)
    assert formatted(document, "text").endswith("\n12 pass, 1 n/a, 1 told\n")


def test_the_command_fails_if_a_must_is_not_kept(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the reason below the MUST, for people."""
    broken = write("def generate(self):\n    yield events(kinds=EventKind.READ)")
    assert main(["check-workload", broken]) == CHECK_FAILED
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[place].startswith("FAIL     session ")
    assert lines[place + 1].strip().startswith("-> workload mine (./mine.py): event 0: ")
    assert lines[-1] == "8 pass, 1 fail, 3 not run, 1 n/a, 1 told"


NOTHING_TO_CHECK = [
    ([], "say which workload, or with --address which service"),
    (["./no.py:Mine"], "no.py: no such file"),
    (["nobody"], "no workload 'nobody'; "),
    (["idle", "--seed", "-1"], "idle: seed -1: expected 0 to"),
    (["idle", "--events", "0"], "idle: events 0: expected at least 1"),
    (["idle", "-p", "ticks"], "-p ticks: expected key=value"),
    (["--address", "nowhere"], "--address nowhere: expected host:port or unix:PATH"),
    (["--address", "unix:/nobody/is/here"], "no guest service answers at unix:/nobody/is/here: "),
    (["--tls", "idle"], "--tls: needs"),
]


@pytest.mark.parametrize(("arguments", "said"), NOTHING_TO_CHECK)
def test_where_there_is_nothing_to_check_it_says_so(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 2, one line, and nothing on standard output."""
    assert main(["check-workload", *arguments]) == BAD_INPUT
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert said in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_another_process_has_its_time(
    write: Write, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs there alone, as by the order of its sets, breaks the MUST and stops no check."""
    monkeypatch.setattr(subject, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(subject, "SLOWER", 0.0)
    text = write(f"""
def generate(self):
    import os, time
    time.sleep(600 * (os.getpid() != {os.getpid()}))
    yield events(kinds=EventKind.CPUID)
""")
    looked_at = Subject(text, load_source(text), stand, events_asked=1)
    assert len(looked_at.recorded()) == 1
    with pytest.raises(Broken, match=r"^in another process it has not ended after 0 seconds$"):
        looked_at.elsewhere()
