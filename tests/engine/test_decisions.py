"""What is answered for each event: its decision, in numbers and in words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest

from exitlab import debugreg
from exitlab.events import EventKind
from exitlab.v1 import outcome_pb2, policy_pb2
from hypervisor_svc.engine import BadTable
from hypervisor_svc.engine.vocabulary import Action, Moment
from hypervisor_svc.policies.kvm import ERA_6_14, Kvm
from tests.engine.build import (
    DECISIONS,
    EXIT,
    FAST,
    FULL,
    HEAVY,
    LIGHT,
    SIGNAL,
    SVM,
    TSC_DEADLINE,
    VENDORS,
    VMX,
    Counts,
    Row,
    bill_rows,
    class_marks,
    counts,
    cpuid,
    engine_for,
    engine_of,
    event,
    get_dr,
    host_breakpoints,
    outcomes,
    policies_on,
    set_dr,
    standing,
    stream,
    synchronization,
    total,
    wrmsr,
)
from tests.engine.decorate import GROUPS, any_stream, mix_of
from tests.engine.spoil import added, spoiled
from tests.model.streams import Mix

READ, NOTHING = outcome_pb2.STORY_READ, outcome_pb2.STORY_UNSPECIFIED
NONE: Final = Counts()


def decided(policy: str, *rows: Row, vendor: int = VMX) -> list[outcome_pb2.Decision]:
    """Return the decision for each event of a vCPU that is alone."""
    parts = engine_of(policy, vendor=vendor).feed(stream(*rows), FULL)
    found = outcomes(parts, 0).decisions
    for one in found:
        one.ClearField("number")
    return found


def decision(sync: Counts = NONE, stand: Counts = NONE, **fields: Any) -> outcome_pb2.Decision:
    """Return the decision that is expected."""
    made = outcome_pb2.Decision(**fields)
    for part, operations in ((made.synchronization, sync), (made.standing, stand)):
        part.SetInParent()
        reads, writes, vmreads, vmwrites, msrs = operations
        part.MergeFrom(
            policy_pb2.OperationCounts(
                dr_reads=reads,
                dr_writes=writes,
                vmreads=vmreads,
                vmwrites=vmwrites,
                msr_accesses=msrs,
            )
        )
    return made


def test_decisions_of_a_window() -> None:
    """Under kvm-6.14 each event's decision says what happened: opened, free, fast, closed, refused."""
    found = decided(
        "kvm-6.14",
        get_dr(0),
        get_dr(1),
        wrmsr(TSC_DEADLINE),
        cpuid(),
        event(EventKind.OUT),
        get_dr(0, modes=3),
        event(EventKind.RDTSC),
    )
    exited: dict[str, Any] = {"exited": True, "exit_class": LIGHT}
    opening, closing = Counts(writes=6, vmreads=2, vmwrites=1), Counts(5, 1, 1, 2)
    assert found == [
        decision(opening, reason=29, reexecuted=True, window_opened=True, story=READ, **exited),
        decision(story=READ),
        decision(exited=True, reason=32, sub_reason=policy_pb2.SUB_REASON_TSC_DEADLINE, exit_class=FAST),
        decision(closing, reason=10, window_closed=True, **exited),
        decision(exited=True, reason=30, exit_class=HEAVY),
        decision(NONE, Counts(vmreads=2), reason=29, story=outcome_pb2.STORY_GP, **exited),
        decision(),
    ]


def test_decisions_of_an_emulator() -> None:
    """Under kvm-3.14 an access is emulated, and the entry that a DR7 makes dear is the next event's."""
    found = decided("kvm-3.14", set_dr(7, 0x401), get_dr(7))
    common: dict[str, Any] = {"exited": True, "reason": 29, "exit_class": LIGHT, "emulated": True}
    assert found == [
        decision(NONE, Counts(vmreads=2, vmwrites=1), **common),
        decision(NONE, Counts(writes=5, vmreads=2), story=READ, **common),
    ]


def test_decisions_of_the_host() -> None:
    """A vCPU that the host takes out of the guest exits by a kick, in the event that took it out."""
    found = decided("kvm-6.14", get_dr(0), event(EventKind.SCHED_OUT), event(EventKind.SCHED_OUT))
    kick: dict[str, Any] = {
        "exited": True,
        "reason": 1,
        "sub_reason": policy_pb2.SUB_REASON_KICK,
        "exit_class": LIGHT,
    }
    assert found[1:] == [decision(Counts(5, 1, 1, 2), window_closed=True, **kick), decision()]


def test_two_exits_in_one_event_are_both_named() -> None:
    """Where the access that ran again exits once more, its decision has both reasons, each whole."""
    policy = Kvm(ERA_6_14, SVM, dr6_writable=debugreg.DR6_WRITABLE)
    policy.intercepted_exceptions = (debugreg.VECTOR_DB, debugreg.VECTOR_UD, debugreg.VECTOR_GP)
    parts = engine_of(policy, vendor=SVM).feed(stream(set_dr(7, 1 << 32)), FULL)
    (one,) = outcomes(parts, 0).decisions
    assert (one.reason, one.exited_again, one.second_reason) == (0x37, True, 0x4D)


def test_two_exits_in_one_event_are_counted_in_full() -> None:
    """Operations of an event that exits twice fit their counters, or the table was refused."""

    def dear(table: policy_pb2.PolicyTable) -> None:
        for action in (Action.READ_DR6, Action.READ_DR7):
            table.costs.add(action=action.name, operations=policy_pb2.OperationCounts(dr_reads=63))
        added(Moment.LEAVE_GUEST, Action.READ_DR6, Action.READ_DR7, Action.HOST_SAVE)(table)
        table.trap_operations.dr_reads = 20

    rows = stream(event(EventKind.STATE, value=1), get_dr(4))  # 3.15 lets the processor raise #UD
    try:
        engine = engine_of(spoiled("kvm-3.15", dear))
    except BadTable:
        return
    one = outcomes(engine.feed(rows, DECISIONS), 0).decisions[-1]
    # The trap belongs to the window that it opens; each exit takes 63 + 63 + 6 reads.
    assert counts(one.standing) == Counts(reads=2 * (63 + 63 + 6))
    assert one.synchronization.dr_reads == 20 + 5


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_decisions_add_up_to_the_bill(vendor: int, group: str) -> None:
    """For a vCPU alone the decisions' exits and operations are the bill's, exit by exit."""
    mix = replace(mix_of(group, vendor), vcpus=1, cpus=1, scheduling=False, kicks=False)
    engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
    parts = engine.feed(any_stream(1, 300, mix), FULL)
    for number, lane in enumerate(engine.report().lanes):
        told = outcomes(parts, number)
        assert total(counts(one.synchronization) for one in told.decisions) == synchronization(lane)
        assert total(counts(one.standing) for one in told.decisions) == standing(lane)
        exited: Counter[tuple[int, int]] = Counter()
        exited.update((one.reason, one.sub_reason) for one in told.decisions if one.exited)
        exited.update((one.second_reason, 0) for one in told.decisions if one.exited_again)
        billed: Counter[tuple[int, int]] = Counter()
        for account in (EXIT, SIGNAL):
            for row in bill_rows(lane, account):
                billed[row.reason, row.sub_reason] += row.count
        assert exited == billed, lane.policy
        assert sum(one.window_opened for one in told.decisions) == lane.vcpus[0].windows
        assert [one.story for one in told.decisions] == told.stories


@pytest.mark.parametrize("vendor", VENDORS)
def test_numbers_of_decisions(vendor: int) -> None:
    """Decisions are numbered from 0 by first occurrence, and told once, in the part that first uses them."""
    mix = Mix()
    events = any_stream(1, 300, mix)
    engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
    known: dict[int, int] = {}
    for start in range(0, len(events), 37):
        for part in engine.feed(events.rows(start, start + 37), DECISIONS):
            if part.lane == len(engine.lanes):
                continue
            numbers = np.frombuffer(part.decisions, "<u2").tolist()
            before = known.get(part.lane, 0)
            assert [one.number for one in part.new_decisions] == list(
                range(before, before + len(part.new_decisions))
            )
            known[part.lane] = before + len(part.new_decisions)
            first_uses = [number for number in dict.fromkeys(numbers) if number >= before]
            assert first_uses == list(range(before, known[part.lane]))
    assert min(known.values()) > 20


def test_a_new_stream_is_told_decisions_anew() -> None:
    """Each stream learns each decision once, when it first occurs there; its number stays the same."""

    def told(*rows: Row) -> list[list[int]]:
        parts = engine.feed(stream(rows), DECISIONS)
        return [[one.number for one in part.new_decisions] for part in parts if part.lane < 2]

    engine = engine_of("kvm-3.14", "ignore")
    assert told(cpuid(), get_dr(0)) == [[0, 1], [0, 1]]
    digest = engine.state_digest()
    for _ in range(2):
        engine.start_stream()
        assert engine.state_digest() == digest
        assert told() == []
        assert told(get_dr(1)) == [[1], [1]]
        assert told(get_dr(1), cpuid()) == [[0], [0]]
        assert told(get_dr(1), cpuid()) == [[], []]
        digest = engine.state_digest()
    assert told(wrmsr(TSC_DEADLINE)) == [[2], [2]]


ENABLED: Final = [set_dr(7, 0x401), cpuid()]
DISABLED: Final = [set_dr(7, 0x400), cpuid()]
OUT_OF_GUEST: Final = event(EventKind.SIGNAL)
IN_GUEST: Final = event(EventKind.RDTSC)
HOSTED: Final = [*host_breakpoints(db0=1, dr7=0x402), *DISABLED]


def _many_patterns() -> Iterator[Row]:
    """Yield exits of 1,024 reasons in three classes from different states: more decisions than numbers."""
    for first, before_each in (
        (DISABLED, OUT_OF_GUEST),
        (DISABLED, get_dr(0)),
        (ENABLED, OUT_OF_GUEST),
        (HOSTED, OUT_OF_GUEST),
        (HOSTED, IN_GUEST),
        (HOSTED, get_dr(0)),
        ([*HOSTED, *ENABLED], OUT_OF_GUEST),
    ):
        yield from first
        for reason in range(1024):
            for exit_class in (FAST, LIGHT, HEAVY):
                yield before_each
                yield event(EventKind.EXIT, selector=reason, marks=class_marks(exit_class))


def test_more_decisions_than_numbers() -> None:
    """Past the last number decisions are answered with 65535, and those before keep theirs."""
    events = stream(_many_patterns())
    engine = engine_of("kvm-6.14", computed=False)
    told, numbers = 0, []
    for start in range(0, len(events), 500):
        parts = engine.feed(events.rows(start, start + 500), DECISIONS)
        told += len(parts[0].new_decisions)
        numbers.extend(np.frombuffer(parts[0].decisions, "<u2").tolist())
    assert len(numbers) == len(events)
    assert set(numbers) == {*range(told), 65535}
    assert told > 10_000
