"""How far each figure of a replayed trace can be trusted: measured, modelled, or a bound.

A host that tracks debug registers lazily records one access of each window, whatever followed it. So
what depends on the number of accesses is a lower bound. With an assumed number of accesses a second run
gives the other end of an interval, which is modelled.
"""

from collections.abc import Sequence
from typing import Any, Final

from guest_svc.results import Document

MEASURED: Final = "measured"
MODELLED: Final = "modelled"
LOWER_BOUND: Final = "lower_bound"
UPPER_BOUND: Final = "upper_bound"

_LANE_KEYS: Final = ("policy", "vendor", "prices")
# The figures of a lane that are given as intervals, by their path in the lane's object.
INTERVAL_FIGURES: Final = (
    "exits.DR_ACCESS",
    "mov_dr.executed",
    "mov_dr.free",
    "windows",
    "overhead_cycles",
    "overhead_share",
    "cost.mov_dr_exits",
    "cost.synchronization",
    "cost.standing",
    "rates.dr_access_per_guest_second",
    "rates.dr_access_per_wall_second",
    "throughput_loss_against_ignore",
)


def evidence_of(trace: Document) -> dict[str, str]:
    """Return what each figure of a replayed trace is, by its path; ``evidence`` in the schema."""
    hides = trace["dr_access"]["windows"] > 0
    bound = LOWER_BOUND if hides else MODELLED
    return {
        "events": MEASURED,
        "trace.exits": MEASURED,
        "trace.dr_access": MEASURED if trace["dr_access"]["host"] != "assumed_lazy" else MODELLED,
        "lanes.guest_cycles": MEASURED if trace["has_entries"] else UPPER_BOUND,
        "lanes.exits": MEASURED,
        "lanes.exits.DR_ACCESS": bound,
        "lanes.mov_dr": LOWER_BOUND if hides else MEASURED,
        "lanes.windows": MODELLED,
        "lanes.overhead_cycles": bound,
        "lanes.cost": bound,
        "lanes.cost.standing": LOWER_BOUND if trace["dr_access"]["exits"] else MODELLED,
        "lanes.rates": bound,
        "lanes.throughput_loss_against_ignore": MODELLED,
        "lanes.latency": MODELLED,
        "lanes.story": MODELLED,
    }


def intervals_of(least: Sequence[Document], modelled: Sequence[Document]) -> list[Document]:
    """Return for each lane its figures from one access a window to the assumed number.

    ``least`` and ``modelled`` are the same lanes of the two runs.
    """
    return [
        {
            **{key: low[key] for key in _LANE_KEYS},
            "figures": {figure: [_figure(low, figure), _figure(high, figure)] for figure in INTERVAL_FIGURES},
        }
        for low, high in zip(least, modelled, strict=True)
    ]


def _figure(lane: Document, path: str) -> Any:
    """Return a figure of a lane by its path."""
    found: Any = lane
    for name in path.split("."):
        found = found[name]
    return found
