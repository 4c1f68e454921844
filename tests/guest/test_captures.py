"""The recorded traces: nothing lost, nothing invented, and damaged files refused."""

import io
import random
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exitlab.debugreg import DR6_BD, DR6_RESET, DR7_RESET, MSR_DEBUGCTL
from exitlab.events import COLUMN_DTYPES, Column, EventColumns, EventKind, Mark
from guest_svc.captures import FOLDER, capture_facts, capture_names
from guest_svc.traces.captures import CaptureSource, CaptureTrace
from guest_svc.traces.records import COLUMN_TYPES, RecordKind
from guest_svc.workloads import BadParameter, TraceError, find_workload

LARGEST_GAP = (1 << 32) - 1
K = RecordKind

# By the numbers of the file, written down apart from the reader: which event each kind becomes
# (as read, as write), and the kinds that are skipped.
EVENT_NAMES = {
    1: ("MOV_FROM_DR", "MOV_TO_DR"), 2: ("MOV_FROM_CR", "MOV_TO_CR"), 3: "HLT", 4: "IN", 5: "OUT", 6: "INS",
    7: "OUTS", 8: "CPUID", 9: "RDMSR", 10: "WRMSR", 11: "RDTSC", 12: "RDTSCP", 13: "INVLPG", 14: "PAUSE",
    15: "VMCALL", 16: "XSETBV", 17: "WBINVD", 18: "MONITOR", 19: "MWAIT", 21: "INTN", 22: "INT3", 23: "INT1",
    28: "CLTS", 29: "LMSW", 33: "INVPCID", 34: "RDPMC", 38: "VMCALL", 48: "EXTERNAL_INTERRUPT",
    49: "EXCEPTION", 50: "MMIO",
}  # fmt: skip
SKIPPED_NAMES = {
    20: "IRET", 24: "SYSCALL", 25: "SYSRET", 26: "SYSENTER", 27: "SYSEXIT", 30: "SMSW", 31: "DTABLE",
    32: "LDTTR", 35: "RAND", 36: "XSS", 37: "SWAPGS", 39: "XGETBV", 51: "CTXSW", 52: "MARK",
}  # fmt: skip

Row = dict[str, int]
Event = dict[Column, int]


def event_name(row: Row) -> str:
    """Return the name of the event that a record becomes."""
    name = EVENT_NAMES[row["kind"]]
    return name if isinstance(name, str) else name[row["write"]]


def record(kind: int, **columns: int) -> Row:
    """Return a record one instruction after the last; the value is known if one is given."""
    defaults = dict.fromkeys(COLUMN_TYPES, 0) | {"gap": 1, "vok": int("val" in columns)}
    return defaults | {"kind": int(kind)} | columns


def write_capture(path: Path, rows: list[Row], **replaced: Any) -> Path:
    """Write records as a trace's file; ``replaced`` puts other arrays, or None, in place of columns."""
    columns = {
        name: np.array([row[name] for row in rows], dtype=dtype) for name, dtype in COLUMN_TYPES.items()
    } | replaced
    np.savez_compressed(path, **{name: array for name, array in columns.items() if array is not None})
    return path


def read(path: Path, events: int | None = None, **parameters: str) -> CaptureTrace:
    """Read a trace from a file."""
    return CaptureSource(path).make(parameters, 0, events)


def rows_of(trace: CaptureTrace, block_events: int = 32_768) -> list[Event]:
    """Return all rows one by one, every column filled in."""
    rows: list[Event] = []
    for block in trace.blocks(block_events):
        assert isinstance(block, EventColumns)
        assert 0 < len(block) <= block_events
        assert block.declared == trace.columns
        columns = {}
        for column in Column:
            array = block.column(column)
            assert array is None or (array.dtype == COLUMN_DTYPES[column] and len(array) == len(block))
            columns[column] = [0] * len(block) if array is None else array.tolist()
        rows += [{column: columns[column][at] for column in Column} for at in range(len(block))]
    return rows


def events_of(trace: CaptureTrace) -> list[Event]:
    """Return the recorded events alone, without the state set before them and without ADVANCE."""
    rows = rows_of(trace)[trace.unrecorded_events :]
    return [row for row in rows if row[Column.KINDS] != EventKind.ADVANCE]


def cycles_of(trace: CaptureTrace) -> Counter[int]:
    """Return the guest cycles of each vCPU."""
    cycles: Counter[int] = Counter()
    for row in rows_of(trace):
        cycles[row[Column.VCPUS]] += row[Column.GAP_CYCLES]
    return cycles


def column_of(trace: CaptureTrace, column: Column) -> np.ndarray[Any, Any]:
    """Return one column of all rows."""
    arrays = [block.column(column) for block in trace.blocks()]
    return np.concatenate([array for array in arrays if array is not None])


@pytest.fixture(scope="module", params=capture_names())
def shipped(request: pytest.FixtureRequest) -> tuple[CaptureTrace, dict[str, Any]]:
    """One shipped trace and what was counted in it."""
    trace = find_workload(f"capture:{request.param}").make({}, 0, None)
    assert isinstance(trace, CaptureTrace)
    return trace, capture_facts()[request.param]


def test_shipped_traces_have_the_records_that_were_counted(
    shipped: tuple[CaptureTrace, dict[str, Any]],
) -> None:
    """Records, skipped kinds, events by kind and MOV DR are those of captures.json."""
    trace, facts = shipped
    counts = Counter(column_of(trace, Column.KINDS).tolist())
    expected: Counter[str] = Counter()
    for kind, count in facts["events_by_kind"].items():
        expected[{"IRQ": "EXTERNAL_INTERRUPT", "EXC": "EXCEPTION"}.get(kind, kind)] = count
    found = Counter({EventKind(kind).name: count for kind, count in counts.items()})
    for register in ("DR", "CR"):
        moves = found.pop(f"MOV_TO_{register}", 0) + found.pop(f"MOV_FROM_{register}", 0)
        found += Counter({f"MOV_{register}": moves})
    found.pop("ADVANCE", None)
    assert found == expected
    assert found["MOV_DR"] == facts["mov_dr"]
    assert trace.skipped == facts["skipped_by_kind"]
    assert (trace.records, trace.total_events) == (facts["records"], facts["events"])
    assert trace.records == facts["events"] + sum(trace.skipped.values())
    assert trace.vcpus == facts["vcpus"]
    assert (trace.unrecorded_events, trace.computed_breakpoints) == (0, False)


def test_guest_cycles_equal_the_instructions(shipped: tuple[CaptureTrace, dict[str, Any]]) -> None:
    """At one cycle an instruction not one is lost, whatever was skipped."""
    trace, facts = shipped
    assert int(column_of(trace, Column.GAP_CYCLES).sum(dtype=np.int64)) == facts["instructions"]
    assert trace.instructions == facts["instructions"]


def test_every_shipped_mov_dr_has_retired(shipped: tuple[CaptureTrace, dict[str, Any]]) -> None:
    """Every MOV DR is marked so, and every read carries the value that it must have."""
    trace, _ = shipped
    kinds, marks = column_of(trace, Column.KINDS), column_of(trace, Column.MARKS)
    assert (marks[kinds == EventKind.MOV_TO_DR] == Mark.RETIRED).all()
    assert (marks[kinds == EventKind.MOV_FROM_DR] == Mark.RETIRED | Mark.VALUE_EXPECTED).all()


def test_every_debug_exception_of_the_tracer_carries_its_dr6() -> None:
    """All 19,500 #DB of debugger-6.1 take DR6 from the read that follows; hits and steps both occur."""
    events = find_workload("capture:debugger-6.1").make({}, 0, None)
    assert isinstance(events, CaptureTrace)
    is_debug = (column_of(events, Column.KINDS) == EventKind.EXCEPTION) & (
        column_of(events, Column.SELECTORS) == 1
    )
    values = column_of(events, Column.VALUES)
    assert Counter((values[is_debug] ^ np.uint64(DR6_RESET)).tolist()).keys() == {1, 2, 4, 8, 0x4000}
    assert not column_of(events, Column.MARKS)[is_debug].any()
    is_read = column_of(events, Column.KINDS) == EventKind.MOV_FROM_DR
    assert int(is_debug.sum()) == int(is_read.sum()) == 19_500
    assert (values[is_debug] == values[is_read]).all()


@pytest.mark.parametrize(
    ("name", "other_exits", "intervals"), [("ctxsw-dr4", 309, 104), ("debugger-6.1", 19_812, 19_553)]
)
def test_accesses_lie_between_exits_as_known(name: str, other_exits: int, intervals: int) -> None:
    """So many other exits there are, and so many intervals between them with an access of a register."""
    trace = find_workload(f"capture:{name}").make({}, 0, None)
    assert isinstance(trace, CaptureTrace)
    kinds, selectors = column_of(trace, Column.KINDS), column_of(trace, Column.SELECTORS)
    exits = np.isin(kinds, (EventKind.HLT, EventKind.MMIO, EventKind.EXTERNAL_INTERRUPT))
    exits |= (kinds == EventKind.EXCEPTION) & np.isin(selectors, (1, 6, 17, 18))
    assert int(exits.sum()) == other_exits
    is_move = np.isin(kinds, (EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR))
    assert len(set(np.cumsum(exits)[is_move].tolist())) == intervals


@pytest.mark.parametrize("name", capture_names())
def test_captures_json_counts_what_is_in_the_files(name: str) -> None:
    """Its figures are those of a plain count over the records, made without the reader."""
    facts = capture_facts()[name]
    names = {number: RecordKind(number).name for number in (*EVENT_NAMES, *SKIPPED_NAMES)}
    events: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        for kind in file["kind"].tolist():
            (skipped if kind in SKIPPED_NAMES else events)[names[kind]] += 1
        instructions = sum(file["gap"].tolist())
    assert (events, skipped) == (facts["events_by_kind"], facts["skipped_by_kind"])
    assert (sum(events.values()), events["MOV_DR"]) == (facts["events"], facts["mov_dr"])
    assert (events.total() + skipped.total(), instructions) == (facts["records"], facts["instructions"])


def test_shipped_files_are_small_and_described() -> None:
    """Each file is below 1.5 MB and has its entry, and no file is without."""
    files = {file.stem: file.stat().st_size for file in FOLDER.glob("*.npz")}
    assert files.keys() == set(capture_names())
    assert max(files.values()) < 1_500_000


# A slow model of the reader: one record after another, one dictionary a vCPU.


def slow_events(rows: list[Row], cpi: Fraction) -> tuple[list[Event], Counter[int], Counter[str]]:
    """Return events, guest cycles by vCPU, and skipped records, by the rules told one at a time."""
    instructions: Counter[int] = Counter()
    given: Counter[int] = Counter()
    skipped: Counter[str] = Counter()
    events = []
    for at, row in enumerate(rows):
        cpu = row["cpu"]
        instructions[cpu] += row["gap"]
        if row["kind"] not in EVENT_NAMES:
            skipped[SKIPPED_NAMES.get(row["kind"], f"kind {row['kind']}")] += 1
            continue
        cycles = int(instructions[cpu] * cpi)
        later = [other for other in rows[at + 1 :] if other["cpu"] == cpu]
        event = dict.fromkeys(Column, 0) | slow_columns(row, later)
        event[Column.GAP_CYCLES] = cycles - given[cpu]
        given[cpu] = cycles
        events.append(event)
    return events, Counter({cpu: int(count * cpi) for cpu, count in instructions.items()}), skipped


def slow_columns(row: Row, later: list[Row]) -> Event:
    """Return what the columns of one event hold."""
    name = event_name(row)
    event = {Column.KINDS: int(EventKind[name]), Column.VCPUS: row["cpu"], Column.RIPS: row["rip"]}
    if name in ("MOV_TO_DR", "MOV_FROM_DR", "MOV_TO_CR", "MOV_FROM_CR", "IN", "OUT", "INS", "OUTS", "MMIO"):
        event[Column.ARGS] = row["reg"] + (128 if name == "MMIO" and row["write"] else 0)
    if name in (
        "IN", "OUT", "INS", "OUTS", "CPUID", "RDMSR", "WRMSR", "RDPMC", "INTN", "EXCEPTION",
        "EXTERNAL_INTERRUPT", "MMIO",
    ):  # fmt: skip
        event[Column.SELECTORS] = row["aux"]
    if name in ("MOV_TO_DR", "MOV_FROM_DR"):
        event |= slow_move(row, later)
    elif name in (
        "MOV_TO_CR", "LMSW", "OUT", "INS", "OUTS", "RDMSR", "WRMSR", "PAUSE", "INVLPG", "XSETBV", "MMIO",
    ):  # fmt: skip
        event |= {Column.VALUES: row["val"]} if row["vok"] else {Column.MARKS: int(Mark.VALUE_UNKNOWN)}
        if name == "RDMSR" and row["aux"] == MSR_DEBUGCTL and row["vok"]:
            event[Column.MARKS] = int(Mark.VALUE_EXPECTED)
    elif name == "EXCEPTION" and row["aux"] == 1:
        payload = slow_payload(later)
        event |= {Column.MARKS: int(Mark.VALUE_UNKNOWN)} if payload is None else {Column.VALUES: payload}
    elif name == "EXCEPTION" and row["aux"] in (8, 10, 11, 12, 13, 14, 17, 21):
        event[Column.MARKS] = int(Mark.VALUE_UNKNOWN)
    return event


def is_faulting(later: list[Row]) -> bool:
    """Tell whether the next record is an exception one instruction later that a MOV DR can raise."""
    return (
        bool(later) and later[0]["kind"] == K.EXC and later[0]["gap"] <= 1 and later[0]["aux"] in (1, 6, 13)
    )


def slow_payload(later: list[Row]) -> int | None:
    """Return DR6 after a #DB that these records of its vCPU follow."""
    for at, row in enumerate(later):
        if row["kind"] == K.EXC and row["aux"] == 1:
            return None
        if row["kind"] == K.MOV_DR and row["reg"] in (4, 6):
            is_good = not row["write"] and row["vok"] and not is_faulting(later[at + 1 :])
            return row["val"] if is_good else None
    return None


def slow_move(row: Row, later: list[Row]) -> Event:
    """Return value and marks of a MOV DR."""
    marks = Mark.RETIRED
    is_known = bool(row["vok"])
    if is_faulting(later):
        is_known &= bool(row["write"])
        payload = slow_payload(later[1:])
        if later[0]["aux"] != 1 or (payload is not None and payload & DR6_BD):
            marks = Mark.NOT_RETIRED
        elif payload is None:
            marks = Mark(0)
    if not is_known:
        marks |= Mark.VALUE_UNKNOWN
    elif not row["write"]:
        marks |= Mark.VALUE_EXPECTED
    return {Column.VALUES: row["val"] if is_known else 0, Column.MARKS: int(marks)}


def random_rows(draw: random.Random) -> list[Row]:
    """Return random records, many of them about debug registers; every register is written first."""
    rows = [
        record(K.MOV_DR, cpu=cpu, reg=reg, write=1, val=reg) for cpu in range(3) for reg in (0, 1, 2, 3, 6, 7)
    ]
    for _ in range(draw.randrange(1, 300)):
        kind = draw.choice([K.MOV_DR] * 20 + [K.EXC] * 8 + [K.MMIO, K.SWAPGS, 99, 0, *RecordKind])
        aux = draw.choice((1, 1, 1, 3, 6, 13, 14)) if kind == K.EXC else draw.randrange(256)
        aux = draw.choice((aux, MSR_DEBUGCTL)) if kind in (K.RDMSR, K.WRMSR) else aux
        known = draw.randrange(5) > 0
        value = draw.choice((draw.getrandbits(64), DR6_RESET | DR6_BD, DR6_RESET | 1))
        rows.append(
            record(
                kind,
                cpu=draw.randrange(3),
                reg=draw.choice((4, 5, 6, 6, 6, *range(8))),
                write=draw.randrange(2),
                gap=draw.choice((0, 1, 1, 2, 77, draw.getrandbits(20))),
                rip=draw.getrandbits(64),
                aux=aux,
                val=value if known else 0,
                vok=int(known),
            )
        )
    return rows


@pytest.mark.parametrize("seed", range(60))
def test_reader_agrees_with_the_slow_model(seed: int, tmp_path: Path) -> None:
    """Random records of three vCPUs read the same as by the model that takes them one by one."""
    draw = random.Random(seed)
    rows = random_rows(draw)
    cpi = draw.choice(("1", "0.3", "2.5", "1.000001", "0.001", "1000"))
    events, cycles, skipped = slow_events(rows, Fraction(cpi))
    trace = read(write_capture(tmp_path / "random.npz", rows), cpi=cpi)
    assert trace.unrecorded_events == 0
    assert events_of(trace) == events
    assert +cycles_of(trace) == +cycles
    assert trace.skipped == skipped
    assert (trace.records, trace.total_events) == (len(rows), len(events))


@pytest.mark.parametrize("seed", range(10))
def test_a_cut_trace_is_a_recording_that_ended_there(seed: int, tmp_path: Path) -> None:
    """N events of a trace are what the file gives whose last record is that of the N-th event."""
    rows = random_rows(random.Random(seed))
    at_events = [at for at, row in enumerate(rows) if row["kind"] in EVENT_NAMES]
    events = len(at_events) // 2
    cut = read(write_capture(tmp_path / "whole.npz", rows), events)
    short = read(write_capture(tmp_path / "short.npz", rows[: at_events[events - 1] + 1]))
    assert rows_of(cut) == rows_of(short)
    assert (cut.total_events, cut.records, cut.skipped) == (events, short.records, short.skipped)
    assert cut.instructions == short.instructions


def test_blocks_can_be_cut_anywhere() -> None:
    """Blocks of 7,001 rows join to those of one block size, and a second pass gives the same."""
    trace = find_workload("capture:idle-shell").make({}, 0, None)
    assert isinstance(trace, CaptureTrace)
    digests = []
    for block_events in (7001, 32_768, 32_768):
        joined = io.BytesIO()
        for column in trace.columns:
            for block in trace.blocks(block_events):
                array = block.column(column)
                assert array is not None
                joined.write(array.tobytes())
        digests.append(joined.getvalue())
    assert digests[0] == digests[1] == digests[2]


def test_more_events_than_recorded_are_all_events() -> None:
    """The number of events is a limit: a trace is never stretched."""
    trace = find_workload("capture:idle-shell").make({}, 0, 10**9)
    assert trace.total_events == capture_facts()["idle-shell"]["events"]


@pytest.mark.parametrize(
    ("gap", "cpi", "cycles"),
    [
        (LARGEST_GAP, "1", [LARGEST_GAP]),
        (LARGEST_GAP, "2", [LARGEST_GAP, LARGEST_GAP]),
        (LARGEST_GAP, "3.5", [LARGEST_GAP] * 3 + [LARGEST_GAP // 2]),
        (1 << 31, "2", [LARGEST_GAP, 1]),
    ],
)
def test_a_gap_above_32_bits_is_spread(gap: int, cpi: str, cycles: list[int], tmp_path: Path) -> None:
    """What does not fit comes as ADVANCE of the same vCPU before the event, and none is lost."""
    rows = [record(K.HLT, cpu=1, gap=gap, rip=5), record(K.MARK, cpu=1, gap=gap)]
    trace = read(write_capture(tmp_path / "long.npz", rows), cpi=cpi)
    found = rows_of(trace)
    assert [row[Column.GAP_CYCLES] for row in found[: len(cycles)]] == cycles
    kinds = [row[Column.KINDS] for row in found]
    assert kinds.index(EventKind.HLT) == len(cycles) - 1
    assert set(kinds) - {EventKind.HLT} == {EventKind.ADVANCE}
    assert {row[Column.RIPS] for row in found if row[Column.KINDS] == EventKind.ADVANCE} == {0}
    assert cycles_of(trace) == {1: int(2 * gap * Fraction(cpi))}
    assert (trace.total_events, trace.records, trace.skipped) == (1, 2, {"MARK": 1})


def test_time_after_a_vcpus_last_event_comes_at_the_end(tmp_path: Path) -> None:
    """Each vCPU's trailing gaps become one ADVANCE, also of a vCPU that had no event at all."""
    rows = [
        record(K.SWAPGS, cpu=2, gap=11),
        record(K.HLT, cpu=0, gap=3),
        record(K.IRET, cpu=0, gap=4),
        record(K.HLT, cpu=1, gap=5),
    ]
    rows_read = rows_of(read(write_capture(tmp_path / "tail.npz", rows)))
    assert [(row[Column.KINDS], row[Column.VCPUS], row[Column.GAP_CYCLES]) for row in rows_read] == [
        (EventKind.HLT, 0, 3),
        (EventKind.HLT, 1, 5),
        (EventKind.ADVANCE, 0, 4),
        (EventKind.ADVANCE, 2, 11),
    ]


def test_a_register_that_is_read_first_is_set_before_the_first_event(tmp_path: Path) -> None:
    """A window that opens on a read gives the vCPU that value, and reset values elsewhere."""
    rows = [
        record(K.MOV_DR, cpu=0, reg=0, write=1, val=1),
        record(K.MOV_DR, cpu=1, reg=2, val=0x1000),
        record(K.MOV_DR, cpu=0, reg=0, val=1),
        record(K.MOV_DR, cpu=1, reg=5, val=0x4A0),
        record(K.MOV_DR, cpu=1, reg=2, write=1, val=0x2000),
        record(K.MOV_DR, cpu=1, reg=2, val=0x2000),
    ]
    trace = read(write_capture(tmp_path / "window.npz", rows))
    staged = [0, 0, 0x1000, 0, DR6_RESET, 0x4A0]
    expected = [(EventKind.STAGE, slot, 1, value) for slot, value in enumerate(staged)]
    expected.append((EventKind.SET_DEBUGREGS, 0, 1, 0))
    found = rows_of(trace)
    assert [
        (row[Column.KINDS], row[Column.ARGS], row[Column.VCPUS], row[Column.VALUES]) for row in found[:7]
    ] == expected
    assert (trace.unrecorded_events, trace.total_events, trace.records) == (7, 6, 6)
    assert cycles_of(trace) == {0: 2, 1: 4}


@pytest.mark.parametrize(
    ("rows", "staged_dr6"),
    [
        ([record(K.MOV_DR, reg=6, val=0xFFFF_0FF1)], 0xFFFF_0FF1),
        ([record(K.EXC, aux=1), record(K.MOV_DR, reg=6, val=0xFFFF_0FF1)], None),
        ([record(K.EXC, aux=1, cpu=1), record(K.MOV_DR, reg=6, val=0xFFFF_0FF1)], 0xFFFF_0FF1),
        ([record(K.EXC, aux=14), record(K.MOV_DR, reg=6, val=0xFFFF_0FF1)], 0xFFFF_0FF1),
        ([record(K.MOV_DR, reg=6, val=0xFFFF_0FF1), record(K.EXC, aux=1, gap=2)], 0xFFFF_0FF1),
        ([record(K.MOV_DR, reg=6)], None),
    ],
)
def test_dr6_is_set_only_if_no_exception_made_it(
    rows: list[Row], staged_dr6: int | None, tmp_path: Path
) -> None:
    """A #DB of this vCPU before the first read explains DR6; an unknown value explains nothing."""
    found = rows_of(read(write_capture(tmp_path / "dr6.npz", rows)))
    staged = [row[Column.VALUES] for row in found if row[Column.KINDS] == EventKind.STAGE]
    assert staged == ([] if staged_dr6 is None else [0, 0, 0, 0, staged_dr6, DR7_RESET])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_debug_exceptions_and_dr6_are_each_vcpus_own(order: tuple[int, int], tmp_path: Path) -> None:
    """A #DB of one vCPU neither takes its DR6 from another's read nor explains that read."""
    thrower, reader = order
    rows = [record(K.EXC, aux=1, cpu=thrower), record(K.MOV_DR, reg=6, val=0xFFFF_0FF2, cpu=reader)]
    found = rows_of(read(write_capture(tmp_path / "two.npz", rows)))
    exceptions = [row for row in found if row[Column.KINDS] == EventKind.EXCEPTION]
    assert [(row[Column.VALUES], row[Column.MARKS]) for row in exceptions] == [(0, Mark.VALUE_UNKNOWN)]
    staged = [
        (row[Column.VCPUS], row[Column.VALUES]) for row in found if row[Column.KINDS] == EventKind.STAGE
    ]
    assert staged[4] == (reader, 0xFFFF_0FF2)


def damaged(whole: bytes, how: str) -> bytes:
    """Return a file's bytes damaged in one way."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        info = archive.getinfo("val.npy")
    middle = info.header_offset + info.compress_size // 2
    return {
        "empty": b"",
        "text": b"kind,gap\n1,2\n",
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :],
        "pickle": b"\x80\x04]\x94.",
    }[how]


@pytest.mark.parametrize("how", ["empty", "text", "cut", "flipped", "pickle"])
def test_a_damaged_file_is_refused(how: str, tmp_path: Path) -> None:
    """Whatever is wrong with its bytes, the error is one line with the file's name."""
    draw = random.Random(1)
    rows = [record(K.RDMSR, val=draw.getrandbits(64)) for _ in range(2000)]
    path = write_capture(tmp_path / "trace.npz", rows)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert ("column 'val' is damaged" in str(caught.value)) == (how == "flipped")
    assert caught.value.exit_code == 2


ROWS = [record(K.HLT), record(K.MOV_DR, reg=7, write=1, val=DR7_RESET)]


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        ({"gap": None}, "column 'gap' is missing; there are: kind, reg"),
        ({"aux": np.zeros(3, np.uint32)}, "column 'aux' has 3 values, column 'kind' has 2"),
        (
            {"val": np.zeros(2, np.float64)},
            "column 'val': expected one dimension of uint64, got 1 of float64",
        ),
        (
            {"cpu": np.zeros((2, 1), np.uint8)},
            "column 'cpu': expected one dimension of uint8, got 2 of uint8",
        ),
        ({"rip": np.array([{}, {}], dtype=object)}, "column 'rip' is damaged: "),
        ({"write": np.array([0, 2], np.uint8)}, "column 'write': record 1: expected 0 or 1, got 2"),
        ({"vok": np.array([7, 1], np.uint8)}, "column 'vok': record 0: expected 0 or 1, got 7"),
        ({"reg": np.array([0, 8], np.uint8)}, "column 'reg': record 1: expected 0 to 7 for MOV_DR, got 8"),
        (
            {"kind": np.array([48, 3], np.uint8), "aux": np.array([256, 0], np.uint32)},
            "column 'aux': record 0: expected 0 to 255 for IRQ, got 256",
        ),
        ({name: np.zeros(0, dtype) for name, dtype in COLUMN_TYPES.items()}, "there are no records"),
    ],
)
def test_an_inconsistent_file_is_refused_by_column(
    replaced: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """A column that is missing, of another type or length, or holds what it cannot, is named."""
    path = write_capture(tmp_path / "trace.npz", ROWS, **replaced)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_file_that_is_not_there_or_holds_one_array_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a lone array each say what they are."""
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, says in (("no.npz", "No such file"), ("", "Is a directory"), ("one.npy", "got a single array")):
        with pytest.raises(TraceError, match=says):
            read(tmp_path / name)


@pytest.mark.parametrize("cpi", ["0", "-1", "inf", "nan", "fast", "1001"])
def test_a_bad_cpi_is_refused(cpi: str) -> None:
    """Cycles per instruction are a number from a thousandth to a thousand."""
    with pytest.raises(BadParameter, match=r"capture:idle-shell: cpi="):
        find_workload("capture:idle-shell").make({"cpi": cpi}, 0, None)
