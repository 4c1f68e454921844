"""The recorded traces that are shipped with the package; see README.md beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from guest_svc.traces.captures import CaptureSource

FOLDER: Final = Path(__file__).resolve().parent


def capture_facts() -> dict[str, dict[str, Any]]:
    """Return captures.json: what is known of each shipped trace, by name."""
    facts: dict[str, dict[str, Any]] = json.loads((FOLDER / "captures.json").read_text(encoding="utf-8"))
    return facts


def capture_names() -> tuple[str, ...]:
    """Return the names of the shipped traces."""
    return tuple(capture_facts())


def shipped_capture(name: str) -> CaptureSource:
    """Return the shipped trace called ``name``, not read yet."""
    from guest_svc.traces.captures import CaptureSource  # noqa: PLC0415  (imports numpy)

    facts = capture_facts()[name]
    return CaptureSource(
        FOLDER / f"{name}.npz",
        name=f"capture:{name}",
        summary=facts["summary"],
        documentation=facts["workload"],
    )
