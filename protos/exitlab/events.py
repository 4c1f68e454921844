"""Events as columns: kinds, mode and mark bits, and the types of the nine columns.

One event is one row. A column that a stream does not need is ``None`` and means zero for every
event. Numbers are those of ``exitlab/v1/events.proto``; a test holds the two together.
"""

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


class EventKind(IntEnum):
    """What happened; see ``EventKind`` in the contract for the meaning of each column by kind."""

    MOV_TO_DR = 1
    MOV_FROM_DR = 2
    MOV_TO_CR = 3
    MOV_FROM_CR = 4
    CLTS = 5
    LMSW = 6
    CPUID = 7
    HLT = 8
    IN = 9
    OUT = 10
    INS = 11
    OUTS = 12
    RDMSR = 13
    WRMSR = 14
    RDTSC = 15
    RDTSCP = 16
    RDPMC = 17
    PAUSE = 18
    MONITOR = 19
    MWAIT = 20
    VMCALL = 21
    INVLPG = 22
    INVPCID = 23
    XSETBV = 24
    WBINVD = 25
    INVD = 26
    FETCH = 27
    READ = 28
    WRITE = 29
    MMIO = 30
    INT1 = 31
    INT3 = 32
    INTN = 33
    IRET = 34
    POPF = 35
    MOV_SS = 36
    STI = 37
    EXCEPTION = 38
    EXTERNAL_INTERRUPT = 39
    NMI = 40
    EPT_VIOLATION = 41
    PREEMPTION_TIMER = 42
    SIGNAL = 43
    EXIT = 44
    VMRUN = 45
    VMEXIT_TO_L1 = 46
    SCHED_OUT = 47
    SCHED_IN = 48
    STAGE = 49
    SET_DEBUGREGS = 50
    GET_DEBUGREGS = 51
    HOST_DEBUGGER = 52
    HOST_BREAKPOINTS = 53
    RESET = 54
    INIT = 55
    STATE = 56
    ADVANCE = 57


class Mode(IntFlag):
    """Bits of the ``modes`` column; the low two hold the CPL."""

    CPL = 0b11
    TF = 1 << 2
    RF = 1 << 3
    INTERRUPT_SHADOW = 1 << 4
    OPERAND_32 = 1 << 5


class Mark(IntFlag):
    """Bits of the ``marks`` column; the high two hold a class override."""

    VALUE_UNKNOWN = 1 << 0
    VALUE_EXPECTED = 1 << 1
    RETIRED = 1 << 2
    NOT_RETIRED = 1 << 3
    IF_FAULT = 1 << 4
    IF_OK = 1 << 5
    CLASS = 0b11 << 6


class DebuggerControl(IntFlag):
    """Bits of the selector of HOST_DEBUGGER: control flags of KVM_SET_GUEST_DEBUG."""

    ENABLE = 0x1
    SINGLESTEP = 0x2
    USE_SW_BP = 0x1_0000
    USE_HW_BP = 0x2_0000
    INJECT_DB = 0x4_0000
    INJECT_BP = 0x8_0000
    BLOCKIRQ = 0x10_0000


class NestedControl(IntFlag):
    """Bits of the value of VMRUN: what the guest hypervisor asks for."""

    INTERCEPTS_MOV_DR = 1
    LOADS_DEBUG_CONTROLS = 2
    SAVES_DEBUG_CONTROLS = 4
    INTERCEPTS_DB = 8


FETCH_END: Final = 1  # arg of FETCH: nothing is fetched, the instruction under way retires here
MMIO_WRITE: Final = 0x80  # added to the width in the arg of MMIO
STATE_CR4_DE: Final = 0  # arg of STATE: value is CR4.DE
STAGE_DR6: Final = 4  # arg of STAGE; 0 to 3 stand for DR0 to DR3
STAGE_DR7: Final = 5
STAGE_DEBUGCTL: Final = 0  # before VMRUN, which takes no DR0
MAX_VCPUS: Final = 256


class Column(IntEnum):
    """The columns in the order of the contract."""

    KINDS = 1
    ARGS = 2
    MODES = 3
    MARKS = 4
    VCPUS = 5
    GAP_CYCLES = 6
    SELECTORS = 7
    VALUES = 8
    RIPS = 9


COLUMN_NAMES: Final[tuple[str, ...]] = tuple(column.name.lower() for column in Column)
COLUMN_DTYPES: Final[dict[Column, np.dtype[Any]]] = {
    Column.KINDS: np.dtype("<u1"),
    Column.ARGS: np.dtype("<u1"),
    Column.MODES: np.dtype("<u1"),
    Column.MARKS: np.dtype("<u1"),
    Column.VCPUS: np.dtype("<u1"),
    Column.GAP_CYCLES: np.dtype("<u4"),
    Column.SELECTORS: np.dtype("<u4"),
    Column.VALUES: np.dtype("<u8"),
    Column.RIPS: np.dtype("<u8"),
}


@dataclass(frozen=True, slots=True, eq=False)
class EventColumns:
    """Consecutive events, one array a column, all of one length; ``None`` stands for zeros.

    The arrays may be read-only and need not be aligned.
    """

    kinds: NDArray[np.uint8]
    args: NDArray[np.uint8] | None = None
    modes: NDArray[np.uint8] | None = None
    marks: NDArray[np.uint8] | None = None
    vcpus: NDArray[np.uint8] | None = None
    gap_cycles: NDArray[np.uint32] | None = None
    selectors: NDArray[np.uint32] | None = None
    values: NDArray[np.uint64] | None = None
    rips: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.kinds)

    def column(self, column: Column) -> NDArray[Any] | None:
        """Return the array of ``column``, or ``None``."""
        array: NDArray[Any] | None = getattr(self, COLUMN_NAMES[column - 1])
        return array

    @property
    def declared(self) -> tuple[Column, ...]:
        """Return the columns that are there, ascending."""
        return tuple(column for column in Column if self.column(column) is not None)

    def rows(self, start: int, stop: int) -> "EventColumns":
        """Return events ``start`` to ``stop`` (exclusive) as views."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {
            name: None if part is None else part[start:stop] for name, part in parts.items()
        }
        return EventColumns(**cut)
