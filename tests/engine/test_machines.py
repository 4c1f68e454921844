"""Bill machines and the oracle loop say the same, to the last digit, wherever a stream is cut."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import pytest

from exitlab.events import EventColumns, EventKind, Mark, Mode
from guest_svc.workloads import find_workload, workload_names
from hypervisor_svc.engine import Engine
from hypervisor_svc.engine.fleet import LoopReason
from tests.engine.build import (
    DECISIONS,
    FAST,
    FULL,
    HEAVY,
    LIGHT,
    SUMMARY,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Row,
    class_marks,
    cpuid,
    engine_for,
    engine_of,
    event,
    get_dr,
    policies_on,
    set_debugregs,
    set_dr,
    stream,
    wrmsr,
)
from tests.engine.decorate import GROUPS, any_stream, mix_of
from tests.model.streams import Mix

ALONE: Final = Mix(vcpus=3, scheduling=False, kicks=False, host=False, outside=False)


class Said(NamedTuple):
    """All that an engine says of a stream."""

    parts: list[bytes]
    report: bytes


def say(engine: Engine, events: EventColumns, level: int, cuts: Sequence[int] = ()) -> Said:
    """Run a stream in blocks that end at ``cuts``."""
    parts = []
    for start, stop in pairwise([0, *cuts, len(events)]):
        blocks = engine.feed(events.rows(start, stop), level)
        parts += [part.SerializeToString(deterministic=True) for part in blocks]
    return Said(parts, engine.report().SerializeToString(deterministic=True))


def by_machine(engine: Engine) -> list[int]:
    """Return how many events each lane has run by machine."""
    return [run.machine_events for run in engine.lane_runs()]


class Group(NamedTuple):
    """What streams of a group are to show of who runs them, over all lanes and seeds."""

    machine_events: int  # at least; 0 for none at all
    reasons: frozenset[LoopReason]  # for which the loop runs others, all of them; if none runs, no others


# Whatever the stream.
OF_POLICIES: Final = {LoopReason.CLUSTERS, LoopReason.RESERVED_BITS}
MIXED: Final = frozenset({LoopReason.RARE_EVENTS, LoopReason.MAY_DIVERGE})
RUN_BY: Final = {
    "alone": Group(2000, MIXED),
    "computed, alone": Group(500, MIXED | {LoopReason.STATE}),
    "recorded, alone": Group(150, MIXED | {LoopReason.STATE}),
    "everything, alone": Group(50, MIXED | {LoopReason.STATE}),
    **dict.fromkeys(GROUPS, Group(0, frozenset({LoopReason.SHARED_CPU}))),
}


def mix_alone(group: str, vendor: int) -> Mix:
    """Return the mix of a group on vCPUs that each have a physical CPU of their own, as machines need it."""
    return mix_of(group, vendor).switched(False, "scheduling", "kicks")


def _mix(group: str, vendor: int) -> Mix:
    if group == "alone":
        return ALONE
    name, _, alone = group.partition(", ")
    return mix_alone(name, vendor) if alone else mix_of(name, vendor)


@pytest.mark.parametrize("level", [SUMMARY, DECISIONS, FULL])
@pytest.mark.parametrize("group", RUN_BY)
@pytest.mark.parametrize("vendor", VENDORS)
def test_machines_say_what_the_loop_says(vendor: int, group: str, level: int) -> None:
    """Random streams of all kinds under every policy: outcomes and report are the same bytes."""
    mix = _mix(group, vendor)
    ran, met = 0, set[int]()
    for seed in range(3):
        events = any_stream(seed, 400, mix)
        cuts = sorted({37 * (seed + 1), 150, len(events) // 2})
        loop, machines = (
            engine_for(mix, *policies_on(vendor), vendor=vendor, least_events=least) for least in (None, 1)
        )
        assert say(loop, events, level, cuts) == say(machines, events, level, cuts)
        assert not any(by_machine(loop))
        ran += sum(by_machine(machines))
        met |= {share.reason for run in machines.lane_runs() for share in run.loop_shares}
    least, reasons = RUN_BY[group]
    if least:
        assert ran >= least
        assert met >= reasons
    else:
        assert not ran
        assert met - OF_POLICIES == reasons


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("name", workload_names())
def test_every_workload_and_capture(name: str, vendor: int) -> None:
    """The sources that are shipped: the same bytes again, and most lanes do run by machine."""
    source = find_workload(name).make({}, seed=3, events=30_000)
    policies = policies_on(vendor)
    loop, machines = (
        engine_of(
            *policies,
            vendor=vendor,
            leading=VMX,
            vcpus=source.vcpus,
            physical_cpus=source.physical_cpus,
            computed=source.computed_breakpoints,
            least_events=least,
        )
        for least in (None, 1)
    )
    for block in source.blocks():
        assert say(loop, block, DECISIONS) == say(machines, block, DECISIONS)
    assert sum(events > 0 for events in by_machine(machines)) >= len(policies) // 2


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_kind_of_every_class(vendor: int) -> None:
    """An event that says its own class is of that class, whatever its kind."""
    kinds = [kind for kind in EventKind if kind < EventKind.VMRUN]
    rows = [
        [event(kind, arg=4 * (kind in {EventKind.READ, EventKind.WRITE}), marks=class_marks(number)), cpuid()]
        for kind in kinds
        for number in (0, FAST, LIGHT, HEAVY)
    ]
    policies = ("kvm-3.14", "kvm-6.14", "xen")
    for part in rows:  # each alone, as some end a stretch
        loop, machines = (
            engine_of(*policies, vendor=vendor, computed=True, least_events=least) for least in (None, 1)
        )
        events = stream(part)
        if int(events.kinds[0]) == EventKind.EXCEPTION:
            continue  # a recorded one has no place in a session that computes
        assert say(loop, events, FULL) == say(machines, events, FULL), part


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_instruction_that_does_not_retire_has_no_step(vendor: int) -> None:
    """With the trap flag set, whatever the kind."""
    kinds = [EventKind.CPUID, EventKind.PAUSE, EventKind.RDTSC, EventKind.MMIO, EventKind.WRITE]
    events = stream(
        [event(kind, arg=4, modes=Mode.TF, marks=Mark.NOT_RETIRED) for kind in kinds], [cpuid(), get_dr(6)]
    )
    policies = policies_on(vendor)
    loop, machines = (engine_of(*policies, vendor=vendor, least_events=least) for least in (None, 1))
    assert say(loop, events, FULL) == say(machines, events, FULL)
    assert any(by_machine(machines))


@pytest.mark.parametrize("vendor", VENDORS)
def test_looking_changes_nothing(vendor: int) -> None:
    """A report after every block, as someone watches, and the last is the same."""
    policies = policies_on(vendor)
    events = any_stream(5, 300, ALONE)
    loop, machines = (engine_for(ALONE, *policies, vendor=vendor, least_events=least) for least in (None, 1))
    for start in range(0, len(events), 7):
        for engine in (loop, machines):
            engine.feed(events.rows(start, start + 7), SUMMARY)
        looked = machines.report()
        assert looked == loop.report()


# A window in which DR6 is written, fast exits, and what ends it.
STALE: Final[dict[str, list[Row]]] = {
    "read": [get_dr(6)],
    "saved, then read": [cpuid(), get_dr(6)],
    "read by the host": [event(EventKind.GET_DEBUGREGS), get_dr(6)],
    "set by the host": [*set_debugregs(dr6=0xFFFF_0FF4), get_dr(6)],
    "under a debugger": [event(EventKind.HOST_DEBUGGER, selector=1), get_dr(6), get_dr(0)],
    "written again": [set_dr(6, 0xFFFF_0FF8), get_dr(6)],
}


@pytest.mark.parametrize("case", STALE)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_stale_copy_is_as_old_as_it_is(vendor: int, case: str) -> None:
    """Cut anywhere in a window, a DR6 that was lost is the one that the loop has lost."""
    events = stream(
        [set_dr(6, 0xFFFF_0FF1), cpuid(), set_dr(0, 0x5000), set_dr(6, 0xFFFF_0FF2), get_dr(6)],
        [wrmsr(TSC_DEADLINE)],
        STALE[case],
        [event(EventKind.PAUSE), cpuid(marks=class_marks(HEAVY)), get_dr(6)],
    )
    policies = policies_on(vendor)
    whole = say(engine_of(*policies, vendor=vendor, least_events=None), events, SUMMARY)
    for cut in range(1, len(events)):
        engine = engine_of(*policies, vendor=vendor, least_events=1)
        assert say(engine, events, SUMMARY, [cut]).report == whole.report
