"""The trace's own table, in the layout of perf kvm stat report."""

import csv
import io
import json
import math
import random
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import jsonschema
import numpy as np
import pytest

import guest_svc
from guest_svc import render_stat
from guest_svc.cli import main
from guest_svc.errors import BadInput
from guest_svc.traces.stat import trace_stat
from tests.traces.made import SMALL_CHUNKS
from tests.traces.writer import VMX, Record, entry, exit_record, lines, random_records

SCHEMA: Final = json.loads(
    Path(guest_svc.__file__).with_name("schema").joinpath("stat.json").read_text("utf-8")
)

# Reason, samples, their total time in ns, least and most: the table that Liang Li showed on qemu-devel on
# 2021-05-19 (a Windows guest with a 3D game, 5 s), of which the mail leaves out the rest of 342,788 samples.
TABLE_2021: Final = (
    (56, 255_152, 362_999_000, 490, 50_010),
    (49, 39_967, 290_429_000, 1550, 686_050),
    (29, 35_003, 33_208_000, 320, 40_030),
    (1, 6_622, 14_886_000, 700, 57_380),
    (10, 6_044, 14_173_620, 500, 20_000),
)
SHOWN_2021: Final = """\
             VM-EXIT    Samples  Samples%     Time%    Min Time    Max Time         Avg time

          APIC_WRITE     255152    74.43%    50.72%      0.49us     50.01us      1.42us
       EPT_MISCONFIG      39967    11.66%    40.58%      1.55us    686.05us      7.27us
           DR_ACCESS      35003    10.21%     4.64%      0.32us     40.03us      0.95us
  EXTERNAL_INTERRUPT       6622     1.93%     2.08%      0.70us     57.38us      2.25us
"""


def times_of(samples: int, total: int, least: int, most: int) -> list[int]:
    """Return so many times with this sum, least and most."""
    middle = np.full(samples - 2, (total - least - most) // (samples - 2), np.int64)
    middle[: total - least - most - int(middle.sum())] += 1
    return [least, most, *middle.tolist()]


@pytest.fixture(scope="module")
def trace_2021(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trace to the figures of the table, its exits in random order, with nanoseconds."""
    exits = [(reason, ns) for reason, *row in TABLE_2021 for ns in times_of(*row)]
    random.Random(2021).shuffle(exits)
    records: list[Record] = []
    now = 10**12
    for reason, ns in exits:
        records += (exit_record(now, reason, 7, 0x17), entry(now + ns, 7))
        now += 3 * ns + 800
    path = tmp_path_factory.mktemp("2021") / "game.txt"
    path.write_bytes(lines(records, "plugin", "latency"))
    return path


def test_the_table_of_2021_is_reproduced(trace_2021: Path) -> None:
    """35,003 DR_ACCESS are 10.21 % of the samples and 4.64 % of the time, in perf's own columns."""
    document = trace_stat(trace_2021)
    text = render_stat.text(document)
    shown = [line.split(" ( +-")[0] for line in text.splitlines()]
    for line in SHOWN_2021.splitlines():
        assert line in shown
    assert "Total Samples:342788, Total events handled time:715695.62us." in text
    (row,) = (row for row in document["rows"] if row["reason"] == "DR_ACCESS")
    assert (row["samples"], round(100 * row["samples_share"], 2), round(100 * row["time_share"], 2)) == (
        35_003, 10.21, 4.64,
    )  # fmt: skip
    jsonschema.validate(document, SCHEMA)


def slow_stat(records: list[Record]) -> dict[int, list[int]]:
    """Return each reason's times, one record after another."""
    open_exits: dict[int, Record] = {}
    times: dict[int, list[int]] = defaultdict(list)
    for record in records:
        if record.event == "kvm_exit":
            open_exits[record.thread] = record
        elif record.event == "kvm_entry" and record.thread in open_exits:
            left = open_exits.pop(record.thread)
            times[left.fields["reason"]].append(record.ns - left.ns)
    return times


@pytest.mark.parametrize("seed", range(4))
def test_times_and_their_spread_agree_with_the_slow_model(seed: int, tmp_path: Path) -> None:
    """Counts, extremes, means and the standard error of the mean, however the chunks are cut."""
    records = random_records(random.Random(seed), 2000, VMX)
    path = tmp_path / "trace"
    path.write_bytes(lines(records, "raw"))
    document = trace_stat(path, chunk_bytes=SMALL_CHUNKS)
    expected = slow_stat(records)
    assert document["samples"] == sum(map(len, expected.values()))
    found = sorted((row["samples"], row["min_us"], row["max_us"], row["mean_us"]) for row in document["rows"])
    want = sorted(
        (len(one), min(one) / 1000, max(one) / 1000, sum(one) / len(one) / 1000) for one in expected.values()
    )
    assert found == [pytest.approx(row) for row in want]
    spreads = sorted(row["relative_standard_error"] for row in document["rows"])
    errors = [statistics.stdev(one) / math.sqrt(len(one)) / statistics.mean(one) for one in expected.values()]
    assert spreads == [pytest.approx(error, abs=1e-12) for error in sorted(errors)]
    exits = sum(record.event == "kvm_exit" for record in records)
    assert document["samples"] + document["unfinished_exits"] == exits
    jsonschema.validate(document, SCHEMA)


def small(tmp_path: Path) -> Path:
    """Return a trace of two vCPUs with something lost and something wrong."""
    records = [
        exit_record(1000, 12, thread=5), entry(9000, thread=5),
        exit_record(9000, 29, thread=6, vcpu=1), entry(10_000, thread=6, vcpu=1),
        exit_record(9500, 29, thread=6, vcpu=1), entry(10_500, thread=6, vcpu=1),
        exit_record(20_000, 10, thread=5),
    ]  # fmt: skip
    path = tmp_path / "small"
    path.write_bytes(lines(records) + b"CPU:0 [3 EVENTS DROPPED]\nwhat is this\n")
    return path


def test_one_vcpu_and_sorting_by_time(tmp_path: Path) -> None:
    """As perf's --vcpu and --key."""
    path = small(tmp_path)
    assert [row["reason"] for row in trace_stat(path)["rows"]] == ["DR_ACCESS", "HLT"]
    assert [row["reason"] for row in trace_stat(path, key="time")["rows"]] == ["HLT", "DR_ACCESS"]
    assert [row["reason"] for row in trace_stat(path, 1)["rows"]] == ["DR_ACCESS"]
    with pytest.raises(BadInput, match="--vcpu 2: there is no such vCPU; there are: 0, 1"):
        trace_stat(path, 2)


def test_the_command_prints_every_form_and_tells_what_it_left_out(tmp_path: Path, capsys: Any) -> None:
    """Text, JSON and CSV; lost events stand in the table, the rest on standard error."""
    path = str(small(tmp_path))
    assert main(["stat", path]) == 0
    out, err = capsys.readouterr()
    assert "Lost events: 3" in out
    assert err.splitlines() == [
        "guest-svc: 1 line cannot be read, the first is line 10",
        "guest-svc: 1 exit without an entry after it",
    ]
    assert main(["stat", path, "--output", "json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)
    assert main(["stat", path, "--output", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["reason"], row["samples"]) for row in rows] == [("DR_ACCESS", "2"), ("HLT", "1")]


@pytest.mark.parametrize(("name", "said"), [("none", "No such file"), ("", "Is a directory")])
def test_bad_input_is_one_line_and_2(name: str, said: str, tmp_path: Path, capsys: Any) -> None:
    """A file that is not there, and a folder."""
    assert main(["stat", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_name_of_nothing_is_no_folder(capsys: Any) -> None:
    """A shell's variable that is not set, perhaps."""
    assert main(["stat", ""]) == 2
    assert capsys.readouterr().err == "guest-svc: FILE: expected the name of a file\n"
