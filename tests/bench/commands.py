"""Whole commands as processes: how long they take and how much memory they use."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from exitlab.v1 import report_pb2
from guest_svc.results import SourceFacts, compare_document
from guest_svc.workloads.base import Workload
from hypervisor_svc import pricing
from tests.bench.cases import config_of, lane, loop_engine
from tests.bench.measure import check_same

PRICES: Final = "seed-2014"
_COMMAND: Final = """
import sys
from pathlib import Path
from guest_svc.cli import main
code = main(sys.argv[1:])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(code)
"""


def script(name: str) -> list[str]:
    """Return the command of an installed console script."""
    beside = Path(sys.executable).with_name(name)
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", name.replace("-", "_")]


def run_seconds(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    """Return how long a command takes from its start to its end.

    Raises:
        CalledProcessError: it fails.

    """
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def document_of(command: Sequence[str]) -> dict[str, Any]:
    """Run a command that prints a JSON object and return it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def guest_peak(arguments: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Run a guest's command; return the most memory it had resident in bytes, and what it printed.

    The process tells its own peak: what the system adds up for a child begins with its parent's.
    """
    command = [sys.executable, "-c", _COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    peak = next(line for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024, json.loads(done.stdout)


def check_document(what: str, workload: Workload, policies: Sequence[str], document: dict[str, Any]) -> None:
    """Refuse a command's JSON whose reference and lanes are not those of the oracle loop in this process."""
    report = report_of(workload, policies)
    prices = pricing.price_list(PRICES)
    facts = SourceFacts(workload.name, {}, None, workload.records)
    figures = pricing.figures(report, prices)
    truth = json.loads(json.dumps(compare_document(facts, report, figures, {PRICES: prices.clock_hertz})))
    expected = {f"lane {one['policy']}": one for one in truth["lanes"]}
    got = {f"lane {one['policy']}": one for one in document["lanes"]}
    check_same(
        what, {**expected, "reference": truth["reference"]}, {**got, "reference": document["reference"]}
    )


def report_of(workload: Workload, policies: Sequence[str]) -> report_pb2.Report:
    """Return what the oracle loop in this process finds in a workload, block by block."""
    config = config_of(workload, [lane(policy) for policy in policies])
    one = loop_engine(config)
    for block in workload.blocks():
        one.feed(block, int(config.outcome_level))
    return one.report()
