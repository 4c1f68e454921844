"""The JSON object of ``conform`` as text for people and as CSV; pure functions of the object.

Names come from files that anybody may have written, so what is no character to see is escaped.
"""

import csv
import io
import json
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from exitlab.words import printable
from guest_svc.render_words import LINE_CHARACTERS, table
from guest_svc.results import Document
from guest_svc.vectors.reading import BILL_COUNTS

_EXAMPLES: Final = 6  # of failures that are printed whole
_NAMED: Final = 4  # vectors that a line names
_CSV_FIELDS: Final = (
    *("id", "policy", "vendor", "ok", "declared", "refused"),
    *("file", "result", "claims_correct", "reason"),
)
_RESULT_NAMES: Final[dict[str, str]] = {"known_bug": "known bug", "failed": "FAILED"}

Cases = list[Document]


def formatted(document: Document, output: str, *, has_detail: bool = False) -> str:
    """Return what a run of vectors found, as text, json or csv."""
    if output == "json":
        return json.dumps(document, indent=2) + "\n"
    return csv_text(document) if output == "csv" else text(document, has_detail=has_detail)


def text(document: Document, *, has_detail: bool = False) -> str:
    """Return what a run of vectors found: counts, what policies are known for, and what failed.

    With detail every vector's bill is there, and every failure with what was expected and what came.
    """
    counts = ", ".join(f"{document[name]:,} {name}" for name in ("passed", "failed", "declared", "refused"))
    ran = f"{document['vectors']:,} vectors under {document['lanes']} lanes"
    lines = [f"{ran}: {counts}, {document['known_bugs']:,} known bugs shown"]
    lines += _known(document["cases"], _NAMED if not has_detail else len(document["cases"]))
    if document["out"]:
        lines.append(f"{document['out']:,} vectors are out, because they need what is not modelled:")
        lines += [f"  {printable(row['id'])}: {printable(row['reason'])}" for row in document["out_rows"]]
    if has_detail:
        lines += _bills(document["cases"])
    lines += _failures([case for case in document["cases"] if case["result"] == "failed"], has_detail)
    return "\n".join(lines) + "\n"


def csv_text(document: Document) -> str:
    """Return a row for each vector and lane, and one for each vector that is out."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for case in document["cases"]:
        reason = case["note"] or (_cause(case) if case["result"] == "failed" else "")
        writer.writerow({name: _cell(value) for name, value in (case | {"reason": reason}).items()})
    for row in document["out_rows"]:
        writer.writerow({name: _cell(value) for name, value in (row | {"result": "out"}).items()})
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    return int(value) if isinstance(value, bool) else value


def _known(cases: Cases, most: int) -> list[str]:
    """Return what is known of the policies that ran: that they are wrong, and how they differ."""
    lines = []
    for policy, of_policy in _grouped(cases, "policy"):
        wrong = [case for case in of_policy if not case["claims_correct"]]
        name = f"  {printable(policy)}"
        if wrong:
            is_everywhere = len(wrong) == len(of_policy)
            lines.append(f"{name}{'' if is_everywhere else _on(wrong)} claims to be wrong")
        shown = [case for case in of_policy if case["result"] == "known_bug"]
        if shown:
            names = [f"{printable(name)}{_on(alike)}" for name, alike in _grouped(shown, "id")]
            lines.append(_hanging(f"{printable(policy)} shows known bugs: {_some(names, most)}"))
        rules = Counter(case["declared"] for case in of_policy if case["result"] == "declared")
        lines += [f"{name} declares {printable(rule)}: {count}" for rule, count in sorted(rules.items())]
        refused = sum(case["result"] == "refused" for case in of_policy)
        if refused:
            lines.append(f"{name} refuses what the host does: {refused}")
    return lines


def _bills(cases: Cases) -> list[str]:
    """Return what each vector cost under each lane, and what a host debugger was told."""
    lines = []
    header = ("policy", "on", "result", "exits", *(name.replace("_", " ") for name in BILL_COUNTS))
    for (file, name), of_vector in groupby(cases, lambda case: (case["file"], case["id"])):
        rows: list[Sequence[str]] = [header]
        told = []
        for case in of_vector:
            bill = case["bill"]
            exits = ", ".join(f"{bill[each]:,} {each}" for each in bill if each not in BILL_COUNTS)
            result = _RESULT_NAMES.get(str(case["result"]), str(case["result"]))
            counts = (f"{bill[each]:,}" for each in BILL_COUNTS)
            rows.append((printable(case["policy"]), case["vendor"], result, exits or "none", *counts))
            told += _told(case)
        table_lines = table(rows, left_columns=4).splitlines()
        lines += [f"{printable(name)} of {printable(file)}", *(f"  {line}" for line in [*table_lines, *told])]
    return lines


def _told(case: Document) -> list[str]:
    """Return what a host debugger was told under a lane."""
    lane = f"{printable(case['policy'])} on {case['vendor']} tells the debugger"
    return [
        f"{lane}: exception {vector}, DR6 {dr6}, DR7 {dr7}" + (f" ({count:,} times)" if count > 1 else "")
        for vector, dr6, dr7, count in case["debug_exits"]
    ]


def _failures(failed: Cases, has_detail: bool) -> list[str]:
    """Return failures by policy and cause, then with what was expected and what came: a few, or all."""
    lines: list[str] = []
    ranked: list[tuple[bool, int, Document]] = []
    for policy, of_policy in _grouped(failed, "policy"):
        is_wrong = not any(case["claims_correct"] for case in of_policy)
        claim = "wrong" if is_wrong else "correct"
        counts = _counts(of_policy)
        lines.append(f"FAILED under {printable(policy)}, which claims to be {claim}: {counts}")
        for file, of_file in _grouped(of_policy, "file"):
            for cause, alike in _by_cause(of_file):
                where = f"{printable(file)}: {cause}, {_counts(alike)}"
                names = [printable(name) for name, _ in _grouped(alike, "id")]
                lines.append(_hanging(f"{where}: {_some(names, _NAMED)}"))
                ranked += [(is_wrong, rank, case) for rank, case in enumerate(alike)]
    # First of all what a policy should not do that claims to be correct, and one example of each cause.
    examples = [case for *_, case in sorted(ranked, key=lambda each: each[:2])][:_EXAMPLES]
    for case in failed if has_detail else examples:
        lines += _failure(case)
    if not has_detail and len(failed) > len(examples):
        lines.append(f"{len(failed) - len(examples):,} more failed; --detail prints them all")
    return lines


def _failure(case: Document) -> list[str]:
    lane = f"{printable(case['policy'])} on {case['vendor']}"
    lines = [f"FAILED {printable(case['id'])} under {lane} ({printable(case['file'])})"]
    for name in _different(case):
        lines.append(f"  {name}: expected {json.dumps(case['expected'][name])}")
        lines.append(f"  {' ' * len(name)}       got {json.dumps(case['got'][name])}")
    return lines + ([f"  {printable(case['note'])}"] if case["note"] else [])


def _by_cause(cases: Cases) -> Iterable[tuple[str, Cases]]:
    """Return failures by what differs, the most frequent first."""
    found: dict[str, Cases] = defaultdict(list)
    for case in cases:
        found[_cause(case)].append(case)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _cause(case: Document) -> str:
    """Return what differs in a case that failed, in the words of a vector file."""
    names = _different(case)
    if not names:
        return "it differs where the vector does not look"
    return f"{', '.join(names)} differ{'s' if len(names) == 1 else ''}"


def _different(case: Document) -> list[str]:
    return [name for name, value in case["expected"].items() if case["got"][name] != value]


def _grouped(cases: Cases, key: str) -> Iterable[tuple[str, Cases]]:
    """Return cases by one of their fields, in the order of first occurrence."""
    found: dict[str, Cases] = defaultdict(list)
    for case in cases:
        found[case[key]].append(case)
    return found.items()


def _counts(cases: Cases) -> str:
    """Return how many cases there are on each vendor."""
    return ", ".join(f"{len(there):,} on {vendor}" for vendor, there in _grouped(cases, "vendor"))


def _on(cases: Cases) -> str:
    return f" on {', '.join(vendor for vendor, _ in _grouped(cases, 'vendor'))}"


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return "; ".join(names[:most]) + (f"; and {rest:,} more" if rest > 0 else "")


def _hanging(sentence: str) -> str:
    """Return an indented sentence in lines that fit a terminal."""
    return textwrap.fill(
        sentence,
        LINE_CHARACTERS,
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_long_words=False,
        break_on_hyphens=False,
    )
