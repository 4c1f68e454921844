"""What a lane's guest saw of a vector, what the lane cost, and whether both are as expected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from exitlab.debugreg import VECTOR_DB, VECTOR_GP, VECTOR_UD
from exitlab.exit_reasons import handler_name
from exitlab.v1 import outcome_pb2, report_pb2
from guest_svc.results import vendor_name
from guest_svc.vectors.layout import Layout, Place
from guest_svc.vectors.model import LaneName, Raised, Registers, Seen, Vector
from guest_svc.vectors.reading import BILL_COUNTS, SIGNAL
from guest_svc.vectors.rows import Answer, Row

_VECTOR_BP: Final = 3
# Vector, error code, and whether the saved RIP is past the instruction, of each exception's story.
_EXCEPTIONS: Final[dict[int, tuple[int, int | None, bool]]] = {
    outcome_pb2.STORY_DB_FAULT: (VECTOR_DB, None, False),
    outcome_pb2.STORY_DB_TRAP: (VECTOR_DB, None, True),
    outcome_pb2.STORY_UD: (VECTOR_UD, None, False),
    outcome_pb2.STORY_GP: (VECTOR_GP, 0, False),
    outcome_pb2.STORY_GP_SKIPPED: (VECTOR_GP, 0, True),
    outcome_pb2.STORY_BP: (_VECTOR_BP, None, True),
}
_DR6_NUMBERS: Final = frozenset({4, 6})  # DR4 where it can be read at all is DR6
_LOW_32: Final = 0xFFFF_FFFF
_LOW_64: Final = 2**64 - 1
_OPERATIONS: Final = frozenset({"dr_reads", "dr_writes", "vmreads", "vmwrites"})


RESULTS: Final = ("passed", "failed", "declared", "refused", "known_bug")


@dataclass(frozen=True, slots=True)
class Case:
    """One vector under one lane."""

    name: str
    policy: str
    vendor: str
    is_ok: bool
    declared: str | None
    expected: dict[str, Any]
    got: dict[str, Any]
    is_refused: bool = False  # the policy does not take what the vector does from outside
    note: str | None = None
    file: str = ""
    claims_correct: bool = True  # the policy's own claim
    has_known_bug: bool = False  # what is as expected is what ``differs`` says, not the architecture's answer
    bill: dict[str, int] = field(default_factory=dict)  # exits by reason, then all that a bill may state
    debug_exits: list[list[Any]] = field(default_factory=list)  # what a host debugger was told, how often

    @property
    def result(self) -> str:
        """What came of it: one of ``RESULTS``."""
        if self.is_refused:
            return "refused"
        if self.is_ok:
            return "known_bug" if self.has_known_bug else "passed"
        return "failed" if self.declared is None else "declared"

    @property
    def has_failed(self) -> bool:
        """Whether the mismatch is one that nobody declared."""
        return self.result == "failed"


@dataclass(slots=True)
class Undefined:
    """Bits of DR6 that the architecture leaves undefined, where they show."""

    reads: dict[int, int] = field(default_factory=dict)
    raised: list[int] = field(default_factory=list)
    final: int = 0


def seen_by_guest(rows: Sequence[Row], answers: Sequence[Answer], final: Sequence[Registers]) -> Seen:
    """Return what a guest saw of its rows; ``final`` are the registers of its vCPUs at the end."""
    reads: dict[int, int | None] = {}
    digests: dict[int, Registers | int] = {}
    raised: list[Raised] = []
    for row, answer in zip(rows, answers, strict=True):
        if answer.story == outcome_pb2.STORY_READ and row.read_step is not None:
            reads[row.read_step] = answer.value
        elif answer.story == outcome_pb2.STORY_REGISTERS and row.read_step is not None:
            digests[row.read_step] = answer.value
        elif (exception := _exception(row, answer)) is not None:
            raised.append(exception)
            if row.read_step is not None:
                reads[row.read_step] = None
    others = dict(enumerate(final[1:], start=1))
    return Seen(reads=reads, raised=tuple(raised), registers=final[0], digests=digests, others=others)


def _exception(row: Row, answer: Answer) -> Raised | None:
    is_exit = answer.story == outcome_pb2.STORY_VMEXIT
    if not is_exit and answer.story not in _EXCEPTIONS:
        return None
    vector, error_code, is_past = (None, None, False) if is_exit else _EXCEPTIONS[answer.story]
    place = (row.after if is_past else row.at) or Place(-1, "host")
    dr6, dr7 = answer.value & _LOW_32, answer.value >> 32
    kind = "vmexit" if is_exit else "exc"
    return Raised(vector, error_code, place.step, place.where, dr6, dr7, kind=kind)


def undefined_bits(rows: Sequence[Row], reference: Sequence[Answer]) -> Undefined:
    """Return the bits of DR6 that the architecture's own answers leave undefined."""
    found = Undefined()
    for row, answer in zip(rows, reference, strict=True):
        if answer.story == outcome_pb2.STORY_READ and row.read_step is not None:
            found.reads[row.read_step] = answer.undefined
        elif _exception(row, answer) is not None:
            found.raised.append(answer.undefined)
    return found


def judge(
    vector: Vector, layout: Layout, report: report_pb2.Report, number: int, got: Seen, undefined: Undefined
) -> Case:
    """Compare what a lane's guest saw, and what it cost, with what is expected.

    Undefined bits of DR6 are left out, and so is a read that the vector does not speak of.
    """
    found = report.lanes[number]
    lane: LaneName = (found.policy, vendor_name(found.vendor))
    undefined = Undefined(undefined.reads, undefined.raised, _undefined_dr6(report, found))
    expected = _described(vector, vector.expected(lane), layout, undefined)
    has_known_bug = expected != _described(vector, vector.expect, layout, undefined)
    seen = _described(vector, got, layout, undefined)
    for name in ("reads", "registers", "vcpus"):
        seen[name] = {key: value for key, value in seen[name].items() if key in expected[name]}
        if name != "reads" and not expected[name]:
            del expected[name], seen[name]
    is_same_story = expected == seen
    bill, told = _bill(found), _debug_exits(found)
    counted_expected, counted = _counted(vector, lane, bill, told)
    has_diverged = found.verdict == report_pb2.VERDICT_DIVERGED and lane not in vector.differs
    is_as_counted = counted_expected == counted
    declared = None
    if not is_same_story and is_as_counted and found.verdict == report_pb2.VERDICT_SAME_BUT_DECLARED:
        declared = ", ".join(rule.rule for rule in found.declared) or None
    return Case(
        name=vector.name,
        policy=found.policy,
        vendor=lane[1],
        is_ok=is_same_story and is_as_counted and not has_diverged,
        declared=declared,
        expected=expected | counted_expected,
        got=seen | counted,
        is_refused=found.refused_controls > 0,
        note=found.note or (found.first_divergence.what if has_diverged else None),
        file=vector.file,
        claims_correct=found.claims_correct,
        has_known_bug=has_known_bug,
        bill=bill,
        debug_exits=told,
    )


def _counted(
    vector: Vector, lane: LaneName, whole_bill: Mapping[str, int], told: list[list[Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is expected of a lane beside its guest's story, and the same of what came."""
    expected: dict[str, Any] = {}
    got: dict[str, Any] = {}
    if (bill := vector.bills.get(lane)) is not None:
        expected["bill"] = {name: count for name, count in bill.items() if count or name in BILL_COUNTS}
        got["bill"] = {
            name: count for name, count in whole_bill.items() if name in bill or name not in BILL_COUNTS
        }
    if (exits := vector.debug_exits.get(lane)) is not None:
        expected["debug_exits"] = [
            [vector_number, hex(dr6), hex(dr7), count]
            for (vector_number, dr6, dr7), count in Counter(exits).items()
        ]
        got["debug_exits"] = told
    return expected, got


def _debug_exits(found: report_pb2.LaneReport) -> list[list[Any]]:
    """Return exception, DR6, DR7 and count of what a host debugger was told, by first occurrence."""
    return [[told.exception, hex(told.dr6), hex(told.dr7), told.count] for told in found.debug_exits]


def _bill(found: report_pb2.LaneReport) -> dict[str, int]:
    """Return a lane's exits by the name of the handler, the same on both vendors, and its other counts."""
    counts: Counter[str] = Counter()
    for row in found.patterns:
        if row.account == report_pb2.ACCOUNT_EXIT:
            counts[handler_name(found.vendor, row.reason)] += row.count
        elif row.account == report_pb2.ACCOUNT_SIGNAL:
            counts[SIGNAL] += row.count
    return dict(sorted(counts.items())) | {name: _count(found, name) for name in BILL_COUNTS}


def _count(found: report_pb2.LaneReport, name: str) -> int:
    """Return one of a lane's other counts."""
    if name == "windows":
        return sum(vcpu.windows for vcpu in found.vcpus)
    if name == "leaks":
        return sum(leak.count for leak in found.leaks)
    if name not in _OPERATIONS:
        return int(getattr(found, name))
    parts = ((getattr(row.synchronization, name), getattr(row.standing, name), row) for row in found.patterns)
    return sum((one + other) * row.count for one, other, row in parts)


def _undefined_dr6(report: report_pb2.Report, found: report_pb2.LaneReport) -> int:
    """Return the bits of the final DR6 that the lane's own reference leaves undefined."""
    for reference in report.references:
        if (reference.vendor, reference.features) == (found.vendor, found.features) and reference.registers:
            return reference.registers[0].undefined_dr6
    return 0


def _described(vector: Vector, seen: Seen, layout: Layout, undefined: Undefined) -> dict[str, Any]:
    """Return what was seen as the vector format writes it, with undefined bits of DR6 taken out."""
    reads = {}
    for step, value in sorted(seen.reads.items()):
        mask = undefined.reads.get(step, 0) if vector.steps[step].register in _DR6_NUMBERS else 0
        reads[str(step)] = None if value is None else hex(value & ~mask)
    masks = [*undefined.raised, *(0 for _ in seen.raised)]
    return {
        "reads": reads,
        "ev": [
            [
                raised.kind,
                raised.vector,
                raised.error_code,
                [raised.step, raised.where],
                hex(raised.dr6 & ~mask),
                hex(raised.dr7),
            ]
            for raised, mask in zip(seen.raised, masks, strict=False)
        ],
        **_registers(seen.registers, layout, undefined.final),
        "registers": {
            str(step): hex(value if isinstance(value, int) else digest(value, layout))
            for step, value in sorted(seen.digests.items())
        },
        "vcpus": {str(vcpu): _registers(other, layout, 0) for vcpu, other in sorted(seen.others.items())},
    }


def _registers(registers: Registers, layout: Layout, undefined: int) -> dict[str, Any]:
    return {
        "db": [hex(layout.address(slot)) for slot in registers.db],
        "dr6": hex(registers.dr6 & ~undefined),
        "dr7": hex(registers.dr7),
    }


def digest(registers: Registers, layout: Layout) -> int:
    """Return the number that stands for six registers where the host reads them, as docs/model.md says."""
    values = (*(layout.address(slot) for slot in registers.db), registers.dr6, registers.dr7)
    factors = (1, 3, 5, 7, 9, 11)
    total = sum(value * factor for value, factor in zip(values, factors, strict=True))
    return total * 0x9E37_79B9_7F4A_7C15 & _LOW_64
