"""The file of a recorded trace: an .npz of columns, one value a record; and what its kinds mean.

The file is read without pickle and believed in nothing: a column that is missing, of another type or
length, or holds a number that its kind cannot have, refuses the whole file.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.events import EventKind
from guest_svc.errors import TraceError


class RecordKind(IntEnum):
    """What a record is; the numbers are those of the file."""

    MOV_DR = 1
    MOV_CR = 2
    HLT = 3
    IN = 4
    OUT = 5
    INS = 6
    OUTS = 7
    CPUID = 8
    RDMSR = 9
    WRMSR = 10
    RDTSC = 11
    RDTSCP = 12
    INVLPG = 13
    PAUSE = 14
    VMCALL = 15
    XSETBV = 16
    WBINVD = 17
    MONITOR = 18
    MWAIT = 19
    IRET = 20
    INTN = 21
    INT3 = 22
    INT1 = 23
    SYSCALL = 24
    SYSRET = 25
    SYSENTER = 26
    SYSEXIT = 27
    CLTS = 28
    LMSW = 29
    SMSW = 30
    DTABLE = 31
    LDTTR = 32
    INVPCID = 33
    RDPMC = 34
    RAND = 35
    XSS = 36
    SWAPGS = 37
    SVM = 38
    XGETBV = 39
    IRQ = 48
    EXC = 49
    MMIO = 50
    CTXSW = 51
    MARK = 52


# The event that a record becomes, and the one that it becomes where its write flag is set. A kind that
# is not here is skipped: notes of the recorder, and instructions that no profile here intercepts.
EVENTS: Final[Mapping[RecordKind, tuple[EventKind, EventKind]]] = {
    RecordKind.MOV_DR: (EventKind.MOV_FROM_DR, EventKind.MOV_TO_DR),
    RecordKind.MOV_CR: (EventKind.MOV_FROM_CR, EventKind.MOV_TO_CR),
    # The recorder does not say which instruction of SVM it was. Each asks something of a hypervisor,
    # as VMCALL does.
    RecordKind.SVM: (EventKind.VMCALL, EventKind.VMCALL),
    RecordKind.IRQ: (EventKind.EXTERNAL_INTERRUPT, EventKind.EXTERNAL_INTERRUPT),
    RecordKind.EXC: (EventKind.EXCEPTION, EventKind.EXCEPTION),
    **{
        kind: (EventKind[kind.name], EventKind[kind.name])
        for kind in (
            RecordKind.HLT,
            RecordKind.IN,
            RecordKind.OUT,
            RecordKind.INS,
            RecordKind.OUTS,
            RecordKind.CPUID,
            RecordKind.RDMSR,
            RecordKind.WRMSR,
            RecordKind.RDTSC,
            RecordKind.RDTSCP,
            RecordKind.INVLPG,
            RecordKind.PAUSE,
            RecordKind.VMCALL,
            RecordKind.XSETBV,
            RecordKind.WBINVD,
            RecordKind.MONITOR,
            RecordKind.MWAIT,
            RecordKind.INTN,
            RecordKind.INT3,
            RecordKind.INT1,
            RecordKind.CLTS,
            RecordKind.LMSW,
            RecordKind.INVPCID,
            RecordKind.RDPMC,
            RecordKind.MMIO,
        )
    },
}

COLUMN_TYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "kind": np.dtype("<u1"),
    "reg": np.dtype("<u1"),
    "write": np.dtype("<u1"),
    "cpu": np.dtype("<u1"),
    "gap": np.dtype("<u4"),
    "rip": np.dtype("<u8"),
    "aux": np.dtype("<u4"),
    "val": np.dtype("<u8"),
    "vok": np.dtype("<u1"),
}

# Kind: the largest number that a column can hold for it.
_LIMITS: Final = (
    (RecordKind.MOV_DR, "reg", 7),
    (RecordKind.MOV_CR, "reg", 15),
    (RecordKind.MMIO, "reg", 127),
    (RecordKind.IRQ, "aux", 255),
    (RecordKind.EXC, "aux", 31),
    (RecordKind.INTN, "aux", 255),
    (RecordKind.IN, "aux", 0xFFFF),
    (RecordKind.OUT, "aux", 0xFFFF),
    (RecordKind.INS, "aux", 0xFFFF),
    (RecordKind.OUTS, "aux", 0xFFFF),
)


@dataclass(frozen=True, slots=True)
class Records:
    """The columns of a trace; ``gap`` counts instructions."""

    kind: NDArray[np.uint8]
    reg: NDArray[np.uint8]
    write: NDArray[np.uint8]
    cpu: NDArray[np.uint8]
    gap: NDArray[np.uint32]
    rip: NDArray[np.uint64]
    aux: NDArray[np.uint32]
    val: NDArray[np.uint64]
    vok: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.kind)

    def until(self, stop: int) -> "Records":
        """Return the records before ``stop``, as if the recording had ended there."""
        return Records(*(getattr(self, field.name)[:stop] for field in fields(self)))


class ByVcpu:
    """The records sorted by vCPU, each vCPU's in their order."""

    def __init__(self, records: Records) -> None:
        """Sort; a trace of one vCPU is sorted as it is."""
        self._order = np.argsort(records.cpu, kind="stable") if records.cpu.any() else None
        self.cpu = self.sort(records.cpu)
        self.kind = self.sort(records.kind)
        self.gap = self.sort(records.gap)

    def sort(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a column of the records in this order."""
        return column if self._order is None else column[self._order]

    def positions(self, sorted_positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return where in the trace the records at these positions of the order are."""
        return sorted_positions if self._order is None else self._order[sorted_positions]

    def has_successor(self, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which of these records have a later one on their vCPU."""
        following = np.minimum(at + 1, len(self.cpu) - 1)
        has: NDArray[np.bool_] = (following > at) & (self.cpu[following] == self.cpu[at])
        return has


def kind_name(number: int) -> str:
    """Return the name of a kind of record, or ``kind <n>`` for a number that has none."""
    try:
        return RecordKind(number).name
    except ValueError:
        return f"kind {number}"


def read_records(path: Path) -> Records:
    """Return the records of the file.

    Raises:
        TraceError: It cannot be read, is no such file, or contradicts itself.

    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise TraceError(f"{path}: expected an .npz of columns, got a single array")
            columns = {name: _read_column(path, loaded, name) for name in COLUMN_TYPES}
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        # numpy takes what is no archive for a pickle, and would advise to load it unsafely.
        told = f": {error}" if zipfile.is_zipfile(path) else ""
        raise TraceError(f"{path}: damaged, or not an .npz file{told}") from error
    records = Records(**columns)
    _check(path, records)
    return records


def _read_column(path: Path, file: "np.lib.npyio.NpzFile", name: str) -> NDArray[Any]:
    if name not in file.files:
        raise TraceError(f"{path}: column {name!r} is missing; there are: {', '.join(file.files) or 'none'}")
    try:
        column = np.asarray(file[name])
    except Exception as error:  # a damaged member shows as almost any, by where the damage is
        raise TraceError(f"{path}: column {name!r} is damaged: {error}") from error
    expected = COLUMN_TYPES[name]
    if column.ndim != 1 or column.dtype.newbyteorder("<") != expected:
        raise TraceError(
            f"{path}: column {name!r}: expected one dimension of {expected.name},"
            f" got {column.ndim} of {column.dtype.name}"
        )
    return column.astype(expected, copy=False)


def _check(path: Path, records: Records) -> None:
    """Refuse columns that differ in length and numbers that a kind cannot have."""
    for name in COLUMN_TYPES:
        length = len(getattr(records, name))
        if length != len(records):
            raise TraceError(f"{path}: column {name!r} has {length} values, column 'kind' has {len(records)}")
    if not len(records):
        raise TraceError(f"{path}: column 'kind' is empty: there are no records")
    for name in ("write", "vok"):
        _refuse(path, name, getattr(records, name), getattr(records, name) > 1, "0 or 1")
    for kind, name, largest in _LIMITS:
        column = getattr(records, name)
        if column.max() > largest:
            is_wrong = (records.kind == kind) & (column > largest)
            _refuse(path, name, column, is_wrong, f"0 to {largest} for {kind.name}")


def _refuse(path: Path, name: str, column: NDArray[Any], is_wrong: NDArray[np.bool_], expected: str) -> None:
    if is_wrong.any():
        at = int(is_wrong.argmax())
        raise TraceError(f"{path}: column {name!r}: record {at}: expected {expected}, got {column[at]}")
