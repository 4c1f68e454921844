"""Rows of vector files for tests."""

import json
from pathlib import Path
from typing import Any

from guest_svc.vectors import Vector, read_vectors

FRESH = {"db": [0, 0, 0, 0], "dr6": "0xffff0ff0", "dr7": "0x400", "ev": [], "reads": {}}
NOP = {"op": "nop"}


def vector_row(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a row of a vector file."""
    return {"id": "t", "mode": "long", "cpl": 0, "cr4_de": 0, "steps": list(steps), "expect": FRESH, **fields}


def read_dr(register: int) -> dict[str, Any]:
    """Return a step that reads a register."""
    return {"op": "mov_from_dr", "n": register}


def write_dr(register: int, value: object) -> dict[str, Any]:
    """Return a step that writes a register."""
    return {"op": "mov_to_dr", "n": register, "v": value}


def read_back(folder: Path, *rows: dict[str, Any]) -> list[Vector]:
    """Return what a file of rows reads as."""
    path = folder / "vectors.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return read_vectors(path)
