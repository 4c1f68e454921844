"""Turns counters into the contract's report: integers and names only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from exitlab.debugreg import MSR_DEBUGCTL, VECTOR_DB, VECTOR_GP, VECTOR_UD
from exitlab.events import EventKind
from exitlab.v1 import events_pb2, outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.arch.story import Story
from hypervisor_svc.engine import records
from hypervisor_svc.engine.vocabulary import Deviation

if TYPE_CHECKING:
    from hypervisor_svc.engine.engine import Engine
    from hypervisor_svc.engine.lane import Lane
    from hypervisor_svc.engine.profile import Profile
    from hypervisor_svc.engine.truth import Reference

_BYTE: Final = 0xFF
_SCHEMA: Final = 1
_DB_SLOTS: Final = 4
_VECTOR_OF: Final = {
    Story.DB_FAULT: VECTOR_DB,
    Story.DB_TRAP: VECTOR_DB,
    Story.UD: VECTOR_UD,
    Story.GP: VECTOR_GP,
}


def _operations(packed: int, msr_accesses: int = 0) -> policy_pb2.OperationCounts:
    return policy_pb2.OperationCounts(
        dr_reads=packed & _BYTE,
        dr_writes=packed >> 8 & _BYTE,
        vmreads=packed >> 16 & _BYTE,
        vmwrites=packed >> 24 & _BYTE,
        msr_accesses=msr_accesses,
    )


def decision(number: int, words: records.Words, profile: Profile) -> outcome_pb2.Decision:
    """Return a decision's key as the contract's message."""
    key, operations = int(words[0]), int(words[1])
    account = key >> records.KEY_ACCOUNT_SHIFT & 7
    story = key >> records.KEY_STORY_SHIFT & 15
    is_again = bool(key & records.KEY_SECOND)
    vector = _VECTOR_OF.get(Story(story))
    # A nested guest's access that was first run again leaves for its hypervisor with the same reason.
    second = key & 0xFFFF_FFFF if vector is None else int(profile.exception_codes[vector])
    return outcome_pb2.Decision(
        number=number,
        exited=account in (records.ACCOUNT_EXIT, records.ACCOUNT_SIGNAL),
        reason=key & 0xFFFF_FFFF,
        sub_reason=policy_pb2.SubReason.ValueType(key >> records.KEY_SUB_REASON_SHIFT & _BYTE),
        exit_class=policy_pb2.ExitClass.ValueType(key >> records.KEY_CLASS_SHIFT & 3),
        emulated=bool(key & records.KEY_EMULATED),
        reexecuted=bool(key & records.KEY_REEXECUTED),
        window_opened=bool(key & records.KEY_OPENED),
        window_closed=bool(key & records.KEY_CLOSED),
        story=outcome_pb2.Story.ValueType(story),
        synchronization=_operations(operations & 0xFFFF_FFFF),
        standing=_operations(operations >> records.STANDING_SHIFT, key >> records.KEY_MSR_SHIFT & _BYTE),
        exited_again=is_again,
        second_reason=second if is_again else 0,
        skipped_debug_controls=bool(key & records.KEY_SKIPPED),
    )


def _pattern(key: int, operations: int, count: int) -> report_pb2.PatternCount:
    return report_pb2.PatternCount(
        reason=key & 0xFFFF_FFFF,
        sub_reason=policy_pb2.SubReason.ValueType(key >> records.KEY_SUB_REASON_SHIFT & _BYTE),
        account=report_pb2.Account.ValueType(key >> records.KEY_ACCOUNT_SHIFT & 7),
        exit_class=policy_pb2.ExitClass.ValueType(key >> records.KEY_CLASS_SHIFT & 3),
        emulated=bool(key & records.KEY_EMULATED),
        skipped_debug_controls=bool(key & records.KEY_SKIPPED),
        synchronization=_operations(operations & 0xFFFF_FFFF),
        standing=_operations(operations >> records.STANDING_SHIFT, key >> records.KEY_MSR_SHIFT & _BYTE),
        count=count,
        clustered_accesses=key >> records.KEY_CLUSTER_SHIFT & _BYTE,
    )


def _describe(story: int, value: int) -> str:
    if story == Story.NOTHING:
        return "nothing to be seen"
    if story == Story.READ:
        return f"{value:#x}"
    exceptions = {
        Story.DB_FAULT: "#DB before the instruction",
        Story.DB_TRAP: "#DB after the instruction",
        Story.UD: "#UD",
        Story.GP: "#GP(0)",
        Story.GP_SKIPPED: "#GP(0) with the instruction skipped",
        Story.BP: "#BP",
    }
    if story == Story.REGISTERS:
        return f"six registers of digest {value:#x}"
    if story == Story.VMEXIT:
        return f"the nested guest left (DR7 {value >> 32:#x}, DR6 or cause {value & 0xFFFF_FFFF:#x})"
    name = exceptions.get(Story(story), Story(story).name)
    return f"{name} (DR6 {value & 0xFFFF_FFFF:#x}, DR7 {value >> 32:#x})"


def _event_name(kind: int, register: int) -> str:
    if kind == EventKind.MOV_TO_DR:
        return f"MOV to DR{register}"
    if kind == EventKind.MOV_FROM_DR:
        return f"MOV from DR{register}"
    return EventKind(kind).name


def _finding(
    numbers: tuple[int, int, int, int],
    story: tuple[int, int],
    expected: tuple[int, int],
    where: tuple[str, str],
) -> report_pb2.Finding:
    event, vcpu, kind, register = numbers
    here, there = where
    if kind not in (EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR):
        register = 0
    shown = expected[1] if expected[0] != Story.NOTHING else 0
    seen = f"{here} {_describe(*story)}; {there} {_describe(expected[0], shown)}"
    return report_pb2.Finding(
        event=event,
        vcpu=vcpu,
        kind=events_pb2.EventKind.ValueType(kind),
        register=register,
        story=outcome_pb2.Story.ValueType(story[0]),
        value=story[1],
        expected_story=outcome_pb2.Story.ValueType(expected[0]),
        expected_value=shown,
        what=f"{_event_name(kind, register)}: {seen}",
    )


def _registers(db: list[int], dr6: int, dr7: int, undefined: int) -> report_pb2.DebugRegisters:
    return report_pb2.DebugRegisters(db=db, dr6=dr6, dr7=dr7, undefined_dr6=undefined)


def _reference_report(one: Reference) -> report_pb2.ReferenceReport:
    counts = [int(count) for count in one.counts]
    report = report_pb2.ReferenceReport(
        vendor=policy_pb2.Vendor.ValueType(one.key.vendor),
        features=one.key.features,
        recorded_reads=counts[ref.RECORDED_READS],
        disagreements=counts[ref.DISAGREEMENTS],
        agreements_without_payloads=counts[ref.AGREEMENTS_UNAIDED],
        recorded_dr6_reads=counts[ref.DR6_READS],
        contradictions=counts[ref.CONTRADICTIONS],
        story_digest=counts[ref.DIGEST],
        registers=[
            _registers(
                [int(row[slot]) for slot in range(_DB_SLOTS)],
                int(row[ref.DR6]),
                int(row[ref.DR7]),
                int(row[ref.UNDEFINED]),
            )
            for row in one.state
        ],
    )
    if counts[ref.FIRST_EVENT]:
        register = counts[ref.FIRST_REGISTER]
        kind = EventKind.RDMSR if register == MSR_DEBUGCTL else EventKind.MOV_FROM_DR
        numbers = (counts[ref.FIRST_EVENT] - 1, counts[ref.FIRST_VCPU], int(kind), register)
        recorded = (int(Story.READ), counts[ref.FIRST_RECORDED])
        read = (int(Story.READ), counts[ref.FIRST_READ])
        report.first_disagreement.CopyFrom(
            _finding(numbers, read, recorded, ("the architecture reads", "the recording has"))
        )
    return report


def _window_buckets(sizes: records.Words) -> list[report_pb2.WindowBucket]:
    buckets = []
    for bucket in sizes.nonzero()[0]:
        low = high = int(bucket)
        if bucket >= records.WINDOW_EXACT:
            bits = int(bucket) - records.WINDOW_EXACT + 7
            low, high = 1 << (bits - 1), (1 << bits) - 1
        buckets.append(
            report_pb2.WindowBucket(from_accesses=low, to_accesses=high, windows=int(sizes[bucket]))
        )
    return buckets


def _leak_counts(leaks: records.Words) -> list[report_pb2.LeakCount]:
    return [
        report_pb2.LeakCount(
            kind=report_pb2.LeakKind.ValueType(int(kind) + 1),
            register=int(register),
            owner=int(owner) - 1,
            count=int(leaks[kind, register, owner]),
        )
        for kind, register, owner in zip(*leaks.nonzero(), strict=True)
    ]


def _debug_exits(lane: Lane) -> list[report_pb2.DebugExit]:
    rows = lane.state.debug_exits
    return [
        report_pb2.DebugExit(
            exception=int(row[records.DEBUG_EXIT_EXCEPTION]),
            dr6=int(row[records.DEBUG_EXIT_DR6]),
            dr7=int(row[records.DEBUG_EXIT_DR7]),
            count=int(row[records.DEBUG_EXIT_COUNT]),
            first_event=int(row[records.DEBUG_EXIT_FIRST]),
        )
        for row in rows[rows[:, records.DEBUG_EXIT_COUNT] > 0]
    ]


def _vcpu_reports(lane: Lane, one: Reference) -> list[report_pb2.VcpuReport]:
    reports = []
    registers = lane.final_registers()
    for vcpu, row in enumerate(lane.state.vcpus):
        db, dr6, dr7 = registers[vcpu]
        reports.append(
            report_pb2.VcpuReport(
                vcpu=vcpu,
                guest_cycles=int(one.state[vcpu, ref.CYCLES]),
                mov_dr_executed=int(row[records.EXECUTED]),
                mov_dr_trapped=int(row[records.TRAPPED]),
                windows=int(row[records.WINDOWS]),
                exits_by_class=[int(row[records.EXITS_BY_CLASS + k]) for k in range(3)],
                registers=_registers(db, dr6, dr7, int(one.state[vcpu, ref.UNDEFINED])),
                mov_dr_clustered=int(row[records.CLUSTERED]),
            )
        )
    return reports


def _end_difference(
    vcpus: list[report_pb2.VcpuReport], lane: Lane, one: Reference, event: int
) -> report_pb2.Finding | None:
    """Return the first register at the end that differs beyond what is declared."""
    for vcpu, row in zip(vcpus, lane.state.vcpus, strict=True):
        truth = [int(word) for word in one.state[vcpu.vcpu, : ref.DR7 + 1]]
        found = [*vcpu.registers.db, vcpu.registers.dr6, vcpu.registers.dr7]
        for slot, (here, there) in enumerate(zip(found, truth, strict=True)):
            allowed = int(row[records.DECLARED + slot])
            if slot < _DB_SLOTS and int(row[records.STALE_SLOTS]) >> slot & 1:
                allowed = here ^ there
            if slot == ref.DR6:
                allowed |= vcpu.registers.undefined_dr6
            if (here ^ there) & ~allowed:
                register = slot if slot < _DB_SLOTS else slot + 2
                numbers = (event, vcpu.vcpu, int(EventKind.MOV_FROM_DR), register)
                read = int(Story.READ)
                where = ("at the end the guest reads", "the architecture reads")
                return _finding(numbers, (read, here), (read, there), where)
    return None


def _lane_report(lane: Lane, one: Reference, engine: Engine) -> report_pb2.LaneReport:
    state = lane.state
    events = engine.applied_events
    counts = [int(count) for count in state.counts]
    vcpus = _vcpu_reports(lane, one)
    report = report_pb2.LaneReport(
        policy=lane.message.name,
        vendor=lane.message.vendor,
        features=one.key.features,
        claims_correct=lane.message.claims_correct,
        patterns=[_pattern(*key, count) for key, count in sorted(lane.bill().items())],
        vcpus=vcpus,
        window_sizes=_window_buckets(state.window_sizes),
        leaks=_leak_counts(state.leaks),
        latent_hazards=counts[records.LATENT],
        host_blind=counts[records.HOST_BLIND],
        intercept_switches=counts[records.SWITCHES],
        diverged_events=counts[records.DIVERGED],
        declared=[
            report_pb2.DeclaredCount(rule=rule.name, events=int(events), first_event=int(first) - 1)
            for rule, (events, first) in zip(Deviation, state.declared, strict=True)
            if events
        ],
        story_digest=counts[records.DIGEST],
        open_windows=int((state.vcpus[:, records.WINDOW] == records.WINDOW_OPEN).sum()),
        debug_exits=_debug_exits(lane),
        refused_controls=counts[records.REFUSED],
    )
    if counts[records.FIRST_EVENT]:
        numbers = (counts[records.FIRST_EVENT] - 1, *counts[records.FIRST_VCPU : records.FIRST_REGISTER + 1])
        report.first_divergence.CopyFrom(
            _finding(
                numbers,  # type: ignore[arg-type]  # four integers
                (counts[records.FIRST_STORY], counts[records.FIRST_VALUE]),
                (counts[records.FIRST_TRUE_STORY], counts[records.FIRST_TRUE_VALUE]),
                ("the guest sees", "the architecture shows"),
            )
        )
    if engine.events_by_kind[EventKind.EXIT] and one.key.vendor != engine.config.leading.vendor:
        report.verdict = report_pb2.VERDICT_NOT_COMPARABLE
        report.note = "recorded exits are numbered as on the leading vendor"
        return report
    if report.refused_controls:
        report.verdict = report_pb2.VERDICT_NOT_COMPARABLE
        report.note = f"the policy refuses {report.refused_controls} changes from outside"
        return report
    conflicts = int(one.counts[ref.CONFLICTS])
    if conflicts:
        event = int(one.counts[ref.CONFLICT_EVENT]) - 1
        report.verdict = report_pb2.VERDICT_NOT_COMPARABLE
        report.note = f"from event {event} on the leading reference decides a conditional event otherwise"
        return report
    at_end = _end_difference(vcpus, lane, one, events)
    if not report.diverged_events and at_end is not None:
        report.first_divergence.CopyFrom(at_end)
    _add_remaining_deviations(report, lane, one, events)
    if report.diverged_events or at_end is not None:
        report.verdict = report_pb2.VERDICT_DIVERGED
    elif report.declared:
        report.verdict = report_pb2.VERDICT_SAME_BUT_DECLARED
    else:
        report.verdict = report_pb2.VERDICT_SAME
    return report


def _add_remaining_deviations(report: report_pb2.LaneReport, lane: Lane, one: Reference, events: int) -> None:
    """Name the deviations that only the registers at the end show, with no event of theirs."""
    named = {declared.rule for declared in report.declared}
    for vcpu, row in zip(report.vcpus, lane.state.vcpus, strict=True):
        truth = [int(word) for word in one.state[vcpu.vcpu, : ref.DR7 + 1]]
        found = [*vcpu.registers.db, vcpu.registers.dr6, vcpu.registers.dr7]
        differences = [here ^ there for here, there in zip(found, truth, strict=True)]
        differences[ref.DR6] &= ~vcpu.registers.undefined_dr6
        rules = {int(row[records.DECLARED_RULE])} if any(differences) else set()
        stale = int(row[records.STALE_SLOTS])
        if any(differences[slot] and stale >> slot & 1 for slot in range(_DB_SLOTS)):
            rules.add(Deviation.STALE_EFFECTIVE + 1)
        for name in [Deviation(rule - 1).name for rule in sorted(rules - {0})]:
            if name not in named:
                named.add(name)
                report.declared.add(rule=name, events=0, first_event=events)


def make_report(engine: Engine) -> report_pb2.Report:
    """Return the report of everything applied so far."""
    config = engine.config
    kinds = engine.events_by_kind.astype(np.uint64)
    advances = int(kinds[EventKind.ADVANCE])
    return report_pb2.Report(
        schema=_SCHEMA,
        events=engine.applied_events - advances,
        references=[_reference_report(one) for one in engine.references.values()],
        lanes=[
            _lane_report(lane, engine.references[spec.key], engine)
            for spec, lane in zip(config.lanes, engine.lanes, strict=True)
        ],
        events_by_kind=[int(count) for count in kinds[: len(EventKind) + 1]],
    )
