"""The JSON object as rows of a table, one value a row; pure functions of the object."""

import csv
import io
from collections.abc import Iterable
from typing import Final

from guest_svc.render_words import LANE_KEYS
from guest_svc.results import Document

_OWN_ROWS: Final = {"lanes", "ranges", "earlier", "intervals"}  # what has the place of a lane


def csv_text(document: Document) -> str:
    """Return a run as rows of lane, metric and value; names of nested metrics are joined by points."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("lane", "policy", "vendor", "prices", "metric", "value"))
    keys = LANE_KEYS
    source = {key: value for key, value in document.items() if key not in _OWN_ROWS}
    writer.writerows(("", "", "", "", metric, value) for metric, value in _leaves(source))
    for number, lane in enumerate(document["lanes"]):
        place = (number, *(lane[key] for key in keys))
        rest = {key: value for key, value in lane.items() if key not in keys}
        writer.writerows((*place, metric, value) for metric, value in _leaves(rest))
    for lane in document.get("earlier", {}).get("lanes", ()):
        place = ("", *(lane[key] for key in keys))
        rest = {key: value for key, value in lane.items() if key not in keys}
        writer.writerows((*place, f"earlier.{metric}", value) for metric, value in _leaves(rest))
    for interval in document.get("intervals", ()):
        place = ("", *(interval[key] for key in keys))
        for figure, ends in interval["figures"].items():
            names = (f"intervals.{figure}.{end}" for end in ("lower_bound", "modelled"))
            writer.writerows((*place, metric, value) for metric, value in zip(names, ends, strict=True))
    for point in document.get("ranges", ()):
        place = ("", *(point[key] for key in keys))
        metric = f"ranges.dr_write={point['dr_write']}.dr_read={point['dr_read']}"
        writer.writerow((*place, metric, point["throughput_loss_against_ignore"]))
    return out.getvalue()


def _leaves(value: object, name: str = "") -> Iterable[tuple[str, object]]:
    """Yield every number and text inside an object, under its path."""
    if isinstance(value, dict):
        items: Iterable[tuple[object, object]] = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield name, "" if value is None else str(value).lower() if isinstance(value, bool) else value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))
