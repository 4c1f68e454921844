"""The compiled oracle loop against the same loop in C, and against itself as plain Python."""

from dataclasses import replace
from functools import partial
from statistics import geometric_mean, median
from typing import Any, Final

from tests.bench.cases import CASES, RANDOM, Case, case
from tests.bench.loop import SUMMARY, Job, Loop, compiled, make_jobs, results, run_seconds
from tests.bench.measure import Measure, alternate, check_same, say
from tests.bench.plain import PlainLoop
from tests.bench.plan import Plan
from tests.bench.port import ORACLE
from tests.bench.table import Goal, Row
from tests.bench.twin import FLAGS, NoTwin, compile_twin, compiler

TOPIC: Final = "the oracle loop, compiled"
C_GOAL: Final = Goal(0.8)
PLAIN_GOAL: Final = Goal(500)
PLAIN_ROUNDS: Final = 3


def rows(plan: Plan) -> list[Row]:
    """Return the loop's speed against C at -O3 and against plain Python."""
    try:
        in_c = compile_twin(ORACLE, _example(), plan.folder)
    except NoTwin as error:
        say(f"the loop in C: not measured, {error}")
        return _against_plain(plan, {"compiled": compiled})
    return [*_against_c(plan, in_c), *_against_plain(plan, {"compiled": compiled, "C": in_c})]


def _example() -> tuple[Any, ...]:
    """Return what the loop is called with, for once."""
    return make_jobs([case(RANDOM, 1)])[0].arguments(SUMMARY)[2]


def streams(plan: Plan) -> list[Case]:
    """Return the streams that the loop is run on."""
    return [case(name, plan.random_events if name == RANDOM else plan.loop_events) for name in CASES]


def _against_c(plan: Plan, in_c: Loop) -> list[Row]:
    say(f"the loop against C ({' '.join([*compiler(), *FLAGS[:1]])})")
    jobs = make_jobs(streams(plan))
    for job in jobs:
        check_same(f"the loop in C, {job.name}", results(job, compiled), results(job, in_c))
    found = []
    for job in jobs:
        variants = {"compiled": compiled, "C": in_c}
        runs = {name: partial(run_seconds, job, loop) for name, loop in variants.items()}
        events = len(job.case.events)
        samples = alternate(runs, plan.short_rounds).scaled(dict.fromkeys(runs, events))
        numbers = {f"{name} ns/event": samples.median(name) * 1e9 for name in runs}
        found.append(Row(TOPIC, f"  {job.name}", samples.speed("compiled", "C"), numbers=numbers))
    return [mean_row(TOPIC, "speed of the same loop in C at -O3 (geometric mean)", found, C_GOAL), *found]


def mean_row(topic: str, what: str, found: list[Row], goal: Goal) -> Row:
    """Return the geometric mean of rows, with what they are made of if it misses its goal."""
    mean = geometric_mean(row.measured for row in found)
    numbers = {"least": min(row.measured for row in found), "most": max(row.measured for row in found)}
    limit = ""
    if not goal.is_met(mean):
        slowest = min(found, key=lambda row: row.measured)
        times = ", ".join(f"{name} {number:.1f}" for name, number in slowest.numbers.items())
        limit = f"the widest gap is{slowest.what.replace('  ', ' ')}: {times}"
    return Row(topic, what, mean, goal=goal, numbers=numbers, limit=limit)


def _against_plain(plan: Plan, loops: dict[str, Loop]) -> list[Row]:
    say("the loop against plain Python")
    jobs = make_jobs([case(name, plan.plain_events) for name in CASES])
    found = []
    with PlainLoop(plan.plain_events) as plain:
        for number, job in enumerate(jobs):
            truth = plain.results(number)
            for name, loop in loops.items():
                check_same(f"the loop, {name}, {job.name}", truth, results(job, loop))
        for number, job in enumerate(jobs):
            found.append(_plain_row(plan, partial(plain.run_seconds, number), job, loops))
    row = mean_row(TOPIC, "speed of the same loop as plain Python (geometric mean)", found, PLAIN_GOAL)
    if row.limit and "C" in loops:
        bound = geometric_mean(one.numbers["speed of C"] for one in found)
        limit = f"in C at -O3 the same loop is {bound:.0f} times plain Python on these streams"
        row = replace(row, limit=limit)
    return [row, *found]


def _plain_row(plan: Plan, run_plain: Measure, job: Job, loops: dict[str, Loop]) -> Row:
    """Measure one job; the fast loops run many times right before and right after the plain one."""
    plain: list[float] = []
    fast: dict[str, list[float]] = {name: [] for name in loops}
    ratios: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(min(plan.rounds, PLAIN_ROUNDS)):
        runs = {name: partial(run_seconds, job, loop) for name, loop in loops.items()}
        before = alternate(runs, plan.short_rounds)
        plain.append(run_plain())
        after = alternate(runs, plan.short_rounds)
        for name in loops:
            fast[name] += [*before.seconds[name], *after.seconds[name]]
            ratios[name].append(plain[-1] * 2 / (before.median(name) + after.median(name)))
    events = len(job.case.events)
    numbers = {f"{name} ns/event": median(seconds) / events * 1e9 for name, seconds in fast.items()}
    numbers["plain ns/event"] = median(plain) / events * 1e9
    numbers |= {f"speed of {name}": median(found) for name, found in ratios.items()}
    return Row(TOPIC, f"  {job.name}", median(ratios["compiled"]), numbers=numbers)
