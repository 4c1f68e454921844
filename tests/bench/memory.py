"""Memory that a longer stream must not need."""

from functools import cache
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
MEGABYTE: Final = 1_000_000
SAME: Final = Goal(1.05, is_most=True)  # peaks of equal runs differ by two or three in a hundred
LEAST: Final = Goal(300, is_most=True)
POLICY: Final = "kvm-6.14"
SIDES: Final = ("guest", "hypervisor")
Peaks = dict[int, tuple[float, float]]  # of guest and hypervisor, by events


def rows(plan: Plan) -> list[Row]:
    """Return the peaks of both services for the longest stream, and in those for a hundredth of it."""
    found = peaks(plan)
    if not found:
        return []
    say("memory")
    longest, short = plan.memory_events[-1], plan.memory_events[-3]
    made = []
    for place, side in enumerate(SIDES):
        numbers = {f"{events} events MB": both[place] / MEGABYTE for events, both in found.items()}
        most, ratio = found[longest][place] / MEGABYTE, found[longest][place] / found[short][place]
        told = ", ".join(f"{name.removesuffix(' MB')} {number:.1f}" for name, number in numbers.items())
        limits = [
            "" if goal.is_met(measured) else f"MB by length: {told}"
            for goal, measured in ((LEAST, most), (SAME, ratio))
        ]
        what = f"{side}: {longest:,} events"
        made.append(Row(TOPIC, what, most, "MB", LEAST, numbers, limits[0]))
        made.append(Row(TOPIC, f"{what}, peak of {short:,}", ratio, "x", SAME, numbers, limits[1]))
    return made


@cache
def peaks(plan: Plan) -> Peaks:
    """Return the peaks of both services by the length of the stream; nothing where none can be told."""
    if not Path("/proc/self/status").is_file():
        say("memory: not measured, since this system does not tell a process's peak")
        return {}
    found: Peaks = {}
    for events in plan.memory_events:
        say(f"memory, {events:,} events")
        # The longest takes long, and a peak that grows shows in it whatever the noise.
        rounds = 1 if events == plan.memory_events[-1] else min(plan.rounds, 3)
        pairs = [_peaks(plan.folder, f"m{number}-{events}", events) for number in range(rounds)]
        found[events] = (median(guest for guest, _ in pairs), median(ours for _, ours in pairs))
    return found


def _peaks(folder: Path, name: str, events: int) -> tuple[int, int]:
    """Return the peaks of guest and hypervisor for one stream in fresh processes, its result checked."""
    with server(folder, name) as process:
        options = ["--policy", POLICY, "--prices", PRICES, "--output", "json"]
        options += ["--events", str(events), "--hypervisor", address(folder, name)]
        peak, document = guest_peak(["run", SWITCHES, *options])
        ours = process.peak_bytes()
    check_document(name, find_workload(SWITCHES).make({}, 0, events), [POLICY], document)
    return peak, ours
