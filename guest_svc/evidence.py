"""How far each figure of a replayed trace can be trusted: measured, modelled, or a bound.

A host that tracks debug registers lazily records one access of each window, whatever followed it. So
what depends on the number of accesses is a lower bound. With an assumed number of accesses a second run
gives the other end of an interval, which is modelled. Of a trace that has lost events all counts are lower
bounds.
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
    is_lossy = trace["lost_notes"] > 0
    is_less = is_lossy or trace["dr_access"]["windows"] > 0
    counted = LOWER_BOUND if is_lossy else MEASURED
    bound = LOWER_BOUND if is_less else MODELLED
    return {
        "events": counted,
        "trace.exits": counted,
        "trace.dr_access": counted if trace["dr_access"]["host"] != "assumed_lazy" else MODELLED,
        "lanes.guest_cycles": guest_time_of(trace),
        "lanes.exits": counted,
        "lanes.exits.DR_ACCESS": bound,
        "lanes.mov_dr": LOWER_BOUND if is_less else MEASURED,
        "lanes.windows": MODELLED,
        "lanes.overhead_cycles": bound,
        "lanes.cost": bound,
        "lanes.cost.standing": LOWER_BOUND if trace["dr_access"]["exits"] else MODELLED,
        # What is lost is missing in the time as well as in the counts.
        "lanes.rates": MODELLED if is_lossy else bound,
        "lanes.throughput_loss_against_ignore": MODELLED,
        "lanes.latency": MODELLED,
        "lanes.story": MODELLED,
    }


def guest_time_of(trace: Document) -> str:
    """Return what the guest's time is.

    Between exits it is all the time there is, whatever was lost. From entries it is 0 where one is missing.
    """
    if not trace["has_entries"]:
        return UPPER_BOUND
    is_less = trace["lost_notes"] or trace["exits_after_loss"] or trace["exits_without_entry"]
    return LOWER_BOUND if is_less else MEASURED


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
