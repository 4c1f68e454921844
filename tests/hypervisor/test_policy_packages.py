"""Policies that packages bring by entry points: listed beside ours, and none stops another."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf import json_format

from exitlab.command_line import BAD_INPUT
from exitlab.v1 import hypervisor_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc.cli import main
from hypervisor_svc.policies.base import SVM, VMX
from tests.hypervisor.plug_in_sources import CLASS, GOOD, changed

Install = Callable[..., None]
SECOND: Final = changed(
    'name = "mine"', 'name = "second"\n    vendors = (VMX, SVM)\n    claims_correct = False'
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a package of policies into a folder that Python looks into."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)

    def package(name: str, entries: dict[str, str], **modules: str) -> None:
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8"
        )
        lines = [f"{entry} = {place}\n" for entry, place in entries.items()]
        (info / "entry_points.txt").write_text("".join(["[exitlab.policies]\n", *lines]), encoding="utf-8")
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")

    yield package
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_they_are_listed_with_their_package(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """People see the package in brackets after the name, scripts in a list of its own."""
    install(
        "lazies", {"mine": "lazies_one:Mine", "second": "lazies_two:Mine"}, lazies_one=GOOD, lazies_two=SECOND
    )
    assert main(["policies"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) == 1 + len(shipped.policy_names()) + 2
    assert [line.split()[:6] for line in lines[-2:]] == [
        ["mine", "(lazies", "1.2)", "vmx", "vmx", "one"],
        ["second", "(lazies", "1.2)", "vmx", "svm", "no"],
    ]
    assert main(["policies", "--output", "json"]) == 0
    out, err = capsys.readouterr()
    assert (told.err, err) == ("", "")
    listed = json.loads(out)
    plug_ins = listed.pop("plug_ins")
    known = json_format.ParseDict(listed, hypervisor_pb2.ListPoliciesResponse())
    assert list(known.policies) == shipped.policy_summaries()
    assert [one["name"] for one in plug_ins] == ["mine", "second"]
    assert [one.pop("package") for one in plug_ins] == ["lazies 1.2"] * 2
    second = json_format.ParseDict(plug_ins[1], hypervisor_pb2.PolicySummary())
    assert (list(second.vendors), list(second.correct_vendors)) == ([VMX, SVM], [])


# What another package calls its policy, where that is to be, its source, and what is told.
BROKEN: Final = {
    "gone": ("other", "nowhere:Mine", "", "no module nowhere"),
    "import": (
        "other",
        "broken:Mine",
        "import far\n",
        "importing it: ModuleNotFoundError: No module named 'far'",
    ),
    "leaves": ("other", "broken:Mine", "\nexit(1)\n", "importing it: SystemExit: 1 (broken.py, line 2)"),
    "class": ("other", "broken:Mime", GOOD, "bad 1.2: no class Mime; its classes are Window, Mine"),
    "mistake": (
        "mine-too",
        "broken:Mine",
        changed("Action.DISARM, ", "", changed('"mine"', '"mine-too"')),
        "mine-too: at DR_TRAPPED (check=NONE) the table re-executes",
    ),
    "other name": (
        "other",
        "broken:Mine",
        GOOD,
        f"the class calls itself 'mine', but its entry point is named 'other' (broken.py, line {CLASS})",
    ),
}


@pytest.mark.parametrize(("name", "place", "source", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_named_and_stops_nothing(
    name: str,
    place: str,
    source: str,
    said: str,
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others are listed; whoever asks for it is told the same as an error; the good one still runs."""
    monkeypatch.chdir(tmp_path)
    install("good", {"mine": "good_one:Mine"}, good_one=GOOD)
    install("bad", {name: place}, broken=source)
    assert main(["policies"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith(f"hypervisor-svc: left out: policy '{name}' of bad 1.2: {said}")
    assert told.err.count("\n") == 1
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == [*shipped.policy_names(), "mine"]
    assert main(["policy", name]) == BAD_INPUT
    told = capsys.readouterr()
    assert told.err.startswith(f"hypervisor-svc: {said}")
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert main(["policy", "mine"]) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ignore", ": has the name of a policy that ExitLab comes with; give it another"),
        ("all", ": has a name that stands for several policies; give it another"),
        ("mine", " and second 1.2: 2 packages have this name: first 1.2, second 1.2"),
    ],
)
def test_a_name_that_another_has_is_refused(
    name: str, said: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is warned of without being imported; a name of ours stays ours."""
    install("first", {"mine": "first_one:Mine"}, first_one=GOOD)
    install("second", {name: "second_one:Mine"}, second_one="raise ValueError('not to be imported')")
    assert main(["policies"]) == 0
    warned = capsys.readouterr().err.splitlines()
    package = "first 1.2" if name == "mine" else "second 1.2"
    assert warned == [f"hypervisor-svc: left out: policy {name!r} of {package}{said}"]
    assert main(["policy", "ignore"]) == 0
    assert capsys.readouterr().out.startswith("ignore on vmx: ")


def test_only_the_one_asked_for_is_imported(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """A package is looked for by name: what others do when they are imported does not happen."""
    install("good", {"mine": "good_one:Mine"}, good_one=GOOD)
    install("loud", {"loud": "loud_one:Mine"}, loud_one="print('imported')")
    assert main(["policy", "mine", "--output", "lanes"]) == 0
    told = capsys.readouterr()
    assert (told.out.count("\n"), told.err) == (4, "")


def test_a_server_has_none(install: Install) -> None:
    """What a hypervisor lists, and so what a guest's 'all' stands for, is ours alone."""
    install("good", {"mine": "good_one:Mine"}, good_one=GOOD)
    assert [summary.name for summary in shipped.policy_summaries()] == list(shipped.policy_names())
    with pytest.raises(shipped.UnknownPolicy):
        shipped.policy_vendors("mine")
