"""Scenes of guests that step, trap, load SS and touch ports.

Each takes the writer and a vCPU, and appends a few events.
"""

from collections.abc import Callable
from typing import Final

from exitlab.events import FETCH_END, EventKind, Mark, Mode

from .mix import Mix
from .scenes import access, fetch, handler, interlude, one_access, touch
from .writer import CODE, DATA, Writer

Scene = Callable[[Writer, int], None]

PORTS: Final = (0x3F8, 0x3F9, 0x3FB, 0x60, 0x0, 0x2, 0xCF8)
PORT_KINDS: Final = (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS)
TRAP_FLAG: Final = 1 << 8  # in the flags that POPF and IRET load
GENERAL_DETECT: Final = 1 << 13  # in DR7


# Instructions.


def _whole_instruction(writer: Writer, vcpu: int, modes: int) -> None:
    """Execute one instruction: perhaps its fetch, and its last event in ``modes``."""
    modes |= writer.cpl()
    if writer.chance(25):
        fetch(writer, vcpu, modes)
        return
    if writer.chance(40):
        fetch(writer, vcpu, modes & ~Mode.TF)
    _last_event(writer, vcpu, modes)


def _last_event(writer: Writer, vcpu: int, modes: int) -> None:
    """Execute an instruction that was fetched, or whose fetch nobody watches."""
    kind = writer.below(10)
    if kind < 5:
        access(writer, vcpu, modes)
    elif kind < 8 or not writer.mix.exits:
        _mov_dr(writer, vcpu, modes)
    elif kind == 8:
        _touch_port(writer, vcpu, modes)
    elif writer.mix.debug_control and writer.chance(60):
        _debug_control(writer, vcpu, modes)
    else:
        writer.add(EventKind.CPUID, vcpu, selector=1, modes=modes)


def _mov_dr(writer: Writer, vcpu: int, modes: int) -> None:
    """Execute a MOV DR; one that shows a value is stepped where it ends, if it did not fault."""
    register, is_write = writer.below(8), writer.chance(40)
    if is_write or not modes & Mode.TF:
        writer.mov_dr(vcpu, register, is_write, modes=modes)
        return
    writer.mov_dr(vcpu, register, is_write, modes=modes & ~Mode.TF)
    marks = Mark.IF_OK if writer.mix.handlers else 0
    writer.add(EventKind.FETCH, vcpu, FETCH_END, modes=modes, marks=marks)


def _debug_control(writer: Writer, vcpu: int, modes: int) -> None:
    """Execute an access to DEBUGCTL; one that shows its value is stepped where it ends."""
    modes &= ~Mode.CPL
    if writer.chance(60):
        writer.write_debugctl(vcpu, modes)
        return
    writer.read_debugctl(vcpu)
    if modes & Mode.TF:
        marks = Mark.IF_OK if writer.mix.handlers else 0
        writer.add(EventKind.FETCH, vcpu, FETCH_END, modes=modes, marks=marks)


def _touch_port(writer: Writer, vcpu: int, modes: int) -> None:
    """Read or write a port, or several times if the mix has string instructions."""
    kind = writer.pick(*(PORT_KINDS if writer.mix.io_breakpoints else PORT_KINDS[:2]))
    count = 1 + writer.below(8)
    writer.add(kind, vcpu, writer.pick(1, 2, 4), count, writer.pick(*PORTS), modes=modes)


def step(writer: Writer, vcpu: int) -> None:
    """Single-step over some instructions, with a handler that looks at DR6 now and then."""
    writer.run(vcpu)
    writer.add(EventKind.POPF, vcpu, value=TRAP_FLAG | 0x202)
    for _ in range(1 + writer.below(6)):
        _whole_instruction(writer, vcpu, Mode.TF)
        if writer.mix.handlers and writer.chance(50):
            writer.mov_dr(vcpu, 6, is_write=False, marks=Mark.IF_FAULT)
            if writer.chance(50):
                writer.write_dr(vcpu, 6, 0xFFFF_0FF0, marks=Mark.IF_FAULT)
    writer.add(writer.pick(EventKind.POPF, EventKind.IRET), vcpu, value=0x202, modes=Mode.TF)


def interrupt(writer: Writer, vcpu: int) -> None:
    """Execute INT1, INT3 or INTN, or take an exception that breakpoints have no part in."""
    writer.run(vcpu)
    if writer.chance(30):
        fetch(writer, vcpu, 0)
    _interrupt_alone(writer, vcpu)
    handler(writer, vcpu)


def _interrupt_alone(writer: Writer, vcpu: int) -> None:
    """Execute an interrupt instruction whose fetch nobody watches."""
    modes = writer.cpl() | (Mode.TF if writer.mix.steps and writer.chance(10) else 0)
    kind = writer.pick(
        *(EventKind.INT1, EventKind.INT1, EventKind.INT3, EventKind.INT3, EventKind.INTN, EventKind.EXCEPTION)
    )
    selectors = {EventKind.INTN: (1, 3, 0x80), EventKind.EXCEPTION: (6, 13, 14)}
    writer.add(kind, vcpu, selector=writer.pick(*selectors.get(kind, (0,))), modes=modes)


# The shadow of MOV SS.


def _watch_operand(writer: Writer, vcpu: int) -> int:
    """Watch some memory for reads, perhaps with some code, and return the memory's address."""
    data = writer.below(4)
    code = (data + 1) % 4
    address = writer.pick(*DATA)
    writer.write_dr(vcpu, data, address)
    writer.write_dr(vcpu, code, writer.pick(*CODE))
    enabled = writer.pick(1, 2) << (2 * data) | writer.pick(0, 1, 2) << (2 * code)
    dr7 = enabled | (0b11 | writer.below(4) << 2) << (16 + 4 * data)
    if writer.mix.general_detect and writer.chance(10):
        dr7 |= GENERAL_DETECT
    writer.write_dr(vcpu, 7, dr7)
    return address


def load_ss(writer: Writer, vcpu: int) -> None:
    """Load SS, then execute what its shadow covers and a little more."""
    writer.run(vcpu)
    address = _watch_operand(writer, vcpu) if writer.chance(70) else writer.pick(*DATA)
    _mov_ss(writer, vcpu, address)
    if writer.chance(8):
        interlude(writer, vcpu)
    if writer.chance(8):
        _mov_ss(writer, vcpu, address)
    if writer.chance(60):
        fetch(writer, vcpu, 0)
    modes = Mode.TF if writer.mix.steps and writer.chance(40) else 0
    if writer.mix.software_interrupts and writer.chance(50):
        _interrupt_alone(writer, vcpu)
    elif writer.chance(20):
        fetch(writer, vcpu, modes)
    else:
        _last_event(writer, vcpu, modes)
    handler(writer, vcpu)
    if writer.chance(60):
        writer.pick(one_access, touch, _shadow_that_is_a_mode)(writer, vcpu)


def _mov_ss(writer: Writer, vcpu: int, address: int) -> None:
    """Load SS from a register, or from memory near ``address``."""
    modes = Mode.TF if writer.mix.steps and writer.chance(15) else 0
    length = writer.pick(0, 1, 2, 2, 2, 4, 8)
    offset = writer.pick(0, 0, 0, 1, 4, -1)
    writer.add(EventKind.MOV_SS, vcpu, length, address + offset if length else 0, modes=modes)


def _shadow_that_is_a_mode(writer: Writer, vcpu: int) -> None:
    """Fetch after STI, or in the shadow of a MOV SS that is no event."""
    if writer.chance(50):
        writer.add(EventKind.STI, vcpu)
    fetch(writer, vcpu, writer.pick(0, Mode.INTERRUPT_SHADOW, Mode.INTERRUPT_SHADOW))
    access(writer, vcpu, writer.pick(0, Mode.INTERRUPT_SHADOW))


# Ports.


def touch_ports(writer: Writer, vcpu: int) -> None:
    """Watch a port or two, with CR4.DE mostly, and touch ports."""
    writer.run(vcpu)
    writer.add(EventKind.STATE, vcpu, value=1 if writer.chance(75) else 0)
    if writer.chance(70):
        slot = writer.below(4)
        writer.write_dr(vcpu, slot, writer.pick(*PORTS))
        other = writer.slot((slot + 1) % 4)
        dr7 = other | writer.pick(0, 1, 2, 3) << (2 * slot) | 0b10 << (16 + 4 * slot)
        writer.write_dr(vcpu, 7, dr7 | writer.below(4) << (18 + 4 * slot))
    for _ in range(1 + writer.below(4)):
        modes = Mode.TF if writer.mix.steps and writer.chance(20) else 0
        _touch_port(writer, vcpu, writer.cpl() | modes)
        handler(writer, vcpu)


def own_scenes(mix: Mix) -> list[tuple[int, Scene]]:
    """Return the scenes of this module with how frequent they are."""
    return [
        (6 if mix.steps else 0, step),
        (4 if mix.software_interrupts else 0, interrupt),
        (6 if mix.mov_ss else 0, load_ss),
        (4 if mix.io_breakpoints else 0, touch_ports),
    ]
