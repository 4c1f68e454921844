"""Runs vector files under chosen policies and compares what their guests saw with what is expected.

Each vector is a session of its own, with a lane for each policy and vendor that it is about. A mismatch
is *declared* if the hypervisor finds that the lane differs from the architecture only by deviations that
its policy lists; any other mismatch is a failure. A case is *refused* if the policy does not take what
the vector does from outside: a debugger, registers, a nested guest. Vectors that need what the model
does not have are *out*, by name and reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.hypervisor import Hypervisor
from guest_svc.own_policies import NO_OWN, OwnPolicies
from guest_svc.results import CORRECT_POLICIES, EVERY_POLICY, check_report, vendor_name, vendor_number
from guest_svc.sessions import session_label
from guest_svc.stream import EventStream
from guest_svc.vectors import Registers, Vector
from guest_svc.vectors.fields import Fields
from guest_svc.vectors.judge import RESULTS, Case, judge, seen_by_guest, undefined_bits
from guest_svc.vectors.layout import Layout
from guest_svc.vectors.program import conversation
from guest_svc.vectors.rows import COLUMNS, Answer, Row, columns_of
from guest_svc.workloads.base import unknown

SCHEMA: Final = "exitlab.conform/1"
LaneChoice = tuple[str, policy_pb2.Vendor.ValueType]
_COUNT_NAMES: Final = {"known_bug": "known_bugs"}


@dataclass(slots=True)
class Outcome:
    """What a run of vectors found."""

    cases: list[Case] = field(default_factory=list)
    out: list[Vector] = field(default_factory=list)  # those that are not run
    vectors: int = 0  # that ran under at least one lane
    lanes: int = 0

    @property
    def failures(self) -> list[Case]:
        """The cases that failed."""
        return [case for case in self.cases if case.has_failed]

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``conform``."""
        counts = Counter(case.result for case in self.cases)
        return {
            "schema": SCHEMA,
            "vectors": self.vectors,
            "lanes": self.lanes,
            **{_COUNT_NAMES.get(result, result): counts[result] for result in RESULTS},
            "out": len(self.out),
            "out_ids": [vector.name for vector in self.out],
            "out_rows": [
                {"file": vector.file, "id": vector.name, "reason": vector.out} for vector in self.out
            ],
            "cases": [
                {
                    "file": case.file,
                    "id": case.name,
                    "policy": case.policy,
                    "vendor": case.vendor,
                    "claims_correct": case.claims_correct,
                    "result": case.result,
                    "ok": case.is_ok,
                    "declared": case.declared,
                    "refused": case.is_refused,
                    "expected": case.expected,
                    "got": case.got,
                    "note": case.note,
                    "bill": case.bill,
                    "debug_exits": case.debug_exits,
                }
                for case in self.cases
            ],
        }


def choose_lanes(
    summaries: Sequence[hypervisor_pb2.PolicySummary],
    policies: Sequence[str],
    vendors: Sequence[policy_pb2.Vendor.ValueType],
) -> list[LaneChoice]:
    """Return a lane for each policy on each of ``vendors`` that it exists on.

    Raises:
        BadInput: No lane is left, or a policy that is asked for by its name has none.

    """
    existing = {summary.name: summary.vendors for summary in summaries}
    groups = {
        EVERY_POLICY: existing,
        CORRECT_POLICIES: {summary.name: summary.correct_vendors for summary in summaries},
    }
    for name in (name for name in policies if name in existing):
        if not set(existing[name]) & set(vendors):
            raise BadInput(f"policy {name!r} exists on {', '.join(map(vendor_name, existing[name]))} only")
    # A name that the hypervisor does not have goes to it all the same: it knows the near matches.
    lanes = dict.fromkeys(
        (name, vendor)
        for asked in policies
        for name, there in groups.get(asked, {asked: existing.get(asked, vendors)}).items()
        for vendor in vendors
        if vendor in there
    )
    if not lanes:
        raise BadInput(f"{', '.join(policies)}: none exists on {', '.join(map(vendor_name, vendors))}")
    return list(lanes)


def check_named_policies(
    vectors: Iterable[Vector], summaries: Iterable[hypervisor_pb2.PolicySummary]
) -> None:
    """Refuse vectors that say something of a lane which nobody has: it would never be checked.

    Raises:
        BadInput: A policy does not exist, or not on the vendor that it is named for.

    """
    existing = {summary.name: [vendor_name(vendor) for vendor in summary.vendors] for summary in summaries}
    for vector in vectors:
        for named in vector.named_lanes:
            there, vendor = existing.get(named.policy), named.vendor or vector.vendor
            if there is None:
                said = unknown("policy", named.policy, existing)
            elif vendor is not None and vendor not in there:
                said = f"policy {named.policy!r} exists on {', '.join(there)} only"
            else:
                continue
            raise Fields(vector.path, vector.row, vector.name).bad(named.field, said)


def run_vectors(
    hypervisor: Hypervisor,
    vectors: Iterable[Vector],
    lanes: Sequence[LaneChoice],
    own: OwnPolicies = NO_OWN,
) -> Outcome:
    """Run vectors, each as a session of its own over one connection; ``own`` has the tables of some.

    Where a vector starts with registers set from outside, the guests of policies that refuse this write
    them themselves, in a second session.
    """
    outcome = Outcome(lanes=len(lanes))
    tables = PolicyTables(hypervisor, own)
    for vector in vectors:
        if vector.out is not None:
            outcome.out.append(vector)
            continue
        chosen = [choice for choice in lanes if vector.vendor in (None, vendor_name(choice[1]))]
        outcome.vectors += bool(chosen)
        writing = [lane for lane in chosen if vector.init and tables.of(lane).refuses_set_debugregs]
        for is_written_by_guest, session in ((False, chosen), (True, writing)):
            run = [lane for lane in session if is_written_by_guest or lane not in writing]
            if run:
                config = _config(vector, run, own)
                cases = _run_vector(hypervisor, vector, config, is_written_by_guest=is_written_by_guest)
                outcome.cases += map(tables.checked, cases)
    return outcome


def _run_vector(
    hypervisor: Hypervisor,
    vector: Vector,
    config: hypervisor_pb2.SessionConfig,
    *,
    is_written_by_guest: bool,
) -> list[Case]:
    session = hypervisor.create_session(config)
    answers = Answers(len(config.lanes))
    rows: list[Row] = []
    with EventStream(hypervisor, session, COLUMNS, answers.take) as stream:
        talk = conversation(vector, is_written_by_guest=is_written_by_guest)
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
        report = stream.finish()
    check_report(report, config.lanes, vcpus=config.vcpus)
    layout = Layout(vector)
    undefined = undefined_bits(rows, answers.reference(0))
    return [
        judge(
            *(vector, layout, report, number),
            seen_by_guest(rows, answers.lane(number), final_registers(found)),
            undefined,
        )
        for number, found in enumerate(report.lanes)
    ]


def _config(vector: Vector, lanes: Sequence[LaneChoice], own: OwnPolicies) -> hypervisor_pb2.SessionConfig:
    features = policy_pb2.CpuFeatures(rtm=vector.has_rtm, bus_lock_detect=vector.has_bus_lock)
    used = [step.selector for step in vector.steps if step.op in ("run_on", "host_breakpoints")]
    return hypervisor_pb2.SessionConfig(
        lanes=[own.lane(policy, vendor, features) for policy, vendor in lanes],
        columns=[int(column) for column in COLUMNS],  # type: ignore[misc]  # stubs want their own enum
        vcpus=len(vector.physical_cpus),
        physical_cpus=1 + max((*vector.physical_cpus, *used)),
        initial_physical_cpus=vector.physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=lanes[0][1],
        leading_features=features,
        outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL,
        label=session_label(vector.name),
    )


class PolicyTables:
    """The tables of policies, each asked for once."""

    def __init__(self, hypervisor: Hypervisor, own: OwnPolicies = NO_OWN) -> None:
        """Ask ``hypervisor`` for those that are not in ``own``."""
        self._hypervisor, self._own = hypervisor, own
        self._tables: dict[LaneChoice, policy_pb2.PolicyTable] = {}

    def of(self, lane: LaneChoice) -> policy_pb2.PolicyTable:
        """Return the table of a policy on a vendor."""
        if lane not in self._tables:
            self._tables[lane] = self._own.table(*lane) or self._hypervisor.policy_table(*lane)
        return self._tables[lane]

    def checked(self, case: Case) -> Case:
        """Return a case, which has failed if it is declared by a rule that its policy does not list."""
        if case.declared is None:
            return case
        table = self.of((case.policy, vendor_number(case.vendor)))
        return checked_rules(case, {deviation.rule for deviation in table.deviations})


def checked_rules(case: Case, listed: set[str]) -> Case:
    """Return a declared case, which has failed if one of its rules is not among those that are listed."""
    unlisted = [rule for rule in (case.declared or "").split(", ") if rule not in listed]
    if unlisted:
        note = f"declared by {', '.join(unlisted)}, which the policy does not list"
        return replace(case, declared=None, note=note)
    return case


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
        undefined = part.undefined_dr6 or [0] * len(part.stories)
        column += map(Answer, part.stories, part.story_values, undefined)

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


def final_registers(lane_report: report_pb2.LaneReport) -> list[Registers]:
    """Return the registers of each vCPU as guest MOVs would read them at the end."""
    found = [vcpu.registers for vcpu in lane_report.vcpus]
    return [Registers(db=tuple(registers.db), dr6=registers.dr6, dr7=registers.dr7) for registers in found]
