"""Events of a vector as rows: what each operation is beyond being fetched, and rows as columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from exitlab.debugreg import MSR_DEBUGCTL, VECTOR_UD
from exitlab.events import (
    FETCH_END,
    STAGE_DR6,
    STAGE_DR7,
    STATE_CR4_DE,
    Column,
    EventColumns,
    EventKind,
    Mode,
)
from guest_svc.vectors.layout import Layout, Part, Place
from guest_svc.vectors.model import HAPPENINGS, Step, Vector

COLUMNS: Final = (
    Column.KINDS,
    Column.ARGS,
    Column.MODES,
    Column.MARKS,
    Column.VCPUS,
    Column.SELECTORS,
    Column.VALUES,
)
TRAP_FLAGS: Final = {"popf_tf": True, "popf_clr": False}
_EFLAGS: Final = 0x2  # bit 1 is always one
_EFLAGS_TF: Final = 0x100
_CLASS_SHIFT: Final = 6
# Operations that are one event, whose selector and value the step states.
_KINDS: Final = {
    "cpuid": EventKind.CPUID,
    "hlt": EventKind.HLT,
    "rdmsr": EventKind.RDMSR,
    "wrmsr": EventKind.WRMSR,
    "vmcall": EventKind.VMCALL,
    "wbinvd": EventKind.WBINVD,
    "sti": EventKind.STI,
    "int1": EventKind.INT1,
    "int3": EventKind.INT3,
    "intn": EventKind.INTN,
    "iret": EventKind.IRET,
    "interrupt": EventKind.EXTERNAL_INTERRUPT,
    "nmi": EventKind.NMI,
    "preemption_timer": EventKind.PREEMPTION_TIMER,
    "signal": EventKind.SIGNAL,
    "ept_violation": EventKind.EPT_VIOLATION,
    "vmexit_to_l1": EventKind.VMEXIT_TO_L1,
    "set_debugregs": EventKind.SET_DEBUGREGS,
    "get_debugregs": EventKind.GET_DEBUGREGS,
    "host_debugger": EventKind.HOST_DEBUGGER,
    "host_breakpoints": EventKind.HOST_BREAKPOINTS,
    "reset": EventKind.RESET,
    "init": EventKind.INIT,
    "sched_out": EventKind.SCHED_OUT,
    "run_on": EventKind.SCHED_IN,
    "vmrun": EventKind.VMRUN,
    "cr4_de": EventKind.STATE,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One event, with where an exception that it raises points and which step's read it is."""

    kind: EventKind
    arg: int = 0
    value: int = 0
    selector: int = 0
    marks: int = 0
    modes: int = 0
    vcpu: int = 0
    at: Place | None = None
    after: Place | None = None
    read_step: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the architecture alone, or a lane, showed for one row."""

    story: int
    value: int
    undefined: int = 0  # bits of DR6 in the value


def columns_of(vector: Vector, rows: Sequence[Row]) -> EventColumns:
    """Return rows as event columns."""
    modes = Mode.OPERAND_32 if vector.is_real_mode else 0
    return EventColumns(
        kinds=np.array([row.kind for row in rows], dtype=np.uint8),
        args=np.array([row.arg for row in rows], dtype=np.uint8),
        modes=np.array([row.modes | modes for row in rows], dtype=np.uint8),
        marks=np.array([row.marks for row in rows], dtype=np.uint8),
        vcpus=np.array([row.vcpu for row in rows], dtype=np.uint8),
        selectors=np.array([row.selector for row in rows], dtype=np.uint32),
        values=np.array([row.value for row in rows], dtype=np.uint64),
    )


def fetch_of(step: Step, part: Part, layout: Layout) -> Row:
    """Return the fetch of one of a step's instructions."""
    after = layout.after(part.place.step, part.place.where)
    return Row(
        EventKind.FETCH, value=part.address, modes=step.cpl, vcpu=step.vcpu, at=part.place, after=after
    )


def access_of(step: Step, fetch: Row, layout: Layout, *, is_real_mode: bool) -> Row | None:
    """Return what the instruction of a step does beyond being fetched."""
    number = fetch.at.step if fetch.at else 0
    row = replace(fetch, value=0, marks=step.exit_class << _CLASS_SHIFT)
    address = layout.data(step.offset or 0)
    match step.op:
        case "nop":
            return None
        case "mov_to_dr":
            value = layout.address(step.operand)
            return replace(row, kind=EventKind.MOV_TO_DR, arg=step.register, value=value)
        case "mov_from_dr":
            return replace(row, kind=EventKind.MOV_FROM_DR, arg=step.register, read_step=number)
        case "rdmsr" if step.selector == MSR_DEBUGCTL:
            return replace(row, kind=EventKind.RDMSR, selector=step.selector, read_step=number)
        case "store" | "load":
            kind = EventKind.WRITE if step.op == "store" else EventKind.READ
            return replace(row, kind=kind, arg=step.size_bytes, value=address)
        case "in" | "out":
            kind = EventKind.IN if step.op == "in" else EventKind.OUT
            return replace(row, kind=kind, arg=step.size_bytes, selector=step.selector)
        case "popf_tf" | "popf_clr":
            flags = _EFLAGS | (_EFLAGS_TF if TRAP_FLAGS[step.op] else 0)
            return replace(row, kind=EventKind.POPF, value=flags)
        case "mov_ss" | "pop_ss" if step.op == "mov_ss" or is_real_mode:
            has_operand = step.offset is not None
            value, arg = (address, step.size_bytes) if has_operand else (0, 0)
            return replace(row, kind=EventKind.MOV_SS, arg=arg, value=value)
        case "ud2" | "pop_ss":  # in long mode there is no POP SS
            return replace(row, kind=EventKind.EXCEPTION, selector=VECTOR_UD)
        case "intn":
            place = Place(number, "handler")
            return replace(row, kind=EventKind.INTN, selector=step.selector, after=place)
        case _:
            value = layout.address(step.operand)
            return replace(row, kind=_KINDS[step.op], selector=step.selector, value=value)


def rows_from_outside(number: int, step: Step, layout: Layout) -> list[Row]:
    """Return the events of a step that the guest does not execute."""
    place = layout.after(number)
    row = Row(
        _KINDS[step.op],
        arg=STATE_CR4_DE if step.op == "cr4_de" else 0,
        value=layout.address(step.operand),
        selector=step.selector,
        marks=step.exit_class << _CLASS_SHIFT if step.op in HAPPENINGS else 0,
        vcpu=step.vcpu,
        at=place,
        after=place,
        read_step=number if step.op == "get_debugregs" else None,
    )
    if step.op == "run_on":
        return [Row(EventKind.SCHED_OUT, vcpu=step.vcpu), row]
    return [*staged(step, layout), row]


def end_of(row: Row) -> Row:
    """Return the event at which the instruction of ``row`` retires, where that is not ``row`` itself."""
    return Row(EventKind.FETCH, arg=FETCH_END, modes=row.modes, vcpu=row.vcpu, at=row.after, after=row.after)


def staged(step: Step, layout: Layout) -> list[Row]:
    """Return the events that hand over six registers, if the step does."""
    if step.registers is None:
        return []
    registers = step.registers
    values = [*(layout.address(slot) for slot in registers.db), registers.dr6, registers.dr7]
    return [
        Row(EventKind.STAGE, arg=slot, value=value, vcpu=step.vcpu)
        for slot, value in zip((*range(STAGE_DR6), STAGE_DR6, STAGE_DR7), values, strict=True)
    ]


def written(stage: Row) -> Row:
    """Return the guest's own write of a register that a staged operand stands for."""
    register = stage.arg if stage.arg < STAGE_DR6 else stage.arg + 2  # DR6 and DR7 are staged as 4 and 5
    return replace(stage, kind=EventKind.MOV_TO_DR, arg=register)
