"""Records to events: what each exit becomes, what it hides, and the guest's time before it."""

import random
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import Column, EventKind, Mark
from guest_svc.traces.exits.events import BURST, PASSED_MSRS
from guest_svc.traces.exits.roster import RosterGrew
from guest_svc.traces.exits.trace import TextTrace, TextTraceSource
from guest_svc.workloads.base import TraceError
from hypervisor_svc.engine import profile
from tests.traces.writer import SVM, VMX, Record, entry, exit_record, injected, lines, msr, random_records

K = EventKind
HEAVY: Final = 3 << 6
Row = dict[str, int]


def trace_of(tmp_path: Path, records: list[Record], text: str = "raw", **asked: Any) -> TextTrace:
    """Return the trace of some records, written in a dialect."""
    path = tmp_path / "trace.txt"
    path.write_bytes(lines(records, text))
    return made(path, **asked)


def made(path: Path, vendor: str | None = None, events: int | None = None, **parameters: str) -> TextTrace:
    """Return the trace of a file."""
    return TextTraceSource(path, vendor=vendor).make(parameters, 0, events)


def rows_of(trace: TextTrace, block_events: int = 1000) -> list[Row]:
    """Return all rows one by one."""
    found: list[Row] = []
    for block in trace.blocks(block_events):
        assert 0 < len(block) <= block_events
        columns = {column.name.lower(): block.column(column) for column in trace.columns}
        for at in range(len(block)):
            found.append({name: int(values[at]) for name, values in columns.items() if values is not None})
    return found


def events_of(trace: TextTrace) -> list[Row]:
    """Return the recorded events alone."""
    others = (K.SCHED_OUT, K.SCHED_IN, K.ADVANCE)
    return [row for row in rows_of(trace) if row["kinds"] not in others]


DB: Final = 0x8000_0301  # interruption information: valid, hardware exception, vector 1
UD: Final = 0x8000_0306
# An exit with what follows it, and the event that it becomes.
CASES: Final[list[tuple[str, int, list[Record], Row]]] = [
    ("a recorded exit", VMX, [exit_record(0, 10, rip=5)], {"kinds": K.EXIT, "selectors": 10, "rips": 5}),
    ("a reason without a name", VMX, [exit_record(0, 76)], {"kinds": K.EXIT, "selectors": 76}),
    ("a failed entry", VMX, [exit_record(0, 0x8000_0021)], {"kinds": K.EXIT, "selectors": 0x8000_0021}),
    ("SVM's own number", SVM, [exit_record(0, 0x400)], {"kinds": K.EXIT, "selectors": 0x400}),
    (
        "a read that runs again",
        VMX,
        [exit_record(0, 29, 5, 0x216), entry(9, 5)],
        {"kinds": K.MOV_FROM_DR, "args": 6, "marks": Mark.VALUE_UNKNOWN, "selectors": 0},
    ),
    (
        "an emulated write",
        VMX,
        [exit_record(0, 29, 5, 7), entry(9, 8)],
        {"kinds": K.MOV_TO_DR, "args": 7, "marks": Mark.VALUE_UNKNOWN | Mark.RETIRED},
    ),
    (
        "a refused access",
        VMX,
        [exit_record(0, 29, 5, 7), injected(1, 1), entry(9, 5)],
        {"kinds": K.MOV_TO_DR, "args": 7, "marks": Mark.VALUE_UNKNOWN | Mark.NOT_RETIRED},
    ),
    ("SVM reads DR6", SVM, [exit_record(0, 0x26)], {"kinds": K.MOV_FROM_DR, "args": 6}),
    ("SVM writes DR7", SVM, [exit_record(0, 0x37)], {"kinds": K.MOV_TO_DR, "args": 7}),
    (
        "WRMSR",
        VMX,
        [exit_record(0, 32), msr(1, 0x6E0, 99, write=True), entry(2)],
        {"kinds": K.WRMSR, "selectors": 0x6E0, "values": 99, "marks": 0},
    ),
    (
        "RDMSR on SVM",
        SVM,
        [exit_record(0, 0x7C), msr(1, MSR_DEBUGCTL, 3, write=False), entry(2)],
        {"kinds": K.RDMSR, "selectors": MSR_DEBUGCTL, "values": 3, "marks": Mark.VALUE_EXPECTED},
    ),
    (
        "a refused MSR",
        VMX,
        [exit_record(0, 31), msr(1, 0xCE, 0, write=False, fault=True), entry(2)],
        {"kinds": K.EXIT, "selectors": 31},
    ),
    (
        "an MSR that does not exit here",
        VMX,
        [exit_record(0, 32), msr(1, PASSED_MSRS[0], 1, write=True), entry(2)],
        {"kinds": K.EXIT, "selectors": 32},
    ),
    (
        "an MSR of which no record is left",
        VMX,
        [exit_record(0, 32), entry(2)],
        {"kinds": K.EXIT, "selectors": 32},
    ),
    (
        "an MSR after the guest went on",
        VMX,
        [exit_record(0, 32), entry(2), msr(3, 0x6E0, 99, write=True)],
        {"kinds": K.EXIT, "selectors": 32},
    ),
    (
        "#DB that the guest gets",
        VMX,
        [exit_record(0, 0, intr_info=DB), injected(1, 1), entry(2)],
        {"kinds": K.EXCEPTION, "selectors": 1, "marks": Mark.VALUE_UNKNOWN, "values": 0},
    ),
    ("#DB for the host's debugger", VMX, [exit_record(0, 0, intr_info=DB), entry(2)], {"kinds": K.EXIT}),
    (
        "#UD that brings a #DB",
        VMX,
        [exit_record(0, 0, intr_info=UD), injected(1, 1), entry(2)],
        {"kinds": K.EXIT, "selectors": 0},
    ),
    (
        "#DB on SVM",
        SVM,
        [exit_record(0, 0x41), injected(1, 1), entry(2)],
        {"kinds": K.EXCEPTION, "selectors": 1},
    ),
    (
        "an exit that user space handles",
        VMX,
        [exit_record(0, 30), Record("kvm_userspace_exit", 1, fields={"number": 2}), entry(2)],
        {"kinds": K.EXIT, "selectors": 30, "marks": HEAVY},
    ),
]


@pytest.mark.parametrize(
    ("records", "isa", "expected"), [(c[2], c[1], c[3]) for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_an_exit_becomes(records: list[Record], isa: int, expected: Row, tmp_path: Path) -> None:
    """One exit is one event of the kind that its records show."""
    first, *rest = records
    fields = dict(first.fields)
    both = [exit_record(first.ns, fields.pop("reason"), isa=isa, **fields), *rest]
    (event,) = events_of(trace_of(tmp_path, both))
    assert {name: event[name] for name in expected} == expected


def test_a_debug_exception_of_an_old_kernel_is_told_by_its_injection(tmp_path: Path) -> None:
    """Up to 5.9 an exit does not print its vector."""
    records = [exit_record(0, 0, intr_info=DB), injected(1, 1), entry(2)]
    assert events_of(trace_of(tmp_path, records, "3.14"))[0]["kinds"] == K.EXCEPTION


def test_msrs_that_stay_exits_are_those_of_the_profile() -> None:
    """The hypervisor's profile and this list say the same."""
    assert set(PASSED_MSRS) == set(profile.PASSED_MSRS)


def test_guest_time_is_from_entry_to_exit(tmp_path: Path) -> None:
    """The host's time is none of the guest's; what is rounded off goes to the next event."""
    records = [exit_record(1000, 10), entry(5000), exit_record(5001, 12), entry(9000), exit_record(9001, 12)]
    trace = trace_of(tmp_path, records, clock_hertz="1500000000")
    path = tmp_path / "trace.txt"
    path.write_bytes(lines(records, "raw", "latency"))  # nanoseconds
    assert [row["gap_cycles"] for row in events_of(made(path, clock_hertz="1500000000"))] == [0, 1, 2]
    assert trace.clock_hertz == 1_500_000_000


def test_without_entries_all_time_is_the_guests_and_that_is_told(tmp_path: Path) -> None:
    """Nothing tells the host's time apart."""
    trace = trace_of(tmp_path, [exit_record(1000, 10), exit_record(5000, 12)], clock_hertz="1000000000")
    assert [row["gap_cycles"] for row in events_of(trace)] == [0, 4000]
    assert not trace.has_entries


def test_time_that_runs_backwards_counts_nothing_and_is_counted(tmp_path: Path) -> None:
    """As when CPUs' clocks differ."""
    records = [exit_record(1000, 10), entry(9000), exit_record(5000, 12), entry(6000), exit_record(8000, 12)]
    trace = trace_of(tmp_path, records, clock_hertz="1000000000")
    assert [row["gap_cycles"] for row in events_of(trace)] == [0, 0, 2000]
    assert trace.findings.backwards == 1


def test_a_gap_above_32_bits_comes_in_parts(tmp_path: Path) -> None:
    """No guest time is lost."""
    trace = trace_of(tmp_path, [exit_record(0, 10), entry(0), exit_record(10 * 10**9, 12)])
    rows = rows_of(trace)
    assert [row["kinds"] for row in rows] == [K.EXIT, *[K.ADVANCE] * 6, K.EXIT]
    assert sum(row["gap_cycles"] for row in rows) == 30 * 10**9
    assert (trace.total_events, trace.unrecorded_events) == (2, 0)


def test_a_move_to_another_cpu_is_inferred(tmp_path: Path) -> None:
    """It stands before the exit that shows it, and is no event."""
    head = {"thread": 5, "vcpu": 0}
    records = [
        exit_record(0, 10, cpu=2, **head),
        entry(1000, cpu=7, **head),
        exit_record(3000, 12, cpu=7, **head),
    ]
    trace = trace_of(tmp_path, records, text="raw")
    rows = rows_of(trace)
    assert [row["kinds"] for row in rows] == [K.EXIT, K.SCHED_OUT, K.SCHED_IN, K.EXIT]
    assert (trace.physical_cpus, trace.initial_physical_cpus) == (5, (2,))  # 0 to 3 by the header, and 7
    assert rows[2]["selectors"] == trace.roster.cpus.tolist().index(7)
    assert (trace.total_events, trace.unrecorded_events, trace.findings.moves) == (2, 2, 1)


@pytest.mark.parametrize("accesses", [1, 2, 13, 30])
def test_assumed_accesses_follow_the_recorded_one_in_the_burst(accesses: int, tmp_path: Path) -> None:
    """A window's further accesses are the seed's burst from its place on, round and round, at once."""
    records = [
        exit_record(0, 29, 5, 0x16), entry(1000, 5),
        exit_record(2000, 10, 9), entry(3000, 9),
        exit_record(4000, 29, 5, 3), entry(5000, 8), exit_record(6000, 12),
    ]  # fmt: skip
    trace = trace_of(tmp_path, records).with_accesses(accesses)
    rows = rows_of(trace)
    moves = [
        (row["args"], row["kinds"] == K.MOV_FROM_DR)
        for row in rows
        if row["kinds"] in (K.MOV_TO_DR, K.MOV_FROM_DR)
    ]
    start = BURST.index((6, True))
    assert moves == [*(BURST[(start + n) % 13] for n in range(accesses)), (3, False)]
    assert [row["gap_cycles"] for row in rows[1:accesses]] == [0] * (accesses - 1)
    assert (trace.total_events, trace.unrecorded_events) == (4, accesses - 1)


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


@pytest.mark.parametrize(
    ("records", "text", "host"),
    [
        ([exit_record(0, 29, 5), entry(1, 5), exit_record(2, 10)], "6.12", "lazy"),
        ([exit_record(0, 29, 5), entry(1, 8), exit_record(2, 10)], "6.12", "trapping"),
        ([exit_record(0, 29), entry(1, 8), exit_record(2, 29, 5), entry(3, 5)], "6.12", "mixed"),
        ([exit_record(0, 29, 5), entry(1, 5), exit_record(2, 10)], "3.14", "assumed_lazy"),
        (
            [exit_record(0, 29), entry(1), exit_record(2, 29), entry(3), exit_record(4, 10)],
            "3.14",
            "trapping",
        ),
        ([exit_record(0, 29), entry(1), exit_record(2, 29), entry(3)], "3.14", "assumed_lazy"),
        ([exit_record(0, 10), entry(1)], "3.14", "none"),
    ],
)
def test_what_the_host_does_is_told_from_the_trace(
    records: list[Record], text: str, host: str, tmp_path: Path
) -> None:
    """By where the guest goes on; else by two accesses in a row; a trace of these alone proves nothing."""
    trace = trace_of(tmp_path, records, text)
    assert len(events_of(trace)) > 0
    assert trace.findings.hidden.host == host


def test_lost_events_between_two_accesses_prove_nothing(tmp_path: Path) -> None:
    """The exit between may be among what is lost."""
    records = [exit_record(0, 10), entry(1), exit_record(2, 29), entry(3), exit_record(4, 29), entry(5)]
    said = lines(records, "3.14").splitlines(keepends=True)
    path = tmp_path / "lossy.txt"
    path.write_bytes(b"".join([*said[:5], b"CPU:0 [17 EVENTS DROPPED]\n", *said[5:]]))
    trace = made(path)
    assert len(events_of(trace)) == 3
    assert (trace.findings.hidden.host, trace.findings.hidden.adjacent) == ("assumed_lazy", 0)
    assert (trace.tally.lost_events, trace.tally.lost_notes) == (17, 1)


def test_a_cut_trace_has_the_first_events(tmp_path: Path) -> None:
    """N events are the first N, and every record is accounted for."""
    records = random_records(random.Random(8), 400)
    whole = events_of(trace_of(tmp_path, records))
    trace = trace_of(tmp_path, records, events=100)
    assert events_of(trace) == whole[:100]
    assert trace.records == 100 + sum(trace.skipped.values())
    assert trace.skipped["kvm_exit after the last event"] == len(whole) - 100


def test_the_same_events_come_again(tmp_path: Path) -> None:
    """A file is read from its start as often as wanted, whatever the blocks."""
    trace = trace_of(tmp_path, random_records(random.Random(8), 400))
    assert rows_of(trace) == rows_of(trace, 7) == rows_of(trace)


def grown(tmp_path: Path) -> Path:
    """Return a trace of which the second half has another vCPU."""
    early = random_records(random.Random(1), 3000)
    late = [exit_record(one.ns + 10**10, 10, thread=99, vcpu=7, cpu=5) for one in early[:10]]
    path = tmp_path / "grown.txt"
    path.write_bytes(lines([*early, *late]))
    return path


def test_a_vcpu_that_comes_late_is_told_and_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stretch does not show it: whoever reads is told the line, and can begin again with all."""
    monkeypatch.setattr("guest_svc.traces.text.chunks.chunks.__defaults__", (1 << 14,))
    trace = made(grown(tmp_path))
    assert trace.vcpus == 3
    with pytest.raises(RosterGrew, match=r"^line 300[2-9]$"):
        rows_of(trace)
    trace.learn_roster()
    rows = rows_of(trace)
    assert (trace.vcpus, trace.physical_cpus) == (4, 5)
    assert [row["vcpus"] for row in rows[-10:]] == [3] * 10
    assert trace.initial_physical_cpus == (0, 1, 2, trace.roster.cpus.tolist().index(5))


def test_vcpus_of_two_virtual_machines_are_kept_apart(tmp_path: Path) -> None:
    """A vCPU is a thread: both machines have a vCPU 0."""
    records = [exit_record(n, 10, thread=thread, cpu=n % 2) for n, thread in enumerate((5, 6, 5, 6))]
    trace = trace_of(tmp_path, records)
    assert [row["vcpus"] for row in events_of(trace)] == [0, 1, 0, 1]


def test_more_vcpus_than_a_session_takes_are_refused(tmp_path: Path) -> None:
    """In one line with the file's name."""
    records = [exit_record(n, 10, thread=n + 1, vcpu=n) for n in range(257)]
    with pytest.raises(TraceError, match=r"^/.*trace\.txt: it has more than 256 vCPU threads; record one"):
        trace_of(tmp_path, records)
    assert trace_of(tmp_path, records[:256]).vcpus == 256


def test_exits_of_another_vendor_are_no_events_and_are_counted(tmp_path: Path) -> None:
    """Numbers belong to one vendor: that of most exits in the first stretch."""
    records = [exit_record(0, 10), exit_record(1, 12), exit_record(2, 0x72, isa=SVM)]
    trace = trace_of(tmp_path, records)
    assert [row["selectors"] for row in events_of(trace)] == [10, 12]
    assert (trace.vendor, trace.skipped) == (VMX, {"kvm_exit of svm": 1})
    with pytest.raises(TraceError, match=r"--vendor svm: its exits are of vmx; their numbers mean nothing"):
        trace_of(tmp_path, records, vendor="svm")


def test_exits_without_any_name_need_a_vendor(tmp_path: Path) -> None:
    """A number alone is of nobody."""
    with pytest.raises(TraceError, match="neither vmx nor svm: add --vendor"):
        trace_of(tmp_path, [exit_record(0, 76)], "plugin")
    trace = trace_of(tmp_path, [exit_record(0, 76)], "plugin", vendor="svm")
    assert (trace.vendor, events_of(trace)[0]["selectors"]) == (SVM, 76)


def test_cycles_are_scaled_without_drift(tmp_path: Path) -> None:
    """A clock that is no whole number of cycles a nanosecond loses less than a cycle over the whole trace."""
    records = [one for n in range(500) for one in (entry(n * 9000), exit_record(n * 9000 + 1000, 10))]
    trace = trace_of(tmp_path, records, clock_hertz="2893437001")
    total = sum(row["gap_cycles"] for row in rows_of(trace))
    assert total == int(500 * 1000 * Fraction(2893437001, 10**9))


def test_the_columns_are_those_of_the_session(tmp_path: Path) -> None:
    """Modes are never known."""
    trace = trace_of(tmp_path, [exit_record(0, 10)])
    assert trace.columns == tuple(column for column in Column if column is not Column.MODES)
