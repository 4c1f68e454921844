"""Random records give the events of a model that takes them one by one."""

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import pytest

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import EventKind, Mark
from hypervisor_svc.engine import profile
from tests.traces.made import Row, events_of, rows_of, trace_of
from tests.traces.writer import SVM, VMX, Record, random_records

K = EventKind
HEAVY: Final = 3 << 6


def slow_events(records: list[Record], isa: int) -> tuple[list[Row], Counter[str]]:
    """Return the events of records and what their accesses were, one record after another."""
    by_vcpu: dict[int, list[tuple[int, Record]]] = defaultdict(list)
    for at, record in enumerate(records):
        by_vcpu[record.vcpu].append((at, record))
    found: list[tuple[int, Row]] = []
    said: Counter[str] = Counter()
    for vcpu, own in by_vcpu.items():
        spent, given = 0, 0
        for place, (at, record) in enumerate(own):
            if record.event != "kvm_exit":
                continue
            before = [one for _, one in own[:place] if one.event in ("kvm_exit", "kvm_entry")]
            if before and before[-1].event == "kvm_entry":
                spent += record.ns - before[-1].ns
            after = []
            entered = None
            for _, one in own[place + 1 :]:
                if one.event in ("kvm_exit", "kvm_entry"):
                    entered = one if one.event == "kvm_entry" else None
                    break
                after.append(one)
            event = slow_event(record, after, entered, isa, said)
            cycles = spent * 3
            event |= {"gap_cycles": cycles - given, "vcpus": vcpu, "rips": record.fields["rip"]}
            given = cycles
            found.append((at, event))
    return [event for _, event in sorted(found, key=lambda pair: pair[0])], said


def slow_event(
    record: Record, after: list[Record], entered: Record | None, isa: int, said: Counter[str]
) -> Row:
    """Return what one exit becomes, by the rules told one at a time."""
    f = record.fields
    blank = {"args": 0, "marks": 0, "selectors": 0, "values": 0}
    is_dr = f["reason"] == 29 if isa == VMX else 0x20 <= f["reason"] < 0x40
    vectors = [one.fields["vector"] for one in after if one.event == "kvm_inj_exception"]
    if is_dr:
        is_read = bool(f["info1"] & 16) if isa == VMX else f["reason"] < 0x30
        mark = Mark.VALUE_UNKNOWN
        if entered is None:
            said["unclear"] += 1
        elif entered.fields["rip"] != f["rip"]:
            said["emulated"] += 1
            mark |= Mark.RETIRED
        elif vectors:
            said["faulted"] += 1
            mark |= Mark.NOT_RETIRED
        else:
            said["rerun"] += 1
        register = f["info1"] & 7 if isa == VMX else f["reason"] & 7
        return blank | {"kinds": K.MOV_FROM_DR if is_read else K.MOV_TO_DR, "args": register, "marks": mark}
    heavy = HEAVY if any(one.event == "kvm_userspace_exit" for one in after) else 0
    accesses = [one.fields for one in after if one.event == "kvm_msr"]
    if accesses and not accesses[0]["fault"] and accesses[0]["number"] not in profile.PASSED_MSRS:
        one = accesses[0]
        expected = 0 if one["write"] or one["number"] != MSR_DEBUGCTL else Mark.VALUE_EXPECTED
        kind = K.WRMSR if one["write"] else K.RDMSR
        return blank | {
            "kinds": kind,
            "selectors": one["number"],
            "values": one["value"],
            "marks": heavy | expected,
        }
    if f["reason"] == (0 if isa == VMX else 0x41) and vectors[:1] == [1]:
        return blank | {"kinds": K.EXCEPTION, "selectors": 1, "marks": Mark.VALUE_UNKNOWN}
    return blank | {"kinds": K.EXIT, "selectors": f["reason"], "marks": heavy}


@pytest.mark.parametrize("seed", range(12))
def test_events_agree_with_the_slow_model(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random records read the same as by the model that takes them one by one, also in small chunks."""
    monkeypatch.setattr("guest_svc.traces.text.chunks.chunks.__defaults__", (1 << 14,))
    isa = (VMX, SVM)[seed % 2]
    records = random_records(random.Random(seed), 1500, isa, is_lazy=seed % 3 > 0)
    expected, said = slow_events(records, isa)
    trace = trace_of(tmp_path, records, clock_hertz="3000000000")
    assert events_of(trace) == expected
    hidden = trace.findings.hidden
    assert (hidden.rerun, hidden.emulated, hidden.faulted, hidden.unclear) == tuple(
        said[name] for name in ("rerun", "emulated", "faulted", "unclear")
    )
    assert (trace.total_events, trace.records) == (len(expected), len(records))
    assert trace.records == len(expected) + sum(trace.skipped.values())
    assert sum(row["gap_cycles"] for row in expected) == sum(row["gap_cycles"] for row in rows_of(trace))
