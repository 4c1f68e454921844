"""The generated workloads: reproducible, exact in time, valid, and what they say they are."""

import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from exitlab.debugreg import DR6_RESET, DR7_ENABLES, DR7_FIXED, DR7_GD, DR7_WRITABLE
from exitlab.events import COLUMN_DTYPES, MMIO_WRITE, Column, EventKind, Mark
from guest_svc.errors import BadInput
from guest_svc.workloads import (
    BadParameter,
    UnknownParameter,
    UnknownWorkload,
    Workload,
    find_workload,
    workload_names,
)

GENERATED = ("context-switch", "debugger", "idle", "io")
SHARED_CPUS = {"vcpus": "5", "physical_cpus": "2", "switches_per_slice": "3"}
MIGRATING = {"vcpus": "2", "migrate": "4", "physical_cpus": "3"}
RUNS_LATE = {"late_fetches": "1", "handlers": "1", "vcpus": "2", "physical_cpus": "1", "tasks": "3"}
RUNS_THROUGH = {"fetches": "1", "handlers": "1", "tasks": "3", "tasks_with_breakpoints": "2"}
CASES: tuple[tuple[str, dict[str, str]], ...] = (
    *((name, {}) for name in GENERATED),
    ("context-switch", SHARED_CPUS),
    ("context-switch", MIGRATING),
    ("context-switch", RUNS_THROUGH),
    ("context-switch", RUNS_LATE),
    ("debugger", {"fast_exits": "2"}),
    ("debugger", {"code_percent": "100", "stops_per_tick": "3"}),
)
BURST = [("r", n) for n in (0, 1, 2, 3, 6, 7)] + [("w", n) for n in (7, 0, 1, 2, 3, 6, 7)]


def make(
    name: str, parameters: dict[str, str] | None = None, seed: int = 0, events: int | None = None
) -> Workload:
    """Make a workload with some defaults changed."""
    return find_workload(name).make(parameters or {}, seed, events)


def columns_of(workload: Workload, block_events: int = 32_768) -> dict[Column, np.ndarray[Any, Any]]:
    """Join all blocks, checking each on the way."""
    parts: dict[Column, list[np.ndarray[Any, Any]]] = {column: [] for column in workload.columns}
    for block in workload.blocks(block_events):
        assert 0 < len(block) <= block_events
        assert block.declared == workload.columns
        for column, arrays in parts.items():
            array = block.column(column)
            assert array is not None
            assert array.dtype == COLUMN_DTYPES[column]
            assert len(array) == len(block)
            arrays.append(array)
    return {column: np.concatenate(arrays) for column, arrays in parts.items()}


def rows_of(workload: Workload) -> list[dict[Column, int]]:
    """Return the events one by one, every column filled in."""
    columns = columns_of(workload)
    length = len(columns[Column.KINDS])
    filled = {column: columns.get(column, np.zeros(length, np.uint64)).tolist() for column in Column}
    return [{column: filled[column][at] for column in Column} for at in range(length)]


def gap_sums(workload: Workload) -> Counter[int]:
    """Return the guest cycles of each vCPU."""
    sums: Counter[int] = Counter()
    for row in rows_of(workload):
        sums[row[Column.VCPUS]] += row[Column.GAP_CYCLES]
    return sums


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("block_events", [1, 7, 1000])
def test_cutting_blocks_changes_nothing(name: str, parameters: dict[str, str], block_events: int) -> None:
    """However small the blocks, their joined columns are byte for byte the same."""
    whole = columns_of(make(name, parameters, 3, 3000))
    cut = columns_of(make(name, parameters, 3, 3000), block_events)
    assert {column: array.tobytes() for column, array in whole.items()} == {
        column: array.tobytes() for column, array in cut.items()
    }


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_blocks_can_be_asked_for_again(name: str, parameters: dict[str, str]) -> None:
    """A second pass over one workload yields the same events as the first."""
    workload = make(name, parameters, 3, 3000)
    assert rows_of(workload) == rows_of(workload)


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("events", [1, 13, 14, 2999])
def test_fewer_events_are_the_first_of_more(name: str, parameters: dict[str, str], events: int) -> None:
    """A run of N events has exactly N, and they are the first N of a longer run."""
    workload = make(name, parameters, 3, events)
    assert (workload.total_events, workload.records, workload.skipped) == (events, events, {})
    assert rows_of(workload) == rows_of(make(name, parameters, 3, 3000))[:events]


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_the_stated_length_is_the_length(name: str, parameters: dict[str, str]) -> None:
    """With no number of events given, as many come as the workload says, about 0.3 million."""
    workload = make(name, parameters)
    assert len(columns_of(workload)[Column.KINDS]) == workload.total_events
    assert 250_000 <= workload.total_events <= 450_000


def test_a_run_extends_past_its_own_end() -> None:
    """More events than the default length are as many as asked for."""
    workload = make("context-switch", {"switches": "2"}, events=100_000)
    assert len(columns_of(workload)[Column.KINDS]) == 100_000


# CRC-32 over all columns of 5,000 events at seed 1: the same on every machine and version of numpy.
DIGESTS = {
    "context-switch": 1379369785,
    "debugger": 2021047426,
    "idle": 1553600019,
    "io": 3271537678,
}


@pytest.mark.parametrize("name", GENERATED)
def test_a_seed_means_the_same_everywhere(name: str) -> None:
    """The events of a seed never change between machines or releases."""
    digest = 0
    for array in columns_of(make(name, seed=1, events=5000)).values():
        digest = zlib.crc32(array.tobytes(), digest)
    assert digest == DIGESTS[name]


@pytest.mark.parametrize("name", GENERATED)
def test_another_seed_is_another_run(name: str) -> None:
    """Seeds 1 and 2 differ."""
    assert rows_of(make(name, seed=1, events=1000)) != rows_of(make(name, seed=2, events=1000))


def test_every_switch_is_the_burst_of_13_and_two_other_exits_after_it() -> None:
    """By default a switch reads six registers, turns DR7 off, writes six, and only then exits twice."""
    workload = make("context-switch")
    rows = rows_of(workload)
    assert len(rows) == workload.total_events == 20_000 * 15
    for start in (0, 15, 15 * 19_999):
        switch = rows[start : start + 15]
        accesses = [
            ("w" if row[Column.KINDS] == EventKind.MOV_TO_DR else "r", row[Column.ARGS])
            for row in switch[:13]
        ]
        assert accesses == BURST
        assert [row[Column.GAP_CYCLES] for row in switch[1:13]] == [20] * 12
        assert switch[6][Column.VALUES] == DR7_FIXED
        assert switch[12][Column.VALUES] & DR7_ENABLES == 0x55
        assert switch[13][Column.KINDS] == EventKind.EXTERNAL_INTERRUPT
        assert (switch[14][Column.KINDS], switch[14][Column.ARGS], switch[14][Column.SELECTORS]) == (
            EventKind.MMIO,
            4 | MMIO_WRITE,
            0xFEE0_00B0,
        )


@pytest.mark.parametrize(
    ("accesses", "burst"),
    [
        ("1", [("w", 7)]),
        ("2", [("w", 0), ("w", 7)]),
        ("6", [("w", n) for n in (0, 1, 2, 3, 6, 7)]),
        ("7", BURST[6:]),
        ("12", BURST[1:]),
        ("13", BURST),
        ("15", [("r", 6), ("r", 6), *BURST]),
    ],
)
def test_other_numbers_of_accesses(accesses: str, burst: list[tuple[str, int]]) -> None:
    """Shorter bursts leave out the reads first and keep DR7 on to the last; longer ones read DR6 more."""
    rows = rows_of(make("context-switch", {"accesses": accesses, "other_exits": "0", "switches": "1"}))
    assert [
        ("w" if row[Column.KINDS] == EventKind.MOV_TO_DR else "r", row[Column.ARGS]) for row in rows
    ] == burst
    loaded = {register for kind, register in burst if kind == "w" and register < 4}
    enabled = {slot for slot in range(4) if rows[-1][Column.VALUES] & (0b11 << 2 * slot)}
    assert enabled == loaded


@pytest.mark.parametrize(
    ("parameters", "enabled"),
    [
        ({}, 0x55),
        ({"breakpoints": "-1", "accesses": "2"}, 0x01),
        ({"breakpoints": "0"}, 0),
        ({"breakpoints": "1"}, 0x01),
        ({"breakpoints": "2"}, 0x05),
        ({"breakpoints": "3"}, 0x15),
        ({"breakpoints": "4"}, 0x55),
    ],
)
def test_a_task_has_as_many_breakpoints_as_asked_for(parameters: dict[str, str], enabled: int) -> None:
    """They lie in DR0 and up; the burst writes the other registers all the same, to zero."""
    workload = make("context-switch", parameters, events=13)
    rows = [row for row in rows_of(workload) if row[Column.KINDS] == EventKind.MOV_TO_DR]
    last = {row[Column.ARGS]: row[Column.VALUES] for row in rows}
    assert last[7] & DR7_ENABLES == enabled
    assert {slot for slot in range(4) if last.get(slot)} == {
        slot for slot in range(4) if enabled >> 2 * slot & 1
    }
    assert workload.parameters_used["breakpoints"] == enabled.bit_count()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"switches_per_guest_second": "51501", "clock_hertz": "2999999999"},
        {"switches_per_guest_second": "7", "clock_hertz": "1e10"},
        {"vcpus": "3"},
        SHARED_CPUS,
        MIGRATING,
        RUNS_THROUGH,
        RUNS_LATE,
        {"fetches": "1", **RUNS_LATE},
        {"other_exits": "0"},
        {"other_exits": "5", "accesses": "2"},
    ],
)
def test_switches_keep_their_rate_exactly(parameters: dict[str, str]) -> None:
    """The gaps of a vCPU's n switches add up to floor(n * clock / rate), at any rate."""
    workload = make("context-switch", {"switches": "907", **parameters})
    clock = workload.clock_hertz
    rate = int(str(workload.parameters_used["switches_per_guest_second"]))
    switches = Counter(
        row[Column.VCPUS]
        for row in rows_of(workload)
        if (row[Column.KINDS], row[Column.ARGS]) == (EventKind.MOV_TO_DR, 7)
        and row[Column.VALUES] != DR7_FIXED
    )
    if "tasks_with_breakpoints" not in parameters:
        assert switches.total() == 907
        assert gap_sums(workload) == {vcpu: n * clock // rate for vcpu, n in switches.items()}
    else:  # one task in three never turns DR7 on, so its switches cannot be told by that
        assert gap_sums(workload) == {0: 907 * clock // rate}


@pytest.mark.parametrize(
    ("name", "steps", "rate"),
    [
        ("debugger", "stops", "stops_per_guest_second"),
        ("idle", "ticks", "ticks_per_guest_second"),
        ("io", "operations", "operations_per_guest_second"),
    ],
)
def test_the_other_workloads_keep_theirs(name: str, steps: str, rate: str) -> None:
    """The gaps of n steps add up to floor(n * clock / rate)."""
    workload = make(name, {steps: "1009", rate: "311", "clock_hertz": "2999999999"})
    assert gap_sums(workload) == {0: 1009 * 2_999_999_999 // 311}


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_no_value_of_a_debug_register_can_fault(name: str, parameters: dict[str, str]) -> None:
    """DR6 and DR7 are written with what they can hold, GD stays off, and addresses fit their lengths."""
    registers: dict[tuple[int, int], int] = {}
    enabled = 0
    for row in rows_of(make(name, parameters, 5, 20_000)):
        if row[Column.KINDS] != EventKind.MOV_TO_DR:
            continue
        vcpu, register, value = row[Column.VCPUS], row[Column.ARGS], row[Column.VALUES]
        registers[vcpu, register] = value
        if register == 6:
            assert value == DR6_RESET
        elif register == 7:
            assert value & ~DR7_WRITABLE == DR7_FIXED
            assert not value & DR7_GD
            for slot in (slot for slot in range(4) if value & (0b11 << 2 * slot)):
                length_code = value >> (18 + 4 * slot) & 0b11
                assert registers[vcpu, slot] % (1, 2, 8, 4)[length_code] == 0
                assert value >> (16 + 4 * slot) & 0b11 or not length_code
                enabled += 1
        else:
            assert register < 4
            assert value < 1 << 47
    assert enabled or name in ("idle", "io")


def test_no_two_tasks_share_an_address() -> None:
    """Every task of every vCPU has breakpoints of its own, so that a stale one is seen."""
    rows = rows_of(make("context-switch", {"vcpus": "4", "tasks": "5", "switches": "20"}))
    addresses = [
        row[Column.VALUES]
        for row in rows
        if row[Column.KINDS] == EventKind.MOV_TO_DR and row[Column.ARGS] < 4
    ]
    assert len(addresses) == len(set(addresses)) == 4 * 5 * 4


@pytest.mark.parametrize(
    ("parameters", "slice_switches"), [(SHARED_CPUS, 3), (MIGRATING, 4), ({"migrate": "10"}, 10)]
)
def test_vcpus_run_only_where_they_were_put(parameters: dict[str, str], slice_switches: int) -> None:
    """No vCPU runs while it is off its CPU or another is on it, and each turn is a whole slice."""
    workload = make("context-switch", parameters, events=9000)
    placed = {
        vcpu: cpu
        for cpu, vcpu in {
            cpu: vcpu for vcpu, cpu in reversed(list(enumerate(workload.initial_physical_cpus)))
        }.items()
    }
    bursts: Counter[int] = Counter()
    moves = 0
    for row in rows_of(workload):
        vcpu = row[Column.VCPUS]
        if row[Column.KINDS] == EventKind.SCHED_OUT:
            assert bursts.pop(vcpu) == slice_switches
            del placed[vcpu]
        elif row[Column.KINDS] == EventKind.SCHED_IN:
            assert vcpu not in placed
            assert row[Column.SELECTORS] not in placed.values()
            assert row[Column.SELECTORS] < workload.physical_cpus
            placed[vcpu] = row[Column.SELECTORS]
            moves += 1
        else:
            assert vcpu in placed
            bursts[vcpu] += (row[Column.KINDS], row[Column.ARGS]) == (EventKind.MOV_FROM_DR, 0)
    assert moves > 10


def test_each_task_runs_through_its_own_breakpoint() -> None:
    """The fetch after a switch is of the address in DR0 with DR7 on, and the handler depends on it."""
    rows = rows_of(make("context-switch", {"fetches": "1", "handlers": "1"}, events=3000))
    dr0, checked = 0, 0
    for at, row in enumerate(rows[:-3]):
        if (row[Column.KINDS], row[Column.ARGS]) == (EventKind.MOV_TO_DR, 0):
            dr0 = row[Column.VALUES]
        if row[Column.KINDS] == EventKind.FETCH:
            assert row[Column.VALUES] == dr0
            assert rows[at - 1][Column.VALUES] >> 16 & 0b1111 == 0  # an instruction breakpoint in slot 0
            read, write = rows[at + 1], rows[at + 2]
            assert (read[Column.KINDS], read[Column.ARGS], read[Column.MARKS]) == (
                EventKind.MOV_FROM_DR,
                6,
                Mark.IF_FAULT,
            )
            assert (write[Column.KINDS], write[Column.ARGS], write[Column.MARKS]) == (
                EventKind.MOV_TO_DR,
                6,
                Mark.IF_FAULT,
            )
            checked += 1
    assert checked > 100


def test_a_task_runs_late_into_its_own_breakpoint() -> None:
    """A late fetch is of the address in its vCPU's DR0 and next to a switch, also on a CPU regained."""
    rows = rows_of(make("context-switch", RUNS_LATE, events=4000))
    first = {(row[Column.VCPUS], row[Column.VALUES]) for row in rows if row[Column.KINDS] == EventKind.FETCH}
    assert len(first) == 2 * 3
    dr0: dict[int, int] = {}
    after_a_move, fetches = 0, 0
    for at, row in enumerate(rows[:-3]):
        vcpu = row[Column.VCPUS]
        if (row[Column.KINDS], row[Column.ARGS]) == (EventKind.MOV_TO_DR, 0):
            dr0[vcpu] = row[Column.VALUES]
        if row[Column.KINDS] == EventKind.FETCH:
            handler = [(EventKind.MOV_FROM_DR, 6, Mark.IF_FAULT), (EventKind.MOV_TO_DR, 6, Mark.IF_FAULT)]
            burst = [(EventKind.MOV_FROM_DR, 0, 0)]
            following = rows[at + 1 : at + 4]
            found = [(one[Column.KINDS], one[Column.ARGS], one[Column.MARKS]) for one in following]
            assert found == handler + burst
            assert not at or rows[at - 1][Column.KINDS] in (EventKind.MMIO, EventKind.SCHED_IN)
            assert row[Column.VALUES] == dr0.get(vcpu, row[Column.VALUES])
            after_a_move += rows[at - 1][Column.KINDS] == EventKind.SCHED_IN
            fetches += 1
    assert (fetches > 200, after_a_move > 10) == (True, True)


def test_fast_exits_come_between_the_clearing_of_dr6_and_another_read() -> None:
    """They are added to each stop's handler, and all else is as without them."""
    plain = rows_of(make("debugger", {"stops": "300"}, seed=4))
    rows = rows_of(make("debugger", {"stops": "300", "fast_exits": "2"}, seed=4))
    exits = [at for at, row in enumerate(rows) if row[Column.KINDS] == EventKind.WRMSR]
    assert len(exits) == 2 * 300
    added = set()
    for first, second in zip(exits[::2], exits[1::2], strict=True):
        found = [(rows[at][Column.KINDS], rows[at][Column.ARGS]) for at in range(first - 1, first + 3)]
        write, read = (EventKind.MOV_TO_DR, 6), (EventKind.MOV_FROM_DR, 6)
        assert found == [write, (EventKind.WRMSR, 0), (EventKind.WRMSR, 0), read]
        assert {rows[at][Column.SELECTORS] for at in (first, second)} == {0x6E0}
        added |= {first, second, second + 1}
    assert {rows[at][Column.MARKS] for at in added} == {Mark.IF_FAULT}
    kept = [row for at, row in enumerate(rows) if at not in added]
    assert [{**row, Column.GAP_CYCLES: 0} for row in kept] == [{**row, Column.GAP_CYCLES: 0} for row in plain]


# The running CRC-32 of all columns of the first 50,000 events at seed 3. They stand for figures that are
# published: a new parameter must leave a run that does not name it as it was.
STREAMS: tuple[tuple[str, dict[str, str], int], ...] = (
    ("context-switch", {}, 0x2313_9C8B),
    ("context-switch", {"fetches": "1", "handlers": "1", "vcpus": "2", "physical_cpus": "1"}, 0xE7D6_5F0A),
    ("debugger", {}, 0xAFA1_6A7D),
)


@pytest.mark.parametrize(("name", "parameters", "expected"), STREAMS)
def test_a_stream_is_what_it_always_was(name: str, parameters: dict[str, str], expected: int) -> None:
    """New parameters change nothing where they are not used, byte for byte."""
    digest = 0
    for block in make(name, parameters, 3, 50_000).blocks(32_768):
        for column in block.declared:
            array = block.column(column)
            assert array is not None
            digest = zlib.crc32(array.tobytes(), digest)
    assert digest == expected


def hits(rows: list[dict[Column, int]]) -> list[tuple[int, bool]]:
    """Return (index, whether it hits) of every fetch and access, by the rules of DR7."""
    registers = [0] * 8
    found = []
    for at, row in enumerate(rows):
        kind, arg, value = row[Column.KINDS], row[Column.ARGS], row[Column.VALUES]
        if kind == EventKind.MOV_TO_DR:
            registers[arg] = value
        conditions = {EventKind.FETCH: (0,), EventKind.READ: (3,), EventKind.WRITE: (1, 3)}.get(
            EventKind(kind)
        )
        if conditions is not None:
            is_hit = False
            for slot in range(4):
                length = (1, 2, 8, 4)[registers[7] >> (18 + 4 * slot) & 0b11]
                is_hit |= (
                    bool(registers[7] & (0b11 << 2 * slot))
                    and registers[7] >> (16 + 4 * slot) & 0b11 in conditions
                    and value < registers[slot] + length
                    and registers[slot] < value + max(arg, 1)
                )
            found.append((at, is_hit))
    return found


def test_every_stop_of_the_debugger_is_one_hit() -> None:
    """Each stop hits exactly once, at the access before the handler; moved and stepped-over ones do not."""
    workload = make("debugger", {"stops": "2000"}, seed=9)
    rows = rows_of(workload)
    found = hits(rows)
    assert sum(is_hit for _, is_hit in found) == 2000
    for at, is_hit in found:
        assert (rows[at + 1 :] and rows[at + 1][Column.MARKS] == Mark.IF_FAULT) == is_hit
    kinds = Counter(EventKind(rows[at][Column.KINDS]) for at, is_hit in found if is_hit)
    assert set(kinds) == {EventKind.FETCH, EventKind.READ, EventKind.WRITE}
    assert 400 < kinds[EventKind.FETCH] < 600
    assert sum(row[Column.KINDS] == EventKind.EXTERNAL_INTERRUPT for row in rows) == 10
    watched = [row[Column.VALUES] for row in rows if (row[Column.KINDS], row[Column.ARGS]) == (1, 0)]
    assert sum(now != later for now, later in pairwise(watched)) == (2000 - 1) // 16


@pytest.mark.parametrize("name", ["idle", "io"])
def test_idle_and_io_touch_no_debug_register(name: str) -> None:
    """Neither workload has a MOV DR, and both have interrupts."""
    kinds = Counter(EventKind(kind) for kind in columns_of(make(name))[Column.KINDS].tolist())
    assert not kinds[EventKind.MOV_TO_DR] + kinds[EventKind.MOV_FROM_DR]
    assert kinds[EventKind.EXTERNAL_INTERRUPT] > 10_000


def test_io_has_all_that_it_names() -> None:
    """Ports, device memory, strings, CPUID, and the two MSRs that hypervisors handle fast."""
    columns = columns_of(make("io"))
    kinds = {EventKind(kind) for kind in np.unique(columns[Column.KINDS]).tolist()}
    assert kinds == {
        EventKind.IN,
        EventKind.OUT,
        EventKind.INS,
        EventKind.OUTS,
        EventKind.MMIO,
        EventKind.CPUID,
        EventKind.WRMSR,
        EventKind.EXTERNAL_INTERRUPT,
    }
    written = columns[Column.SELECTORS][columns[Column.KINDS] == EventKind.WRMSR]
    assert set(written.tolist()) == {0x6E0, 0x830, 0x80B}


@pytest.mark.parametrize(
    ("name", "parameters", "error", "says"),
    [
        (
            "context-switch",
            {"acesses": "1"},
            UnknownParameter,
            "no parameter 'acesses'; did you mean accesses",
        ),
        ("idle", {"zzz": "1"}, UnknownParameter, "known: ticks, ticks_per_guest_second"),
        ("context-switch", {"accesses": "many"}, BadParameter, "accesses=many: expected int"),
        ("context-switch", {"accesses": "1.5"}, BadParameter, "accesses=1.5: expected int"),
        ("context-switch", {"accesses": "0"}, BadParameter, "accesses=0: expected 1 to 256"),
        ("context-switch", {"accesses": "1e999999999"}, BadParameter, "expected int"),
        ("context-switch", {"accesses": "nan"}, BadParameter, "accesses=nan: expected int"),
        ("context-switch", {"fetches": "maybe"}, BadParameter, "fetches=maybe: expected bool"),
        ("context-switch", {"vcpus": "257"}, BadParameter, "vcpus=257: expected 1 to 256"),
        ("context-switch", {"handlers": "1"}, BadParameter, "handlers=1 needs fetches=1 or late"),
        ("context-switch", {"tasks_with_breakpoints": "3"}, BadParameter, "more than tasks=2"),
        ("context-switch", {"breakpoints": "5"}, BadParameter, "breakpoints=5: expected -1 to 4"),
        (
            "context-switch",
            {"breakpoints": "2", "accesses": "2"},
            BadParameter,
            "breakpoints=2: a burst of accesses=2 writes 1 addresses",
        ),
        (
            "context-switch",
            {"migrate": "1", "physical_cpus": "1"},
            BadParameter,
            "migrate needs physical_cpus",
        ),
        (
            "context-switch",
            {"vcpus": "256", "tasks": "64", "accesses": "256"},
            BadParameter,
            "at most 1000000",
        ),
        ("context-switch", {"switches_per_guest_second": "1e8"}, BadParameter, "expected at most 3409090"),
        (
            "context-switch",
            {"switches_per_guest_second": "1", "clock_hertz": "1e10"},
            BadParameter,
            "expected more than 2",
        ),
        ("debugger", {"code_percent": "101"}, BadParameter, "code_percent=101: expected 0 to 100"),
    ],
)
def test_a_bad_parameter_is_refused_in_one_line(
    name: str, parameters: dict[str, str], error: type[BadInput], says: str
) -> None:
    """An unknown name or a value that is not taken says which, and what was expected."""
    with pytest.raises(error) as caught:
        make(name, parameters)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert says in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: make("idle", seed=-1),
        lambda: make("idle", seed=1 << 64),
        lambda: make("idle", events=0),
        lambda: make("idle", events=-5),
    ],
)
def test_a_seed_or_number_of_events_out_of_range_is_refused(call: Callable[[], Workload]) -> None:
    """Seeds have 64 bits and a run has at least one event."""
    with pytest.raises(BadParameter, match="idle: "):
        call()


def test_an_unknown_workload_names_the_near_ones() -> None:
    """A misspelt workload is refused with what was probably meant."""
    with pytest.raises(UnknownWorkload, match="no workload 'contxt-switch'; did you mean context-switch"):
        find_workload("contxt-switch")


@pytest.mark.parametrize("name", workload_names())
def test_every_listed_name_is_found_and_described(name: str) -> None:
    """Each name yields a source of that name with a summary and parameters whose defaults are taken."""
    source = find_workload(name)
    assert source.name == name
    assert source.summary
    assert source.is_recorded == name.startswith("capture:")
    for parameter in source.parameters:
        assert parameter.summary
        assert parameter.unit
        assert parameter.type_name in ("int", "float", "bool", "str")
        assert parameter.parse(name, str(parameter.default)) == parameter.default


def test_listing_names_does_not_import_numpy() -> None:
    """Names come without the arrays, so that help and completion start at once."""
    program = (
        "import sys; from guest_svc.workloads import workload_names;"
        "print(len(workload_names()), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(workload_names())), "False"]


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_work_grows_with_blocks_not_events(name: str, parameters: dict[str, str]) -> None:
    """A block of 30,000 events costs no more Python calls than one of 3,000."""

    def calls_a_block(block_events: int) -> float:
        workload = make(name, parameters, events=block_events * 8)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            blocks = sum(1 for _ in workload.blocks(block_events))
        finally:
            sys.setprofile(None)
        return calls / blocks

    assert calls_a_block(30_000) <= calls_a_block(3_000) * 1.2
