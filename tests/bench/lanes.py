"""What further lanes cost, and what outcomes cost."""

import hashlib
import time
from collections.abc import Sequence
from typing import Final

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from guest_svc.hypervisor import Hypervisor
from hypervisor_svc.policies import policy_names, policy_table, policy_vendors
from tests.bench.cases import SVM, SWITCHES, VMX, Case, case, lane
from tests.bench.measure import Measure, Samples, alternate, check_same, say
from tests.bench.pair import BLOCK_EVENTS, Process, check_report, loop_report, pair, stream
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

LANES_TOPIC: Final = f"pairwise distinct lanes, one stream, summary, {SWITCHES}"
LEVELS_TOPIC: Final = f"outcome levels, one stream, kvm-6.14, {SWITCHES}"
COUNTS: Final = (1, 4, 16)
DECISIONS_GOAL: Final = Goal(0.5)
_FEATURES: Final = ((False, False), (True, False), (False, True), (True, True))  # RTM, bus lock
LEVELS: Final = (
    outcome_pb2.OUTCOME_LEVEL_SUMMARY,
    outcome_pb2.OUTCOME_LEVEL_REFERENCE,
    outcome_pb2.OUTCOME_LEVEL_DECISIONS,
    outcome_pb2.OUTCOME_LEVEL_FULL,
)


def distinct_lanes(
    count: int, vendors: Sequence[policy_pb2.Vendor.ValueType] = (VMX, SVM)
) -> list[policy_pb2.Lane]:
    """Return lanes no two of which have the same table, vendor and features; the default policy first.

    Lanes of one reference come together: first those of a plain CPU, then of CPUs with further features.

    Raises:
        ValueError: there are not so many.

    """
    names = sorted(policy_names(), key=lambda name: name != "kvm-6.14")
    every = [
        lane(name, vendor, rtm=rtm, bus_lock=bus_lock)
        for rtm, bus_lock in _FEATURES
        for vendor in vendors
        for name in names
        if vendor in policy_vendors(name)
    ]
    chosen = every[:count]
    if len({_rules(one) for one in chosen}) < count:
        raise ValueError(f"{len({_rules(one) for one in chosen})} distinct lanes, expected {count}")
    return chosen


def _rules(one: policy_pb2.Lane) -> bytes:
    table = policy_table(one.policy_name, one.vendor, one.features)
    return table.SerializeToString(deterministic=True) + one.features.SerializeToString(deterministic=True)


def lane_rows(plan: Plan) -> list[Row]:
    """Return the cost of 4 and 16 lanes in that of one."""
    say("1, 4 and 16 lanes")
    whole = case(SWITCHES, plan.stream_events // 4)
    with pair(plan.folder, "lanes") as (_, hypervisor):
        configs = {str(count): whole.config(distinct_lanes(count)) for count in COUNTS}
        samples = _samples(hypervisor, whole, configs, plan.rounds)
    per_event = samples.scaled(dict.fromkeys(configs, float(len(whole.events))))
    found = [Row(LANES_TOPIC, "1 lane, events a second", 1 / per_event.median("1"), "events/s")]
    for count in COUNTS[1:]:
        times = samples.speed("1", str(count))
        numbers = {
            "events/s": 1 / per_event.median(str(count)),
            "ns/event and lane": per_event.median(str(count)) / count * 1e9,
        }
        found.append(Row(LANES_TOPIC, f"{count} lanes, time of one", times, numbers=numbers))
    return found


def level_rows(plan: Plan) -> list[Row]:
    """Return the rate of each outcome level in that of the summary."""
    say("outcome levels")
    whole = case(SWITCHES, plan.stream_events // 4)
    names = {outcome_pb2.OutcomeLevel.Name(level).removeprefix("OUTCOME_LEVEL_"): level for level in LEVELS}
    with pair(plan.folder, "levels") as (process, hypervisor):
        configs = {name: whole.config([lane("kvm-6.14", VMX)], level) for name, level in names.items()}
        samples = _samples(hypervisor, whole, configs, plan.rounds)
        parts = {
            name: _parts(process, _timed(hypervisor, config, whole.blocks(BLOCK_EVENTS)), len(whole.events))
            for name, config in configs.items()
        }
    per_event = samples.scaled(dict.fromkeys(configs, float(len(whole.events))))
    rows = []
    for number, name in enumerate(names):
        rate = 1 / per_event.median(name)
        numbers = {"events/s": rate, **parts[name]}
        if not number:
            rows.append(Row(LEVELS_TOPIC, f"{name}, events a second", rate, "events/s", numbers=numbers))
            continue
        speed = samples.speed(name, "SUMMARY")
        goal = DECISIONS_GOAL if name == "DECISIONS" else None
        limit = "" if goal is None or goal.is_met(speed) else _limit(parts, name)
        what = f"{name}, rate of the summary"
        rows.append(Row(LEVELS_TOPIC, what, speed, goal=goal, numbers=numbers, limit=limit))
    return rows


def _parts(process: Process, run: Measure, events: int) -> dict[str, float]:
    """Return nanoseconds an event of one run: on the clock, and of each side's processor time."""
    ours, theirs = time.process_time(), process.cpu_seconds()
    seconds = {"wall": run()}
    seconds["guest's CPU"] = time.process_time() - ours
    seconds["hypervisor's CPU"] = process.cpu_seconds() - theirs
    return {f"{name} ns/event": taken / events * 1e9 for name, taken in seconds.items()}


def _limit(parts: dict[str, dict[str, float]], name: str) -> str:
    told = (
        f"{level}: {', '.join(f'{part} {number:.1f}' for part, number in parts[level].items())}"
        for level in ("SUMMARY", name)
    )
    return "; ".join(told)


def _samples(
    hypervisor: Hypervisor, whole: Case, configs: dict[str, hypervisor_pb2.SessionConfig], rounds: int
) -> Samples:
    """Check the stream under every config, then time it."""
    blocks = whole.blocks(BLOCK_EVENTS)
    variants: dict[str, Measure] = {}
    for name, config in configs.items():
        arrived, made = OutcomeDigest(), OutcomeDigest()
        report = stream(hypervisor, config, blocks, arrived.take if _has_outcomes(config) else None)[1]
        check_report(name, loop_report(whole, config, made.take), report)
        check_same(name, {"outcomes": made.value}, {"outcomes": arrived.value})
        variants[name] = _timed(hypervisor, config, blocks)
    return alternate(variants, rounds)


class OutcomeDigest:
    """A digest of all outcomes in their order."""

    def __init__(self) -> None:
        """Start with none."""
        self._digest = hashlib.sha256()

    def take(self, part: outcome_pb2.OutcomePart) -> None:
        """Take in the next outcomes."""
        self._digest.update(part.SerializeToString(deterministic=True))

    @property
    def value(self) -> str:
        """The digest so far."""
        return self._digest.hexdigest()


def _timed(
    hypervisor: Hypervisor, config: hypervisor_pb2.SessionConfig, blocks: list[EventColumns]
) -> Measure:
    return lambda: stream(hypervisor, config, blocks, _drop if _has_outcomes(config) else None)[0]


def _has_outcomes(config: hypervisor_pb2.SessionConfig) -> bool:
    return config.outcome_level > outcome_pb2.OUTCOME_LEVEL_SUMMARY


def _drop(part: outcome_pb2.OutcomePart) -> None:
    """Do nothing with outcomes: what a guest makes of them is its own cost."""
