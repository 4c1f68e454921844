"""Runs vector files under chosen policies and compares what their guests saw with what is expected.

Each vector is a session of its own, with a lane for each policy and vendor. A mismatch is *declared*
if the hypervisor finds that the lane differs from the architecture only by deviations that its
policy declares; any other mismatch is a failure. Vectors that need what the model does not have are
*out*, by name.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from exitlab.debugreg import VECTOR_DB
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.results import CORRECT_POLICIES, EVERY_POLICY, check_report, vendor_name
from guest_svc.run import lane, session_label
from guest_svc.stream import EventStream, Hypervisor
from guest_svc.vectors import Raised, Registers, Seen, Vector
from guest_svc.vectors.program import COLUMNS, Answer, Layout, Place, Row, columns_of, conversation

LaneChoice = tuple[str, policy_pb2.Vendor.ValueType]

_VECTOR_UD: Final = 6
_VECTOR_GP: Final = 13
# Vector, error code, and whether the saved RIP is past the instruction, of each exception's story.
_EXCEPTIONS: Final[dict[int, tuple[int, int | None, bool]]] = {
    outcome_pb2.STORY_DB_FAULT: (VECTOR_DB, None, False),
    outcome_pb2.STORY_DB_TRAP: (VECTOR_DB, None, True),
    outcome_pb2.STORY_UD: (_VECTOR_UD, None, False),
    outcome_pb2.STORY_GP: (_VECTOR_GP, 0, False),
    outcome_pb2.STORY_GP_SKIPPED: (_VECTOR_GP, 0, True),
}
_DR6_NUMBERS: Final = frozenset({4, 6})  # DR4 where it can be read at all is DR6
_LOW_32: Final = 0xFFFF_FFFF


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

    @property
    def has_failed(self) -> bool:
        """Whether the mismatch is one that nobody declared."""
        return not self.is_ok and self.declared is None


@dataclass(slots=True)
class Outcome:
    """What a run of vectors found."""

    cases: list[Case] = field(default_factory=list)
    out: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[Case]:
        """The cases that failed."""
        return [case for case in self.cases if case.has_failed]

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``conform``."""
        passed = sum(case.is_ok for case in self.cases)
        failed = len(self.failures)
        return {
            "passed": passed,
            "failed": failed,
            "declared": len(self.cases) - passed - failed,
            "out": len(self.out),
            "out_ids": self.out,
            "cases": [
                {
                    "id": case.name,
                    "policy": case.policy,
                    "vendor": case.vendor,
                    "ok": case.is_ok,
                    "declared": case.declared,
                    "expected": case.expected,
                    "got": case.got,
                }
                for case in self.cases
            ],
        }


def formatted(document: Mapping[str, Any], output: str, lanes: int) -> str:
    """Return what a run of vectors under ``lanes`` lanes found, as text, json or csv."""
    if output == "json":
        return json.dumps(document, indent=2) + "\n"
    return conform_csv(document) if output == "csv" else conform_text(document, lanes)


def conform_text(document: Mapping[str, Any], lanes: int) -> str:
    """Return what a run of vectors found: counts, then expected and got of each failure."""
    counts = ", ".join(f"{document[name]:,} {name}" for name in ("passed", "failed", "declared"))
    ran = len(document["cases"]) // lanes
    lines = [f"{ran:,} vectors under {lanes} lanes each: {counts}"]
    rules = Counter((case["policy"], case["declared"]) for case in document["cases"] if case["declared"])
    lines += [f"  {policy} declares {rule}: {count}" for (policy, rule), count in sorted(rules.items())]
    if document["out"]:
        lines.append(f"{document['out']:,} vectors are out, because they need what is not modelled yet:")
        lines += [f"  {name}" for name in document["out_ids"]]
    for case in document["cases"]:
        if case["ok"] or case["declared"] is not None:
            continue
        lines.append(f"FAILED {case['id']} under {case['policy']} on {case['vendor']}")
        for name, expected in case["expected"].items():
            if case["got"][name] != expected:
                lines.append(f"  {name}: expected {json.dumps(expected)}")
                lines.append(f"  {' ' * len(name)}       got {json.dumps(case['got'][name])}")
    return "\n".join(lines) + "\n"


def conform_csv(document: Mapping[str, Any]) -> str:
    """Return a row for each vector and lane."""
    out = io.StringIO()
    names = ("id", "policy", "vendor", "ok", "declared")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for case in document["cases"]:
        writer.writerow((case["id"], case["policy"], case["vendor"], int(case["ok"]), case["declared"] or ""))
    return out.getvalue()


def choose_lanes(
    summaries: Sequence[hypervisor_pb2.PolicySummary],
    policies: Sequence[str],
    vendors: Sequence[policy_pb2.Vendor.ValueType],
) -> list[LaneChoice]:
    """Return a lane for each policy on each of ``vendors`` that it exists on.

    Raises:
        BadInput: No lane is left.

    """
    existing = {summary.name: summary.vendors for summary in summaries}
    groups = {
        EVERY_POLICY: [summary.name for summary in summaries],
        CORRECT_POLICIES: [summary.name for summary in summaries if summary.claims_correct],
    }
    names = dict.fromkeys(name for asked in policies for name in groups.get(asked, [asked]))
    # A name that the hypervisor does not have goes to it all the same: it knows the near matches.
    lanes = [(name, vendor) for name in names for vendor in vendors if vendor in existing.get(name, vendors)]
    if not lanes:
        raise BadInput(f"{', '.join(policies)}: none exists on {', '.join(map(vendor_name, vendors))}")
    return lanes


def run_vectors(hypervisor: Hypervisor, vectors: Iterable[Vector], lanes: Sequence[LaneChoice]) -> Outcome:
    """Run vectors, each as a session of its own over one connection."""
    outcome = Outcome()
    for vector in vectors:
        if vector.is_out:
            outcome.out.append(vector.name)
        else:
            outcome.cases += _run_vector(hypervisor, vector, lanes)
    return outcome


def _run_vector(hypervisor: Hypervisor, vector: Vector, lanes: Sequence[LaneChoice]) -> list[Case]:
    asked = [lane(policy, vendor, has_rtm=vector.has_rtm) for policy, vendor in lanes]
    session = hypervisor.create_session(
        hypervisor_pb2.SessionConfig(
            lanes=asked,
            columns=[int(column) for column in COLUMNS],  # type: ignore[misc]  # stubs want their own enum
            vcpus=1,
            breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
            leading_vendor=lanes[0][1],
            leading_features=policy_pb2.CpuFeatures(rtm=vector.has_rtm),
            outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL,
            label=session_label(vector.name),
        )
    )
    answers = Answers(len(lanes))
    rows: list[Row] = []
    with EventStream(hypervisor, session, COLUMNS, answers.take) as stream:
        talk = conversation(vector)
        batch = next(talk, None)
        while batch is not None:
            rows += batch
            stream.send(columns_of(vector, batch))
            stream.wait_until_applied()
            answers.check(len(rows))
            try:
                batch = talk.send(answers.reference(len(rows) - len(batch)))
            except StopIteration:
                batch = None
        crcs = stream.crcs
    report = hypervisor.finish_session(session.session_id, len(rows), crcs)
    check_report(report, asked, vcpus=1)
    layout = Layout(vector)
    return [
        judge(
            vector, layout, report, number, seen_by_guest(rows, answers.lane(number), final_registers(found))
        )
        for number, found in enumerate(report.lanes)
    ]


class Answers:
    """Stories of all events of a session: one column for each lane, and one for the reference."""

    def __init__(self, lanes: int) -> None:
        """Expect outcomes of ``lanes`` lanes and of the leading reference."""
        self._columns: list[list[Answer]] = [[] for _ in range(lanes + 1)]

    def take(self, part: outcome_pb2.OutcomePart) -> None:
        """Take in a part; each lane's parts come in order."""
        if part.lane >= len(self._columns):
            raise CouldNotFinish(f"outcomes of lane {part.lane} of {len(self._columns)}")
        column = self._columns[part.lane]
        if part.first_event != len(column) or len(part.stories) != len(part.story_values):
            raise CouldNotFinish(f"outcomes of lane {part.lane} do not go on at event {len(column)}")
        column += [Answer(story, value) for story, value in zip(part.stories, part.story_values, strict=True)]

    def check(self, events: int) -> None:
        """Refuse outcomes that are not there for every lane, up to ``events`` events."""
        for number, column in enumerate(self._columns):
            if len(column) != events:
                raise CouldNotFinish(
                    f"outcomes of lane {number}: expected {events} events, got {len(column)}"
                )

    def lane(self, number: int) -> list[Answer]:
        """Return what a lane's guest was shown."""
        return self._columns[number]

    def reference(self, first_event: int) -> list[Answer]:
        """Return what the architecture shows, from an event on."""
        return self._columns[-1][first_event:]


def final_registers(lane_report: report_pb2.LaneReport) -> Registers:
    """Return the registers as guest MOVs would read them at the end."""
    registers = lane_report.vcpus[0].registers
    return Registers(db=tuple(registers.db), dr6=registers.dr6, dr7=registers.dr7)


def seen_by_guest(rows: Sequence[Row], answers: Sequence[Answer], registers: Registers) -> Seen:
    """Return what a guest saw of its rows."""
    reads: dict[int, int | None] = {}
    raised: list[Raised] = []
    for row, answer in zip(rows, answers, strict=True):
        if answer.story == outcome_pb2.STORY_READ and row.read_step is not None:
            reads[row.read_step] = answer.value
        elif answer.story in _EXCEPTIONS:
            vector, error_code, is_past = _EXCEPTIONS[answer.story]
            place = (row.after if is_past else row.at) or Place(-1, "host")
            dr6, dr7 = answer.value & _LOW_32, answer.value >> 32
            raised.append(Raised(vector, error_code, place.step, place.where, dr6, dr7))
            if row.read_step is not None:
                reads[row.read_step] = None
    return Seen(reads=reads, raised=tuple(raised), registers=registers)


def judge(vector: Vector, layout: Layout, report: report_pb2.Report, number: int, got: Seen) -> Case:
    """Compare what a lane's guest saw with what is expected, undefined bits of DR6 left out."""
    found = report.lanes[number]
    undefined = _undefined_dr6(report, found)
    expected = _described(vector, vector.expect, layout, undefined)
    seen = _described(vector, got, layout, undefined)
    # Reads that the vector does not speak of are nobody's business.
    seen["reads"] = {step: value for step, value in seen["reads"].items() if step in expected["reads"]}
    is_ok = expected == seen
    is_declared = not is_ok and found.verdict == report_pb2.VERDICT_SAME_BUT_DECLARED
    return Case(
        name=vector.name,
        policy=found.policy,
        vendor=vendor_name(found.vendor),
        is_ok=is_ok,
        declared=_rules(found) if is_declared else None,
        expected=_described(vector, vector.expect, layout, 0),
        got=_described(vector, got, layout, 0),
    )


def _rules(found: report_pb2.LaneReport) -> str:
    """Return the rules by which a lane differs; final registers alone can differ without an event."""
    return ", ".join(rule.rule for rule in found.declared) or "final registers"


def _undefined_dr6(report: report_pb2.Report, found: report_pb2.LaneReport) -> int:
    """Return the bits of DR6 that the lane's own reference leaves undefined."""
    for reference in report.references:
        if (reference.vendor, reference.features) == (found.vendor, found.features) and reference.registers:
            return reference.registers[0].undefined_dr6
    return 0


def _described(vector: Vector, seen: Seen, layout: Layout, undefined: int) -> dict[str, Any]:
    """Return what was seen as the vector format writes it, with undefined bits of DR6 taken out."""
    reads = {}
    for step, value in sorted(seen.reads.items()):
        mask = undefined if vector.steps[step].register in _DR6_NUMBERS else 0
        reads[str(step)] = None if value is None else hex(value & ~mask)
    return {
        "reads": reads,
        "ev": [
            [
                "exc",
                raised.vector,
                raised.error_code,
                [raised.step, raised.where],
                hex(raised.dr6 & ~undefined),
                hex(raised.dr7),
            ]
            for raised in seen.raised
        ],
        "db": [hex(layout.address(slot)) for slot in seen.registers.db],
        "dr6": hex(seen.registers.dr6 & ~undefined),
        "dr7": hex(seen.registers.dr7),
    }
