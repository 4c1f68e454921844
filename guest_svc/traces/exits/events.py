"""Exits as columns of events: what each becomes, and the rows that stand before and after it.

An exit of MOV DR becomes the access, with its value unknown. An access of an MSR becomes RDMSR or WRMSR
where the trace names it and the profile of the hypervisor lets it exit at all. A #DB that is passed on
to the guest becomes EXCEPTION. All others stay what they are: EXIT with the reason's number.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import MSR_DEBUGCTL
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind, Mark
from exitlab.exit_reasons import SVM_EXCEPTION_BASE, VENDOR_SVM, VENDOR_VMX, VMX_FLAG_FAILED_VMENTRY
from guest_svc.traces.exits.accesses import Access, Verdicts
from guest_svc.traces.exits.pairs import NONE, Pairs
from guest_svc.traces.text.table import Flag, Known, Table

COLUMNS: Final = (
    Column.KINDS, Column.ARGS, Column.MARKS, Column.VCPUS, Column.GAP_CYCLES, Column.SELECTORS, Column.VALUES,
    Column.RIPS,
)  # fmt: skip
LARGEST_GAP_CYCLES: Final = (1 << 32) - 1
#: MSRs that the hypervisor's profile lets a guest access without an exit: FS_BASE, GS_BASE, KERNEL_GS_BASE,
#: SYSENTER_CS, _ESP and _EIP, TSC, SPEC_CTRL, PRED_CMD. One that exits in a trace all the same stays a
#: recorded exit: else it would cost nothing.
PASSED_MSRS: Final = (0xC000_0100, 0xC000_0101, 0xC000_0102, 0x174, 0x175, 0x176, 0x10, 0x48, 0x49)

_MSR_REASONS: Final = {VENDOR_VMX: (31, 32, 84, 85), VENDOR_SVM: (0x7C,)}
_DEBUG_EXCEPTION: Final = 1
_EXCEPTION_REASON: Final = {VENDOR_VMX: 0, VENDOR_SVM: SVM_EXCEPTION_BASE + _DEBUG_EXCEPTION}
_VECTOR_AND_TYPE: Final = np.uint64(0x7FF)
_HARDWARE_EXCEPTION: Final = 3 << 8  # interruption type in the interruption information
_HEAVY: Final = 3 << 6  # class override in the marks

#: The accesses of the seed's burst of 13, as (register, is read): DR0-3, DR6 and DR7 are read, DR7 is turned
#: off, DR0-3 and DR6 are written, DR7 is turned on.
BURST: Final = (
    *((register, True) for register in (0, 1, 2, 3, 6, 7)),
    (7, False),
    *((register, False) for register in (0, 1, 2, 3, 6, 7)),
)

Columns = dict[Column, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Around:
    """Rows that stand around each event, an array each.

    Attributes:
        cpus: The physical CPU to which the vCPU has moved before it; -1 if it has not.
        cycles: Guest cycles before it, of any size.
        accesses: Further accesses of debug registers, assumed, after it.

    """

    cpus: NDArray[np.int64]
    cycles: NDArray[np.int64]
    accesses: NDArray[np.int64]


def columns_of(table: Table, pairs: Pairs, access: Access, verdicts: Verdicts, vendor: int) -> Columns:
    """Return the columns of exits as events, without guest time; all are of ``vendor``."""
    rows = pairs.exits
    count = len(rows)
    reason = table.reason[rows]
    is_failed = table.flags[rows] & Flag.FAILED_ENTRY != 0
    kinds = np.full(count, EventKind.EXIT, np.uint8)
    args = np.zeros(count, np.uint8)
    marks = np.where(pairs.userspace != NONE, _HEAVY, 0).astype(np.uint8)
    selectors = (reason | np.where(is_failed, VMX_FLAG_FAILED_VMENTRY, 0)).astype(np.uint32)
    values = np.zeros(count, np.uint64)

    at = np.flatnonzero(access.is_access)
    kinds[at] = np.where(access.is_read[at], EventKind.MOV_FROM_DR, EventKind.MOV_TO_DR)
    args[at], selectors[at] = access.register[at], 0
    marks[at] = (
        Mark.VALUE_UNKNOWN
        | verdicts.is_emulated[at] * np.uint8(Mark.RETIRED)
        | verdicts.is_faulted[at] * np.uint8(Mark.NOT_RETIRED)
    )

    msr = np.maximum(pairs.msr, 0)
    is_named = (pairs.msr != NONE) & (table.flags[msr] & Flag.FAULT == 0) & ~is_failed
    is_named &= np.isin(reason, _MSR_REASONS[vendor]) & ~np.isin(table.number[msr], PASSED_MSRS)
    at = np.flatnonzero(is_named & (table.number[msr] <= np.uint64(LARGEST_GAP_CYCLES)))
    is_write = table.flags[msr[at]] & Flag.WRITE != 0
    kinds[at] = np.where(is_write, EventKind.WRMSR, EventKind.RDMSR)
    selectors[at], values[at] = table.number[msr[at]].astype(np.uint32), table.value[msr[at]]
    marks[at] |= (~is_write & (selectors[at] == MSR_DEBUGCTL)) * np.uint8(Mark.VALUE_EXPECTED)

    at = np.flatnonzero(_is_passed_on(table, pairs, vendor) & ~is_failed)
    kinds[at], selectors[at], marks[at] = EventKind.EXCEPTION, _DEBUG_EXCEPTION, Mark.VALUE_UNKNOWN
    return {
        Column.KINDS: kinds,
        Column.ARGS: args,
        Column.MARKS: marks,
        Column.VCPUS: pairs.vcpus.astype(np.uint8),
        Column.SELECTORS: selectors,
        Column.VALUES: values,
        Column.RIPS: table.rip[rows],
    }


def _is_passed_on(table: Table, pairs: Pairs, vendor: int) -> NDArray[np.bool_]:
    """Return which exits are debug exceptions that the guest gets."""
    injected = np.maximum(pairs.injected, 0)
    is_injected = (pairs.injected != NONE) & (table.number[injected] == _DEBUG_EXCEPTION)
    is_passed_on: NDArray[np.bool_] = is_injected & (table.reason[pairs.exits] == _EXCEPTION_REASON[vendor])
    if vendor == VENDOR_VMX:
        rows = pairs.exits
        is_said = table.known[rows] & Known.INTR_INFO != 0
        is_debug = table.intr_info[rows] & _VECTOR_AND_TYPE == _HARDWARE_EXCEPTION | _DEBUG_EXCEPTION
        is_passed_on &= ~is_said | is_debug
    return is_passed_on


def laid_out(events: Columns, around: Around) -> EventColumns:
    """Return all rows: before each event a move and time that does not fit, after it assumed accesses."""
    moves = 2 * (around.cpus != NONE)
    advances = np.maximum(around.cycles - 1, 0) // LARGEST_GAP_CYCLES
    ends = np.cumsum(moves + advances + 1 + around.accesses)
    main = ends - around.accesses - 1
    rows = int(ends[-1]) if len(ends) else 0
    laid: Columns = {column: np.zeros(rows, COLUMN_DTYPES[column]) for column in COLUMNS}
    laid[Column.VCPUS][:] = np.repeat(events[Column.VCPUS], moves + advances + 1 + around.accesses)
    for column, values in events.items():
        laid[column][main] = values
    laid[Column.GAP_CYCLES][main] = (around.cycles - advances * LARGEST_GAP_CYCLES).astype(np.uint32)

    at = np.flatnonzero(moves)
    out = main[at] - advances[at] - 2
    laid[Column.KINDS][out], laid[Column.KINDS][out + 1] = EventKind.SCHED_OUT, EventKind.SCHED_IN
    laid[Column.SELECTORS][out + 1] = around.cpus[at]

    at = _spread(main - advances, advances)
    laid[Column.KINDS][at], laid[Column.GAP_CYCLES][at] = EventKind.ADVANCE, LARGEST_GAP_CYCLES

    at = _spread(main + 1, around.accesses)
    if len(at):
        _lay_accesses(laid, at, main, around.accesses)
    return EventColumns(**{COLUMN_NAMES[column - 1]: laid[column] for column in COLUMNS})


def _spread(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``counts`` places from each of ``firsts`` on."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places: NDArray[np.int64] = np.arange(total) + np.repeat(firsts - (ends - counts), counts)
    return places


def _lay_accesses(
    laid: Columns, at: NDArray[np.int64], main: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Lay the assumed accesses: those that follow the recorded one in the burst, round and round."""
    registers = np.array([register for register, _ in BURST], np.uint8)
    is_read = np.array([read for _, read in BURST])
    place_of = {access: place for place, access in reversed(list(enumerate(BURST)))}
    places = np.array(
        [[place_of.get((register, bool(read)), 0) for register in range(8)] for read in (0, 1)], np.int64
    )
    source = np.repeat(main, counts)
    start = places[
        (laid[Column.KINDS][source] == EventKind.MOV_FROM_DR).astype(int), laid[Column.ARGS][source] & 7
    ]
    place = (start + at - source) % len(BURST)
    laid[Column.KINDS][at] = np.where(is_read[place], EventKind.MOV_FROM_DR, EventKind.MOV_TO_DR)
    laid[Column.ARGS][at] = registers[place]
    laid[Column.MARKS][at] = Mark.VALUE_UNKNOWN
