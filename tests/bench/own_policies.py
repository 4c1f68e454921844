"""What it costs that a policy is somebody else's: nothing an event, and one process at the start."""

import sys
from functools import partial
from typing import Final

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, policy_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.own_policies import collect
from guest_svc.tabulation import Tabulation
from tests.bench.cases import CAPTURE, SWITCHES, VMX, case, lane
from tests.bench.commands import run_seconds, script
from tests.bench.measure import alternate, check_same, say
from tests.bench.pair import BLOCK_EVENTS, check_report, found, loop_report, pair, stream
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = "a policy of somebody else's, against the shipped one that it derives from"
GOAL: Final = Goal(0.95)
OURS: Final = "kvm-6.14"
OWN: Final = """
from hypervisor_svc.policies.kvm import ERA_6_14, Kvm


class Own(Kvm):
    api_version = 1

    def __init__(self, vendor, *, dr6_writable):
        super().__init__(ERA_6_14, vendor, dr6_writable=dr6_writable)
        self.name = "own"
"""


def rows(plan: Plan) -> list[Row]:
    """Return the speed of a lane that is brought along in that of the shipped one, and of whole commands."""
    say("a policy of somebody else's")
    file = plan.folder / "own.py"
    file.write_text(OWN, encoding="utf-8")
    word = f"{file}:Own"
    with Tabulation(word) as tabulation:
        _, own = collect([word], [tabulation])
    lanes = {OURS: lane(OURS, VMX), "own": own.lane("own", VMX)}
    measured = [_stream_row(plan, name, lanes) for name in (SWITCHES, CAPTURE)]
    return [*measured, _command_row(plan, word)]


def _stream_row(plan: Plan, name: str, lanes: dict[str, policy_pb2.Lane]) -> Row:
    whole = case(name, plan.stream_events // 4)
    blocks = whole.blocks(BLOCK_EVENTS)
    configs = {policy: whole.config([one]) for policy, one in lanes.items()}
    with pair(plan.folder, f"own-{name}") as (_, hypervisor):
        for policy, config in configs.items():
            report = stream(hypervisor, config, blocks)[1]
            check_report(policy, loop_report(whole, config), report)
            report.lanes[0].policy = OURS
            check_same(policy, loop_report(whole, configs[OURS]), found(report))
        runs = {policy: partial(_seconds, hypervisor, config, blocks) for policy, config in configs.items()}
        samples = alternate(runs, plan.short_rounds)
    per_event = samples.scaled(dict.fromkeys(runs, float(len(whole.events))))
    numbers = {f"{policy} ns/event": per_event.median(policy) * 1e9 for policy in runs}
    return Row(TOPIC, f"{name}, one stream, speed", samples.speed("own", OURS), goal=GOAL, numbers=numbers)


def _seconds(
    hypervisor: Hypervisor, config: hypervisor_pb2.SessionConfig, blocks: list[EventColumns]
) -> float:
    return stream(hypervisor, config, blocks)[0]


def _command_row(plan: Plan, word: str) -> Row:
    compare = [*script("guest-svc"), "compare", SWITCHES]
    commands = {
        "own": [*compare, "--policy", word],
        OURS: [*compare, "--policy", OURS],
        "tabulated": [sys.executable, "-m", "hypervisor_svc", "policy", "--output", "lanes", word],
    }
    samples = alternate({name: partial(run_seconds, one) for name, one in commands.items()}, plan.rounds)
    numbers = {f"{name} ms": samples.median(name) * 1e3 for name in commands}
    return Row(
        TOPIC, "compare as a whole, time of the shipped one", samples.speed(OURS, "own"), numbers=numbers
    )
