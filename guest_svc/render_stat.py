"""A trace's own table: text in the layout of perf kvm stat report, JSON, CSV; pure functions."""

import csv
import io
import json
from typing import Any, Final

from guest_svc.render_words import counted

Document = dict[str, Any]

_NAME_CHARACTERS: Final = 20
_HEADER: Final = ("VM-EXIT", "Samples", "Samples%", "Time%", "Min Time", "Max Time", "Avg time")
_HEADER_WIDTHS: Final = (_NAME_CHARACTERS, 10, 9, 9, 11, 11, 16)


def formatted(document: Document, output: str) -> str:
    """Return a table as ``output`` says: text, json or csv."""
    if output == "json":
        return json.dumps(document, indent=2) + "\n"
    return csv_text(document) if output == "csv" else text(document)


def text(document: Document) -> str:
    """Return the table as perf prints it; names of up to 20 characters keep its columns."""
    vcpus = "All VCPUs" if document["vcpu"] is None else f"VCPU {document['vcpu']}"
    header = " ".join(f"{name:>{width}}" for name, width in zip(_HEADER, _HEADER_WIDTHS, strict=True))
    lines = ["", "", f"Analyze events for all VMs, {vcpus}:", "", header, ""]
    lines += [_line(row) for row in document["rows"]]
    total = f"Total Samples:{document['samples']}, Total events handled time:{document['total_us']:.2f}us."
    lines += ["", total, ""]
    if document["lost_events"] or document["lost_notes"]:
        lines += [f"Lost events: {document['lost_events']}", ""]
    return "\n".join(lines)


def _line(row: Document) -> str:
    times = " ".join(f"{row[name]:9.2f}us" for name in ("min_us", "max_us", "mean_us"))
    return (
        f"{row['reason']:>{_NAME_CHARACTERS}} {row['samples']:>10} {100 * row['samples_share']:8.2f}% "
        f"{100 * row['time_share']:8.2f}% {times} "
        f"( +-{100 * row['relative_standard_error']:7.2f}% )"
    )


def csv_text(document: Document) -> str:
    """Return a row for each reason."""
    out = io.StringIO()
    fields = list(document["rows"][0]) if document["rows"] else ["reason"]
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["rows"])
    return out.getvalue()


def _lines(found: Document, what: str) -> str:
    count = counted(found["lines"], "line")
    return f"{count} {what}, the first is line {found['first_line'] or 0:,}"


def notes(document: Document) -> list[str]:
    """Return a line for each thing that the table does not show."""
    malformed, too_long = document["malformed"], document["too_long"]
    told = [
        (document["damage"], f"{document['damage']}; the table is of what comes before"),
        (malformed["lines"], _lines(malformed, "cannot be read")),
        (too_long["lines"], _lines(too_long, "too long for a record")),
        (document["cut_lines"], "the last line has no end and is not used"),
        (
            document["time_backwards"],
            f"{document['time_backwards']:,} entries come before their exit in time",
        ),
        (
            document["unfinished_exits"],
            f"{counted(document['unfinished_exits'], 'exit')} without an entry after it",
        ),
        (
            document["lost_notes"] and not document["lost_events"],
            f"{document['lost_notes']:,} times events were lost; the trace does not say how many",
        ),
    ]
    return [note for is_so, note in told if is_so]
