"""Vector files: how they are read, what events they become, and how answers are judged."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exitlab.events import EventKind, Mark, Mode
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc import conform, vectors
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.stream import Hypervisor
from guest_svc.vectors import SHIPPED, Raised, Registers, Seen, Symbol, Vector, read_vectors
from guest_svc.vectors.program import Answer, Layout, Place, Row, columns_of, conversation

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM
QUIET = Answer(outcome_pb2.STORY_UNSPECIFIED, 0)
FAULT = Answer(outcome_pb2.STORY_DB_FAULT, 0xFFFF2FF0 | 0x400 << 32)
FRESH = {"db": [0, 0, 0, 0], "dr6": "0xffff0ff0", "dr7": "0x400", "ev": [], "reads": {}}


def vector_row(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a row of a vector file."""
    return {"id": "t", "mode": "long", "cpl": 0, "cr4_de": 0, "steps": list(steps), "expect": FRESH, **fields}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Return a function that reads a vector from a file of its own."""

    def read(*steps: dict[str, Any], **fields: Any) -> Vector:
        path = tmp_path / "one.json"
        path.write_text(json.dumps([vector_row(*steps, **fields)]), encoding="utf-8")
        return read_vectors(path)[0]

    return read


def read_dr(register: int) -> dict[str, Any]:
    """Return a step that reads a register."""
    return {"op": "mov_from_dr", "n": register}


def write_dr(register: int, value: object) -> dict[str, Any]:
    """Return a step that writes a register."""
    return {"op": "mov_to_dr", "n": register, "v": value}


def all_rows(vector: Vector) -> list[Row]:
    """Return the rows of a vector that needs no answers."""
    (rows,) = conversation(vector)
    return rows


def test_shipped_vectors_are_all_read() -> None:
    """The file in the package is whole, and its vectors that need more than MOV DR are known."""
    vectors = read_vectors(SHIPPED)
    assert (len(vectors), sum(vector.is_out for vector in vectors)) == (131, 11)
    assert {vector.name[0] for vector in vectors if vector.is_out} == {"T", "R"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 3}, "field id: expected a name, got 3"),
        ({"mode": "protected"}, 'field mode: expected one of long, real, got "protected"'),
        ({"cpl": 1}, "field cpl: expected one of 0, 3, got 1"),
        ({"rtm": 2}, "field rtm: expected one of 0, 1, got 2"),
        ({"on_bd": "stop"}, 'field on_bd: expected one of skip, retry, got "stop"'),
        ({"steps": None}, "field steps: expected a list, got null"),
        ({"steps": [{"op": "vmcall"}]}, "field steps[0].op: expected one of cpuid, int1, "),
        (
            {"steps": [{"op": "nop"}, read_dr(8)]},
            "field steps[1].n: expected one of 0, 1, 2, 3, 4, 5, 6, 7, got 8",
        ),
        ({"steps": [write_dr(0, "x")]}, 'field steps[0].v: expected a number of at most 64 bits, got "x"'),
        (
            {"steps": [write_dr(0, 2**64)]},
            f"field steps[0].v: expected a number of at most 64 bits, got {2**64}",
        ),
        ({"steps": [write_dr(0, {"step": 1})]}, "field steps[0].v.step: expected a step, 0 to 0, got 1"),
        ({"steps": [write_dr(0, {"code": 1})]}, 'field steps[0].v: expected a number, {"step": k} or '),
        (
            {"steps": [{"op": "store", "off": 0, "size": 3}]},
            "field steps[0].size: expected one of 1, 2, 4, 8, got 3",
        ),
        ({"init": {"db": [0, 0, 0]}}, "field init.db: expected four registers, got [0, 0, 0]"),
        ({"init": {"dr7": True}}, "field init.dr7: expected a number of at most 64 bits, got true"),
        ({"expect": FRESH | {"reads": {"x": 0}}}, 'field expect.reads.x: expected a step, 0 to 0, got "x"'),
        (
            {"expect": FRESH | {"reads": {"9" * 5000: 0}}},
            f'field expect.reads.{"9" * 5000}: expected a step, 0 to 0, got "999',
        ),
        (
            {"expect": FRESH | {"ev": [["exc", 1]]}},
            'field expect.ev[0]: expected ["exc", vector, error code, ',
        ),
        (
            {"expect": FRESH | {"ev": [["exc", 1, None, [0, "there"], 0, 0]]}},
            'field expect.ev[0][3][1]: expected one of end, insn, post, pre, got "there"',
        ),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """What is wrong with a vector is told in one line with where it is; nothing of the file is run."""
    path = tmp_path / "bad.json"
    rows = [vector_row({"op": "nop"}), vector_row({"op": "nop"}) | change]
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(BadInput) as raised:
        read_vectors(path)
    name = "" if "id" in change else " (t)"
    assert str(raised.value).startswith(f"{path}: row 1{name}, {said}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a vector file: "),
        (b"\xff\xfe", "not a vector file: "),
        (b"{}", "not a vector file: expected a list of vectors"),
        (b"[]", "not a vector file: expected a list of vectors"),
        (b"[3]", "row 0, field the row: expected an object, got 3"),
        (b"[" * 100_000, "not a vector file: .*recursion"),
        (b" " * 1_001, "not a vector file: larger than 1,000 bytes"),
    ],
)
def test_foreign_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    """A file that holds something else is not taken for vectors, nor read without an end."""
    if content.isspace():
        monkeypatch.setattr(vectors, "_LARGEST_FILE_BYTES", 1_000)
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_vectors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A vector file that is not there is bad input."""
    with pytest.raises(BadInput, match=r"none\.json: No such file or directory"):
        read_vectors(tmp_path / "none.json")


def test_instructions_lie_one_after_another(make: Any) -> None:
    """A step's instruction follows its set-up; in real mode the set-up of a write is shorter."""
    steps = (write_dr(0, 0x5), write_dr(7, 0x401), {"op": "nop"}, {"op": "nop"})
    assert Layout(make(*steps)).address(Symbol("step", 3)) == 0x1001B
    assert Layout(make(*steps, mode="real")).address(Symbol("step", 3)) == 0xD013


@pytest.mark.parametrize(
    ("fields", "symbol", "address"),
    [
        ({"init": {"db": [0, 0, {"step": 2}, 0]}}, Symbol("step", 2), 0x77),
        ({"init": {"db": [0, 0, {"data": 8}, 0]}}, Symbol("data", 16), 0x7F),
        ({"init": {"db": [0, 0, {"data": 8}, 0]}, "mode": "real"}, Symbol("data", 16), 0x7F),
        ({"init": {"db": [0, 0, 5, 0]}}, Symbol("data", 16), 0x20010),
        ({"init": {"db": [0, 0, 5, 0]}, "mode": "real"}, Symbol("data", 16), 0xF010),
    ],
)
def test_addresses_that_the_expectation_tells_are_taken(
    make: Any, fields: dict[str, Any], symbol: Symbol, address: int
) -> None:
    """Where DR0 to DR3 end as an address that a symbol stands for, the code or data lies there."""
    nop = {"op": "nop"}
    vector = make(nop, nop, nop, expect=FRESH | {"db": [0, 0, 0x77, 0]}, **fields)
    assert Layout(vector).address(symbol) == address


def test_addresses_wrap_around(make: Any) -> None:
    """An offset past the last address reaches the first ones."""
    vector = make({"op": "store", "off": 2**64 - 1, "size": 1})
    values = columns_of(vector, all_rows(vector)).values
    assert values is not None
    assert Layout(vector).data(-1) in values.tolist()


def test_a_write_that_faults_tells_no_address(make: Any) -> None:
    """A register that a faulting write left alone says nothing of the write's operand."""
    raised = [["exc", 13, 0, [0, "insn"], "0xffff0ff0", "0x400"]]
    vector = make(write_dr(2, {"step": 0}), cpl=3, expect=FRESH | {"ev": raised})
    assert Layout(vector).address(Symbol("step", 0)) == 0x1000A


def test_each_instruction_of_a_step_is_fetched(make: Any) -> None:
    """A read is set-up, MOV and store; the store is fetched only if the MOV did not fault."""
    rows = all_rows(make(read_dr(6), {"op": "nop"}))
    assert [(row.kind, row.at, row.marks) for row in rows] == [
        (EventKind.FETCH, Place(0, "pre"), 0),
        (EventKind.FETCH, Place(0, "insn"), 0),
        (EventKind.MOV_FROM_DR, Place(0, "insn"), 0),
        (EventKind.FETCH, Place(0, "post"), Mark.IF_OK),
        (EventKind.FETCH, Place(1, "insn"), 0),
    ]
    assert rows[2].read_step == 0


@pytest.mark.parametrize(
    ("step", "kind", "fields"),
    [
        (write_dr(7, "0x401"), EventKind.MOV_TO_DR, {"arg": 7, "value": 0x401}),
        ({"op": "store", "off": 256}, EventKind.WRITE, {"arg": 4, "value": 0x20100}),
        ({"op": "load", "off": 260, "size": 8}, EventKind.READ, {"arg": 8, "value": 0x20104}),
        ({"op": "cpuid"}, EventKind.CPUID, {"selector": 0}),
        ({"op": "out"}, EventKind.OUT, {"arg": 1, "selector": 0x80}),
        ({"op": "ud2"}, EventKind.EXCEPTION, {"selector": 6}),
    ],
)
def test_each_operation_is_an_event(
    make: Any, step: dict[str, Any], kind: EventKind, fields: dict[str, int]
) -> None:
    """What an instruction does beyond being fetched is one event, after the last fetch."""
    row = all_rows(make(step))[-1]
    assert (row.kind, {name: getattr(row, name) for name in fields}) == (kind, fields)
    assert (row.at, row.after) == (Place(0, "insn"), Place(1, "end"))


def test_the_state_that_a_vector_starts_in_comes_first(make: Any) -> None:
    """CR4.DE is state, and the six registers are set from outside; what is not said is as after reset."""
    init = {"db": [1, {"data": 2}, 3, 4], "dr7": "0x2400"}
    expect = FRESH | {"db": [1, "0x20002", 3, 4]}
    rows = all_rows(make({"op": "nop"}, cr4_de=1, init=init, expect=expect))
    staged = [(0, 1), (1, 0x20002), (2, 3), (3, 4), (4, 0xFFFF0FF0), (5, 0x2400)]
    assert [(row.kind, row.arg, row.value) for row in rows[:-1]] == [
        (EventKind.STATE, 0, 1),
        *((EventKind.STAGE, slot, value) for slot, value in staged),
        (EventKind.SET_DEBUGREGS, 0, 0),
    ]


@pytest.mark.parametrize(("fields", "modes"), [({"cpl": 3}, 3), ({"mode": "real"}, Mode.OPERAND_32), ({}, 0)])
def test_modes_are_those_of_the_vector(make: Any, fields: dict[str, Any], modes: int) -> None:
    """Every event runs at the vector's privilege and operand size."""
    vector = make(read_dr(0), {"op": "nop"}, **fields)
    columns = columns_of(vector, all_rows(vector))
    assert columns.modes is not None
    assert set(columns.modes.tolist()) == {modes}


@pytest.mark.parametrize(
    ("answer", "is_repeated", "is_stored"),
    [
        (QUIET, False, True),
        (FAULT, True, True),
        (Answer(outcome_pb2.STORY_GP, 0), False, False),
        (Answer(outcome_pb2.STORY_UD, 0), False, False),
    ],
)
def test_a_handler_that_retries_repeats_the_access(
    make: Any, answer: Answer, is_repeated: bool, is_stored: bool
) -> None:
    """After a general-detect fault the access is fetched and done again; after any other it is not."""
    talk = conversation(make(read_dr(0), {"op": "nop"}, on_bd="retry"))
    rows = next(talk)
    assert [row.kind for row in rows] == [EventKind.FETCH, EventKind.FETCH, EventKind.MOV_FROM_DR]
    rows = talk.send([QUIET] * (len(rows) - 1) + [answer])
    if is_repeated:
        assert [row.kind for row in rows] == [EventKind.FETCH, EventKind.MOV_FROM_DR]
        rows = talk.send([QUIET, QUIET])
    places = [Place(0, "post")] if is_stored else []
    assert [row.at for row in rows] == [*places, Place(1, "insn")]
    with pytest.raises(StopIteration):
        talk.send([QUIET] * len(rows))


def dr_value(dr6: int, dr7: int) -> int:
    """Return DR6 and DR7 as an exception's story value."""
    return dr6 | dr7 << 32


@pytest.mark.parametrize(
    ("story", "value", "reads", "raised"),
    [
        (outcome_pb2.STORY_READ, 0x1234, {2: 0x1234}, ()),
        (outcome_pb2.STORY_NOT_TAKEN, 0, {}, ()),
        (outcome_pb2.STORY_DB_FAULT, dr_value(6, 7), {2: None}, (Raised(1, None, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_DB_TRAP, dr_value(6, 7), {2: None}, (Raised(1, None, 3, "end", 6, 7),)),
        (outcome_pb2.STORY_UD, dr_value(6, 7), {2: None}, (Raised(6, None, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_GP, dr_value(6, 7), {2: None}, (Raised(13, 0, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_GP_SKIPPED, dr_value(6, 7), {2: None}, (Raised(13, 0, 3, "end", 6, 7),)),
    ],
)
def test_stories_become_reads_and_exceptions(
    story: int, value: int, reads: dict[int, int | None], raised: tuple[Raised, ...]
) -> None:
    """A fault points at its instruction and a trap past it; the access that faulted read nothing."""
    row = Row(EventKind.MOV_FROM_DR, at=Place(2, "insn"), after=Place(3, "end"), read_step=2)
    registers = Registers()
    seen = conform.seen_by_guest([row], [Answer(story, value)], registers)
    assert seen == Seen(reads=reads, raised=raised, registers=registers)


def judged(vector: Vector, got: Seen, undefined: int = 0, **fields: Any) -> conform.Case:
    """Judge what a guest saw under a lane of one policy."""
    registers = report_pb2.DebugRegisters(undefined_dr6=undefined)
    found = report_pb2.Report(
        references=[
            report_pb2.ReferenceReport(vendor=SVM),
            report_pb2.ReferenceReport(vendor=VMX, registers=[registers]),
        ],
        lanes=[report_pb2.LaneReport(policy="lazy", vendor=VMX, **fields)],
    )
    return conform.judge(vector, Layout(vector), found, 0, got)


RULES = [report_pb2.DeclaredCount(rule="RAW_READS"), report_pb2.DeclaredCount(rule="GD_BEFORE_UD")]


@pytest.mark.parametrize(
    ("dr6", "undefined", "fields", "verdict"),
    [
        (0xFFFF0FF0, 0, {}, (True, None, False)),
        (0xFFFF0FF2, 0, {}, (False, None, True)),
        (0xFFFF0FF2, 2, {}, (True, None, False)),
        (0xFFFF0FF2, 4, {"verdict": report_pb2.VERDICT_DIVERGED}, (False, None, True)),
        (
            0xFFFF0FF2,
            0,
            {"verdict": report_pb2.VERDICT_SAME_BUT_DECLARED, "declared": RULES},
            (False, "RAW_READS, GD_BEFORE_UD", False),
        ),
        (
            0xFFFF0FF2,
            0,
            {"verdict": report_pb2.VERDICT_SAME_BUT_DECLARED},
            (False, "final registers", False),
        ),
        (
            0xFFFF0FF0,
            0,
            {"verdict": report_pb2.VERDICT_SAME_BUT_DECLARED, "declared": RULES},
            (True, None, False),
        ),
    ],
)
def test_mismatches_are_declared_or_failures(
    make: Any, dr6: int, undefined: int, fields: dict[str, Any], verdict: tuple[bool, str | None, bool]
) -> None:
    """Undefined bits of DR6 never count, declared deviations are told by rule, all else fails."""
    vector = make(read_dr(6), expect=FRESH | {"reads": {"0": "0xffff0ff0"}})
    got = Seen(reads={0: dr6}, raised=(), registers=Registers(dr6=dr6))
    case = judged(vector, got, undefined, **fields)
    assert (case.is_ok, case.declared, case.has_failed) == verdict
    assert case.got["reads"] == {"0": hex(dr6)}


@pytest.mark.parametrize(
    "fields",
    [
        {"reads": {0: 4}},
        {"reads": {0: None}},
        {"reads": {}},
        {"raised": ()},
        {"raised": (Raised(1, None, 1, "insn", 1, 2), Raised(1, None, 1, "insn", 1, 2))},
        {"raised": (Raised(6, None, 1, "insn", 1, 2),)},
        {"raised": (Raised(1, 0, 1, "insn", 1, 2),)},
        {"raised": (Raised(1, None, 0, "insn", 1, 2),)},
        {"raised": (Raised(1, None, 1, "end", 1, 2),)},
        {"raised": (Raised(1, None, 1, "insn", 3, 2),)},
        {"raised": (Raised(1, None, 1, "insn", 1, 3),)},
        {"registers": Registers(db=(0, 0, 0, 1))},
        {"registers": Registers(dr6=0)},
        {"registers": Registers(dr7=0)},
    ],
)
def test_everything_that_a_vector_expects_is_compared(make: Any, fields: dict[str, Any]) -> None:
    """No part of what is expected can differ unseen."""
    expect = FRESH | {"reads": {"0": "0x3"}, "ev": [["exc", 1, None, [1, "insn"], 1, 2]]}
    vector = make(read_dr(0), {"op": "nop"}, expect=expect)
    right = Seen(reads={0: 3}, raised=(Raised(1, None, 1, "insn", 1, 2),), registers=Registers())
    assert judged(vector, right).is_ok
    assert judged(vector, replace(right, **fields)).has_failed


@pytest.mark.parametrize(
    ("policies", "vendors", "lanes"),
    [
        (["correct"], [VMX, SVM], [("both", VMX), ("both", SVM), ("intel", VMX)]),
        (["all"], [SVM], [("both", SVM), ("wrong", SVM)]),
        (["wrong", "both", "wrong"], [VMX], [("wrong", VMX), ("both", VMX)]),
        (["unknown"], [VMX, SVM], [("unknown", VMX), ("unknown", SVM)]),
    ],
)
def test_lanes_are_policies_on_the_vendors_that_they_exist_on(
    policies: list[str], vendors: list[Any], lanes: list[Any]
) -> None:
    """Groups of policies are spelled out; an unknown name is the hypervisor's to refuse."""
    summaries = [
        hypervisor_pb2.PolicySummary(name="both", vendors=[VMX, SVM], claims_correct=True),
        hypervisor_pb2.PolicySummary(name="intel", vendors=[VMX], claims_correct=True),
        hypervisor_pb2.PolicySummary(name="wrong", vendors=[VMX, SVM]),
    ]
    assert conform.choose_lanes(summaries, policies, vendors) == lanes
    with pytest.raises(BadInput, match="intel: none exists on svm"):
        conform.choose_lanes(summaries, ["intel"], [SVM])


def test_answers_are_kept_for_each_lane_and_the_reference() -> None:
    """Parts of several blocks join up; one that leaves a gap is refused."""
    answers = conform.Answers(1)
    for first, value in ((0, 7), (1, 8)):
        for lane in (0, 1):
            answers.take(
                outcome_pb2.OutcomePart(
                    first_event=first, event_count=1, lane=lane, stories=b"\x01", story_values=[value + lane]
                )
            )
    assert answers.lane(0) == [Answer(1, 7), Answer(1, 8)]
    assert answers.reference(1) == [Answer(1, 9)]
    with pytest.raises(CouldNotFinish, match="outcomes of lane 0 do not go on at event 2"):
        answers.take(outcome_pb2.OutcomePart(first_event=3, lane=0))
    with pytest.raises(CouldNotFinish, match="outcomes of lane 2 of 2"):
        answers.take(outcome_pb2.OutcomePart(first_event=2, lane=2))


def test_answers_must_be_there_for_every_lane() -> None:
    """Where a lane's outcomes are missing, the run could not finish."""
    answers = conform.Answers(1)
    answers.take(outcome_pb2.OutcomePart(event_count=1, lane=0, stories=b"\x01", story_values=[7]))
    with pytest.raises(CouldNotFinish, match="outcomes of lane 1: expected 1 events, got 0"):
        answers.check(1)
    answers.take(outcome_pb2.OutcomePart(event_count=1, lane=1, stories=b"\x01", story_values=[7]))
    answers.check(1)


def test_document_and_text_tell_the_same_counts() -> None:
    """Passed, failed and declared are cases, out is vectors; people see expected and got of failures."""
    vague: dict[str, Any] = {
        "vendor": "vmx",
        "expected": {"dr7": "0x400", "dr6": "0x1"},
        "got": {"dr7": "0x0", "dr6": "0x1"},
    }
    outcome = conform.Outcome(
        cases=[
            conform.Case(name="a", policy="p", is_ok=True, declared=None, **vague),
            conform.Case(name="a", policy="q", is_ok=False, declared="RULE", **vague),
            conform.Case(name="b", policy="p", is_ok=True, declared=None, **vague),
            conform.Case(name="b", policy="q", is_ok=False, declared=None, **vague),
        ],
        out=["c"],
    )
    document = outcome.document()
    assert {name: document[name] for name in ("passed", "failed", "declared", "out", "out_ids")} == {
        "passed": 2,
        "failed": 1,
        "declared": 1,
        "out": 1,
        "out_ids": ["c"],
    }
    assert document["cases"][1] == {
        "id": "a",
        "policy": "q",
        "vendor": "vmx",
        "ok": False,
        "declared": "RULE",
        "expected": vague["expected"],
        "got": vague["got"],
    }
    assert conform.formatted(document, "text", 2).splitlines() == [
        "2 vectors under 2 lanes each: 2 passed, 1 failed, 1 declared",
        "  q declares RULE: 1",
        "1 vectors are out, because they need what is not modelled yet:",
        "  c",
        "FAILED b under q on vmx",
        '  dr7: expected "0x400"',
        '            got "0x0"',
    ]
    assert json.loads(conform.formatted(document, "json", 2)) == document
    assert conform.formatted(document, "csv", 2).splitlines()[1:3] == ["a,p,vmx,1,", "a,q,vmx,0,RULE"]


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """Return a connection to a hypervisor of our own."""
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as connected:
        yield connected


def test_every_vector_of_mov_dr_and_nop_passes_under_the_default_policy(hypervisor: Hypervisor) -> None:
    """What real processors answer is what guests of the default policy see, on both vendors."""
    outcome = conform.run_vectors(hypervisor, read_vectors(SHIPPED), [("kvm-6.14", VMX), ("kvm-6.14", SVM)])
    assert [case for case in outcome.cases if not case.is_ok] == []
    assert (len(outcome.cases), len(outcome.out)) == (240, 11)


def test_a_hypervisor_that_leaves_outcomes_out_is_told(
    hypervisor: Hypervisor, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane without its outcomes could not finish, whatever its report says."""
    take = conform.Answers.take

    def leave_out(answers: conform.Answers, part: outcome_pb2.OutcomePart) -> None:
        if part.lane:
            take(answers, part)

    monkeypatch.setattr(conform.Answers, "take", leave_out)
    with pytest.raises(CouldNotFinish, match=r"outcomes of lane 0: expected \d+ events, got 0"):
        conform.run_vectors(hypervisor, [make(read_dr(7))], [("kvm-6.14", VMX)])


def test_a_vector_that_expects_something_else_fails(hypervisor: Hypervisor, make: Any) -> None:
    """A wrong expectation is not passed over: the comparison can fail end to end."""
    vector = make(write_dr(0, "0x5"), read_dr(0), expect=FRESH | {"db": [4, 0, 0, 0], "reads": {"1": 4}})
    (case,) = conform.run_vectors(hypervisor, [vector], [("kvm-6.14", VMX)]).cases
    assert case.has_failed
    assert (case.got["db"][0], case.got["reads"]) == ("0x5", {"1": "0x5"})


@pytest.mark.parametrize(("rtm", "dr6"), [(0, "0xffff0ff0"), (1, "0xfffe0ff0")])
def test_rtm_is_a_feature_of_the_vectors_cpu(hypervisor: Hypervisor, make: Any, rtm: int, dr6: str) -> None:
    """With RTM, DR6 bit 16 can be cleared."""
    expect = FRESH | {"dr6": dr6, "reads": {"1": dr6}}
    vector = make(write_dr(6, 0), read_dr(6), rtm=rtm, expect=expect)
    (case,) = conform.run_vectors(hypervisor, [vector], [("kvm-6.14", VMX)]).cases
    assert case.got == case.expected
