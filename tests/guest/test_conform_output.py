"""What ``conform`` prints: counts, known bugs, causes, bills; for people, scripts and tables."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import guest_svc
from guest_svc import conform, render_conform
from guest_svc.vectors import Vector
from guest_svc.vectors.judge import RESULTS, Case
from guest_svc.vectors.reading import BILL_COUNTS

SCHEMA = json.loads(Path(guest_svc.__file__).with_name("schema").joinpath("conform.json").read_text("utf-8"))
REGISTERS: dict[str, Any] = {"reads": {}, "ev": [], "db": ["0x0"] * 4, "dr6": "0xffff0ff0", "dr7": "0x400"}
BILL = {"HLT": 2, "DR_ACCESS": 1} | dict.fromkeys(BILL_COUNTS, 0) | {"windows": 3}


def case_of(name: str, policy: str, **fields: Any) -> Case:
    """Return a case that has passed unless ``fields`` say otherwise."""
    usual: dict[str, Any] = {"vendor": "vmx", "is_ok": True, "declared": None, "file": "f.json", "bill": BILL}
    return Case(name=name, policy=policy, **usual | {"expected": REGISTERS, "got": REGISTERS} | fields)


FAILED: dict[str, Any] = {"is_ok": False, "got": REGISTERS | {"dr7": "0x0"}}
OUTCOME = conform.Outcome(
    cases=[
        case_of("a", "p"),
        case_of("a", "q", is_ok=False, declared="RULE"),
        case_of("a", "w", claims_correct=False, has_known_bug=True, debug_exits=[[1, "0x1", "0x2", 3]]),
        case_of("b", "p", is_refused=True),
        case_of("b", "q", note="why", **FAILED),
        case_of("b", "w", claims_correct=False),
    ],
    out=[Vector("c", out="too far", path=Path("f.json"))],
    vectors=2,
    lanes=3,
)


def test_every_case_is_one_of_the_counts() -> None:
    """Passed, failed, declared, refused and known bugs are cases, out is vectors."""
    document = OUTCOME.document()
    assert {name: value for name, value in document.items() if name != "cases"} == {
        "schema": "exitlab.conform/1",
        "vectors": 2,
        "lanes": 3,
        "passed": 2,
        "failed": 1,
        "declared": 1,
        "refused": 1,
        "known_bugs": 1,
        "out": 1,
        "out_ids": ["c"],
        "out_rows": [{"file": "f.json", "id": "c", "reason": "too far"}],
    }
    assert document["cases"][2] == {
        "file": "f.json",
        "id": "a",
        "policy": "w",
        "vendor": "vmx",
        "claims_correct": False,
        "result": "known_bug",
        "ok": True,
        "declared": None,
        "refused": False,
        "expected": REGISTERS,
        "got": REGISTERS,
        "note": None,
        "bill": BILL,
        "debug_exits": [[1, "0x1", "0x2", 3]],
    }
    assert {case["result"] for case in document["cases"]} == set(RESULTS)
    assert json.loads(render_conform.formatted(document, "json")) == document


def test_people_see_counts_claims_and_what_failed() -> None:
    """A policy that claims to be wrong is told as such, and a known bug is not passed over."""
    assert render_conform.formatted(OUTCOME.document(), "text").splitlines() == [
        "2 vectors under 3 lanes: 2 passed, 1 failed, 1 declared, 1 refused, 1 known bugs shown",
        "  p refuses what the host does: 1",
        "  q declares RULE: 1",
        "  w claims to be wrong",
        "  w shows known bugs: a on vmx",
        "1 vectors are out, because they need what is not modelled:",
        "  c: too far",
        "FAILED under q, which claims to be correct: 1 on vmx",
        "  f.json: dr7 differs, 1 on vmx: b",
        "FAILED b under q on vmx (f.json)",
        '  dr7: expected "0x400"',
        '            got "0x0"',
        "  why",
    ]


def test_detail_is_each_vectors_bill_and_what_a_debugger_was_told() -> None:
    """Exits by reason, windows and operations are there for every vector and lane."""
    lines = render_conform.formatted(OUTCOME.document(), "text", has_detail=True).splitlines()
    start = lines.index("a of f.json")
    header, *cells = (
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[start + 1 : start + 5]
    )
    names = [name.replace("_", " ") for name in BILL_COUNTS]
    assert header == ["policy", "on", "result", "exits", *names]
    counts = ["3", "0", "0", "0", "0", "0", "0"]
    assert cells == [
        ["p", "vmx", "passed", "2 HLT, 1 DR_ACCESS", *counts],
        ["q", "vmx", "declared", "2 HLT, 1 DR_ACCESS", *counts],
        ["w", "vmx", "known bug", "2 HLT, 1 DR_ACCESS", *counts],
    ]
    assert lines[start + 5] == "  w on vmx tells the debugger: exception 1, DR6 0x1, DR7 0x2 (3 times)"
    assert lines[start + 6] == "b of f.json"


def many_failures() -> conform.Outcome:
    """Return failures of a policy that claims to be wrong, and then one of another."""
    wrong: dict[str, Any] = {"claims_correct": False}
    cases = [case_of(f"v{k}", "w", **FAILED, **wrong, vendor="svm" if k % 3 else "vmx") for k in range(30)]
    cases.append(case_of("v30", "w", is_ok=False, **wrong))
    cases.append(case_of("v31", "w", **FAILED, **wrong, file="g.json"))
    cases.append(case_of("late", "p", **FAILED))
    return conform.Outcome(cases=cases, vectors=33, lanes=3)


def test_failures_are_told_by_policy_and_cause_with_a_few_examples() -> None:
    """Nobody reads a thousand lines; who is to be right comes first, then an example of each cause."""
    lines = render_conform.formatted(many_failures().document(), "text").splitlines()
    assert lines[1:] == [
        "  w claims to be wrong",
        "FAILED under w, which claims to be wrong: 12 on vmx, 20 on svm",
        "  f.json: dr7 differs, 10 on vmx, 20 on svm: v0; v1; v2; v3; and 26 more",
        "  f.json: it differs where the vector does not look, 1 on vmx: v30",
        "  g.json: dr7 differs, 1 on vmx: v31",
        "FAILED under p, which claims to be correct: 1 on vmx",
        "  f.json: dr7 differs, 1 on vmx: late",
        *block("late", "p"),
        *block("v0", "w"),
        "FAILED v30 under w on vmx (f.json)",
        *block("v31", "w", "g.json"),
        *block("v1", "w", vendor="svm"),
        *block("v2", "w", vendor="svm"),
        "27 more failed; --detail prints them all",
    ]
    detailed = render_conform.formatted(many_failures().document(), "text", has_detail=True)
    assert detailed.count("\nFAILED v") + detailed.count("\nFAILED late") == 33
    assert "more failed" not in detailed


def block(name: str, policy: str, file: str = "f.json", vendor: str = "vmx") -> list[str]:
    """Return what is printed of a failure."""
    title = f"FAILED {name} under {policy} on {vendor} ({file})"
    return [title, '  dr7: expected "0x400"', '            got "0x0"']


def test_a_policy_may_claim_to_be_wrong_on_one_vendor() -> None:
    """Its vendor is then told."""
    cases = [case_of("a", "w"), case_of("a", "w", vendor="svm", claims_correct=False)]
    lines = render_conform.text(conform.Outcome(cases=cases).document()).splitlines()
    assert lines[1:] == ["  w on svm claims to be wrong"]


def test_a_table_has_a_row_for_each_case_and_each_vector_that_is_out() -> None:
    """File, result and reason are beside what was there before."""
    rows = list(csv.DictReader(io.StringIO(render_conform.formatted(OUTCOME.document(), "csv"))))
    assert list(rows[0])[:6] == ["id", "policy", "vendor", "ok", "declared", "refused"]
    assert [
        (row["file"], row["id"], row["policy"], row["ok"], row["result"], row["reason"]) for row in rows
    ] == [
        ("f.json", "a", "p", "1", "passed", ""),
        ("f.json", "a", "q", "0", "declared", ""),
        ("f.json", "a", "w", "1", "known_bug", ""),
        ("f.json", "b", "p", "1", "refused", ""),
        ("f.json", "b", "q", "0", "failed", "why"),
        ("f.json", "b", "w", "1", "passed", ""),
        ("f.json", "c", "", "", "out", "too far"),
    ]
    failed = conform.Outcome(cases=[case_of("a", "p", **FAILED)]).document()
    (row,) = csv.DictReader(io.StringIO(render_conform.csv_text(failed)))
    assert row["reason"] == "dr7 differs"


@pytest.mark.parametrize("output", ["text", "csv"])
def test_names_do_not_command_a_terminal(output: str) -> None:
    """A vector's id and reason come from a file that anybody may have written."""
    bad = "\x1b[2J"
    outcome = conform.Outcome(
        cases=[
            case_of(bad, "p", note=bad, **FAILED | {"file": bad}),
            case_of(bad, "p", has_known_bug=True, file=bad),
            case_of(bad, bad, declared=bad, is_ok=False),
        ],
        out=[Vector(bad, out=bad, path=Path(bad))],
    )
    for has_detail in (False, True):
        told = render_conform.formatted(outcome.document(), output, has_detail=has_detail)
        assert "\x1b" not in told
        assert "\\x1b[2J" in told


def test_the_schema_knows_every_field() -> None:
    """Neither the schema nor the object drifts from the other."""
    document = OUTCOME.document()
    assert list(SCHEMA["properties"]) == SCHEMA["required"] == list(document)
    case = SCHEMA["$defs"]["case"]
    assert set(case["properties"]) == set(case["required"]) == set(document["cases"][0])
    assert set(case["properties"]["result"]["enum"]) == set(RESULTS)
    assert set(case["properties"]["bill"]["required"]) == set(BILL_COUNTS)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "exitlab.conform/2"),
        (("passed",), -1),
        (("vectors",), None),
        (("out_rows",), [{"id": "c", "reason": "x"}]),
        (("cases", 0, "result"), "fine"),
        (("cases", 0, "vendor"), "via"),
        (("cases", 0, "bill"), {"windows": 1}),
        (("cases", 0, "got", "db"), ["0x0"]),
        (("cases", 0, "expected", "dr6"), 5),
        (("cases", 0, "debug_exits"), [[1, "0x0", "0x0"]]),
    ],
)
def test_the_schema_refuses_what_is_not_ours(place: tuple[Any, ...], value: object) -> None:
    """The schema says something about every level of the object."""
    document: Any = json.loads(json.dumps(OUTCOME.document()))
    jsonschema.validate(document, SCHEMA)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)
