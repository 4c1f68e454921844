"""Text traces under policies, from the command line to the object that is printed."""

import csv
import io
import json
import os
import random
import re
import threading
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

import guest_svc
from guest_svc.cli import main
from guest_svc.evidence import INTERVAL_FIGURES
from tests.traces.made import grown
from tests.traces.writer import (
    SVM,
    Record,
    entry,
    exit_record,
    injected,
    lazy_host,
    lines,
    lost,
    msr,
    random_records,
)

_SCHEMAS: Final = Path(guest_svc.__file__).with_name("schema")
SCHEMA: Final = json.loads((_SCHEMAS / "compare.json").read_text("utf-8"))
ALWAYS, LAZY, IGNORE = "kvm-3.14", "kvm-6.14", "ignore"
LANES: Final = ["--policy", ALWAYS, "--policy", LAZY, "--policy", IGNORE]


def write(path: Path, records: list[Record], text: str = "6.12", *more: bytes) -> str:
    """Write a trace and return its path."""
    path.write_bytes(lines(records, text) + b"".join(more))
    return str(path)


def replayed(capsys: Any, *arguments: str) -> dict[str, Any]:
    """Run replay and return the object that it prints, which keeps to its schema."""
    assert main(["replay", *arguments, "--output", "json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMA)
    return document


def lane_of(document: dict[str, Any], policy: str) -> dict[str, Any]:
    """Return a policy's lane."""
    (lane,) = (lane for lane in document["lanes"] if lane["policy"] == policy)
    assert isinstance(lane, dict)
    return lane


def test_a_lazy_hosts_trace_gives_bounds_and_says_so(tmp_path: Path, capsys: Any) -> None:
    """Windows are exact, accesses a lower bound, and the guest's time is that between entry and exit."""
    document = replayed(capsys, write(tmp_path / "trace", lazy_host(50)), *LANES)
    assert (document["events"], document["records"], document["skipped"]) == (100, 200, {"kvm_entry": 100})
    assert document["trace"]["dr_access"]["host"] == "lazy"
    assert document["evidence"]["lanes.exits.DR_ACCESS"] == "lower_bound"
    assert document["evidence"]["lanes.guest_cycles"] == "measured"
    for policy, exits in ((ALWAYS, 50), (LAZY, 50), (IGNORE, 0)):
        lane = lane_of(document, policy)
        assert (lane["exits"]["DR_ACCESS"], lane["mov_dr"]["executed"], lane["exits"]["CPUID"]) == (
            exits,
            50,
            50,
        )
        assert lane["guest_cycles"] == 3 * (50 * 28_000 + 49 * 68_000)
        assert lane["story"]["verdict"] == "same"
        assert lane["rates"]["clock_hertz"] == 3_000_000_000
    assert "intervals" not in document


def test_assumed_accesses_make_intervals(tmp_path: Path, capsys: Any) -> None:
    """With 13 accesses a window, a policy that traps all has 13 times the exits; a lazy one has the same."""
    path = write(tmp_path / "trace", lazy_host(50))
    alone = replayed(capsys, path, *LANES)
    document = replayed(capsys, path, *LANES, "--accesses-per-window", "13")
    assert document["lanes"] == alone["lanes"]
    figures = {one["policy"]: one["figures"] for one in document["intervals"]}
    assert figures[ALWAYS]["exits.DR_ACCESS"] == [50, 650]
    assert figures[LAZY]["exits.DR_ACCESS"] == [50, 50]
    assert figures[LAZY]["mov_dr.free"] == [0, 600]
    assert figures[IGNORE]["throughput_loss_against_ignore"] == [0.0, 0.0]
    low, high = figures[ALWAYS]["overhead_cycles"]
    assert low == lane_of(alone, ALWAYS)["overhead_cycles"] < high
    assert all(set(one) == set(INTERVAL_FIGURES) for one in figures.values())


def test_text_and_csv_tell_bounds_apart(tmp_path: Path, capsys: Any) -> None:
    """People see a sign and an interval; scripts see both ends."""
    path = write(tmp_path / "trace", lazy_host(50))
    assert main(["replay", path, *LANES, "--accesses-per-window", "13"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        ">=50",
        "50 .. 650",
        "Lower bounds: ",
        "Measured: ",
        "Modelled: ",
        "50 windows left no record",
    ):
        assert said in text
    assert main(["replay", path, *LANES, "--accesses-per-window", "13", "--output", "csv"]) == 0
    rows = {
        (row["policy"], row["metric"]): row["value"]
        for row in csv.DictReader(io.StringIO(capsys.readouterr().out))
    }
    assert rows[ALWAYS, "intervals.exits.DR_ACCESS.lower_bound"] == "50"
    assert rows[ALWAYS, "intervals.exits.DR_ACCESS.modelled"] == "650"
    assert rows["", "evidence.lanes.mov_dr"] == "lower_bound"
    assert rows["", "trace.dr_access.windows"] == "50"


def test_of_a_host_that_traps_all_nothing_is_hidden(tmp_path: Path, capsys: Any) -> None:
    """The guest goes on behind each access: there are no bounds, and K changes nothing."""
    records = [
        one
        for n in range(20)
        for one in (
            exit_record(n * 9000, 29, 8, 7),
            entry(n * 9000 + 2000, 11),
            exit_record(n * 9000 + 4000, 10),
            entry(n * 9000 + 5000),
        )
    ]
    document = replayed(capsys, write(tmp_path / "trace", records), *LANES, "--accesses-per-window", "13")
    assert document["trace"]["dr_access"] | {"host": "", "windows": 0} == document["trace"]["dr_access"] | {
        "host": ""
    }
    assert document["trace"]["dr_access"]["host"] == "trapping"
    assert "lower_bound" not in {
        kind for figure, kind in document["evidence"].items() if figure != "lanes.cost.standing"
    }
    assert all(low == high for one in document["intervals"] for low, high in one["figures"].values())


def test_of_refused_accesses_nothing_is_hidden_and_no_host_is_told(tmp_path: Path, capsys: Any) -> None:
    """A lazily tracking host refuses like one that traps all."""
    records = [exit_record(0, 29, 8, 7), injected(500, 13), entry(1000, 8), exit_record(2000, 10)]
    path = write(tmp_path / "trace", records)
    access = replayed(capsys, path, *LANES)["trace"]["dr_access"]
    assert (access["host"], access["faulted"], access["windows"]) == ("not_shown", 1, 0)
    assert main(["replay", path, *LANES]) == 0
    assert "refused, which looks alike on every host" in " ".join(capsys.readouterr().out.split())


def test_a_trace_of_svm_is_run_as_svm(tmp_path: Path, capsys: Any) -> None:
    """The vendor is the trace's; the other one is refused in a line."""
    records = random_records(random.Random(3), 400, SVM)
    path = write(tmp_path / "trace", records, "6.14")
    document = replayed(capsys, path, *LANES)
    assert {lane["vendor"] for lane in document["lanes"]} == {"svm"}
    assert document["trace"]["vendor"] == "svm"
    assert document["trace"]["unknown_reasons"].keys() == {"0x8e"}
    assert main(["replay", path, "--vendor", "vmx"]) == 2
    assert "--vendor vmx: its exits are of svm" in capsys.readouterr().err


def test_the_cycles_of_every_vcpu_are_those_of_the_trace(tmp_path: Path, capsys: Any) -> None:
    """Random exits of three vCPUs, some moving about: each lane has the guest's time, whatever it costs."""
    draw = random.Random(4)
    records = [
        Record(
            one.event, one.ns, one.thread, draw.choice((one.cpu, one.cpu, one.cpu + 1)), one.vcpu, one.fields
        )
        for one in random_records(draw, 1500)
    ]
    since: dict[int, Record] = {}
    expected = 0
    for record in records:
        if record.event in ("kvm_exit", "kvm_entry"):
            before = since.get(record.thread)
            if record.event == "kvm_exit" and before is not None and before.event == "kvm_entry":
                expected += 3 * (record.ns - before.ns)
            since[record.thread] = record
    document = replayed(capsys, write(tmp_path / "trace", records), *LANES)
    assert {lane["guest_cycles"] for lane in document["lanes"]} == {expected}
    assert document["trace"]["inferred_moves"] > 100
    assert document["events"] == sum(record.event == "kvm_exit" for record in records)
    assert sum(document["trace"]["exits"].values()) == document["events"]


def test_a_vcpu_that_comes_late_begins_the_run_again(tmp_path: Path, capsys: Any) -> None:
    """It is told in a line, and no event is missing."""
    path = str(grown(tmp_path / "trace"))
    assert main(["replay", path, "--policy", IGNORE, "--output", "json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert len(document["trace"]["vcpus"]) == 2
    assert document["trace"]["vcpus"][1] == {"vcpu": 1, "thread": 99, "name": "CPU 7/KVM", "printed_vcpu": 7}
    assert document["records"] == document["events"] + sum(document["skipped"].values())
    assert "begun again with all" in err


def test_what_is_wrong_in_a_trace_is_told(tmp_path: Path, capsys: Any) -> None:
    """Losses, damage and oddities are counted in the object and told in sentences."""
    records = [*lazy_host(3), exit_record(10**6, 76), exit_record(500, 12), msr(600, 0x10, 1, write=True)]
    more = (b"CPU:0 [9 EVENTS DROPPED]\n", b"???\n", b"z" * 5000 + b"\n", b"cut")
    path = write(tmp_path / "trace", records, "6.12", *more)
    document = replayed(capsys, path, *LANES)
    trace = document["trace"]
    assert (trace["lost_events"], trace["lost_notes"], trace["cut_lines"]) == (9, 1, 1)
    assert (trace["malformed"], trace["too_long"]) == (
        {"lines": 1, "first_line": 18},
        {"lines": 1, "first_line": 19},
    )
    assert (trace["unknown_reasons"], trace["exits_without_entry"]) == ({"0x4c": 1}, 1)
    assert main(["replay", path, *LANES]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "The recorder lost 9 events at 1 places",
        "1 line (the first is line 18) cannot be read",
        "The last line has no end",
        "kept by number: 0x4c (1)",
        "1 exits have no entry before them",
    ):
        assert said in text


def test_a_pipe_is_replayed_once(tmp_path: Path, capsys: Any) -> None:
    """As it comes; what needs it twice is refused."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    text = lines(lazy_host(50))
    writer = threading.Thread(target=path.write_bytes, args=(text,))
    writer.start()
    document = replayed(capsys, str(path), "--policy", LAZY)
    writer.join()
    assert document["events"] == 100
    writer = threading.Thread(target=path.write_bytes, args=(text,))
    writer.start()
    assert main(["replay", str(path), "--accesses-per-window", "2"]) == 2
    writer.join()
    assert "a pipe cannot be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["context-switch", "--accesses-per-window", "2"], "context-switch: a generated workload"),
        (["idle-shell", "--accesses-per-window", "2"], "--accesses-per-window is for text traces of KVM"),
        (["TRACE", "--accesses-per-window", "0"], "--accesses-per-window 0: expected 1 to 256"),
        (["TRACE", "--cpi", "2"], "--cpi is for captures"),
        (["TRACE", "-p", "clock_hertz=1"], "clock_hertz=1: expected 1000000 to 9000000000"),
        (["TRACE", "-p", "cpi=1"], "no parameter 'cpi'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: Any
) -> None:
    """One line, and exit code 2."""
    path = write(tmp_path / "trace", lazy_host(2))
    assert main(["replay", *(path if one == "TRACE" else one for one in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.search(re.escape(said), err)


def test_a_loss_makes_bounds_and_is_told(tmp_path: Path, capsys: Any) -> None:
    """Counts and guest time are lower bounds, in the object and in sentences."""
    path = write(tmp_path / "trace", [*lazy_host(3), lost(0, 7), exit_record(10**9, 12)])
    document = replayed(capsys, path, "--policy", LAZY)
    names = ("events", "trace.exits", "lanes.guest_cycles", "lanes.exits", "lanes.mov_dr")
    assert {document["evidence"][name] for name in names} == {"lower_bound"}
    assert document["trace"]["exits_after_loss"] == 1
    assert lane_of(document, LAZY)["guest_cycles"] == 3 * (3 * 28_000 + 2 * 68_000)
    assert main(["replay", path, "--policy", LAZY]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "Lower bounds, as the recorder lost events: all counts, and what they cost.",
        "Lower bound: guest time",
        "The recorder lost 7 events at 1 places",
        "1 exits lost their entry so; guest time is 0 there",
    ):
        assert said in text
    assert "Measured" not in text


def test_exits_without_entries_hold_the_hosts_time(tmp_path: Path, capsys: Any) -> None:
    """The guest's time is an upper bound then."""
    records = [exit_record(n * 1000, 10) for n in range(10)]
    document = replayed(capsys, write(tmp_path / "trace", records), "--policy", LAZY)
    assert document["evidence"]["lanes.guest_cycles"] == "upper_bound"
    assert lane_of(document, LAZY)["guest_cycles"] == 27_000
    assert (document["trace"]["vendor"], document["trace"]["has_entries"]) == ("vmx", False)


def stamped(path: Path, seconds: int, exit_text: str = "info1 0x0") -> str:
    """Write a trace of an entry at 0 s and its exit at so many seconds; return its name."""
    exit_line = f"x-1 [000] {seconds}.000001: kvm_exit: vcpu 0 reason CPUID rip 0x1000 {exit_text}"
    after = f"x-1 [000] {seconds}.000002: kvm_entry: vcpu 0, rip 0x1002"
    path.write_text(f"x-1 [000] 0.000001: kvm_entry: vcpu 0, rip 0x1000\n{exit_line}\n{after}\n")
    return str(path)


@pytest.mark.parametrize("seconds", [100_000, 6_148_914_691, 8_999_999_999])
def test_a_time_that_cannot_be_is_refused_by_its_line(tmp_path: Path, capsys: Any, seconds: int) -> None:
    """No guest runs for a day without an exit; what would follow of it would be no figure of a guest's."""
    name = stamped(tmp_path / "t.txt", seconds)
    assert main(["replay", name, "--policy", "ignore"]) == 2
    assert f"{name}: line 2: its guest would have run for {seconds:,} s" in capsys.readouterr().err


def test_fields_of_another_dialect_are_left_alone(tmp_path: Path, capsys: Any) -> None:
    """A line that mixes two dialects is read by what it says in words."""
    document = replayed(capsys, stamped(tmp_path / "t.txt", 1, "isa=1 info1 0x0"), "--policy", "ignore")
    assert (document["events"], document["trace"]["exits"]) == (1, {"CPUID": 1})
