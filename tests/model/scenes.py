"""Scenes of guests that own their registers: MOV DR, breakpoints, exits, the host's hand, shared CPUs.

Each takes the writer and a vCPU, and appends a few events.
"""

from exitlab.events import EventKind, Mark, Mode

from .mix import EXITS
from .writer import CODE, DATA, LENGTHS, Writer


def one_access(writer: Writer, vcpu: int) -> None:
    """Do a single MOV DR, perhaps with its handler."""
    writer.run(vcpu)
    writer.mov_dr(vcpu, writer.below(8), is_write=writer.chance(50))
    handler(writer, vcpu)


def handler(writer: Writer, vcpu: int) -> None:
    """Do what a guest does after an attempt, by whether it raised an exception."""
    if not writer.mix.handlers or not writer.chance(20):
        return
    for _ in range(1 + writer.below(4)):
        if writer.chance(15):
            interlude(writer, vcpu)
        marks = writer.pick(Mark.IF_FAULT, Mark.IF_FAULT, Mark.IF_OK)
        if writer.mix.exits and writer.chance(10):
            writer.add(EventKind.CPUID, vcpu, selector=1, marks=marks)
        else:
            writer.mov_dr(vcpu, writer.pick(6, 7, 0, 4), is_write=writer.chance(40), marks=marks)


def interlude(writer: Writer, vcpu: int) -> None:
    """Do something that is no attempt of this vCPU, between its attempt and its handler."""
    if writer.mix.exits and writer.chance(50):
        writer.add(EventKind.EXTERNAL_INTERRUPT, vcpu, selector=0xEC)
        return
    other = writer.below(writer.mix.vcpus)
    if other != vcpu:
        writer.run(other)
        writer.mov_dr(other, writer.below(8), is_write=writer.chance(50))
        writer.run(vcpu)


def arm(writer: Writer, vcpu: int) -> None:
    """Write one or two addresses, then a DR7 that enables mostly those slots for what lies there."""
    writer.run(vcpu)
    dr7 = writer.operand(7)
    for _ in range(1 + writer.below(2)):
        slot = writer.below(4)
        is_code = dr7 >> (16 + 4 * slot) & 0b11 == 0b00
        address = writer.pick(*(CODE if is_code else DATA)) if writer.chance(70) else writer.address()
        writer.write_dr(vcpu, slot, address)
        dr7 |= writer.pick(0, 1, 2) << (2 * slot)
    writer.write_dr(vcpu, 7, dr7)


def context_switch(writer: Writer, vcpu: int) -> None:
    """Six reads, DR7 off, six writes that end in DR7 on."""
    writer.run(vcpu)
    for register in (0, 1, 2, 3, 6, 7):
        writer.mov_dr(vcpu, register, is_write=False)
    writer.add(EventKind.MOV_TO_DR, vcpu, 7, 0x400)
    for register in (0, 1, 2, 3, 6, 7):
        writer.mov_dr(vcpu, register, is_write=True)


def touch(writer: Writer, vcpu: int) -> None:
    """Fetch and access memory, mostly where breakpoints are."""
    writer.run(vcpu)
    for _ in range(1 + writer.below(5)):
        modes = writer.cpl()
        if writer.chance(35):
            fetch(writer, vcpu, modes)
        else:
            access(writer, vcpu, modes)
        handler(writer, vcpu)


def fetch(writer: Writer, vcpu: int, modes: int) -> None:
    """Fetch an instruction."""
    modes |= Mode.RF if writer.mix.resume_flag and writer.chance(15) else 0
    address = writer.pick(*CODE, *CODE, *CODE, *DATA)
    writer.add(EventKind.FETCH, vcpu, value=address, modes=modes)


def access(writer: Writer, vcpu: int, modes: int) -> None:
    """Read or write memory."""
    kind = writer.pick(EventKind.READ, EventKind.WRITE)
    address = writer.pick(*DATA, *DATA, *CODE) + (writer.below(9) - 4 if writer.chance(50) else 0)
    writer.add(kind, vcpu, writer.pick(*LENGTHS), address, modes=modes)


def exception(writer: Writer, vcpu: int) -> None:
    """Record an exception, and perhaps the read of DR6 that follows a #DB."""
    writer.run(vcpu)
    vector = writer.pick(1, 1, 1, 6, 13, 14)
    is_unknown = vector == 1 and writer.chance(20)
    payload = 0xFFFF_0FF0 | (writer.below(1 << 16) & 0xE00F)
    value = payload if vector == 1 and not is_unknown else 0
    marks = Mark.VALUE_UNKNOWN if is_unknown else 0
    writer.add(EventKind.EXCEPTION, vcpu, value=value, selector=vector, marks=marks)
    if writer.chance(50):
        writer.mov_dr(vcpu, 6, is_write=False)
    elif vector in (1, 6, 13):
        handler(writer, vcpu)


def exit_once(writer: Writer, vcpu: int) -> None:
    """Execute an instruction that exits, or take an interrupt."""
    writer.run(vcpu)
    marks = writer.class_marks()
    kind = writer.pick(*sorted(EXITS))
    if kind == EventKind.WRMSR:
        msr = writer.pick(0x6E0, 0x830, 0x1A0)
        writer.add(kind, vcpu, selector=msr, value=writer.below(1 << 16), marks=marks)
    elif kind in (EventKind.IN, EventKind.OUT):
        writer.add(kind, vcpu, writer.pick(1, 2, 4), selector=writer.pick(0x3F8, 0xCF8), marks=marks)
    elif kind == EventKind.MOV_TO_CR:
        writer.add(kind, vcpu, writer.pick(0, 3), value=0x8005_0033, marks=marks)
    else:
        writer.add(kind, vcpu, selector=writer.pick(1, 0xEC), marks=marks)
    if kind == EventKind.HLT:
        writer.add(EventKind.EXTERNAL_INTERRUPT, vcpu, selector=0xEC)


def debug_extensions(writer: Writer, vcpu: int) -> None:
    """Change CR4.DE, or move an unknown value to CR4."""
    has_de = writer.pick(0, 1, 1)
    if writer.chance(30):
        writer.add(EventKind.STATE, vcpu, arg=0, value=has_de)
        return
    writer.run(vcpu)
    marks = Mark.VALUE_UNKNOWN if writer.chance(15) else 0
    writer.add(EventKind.MOV_TO_CR, vcpu, 4, 0x3506F0 & ~0x8 | has_de << 3, marks=marks)


def debug_control(writer: Writer, vcpu: int) -> None:
    """Write DEBUGCTL and read it again, with or without something between."""
    writer.run(vcpu)
    if writer.chance(70):
        writer.write_debugctl(vcpu)
    if writer.mix.exits and writer.chance(30):
        exit_once(writer, vcpu)
    if writer.chance(70):
        writer.read_debugctl(vcpu)


def outside(writer: Writer, vcpu: int) -> None:
    """Set the guest's registers from outside, or reset it."""
    if writer.chance(30):
        writer.add(writer.pick(EventKind.RESET, EventKind.INIT), vcpu)
        return
    values = {slot: writer.operand(register) for slot, register in enumerate((0, 1, 2, 3, 6, 7))}
    writer.stage(vcpu, values)
    writer.add(EventKind.SET_DEBUGREGS, vcpu)


def host_breakpoints(writer: Writer, vcpu: int) -> None:
    """Turn the host's own breakpoints on the CPU of ``vcpu`` on or off."""
    if writer.chance(60):
        values = {slot: writer.address() for slot in range(4)}
        values[5] = (writer.dr7() & 0xFFFF_00FF) | 0x402
    else:
        values = {0: 0, 1: 0, 2: 0, 3: 0, 5: 0x400}
    writer.stage(vcpu, values)
    writer.add(EventKind.HOST_BREAKPOINTS, vcpu, selector=writer.last_cpu[vcpu])


def schedule(writer: Writer, vcpu: int) -> None:
    """Take a vCPU off its CPU, and perhaps put it back there or elsewhere."""
    if writer.gate.cpu_of[vcpu] is not None:
        writer.leave(vcpu)
    if writer.chance(60):
        writer.run(vcpu)


def migrate(writer: Writer, vcpu: int) -> None:
    """Put a vCPU on a CPU without taking it off its own."""
    writer.move(vcpu, writer.below(writer.mix.physical_cpus))
