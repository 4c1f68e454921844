"""The JSON object that scripts read, from a report, its figures and what the guest knows of its source.

Counts come from the report, cycles from the figures that the hypervisor derived at a price list.
The guest prices nothing itself: it only divides what it was told.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from exitlab.exit_reasons import DR_ACCESS, reason_name
from exitlab.v1 import hypervisor_pb2, policy_pb2, report_pb2
from guest_svc.errors import CouldNotFinish
from guest_svc.lane_runs import runs_of

SCHEMA: Final = "exitlab.compare/1"
EVERY_POLICY: Final = "all"  # stands for several policies
CORRECT_POLICIES: Final = "correct"
IGNORE_POLICY: Final = "ignore"  # the upper bound that losses are stated against

Document = dict[str, Any]

_VENDOR_NAMES: Final = {policy_pb2.VENDOR_VMX: "vmx", policy_pb2.VENDOR_SVM: "svm"}
_VERDICT_NAMES: Final = {
    report_pb2.VERDICT_SAME: "same",
    report_pb2.VERDICT_SAME_BUT_DECLARED: "same_but_declared",
    report_pb2.VERDICT_DIVERGED: "diverged",
    report_pb2.VERDICT_NOT_COMPARABLE: "not_comparable",
}
_CLASS_NAMES: Final = ("fast", "light", "heavy")
_SIGNAL: Final = "SIGNAL"  # a heavy exit that has no reason


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What only the guest knows of a run: where its events came from."""

    workload: str
    parameters: dict[str, object]
    seed: int | None
    records: int
    skipped: dict[str, int] = field(default_factory=dict)


_OWNERS: Final = {256: "host", 257: "debugger"}  # as the contract numbers them


def vendor_name(vendor: int) -> str:
    """Return the name that options and documents give a vendor."""
    return _VENDOR_NAMES[policy_pb2.Vendor.ValueType(vendor)]


def vendor_number(name: str) -> policy_pb2.Vendor.ValueType:
    """Return the contract's number of a vendor's name."""
    return next(number for number, known in _VENDOR_NAMES.items() if known == name)


def vendor_of(asked: str | None, recorded: int | None) -> policy_pb2.Vendor.ValueType:
    """Return the vendor to run as: the one that is asked for, else the recording's, else VMX."""
    if asked is not None:
        return vendor_number(asked)
    return policy_pb2.Vendor.ValueType(recorded) if recorded is not None else policy_pb2.VENDOR_VMX


def verdict_name(verdict: int) -> str:
    """Return the name that documents give a verdict.

    Raises:
        KeyError: The verdict is undecided: a finished report has none such.

    """
    return _VERDICT_NAMES[report_pb2.Verdict.ValueType(verdict)]


def check_report(report: report_pb2.Report, lanes: Sequence[policy_pb2.Lane], vcpus: int) -> None:
    """Refuse a report that is not of these lanes, or that lacks what every finished one has.

    Raises:
        CouldNotFinish: The hypervisor does not keep the contract.

    """
    asked = [(lane.policy_name or lane.policy_table.name, lane.vendor) for lane in lanes]
    told = [(lane.policy, lane.vendor) for lane in report.lanes]
    trouble = ""
    if told != asked:
        names = ", ".join(name for name, _ in told) or "none"
        trouble = f"its lanes are not those that were asked for: {names}"
    elif not report.references or any(each.vendor not in _VENDOR_NAMES for each in report.references):
        trouble = "it has no reference that is known here"
    elif any(len(lane.vcpus) != vcpus for lane in report.lanes):
        trouble = f"it has not {vcpus} vCPUs in every lane"
    elif any(lane.verdict not in _VERDICT_NAMES for lane in report.lanes):
        trouble = "it has a lane without a verdict that is known here"
    if trouble:
        raise CouldNotFinish(f"the hypervisor's report cannot be used: {trouble}")


def check_figures(
    figures: Sequence[report_pb2.LaneFigures], prices: Sequence[str], lanes: int
) -> Sequence[report_pb2.LaneFigures]:
    """Return the figures if they are of every lane at each of these prices, in order.

    Raises:
        CouldNotFinish: They are not.

    """
    if [(bill.prices, bill.lane) for bill in figures] != [(name, n) for name in prices for n in range(lanes)]:
        raise CouldNotFinish(
            f"the hypervisor's figures cannot be used: expected {lanes} lanes at each of {len(prices)} "
            f"price lists, got {len(figures)} figures or another order"
        )
    return figures


def compare_document(
    source: SourceFacts,
    report: report_pb2.Report,
    figures: Sequence[report_pb2.LaneFigures],
    clocks_hertz: Mapping[str, int],
    lane_runs: Sequence[hypervisor_pb2.LaneRun] = (),
    reconnects: int = 0,
) -> Document:
    """Return the object of ``compare``, ``run`` and ``replay``: a lane for each of ``figures``.

    ``clocks_hertz`` gives the clock of each price list that the figures name; ``lane_runs`` is how the
    hypervisor says that it ran each lane, ``reconnects`` how often the stream was cut.
    """
    return {
        "schema": SCHEMA,
        "workload": source.workload,
        "parameters": source.parameters,
        "seed": source.seed,
        "events": report.events,
        "records": source.records,
        "skipped": source.skipped,
        "reference": _reference(report.references[0]),
        "lanes": lane_documents(report, figures, clocks_hertz),
        "lane_runs": runs_of(lane_runs, report.lanes),
        "reconnects": reconnects,
    }


def lane_documents(
    report: report_pb2.Report,
    figures: Sequence[report_pb2.LaneFigures],
    clocks_hertz: Mapping[str, int],
) -> list[Document]:
    """Return the object of each lane, in the order of the figures."""
    lanes = [_lane(report.lanes[bill.lane], bill, clocks_hertz[bill.prices]) for bill in figures]
    _add_losses(lanes)
    return lanes


def throughput(guest_cycles: int, overhead_cycles: int) -> float:
    """Return the share of all cycles that the guest gets."""
    total = guest_cycles + overhead_cycles
    return guest_cycles / total if total else 1.0


def loss_against(bound: float, reached: float) -> float:
    """Return the share of a bound's throughput that is lost; nothing where there is none to lose."""
    return 1 - reached / bound if bound else 0.0


def _reference(reference: report_pb2.ReferenceReport) -> Document:
    has_disagreement = reference.HasField("first_disagreement")
    return {
        "vendor": vendor_name(reference.vendor),
        "recorded_reads": reference.recorded_reads,
        "recorded_dr6_reads": reference.recorded_dr6_reads,
        "disagreements": reference.disagreements,
        "agreements_without_payloads": reference.agreements_without_payloads,
        "contradictions": reference.contradictions,
        "first_disagreement": _finding(reference.first_disagreement) if has_disagreement else None,
    }


def _lane(lane: report_pb2.LaneReport, bill: report_pb2.LaneFigures, clock_hertz: int) -> Document:
    executed = sum(vcpu.mov_dr_executed for vcpu in lane.vcpus)
    trapped = sum(vcpu.mov_dr_trapped for vcpu in lane.vcpus)
    clustered = sum(vcpu.mov_dr_clustered for vcpu in lane.vcpus)
    exits = _exits(lane)
    return {
        "policy": lane.policy,
        "vendor": vendor_name(lane.vendor),
        "prices": bill.prices,
        "guest_cycles": bill.guest_cycles,
        "overhead_cycles": bill.overhead_cycles,
        "overhead_share": 1 - throughput(bill.guest_cycles, bill.overhead_cycles),
        "throughput_loss_against_ignore": None,
        "exits": exits,
        "exits_by_class": {
            name: sum(vcpu.exits_by_class[number] for vcpu in lane.vcpus if number < len(vcpu.exits_by_class))
            for number, name in enumerate(_CLASS_NAMES)
        },
        "mov_dr": {
            "executed": executed,
            "trapped": trapped,
            "clustered": clustered,
            "free": executed - trapped - clustered,
        },
        "windows": sum(vcpu.windows for vcpu in lane.vcpus),
        "ops": {
            "dr_reads": bill.operations.dr_reads,
            "dr_writes": bill.operations.dr_writes,
            "vmreads": bill.operations.vmreads,
            "vmwrites": bill.operations.vmwrites,
            "msr_accesses": bill.operations.msr_accesses,
            "intercept_switches": lane.intercept_switches,
        },
        "cost": {
            "exits": bill.exit_cycles,
            "mov_dr_exits": bill.mov_dr_exit_cycles,
            "synchronization": bill.synchronization_cycles,
            "standing": bill.standing_cycles,
        },
        "rates": _rates(exits[DR_ACCESS], bill, clock_hertz),
        "leaks": sum(leak.count for leak in lane.leaks),
        "leak_details": [_leak(leak) for leak in lane.leaks],
        "latent_hazards": lane.latent_hazards,
        "host_blind": lane.host_blind,
        "debug_exits": [_debug_exit(told) for told in lane.debug_exits],
        "refused_controls": lane.refused_controls,
        "latency": {latency.reason: _latency(latency) for latency in bill.latencies},
        "claims_correct": lane.claims_correct,
        "story": _story(lane),
    }


def _leak(leak: report_pb2.LeakCount) -> Document:
    """Return what met a foreign register: how, which, and whose it was."""
    return {
        "kind": report_pb2.LeakKind.Name(leak.kind).removeprefix("LEAK_KIND_").lower(),
        "register": f"DR{leak.register}",
        "owner": _OWNERS.get(leak.owner, f"vcpu {leak.owner}"),
        "count": leak.count,
    }


def _debug_exit(told: report_pb2.DebugExit) -> Document:
    """Return what a host debugger was told (KVM_EXIT_DEBUG)."""
    return {
        "exception": told.exception,
        "dr6": told.dr6,
        "dr7": told.dr7,
        "count": told.count,
        "first_event": told.first_event,
    }


def _exits(lane: report_pb2.LaneReport) -> dict[str, int]:
    """Return how many exits of each reason there were, by the kernel's names."""
    counts = Counter({DR_ACCESS: 0})
    for row in lane.patterns:
        if row.account == report_pb2.ACCOUNT_EXIT:
            counts[reason_name(lane.vendor, row.reason, row.sub_reason)] += row.count
        elif row.account == report_pb2.ACCOUNT_SIGNAL:
            counts[_SIGNAL] += row.count
    return dict(sorted(counts.items()))


def _rates(dr_exits: int, bill: report_pb2.LaneFigures, clock_hertz: int) -> dict[str, float]:
    """Return MOV DR exits for each second of a vCPU, in guest time and with the overhead in."""
    guest = bill.guest_cycles / clock_hertz
    wall = (bill.guest_cycles + bill.overhead_cycles) / clock_hertz
    return {
        "clock_hertz": clock_hertz,
        "dr_access_per_guest_second": dr_exits / guest if guest else 0.0,
        "dr_access_per_wall_second": dr_exits / wall if wall else 0.0,
    }


def _latency(latency: report_pb2.Latency) -> dict[str, float]:
    return {
        "count": latency.count,
        "min": latency.min_cycles,
        "mean": latency.total_cycles / latency.count if latency.count else 0.0,
        "p50": latency.p50_cycles,
        "p90": latency.p90_cycles,
        "p99": latency.p99_cycles,
        "p999": latency.p999_cycles,
        "max": latency.max_cycles,
    }


def _story(lane: report_pb2.LaneReport) -> Document:
    has_divergence = lane.HasField("first_divergence")
    return {
        "same_as_reference": lane.verdict == report_pb2.VERDICT_SAME,
        "verdict": verdict_name(lane.verdict),
        "first_divergence": _finding(lane.first_divergence) if has_divergence else None,
        "diverged_events": lane.diverged_events,
        "declared": [
            {"rule": rule.rule, "events": rule.events, "first_event": rule.first_event}
            for rule in lane.declared
        ],
        "note": lane.note or None,
    }


def _finding(finding: report_pb2.Finding) -> Document:
    return {"event": finding.event, "vcpu": finding.vcpu, "what": finding.what}


def _add_losses(lanes: list[Document]) -> None:
    """Give each lane its throughput loss against the lane that ignores MOV DR, where there is one."""
    bounds = {
        (lane["vendor"], lane["prices"]): throughput(lane["guest_cycles"], lane["overhead_cycles"])
        for lane in lanes
        if lane["policy"] == IGNORE_POLICY
    }
    for lane in lanes:
        bound = bounds.get((lane["vendor"], lane["prices"]))
        if bound is not None:
            reached = throughput(lane["guest_cycles"], lane["overhead_cycles"])
            lane["throughput_loss_against_ignore"] = loss_against(bound, reached)
