"""Which lanes ran by machine, which in the loop, and why."""

from typing import Final, NamedTuple

import pytest

from exitlab.events import EventKind
from exitlab.v1 import hypervisor_pb2, report_pb2
from hypervisor_svc.engine import gang, machine
from hypervisor_svc.engine.fleet import LEAST_EVENTS, LoopReason
from tests.engine.build import (
    SUMMARY,
    VMX,
    Row,
    cpuid,
    engine_of,
    event,
    get_dr,
    set_debugregs,
    set_dr,
    stream,
)

ACCESSES: Final = [set_dr(0, 0x5000), get_dr(0), cpuid(), set_dr(6, 0xFFFF_0FF1), cpuid(), get_dr(6)]
REASONS: Final = [event(EventKind.EXIT, selector=code) for code in range(300)]


class Case(NamedTuple):
    """A stream, the lane that it is for, and the events that the loop should run of it."""

    policy: str
    rows: list[Row]
    reason: LoopReason
    loop_events: int
    first: int
    vcpus: int = 1
    physical_cpus: int = 1


CASES: Final = {
    "a policy that counts": Case("trap-and-cluster", ACCESSES, LoopReason.CLUSTERS, 6, 0),
    "vCPUs on one CPU": Case("kvm-6.14", ACCESSES, LoopReason.SHARED_CPU, 6, 0, vcpus=2),
    "what only the loop knows": Case(
        "kvm-6.14", [*ACCESSES, event(EventKind.GET_DEBUGREGS), *ACCESSES], LoopReason.RARE_EVENTS, 7, 6
    ),
    "registers are not the stream's": Case(
        "hyperplatform", [*set_debugregs(db0=0x7000), *[cpuid()] * 1500], LoopReason.STATE, 480, 1024
    ),
    "a DR6 that may be stale": Case("kvm-6.8", [*ACCESSES, *ACCESSES], LoopReason.MAY_DIVERGE, 12, 0),
    "masks of its own": Case("haxm", [set_dr(7, 0xD400), get_dr(7)], LoopReason.RESERVED_BITS, 2, 0),
    "more reasons than symbols": Case("kvm-6.14", REASONS, LoopReason.TOO_LARGE, 46, 254),
}


def ran(case: Case, *, least_events: int | None) -> tuple[hypervisor_pb2.LaneRun, report_pb2.Report]:
    """Return how a case's lane is run, and the report."""
    engine = engine_of(
        *(case.policy,),
        vendor=VMX,
        vcpus=case.vcpus,
        physical_cpus=case.physical_cpus,
        least_events=least_events,
    )
    engine.feed(stream(case.rows), SUMMARY)
    report = engine.report()
    (run,) = engine.lane_runs()
    return run, report


@pytest.mark.parametrize("name", CASES)
def test_why_the_loop_runs(name: str) -> None:
    """Events that a machine cannot run are the loop's, with the reason and the first of them."""
    case = CASES[name]
    run, _ = ran(case, least_events=1)
    shares = {int(share.reason): (share.events, share.first_event) for share in run.loop_shares}
    assert shares[case.reason] == (case.loop_events, case.first), run
    assert run.machine_events + sum(events for events, _ in shares.values()) == len(case.rows)


@pytest.mark.parametrize("least_events", [None, 14, LEAST_EVENTS])
def test_small_blocks(least_events: int | None) -> None:
    """Blocks with fewer events than it pays to learn for are the loop's."""
    run, _ = ran(CASES["what only the loop knows"], least_events=least_events)
    assert [(int(share.reason), share.events) for share in run.loop_shares] == [(LoopReason.SMALL_BLOCKS, 13)]
    assert not run.machine_events


def test_reasons_are_the_contracts() -> None:
    """The engine's reasons have the contract's names and numbers."""
    ours = {f"LOOP_REASON_{reason.name}": int(reason) for reason in LoopReason}
    assert ours == {name: number for name, number in hypervisor_pb2.LoopReason.items() if number}


@pytest.mark.parametrize(("limit", "room"), [("MAX_STATES", 0), ("MAX_STATES", 3), ("MAX_STEPS", 4)])
def test_a_machine_without_room(monkeypatch: pytest.MonkeyPatch, limit: str, room: int) -> None:
    """A machine that would have more states or steps than there is room for is the loop's, and says so."""
    monkeypatch.setattr(machine, limit, room)
    monkeypatch.setattr(gang, "MAX_STEPS", machine.MAX_STEPS)
    case = Case("kvm-6.14", [*ACCESSES, *ACCESSES], LoopReason.TOO_LARGE, 12, 0)
    run, report = ran(case, least_events=1)
    assert [(int(share.reason), share.events) for share in run.loop_shares] == [(case.reason, 12)]
    assert report == ran(case, least_events=None)[1]
