"""A million-event capture under every policy, as one command, and where its time goes."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from guest_svc.captures import FOLDER
from guest_svc.traces.captures import CaptureSource
from hypervisor_svc.policies import policy_names, policy_vendors
from tests.bench.cases import CAPTURE, VMX, lane, of_workload
from tests.bench.commands import PRICES, check_document, document_of, run_seconds, script
from tests.bench.engine_lanes import by_machine
from tests.bench.measure import alternate, say
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

MILLION: Final = 1_000_000
GOAL: Final = Goal(4, is_most=True)
ROUNDS: Final = 3
# Each is run in a fresh process, which prints how many seconds each of its parts took.
_HYPERVISOR: Final = """
import json, sys, time
parts, clock = {}, time.perf_counter
def lap(name, start):
    parts[name] = clock() - start
start = clock()
import hypervisor_svc.cli
from hypervisor_svc import pricing
from hypervisor_svc.engine import Engine, EngineConfig
from hypervisor_svc.policies import policy_table
lap("import of the hypervisor", start)
from guest_svc.traces.captures import CaptureSource
from pathlib import Path
from tests.bench.cases import config_of, lane
workload = CaptureSource(Path(sys.argv[1])).make({}, 0, None)
config = config_of(workload, [lane(policy) for policy in sys.argv[2:]])
blocks = list(workload.blocks())
start = clock()
resolved = EngineConfig.from_proto(config, policy_table)
lap("tables", start)
start = clock()
one = Engine(resolved)
lap("engine's start", start)
start = clock()
one.feed(blocks[0], int(config.outcome_level))
lap("engine, first block (steps are learned)", start)
start = clock()
for block in blocks[1:]:
    one.feed(block, int(config.outcome_level))
lap("engine, all other blocks", start)
start = clock()
report = one.report()
pricing.figures(report, pricing.price_list("seed-2014"))
lap("report and prices", start)
print(json.dumps(parts))
"""
_GUEST: Final = """
import json, sys, time
parts, clock = {}, time.perf_counter
start = clock()
import guest_svc.cli, guest_svc.render, guest_svc.results, guest_svc.run, guest_svc.sources, grpc
parts["import of the guest"] = clock() - start
from pathlib import Path
from exitlab.blocks import ColumnCrcs, encode_block
from guest_svc.traces.captures import CaptureSource
start = clock()
workload = CaptureSource(Path(sys.argv[1])).make({}, 0, None)
blocks = list(workload.blocks())
parts["capture read and made into events"] = clock() - start
start = clock()
crcs, first = ColumnCrcs(workload.columns), 0
for block in blocks:
    encode_block(block, first, crcs)
    first += len(block)
parts["blocks encoded"] = clock() - start
print(json.dumps(parts))
"""


def rows(plan: Plan) -> list[Row]:
    """Return how long the command takes from its start to its end."""
    path = plan.folder / "million.npz"
    _repeat(FOLDER / f"{CAPTURE}.npz", path, MILLION // 10 if plan.is_quick else MILLION)
    workload = CaptureSource(path).make({}, 0, None)
    policies = [name for name in policy_names() if VMX in policy_vendors(name)]
    lanes = [lane(policy) for policy in policies]
    what = f"guest-svc replay, {CAPTURE} repeated to {workload.total_events:,} events, --policy all"
    say(what)
    options = ["--policy", "all", "--prices", PRICES, "--output", "json"]
    command = [*script("guest-svc"), "replay", str(path), *options]
    check_document(what, workload, policies, document_of(command))
    rounds = min(plan.rounds, ROUNDS)
    seconds = alternate({what: partial(run_seconds, command)}, rounds).median(what)
    numbers = {
        **_parts(_HYPERVISOR, [str(path), *policies], rounds),
        **_parts(_GUEST, [str(path)], rounds),
        "events": float(workload.total_events),
        "lanes": float(len(policies)),
        "lanes by machine": float(len(by_machine(of_workload(CAPTURE, workload), lanes))),
    }
    parts = [name for name in numbers if name.endswith(" s")]
    told = ", ".join(f"{name.removesuffix(' s')} {numbers[name]:.2f}" for name in parts)
    limit = f"seconds of each part alone: {told}"
    ran = numbers["lanes by machine"]
    topic = (
        f"whole command, warm cache, {len(policies)} lanes, {ran:.0f} by machine; then its parts, each alone"
    )
    shown = [Row(topic, f"  {name.removesuffix(' s')}", numbers[name], "s") for name in parts]
    return [Row(topic, what, seconds, "s", GOAL, numbers, "" if GOAL.is_met(seconds) else limit), *shown]


def _parts(program: str, arguments: list[str], rounds: int) -> dict[str, float]:
    """Return the seconds of each part of one side, alone in a process of its own."""
    runs: list[dict[str, float]] = []
    for _ in range(rounds):
        command = [sys.executable, "-c", program, *arguments]
        runs.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    return {f"{name} s": median(run[name] for run in runs) for name in runs[0]}


def _repeat(source: Path, target: Path, events: int) -> None:
    """Write a capture with the records of another, again and again, until it has so many events."""
    made = CaptureSource(source).make({}, 0, None)
    with np.load(source) as archive:
        columns: dict[str, Any] = dict(archive)
    records = events * made.records // made.total_events * 102 // 100  # not all parts are equally full
    longer: dict[str, Any] = {name: np.resize(column, records) for name, column in columns.items()}
    np.savez(target, **longer)
