"""Machines of tables that nobody wrote on purpose say what the loop says, and fail as it does."""

import random
from dataclasses import replace

import pytest

from exitlab.events import EventColumns
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import BadTable, Engine, PolicyFailed
from tests.engine.build import DECISIONS, VENDOR_WORDS, VENDORS, engine_for, policies_on, table_of
from tests.engine.decorate import any_stream
from tests.engine.test_machines import ALONE
from tests.model.streams import Mix

ONE = Mix(vcpus=1, cpus=1, scheduling=False, kicks=False, host=False)


def changed(policy: str, vendor: int, chance: random.Random) -> policy_pb2.PolicyTable:
    """Return a policy's table with a few rows that do something else."""
    table = policy_pb2.PolicyTable()
    table.CopyFrom(table_of(policy, vendor))
    filled = [moment for moment in table.moments if moment.actions]
    for _ in range(chance.randint(1, 3) if filled else 0):
        moment = chance.choice(filled)
        row = chance.randrange(len(moment.actions))
        if chance.random() < 0.7:
            moment.actions[row] = chance.choice(moment.actions)
        else:
            moment.actions[row] ^= 1 << chance.randrange(len(table.actions))
    return table


def said(engine: Engine, events: EventColumns) -> list[bytes | str]:
    """Return all that an engine says of a stream in two blocks, to where a table fails."""
    found: list[bytes | str] = []
    try:
        for start, stop in ((0, 150), (150, len(events))):
            for part in engine.feed(events.rows(start, stop), DECISIONS):
                found.append(part.SerializeToString(deterministic=True))
        found.append(engine.report().SerializeToString(deterministic=True))
    except PolicyFailed as failed:
        found.append(str(failed))
    return found


@pytest.mark.parametrize("vendor", VENDORS)
def test_tables_with_other_rows(vendor: int) -> None:
    """Rows exchanged and actions added or left out: the same reports, divergences and failures."""
    chance = random.Random(vendor)
    by_machine, tables = 0, 0
    for policy in policies_on(vendor):
        mix = chance.choice([ALONE, ONE, Mix.everything(VENDOR_WORDS[vendor])])
        config = engine_for(mix, policy, vendor=vendor).config
        table = changed(policy, vendor, chance)
        config = replace(config, lanes=tuple(replace(lane, table=table) for lane in config.lanes))
        try:
            loop, machines = (Engine(config, least_events=least) for least in (None, 1))
        except BadTable:
            continue
        events = any_stream(chance.randrange(1000), 400, mix)
        assert said(loop, events) == said(machines, events), policy
        by_machine += machines.lane_runs()[0].machine_events
        tables += 1
    assert tables > 10
    assert by_machine > 200
