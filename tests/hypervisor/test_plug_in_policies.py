"""Policies that somebody else wrote: which class is found, and what is said of a mistake in it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from exitlab.command_line import BAD_INPUT, TRACEBACK_VARIABLE
from exitlab.plugins import PluginError, is_brought
from exitlab.v1 import policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc.cli import main
from hypervisor_svc.policies.base import SVM, VMX
from hypervisor_svc.policies.find import find
from tests.hypervisor.plug_in_sources import GOOD, MISTAKES, changed

PLAIN: Final = policy_pb2.CpuFeatures()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder; forget what is imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def refusal(word: str) -> str:
    """Return what is said of a policy that cannot be used."""
    with pytest.raises(PluginError) as refused:
        find(word).table(VMX, PLAIN)
    return str(refused.value)


@pytest.mark.parametrize(("source", "said", "line"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_as_its_authors(folder: Path, source: str, said: str, line: int) -> None:
    """Policy, moment and state are told where there are such, and file and line always."""
    (folder / "mine.py").write_text(source, encoding="utf-8")
    told = refusal("./mine.py:Mine")
    assert told.startswith(said)
    assert told.endswith(f" (mine.py, line {line})")


# Words for which there is no class.
WORDS: Final = {
    "./mine.py": "expected ./file.py:Class or module:Class",
    "./mine.py:": "./mine.py: say which class, after a colon; its classes are Window, Mine",
    "./mine.py:Mime": "./mine.py: no class Mime; its classes are Window, Mine",
    "./mine.py:do": "./mine.py: do is of type function, expected a class",
    ":Mine": "expected ./file.py:Class or module:Class",
    "./nowhere.py:Mine": "nowhere.py: no such file",
    "./deep.py:Mine": "deep.py: a folder",
    "nowhere:Mine": "no module nowhere",
    "deep.wrong:Mine": "importing it: ModuleNotFoundError: No module named 'far' (deep/wrong.py, line 1)",
    "./beside.py:Mine": "importing it: ValueError: mine to blame (wrong_neighbour.py, line 2)",
    "nowhere.json": "nowhere.json: No such file or directory",
}


@pytest.mark.parametrize(("word", "said"), WORDS.items(), ids=WORDS)
def test_what_is_not_there_is_told(folder: Path, word: str, said: str) -> None:
    """A word that leads to no class says what of it is missing."""
    (folder / "mine.py").write_text(GOOD, encoding="utf-8")
    (folder / "deep.py").mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "wrong.py").write_text("import far\n", encoding="utf-8")
    (folder / "beside.py").write_text("import wrong_neighbour\n", encoding="utf-8")
    (folder / "wrong_neighbour.py").write_text("\nraise ValueError('mine to blame')\n", encoding="utf-8")
    assert refusal(word) == said


def test_every_way_to_write_a_class_leads_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, however written, with what lies beside it, and by its module; a file leaves nothing."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (folder / "deep").mkdir()
    (folder / "deep" / "words.py").write_text('NAME = "mine"\n', encoding="utf-8")
    source = changed(
        'name = "mine"', "name = NAME", changed("from enum", "from words import NAME\nfrom enum")
    )
    (folder / "deep" / "mine.py").write_text(source, encoding="utf-8")
    (folder / "flat.py").write_text(GOOD, encoding="utf-8")
    before = sorted(folder.rglob("*"))
    words = (
        "deep/mine.py:Mine",
        "./deep/mine.py:Mine",
        f"{folder}/deep/mine.py:Mine",
        "./flat.py:Mine",
        "flat.py:Mine",
    )
    tables = [find(word).table(VMX, PLAIN) for word in words]
    assert all(table == tables[0] for table in tables)
    assert (tables[0].name, len(tables[0].moments)) == ("mine", 4)
    assert sorted(folder.rglob("*")) == before
    assert find("flat:Mine").table(VMX, PLAIN) == tables[0]


def test_a_class_is_made_for_each_vendor_and_cpu(folder: Path) -> None:
    """It is given those of vendor and dr6_writable that it takes; without vendors it is the class's own."""
    (folder / "mine.py").write_text(
        changed("    memories =", "    vendors = (SVM, VMX)\n    memories ="), encoding="utf-8"
    )
    both = find("./mine.py:Mine")
    assert both.vendors == (SVM, VMX)
    assert [both.table(vendor, PLAIN).vendor for vendor in both.vendors] == [SVM, VMX]
    init = "    def __init__(self, *, dr6_writable):\n        self.emulated_dr6_writable = dr6_writable\n\n"
    source = changed("    memories =", "    vendor = SVM\n    memories =")
    (folder / "mine.py").write_text(changed("    def dr_t", f"{init}    def dr_t", source), encoding="utf-8")
    found = find("./mine.py:Mine")
    assert found.vendors == (SVM,)
    writable = [
        found.table(SVM, policy_pb2.CpuFeatures(rtm=rtm)).emulated_dr6_writable for rtm in (False, True)
    ]
    assert writable == [0xE00F, 0x1E00F]


def test_what_it_prints_is_not_taken_for_the_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An author may print where he likes: it goes to standard error, beside no table."""
    source = changed("        if sees.check:", "        print('asked')\n        if sees.check:")
    (folder / "mine.py").write_text(f"{source}\nprint('imported')\n", encoding="utf-8")
    assert main(["policy", "./mine.py:Mine"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("mine on vmx: one of mine\n")
    assert {"asked", "imported"} == set(told.err.split())


def test_a_mistake_is_one_line_and_ends_with_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is bad input, with a traceback for who wants one; and so is a vendor that it does not have."""
    source, said, line = MISTAKES["raises in a state"]
    (folder / "mine.py").write_text(source, encoding="utf-8")
    assert main(["policy", "./mine.py:Mine", "--output", "lanes"]) == BAD_INPUT
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"hypervisor-svc: {said}")
    assert told.err.endswith(f" (mine.py, line {line})\n")
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert main(["policy", "./mine.py:Mine"]) == BAD_INPUT
    whole = capsys.readouterr().err
    assert "ZeroDivisionError: integer" in whole
    assert whole.endswith(told.err)
    (folder / "mine.py").write_text(GOOD, encoding="utf-8")
    assert main(["policy", "./mine.py:Mine", "--vendor", "svm"]) == BAD_INPUT
    assert capsys.readouterr().err == "hypervisor-svc: policy 'mine' exists on vmx only\n"


def test_it_is_compared_with_another_version_of_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--diff takes a class too, on either side."""
    (folder / "old.py").write_text(changed("Action.RECOMPUTE, ", ""), encoding="utf-8")
    (folder / "new.py").write_text(GOOD, encoding="utf-8")
    assert main(["policy", "./old.py:Mine", "--diff", "./new.py:Mine@vmx"]) == 0
    assert "ARM EFFECTIVE +RECOMPUTE memory:=CLOSED" in capsys.readouterr().out


def test_no_policy_of_ours_is_found_otherwise() -> None:
    """A name stays a name: what the hypervisor has is found by it, with its table."""
    for name in shipped.policy_names():
        assert not is_brought(name)
    assert find("ignore").table(VMX, PLAIN) == shipped.policy_table("ignore", VMX, PLAIN)
