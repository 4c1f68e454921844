"""A vector as guest events: where its instructions lie, what each event means, and the handler.

A step is not one instruction. ``mov_from_dr`` is a set-up instruction, the MOV and a store of its
result; ``mov_to_dr`` and ``cpuid`` are a set-up instruction and the instruction itself; the others are
one instruction. Each is fetched, so each can hit an instruction breakpoint. A fault goes on with the
next step, past the store of the result; after an instruction breakpoint the instruction runs.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from exitlab.debugreg import VECTOR_UD
from exitlab.events import STAGE_DR6, STAGE_DR7, STATE_CR4_DE, Column, EventColumns, EventKind, Mark, Mode
from exitlab.v1 import outcome_pb2
from guest_svc.vectors import MOV_OPS, Operand, Step, Symbol, Vector

COLUMNS: Final = (
    Column.KINDS,
    Column.ARGS,
    Column.MODES,
    Column.MARKS,
    Column.SELECTORS,
    Column.VALUES,
)
_CODE_BASE: Final = 0x10000
_REAL_CODE_BASE: Final = 0xD000
_DATA_BASE: Final = 0x20000
_REAL_DATA_BASE: Final = 0xF000
_DIAGNOSTIC_PORT: Final = 0x80
# Bytes of the set-up instruction, the instruction and the store of the result; 0 where there is none.
_BYTES: Final = {
    "mov_to_dr": (10, 3, 0),  # MOV r64, imm64; MOV DRn, r64
    "mov_from_dr": (3, 3, 4),
    "cpuid": (5, 2, 0),
    "nop": (0, 1, 0),
    "ud2": (0, 2, 0),
    "out": (0, 2, 0),
    "store": (0, 7, 0),
    "load": (0, 7, 0),
}
_REAL_SET_UP_BYTES: Final = {"mov_to_dr": 6}  # MOV r32, imm32 with an operand-size prefix


@dataclass(frozen=True, slots=True)
class Place:
    """Where a saved RIP can point: a step's set-up (pre), instruction (insn), store (post), or the end."""

    step: int
    where: str


@dataclass(frozen=True, slots=True)
class Row:
    """One event, with where an exception that it raises points and which step's read it is."""

    kind: EventKind
    arg: int = 0
    value: int = 0
    selector: int = 0
    marks: int = 0
    at: Place | None = None
    after: Place | None = None
    read_step: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the architecture alone showed for one row."""

    story: int
    value: int


Conversation = Generator[list[Row], list[Answer], None]


def conversation(vector: Vector) -> Conversation:
    """Yield the rows of a vector, and take in what the architecture answered to those yielded.

    All rows come at once, unless the handler repeats an access after a general-detect fault: then the
    rows end at each access, because what follows depends on the answer.
    """
    layout = Layout(vector)
    rows = _set_up(vector, layout)
    for number, step in enumerate(vector.steps):
        fetches = layout.fetches(number)
        store = fetches.pop() if _BYTES[step.op][2] else None
        access = _access(number, step, layout)
        rows += [*fetches, *access]
        if vector.retries_general_detect and step.op in MOV_OPS:
            answers = yield rows
            if answers[-1].story == outcome_pb2.STORY_DB_FAULT:
                answers = yield [fetches[-1], *access]
            did_fault = answers[-1].story in _FAULTS
            rows = [store] if store is not None and not did_fault else []
        elif store is not None:
            rows.append(replace(store, marks=Mark.IF_OK))
    if rows:
        yield rows


_ADDRESSES: Final = 2**64 - 1  # they wrap around
_FAULTS: Final = frozenset({outcome_pb2.STORY_DB_FAULT, outcome_pb2.STORY_UD, outcome_pb2.STORY_GP})


class Layout:
    """Where the instructions of a vector lie, one after another from the code's base.

    Where the expectation tells an address that a symbol stands for, that address is taken: the vector
    was run where it was, and its length is not known for every operation.
    """

    def __init__(self, vector: Vector) -> None:
        """Place every step of ``vector``."""
        self._vector = vector
        self._data_base = _REAL_DATA_BASE if vector.is_real_mode else _DATA_BASE
        known = _known_addresses(vector)
        for symbol, address in known.items():
            if symbol.kind == "data":
                self._data_base = address - symbol.number
        self._instructions: list[int] = []
        self._starts: list[list[tuple[str, int]]] = []
        address = _REAL_CODE_BASE if vector.is_real_mode else _CODE_BASE
        for number, step in enumerate(vector.steps):
            set_up, instruction, store = _BYTES[step.op]
            if vector.is_real_mode:
                set_up = _REAL_SET_UP_BYTES.get(step.op, set_up)
            start = known.get(Symbol("step", number), address + set_up)
            parts = [("pre", start - set_up, set_up), ("insn", start, instruction)]
            parts.append(("post", start + instruction, store))
            self._starts.append([(where, place) for where, place, size_bytes in parts if size_bytes])
            self._instructions.append(start)
            address = start + instruction + store

    def address(self, operand: Operand) -> int:
        """Return the number that an operand stands for."""
        if isinstance(operand, int):
            return operand
        if operand.kind == "step":
            return self._instructions[operand.number]
        return self._data_base + operand.number

    def data(self, offset: int) -> int:
        """Return the address of a byte of the data."""
        return self._data_base + offset

    def fetches(self, step: int) -> list[Row]:
        """Return the fetches of a step's instructions."""
        return [
            Row(EventKind.FETCH, value=address, at=Place(step, where))
            for where, address in self._starts[step]
        ]

    def after(self, step: int) -> Place:
        """Return where a saved RIP points after a step of one instruction."""
        if step + 1 == len(self._starts):
            return Place(step + 1, "end")
        return Place(step + 1, self._starts[step + 1][0][0])


def columns_of(vector: Vector, rows: Sequence[Row]) -> EventColumns:
    """Return rows as event columns."""
    modes = vector.cpl | (Mode.OPERAND_32 if vector.is_real_mode else 0)
    return EventColumns(
        kinds=np.array([row.kind for row in rows], dtype=np.uint8),
        args=np.array([row.arg for row in rows], dtype=np.uint8),
        modes=np.full(len(rows), modes, dtype=np.uint8),
        marks=np.array([row.marks for row in rows], dtype=np.uint8),
        selectors=np.array([row.selector for row in rows], dtype=np.uint32),
        values=np.array([row.value & _ADDRESSES for row in rows], dtype=np.uint64),
    )


def _set_up(vector: Vector, layout: Layout) -> list[Row]:
    """Return the events that bring about the state in which a vector starts."""
    rows = [Row(EventKind.STATE, arg=STATE_CR4_DE, value=1)] if vector.has_de else []
    if vector.init is not None:
        operands = [layout.address(operand) for operand in vector.init.db]
        staged = [*enumerate(operands), (STAGE_DR6, vector.init.dr6), (STAGE_DR7, vector.init.dr7)]
        rows += [Row(EventKind.STAGE, arg=slot, value=value) for slot, value in staged]
        rows.append(Row(EventKind.SET_DEBUGREGS))
    return rows


def _access(number: int, step: Step, layout: Layout) -> list[Row]:
    """Return what a step's instruction does beyond being fetched."""
    row = Row(EventKind.FETCH, at=Place(number, "insn"), after=layout.after(number))
    match step.op:
        case "mov_to_dr":
            value = layout.address(step.operand)
            row = replace(row, kind=EventKind.MOV_TO_DR, arg=step.register, value=value)
        case "mov_from_dr":
            row = replace(row, kind=EventKind.MOV_FROM_DR, arg=step.register, read_step=number)
        case "store" | "load":
            kind = EventKind.WRITE if step.op == "store" else EventKind.READ
            row = replace(row, kind=kind, arg=step.size_bytes, value=layout.data(step.offset))
        case "cpuid":
            row = replace(row, kind=EventKind.CPUID)
        case "out":
            row = replace(row, kind=EventKind.OUT, arg=1, selector=_DIAGNOSTIC_PORT)
        case "ud2":
            row = replace(row, kind=EventKind.EXCEPTION, selector=VECTOR_UD)
        case _:
            return []
    return [row]


def _known_addresses(vector: Vector) -> dict[Symbol, int]:
    """Return the addresses that symbols must stand for, so that the expected DR0 to DR3 come out."""
    faulted = {raised.step for raised in vector.expect.raised if raised.where == "insn"}
    last: list[Operand] = list(vector.init.db) if vector.init is not None else [0, 0, 0, 0]
    for number, step in enumerate(vector.steps):
        is_written = number not in faulted or vector.retries_general_detect
        if step.op == "mov_to_dr" and step.register < len(last) and is_written:
            last[step.register] = step.operand
    return {
        operand: expected
        for operand, expected in zip(last, vector.expect.registers.db, strict=True)
        if isinstance(operand, Symbol) and isinstance(expected, int)
    }
