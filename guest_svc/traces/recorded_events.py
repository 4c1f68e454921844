"""The records of a trace as columns of events: what each column holds, and the guest time between."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, MMIO_WRITE, Column, EventColumns, EventKind, Mark
from guest_svc.traces.debug_history import DebugHistory
from guest_svc.traces.records import EVENTS, ByVcpu, Records

LARGEST_GAP_CYCLES: Final = (1 << 32) - 1
VECTORS_WITH_ERROR_CODE: Final = (8, 10, 11, 12, 13, 14, 17, 21)

Columns = dict[Column, NDArray[Any]]


def _table(kinds: Iterable[EventKind], dtype: Any) -> NDArray[Any]:
    table = np.zeros(256, dtype=dtype)
    table[list(kinds)] = 1
    return table


EVENT_OF: Final = np.zeros((2, 256), dtype=np.uint8)  # by write flag and kind of record; 0: skipped
for _kind, _events in EVENTS.items():
    EVENT_OF[:, _kind] = _events

_DEBUG_REGISTER_MOVES: Final = (EventKind.MOV_FROM_DR, EventKind.MOV_TO_DR)
_PORT_ACCESSES: Final = (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS)
_ARG_IS_REG: Final = _table(
    (*_DEBUG_REGISTER_MOVES, EventKind.MOV_FROM_CR, EventKind.MOV_TO_CR, *_PORT_ACCESSES, EventKind.MMIO),
    np.uint8,
)
_SELECTOR_IS_AUX: Final = _table(
    (
        *_PORT_ACCESSES,
        EventKind.CPUID,
        EventKind.RDMSR,
        EventKind.WRMSR,
        EventKind.RDPMC,
        EventKind.INTN,
        EventKind.EXTERNAL_INTERRUPT,
        EventKind.EXCEPTION,
        EventKind.MMIO,
    ),
    np.uint32,
)
# Not EXCEPTION: its val is CR2 or nothing, neither DR6 nor an error code.
_VALUE_IS_VAL: Final = _table(
    (
        *_DEBUG_REGISTER_MOVES,
        EventKind.MOV_TO_CR,
        EventKind.LMSW,
        EventKind.OUT,
        EventKind.INS,
        EventKind.OUTS,
        EventKind.RDMSR,
        EventKind.WRMSR,
        EventKind.PAUSE,
        EventKind.INVLPG,
        EventKind.XSETBV,
        EventKind.MMIO,
    ),
    np.uint8,
)


def event_columns(records: Records, taken: NDArray[np.intp], history: DebugHistory) -> Columns:
    """Return the columns of the records at ``taken`` as events; their guest time is not among them."""
    kinds = EVENT_OF[records.write[taken], records.kind[taken]]
    args = records.reg[taken] * _ARG_IS_REG[kinds]
    args |= (records.write[taken] * np.uint8(MMIO_WRITE)) * (kinds == EventKind.MMIO)
    takes_value = _VALUE_IS_VAL[kinds]
    known = records.vok[taken]
    marks = (takes_value & ~known & 1) * np.uint8(Mark.VALUE_UNKNOWN)
    marks[_needs_error_code(records, taken, kinds)] = Mark.VALUE_UNKNOWN
    values = records.val[taken] * (takes_value & known).astype(np.uint64)
    # The one MSR that the engine has: what is read of it first says what was there.
    is_debugctl = (kinds == EventKind.RDMSR) & (records.aux[taken] == MSR_DEBUGCTL)
    marks |= (is_debugctl & (known != 0)) * np.uint8(Mark.VALUE_EXPECTED)

    # Where among the events a record at some place of the trace is.
    move = np.searchsorted(taken, history.by_vcpu.positions(history.moves))
    values[move] = np.where(history.is_known, history.value, 0)
    marks[move] = (
        (~history.is_known) * np.uint8(Mark.VALUE_UNKNOWN)
        | (history.is_known & ~history.is_write) * np.uint8(Mark.VALUE_EXPECTED)
        | history.has_retired * np.uint8(Mark.RETIRED)
        | history.has_faulted * np.uint8(Mark.NOT_RETIRED)
    )
    exception = np.searchsorted(taken, history.by_vcpu.positions(history.exceptions))
    marks[exception] = (~history.has_payload) * np.uint8(Mark.VALUE_UNKNOWN)
    values[exception] = history.payload
    return {
        Column.KINDS: kinds,
        Column.ARGS: args,
        Column.MARKS: marks,
        Column.VCPUS: records.cpu[taken],
        Column.SELECTORS: records.aux[taken] * _SELECTOR_IS_AUX[kinds],
        Column.VALUES: values,
        Column.RIPS: records.rip[taken],
    }


def _needs_error_code(
    records: Records, taken: NDArray[np.intp], kinds: NDArray[np.uint8]
) -> NDArray[np.intp]:
    exceptions = np.flatnonzero(kinds == EventKind.EXCEPTION)
    return exceptions[np.isin(records.aux[taken[exceptions]], VECTORS_WITH_ERROR_CODE)]


def event_cycles(
    by_vcpu: ByVcpu, is_event: NDArray[np.bool_], cpi: Fraction
) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Return the cycles before each event, and the (vCPU, cycles) after the last event of each.

    A vCPU's running count of instructions is scaled and rounded down, so that nothing drifts.
    """
    counted = np.cumsum(by_vcpu.gap, dtype=np.int64)
    first = np.flatnonzero(np.diff(by_vcpu.cpu.astype(np.int16), prepend=-1))
    last = np.append(first[1:], len(counted)) - 1
    before = np.append(0, counted[last[:-1]])
    counted -= np.repeat(before, last - first + 1)
    if cpi != 1:
        # In two steps: instructions * numerator could pass 64 bits.
        wholes, rests = np.divmod(counted, cpi.denominator)
        counted = wholes * cpi.numerator + rests * cpi.numerator // cpi.denominator

    events = np.flatnonzero(by_vcpu.sort(is_event))
    reached = counted[events]
    gaps = np.diff(reached, prepend=0)
    event_cpu = by_vcpu.cpu[events]
    starts = np.flatnonzero(np.diff(event_cpu.astype(np.int16), prepend=-1))
    gaps[starts] = reached[starts]
    at = np.zeros(len(counted), dtype=np.int64)
    at[by_vcpu.positions(events)] = gaps

    spent = np.zeros(256, dtype=np.int64)
    ends = np.append(starts[1:], len(events)) - 1 if len(events) else starts
    spent[event_cpu[ends]] = reached[ends]
    rest = [(int(by_vcpu.cpu[at_]), int(counted[at_] - spent[by_vcpu.cpu[at_]])) for at_ in last]
    return at[is_event], [(vcpu, cycles) for vcpu, cycles in rest if cycles]


def state_columns(rows: list[tuple[EventKind, int, int, int]]) -> Columns:
    """Return the columns of the host's events before the first record."""
    return {
        column: np.array([row[place] for row in rows], dtype=COLUMN_DTYPES[column])
        for place, column in enumerate((Column.KINDS, Column.ARGS, Column.VCPUS, Column.VALUES))
    }


def join(
    columns: tuple[Column, ...],
    prefix: Columns,
    events: Columns,
    cycles: NDArray[np.int64],
    rest: list[tuple[int, int]],
) -> EventColumns:
    """Return all rows: the prefix, the events with their guest time, and the time after the last."""
    prefix_rows, rows = len(prefix[Column.KINDS]), len(events[Column.KINDS])
    # A gap above 32 bits: as many ADVANCE as hold its whole part, before the event with what is left.
    advances = np.maximum(cycles - 1, 0) // LARGEST_GAP_CYCLES
    after = [
        (vcpu, min(LARGEST_GAP_CYCLES, cycles_ - start))
        for vcpu, cycles_ in rest
        for start in range(0, cycles_, LARGEST_GAP_CYCLES)
    ]
    suffix: Columns = {
        Column.KINDS: np.full(len(after), EventKind.ADVANCE, dtype=np.uint8),
        Column.VCPUS: np.array([vcpu for vcpu, _ in after], dtype=np.uint8),
        Column.GAP_CYCLES: np.array([cycles_ for _, cycles_ in after], dtype=np.uint32),
    }
    events = {**events, Column.GAP_CYCLES: (cycles - advances * LARGEST_GAP_CYCLES).astype(np.uint32)}
    if advances.any():
        events = _spread(events, advances, rows)
        rows += int(advances.sum())
    joined = {}
    for column in columns:
        parts = (
            (prefix.get(column), prefix_rows),
            (events.get(column), rows),
            (suffix.get(column), len(after)),
        )
        joined[COLUMN_NAMES[column - 1]] = np.concatenate(
            [
                np.zeros(length, dtype=COLUMN_DTYPES[column]) if part is None else part
                for part, length in parts
            ],
            dtype=COLUMN_DTYPES[column],
        )
    return EventColumns(**joined)


def _spread(events: Columns, advances: NDArray[np.int64], rows: int) -> Columns:
    """Return the events with ``advances`` rows of ADVANCE before each, of the largest gap."""
    source = np.repeat(np.arange(rows), advances + 1)
    is_advance = np.ones(len(source), dtype=np.bool_)
    is_advance[np.cumsum(advances + 1) - 1] = False
    spread = {column: values[source] for column, values in events.items()}
    for column, values in spread.items():
        if column is not Column.VCPUS:
            values[is_advance] = 0
    spread[Column.KINDS][is_advance] = EventKind.ADVANCE
    spread[Column.GAP_CYCLES][is_advance] = LARGEST_GAP_CYCLES
    return spread
