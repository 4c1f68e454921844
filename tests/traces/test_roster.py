"""Whose exits a trace has: vCPUs, machines, vendors."""

import random
from pathlib import Path

import pytest

from guest_svc.errors import TraceError
from guest_svc.traces.exits.roster import RosterGrew
from tests.traces.made import SMALL_CHUNKS, events_of, made, rows_of, trace_of
from tests.traces.writer import SVM, VMX, exit_record, lines, random_records


def grown(tmp_path: Path) -> Path:
    """Return a trace of which the second half has another vCPU."""
    early = random_records(random.Random(1), 3000)
    late = [exit_record(one.ns + 10**10, 10, thread=99, vcpu=7, cpu=5) for one in early[:10]]
    path = tmp_path / "grown.txt"
    path.write_bytes(lines([*early, *late]))
    return path


def test_a_vcpu_that_comes_late_is_told_and_learned(tmp_path: Path) -> None:
    """The first stretch does not show it: whoever reads is told the line, and can begin again with all."""
    trace = made(grown(tmp_path), chunk_bytes=SMALL_CHUNKS)
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
