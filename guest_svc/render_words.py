"""How lanes are named and laid out for people."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from guest_svc.results import Document

LINE_CHARACTERS: Final = 100
LANE_KEYS: Final = ("policy", "vendor", "prices")
_VERDICTS: Final = {
    "same": "same",
    "same_but_declared": "as declared",
    "diverged": "DIVERGED",
    "not_comparable": "no verdict",
}
_KNOWN_WRONG: Final = "same here"


def wrapped(sentence: str, first: str = "") -> str:
    """Return a sentence in lines that fit a terminal, the first one led by ``first``."""
    return textwrap.fill(
        sentence,
        LINE_CHARACTERS,
        initial_indent=first,
        subsequent_indent=" " * (len(first) or 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(rows: Sequence[Sequence[str]], left_columns: int = 1) -> str:
    """Return rows as aligned columns, the first ones to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if number < left_columns else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def ordered(lanes: Iterable[Document]) -> list[Document]:
    """Return the lanes, those that claim to be correct and are first, then by overhead."""
    return sorted(lanes, key=lambda lane: (not _is_right(lane), lane["overhead_cycles"]))


def lane_label(document: Document, lane: Document) -> str:
    """Return a lane's policy, with what else tells it from the other lanes."""
    extra = [lane[key] for key in ("vendor", "prices") if len(names_of(document, key)) > 1]
    return f"{lane['policy']} ({', '.join(extra)})" if extra else str(lane["policy"])


def names_of(document: Document, key: str) -> list[str]:
    """Return the values that lanes have under a key, each once."""
    return list(dict.fromkeys(lane[key] for lane in document["lanes"]))


def verdict_word(lane: Document) -> str:
    """Return a lane's verdict in a word or two."""
    verdict = lane["story"]["verdict"]
    return _KNOWN_WRONG if verdict == "same" and not lane["claims_correct"] else _VERDICTS[verdict]


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts, in the singular for one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reconnected(times: int) -> list[str]:
    """Return the sentence that the stream was cut, if it was."""
    often = "once" if times == 1 else f"{times:,} times"
    return [f"The stream was cut and went on {often}; no figure depends on that."] if times else []


def _is_right(lane: Document) -> bool:
    return bool(lane["claims_correct"]) and lane["story"]["verdict"] in {"same", "same_but_declared"}
