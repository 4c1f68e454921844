"""Records to events: what each exit becomes, what it hides, and the guest's time before it."""

import random
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import Column, EventKind, Mark
from guest_svc.traces.exits.events import BURST, PASSED_MSRS
from hypervisor_svc.engine import profile
from tests.traces.made import Row, events_of, made, rows_of, trace_of
from tests.traces.writer import SVM, VMX, Record, entry, exit_record, injected, lines, msr, random_records

K = EventKind
HEAVY: Final = 3 << 6
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
    recorded = trace_of(tmp_path, records)
    assert len(rows_of(recorded)) == 4
    trace = recorded.with_accesses(accesses)
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
