"""What further lanes cost the engine alone, in this process."""

import cProfile
import pstats
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import Engine
from hypervisor_svc.policies import policy_names, policy_vendors
from tests.bench.cases import CAPTURE, DEVICE_IO, SUMMARY, SWITCHES, VMX, Case, case, engine
from tests.bench.lanes import distinct_lanes
from tests.bench.measure import Samples, alternate, check_same, say
from tests.bench.pair import BLOCK_EVENTS, found, loop_report
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

GOALS: Final = {16: Goal(4, is_most=True), 64: Goal(12, is_most=True)}
CANDIDATES: Final = 120
_SHOWN: Final = 6
_TWO: Final = "two engines"


def rows(plan: Plan) -> list[Row]:
    """Return what 16 and 64 lanes take by machine, and all policies of VMX whichever way they run."""
    return [row for name in (SWITCHES, CAPTURE, DEVICE_IO) for row in _rows(plan, name)]


def run(whole: Case, lanes: list[policy_pb2.Lane]) -> tuple[float, Engine]:
    """Run a stream through a new engine; return seconds with its start and its report, and the engine."""
    config = whole.config(lanes)
    blocks = whole.blocks(BLOCK_EVENTS)
    start = time.perf_counter()
    one = engine(config)
    for block in blocks:
        one.feed(block, int(SUMMARY))
    one.report()
    return time.perf_counter() - start, one


def together(whole: Case, lanes: list[policy_pb2.Lane], count: int) -> float:
    """Run a stream through so many engines at once, a thread each; return seconds until all have run."""
    start = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(run, whole, lanes) for _ in range(count)]:
            done.result()
    return time.perf_counter() - start


def by_machine(whole: Case, lanes: list[policy_pb2.Lane]) -> list[policy_pb2.Lane]:
    """Return the lanes that run nearly all of a stream by machine, those of one reference together."""
    one = run(whole, lanes)[1]
    events = {ran.lane: ran.machine_events for ran in one.lane_runs()}
    least = 0.9 * len(whole.events)  # a stream may end with a block too small for machines
    return [given for number, given in enumerate(lanes) if events[number] > least]


def references(lanes: list[policy_pb2.Lane]) -> str:
    """Return how many lanes there are of each reference."""
    counts: dict[str, int] = {}
    for one in lanes:
        name = policy_pb2.Vendor.Name(one.vendor).removeprefix("VENDOR_")
        features = "".join(f" {feature.name}" for feature, is_there in one.features.ListFields() if is_there)
        counts[name + features] = counts.get(name + features, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _rows(plan: Plan, name: str) -> list[Row]:
    whole = case(name, plan.stream_events // 4)
    topic = f"lanes in the engine alone, summary, {name}, {len(whole.events):,} events"
    say(topic)
    machines = by_machine(whole, distinct_lanes(CANDIDATES))
    counts = [count for count in GOALS if count <= len(machines)]
    chosen = {str(count): machines[:count] for count in (1, *counts)}
    chosen["every"] = distinct_lanes(sum(VMX in policy_vendors(name) for name in policy_names()), (VMX,))
    for what, lanes in chosen.items():
        truth = loop_report(whole, whole.config(lanes))
        check_same(f"{what} lanes, {name}", truth, found(run(whole, lanes)[1].report()))
    variants = {what: partial(_seconds, whole, lanes) for what, lanes in chosen.items()}
    variants[_TWO] = partial(together, whole, chosen["1"], 2)
    samples = alternate(variants, plan.rounds)
    events = dict.fromkeys(chosen, float(len(whole.events))) | {_TWO: 2.0 * len(whole.events)}
    per_event = samples.scaled(events)
    rate = 1 / per_event.median("1")
    rows = [
        Row(topic, "1 lane, events a second", rate, "events/s", numbers=_numbers(per_event, "1")),
        Row(
            topic,
            "1 lane, two engines in two threads, rate of one",
            per_event.median("1") / per_event.median(_TWO),
            numbers=_numbers(per_event, _TWO),
        ),
    ]
    for count in counts:
        what = str(count)
        times = samples.speed("1", what)
        numbers = {**_numbers(per_event, what), "lanes": float(count)}
        told = f"{count} lanes, all by machine ({references(chosen[what])}), time of one"
        limit = "" if GOALS[count].is_met(times) else _limit(whole, chosen[what])
        rows.append(Row(topic, told, times, goal=GOALS[count], numbers=numbers, limit=limit))
    ran = len(by_machine(whole, chosen["every"]))
    told = f"{len(chosen['every'])} lanes, every policy of VMX ({ran} by machine), time of one"
    rows.append(Row(topic, told, samples.speed("1", "every"), numbers=_numbers(per_event, "every")))
    return rows


def _seconds(whole: Case, lanes: list[policy_pb2.Lane]) -> float:
    return run(whole, lanes)[0]


def _numbers(per_event: Samples, what: str) -> dict[str, float]:
    return {"ns/event": per_event.median(what) * 1e9}


def _limit(whole: Case, lanes: list[policy_pb2.Lane]) -> str:
    """Return where the time of a run goes, by the profiler: the functions with most time of their own."""
    profiler = cProfile.Profile()
    profiler.runcall(run, whole, lanes)
    statistics: Any = pstats.Stats(profiler)
    own = sorted(statistics.stats.items(), key=lambda item: -item[1][2])[:_SHOWN]
    told = (f"{where[2]} {times[2] / len(whole.events) * 1e9:.1f}" for where, times in own)
    return f"ns/event of each function's own time, by cProfile: {', '.join(told)}"
