"""The JSON object as text for people; pure functions of the object."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from guest_svc.lane_runs import notes
from guest_svc.render_csv import csv_text
from guest_svc.render_earlier import earlier_text
from guest_svc.render_trace import has_lower_bounds, interval_table, trace_sentences
from guest_svc.render_words import (
    LINE_CHARACTERS,
    lane_label,
    names_of,
    ordered,
    reconnected,
    table,
    verdict_word,
    wrapped,
)
from guest_svc.results import IGNORE_POLICY, Document, loss_against

_NOTHING: Final = "-"
_KEY: Final = (
    "story: what the guest saw against the bare architecture; here: known to be wrong, but not by this; "
    "{loss}DR exits: of MOV DR, in all{bound} and a second of a vCPU's wall time; "
    "others: all other exits, of #DB too; overhead and its parts: shares of all cycles; sync opens and "
    "closes windows, standing is all other upkeep. Policies that claim to be correct and were come first."
)
_LATENCY_FIELDS: Final = ("count", "min", "mean", "p50", "p90", "p99", "p999", "max")


def formatted(document: Document, output: str, *, has_detail: bool = False) -> str:
    """Return a run as ``output`` says: text, json or csv."""
    if output == "json":
        return json.dumps(document, indent=2) + "\n"
    return csv_text(document) if output == "csv" else text(document, has_detail=has_detail)


def text(document: Document, *, has_detail: bool = False) -> str:
    """Return a run for people: what ran, a row for each lane, and what was found."""
    parts = [_heading(document), f"{lane_table(document)}\n{key(document)}"]
    if "intervals" in document:
        parts.append(interval_table(document))
    if has_detail:
        parts += [_detail(lane) for lane in ordered(document["lanes"])]
    if "earlier" in document:
        parts.append(earlier_text(document))
    if "ranges" in document:
        parts.append(_ranges(document["ranges"]))
    parts.append("\n".join(map(wrapped, findings(document))))
    return "\n\n".join(parts) + "\n"


def key(document: Document) -> str:
    """Return what the words of the table mean."""
    bounds = {bound["policy"] for bound in _bounds(document).values()}
    against = IGNORE_POLICY if bounds == {IGNORE_POLICY} else "the cheapest shown"
    loss = f"loss: of throughput against {against}; " if bounds else ""
    bound = ", >= where it is a lower bound" if has_lower_bounds(document) else ""
    return textwrap.fill(_KEY.format(loss=loss, bound=bound), LINE_CHARACTERS)


def lane_table(document: Document) -> str:
    """Return a row for each lane: its verdict, what it cost, and of what the cost is made."""
    bounds = _bounds(document)
    header = (
        "policy",
        "story",
        *(("loss",) if bounds else ()),
        "DR exits",
        "per s",
        "others",
        "windows",
        "overhead",
        "= DR exits",
        "+ others",
        "+ sync",
        "+ standing",
    )
    rows = [_lane_row(document, lane, bounds) for lane in ordered(document["lanes"])]
    return table([header, *rows], left_columns=2)


def findings(document: Document) -> list[str]:
    """Return what a run found, in plain sentences."""
    return [
        *_costs(document),
        *(sentence for lane in ordered(document["lanes"]) for sentence in _stories(document, lane)),
        *_recorded(document["reference"]),
        *trace_sentences(document),
        *notes(document["lane_runs"]),
        *reconnected(document["reconnects"]),
    ]


def _heading(document: Document) -> str:
    given = " ".join(f"{name}={value}" for name, value in document["parameters"].items())
    skipped = sum(document["skipped"].values())
    lines = [wrapped(f"{document['workload']}  {given}".rstrip())]
    lines.append(
        f"{document['events']:,} events"
        + (f" of {document['records']:,} records, {skipped:,} of them no events" if skipped else "")
        + (f", seed {document['seed']}" if document["seed"] is not None else "")
        + (f", prices {', '.join(names_of(document, 'prices'))}")
    )
    return "\n".join(lines)


def _bounds(document: Document) -> dict[tuple[str, str], Document]:
    """Return the lane that losses are stated against, by vendor and price list.

    That is the one which ignores MOV DR, else the one with the most throughput. Where only one policy
    ran there is none.
    """
    bounds: dict[tuple[str, str], Document] = {}
    for lane in ordered(document["lanes"]):
        place = (lane["vendor"], lane["prices"])
        known = bounds.setdefault(place, lane)
        if known["policy"] != IGNORE_POLICY and (
            lane["policy"] == IGNORE_POLICY or lane["overhead_share"] < known["overhead_share"]
        ):
            bounds[place] = lane
    return bounds if len(names_of(document, "policy")) > 1 else {}


def _loss(lane: Document, bounds: Mapping[tuple[str, str], Document]) -> float | None:
    """Return the share of the bound's throughput that a lane loses; nothing where there is no bound."""
    bound = bounds.get((lane["vendor"], lane["prices"]))
    return None if bound is None else loss_against(1 - bound["overhead_share"], 1 - lane["overhead_share"])


def _lane_row(
    document: Document, lane: Document, bounds: Mapping[tuple[str, str], Document]
) -> tuple[str, ...]:
    exits, cost = lane["exits"], lane["cost"]
    all_cycles = max(1, lane["guest_cycles"] + lane["overhead_cycles"])
    parts = (
        lane["overhead_cycles"],
        cost["mov_dr_exits"],
        cost["exits"] - cost["mov_dr_exits"],
        cost["synchronization"],
        cost["standing"],
    )
    loss = _loss(lane, bounds)
    return (
        lane_label(document, lane),
        verdict_word(lane),
        *(() if loss is None else (f"{loss:.1%}",)),
        f"{'>=' if exits['DR_ACCESS'] and has_lower_bounds(document) else ''}{exits['DR_ACCESS']:,}",
        f"{lane['rates']['dr_access_per_wall_second']:,.0f}",
        f"{sum(exits.values()) - exits['DR_ACCESS']:,}",
        f"{lane['windows']:,}",
        *(f"{part / all_cycles:.1%}" if part else "0" for part in parts),
    )


def _detail(lane: Document) -> str:
    """Return a lane's exits by reason with their latency in cycles."""
    rows = [("reason", "exits", "min", "mean", "p50", "p90", "p99", "p99.9", "max")]
    for reason, count in lane["exits"].items():
        latency = lane["latency"].get(reason)
        cells = [f"{latency[name]:,.0f}" for name in _LATENCY_FIELDS[1:]] if latency else [_NOTHING] * 7
        rows.append((reason, f"{count:,}", *cells))
    by_class = ", ".join(f"{count:,} {name}" for name, count in lane["exits_by_class"].items())
    operations = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lane["ops"].items())
    title = f"{lane['policy']} on {lane['vendor']}, cycles of an exit by reason"
    return "\n".join([title, table(rows), f"exits by class: {by_class}", f"operations: {operations}"])


def _ranges(points: Sequence[Mapping[str, Any]]) -> str:
    """Return, for each policy, a grid of losses over the prices of writes and reads."""
    grids: list[str] = []
    for prices in dict.fromkeys(point["prices"] for point in points):
        grids += _grids(prices, [point for point in points if point["prices"] == prices])
    key = (
        "[ ]: inside the ranges of prices that the claims are stated for: 38 to 42 % for kvm-3.14 and at\n"
        "most 7 % for kvm-6.14 on the default context-switch at seed-2014; !: outside its claim"
    )
    return "\n\n".join([*grids, key])


def _grids(prices: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    grids = []
    writes = sorted({point["dr_write"] for point in points})
    reads = sorted({point["dr_read"] for point in points})
    for policy in dict.fromkeys(point["policy"] for point in points):
        cells = {(p["dr_write"], p["dr_read"]): _range_cell(p) for p in points if p["policy"] == policy}
        header = ["write \\ read", *map(str, reads)]
        rows = [[str(write), *(cells[write, read] for read in reads)] for write in writes]
        title = f"{policy} at {prices}: loss against ignore by cycles of a DR write (down), read (across)"
        grids.append(f"{title}\n{table([header, *rows])}")
    return grids


def _range_cell(point: Mapping[str, Any]) -> str:
    share = f"{point['throughput_loss_against_ignore']:.1%}" + ("!" if point["holds"] is False else "")
    return f"[{share}]" if point["is_inside_stated_ranges"] else share


def _costs(document: Document) -> list[str]:
    """Return a sentence on each lane's cost."""
    sentences = []
    bounds = _bounds(document)
    for lane in ordered(document["lanes"]):
        exits = lane["exits"]["DR_ACCESS"]
        executed = lane["mov_dr"]["executed"]
        cost = lane["cost"]
        upkeep = cost["mov_dr_exits"] + cost["synchronization"] + cost["standing"]
        trapped = f"{exits:,} of {executed:,} MOV DR exit" if executed else "no MOV DR happens"
        if exits:
            trapped += f" ({lane['rates']['dr_access_per_wall_second']:,.0f} a wall second of a vCPU)"
        keeping = "the registers cost nothing"
        if upkeep:
            what = "those exits and the registers' upkeep cost" if exits else "the registers' upkeep costs"
            keeping = f"{what} {upkeep:,} cycles"
        sentences.append(f"{lane_label(document, lane)}: {trapped}; {keeping}; {_throughput(lane, bounds)}.")
    return sentences


def _throughput(lane: Document, bounds: Mapping[tuple[str, str], Document]) -> str:
    loss, bound = _loss(lane, bounds), bounds.get((lane["vendor"], lane["prices"]))
    if loss is None or bound is None or bound is lane:
        return f"overhead takes {lane['overhead_share']:.1%} of all cycles"
    return f"throughput is {abs(loss):.1%} {'below' if loss >= 0 else 'above'} that of {bound['policy']}"


def _stories(document: Document, lane: Document) -> list[str]:
    """Return how a lane's guests saw something else than the architecture, if they did."""
    story, name = lane["story"], lane_label(document, lane)
    declared = ", ".join(f"{rule['rule']} ({rule['events']:,} events)" for rule in story["declared"])
    sentences = []
    if story["verdict"] == "diverged":
        first = story["first_divergence"]
        place = f"first at event {first['event']:,} on vCPU {first['vcpu']}: {first['what'].rstrip('.')}"
        claim = "although it claims to be correct" if lane["claims_correct"] else "as it is known to"
        sentences.append(f"{name} is wrong, {claim}, {place}.")
    elif story["verdict"] == "same_but_declared":
        sentences.append(f"{name} differs from the architecture only as it declares: {declared}.")
    elif story["verdict"] == "not_comparable":
        sentences.append(f"{name} cannot be compared: {story['note'] or 'no reason given'}.")
    elif not lane["claims_correct"]:
        sentences.append(f"{name} is known to be wrong; this source does not show it.")
    if lane["leaks"]:
        sentences.append(f"{name} leaks: {lane['leaks']:,} times a foreign register was met.")
    if lane["latent_hazards"]:
        entries = f"{lane['latent_hazards']:,} times the guest was entered"
        sentences.append(f"{name} has latent hazards: {entries} with registers that could show.")
    return sentences


def _recorded(reference: Document) -> list[str]:
    """Return how the reference's reads compare with the recorded ones, where any were recorded."""
    reads = reference["recorded_reads"]
    if not reads:
        return []
    what = "DR6 reads" if reference["recorded_dr6_reads"] == reads else "MOV DR reads"
    sentences = [
        f"{what} equal to the recorded: {reads - reference['disagreements']:,} of {reads:,}, "
        "with each #DB's DR6 taken from the read that follows; "
        f"{reference['agreements_without_payloads']:,} of {reads:,} without."
    ]
    first = reference["first_disagreement"]
    if first is not None:
        sentences.append(f"The first that differs is event {first['event']:,}: {first['what']}")
    if reference["contradictions"]:
        sentences.append(f"{reference['contradictions']:,} recorded MOV DR retired but fault here.")
    return sentences
