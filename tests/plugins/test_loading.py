"""Plug-ins by file, by module and by entry point; and what is said of those that cannot be used."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exitlab.command_line import BAD_INPUT
from guest_svc.cli import main
from guest_svc.errors import BadInput
from guest_svc.plugins import installed, plugin_names
from guest_svc.sources import SourceChoice, find_named, find_source, list_workloads, open_source
from tests.plugins.conftest import HEAD, Write

ONE_EVENT = "def generate(self):\n    yield events(kinds=EventKind.CPUID)"


def package(name: str) -> str:
    """Return a module with a workload of a name."""
    lines = "".join(f"    {line}\n" for line in ONE_EVENT.splitlines())
    return HEAD.format(name="Theirs", name_in_lists=name) + lines


@pytest.mark.parametrize("source", ["./mine.py:Mine", "mine.py:Mine", "mine:Mine"])
def test_a_class_is_named_by_file_or_module(source: str, write: Write) -> None:
    """A file in the working directory goes by either, and by its whole path."""
    write(ONE_EVENT)
    for text in (source, f"{Path.cwd()}/mine.py:Mine"):
        found = find_source(text)
        assert (found.name, found.documentation, found.api_version) == ("mine", "Says hello.", 1)
        assert len(next(found.make({}).blocks())) == 1


def test_a_file_finds_what_lies_beside_it(write: Write, tmp_path: Path) -> None:
    """As a script's, its neighbours are imported from wherever the command runs; no compiled code is left."""
    folder = tmp_path / "far"
    folder.mkdir()
    (folder / "neighbour_of_mine.py").write_text("SELECTOR = 5\n")
    write(
        "def generate(self):\n    import neighbour_of_mine\n"
        "    yield events(kinds=7, selectors=neighbour_of_mine.SELECTOR)",
        file="far/mine.py",
    )
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(f"import neighbour_of_mine\n{text}")
    block = next(find_source("./far/mine.py:Mine").make({}).blocks())
    assert block.selectors is not None
    assert block.selectors.tolist() == [5]
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_file_hides_no_module(write: Write) -> None:
    """One that is called like a module of Python's is loaded beside it."""
    write(ONE_EVENT, file="json.py")
    assert find_source("./json.py:Mine").name == "mine"
    assert sys.modules["json"] is json


BROKEN: list[tuple[str, str, str]] = [
    ("", "", r"mine\.py: say which class, after a colon: .*mine\.py:CLASS"),
    ("", ":", r"\./mine\.py: say which class, after a colon; its classes are Mine"),
    ("", ":Yours", r"\./mine\.py: no class Yours; its classes are Mine"),
    ("x = 5", ":x", r"\./mine\.py: x is of type int, expected a class"),
    (
        "class Other: pass",
        ":Other",
        r"\./mine\.py: Other is no workload: expected a subclass of guest_svc",
    ),
    ("def (", ":Mine", r"importing it: SyntaxError: .* \(mine\.py, line \d+\)"),
    ("import no_such_module_at_all", ":Mine", r"importing it: ModuleNotFoundError: .*\(mine\.py, line \d+\)"),
    (
        "class Rude(Exception):\n    def __str__(self): raise self\nraise Rude",
        ":Mine",
        "Rude: without a message",
    ),
    ("\x00", ":Mine", r"^\./mine\.py:Mine: importing it: SyntaxError: source code .* null bytes"),
    ("1 // 0", ":Mine", r"importing it: ZeroDivisionError: .* \(mine\.py, line \d+\)"),
    ("import sys\nsys.exit(0)", ":Mine", r"importing it: SystemExit: 0 \(mine\.py, line \d+\)"),
    ("import json\njson.loads('{')", ":Mine", r"importing it: JSONDecodeError: .* \(mine\.py, line \d+\)"),
    ("Mine.api_version = 2", ":Mine", "Mine: it is written for api_version 2: this is 1"),
    ("del Mine.api_version", ":Mine", "Mine: it says no api_version: expected api_version = 1"),
    (
        "Mine.name = 'No Name'",
        ":Mine",
        "Mine: name: 'No Name', expected at most 100 small letters and digits",
    ),
    ("Mine.summary = None", ":Mine", "Mine: summary: None, expected a text"),
    (
        "Mine.summary = 's' * 1001",
        ":Mine",
        "Mine: summary: a text of 1,001 characters, expected at most 1,000",
    ),
    ("Mine.summary = '\\x1b[31m'", ":Mine", r"Mine: summary: '\\x1b\[31m', expected at most 1,000 printable"),
    ("Mine.name = 'a' * 5000", ":Mine", "Mine: name: a text of 5,000 characters, expected at most 100 small"),
    ("Mine.generate = 5", ":Mine", "Mine: generate: 5, expected a method"),
    ("Mine.prepare = None", ":Mine", "Mine: prepare: None, expected a method"),
    (
        "for n in range(70):\n    exec(f'class C{n}: pass')",
        ":Yours",
        r"its classes are Mine, C0, .*, C10 and 59 more$",
    ),
    ("Mine.name = 'idle'", ":Mine", "the name idle is taken by a workload of ours"),
    ("Mine.reads_outcomes = 1", ":Mine", "Mine: reads_outcomes: 1, expected True or False"),
    ("Mine.parameters = 5", ":Mine", "Mine: parameters: of type int, expected a tuple of Parameter"),
    ("Mine.parameters = (5,)", ":Mine", "Mine: parameters: 5, expected a Parameter"),
    (
        "Mine.parameters = (Parameter('a', 5, '', '', 6, 7),)",
        ":Mine",
        r"Mine: its own default is refused: parameters: a=5: expected 6 to 7",
    ),
    ("Mine.parameters = (Parameter('a', 1, '', ''),) * 2", ":Mine", "'a': expected a name of its own"),
    (
        "class Half(Workload):\n    api_version = 1\n    name = 'half'\n    summary = 's'",
        ":Half",
        "Half: it has no method generate",
    ),
]


# A parameter's arguments, and what is said of it.
BROKEN_PARAMETERS = [
    (
        r"'a\nb', 1, '', ''",
        r"parameters: 'a\\nb': expected a name of at most 100 letters, digits, _",
    ),
    ("'a' * 101, 1, '', ''", "parameters: a text of 101 characters: expected a name"),
    ("'', 1, '', ''", "parameters: '': expected a name"),
    ("'a=b', 1, '', ''", "parameters: 'a=b': expected a name"),
    ("5, 1, '', ''", "parameters: 5: expected a name"),
    (r"'a', 1, '\x07', ''", r"parameters: a: unit: '\\x07', expected at most 1,000 printable characters"),
    ("'a', 1, '', None", "parameters: a: summary: None, expected at most 1,000"),
    (r"'a', '\n', '', ''", r"parameters: a: default: '\\n', expected at most 1,000"),
    ("'a', object(), '', ''", "parameters: a: default of type object: expected a number or a text$"),
    ("'a', 1, '', '', ''", "parameters: a: a bound is '', expected a number"),
]
BROKEN += [(f"Mine.parameters = (Parameter({each}),)", ":Mine", said) for each, said in BROKEN_PARAMETERS]


@pytest.mark.parametrize(("code", "name", "said"), BROKEN)
def test_one_that_cannot_be_used_is_refused_in_a_line(
    code: str, name: str, said: str, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It says whose it is, what, and where in the author's file; exit code 2, and no traceback."""
    write(ONE_EVENT)
    path = tmp_path / "mine.py"
    path.write_text(f"{path.read_text()}\n{code}\n")
    code_, told = main(["run", f"./mine.py{name}"]), capsys.readouterr()
    assert (code_, told.out) == (BAD_INPUT, "")
    assert told.err.count("\n") == 1
    with pytest.raises(BadInput, match=said):
        find_source(f"./mine.py{name}").make({})


NO_SUCH = [
    ("./no.py:Mine", r"^\./no\.py:Mine: no\.py: no such file$"),
    ("no_such_module_here:Mine", r"^no_such_module_here:Mine: no module no_such_module_here$"),
    ("__main__:Mine", "no module __main__$|no class Mine"),
    ("capture:Mine", "^no workload 'capture:Mine'; "),
    ("idl", r"^no workload 'idl'; did you mean idle\?$"),
]


@pytest.mark.parametrize(("source", "said"), NO_SUCH)
def test_what_is_not_there_is_said_so(source: str, said: str) -> None:
    """A file, a module, a capture, a name."""
    with pytest.raises(BadInput, match=said):
        find_source(source)


def test_a_plug_in_is_no_recorded_trace(write: Write) -> None:
    """Replay takes none, and --cpi neither."""
    choice = SourceChoice(write(ONE_EVENT), must_be_recorded=True)
    with pytest.raises(BadInput, match="a generated workload, not a recorded trace"):
        open_source(choice)


def test_a_traceback_can_be_asked_for(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With EXITLAB_TRACEBACK the author sees all of it, before the one line."""
    monkeypatch.setenv("EXITLAB_TRACEBACK", "1")
    assert main(["run", write("def generate(self):\n    yield 1 // 0")]) == BAD_INPUT
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert told.splitlines()[-1].startswith("guest-svc: workload mine (./mine.py): at event 0: ZeroDiv")


NEVER_ENDS = """
def generate(self):
    yield from self.endless()
def endless(self):
    while True:
        try:
            yield events(kinds=EventKind.CPUID)
        except GeneratorExit:
            pass
"""


def test_a_generator_that_never_ends_is_told_once(write: Write) -> None:
    """It ignores that it is to end; Python says nothing of it beside us, not even when it exits."""
    command = [sys.executable, "-m", "guest_svc", "run", write(NEVER_ENDS), "--events", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = "at event 1, when it was to end: RuntimeError: generator ignored GeneratorExit (mine.py, line 12)"
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr == f"guest-svc: workload mine (./mine.py): {said}\n"


Install = Callable[..., None]


def test_only_the_one_that_is_asked_for_is_imported(install: Install) -> None:
    """The others' modules stay where they are."""
    install("one", {"theirs": "theirs_a:Theirs"}, theirs_a=package("theirs"))
    install("two", {"others": "theirs_b:Theirs"}, theirs_b="raise RuntimeError('imported')")
    assert plugin_names() == ("others", "theirs")
    assert find_source("theirs").name == "theirs"
    assert "theirs_a" in sys.modules
    assert "theirs_b" not in sys.modules
    with pytest.raises(BadInput, match="no workload 'there'; did you mean theirs"):
        find_source("there")


def test_a_broken_one_is_named_and_stops_nothing_else(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workloads lists ours and those that work, and warns of each other one on standard error."""
    install("good", {"theirs": "theirs_good:Theirs"}, theirs_good=package("theirs"))
    broken = {
        "raises": "theirs_raises:Theirs",
        "lacks": "theirs_good:Nobody",
        "renamed": "theirs_good:Theirs",
        "idle": "theirs_idle:Theirs",
        "gone": "theirs_gone:Theirs",
    }
    install("bad", broken, theirs_raises="1 // 0", theirs_idle=package("idle"))
    install("twin", {"gone": "theirs_twin:Theirs"})
    assert main(["workloads"]) == 0
    told = capsys.readouterr()
    assert "\ntheirs: of a test [good 1.0]\n" in told.out
    assert "\nidle: timer interrupts" in told.out
    warnings = told.err.splitlines()
    expected = [
        "workload gone: 2 packages have this name: bad 1.0, twin 1.0",
        "workload idle: bad 1.0: the name idle is taken by a workload of ours",
        "workload lacks: bad 1.0: no class Nobody; its classes are Theirs",
        "workload raises: importing it: ZeroDivisionError: integer division",
        "workload renamed: the class calls itself 'theirs': the two names have to be one",
    ]
    assert len(warnings) == len(expected)
    for warning, said in zip(sorted(warnings), expected, strict=True):
        assert warning.startswith(f"guest-svc: warning: {said}")
    assert [*installed().sources] == ["theirs"]
    assert find_source("idle").summary.startswith("timer interrupts")


def test_lists_say_whose_a_workload_is(install: Install) -> None:
    """Ours have no package; documentation and version come from the class."""
    install("one", {"theirs": "theirs_c:Theirs"}, theirs_c=package("theirs"))
    listed, warnings = list_workloads()
    named: dict[str, Any] = {workload["name"]: workload for workload in listed}
    assert warnings == []
    assert named["idle"]["package"] is None
    assert named["idle"]["documentation"].startswith("A guest that does nothing")
    theirs = named["theirs"]
    assert (theirs["package"], theirs["documentation"], theirs["api_version"]) == (
        "one 1.0",
        "Says hello.",
        1,
    )


def test_a_name_from_elsewhere_is_never_a_file(write: Write) -> None:
    """What serves others looks names up and loads no path."""
    text = write(ONE_EVENT)
    for source in (text, "mine:Mine", "mine.py"):
        with pytest.raises(BadInput, match=r"^no workload "):
            find_named(source)
    assert find_named("idle").name == "idle"


def test_our_names_cost_no_look_at_packages() -> None:
    """Running one of ours imports nothing that looks for plug-ins."""
    script = (
        "import sys; from guest_svc.sources import find_source; find_source('idle');"
        "print([name for name in ('importlib.metadata', 'guest_svc.plugins', 'guest_svc.api') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
