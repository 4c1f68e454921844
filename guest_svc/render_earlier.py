"""An earlier report beside a run, for people."""

from typing import Final

from guest_svc.render_words import LANE_KEYS, lane_label, ordered, table, verdict_word, wrapped
from guest_svc.results import Document

_TOLD: Final = ("story", "DR exits", "others", "overhead")


def earlier_text(document: Document) -> str:
    """Return what an earlier report said of the same lanes, and what this run says."""
    earlier = document["earlier"]
    known = {tuple(lane[key] for key in LANE_KEYS): lane for lane in earlier["lanes"]}
    rows: list[tuple[str, ...]] = [("policy", *(word for what in _TOLD for word in (f"{what} then", "now")))]
    fresh: list[str] = []
    for lane in ordered(document["lanes"]):
        then = known.pop(tuple(lane[key] for key in LANE_KEYS), None)
        if then is None:
            fresh.append(lane_label(document, lane))
            continue
        pairs = zip(_told_of(then), _told_of(lane), strict=True)
        rows.append((lane_label(document, lane), *(cell for pair in pairs for cell in pair)))
    label = earlier["label"] or "a session without a label"
    same = "the same ones" if earlier["same_events"] else "not the same ones"
    lines = [wrapped(f"Beside an earlier report on {label}, of {earlier['events']:,} events, {same}:")]
    lines += [table(rows)] if len(rows) > 1 else []
    lines += [wrapped(f"Only now: {', '.join(fresh)}")] if fresh else []
    gone = [" ".join(key for key in lane if key) for lane in known]
    lines += [wrapped(f"Only then: {', '.join(gone)}")] if gone else []
    return "\n".join(lines)


def _told_of(lane: Document) -> tuple[str, ...]:
    exits = lane["exits"]
    return (
        verdict_word(lane),
        f"{exits['DR_ACCESS']:,}",
        f"{sum(exits.values()) - exits['DR_ACCESS']:,}",
        f"{lane['overhead_share']:.2%}",
    )
