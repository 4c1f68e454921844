"""Rows of results, as one table for people and as JSON."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numba
import numpy as np
from google import protobuf

SCHEMA: Final = "exitlab.bench/1"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a row is to reach."""

    number: float
    is_most: bool = False  # else it is the least

    def is_met(self, measured: float) -> bool:
        """Tell whether a measured number reaches it."""
        return measured <= self.number if self.is_most else measured >= self.number

    def text(self, unit: str) -> str:
        """Return it for people."""
        return f"{'at most' if self.is_most else 'at least'} {shown(self.number, unit)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One result: mostly a ratio, and the numbers that it was made of."""

    topic: str
    what: str
    measured: float
    unit: str = "x"
    goal: Goal | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    limit: str = ""  # what keeps it from the goal, and how that was found

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; nothing without a goal."""
        return self.goal.is_met(self.measured) if self.goal else None


def shown(number: float, unit: str) -> str:
    """Return a number with its unit, three digits or more."""
    if unit == "events/s":
        return f"{number / 1e6:.3g} M/s" if number >= 1e5 else f"{number / 1e3:.3g} k/s"
    digits = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
    return f"{digits} {unit}"


def table(rows: Sequence[Row]) -> str:
    """Return the table; what limits a row stands below it, by number."""
    lines = [("", "measured", "goal", "met")]
    notes: list[str] = []
    topic = ""
    for row in rows:
        if row.topic != topic:
            topic = row.topic
            lines.append((f"-- {topic}", "", "", ""))
        met = {True: "yes", False: "NO", None: ""}[row.is_met]
        if row.limit:
            notes.append(f"[{len(notes) + 1}] {row.what}: {row.limit}")
            met += f" [{len(notes)}]"
        goal = row.goal.text(row.unit) if row.goal else ""
        lines.append((row.what, shown(row.measured, row.unit), goal, met.strip()))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = [
        f"{what:{widths[0]}}  {measured:>{widths[1]}}  {goal:{widths[2]}}  {met}".rstrip()
        for what, measured, goal, met in lines
    ]
    return "\n".join([*text, *([""] if notes else []), *notes]) + "\n"


def write_json(path: Path, rows: Sequence[Row], seconds: float, *, is_quick: bool) -> None:
    """Write all rows with the numbers behind them, and what they were measured on."""
    document = {
        "schema": SCHEMA,
        "is_quick": is_quick,
        "seconds": round(seconds, 1),
        "machine": _machine(),
        "rows": [_as_object(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _as_object(row: Row) -> dict[str, Any]:
    goal = {"at_most" if row.goal.is_most else "at_least": row.goal.number} if row.goal else None
    return {**asdict(row), "goal": goal, "met": row.is_met}


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "grpcio": grpc.__version__,
        "protobuf": protobuf.__version__,
    }


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
