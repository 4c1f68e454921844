"""Random records give the events of a model that takes them one by one."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import EventKind, Mark
from hypervisor_svc.engine import profile
from tests.traces.made import SMALL_CHUNKS, Row, events_of, rows_of, trace_of
from tests.traces.writer import SVM, VMX, Record, random_records

K = EventKind
HEAVY: Final = 3 << 6


class Slow:
    """The events of records, and what their accesses were, one record after another.

    A vCPU's own records are those of its thread and all notes of lost events: across one nothing belongs
    together. ``has_rip`` is whether entries print it.
    """

    def __init__(self, records: list[Record], isa: int, *, has_rip: bool) -> None:
        """Go through all."""
        self.isa = isa
        self.has_rip = has_rip
        self.said: Counter[str] = Counter()
        found: list[tuple[int, Row]] = []
        for vcpu in {record.vcpu for record in records if record.event != "lost"}:
            own = [(at, one) for at, one in enumerate(records) if one.vcpu == vcpu or one.event == "lost"]
            found += self.of_vcpu(vcpu, own)
        self.events = [event for _, event in sorted(found, key=lambda pair: pair[0])]

    def of_vcpu(self, vcpu: int, own: list[tuple[int, Record]]) -> Iterator[tuple[int, Row]]:
        """Yield the events of one vCPU and their places among all records."""
        spent, given = 0, 0
        since: Record | None = None  # the last exit, entry or loss
        was_plain_access = False
        for place, (at, record) in enumerate(own):
            if record.event == "lost":
                since, was_plain_access = record, False
            elif record.event == "kvm_entry":
                since = record
            elif record.event == "kvm_exit":
                if since is not None and since.event == "kvm_entry":
                    spent += record.ns - since.ns
                since = record
                after, entered = what_follows([one for _, one in own[place + 1 :]])
                event = slow_event(record, after, entered if self.has_rip else None, self.isa, self.said)
                is_access = event["kinds"] in (K.MOV_FROM_DR, K.MOV_TO_DR)
                self.said["adjacent"] += is_access and was_plain_access
                was_plain_access = is_access and not any(one.event == "kvm_inj_exception" for one in after)
                cycles = spent * 3
                event |= {"gap_cycles": cycles - given, "vcpus": vcpu, "rips": record.fields["rip"]}
                given = cycles
                yield at, event


def what_follows(records: list[Record]) -> tuple[list[Record], Record | None]:
    """Return what stands between an exit and what ends it, and the entry if that does."""
    after: list[Record] = []
    for one in records:
        if one.event in ("kvm_exit", "kvm_entry", "lost"):
            return after, one if one.event == "kvm_entry" else None
        after.append(one)
    return after, None


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
        elif vectors and vectors[0] in (1, 6, 13):
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


@pytest.mark.parametrize("text", ["raw", "3.14"])
@pytest.mark.parametrize("seed", range(12))
def test_events_agree_with_the_slow_model(seed: int, text: str, tmp_path: Path) -> None:
    """Random records read the same as by the model that takes them one by one, also in small chunks.

    With lost events and without, and where entries print an address and where they do not.
    """
    isa = (VMX, SVM)[seed % 2]
    draw = random.Random(seed)
    records = random_records(draw, 1500, isa, is_lazy=seed % 3 > 0, losses=(0.0, 0.05)[seed % 4 > 1])
    slow = Slow(records, isa, has_rip=text == "raw")
    trace = trace_of(tmp_path, records, text, chunk_bytes=SMALL_CHUNKS, clock_hertz="3000000000")
    assert events_of(trace) == slow.events
    hidden = trace.findings.hidden
    names = ("rerun", "emulated", "faulted", "unclear", "adjacent")
    assert {name: getattr(hidden, name) for name in names} == {name: slow.said[name] for name in names}
    losses = sum(record.event == "lost" for record in records)
    assert (trace.total_events, trace.records) == (len(slow.events), len(records) - losses)
    assert trace.tally.lost_notes == losses
    assert trace.records == len(slow.events) + sum(trace.skipped.values())
    assert sum(row["gap_cycles"] for row in slow.events) == sum(row["gap_cycles"] for row in rows_of(trace))
    again = trace.with_accesses(13)
    assert len(events_of(again)) == len(slow.events) + 12 * hidden.windows
