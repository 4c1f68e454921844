"""What people read of a text trace beside its lanes: what its figures are, and what it could not say."""

from typing import Any, Final

from guest_svc.evidence import LOWER_BOUND, MEASURED, UPPER_BOUND, guest_time_of
from guest_svc.render_words import counted, lane_label, ordered, table
from guest_svc.results import Document

_HOSTS: Final = {
    "none": "It has no MOV DR exits: the guest left its debug registers alone, or they did not exit.",
    "lazy": "Its host tracks debug registers lazily",
    "mixed": "Its host tracks debug registers lazily in part",
    "assumed_lazy": "Whether its host tracks debug registers lazily it does not print; that is assumed",
    "not_shown": "All accesses of debug registers were refused, which looks alike on every host",
    "trapping": "Its host traps every access of a debug register, so their number is exact",
}
_KNOWN_NAMES: Final = 4
_UPKEEP: Final = (
    "Values of debug registers are not recorded: breakpoints are taken to be off, so the upkeep of armed "
    "ones is left out, and no story can differ by a value."
)


def has_lower_bounds(document: Document) -> bool:
    """Return whether a run's exits of MOV DR are lower bounds."""
    return bool(document.get("evidence", {}).get("lanes.exits.DR_ACCESS") == LOWER_BOUND)


def interval_table(document: Document) -> str:
    """Return each lane's figures from one access a window to the assumed number, as a table."""
    count = document["trace"]["accesses_per_window"]
    header = ("policy", "MOV DR", "DR exits", "windows", "overhead", "loss")
    of_lane = {_key(interval): interval["figures"] for interval in document["intervals"]}
    rows = []
    for lane in ordered(document["lanes"]):
        figures = of_lane[_key(lane)]
        counts = [_counts(*figures[name]) for name in ("mov_dr.executed", "exits.DR_ACCESS", "windows")]
        shares = [_shares(*figures[name]) for name in ("overhead_share", "throughput_loss_against_ignore")]
        rows.append((lane_label(document, lane), *counts, *shares))
    title = f"From 1 access in each window of the host (lower bound) to {count} (modelled, an assumption):"
    return f"{title}\n{table([header, *rows])}"


def _key(lane: Document) -> tuple[Any, ...]:
    return lane["policy"], lane["vendor"], lane["prices"]


def _counts(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} .. {high:,}"


def _shares(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} .. {high:.1%}"


def trace_sentences(document: Document) -> list[str]:
    """Return what a replayed trace's figures are and what was found in it, in plain sentences."""
    trace = document.get("trace")
    return [] if trace is None else [*_hidden(trace), *_meaning(trace), *_gaps(trace)]


def _hidden(trace: Document) -> list[str]:
    """Return what the exits of MOV DR were, and what they hide."""
    access = trace["dr_access"]
    host = _HOSTS[access["host"]]
    if not access["exits"]:
        return [host]
    kinds = [
        (access["rerun"], "ran again (a window of one access or more)"),
        (access["emulated"], "were emulated (one access)"),
        (access["faulted"], "faulted"),
        (access["unclear"], "do not show which"),
    ]
    said = ", ".join(f"{count:,} {what}" for count, what in kinds if count)
    hides = f"{host}: accesses after the first of each of {access['windows']:,} windows left no record."
    sentences = [f"Of {access['exits']:,} MOV DR exits {said}.", hides if access["windows"] else f"{host}."]
    if access["adjacent"] and access["windows"]:
        sentences.append(
            f"{access['adjacent']:,} MOV DR exits follow another on their vCPU with no exit between, which a "
            "lazily tracking host does not show: another host, or records that are missing."
        )
    return sentences


def _meaning(trace: Document) -> list[str]:
    """Return which figures are measured, modelled or bounds."""
    of_entries = "guest time (from kvm_entry to kvm_exit, at the assumed clock_hertz)"
    counts = "events, exits other than of MOV DR"
    time = guest_time_of(trace)
    if trace["lost_notes"]:
        sentences = ["Lower bounds, as the recorder lost events: all counts, and what they cost."]
    else:
        sentences = [f"Measured: {counts}, {of_entries}." if time == MEASURED else f"Measured: {counts}."]
    if time == LOWER_BOUND:
        sentences.append(f"Lower bound: {of_entries}, which is 0 where an entry is missing.")
    if time == UPPER_BOUND:
        sentences.append(
            "Guest time is an upper bound: the trace's beginning has no kvm_entry, so all the time between "
            "exits is taken, the host's too."
        )
    sentences.append("Modelled: windows, losses, and what all costs, at the price list.")
    if trace["dr_access"]["windows"]:
        sentences.append(
            "Lower bounds: accesses of debug registers, their exits, and what these cost; exact for a policy "
            "that lets accesses after the first of a window go."
        )
    return [*sentences, _UPKEEP] if trace["dr_access"]["exits"] else sentences


def _gaps(trace: Document) -> list[str]:
    """Return what the trace lost, and what could not be read of it."""
    malformed, too_long = trace["malformed"], trace["too_long"]
    unknown = trace["unknown_reasons"]
    names = ", ".join(f"{name} ({count:,})" for name, count in list(unknown.items())[:_KNOWN_NAMES])
    unnamed = ", ".join(list(trace["unnamed_reasons"])[:_KNOWN_NAMES])
    how_many = (
        f"{trace['lost_events']:,} events" if trace["lost_events"] else "events (it does not say how many)"
    )
    told = [
        (trace["damage"], f"Only the beginning was read: {trace['damage']}."),
        (
            trace["lost_notes"],
            f"The recorder lost {how_many} at {trace['lost_notes']:,} places: they are missing in all "
            "counts, and what stands on both sides of a loss is not joined.",
        ),
        (
            trace["exits_after_loss"] and trace["has_entries"],
            f"{trace['exits_after_loss']:,} exits lost their entry so; guest time is 0 there.",
        ),
        (malformed["lines"], f"{_lines(malformed)} cannot be read: left out."),
        (trace["negative_times"], f"{trace['negative_times']:,} of them have a time below zero."),
        (too_long["lines"], f"{_lines(too_long)} too long for a record: left out."),
        (trace["cut_lines"], "The last line has no end and is left out."),
        (unknown, f"Exit reasons without a name are kept by number: {names}."),
        (unnamed, f"Exits whose reason has a name that is not known here are left out: {unnamed}."),
        (
            trace["time_backwards"],
            f"{trace['time_backwards']:,} times time ran backwards: guest time is 0 there.",
        ),
        (
            trace["exits_without_entry"],
            f"{trace['exits_without_entry']:,} exits have no entry before them; guest time is 0 there.",
        ),
        (
            trace["inferred_moves"],
            f"{trace['inferred_moves']:,} moves of a vCPU to another CPU were inferred from its exits' CPUs.",
        ),
    ]
    return [sentence for is_so, sentence in told if is_so]


def _lines(found: Document) -> str:
    return f"{counted(found['lines'], 'line')} (the first is line {found['first_line'] or 0:,})"
