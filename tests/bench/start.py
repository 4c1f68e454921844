"""Start-up, cold and warm, and whole commands from start to end."""

import sys
from functools import partial
from statistics import median
from typing import Final

from guest_svc.captures import FOLDER, shipped_capture
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload
from tests.bench.cases import CAPTURE, SWITCHES
from tests.bench.commands import PRICES, check_document, document_of, run_seconds, script
from tests.bench.measure import alternate, say
from tests.bench.pair import server
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = "start-up, and whole commands with a warm cache"
HELP_GOAL: Final = Goal(3, is_most=True)
COMPARE_GOAL: Final = Goal(3, is_most=True)
POLICIES: Final = ("kvm-3.14", "kvm-6.14", "ignore")
MILLION: Final = 1_000_000


def rows(plan: Plan) -> list[Row]:
    """Return how long the services take to start, and what ``compare`` takes as a whole."""
    say("start-up and whole commands")
    return [*_help(plan), *_listening(plan), *_compare(plan)]


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


def _listening(plan: Plan) -> list[Row]:
    def seconds(name: str, cache: str | None = None) -> float:
        environment = {"EXITLAB_CACHE_DIR": cache} if cache else None
        with server(plan.folder, name, environment) as process:
            return process.start_seconds

    warm = median(seconds(f"warm{number}") for number in range(plan.rounds))
    found = [Row(TOPIC, "hypervisor-svc serve until it listens, warm", warm, "s")]
    if not plan.is_quick:
        cold = seconds("cold", str(plan.folder / "cache"))
        found.append(Row(TOPIC, "hypervisor-svc serve until it listens, nothing compiled yet", cold, "s"))
    return found


def _compare(plan: Plan) -> list[Row]:
    events = MILLION // 10 if plan.is_quick else MILLION
    options = [option for policy in POLICIES for option in ("--policy", policy)]
    options += ["--prices", PRICES, "--output", "json"]
    guest = script("guest-svc")
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
        numbers = {"events": float(workload.total_events)}
        limit = "" if COMPARE_GOAL.is_met(seconds) else _limit(plan, seconds)
        found.append(Row(TOPIC, what, seconds, "s", COMPARE_GOAL, numbers, limit))
    return found


def _limit(plan: Plan, seconds: float) -> str:
    """Return what a run without events takes: the rest is the stream's."""
    bare = [*script("guest-svc"), "compare", SWITCHES, "--events", "1", "--output", "json"]
    start = median(run_seconds(bare) for _ in range(plan.rounds))
    return f"one event takes {start:.2f} s: start and report; the events take {seconds - start:.2f} s"
