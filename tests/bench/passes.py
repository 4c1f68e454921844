"""The story pass and the machines against the same loops in C."""

from functools import partial
from typing import Final, NamedTuple
from unittest import mock

from hypervisor_svc.engine import gang
from hypervisor_svc.engine.machine import MAX_STEPS
from tests.bench import calls
from tests.bench.calls import Recorded, record
from tests.bench.cases import CAPTURE, DEVICE_IO, RANDOM, RANDOM_ALONE, SWITCHES, VMX, Case, case, engine
from tests.bench.lanes import distinct_lanes
from tests.bench.loop import Loop
from tests.bench.measure import alternate, check_same, say
from tests.bench.oracle_loop import mean_row
from tests.bench.pair import found, loop_report
from tests.bench.plan import Plan
from tests.bench.port import MACHINES, REFERENCE, SYMBOLS, Port
from tests.bench.table import Goal, Row
from tests.bench.twin import FLAGS, NoTwin, compile_twin, compiler

LANES: Final = 16
TOPIC: Final = f"the story pass, and the machines of {LANES} lanes, compiled"
GOAL: Final = Goal(0.8)
WHATS: Final = {
    REFERENCE: "story pass, the reference",
    SYMBOLS: "story pass, the symbols",
    MACHINES: "machines",
}
STREAMS: Final = {
    REFERENCE: (CAPTURE, SWITCHES, DEVICE_IO, RANDOM),
    SYMBOLS: (CAPTURE, SWITCHES, DEVICE_IO, RANDOM_ALONE),
    MACHINES: (CAPTURE, SWITCHES, DEVICE_IO, RANDOM_ALONE),
}


class Stream(NamedTuple):
    """A stream with the calls that its second half makes; the machines have learned in the first."""

    case: Case
    recorded: dict[Port, Recorded]


def rows(plan: Plan) -> list[Row]:
    """Return the speed of both passes against C at -O3."""
    say(f"the story pass and the machines against C ({' '.join([*compiler(), *FLAGS[:1]])})")
    streams = {name: _recorded(plan, name) for name in (CAPTURE, SWITCHES, DEVICE_IO, RANDOM_ALONE, RANDOM)}
    rows: list[Row] = []
    for port, what in WHATS.items():
        try:
            in_c = compile_twin(port, streams[CAPTURE].recorded[port].calls[0], plan.folder)
        except NoTwin as error:
            say(f"{what} in C: not measured, {error}")
            continue
        chosen = [streams[name] for name in STREAMS[port] if streams[name].recorded[port].calls]
        for one in chosen:
            ours, theirs = (
                one.recorded[port].results(loop) for loop in (partial(calls.compiled, port), in_c)
            )
            check_same(f"{what} in C, {one.case.name}", ours, theirs)
        found = [_row(plan, port, in_c, one) for one in chosen]
        rows += [mean_row(TOPIC, f"{what}, speed of C at -O3 (geometric mean)", found, GOAL), *found]
    return rows


def _recorded(plan: Plan, name: str) -> Stream:
    """Run a stream and return the calls of its second half; the report is the oracle loop's."""
    is_random = name in (RANDOM, RANDOM_ALONE)
    whole = case(name, 2 * (plan.random_events if is_random else plan.loop_events))
    config = whole.config(distinct_lanes(LANES, vendors=(VMX,)))
    one = engine(config)
    first, second = whole.blocks((len(whole.events) + 1) // 2)
    # A twin in C has rows of one length: counters have all their room from the start.
    with mock.patch.object(gang, "_FIRST_STEPS", MAX_STEPS):
        one.feed(first, int(config.outcome_level))
    recorded = record(tuple(WHATS), lambda: one.feed(second, int(config.outcome_level)))
    check_same(f"the machines, {name}", loop_report(whole, config), found(one.report()))
    return Stream(whole, {one.port: one for one in recorded})


def _row(plan: Plan, port: Port, in_c: Loop, stream: Stream) -> Row:
    recorded = stream.recorded[port]
    variants: dict[str, Loop] = {"compiled": partial(calls.compiled, port), "C": in_c}
    runs = {name: partial(recorded.run_seconds, loop) for name, loop in variants.items()}
    events = len(stream.case.events) // 2
    samples = alternate(runs, plan.short_rounds).scaled(dict.fromkeys(runs, events))
    numbers = {f"{name} ns/event": samples.median(name) * 1e9 for name in runs}
    numbers["calls"] = len(recorded.calls)
    return Row(TOPIC, f"  {stream.case.name}", samples.speed("compiled", "C"), numbers=numbers)
