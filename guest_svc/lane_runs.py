"""How the hypervisor ran each lane: by machine, or event by event in its loop, which takes longer."""

from collections.abc import Sequence
from typing import Any, Final

from exitlab.v1 import hypervisor_pb2, report_pb2

_WHY: Final = {
    "SMALL_BLOCKS": "they came in small blocks",
    "RARE_EVENTS": "the host's events, nested guests' or rare ones are among them",
    "CLUSTERS": "the policy counts accesses or cycles itself",
    "SHARED_CPU": "vCPUs share a physical CPU",
    "STATE": "a debugger, or registers that are not those of the stream",
    "MAY_DIVERGE": "a register that is not the guest's may come to matter",
    "TOO_LARGE": "its machine would be too large",
    "RESERVED_BITS": "what the policy emulates keeps reserved bits as they are written",
}
WORTH_TELLING: Final = 100_000  # events in the loop: some milliseconds


def runs_of(
    runs: Sequence[hypervisor_pb2.LaneRun], lanes: Sequence[report_pb2.LaneReport]
) -> list[dict[str, Any]]:
    """Return for each lane that was told of its policy and how many events ran how."""
    return [
        {
            "policy": lanes[run.lane].policy,
            "machine_events": run.machine_events,
            "loop": [
                {"reason": _reason(share), "events": share.events, "first_event": share.first_event}
                for share in run.loop_shares
            ],
        }
        for run in runs
        if run.lane < len(lanes)
    ]


def _reason(share: hypervisor_pb2.LoopShare) -> str:
    """Return a reason's name; a number if it is not known here."""
    known = hypervisor_pb2.LoopReason.DESCRIPTOR.values_by_number.get(share.reason)
    return known.name.removeprefix("LOOP_REASON_") if known else str(share.reason)


def notes(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each reason for which lanes took long."""
    slow: dict[str, list[str]] = {}
    for run in runs:
        for share in run["loop"]:
            if share["events"] >= WORTH_TELLING:
                slow.setdefault(share["reason"], []).append(f"{run['policy']} ({share['events']:,} events)")
    return [
        f"Not by machine but event by event, as {_WHY.get(why, f'of reason {why}')}: {', '.join(lanes)}."
        for why, lanes in slow.items()
    ]
