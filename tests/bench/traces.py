"""Text traces of a million lines under every policy, against splitting their lines in plain Python."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from guest_svc.traces.exits.trace import TextTraceSource
from hypervisor_svc.policies import policy_names, policy_vendors
from tests.bench.cases import VMX
from tests.bench.commands import PRICES, check_document, document_of, run_seconds, script
from tests.bench.measure import alternate, check_same, say
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row
from tests.traces.writer import Record, entry, exit_record, line, msr

MILLION: Final = 1_000_000
GOAL: Final = Goal(1 / 3)
ROUNDS: Final = 3
SHORT: Final = 1000  # lines of a trace that shows how long a command takes to start
TOPIC: Final = "text traces, all policies, start left out: speed against splitting lines in plain Python"
_ORDER: Final = ("replay", "replay, start", "split", "split, start")
# How it is printed: the text, and what stands before it.
DIALECTS: Final = {
    "kernel 6.12, trace-cmd -N": ("6.12", "ftrace"),
    "kernel 6.14, perf script": ("6.14", "perf"),
    "plug-in, trace-cmd": ("plugin", "ftrace"),
    "raw, trace-cmd -R": ("raw", "ftrace"),
    "kernel 4.19, flags": ("3.14", "flags"),
}
_VCPUS: Final = 4
_REASONS: Final = {1: 20, 10: 5, 12: 10, 30: 10, 32: 25, 48: 15, 29: 10, 56: 5}
# A process of its own, so that neither side finds the other's memory or files.
_SPLIT: Final = """
import sys
with open(sys.argv[1]) as file:
    for line in file:
        line.split()
"""
_READ: Final = """
import sys, time
from pathlib import Path
from guest_svc.traces.exits.trace import TextTraceSource
from guest_svc.traces.text.reader import TraceReader
import json
path, parts, clock = Path(sys.argv[1]), {}, time.process_time
start = clock()
for table in TraceReader(path).tables():
    pass
parts["lines to records"] = clock() - start
start = clock()
for block in TextTraceSource(path).make({}).blocks():
    pass
parts["lines to events"] = clock() - start
print(json.dumps(parts))
"""


def rows(plan: Plan) -> list[Row]:
    """Return the speed of each dialect's replay as a share of that of splitting its lines."""
    policies = [name for name in policy_names() if VMX in policy_vendors(name)]
    count = MILLION // 20 if plan.is_quick else MILLION
    found: list[Row] = []
    truth: dict[str, Any] = {}
    for name, (text, head) in DIALECTS.items():
        path = plan.folder / "trace.txt"
        write_trace(path, count, text, head)
        say(f"guest-svc replay, {count:,} lines, {name}, --policy all")
        options = ["--policy", "all", "--prices", PRICES, "--output", "json"]
        command = [*script("guest-svc"), "replay", str(path), *options]
        document = document_of(command)
        lanes = {one["policy"]: one for one in document["lanes"]}
        if not truth:
            check_document(name, TextTraceSource(path).make({}), policies, document)
            truth = lanes
        elif text != "3.14":  # an old kernel does not print where the guest goes on
            check_same(name, truth, lanes)
        found.append(_row(plan, name, path, command, float(document["events"])))
    return found


def _row(plan: Plan, name: str, path: Path, command: list[str], events: float) -> Row:
    short = plan.folder / "short.txt"
    with path.open("rb") as file:
        short.write_bytes(b"".join(file.readline() for _ in range(SHORT)))
    split = [sys.executable, "-c", _SPLIT]
    short_command = [str(short) if one == str(path) else one for one in command]
    runs = {
        "replay": partial(run_seconds, command),
        "split": partial(run_seconds, [*split, str(path)]),
        "replay, start": partial(run_seconds, short_command),
        "split, start": partial(run_seconds, [*split, str(short)]),
    }
    samples = alternate(runs, min(plan.rounds, ROUNDS))
    read = subprocess.run([sys.executable, "-c", _READ, str(path)], stdout=subprocess.PIPE, check=True)
    parts = json.loads(read.stdout)
    numbers = {
        **{f"seconds, {what}": samples.median(what) for what in runs},
        "speed of the whole command": samples.speed("replay", "split"),
        "bytes": float(path.stat().st_size),
        "events": events,
        **{f"processor seconds, {part}": seconds for part, seconds in parts.items()},
    }
    spent = [
        (whole - start, splitting - least)
        for whole, start, splitting, least in zip(*(samples.seconds[what] for what in _ORDER), strict=True)
    ]
    speed = median(splitting / max(replaying, 1e-9) for replaying, splitting in spent)
    told = ", ".join(f"{key} {number:.2f}" for key, number in numbers.items() if "econds" in key)
    return Row(TOPIC, name, speed, "x", GOAL, numbers, "" if GOAL.is_met(speed) else told)


def write_trace(path: Path, lines: int, text: str, head: str) -> None:
    """Write a trace of so many lines: some vCPUs that exit for many reasons, each time somewhere else."""
    start = time.monotonic()
    with path.open("w", encoding="ascii") as file:
        for number, record in enumerate(_records()):
            if number == lines:
                break
            file.write(line(record, text, head))
            file.write("\n")
    say(f"trace of {lines:,} lines written in {time.monotonic() - start:.0f} s")


def _records() -> Iterator[Record]:
    """Yield what a lazily tracking host records, on and on."""
    draw = random.Random(29)
    reasons, weights = list(_REASONS), list(_REASONS.values())
    now = [2_925_640_000_000 + 100_000 * vcpu for vcpu in range(_VCPUS)]
    in_window = [False] * _VCPUS
    while True:
        vcpu = min(range(_VCPUS), key=now.__getitem__)
        head: dict[str, Any] = {"vcpu": vcpu, "thread": 7289 + vcpu, "cpu": 2 + vcpu}
        reason = draw.choices(reasons, weights)[0]
        if reason == 29 and in_window[vcpu]:
            reason = 48  # the intercept is gone until the next exit
        in_window[vcpu] = reason == 29
        rip = 0xFFFF_FFFF_8000_0000 + draw.getrandbits(30)
        yield exit_record(now[vcpu], reason, rip, 0x216 if reason == 29 else draw.getrandbits(40), **head)
        if reason == 32:
            yield msr(now[vcpu] + 1000, 0x6E0, draw.getrandbits(44), write=True, **head)
        yield entry(now[vcpu] + draw.randrange(2000, 4000, 1000), rip if reason == 29 else rip + 3, **head)
        now[vcpu] += draw.randrange(5000, 60_000, 1000)
