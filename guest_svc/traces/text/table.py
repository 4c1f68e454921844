"""The records of a trace as columns, the same whatever printed them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from exitlab.exit_reasons import VENDOR_SVM, VENDOR_VMX

UNKNOWN: Final = -1
UNKNOWN_VENDOR: Final = 0
LARGEST_VCPU: Final = (1 << 31) - 1  # that the column holds


class Event(IntEnum):
    """An event that is read; all others are counted by name."""

    OTHER = 0
    EXIT = 1
    ENTRY = 2
    MSR = 3
    CR = 4
    PIO = 5
    INJ_EXCEPTION = 6
    INJ_VIRQ = 7
    USERSPACE_EXIT = 8
    NESTED_VMEXIT = 9
    NESTED_VMEXIT_INJECT = 10
    #: Not an event: the recorder says that it has lost some before this place.
    LOST = 11

    @property
    def printed_name(self) -> str:
        """Its name in a trace."""
        return f"kvm_{self.name.lower()}"


EVENT_NAMES: Final = {event.printed_name: event for event in Event if event not in (Event.OTHER, Event.LOST)}


class Known(IntFlag):
    """What a record's line prints of the columns that have no value for unknown."""

    RIP = 1 << 0
    INFO1 = 1 << 1
    INTR_INFO = 1 << 2
    NUMBER = 1 << 3
    VALUE = 1 << 4


class Flag(IntFlag):
    """What is either so or not."""

    WRITE = 1 << 0  # of an MSR, control register or port
    FAULT = 1 << 1  # the access was refused (#GP)
    FAILED_ENTRY = 1 << 2  # VMX: the entry failed


_DTYPES: Final = {
    "line": np.int64, "time_ns": np.int64, "cpu": np.int32, "thread": np.int64, "vcpu": np.int32,
    "event": np.uint8, "vendor": np.uint8, "reason": np.int64, "rip": np.uint64, "info1": np.uint64,
    "intr_info": np.uint64, "number": np.uint64, "value": np.uint64, "flags": np.uint8, "known": np.uint8,
}  # fmt: skip
_UNKNOWN_COLUMNS: Final = ("cpu", "thread", "vcpu", "reason")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Records in the order of their lines, a column each.

    Attributes:
        line: Number of its line, from 1.
        time_ns: Time by the trace's clock, in nanoseconds.
        cpu: Physical CPU.
        thread: Thread that wrote it, -1 where it is not printed.
        vcpu: vCPU that the record names, else the one of which the thread's name speaks, else -1.
        event: ``Event``.
        vendor: Of an exit: VENDOR_VMX, VENDOR_SVM, or 0 where the line does not tell.
        reason: Of an exit, its number in the vendor's numbering without flags; -1 if the line has none.
        rip: Address of the guest's instruction.
        info1: Exit information: VMX exit qualification, SVM EXITINFO1.
        intr_info: Interruption information of the exit.
        number: MSR, control register, port, vector, or reason of an exit to user space; of LOST, events.
        value: What was read or written, or an exception's error code.
        flags: ``Flag``.
        known: ``Known``; the columns of which it speaks are 0 where they are not printed.

    """

    line: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    cpu: NDArray[np.int32]
    thread: NDArray[np.int64]
    vcpu: NDArray[np.int32]
    event: NDArray[np.uint8]
    vendor: NDArray[np.uint8]
    reason: NDArray[np.int64]
    rip: NDArray[np.uint64]
    info1: NDArray[np.uint64]
    intr_info: NDArray[np.uint64]
    number: NDArray[np.uint64]
    value: NDArray[np.uint64]
    flags: NDArray[np.uint8]
    known: NDArray[np.uint8]

    @classmethod
    def empty(cls, rows: int) -> Self:
        """Return so many rows of which nothing is known."""
        columns: dict[str, Any] = {
            name: np.full(rows, UNKNOWN, dtype) if name in _UNKNOWN_COLUMNS else np.zeros(rows, dtype)
            for name, dtype in _DTYPES.items()
        }
        return cls(**columns)

    @classmethod
    def joined(cls, tables: Sequence["Table"]) -> Self:
        """Return tables one after another."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(table, name) for table in tables]) for name in _DTYPES
        }
        return cls(**columns)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.line)

    def taken(self, rows: NDArray[Any] | slice) -> "Table":
        """Return some of the rows: those at places, where a mask is set, or of a slice."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        return Table(**columns)


__all__ = [
    "EVENT_NAMES", "UNKNOWN", "UNKNOWN_VENDOR", "VENDOR_SVM", "VENDOR_VMX", "Event", "Flag", "Known", "Table",
]  # fmt: skip
