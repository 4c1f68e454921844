"""One run: a source's events under chosen policies, in one session, to one JSON object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from exitlab.v1 import hypervisor_pb2, policy_pb2, report_pb2
from guest_svc.earlier import earlier_document, find_earlier
from guest_svc.errors import BadInput, CouldNotFinish
from guest_svc.hypervisor import Hypervisor
from guest_svc.own_policies import NO_OWN, OwnPolicies
from guest_svc.results import (
    CORRECT_POLICIES,
    EVERY_POLICY,
    IGNORE_POLICY,
    Document,
    SourceFacts,
    check_figures,
    check_report,
    compare_document,
    loss_against,
    throughput,
    vendor_name,
)
from guest_svc.sessions import QUIET, Streamed, Talk, refuse_resume, stream_workload
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload, unknown

# The seed mail's claims: loss against ignoring MOV DR, as least and most.
CLAIMS: Final = {"kvm-3.14": (0.38, 0.42), "kvm-6.14": (0.0, 0.07)}
CLAIMED_WORKLOAD: Final = "context-switch"
CLAIMED_PRICES: Final = "seed-2014"
STATED_WRITE_CYCLES: Final = (60, 80)  # where the claims are to hold
STATED_READ_CYCLES: Final = (40, 50)
WRITE_CYCLES: Final = (50, 60, 80, 100, 150)
READ_CYCLES: Final = (20, 40, 50, 90, 130)


class UnknownPrices(BadInput):
    """The hypervisor has no price list of a name, the one of this ``number`` among those asked for."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True, slots=True)
class Plan:
    """What a source is run under: policies of one vendor, and the price lists of the bill."""

    policies: Sequence[str]
    vendor: policy_pb2.Vendor.ValueType
    price_names: Sequence[str]
    has_ranges: bool = False
    own: OwnPolicies = NO_OWN  # those of the policies that the hypervisor does not have


@dataclass(frozen=True, slots=True)
class Ran:
    """A session that is finished, its report, and what it is priced at."""

    streamed: Streamed
    priced: hypervisor_pb2.GetReportResponse
    figures: Sequence[report_pb2.LaneFigures]


def find_price_lists(hypervisor: Hypervisor, names: Sequence[str]) -> dict[str, report_pb2.PriceList]:
    """Return the price lists of these names.

    Raises:
        UnknownPrices: There is none of a name.
        CouldNotFinish: One cannot be used.

    """
    known = hypervisor.price_lists()
    for number, name in enumerate(names):
        if name not in known:
            raise UnknownPrices(unknown("price list", name, known), number)
        if not known[name].clock_hertz:
            raise CouldNotFinish(f"the hypervisor's price list {name} has no clock")
    return {name: known[name] for name in names}


def run_lanes(
    hypervisor: Hypervisor,
    workload: Workload,
    lanes: Sequence[policy_pb2.Lane],
    price_names: Sequence[str],
    talk: Talk = QUIET,
    resume: str = "",
) -> Ran:
    """Stream a workload under these lanes and return the report, priced at these lists.

    ``talk`` and ``resume`` are those of ``sessions.stream_workload``.
    """
    streamed = stream_workload(hypervisor, workload, lanes, talk, resume)
    check_report(streamed.report, lanes, workload.vcpus)
    choices = [hypervisor_pb2.PriceChoice(name=name) for name in price_names]
    priced = hypervisor.priced(streamed.session_id, choices)
    return Ran(streamed, priced, check_figures(priced.figures, price_names, len(lanes)))


def compare(
    hypervisor: Hypervisor,
    workload: Workload,
    plan: Plan,
    talk: Talk = QUIET,
    resume: str = "",
    earlier: str = "",
) -> Document:
    """Stream a workload under several policies and return the JSON object of what came of it.

    ``talk`` and ``resume`` are those of ``sessions.stream_workload``; ``earlier`` is a finished session whose
    report is set beside.
    """
    if resume:
        refuse_resume(workload)  # before anybody is asked
    price_lists = find_price_lists(hypervisor, plan.price_names)
    chosen = resolve_policies(hypervisor, plan.policies, plan.vendor)
    if plan.has_ranges and IGNORE_POLICY not in chosen:
        raise BadInput(f"--ranges states losses against {IGNORE_POLICY}: add --policy {IGNORE_POLICY}")
    lanes = [plan.own.lane(policy, plan.vendor) for policy in chosen]
    beside = find_earlier(hypervisor, earlier, plan.price_names) if earlier else None
    ran = run_lanes(hypervisor, workload, lanes, plan.price_names, talk, resume)
    session_id, report = ran.streamed.session_id, ran.streamed.report
    # A capture has instructions and no clock: the list's is taken. All others have one of their own.
    clocks = {
        name: workload.clock_hertz if workload.has_own_clock else price_lists[name].clock_hertz
        for name in plan.price_names
    }
    document = compare_document(
        _facts(workload), report, ran.figures, clocks, ran.priced.lane_runs, ran.streamed.reconnects
    )
    if beside is not None:
        document["earlier"] = earlier_document(beside, report, clocks)
    # Rows that only bring about the state which a trace found are no events of it.
    document["events"] -= workload.unrecorded_events
    if plan.has_ranges:
        document["ranges"] = [
            point
            for name in plan.price_names
            for point in _ranges(
                hypervisor, session_id, report, price_lists[name], has_claims=_has_claims(workload, name)
            )
        ]
    return document


def resolve_policies(
    hypervisor: Hypervisor, asked: Sequence[str], vendor: policy_pb2.Vendor.ValueType
) -> list[str]:
    """Return the policies that names stand for, each once: ``all`` and ``correct`` are several."""
    names: list[str] = []
    for name in asked:
        if name in {EVERY_POLICY, CORRECT_POLICIES}:
            names += [
                summary.name
                for summary in hypervisor.policies()
                if vendor in (summary.vendors if name == EVERY_POLICY else summary.correct_vendors)
            ]
        else:
            names.append(name)
    if not names:
        raise BadInput(f"no policy to run: none exists on {vendor_name(vendor)}")
    return list(dict.fromkeys(names))


def _facts(workload: Workload) -> SourceFacts:
    return SourceFacts(
        workload=workload.name,
        parameters=workload.parameters_used,
        seed=None if workload.is_recorded else workload.seed,
        records=workload.records,
        skipped=workload.skipped,
    )


def _has_claims(workload: Workload, prices: str) -> bool:
    """Return whether the seed mail's claims speak of this: its own workload, unchanged, at its prices."""
    if workload.name != CLAIMED_WORKLOAD or prices != CLAIMED_PRICES:
        return False
    unchanged = find_workload(CLAIMED_WORKLOAD).make({}, 0, None).parameters_used
    return {**workload.parameters_used, "switches": None} == {**unchanged, "switches": None}


def _ranges(
    hypervisor: Hypervisor,
    session_id: str,
    report: report_pb2.Report,
    listed: report_pb2.PriceList,
    *,
    has_claims: bool,
) -> list[dict[str, Any]]:
    """Return every lane's loss against ``ignore`` at other prices of a debug-register access."""
    points = [(write, read) for write in WRITE_CYCLES for read in READ_CYCLES]
    choices = [
        hypervisor_pb2.PriceChoice(list=repriced(listed, {"dr_write": write, "dr_read": read}))
        for write, read in points
    ]
    lanes = len(report.lanes)
    names = [choice.list.name for choice in choices]
    figures = check_figures(hypervisor.priced(session_id, choices).figures, names, lanes)
    rows: list[dict[str, Any]] = []
    for number, (write, read) in enumerate(points):
        bills = figures[number * lanes : (number + 1) * lanes]
        reached = {
            report.lanes[bill.lane].policy: throughput(bill.guest_cycles, bill.overhead_cycles)
            for bill in bills
        }
        is_inside = (
            STATED_WRITE_CYCLES[0] <= write <= STATED_WRITE_CYCLES[1]
            and STATED_READ_CYCLES[0] <= read <= STATED_READ_CYCLES[1]
        )
        for policy, share in reached.items():
            if policy == IGNORE_POLICY:
                continue
            loss = loss_against(reached[IGNORE_POLICY], share)
            least, most = CLAIMS.get(policy, (0.0, 1.0))
            rows.append(
                {
                    "policy": policy,
                    "vendor": vendor_name(report.lanes[0].vendor),
                    "prices": listed.name,
                    "dr_write": write,
                    "dr_read": read,
                    "throughput_loss_against_ignore": loss,
                    "is_inside_stated_ranges": is_inside,
                    "holds": least <= loss <= most if has_claims and policy in CLAIMS else None,
                }
            )
    return rows


def repriced(listed: report_pb2.PriceList, cycles: dict[str, int]) -> report_pb2.PriceList:
    """Return a price list with some prices changed, under a name that says so."""
    changed = report_pb2.PriceList()
    changed.CopyFrom(listed)
    changed.name = ",".join([listed.name, *(f"{name}={value}" for name, value in cycles.items())])
    for price in changed.prices:
        if price.name in cycles:
            price.cycles = cycles[price.name]
            price.low_cycles = min(price.low_cycles, price.cycles)
            price.high_cycles = max(price.high_cycles, price.cycles)
    return changed
