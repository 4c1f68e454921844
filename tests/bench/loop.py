"""The oracle loop alone: its calls prepared, its results made comparable, its runs timed."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from unittest import mock

import numpy as np

from exitlab.v1 import outcome_pb2
from hypervisor_svc.engine import lane as lanes
from hypervisor_svc.engine import oracle, records
from hypervisor_svc.engine.engine import Engine
from hypervisor_svc.engine.lane import Lane, Outcomes, outcomes_for
from hypervisor_svc.engine.truth import Truth
from hypervisor_svc.engine.validation import complete
from tests.bench.cases import Case, engine, lane

POLICIES: Final = ("kvm-6.14", "kvm-3.14", "swap-each-entry")
FULL: Final = int(outcome_pb2.OUTCOME_LEVEL_FULL)
SUMMARY: Final = int(outcome_pb2.OUTCOME_LEVEL_SUMMARY)
Call = Callable[[], Any]
Loop = Callable[[tuple[Any, ...]], Call]  # makes a call ready from what the loop is called with


def compiled(arguments: tuple[Any, ...]) -> Call:
    """Return a call of the engine's own loop."""
    return partial(oracle.run_lane, *arguments)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A whole stream under one policy, as one block; the reference has run already."""

    case: Case
    policy: str
    truth: Truth

    @property
    def name(self) -> str:
        """What is run."""
        return f"{self.case.name}, {self.policy}"

    def arguments(self, level: int) -> tuple[Lane, Outcomes, tuple[Any, ...]]:
        """Return a lane after reset, its outcomes, and what ``run_lane`` is called with for it."""
        events = complete(self.case.events)
        fresh = _engine(self.case, self.policy).lanes[0]
        outcomes = outcomes_for(len(self.case.events), level)
        calls: list[tuple[Any, ...]] = []
        with mock.patch.object(lanes, "run_lane", lambda *arguments: calls.append(arguments)):
            fresh.run(events, 0, self.truth, level, outcomes)
        return fresh, outcomes, calls[0]


def _engine(case: Case, policy: str) -> Engine:
    return engine(case.config([lane(policy)]))


def make_jobs(cases: list[Case]) -> list[Job]:
    """Return every stream under every policy."""
    jobs = []
    for case in cases:
        one = _engine(case, POLICIES[0])
        reference = next(iter(one.references.values()))
        truth = reference.run(complete(case.events), 0, leading=None)
        jobs += [Job(case, policy, truth) for policy in POLICIES]
    return jobs


def results(job: Job, loop: Loop) -> dict[str, str]:
    """Run a job at the fullest level; return a digest of each part of the lane's state and outcomes."""
    fresh, outcomes, arguments = job.arguments(FULL)
    call = loop(arguments)
    with np.errstate(over="ignore"):
        call()
    state = fresh.state
    numbers = int(state.counts[records.DECISION_ROWS])
    arrays: dict[str, Any] = {
        "story digest": state.counts[records.DIGEST : records.DIGEST + 1],
        "vCPUs": state.vcpus,
        "physical CPUs": state.physical_cpus,
        "counts": state.counts,
        "bill": np.array(sorted((*key, count) for key, count in fresh.bill().items()), np.uint64),
        "window sizes": state.window_sizes,
        "leaks": state.leaks,
        "declared": state.declared,
        "decisions": state.decisions[:numbers],
        "decision of each event": outcomes.decisions,
        "story of each event": outcomes.stories,
        "value of each event": outcomes.values,
    }
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:16] for name, array in arrays.items()}


def run_seconds(job: Job, loop: Loop) -> float:
    """Return the processor time of one run of a job at the summary level, the preparation left out.

    Processor time, since a run of milliseconds may wait for its processor.
    """
    call = loop(job.arguments(SUMMARY)[2])
    with np.errstate(over="ignore"):
        start = time.thread_time()
        call()
        return time.thread_time() - start
