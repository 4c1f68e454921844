"""Machines of tables that nobody wrote on purpose say what the loop says, and fail as it does."""

import random
from typing import Final, NamedTuple

import pytest

from exitlab.events import EventColumns, EventKind, Mode
from hypervisor_svc.engine import BadTable, Engine, PolicyFailed
from hypervisor_svc.engine.vocabulary import Action, Moment, Quirk
from tests.engine.build import (
    DECISIONS,
    SVM,
    VENDORS,
    VMX,
    Row,
    engine_for,
    engine_of,
    event,
    get_dr,
    policies_on,
    set_dr,
    stream,
    table_of,
)
from tests.engine.decorate import any_stream
from tests.engine.spoil import Spoil, Table, change, rows_of, spoiled
from tests.engine.test_machines import ALONE, mix_alone, say
from tests.model.streams import Mix

ONE: Final = Mix(vcpus=1, cpus=1, scheduling=False, kicks=False, host=False)
PORTS: Final = ONE.switched(False, "outside").switched(True, "io_breakpoints", "steps", "software_interrupts")


def copy_of(policy: str, vendor: int) -> Table:
    """Return a policy's table, that others do not share."""
    table = Table()
    table.CopyFrom(table_of(policy, vendor))
    return table


def changed(policy: str, vendor: int, chance: random.Random) -> Table:
    """Return a policy's table with a few rows that do something else."""
    table = copy_of(policy, vendor)
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


def ran(table: Table, vendor: int, mix: Mix, seed: int) -> int | None:
    """Run a random stream both ways; return the events that went by machine, None if the table is refused."""
    try:
        loop, machines = (engine_for(mix, table, vendor=vendor, least_events=least) for least in (None, 1))
    except BadTable:
        return None
    events = any_stream(seed, 400, mix)
    assert said(loop, events) == said(machines, events), table.name
    return machines.lane_runs()[0].machine_events


@pytest.mark.parametrize("vendor", VENDORS)
def test_tables_with_other_rows(vendor: int) -> None:
    """Rows exchanged and actions added or left out: the same reports, divergences and failures."""
    chance = random.Random(vendor)
    found = []
    for policy in policies_on(vendor):
        mix = chance.choice([ALONE, ONE, mix_alone("everything", vendor)])
        found.append(ran(changed(policy, vendor, chance), vendor, mix, chance.randrange(1000)))
    by_machine = [events for events in found if events is not None]
    assert len(by_machine) > 10
    assert sum(by_machine) > 50


# Bits whose change a symbol tells of, and one of which none does.
MASKS: Final = {
    "emulated_dr6_writable": (11, 16, 11, 16, 12),
    "emulated_dr6_fixed": (11, 16, 11, 16, 12),
    "emulated_dr7_writable": (11, 13, 11, 13, 14),
}


def change_masks(table: Table, chance: random.Random) -> None:
    """Flip a bit of some masks of emulated registers."""
    for name in chance.sample(list(MASKS), chance.randint(1, len(MASKS))):
        setattr(table, name, getattr(table, name) ^ 1 << chance.choice(MASKS[name]))


def change_quirks(table: Table, chance: random.Random) -> None:
    """Add or take away a few quirks."""
    others = {quirk.name or "" for quirk in chance.sample(list(Quirk), chance.randint(1, 3))}
    kept = sorted(others.symmetric_difference(table.quirks))
    del table.quirks[:]
    table.quirks.extend(kept)


def change_intercepts(table: Table, chance: random.Random) -> None:
    """Intercept other reads and writes."""
    for bit in chance.sample(range(16), chance.randint(1, 3)):
        table.unintercepted_accesses ^= 1 << bit


CHANGES: Final = (change_masks, change_quirks, change_intercepts)


@pytest.mark.parametrize("vendor", VENDORS)
def test_tables_with_other_masks_quirks_and_intercepts(vendor: int) -> None:
    """What a table says beside its rows, changed in any combination: the same bytes again."""
    chance = random.Random(vendor)
    by_machine = dict.fromkeys(CHANGES, 0)
    for policy in 2 * policies_on(vendor):
        table = copy_of(policy, vendor)
        made = chance.sample(CHANGES, chance.randint(1, len(CHANGES)))
        for alter in made:
            alter(table, chance)
        mix = chance.choice(
            [ALONE, ONE, PORTS, mix_alone("recorded", vendor), mix_alone("everything", vendor)]
        )
        events = ran(table, vendor, mix, chance.randrange(1000))
        assert events is not None, "no change of these makes a table that is refused"
        for alter in made:
            by_machine[alter] += events
    assert min(by_machine.values()) > 50, by_machine


class Stale(NamedTuple):
    """A table under which a copy that is not the guest's truth comes to matter, and how."""

    policy: str
    vendor: int
    spoil: Spoil
    rows: list[Row]
    computed: bool = True


def matches_io(table: Table) -> None:
    """Have ports matched by the hypervisor."""
    table.quirks.append(Quirk.MATCHES_IO.name or "")


def not_intercepted(accesses: int) -> Spoil:
    """Return a change of the accesses that are not intercepted."""

    def spoil(table: Table) -> None:
        table.unintercepted_accesses = accesses

    return spoil


def emulates_a_users_read(table: Table) -> None:
    """Answer a read of DR0 to DR3 whose privilege is missing as if it were allowed."""
    rows_of(table, Moment.DR_TRAPPED).actions[12] ^= 1 << Action.EMULATE | 1 << Action.INJECT


def as_it_is(_: Table) -> None:
    """Change nothing."""


HOST_READS: Final = event(EventKind.GET_DEBUGREGS)
STALE: Final = {
    "an entry whose stale registers would match is a hazard": Stale(
        *("hvpp", VMX, as_it_is),
        [event(EventKind.HOST_DEBUGGER), set_dr(7, 0x777D_0434), set_dr(1, 0x40_1003, modes=Mode.TF)],
    ),
    "a port matched by registers that were never loaded": Stale(
        *("hvpp", VMX, matches_io),
        [set_dr(0, 0), set_dr(7, 0x2_0401), event(EventKind.STATE, value=1), event(EventKind.IN, arg=1)],
    ),
    "a recorded #DB takes a DR6 that was not loaded": Stale(
        *("kvm-6.8", VMX, change(Moment.ENTER_GUEST, add=(Action.DISARM,))),
        [set_dr(6, 0), HOST_READS, event(EventKind.EXCEPTION, selector=1)],
        computed=False,
    ),
    "a #DB that exits loads effective registers of long ago": Stale(
        *("xen", VMX, change(Moment.DB_EXIT, add=(Action.LOAD_DR0_3,))),
        [set_dr(0, 0), set_dr(7, 0x2401), get_dr(0)],
    ),
    "the host's breakpoints have such registers loaded": Stale(
        *("acrn", SVM, change(Moment.CONTROL_CHANGED, add=(Action.LOAD_DR0_3,))),
        [set_dr(0, 0), event(EventKind.HOST_BREAKPOINTS)],
    ),
    "a user's read, which is emulated": Stale(
        *("hvpp", VMX, emulates_a_users_read), [set_dr(0, 0), HOST_READS, get_dr(0, modes=3)]
    ),
    "reads of DR1 alone reach the hardware": Stale(
        *("virtualbox", VMX, not_intercepted(1 << 1)), [set_dr(0, 0), HOST_READS]
    ),
    "reads of DR2 alone reach the hardware": Stale(
        *("kvm-3.14", SVM, not_intercepted(1 << 2)), [set_dr(0, 0), HOST_READS]
    ),
    "reads of DR3 alone reach the hardware": Stale(
        *("kvm-3.14", VMX, not_intercepted(1 << 3)), [set_dr(0, 0), HOST_READS]
    ),
    "reads of DR6 by its other name reach the hardware": Stale(
        *("virtualbox", VMX, not_intercepted(1 << 4)), [set_dr(6, 0xFFFF_0FF1), HOST_READS, get_dr(4)]
    ),
}


@pytest.mark.parametrize("name", STALE)
def test_stale_copies_that_matter(name: str) -> None:
    """A copy that is old, but of a value that is known, has that value after a machine as in the loop."""
    case = STALE[name]
    table, events = spoiled(case.policy, case.spoil, case.vendor), stream(case.rows)
    loop, *others = (
        say(
            engine_of(table, vendor=case.vendor, computed=case.computed, least_events=least),
            *(events, DECISIONS, cuts),
        )
        for least, cuts in ((None, [1]), (1, []), (1, [1]))
    )
    assert loop.report == others[0].report
    assert loop == others[1]
