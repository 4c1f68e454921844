"""Fields of vector files: what nobody would read is refused, so that no check vanishes unseen."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from exitlab.words import printable
from guest_svc.errors import BadInput
from guest_svc.vectors import read_vectors
from guest_svc.vectors.fields import FOR_PEOPLE
from guest_svc.vectors.model import ALL_OPS
from guest_svc.vectors.reading import EXPECT_FIELDS, ROW_FIELDS
from guest_svc.vectors.steps import COMMON_FIELDS, OWN_FIELDS
from tests.guest.vector_rows import FRESH, NOP, read_back, read_dr, vector_row, write_dr

TWO_VCPUS: dict[str, Any] = {"cpus": [0, 0], "steps": [NOP, {"op": "get_debugregs"}]}


def refusal(folder: Path, *rows: dict[str, Any]) -> str:
    """Return why rows are refused."""
    with pytest.raises(BadInput) as raised:
        read_back(folder, *rows)
    assert raised.value.exit_code == 2
    return str(raised.value).removeprefix(f"{folder / 'vectors.json'}: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bil": {}}, "field bil: no such field; expected bill, bus_lock, "),
        ({"Note": "x"}, "field Note: no such field; expected bill, "),
        (
            {"steps": [NOP | {"vcpus": 1}]},
            "field steps[0].vcpus: no such field of nop; expected class, cpl, ",
        ),
        (
            {"steps": [NOP, read_dr(0) | {"bananas": 1}]},
            "field steps[1].bananas: no such field of mov_from_dr; ",
        ),
        ({"steps": [read_dr(0) | {"v": 1}]}, "field steps[0].v: no such field of mov_from_dr; "),
        (
            {"steps": [{"op": "host_breakpoints", "dr6": 0}]},
            "field steps[0].dr6: no such field of host_breakpoints; expected class, cpl, cpu, db, dr7, ",
        ),
        ({"init": {"dr8": 0}}, "field init.dr8: no such field; expected db, dr6, dr7"),
        (
            {"expect": FRESH | {"dr8": 0}},
            "field expect.dr8: no such field; expected db, dr6, dr7, ev, reads, ",
        ),
        ({"expect": FRESH | {"red": {}}}, "field expect.red: no such field; "),
        ({"expect": FRESH | {"witnesses": []}}, "field expect.witnesses: no such field; "),
        (
            {"expect": FRESH | {"vcpus": {"1": {"dr": 1}}}} | TWO_VCPUS,
            "field expect.vcpus.1.dr: no such field; ",
        ),
        (
            {"expect": FRESH | {"registers": {"1": {"ev": []}}}} | TWO_VCPUS,
            "field expect.registers.1.ev: no such field; ",
        ),
        (
            {"differs": {"kvm-6.14": {"drr6": 5}}},
            "field differs.kvm-6.14.drr6: no such field; expected db, dr6, ",
        ),
        (
            {"vendor": "vmx", "bill": {"kvm-6.14/svm": {}}},
            'field bill.kvm-6.14/svm: expected lanes of vmx, the row\'s vendor, got "kvm-6.14/svm"',
        ),
        ({"out": "far", "bananas": 1}, "field bananas: no such field; "),
    ],
)
def test_a_field_that_nobody_reads_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """A misspelt field checks nothing, so it is told with where it is."""
    assert refusal(tmp_path, vector_row(NOP), vector_row(NOP) | change).startswith(f"row 1 (t), {said}")


@pytest.mark.parametrize("name", ["note", "notes", "source", "sources", "comment", "_x"])
def test_every_object_may_say_something_to_people(tmp_path: Path, name: str) -> None:
    """What is for people by its name stands beside what is read, and changes nothing."""
    told = {name: ["anything", {"op": 1}]}
    expect = FRESH | {"registers": {"1": {"dr7": 3}}, "vcpus": {"1": {"dr6": 1}}}
    plain = vector_row(init={"dr6": 1}, expect=expect, differs={"a": {"dr6": 2}}, **TWO_VCPUS)
    talking = plain | told
    talking["steps"] = [step | told for step in plain["steps"]]
    talking["init"] = plain["init"] | told
    talking["expect"] = expect | told | {"vcpus": {"1": {"dr6": 1} | told}}
    talking["differs"] = {"a": {"dr6": 2} | told}
    assert read_back(tmp_path, talking) == read_back(tmp_path, plain)


def test_a_row_and_a_file_may_name_their_origin(tmp_path: Path) -> None:
    """The words of the given file and a few others are for people there."""
    words = dict.fromkeys(FOR_PEOPLE, "anything")
    path = tmp_path / "vectors.json"
    path.write_text(
        json.dumps({"source": "x", "vectors": [vector_row(NOP) | words]} | words), encoding="utf-8"
    )
    assert [vector.name for vector in read_vectors(path)] == ["t"]


NEEDED: dict[str, dict[str, Any]] = {
    **{op: {"n": 0, "v": 0} for op in ("mov_to_dr",)},
    "mov_from_dr": {"n": 0},
    **{op: {"off": 0} for op in ("store", "load", "mov_ss", "pop_ss")},
    **{op: {"msr": 0} for op in ("rdmsr", "wrmsr")},
    "intn": {"vector": 1},
    "cr4_de": {"v": 0},
    "vmexit_to_l1": {"reason": 1},
    "run_on": {"cpu": 0},
    "host_debugger": {"control": 0},
    "vmrun": {"controls": 0},
}


@pytest.mark.parametrize("op", sorted(ALL_OPS))
def test_every_field_of_an_operation_is_read(tmp_path: Path, op: str) -> None:
    """No field is taken and then ignored: what cannot be meant is refused in each of them."""
    step = {"op": op} | NEEDED.get(op, {})
    assert read_back(tmp_path, vector_row(step))[0].steps[0].op == op
    for name in {*COMMON_FIELDS, *OWN_FIELDS.get(op, ())}:
        assert f"field steps[0].{name}" in refusal(tmp_path, vector_row(step | {name: {"x": 1}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": [read_dr(True)]}, "field steps[0].n: expected one of 0, 1, 2, 3, 4, 5, 6, 7, got true"),
        ({"steps": [read_dr(0) | {"n": 1.0}]}, "field steps[0].n: expected one of 0, "),
        ({"steps": [NOP | {"vcpu": False}]}, "field steps[0].vcpu: expected one of 0, got false"),
        ({"cpl": False}, "field cpl: expected one of 0, 3, got false"),
        ({"cpus": [True]}, "field cpus[0]: expected one of 0, 1, "),
        ({"rtm": 1.0}, "field rtm: expected one of 0, 1, got 1.0"),
        (
            {"expect": FRESH | {"ev": [["vmexit", 1, None, [0, "insn"], 0, 0]]}},
            "field expect.ev[0][1]: expected null",
        ),
        (
            {"expect": FRESH | {"ev": [["vmexit", None, 0, [0, "insn"], 0, 0]]}},
            "field expect.ev[0][2]: expected null",
        ),
        ({"expect": FRESH | {"reads": {"0": 1, "00": 2}}}, "field expect.reads.00: expected each step once"),
        (
            {"expect": FRESH | {"vcpus": {"9" * 5000: {}}}},
            f'field expect.vcpus.{"9" * 5000}: expected a vCPU, 1 to 0, got "99',
        ),
    ],
)
def test_nothing_is_taken_for_something_else(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """True is no register, an exit of a nested guest has no vector, and no step is spoken of twice."""
    assert refusal(tmp_path, vector_row(NOP) | change).startswith(f"row 0 (t), {said}")


def test_a_claim_may_be_written_as_true(tmp_path: Path) -> None:
    """What is 0 or 1 can be said in JSON's own words."""
    (vector,) = read_back(tmp_path, vector_row({"op": "popf_clr", "pre": False}, rtm=True, cr4_de=False))
    assert (vector.has_rtm, vector.has_de, vector.steps[0].has_set_up) == (True, False, False)


STEP = '"steps": [{"op": "nop"}], "expect": {}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"id": "t", "id": "u"}]', "row 0 (u), field id: "),
        (
            '[{"id": "t", "mode": "long", "steps": [{"op": "nop", "cpl": 0, "cpl": 3}], "expect": {}}]',
            "row 0 (t), field steps[0].cpl: ",
        ),
        (
            '[{"id": "t", "mode": "long", "steps": [], "expect": {"dr6": 1, "dr6": 1}}]',
            "row 0 (t), field expect.dr6: ",
        ),
        (
            '[{"id": "t", "mode": "long", "steps": [], "expect": {"reads": {"0": 1, "0": 1}}}]',
            "row 0 (t), field expect.reads.0: ",
        ),
        (
            f'[{{"id": "t", "mode": "long", {STEP}, "bill": {{"a": {{}}, "a": {{}}}}}}]',
            "row 0 (t), field bill.a: ",
        ),
        (
            f'[{{"id": "t", "mode": "long", {STEP}, "bill": {{"a": {{"HLT": 1, "HLT": 2}}}}}}]',
            "row 0 (t), field bill.a.HLT: ",
        ),
        (
            '[{"id": "t", "mode": "long", "steps": [{"op": "mov_to_dr", "n": 0, "v": '
            '{"data": 1, "data": 2}}], "expect": {}}]',
            "row 0 (t), field steps[0].v.data: ",
        ),
        ('{"source": "a", "source": "b", "vectors": []}', "field source: "),
    ],
)
def test_a_field_that_is_there_twice_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """One of the two would be lost."""
    path = tmp_path / "vectors.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as raised:
        read_vectors(path)
    assert str(raised.value) == f"{path}: {said}expected it once, got it twice"


def test_a_files_object_has_no_other_fields(tmp_path: Path) -> None:
    """What is beside source and vectors is read by nobody."""
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({"source": "x", "vectors": [vector_row(NOP)], "bill": {}}), encoding="utf-8")
    with pytest.raises(BadInput, match=r"vectors\.json: field bill: no such field; expected source, vectors"):
        read_vectors(path)


@pytest.mark.parametrize("name", ["id", "mode", "steps", "expect"])
def test_a_missing_field_is_called_missing(tmp_path: Path, name: str) -> None:
    """It is told apart from one that is null."""
    row = vector_row(NOP)
    del row[name]
    row_name = "" if name == "id" else " (t)"
    said = refusal(tmp_path, row)
    assert said.startswith(f"row 0{row_name}, field {name}: expected ")
    assert said.endswith(", but it is missing")
    assert refusal(tmp_path, row | {name: None}).endswith(", got null")


@pytest.mark.parametrize("name", ["", " "])
def test_a_name_is_not_empty(tmp_path: Path, name: str) -> None:
    """A vector without a name could not be told."""
    assert f'field id: expected a name, got "{name}"' in refusal(tmp_path, vector_row(NOP, id=name))


def test_names_are_each_rows_own(tmp_path: Path) -> None:
    """Two rows of one name could not be told apart."""
    rows = [vector_row(NOP, id=name) for name in ("a", "b", "a")]
    said = "row 2 (a), field id: expected a name of its own, but row 0 has it too"
    assert refusal(tmp_path, *rows) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("B/dr6=0x1 é", "B/dr6=0x1 é"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\x7f\x9b", "a\\nb\\x7f\\x9b"),
        ("\u202egnp\udcff", "\\u202egnp\\udcff"),
    ],
)
def test_what_cannot_be_seen_is_escaped(tmp_path: Path, text: str, shown: str) -> None:
    """A file's words do not command the terminal that they are printed on."""
    assert printable(text) == shown
    said = refusal(tmp_path, vector_row(NOP, id=text, **{text: 1}))
    assert said.startswith(f"row 0 ({shown}), field {shown}: no such field; ")


PAGE = (Path(__file__).parents[2] / "docs" / "vectors.md").read_text(encoding="utf-8")


def test_the_page_tells_every_field() -> None:
    """What the page does not name nobody can use; each operation's row has its own fields."""
    names = {*ROW_FIELDS, *EXPECT_FIELDS, *COMMON_FIELDS, *FOR_PEOPLE} | {
        name for own in OWN_FIELDS.values() for name in own
    }
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", PAGE, re.MULTILINE)
    fields = {op: told for ops, told in rows for op in re.findall(r"`(\w+)`", ops)}
    for op, own in OWN_FIELDS.items():
        expected = own if "six registers" not in fields[op] else ()
        assert [name for name in expected if f"`{name}`" not in fields[op]] == [], op


def test_registers_written_by_a_guest_are_read(tmp_path: Path) -> None:
    """What is well spelt is as it was."""
    (vector,) = read_back(tmp_path, vector_row(write_dr(0, 5), expect={}))
    assert (vector.expect.raised, vector.expect.registers.dr7) == ((), 0x400)
