"""Memory that a longer stream must not need."""

from pathlib import Path
from statistics import median
from typing import Final

from guest_svc.workloads import find_workload
from tests.bench.cases import SWITCHES
from tests.bench.commands import PRICES, check_document, guest_peak
from tests.bench.measure import say
from tests.bench.pair import address, server
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = "most memory ever resident, one stream, kvm-6.14, context-switch"
MEBIBYTE: Final = 1 << 20
SAME: Final = Goal(1.05, is_most=True)  # peaks of equal runs differ by two or three in a hundred
POLICY: Final = "kvm-6.14"


def rows(plan: Plan) -> list[Row]:
    """Return the peaks of both services for a long stream in those for a short one."""
    if not Path("/proc/self/status").is_file():
        say("memory: not measured, since this system does not tell a process's peak")
        return []
    say("memory")
    short = 100_000 if plan.is_quick else 1_000_000
    peaks: dict[int, list[tuple[int, int]]] = {short: [], 10 * short: []}
    for number in range(min(plan.rounds, 3)):
        for events, found in peaks.items():
            found.append(_peaks(plan.folder, f"m{number}-{events}", events))
    medians = {events: [median(side) for side in zip(*all_, strict=True)] for events, all_ in peaks.items()}
    return [
        Row(
            TOPIC,
            f"{side}: {10 * short:,} events, peak of {short:,}",
            medians[10 * short][place] / medians[short][place],
            goal=SAME,
            numbers={f"{events} events MiB": both[place] / MEBIBYTE for events, both in medians.items()},
        )
        for place, side in enumerate(("guest", "hypervisor"))
    ]


def _peaks(folder: Path, name: str, events: int) -> tuple[int, int]:
    """Return the peaks of guest and hypervisor for one stream in fresh processes, its result checked."""
    with server(folder, name) as process:
        options = ["--policy", POLICY, "--prices", PRICES, "--output", "json"]
        options += ["--events", str(events), "--hypervisor", address(folder, name)]
        peak, document = guest_peak(["run", SWITCHES, *options])
        ours = process.peak_bytes()
    check_document(name, find_workload(SWITCHES).make({}, 0, events), [POLICY], document)
    return peak, ours
