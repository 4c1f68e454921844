"""Start-up, cold and warm, and whole commands from start to end."""

import os
import sys
from functools import partial
from statistics import median
from typing import Final

from guest_svc.captures import FOLDER, shipped_capture
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload
from tests.bench.cases import CAPTURE, SWITCHES
from tests.bench.commands import PRICES, check_document, document_of, run_seconds, script
from tests.bench.measure import Measure, alternate, say
from tests.bench.pair import address, server
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = "start-up, and whole commands with a warm cache"
HELP_GOAL: Final = Goal(3, is_most=True)
COMPARE_GOAL: Final = Goal(3, is_most=True)
WARM_GOAL: Final = Goal(1.2, is_most=True)
POLICIES: Final = ("kvm-3.14", "kvm-6.14", "ignore")
MILLION: Final = 1_000_000


def rows(plan: Plan) -> list[Row]:
    """Return how long the services take to start, and what ``compare`` takes as a whole."""
    say("start-up and whole commands")
    return [*_help(plan), *_listening(plan), *_warm(plan), *_compare(plan)]


def _help(plan: Plan) -> list[Row]:
    bare = [sys.executable, "-c", "pass"]
    commands = {
        "python": bare,
        "guest-svc": [*script("guest-svc"), "--help"],
        "hypervisor-svc": [*script("hypervisor-svc"), "--help"],
        "imports": [sys.executable, "-c", "import argparse"],
    }
    runs = {name: partial(run_seconds, command) for name, command in commands.items()}
    samples = alternate(runs, plan.short_rounds)
    numbers = {f"{name} ms": samples.median(name) * 1e3 for name in commands}
    found = []
    for name in ("guest-svc", "hypervisor-svc"):
        ratio = samples.speed("python", name)
        floor = samples.speed("python", "imports")
        limit = f"python -c 'import argparse' alone takes {floor:.2f} times python -c pass"
        goal = HELP_GOAL if name == "guest-svc" else None
        is_met = goal is None or goal.is_met(ratio)
        what = f"{name} --help, time of python -c pass"
        found.append(Row(TOPIC, what, ratio, goal=goal, numbers=numbers, limit="" if is_met else limit))
    return found


def _start_seconds(plan: Plan, name: str, environment: dict[str, str]) -> float:
    """Return how long a hypervisor takes until it listens."""
    with server(plan.folder, name, environment) as process:
        return process.start_seconds


def _listening(plan: Plan) -> list[Row]:
    warm = median(_start_seconds(plan, f"warm{number}", {}) for number in range(plan.rounds))
    found = [Row(TOPIC, "hypervisor-svc serve until it listens, warm", warm, "s")]
    if not plan.is_quick:
        cold = _start_seconds(plan, "cold", {"EXITLAB_CACHE_DIR": str(plan.folder / "cache")})
        found.append(Row(TOPIC, "hypervisor-svc serve until it listens, nothing compiled yet", cold, "s"))
    return found


def _options() -> list[str]:
    policies = [option for policy in POLICIES for option in ("--policy", policy)]
    return [*policies, "--prices", PRICES, "--output", "json"]


def _warm(plan: Plan) -> list[Row]:
    """Measure a run with a hypervisor of its own and a warm cache against runs with nothing to compile.

    Of these there are two: one whose hypervisor runs already, with all its code, and one as plain Python,
    which needs no code (of few events, as it is slow).
    """
    events, few = MILLION // 10 if plan.is_quick else MILLION, 100
    guest = [*script("guest-svc"), "compare", SWITCHES, *_options(), "--events"]
    running = [*guest, str(events), "--hypervisor", address(plan.folder, "running")]
    plain = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    with server(plan.folder, "running"):
        workload = find_workload(SWITCHES).make({}, 0, events)
        for name, command in (("its own", [*guest, str(events)]), ("one that runs", running)):
            check_document(f"compare, hypervisor: {name}", workload, POLICIES, document_of(command))
        runs: dict[str, Measure] = {
            "own": partial(run_seconds, [*guest, str(events)]),
            "running": partial(run_seconds, running),
            "few events": partial(run_seconds, [*guest, str(few)]),
            "few events, plain Python": partial(run_seconds, [*guest, str(few)], plain),
        }
        samples = alternate(runs, plan.rounds)
    numbers = {f"{name} s": samples.median(name) for name in runs}
    of_running, of_plain = (
        samples.speed("running", "own"),
        samples.speed("few events, plain Python", "few events"),
    )
    limit = (
        f"{numbers['own s']:.2f} s against {numbers['running s']:.2f} s; of {few} events it takes"
        f" {numbers['few events s']:.2f} s, and {numbers['few events, plain Python s']:.2f} s where nothing"
        " is compiled nor taken from a cache: the rest is the start of a process and its imports"
    )
    own = "compare with its own hypervisor, cache warm"
    return [
        Row(
            TOPIC,
            f"{own}, {events:,} events, time with one that runs already",
            of_running,
            goal=WARM_GOAL,
            numbers=numbers,
            limit="" if WARM_GOAL.is_met(of_running) else limit,
        ),
        Row(TOPIC, f"{own}, {few} events, time as plain Python", of_plain, numbers=numbers),
    ]


def _compare(plan: Plan) -> list[Row]:
    events = MILLION // 10 if plan.is_quick else MILLION
    options, guest = _options(), script("guest-svc")
    sources: dict[str, tuple[list[str], Workload]] = {
        f"guest-svc compare {SWITCHES}, {events:,} events, three policies": (
            [*guest, "compare", SWITCHES, "--events", str(events), *options],
            find_workload(SWITCHES).make({}, 0, events),
        ),
        f"guest-svc replay {CAPTURE}, three policies": (
            [*guest, "replay", str(FOLDER / f"{CAPTURE}.npz"), *options],
            shipped_capture(CAPTURE).make({}, 0, None),
        ),
    }
    for what, (command, workload) in sources.items():
        check_document(what, workload, POLICIES, document_of(command))
    runs = {what: partial(run_seconds, command) for what, (command, _) in sources.items()}
    samples = alternate(runs, plan.rounds)
    found = []
    for what, (_, workload) in sources.items():
        seconds = samples.median(what)
        numbers = {"events": float(workload.total_events or 0)}
        limit = "" if COMPARE_GOAL.is_met(seconds) else _limit(plan, seconds)
        found.append(Row(TOPIC, what, seconds, "s", COMPARE_GOAL, numbers, limit))
    return found


def _limit(plan: Plan, seconds: float) -> str:
    """Return what a run without events takes: the rest is the stream's."""
    bare = [*script("guest-svc"), "compare", SWITCHES, "--events", "1", "--output", "json"]
    start = median(run_seconds(bare) for _ in range(plan.rounds))
    return f"one event takes {start:.2f} s: start and report; the events take {seconds - start:.2f} s"
