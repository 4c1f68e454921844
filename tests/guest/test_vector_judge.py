"""What a guest saw of a vector, and how it is compared with what is expected."""

from dataclasses import replace
from typing import Any

import pytest

from exitlab.events import EventKind
from exitlab.exit_reasons import SVM_WRITE_DR0, VMX_DR_ACCESS
from exitlab.v1 import outcome_pb2, policy_pb2, report_pb2
from guest_svc.vectors import Raised, Registers, Seen, Vector
from guest_svc.vectors.judge import Case, Undefined, digest, judge, seen_by_guest, undefined_bits
from guest_svc.vectors.layout import Layout, Place
from guest_svc.vectors.rows import Answer, Row
from hypervisor_svc.arch.debug_registers import U64, registers_digest
from tests.guest.vector_rows import FRESH, NOP, read_dr

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM
READ = Row(EventKind.MOV_FROM_DR, at=Place(2, "insn"), after=Place(3, "end"), read_step=2)
SIX_AND_SEVEN = 6 | 7 << 32


@pytest.mark.parametrize(
    ("story", "value", "reads", "raised"),
    [
        (outcome_pb2.STORY_READ, 0x1234, {2: 0x1234}, ()),
        (outcome_pb2.STORY_NOT_TAKEN, 0, {}, ()),
        (outcome_pb2.STORY_DB_FAULT, SIX_AND_SEVEN, {2: None}, (Raised(1, None, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_DB_TRAP, SIX_AND_SEVEN, {2: None}, (Raised(1, None, 3, "end", 6, 7),)),
        (outcome_pb2.STORY_UD, SIX_AND_SEVEN, {2: None}, (Raised(6, None, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_GP, SIX_AND_SEVEN, {2: None}, (Raised(13, 0, 2, "insn", 6, 7),)),
        (outcome_pb2.STORY_GP_SKIPPED, SIX_AND_SEVEN, {2: None}, (Raised(13, 0, 3, "end", 6, 7),)),
        (outcome_pb2.STORY_BP, SIX_AND_SEVEN, {2: None}, (Raised(3, None, 3, "end", 6, 7),)),
        (
            outcome_pb2.STORY_VMEXIT,
            SIX_AND_SEVEN,
            {2: None},
            (Raised(None, None, 2, "insn", 6, 7, kind="vmexit"),),
        ),
    ],
)
def test_stories_become_reads_and_exceptions(
    story: int, value: int, reads: dict[int, int | None], raised: tuple[Raised, ...]
) -> None:
    """A fault points at its instruction and a trap past it; the access that faulted read nothing."""
    final = [Registers(), Registers(dr6=1)]
    seen = seen_by_guest([READ], [Answer(story, value)], final)
    assert seen == Seen(reads=reads, raised=raised, registers=final[0], others={1: final[1]})


def test_registers_that_the_host_reads_are_a_digest() -> None:
    """The digest of expected registers is the hypervisor's own."""
    seen = seen_by_guest([READ], [Answer(outcome_pb2.STORY_REGISTERS, 5)], [Registers()])
    assert seen.digests == {2: 5}
    registers = Registers((2**64 - 1, 2, 3, 4), 5, 6)
    words = [U64(word) for word in (*registers.db, registers.dr6, registers.dr7) if isinstance(word, int)]
    assert digest(registers, Layout(Vector("t"))) == int(registers_digest(*words))


def test_undefined_bits_are_those_of_the_architectures_own_answers() -> None:
    """They lie beside each read and each exception."""
    stories = (outcome_pb2.STORY_READ, outcome_pb2.STORY_DB_TRAP, outcome_pb2.STORY_DB_FAULT, 0)
    answers = [Answer(story, 0, undefined=bit) for bit, story in enumerate(stories, start=1)]
    found = undefined_bits([READ] * len(stories), answers)
    assert (found.reads, found.raised, found.final) == ({2: 1}, [2, 3], 0)


def judged(vector: Vector, got: Seen, undefined: Undefined | None = None, **fields: Any) -> Case:
    """Judge what a guest saw under a lane of one policy."""
    fields.setdefault("vendor", VMX)
    undefined = undefined or Undefined()
    registers = report_pb2.DebugRegisters(undefined_dr6=undefined.final)
    found = report_pb2.Report(
        references=[
            report_pb2.ReferenceReport(vendor=SVM),
            report_pb2.ReferenceReport(vendor=VMX, registers=[registers]),
        ],
        lanes=[report_pb2.LaneReport(policy="lazy", **fields)],
    )
    return judge(vector, Layout(vector), found, 0, got, undefined)


RULES = [report_pb2.DeclaredCount(rule="RAW_READS"), report_pb2.DeclaredCount(rule="GD_BEFORE_UD")]
DECLARED: dict[str, Any] = {"verdict": report_pb2.VERDICT_SAME_BUT_DECLARED, "declared": RULES}


@pytest.mark.parametrize(
    ("dr6", "undefined", "fields", "verdict"),
    [
        (0xFFFF0FF0, 0, {}, (True, None, False)),
        (0xFFFF0FF2, 0, {}, (False, None, True)),
        (0xFFFF0FF2, 2, {}, (True, None, False)),
        (0xFFFF0FF2, 4, {"verdict": report_pb2.VERDICT_DIVERGED}, (False, None, True)),
        (0xFFFF0FF0, 0, {"verdict": report_pb2.VERDICT_DIVERGED}, (False, None, True)),
        (0xFFFF0FF2, 0, DECLARED, (False, "RAW_READS, GD_BEFORE_UD", False)),
        (0xFFFF0FF2, 0, {"verdict": report_pb2.VERDICT_SAME_BUT_DECLARED}, (False, None, True)),
        (0xFFFF0FF0, 0, DECLARED, (True, None, False)),
        (0xFFFF0FF2, 0, {"refused_controls": 1}, (False, None, False)),
    ],
)
def test_mismatches_are_declared_refused_or_failures(
    make: Any, dr6: int, undefined: int, fields: dict[str, Any], verdict: tuple[bool, str | None, bool]
) -> None:
    """Undefined bits of DR6 never count, declared deviations are told by rule, all else fails."""
    vector = make(read_dr(6), expect=FRESH | {"reads": {"0": "0xffff0ff0"}})
    got = Seen(reads={0: dr6}, raised=(), registers=Registers(dr6=dr6))
    case = judged(vector, got, Undefined({0: undefined}, [], undefined), **fields)
    assert (case.is_ok, case.declared, case.has_failed) == verdict


def test_undefined_bits_count_where_they_are_written_again(make: Any) -> None:
    """Bits are undefined in one answer and defined in the next."""
    expect = FRESH | {"reads": {"0": 2, "1": 2}, "ev": [["exc", 1, None, [1, "insn"], 2, 0]] * 2}
    vector = make(read_dr(6), read_dr(6), expect=expect)
    raised = tuple(Raised(1, None, 1, "insn", dr6, 0) for dr6 in (0, 2))
    got = Seen(reads={0: 0, 1: 2}, raised=raised, registers=Registers())
    assert judged(vector, got, Undefined({0: 2}, [2, 0], 0)).is_ok
    assert not judged(vector, got, Undefined({0: 2}, [0, 2], 0)).is_ok
    assert not judged(vector, got, Undefined({1: 2}, [2, 0], 0)).is_ok


RIGHT = Seen(
    reads={0: 3},
    raised=(Raised(1, None, 1, "insn", 1, 2),),
    registers=Registers(),
    digests={1: Registers(dr7=3)},
    others={1: Registers(dr6=4)},
)


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
        {"raised": (Raised(1, None, 1, "insn", 1, 2, kind="vmexit"),)},
        {"registers": Registers(db=(0, 0, 0, 1))},
        {"registers": Registers(dr6=0)},
        {"registers": Registers(dr7=0)},
        {"digests": {1: 5}},
        {"digests": {}},
        {"others": {1: Registers()}},
    ],
)
def test_everything_that_a_vector_expects_is_compared(make: Any, fields: dict[str, Any]) -> None:
    """No part of what is expected can differ unseen."""
    expect = FRESH | {"reads": {"0": "0x3"}, "ev": [["exc", 1, None, [1, "insn"], 1, 2]]}
    expect |= {"registers": {"1": {"dr7": 3}}, "vcpus": {"1": {"dr6": 4}}}
    vector = make(read_dr(0), NOP, expect=expect, cpus=[0, 1])
    assert judged(vector, RIGHT).is_ok
    assert judged(vector, replace(RIGHT, **fields)).has_failed


def test_what_a_vector_does_not_speak_of_is_not_compared(make: Any) -> None:
    """Other reads, other vCPUs and what the host reads may be whatever they are."""
    vector = make(read_dr(0), NOP, expect=FRESH | {"ev": [["exc", 1, None, [1, "insn"], 1, 2]]}, cpus=[0, 1])
    case = judged(vector, RIGHT)
    assert case.is_ok
    assert list(case.got) == ["reads", "ev", "db", "dr6", "dr7"]


def pattern(reason: int, count: int, **fields: Any) -> report_pb2.PatternCount:
    """Return a row of a bill."""
    fields.setdefault("account", report_pb2.ACCOUNT_EXIT)
    return report_pb2.PatternCount(reason=reason, count=count, **fields)


OPERATIONS: dict[str, Any] = {
    "synchronization": policy_pb2.OperationCounts(dr_writes=5, dr_reads=1),
    "standing": policy_pb2.OperationCounts(dr_writes=2, vmreads=3, vmwrites=4),
}
BILLED: dict[str, Any] = {
    "patterns": [
        pattern(VMX_DR_ACCESS, 2, **OPERATIONS),
        pattern(VMX_DR_ACCESS, 1),
        pattern(0, 9, account=report_pb2.ACCOUNT_HOST, standing=policy_pb2.OperationCounts(dr_writes=1)),
        pattern(0, 3, account=report_pb2.ACCOUNT_SIGNAL),
    ],
    "vcpus": [report_pb2.VcpuReport(windows=1), report_pb2.VcpuReport(windows=3)],
    "leaks": [report_pb2.LeakCount(count=2)],
    "latent_hazards": 7,
}
COUNTS = {"windows": 4, "dr_writes": 23, "dr_reads": 2, "vmreads": 6, "vmwrites": 8, "leaks": 2}
BILL = {"DR_ACCESS": 3, "SIGNAL": 3, "HLT": 0, "latent_hazards": 7} | COUNTS


def test_a_bill_states_all_exits_and_some_counts(make: Any) -> None:
    """Exits of every reason are compared, other counts where they are stated; no bill, no comparison."""
    right = Seen({}, (), Registers())
    assert judged(make(NOP, bill={"lazy/svm": {}}), right, **BILLED).is_ok
    assert judged(make(NOP, bill={"lazy/vmx": BILL}), right, **BILLED).is_ok
    for name in BILL:
        case = judged(make(NOP, bill={"lazy": BILL | {name: 99}}), right, **BILLED | DECLARED)
        assert (case.has_failed, case.got["bill"].get(name, 0)) == (True, BILL[name])
    assert judged(make(NOP, bill={"lazy": {"DR_ACCESS": 3}}), right, **BILLED).has_failed


def test_exits_have_one_name_on_both_vendors(make: Any) -> None:
    """SVM has sixteen codes for what VMX calls one reason."""
    fields: dict[str, Any] = {"vendor": SVM, "patterns": [pattern(SVM_WRITE_DR0 + 7, 1), pattern(0x60, 2)]}
    vector = make(NOP, bill={"lazy": {"DR_ACCESS": 1, "EXTERNAL_INTERRUPT": 2}})
    assert judged(vector, Seen({}, (), Registers()), **fields).is_ok


@pytest.mark.parametrize(
    ("exits", "is_ok"),
    [
        ([[1, 3, 4], [3, 0, 0], [1, 3, 4]], True),
        ([[3, 0, 0], [1, 3, 4], [1, 3, 4]], False),
        ([[1, 3, 4], [3, 0, 0]], False),
        ([[1, 3, 5], [3, 0, 0], [1, 3, 5]], False),
    ],
)
def test_a_debugger_is_told_what_is_stated(make: Any, exits: list[list[int]], is_ok: bool) -> None:
    """Contents are compared in the order of their first occurrence, each with how often it came."""
    told = [
        report_pb2.DebugExit(exception=1, dr6=3, dr7=4, count=2),
        report_pb2.DebugExit(exception=3, count=1),
    ]
    case = judged(make(NOP, debug_exits={"lazy": exits}), Seen({}, (), Registers()), debug_exits=told)
    assert case.is_ok == is_ok


def test_a_lane_that_is_to_differ_may_diverge(make: Any) -> None:
    """A known bug is held to what it shows, and what the architecture shows would be a failure."""
    vector = make(NOP, differs={"lazy": {"dr6": 5}})
    diverged: dict[str, Any] = {"verdict": report_pb2.VERDICT_DIVERGED}
    assert judged(vector, Seen({}, (), Registers(dr6=5)), **diverged).result == "known_bug"
    assert judged(make(NOP, differs={"lazy": {"dr7": "0x400"}}), Seen({}, (), Registers())).result == "passed"
    assert judged(vector, Seen({}, (), Registers()), **diverged).has_failed
    finding = report_pb2.Finding(what="reads something else")
    case = judged(make(NOP), Seen({}, (), Registers()), first_divergence=finding, **diverged)
    assert (case.has_failed, case.note) == (True, "reads something else")
