"""How time and memory grow with events, lanes and vCPUs: lines fitted to what was measured."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle, islice
from typing import Any, Final, NamedTuple

import numpy as np

from exitlab.events import COLUMN_NAMES, EventColumns
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.engine import Engine
from hypervisor_svc.policies import policy_names, policy_vendors
from tests.bench import memory
from tests.bench.cases import CAPTURE, SUMMARY, SWITCHES, VMX, Case, case, engine, lane, loop_engine
from tests.bench.engine_lanes import by_machine, run
from tests.bench.lanes import distinct_lanes
from tests.bench.measure import Measure, alternate, check_same, say
from tests.bench.pair import BLOCK_EVENTS, found, loop_report
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = "growth of processor time and memory: powers are slopes of lines through logarithms"
LINEAR: Final = Goal(1.05, is_most=True)
CONSTANT: Final = Goal(0.01, is_most=True)
STRAIGHT: Final = Goal(0.1, is_most=True)
VCPUS: Final = (1, 2, 4, 8, 16, 32, 64)
LANE_STEP: Final = 4
MOST_BLOCKS: Final = 32  # at hand; longer streams repeat them


class Fit(NamedTuple):
    """A line through points, and how far from it the farthest one is."""

    slope: float
    offset: float
    residual: float


def fit(points: Mapping[float, float]) -> Fit:
    """Return the line of least squares; the residual is the largest, as it is."""
    x, y = np.array(list(points)), np.array(list(points.values()))
    slope, offset = np.polyfit(x, y, 1)
    return Fit(float(slope), float(offset), float(np.abs(y - slope * x - offset).max()))


def fit_of_logarithms(points: Mapping[float, float]) -> Fit:
    """Return the line through logarithms: the slope is the power, the residual the largest factor less 1."""
    line = fit({float(np.log(x)): float(np.log(y)) for x, y in points.items()})
    return line._replace(residual=float(np.expm1(line.residual)))


def rows(plan: Plan) -> list[Row]:
    """Return how time and memory grow."""
    say("growth")
    return [
        *_with_events(plan, SWITCHES),
        *_with_events(plan, CAPTURE),
        *_memory(plan),
        *_with_lanes(plan),
        *_with_vcpus(plan),
    ]


def feed(
    make: Callable[[hypervisor_pb2.SessionConfig], Engine],
    config: hypervisor_pb2.SessionConfig,
    blocks: list[EventColumns],
    count: int,
) -> tuple[float, Engine]:
    """Feed a block and ``count`` more to a new engine, those at hand again and again.

    Returns the processor time of all but the first, in which steps are learned, and the engine.
    """
    one = make(config)
    start = time.process_time()
    for number, block in enumerate(islice(cycle(blocks), count + 1)):
        one.feed(block, int(SUMMARY))
        if number == 0:
            start = time.process_time()
    return time.process_time() - start, one


def _with_events(plan: Plan, name: str) -> list[Row]:
    counts = plan.growth_blocks
    base = case(name, MOST_BLOCKS * BLOCK_EVENTS)
    config = base.config([lane("kvm-6.14")])
    blocks = [block for block in base.blocks(BLOCK_EVENTS) if len(block) == BLOCK_EVENTS]
    _check(f"growth, {name}", config, blocks, counts[-1])
    runs = {count: partial(_feed_seconds, config, blocks, count) for count in counts}
    seconds = _medians(runs, plan.rounds)
    events = {count: count * BLOCK_EVENTS for count in counts}
    line = fit_of_logarithms({float(events[count]): taken for count, taken in seconds.items()})
    numbers = {f"{events[count]} events ns/event": seconds[count] / events[count] * 1e9 for count in counts}
    longest, tenth = counts[-1], counts[-4]
    of_tenth = seconds[longest] / seconds[tenth] * tenth / longest
    what = f"time with events, {name}, {events[counts[0]]:,} to {events[longest]:,} after the first block"
    return [
        _power(what, line, LINEAR, numbers),
        Row(TOPIC, "  an event of the longest, in one of a tenth of it", of_tenth, numbers=numbers),
    ]


def _memory(plan: Plan) -> list[Row]:
    peaks = memory.peaks(plan)
    made = []
    for place, side in enumerate(memory.SIDES if peaks else ()):
        points = {float(events): both[place] / memory.MEGABYTE for events, both in peaks.items()}
        line = fit_of_logarithms(points)
        numbers = {f"{events:.0f} events MB": peak for events, peak in points.items()}
        what = f"memory of the {side} with events, {min(peaks):,} to {max(peaks):,}"
        made.append(_power(what, line, CONSTANT, numbers))
    return made


def _with_lanes(plan: Plan) -> list[Row]:
    whole = case(SWITCHES, plan.stream_events // 4)
    lanes = by_machine(
        whole, distinct_lanes(sum(VMX in policy_vendors(name) for name in policy_names()), (VMX,))
    )
    counts = [1, *range(LANE_STEP, len(lanes) + 1, LANE_STEP)]
    truth = loop_report(whole, whole.config(lanes[: counts[-1]]))
    check_same("growth, lanes", truth, found(run(whole, lanes[: counts[-1]])[1].report()))
    seconds = _medians({count: partial(_run_seconds, whole, lanes[:count]) for count in counts}, plan.rounds)
    per_event = {float(count): taken / len(whole.events) * 1e9 for count, taken in seconds.items()}
    line = fit(per_event)
    share = line.residual / max(per_event.values())
    numbers = {f"{count:.0f} lanes ns/event": taken for count, taken in per_event.items()}
    numbers |= {"ns/event of each lane": line.slope, "ns/event of none": line.offset}
    what = (
        f"time with lanes, 1 to {counts[-1]} of one reference: {line.offset:.1f} ns an event and"
        f" {line.slope:.1f} a lane, farthest point off by, of the most"
    )
    return [_row(what, share, STRAIGHT, numbers)]


def _with_vcpus(plan: Plan) -> list[Row]:
    """Measure streams of more vCPUs with as many events each, after a block in which steps are learned."""
    one = case(SWITCHES, plan.vcpu_events)
    runs, events = {}, {}
    for vcpus in VCPUS:
        whole = on_vcpus(one, vcpus)
        config, blocks = whole.config([lane("kvm-6.14")]), whole.blocks(BLOCK_EVENTS)
        _check(f"growth, {vcpus} vCPUs", config, blocks, len(blocks))
        runs[vcpus] = partial(_feed_seconds, config, blocks, len(blocks))
        events[vcpus] = len(whole.events)
    seconds = _medians(runs, plan.rounds)
    line = fit_of_logarithms({float(vcpus): taken for vcpus, taken in seconds.items()})
    numbers = {f"{vcpus} vCPUs ns/event": seconds[vcpus] / events[vcpus] * 1e9 for vcpus in VCPUS}
    what = f"time with vCPUs, {VCPUS[0]} to {VCPUS[-1]}, {plan.vcpu_events:,} events each"
    return [_power(what, line, LINEAR, numbers)]


def on_vcpus(one: Case, vcpus: int) -> Case:
    """Return a stream of one vCPU on so many, event by event in turn, each on a CPU of its own."""
    columns = {name: np.repeat(column, vcpus) for name, column in columns_of(one.events).items()}
    columns["vcpus"] = np.tile(np.arange(vcpus, dtype=np.uint8), len(one.events))
    events = EventColumns(**columns)
    return Case(one.name, events, vcpus, vcpus, tuple(range(vcpus)), one.is_computed)


def columns_of(events: EventColumns) -> dict[str, Any]:
    """Return the columns that are declared."""
    names = [COLUMN_NAMES[column - 1] for column in events.declared]
    return {name: getattr(events, name) for name in names}


def _check(what: str, config: hypervisor_pb2.SessionConfig, blocks: list[EventColumns], count: int) -> None:
    """Refuse a stream of which the engine does not say what the oracle loop says."""
    truth, ours = (feed(make, config, blocks, count)[1].report() for make in (loop_engine, engine))
    check_same(what, found(truth), found(ours))


def _feed_seconds(config: hypervisor_pb2.SessionConfig, blocks: list[EventColumns], count: int) -> float:
    return feed(engine, config, blocks, count)[0]


def _run_seconds(whole: Case, lanes: list[policy_pb2.Lane]) -> float:
    return run(whole, lanes)[0]


def _medians(runs: Mapping[int, Measure], rounds: int) -> dict[int, float]:
    samples = alternate({str(size): one for size, one in runs.items()}, rounds)
    return {size: samples.median(str(size)) for size in runs}


def _power(what: str, line: Fit, goal: Goal, numbers: dict[str, float]) -> Row:
    numbers = {**numbers, "power": line.slope, "farthest from the line": line.residual}
    return _row(f"{what}: power (farthest point {line.residual:.0%} off)", line.slope, goal, numbers, "")


def _row(what: str, measured: float, goal: Goal, numbers: dict[str, float], unit: str = "x") -> Row:
    told = ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
    return Row(TOPIC, what, measured, unit, goal, numbers, "" if goal.is_met(measured) else told)
