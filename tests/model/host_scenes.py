"""Scenes of a host that debugs a guest or takes over in the middle, and of nested guests.

Each takes the writer and a vCPU, and appends a few events.
"""

from typing import Final

from exitlab.events import STAGE_DEBUGCTL, STAGE_DR6, STAGE_DR7, DebuggerControl, EventKind, Mark

from . import scenes
from .debug_scenes import GENERAL_DETECT, Scene, own_scenes
from .mix import Mix
from .writer import Writer

# How a debugger takes a guest; what else it may ask for comes on top.
WAYS: Final = (
    DebuggerControl.USE_HW_BP,
    DebuggerControl.USE_HW_BP,
    DebuggerControl.SINGLESTEP,
    DebuggerControl.USE_SW_BP,
    DebuggerControl(0),
)
# Exits by which L1 gets its guest back; hypervisors handle them on different rungs.
L1_REASONS: Final = (1, 10, 12, 18, 30, 48, 0x72, 0x78, 0x7B)


# The host.


def debug_from_host(writer: Writer, vcpu: int) -> None:
    """Let the host's debugger take the guest, let it go on, and perhaps let it go."""
    if writer.mix.general_detect and writer.chance(15):
        writer.write_dr(vcpu, 7, writer.dr7() | GENERAL_DETECT)  # who has it depends on the debugger
    _set_debugger(writer, vcpu, _debugger_control(writer))
    if writer.mix.nested and writer.chance(20):
        nest(writer, vcpu)
    elif writer.chance(70):
        _go_on(writer, vcpu)
    if writer.chance(60):
        # Without the bit that enables them the others do nothing, but for injection.
        without = (0, 0, 0, *(bit for bit in DebuggerControl if bit != DebuggerControl.ENABLE))
        _set_debugger(writer, vcpu, writer.pick(*without))
        writer.pick(*_guest_scenes(writer.mix))(writer, vcpu)


def _go_on(writer: Writer, vcpu: int) -> None:
    """Let the guest do something."""
    for _ in range(1 + writer.below(3)):
        writer.pick(*_guest_scenes(writer.mix))(writer, vcpu)


def _debugger_control(writer: Writer) -> int:
    """Return control bits: any set of them, mostly with the one that enables the others."""
    control = writer.pick(*WAYS)
    for bit in DebuggerControl:
        if writer.chance(90 if bit == DebuggerControl.ENABLE else 12):
            control |= bit
    return control


def _set_debugger(writer: Writer, vcpu: int, control: int) -> None:
    """Stage the debugger's registers and set its controls."""
    values = {slot: writer.address() for slot in range(4)}
    has_gd = writer.mix.general_detect and writer.chance(20)
    dr7 = writer.dr7() | (GENERAL_DETECT if has_gd else 0)
    writer.stage(vcpu, {**values, STAGE_DR7: dr7 if control else 0x400})
    writer.add(EventKind.HOST_DEBUGGER, vcpu, selector=control)


def read_debugregs(writer: Writer, vcpu: int) -> None:
    """Let the host read the registers, perhaps just after the guest used them."""
    if writer.chance(50):
        scenes.one_access(writer, vcpu)
    writer.add(EventKind.GET_DEBUGREGS, vcpu)


# A host that takes over.


def refused(writer: Writer, vcpu: int) -> None:
    """Access registers that are not there or not for this guest, many of them in user mode."""
    writer.run(vcpu)
    if writer.mix.debug_extensions:
        writer.add(EventKind.STATE, vcpu, value=1 if writer.chance(70) else 0)
    for _ in range(2 + writer.below(4)):
        modes = 3 if writer.mix.user_mode and writer.chance(50) else 0
        register = writer.pick(4, 5, 6, 7, writer.below(4))
        writer.mov_dr(vcpu, register, is_write=writer.chance(60), modes=modes)


def interrupted_access(writer: Writer, vcpu: int) -> None:
    """Let the host take over at MOV DRs, which then have exited and not retired, and let the guest go on."""
    if writer.mix.debugger and writer.chance(50):
        # Under a debugger an access exits for other reasons than without one.
        _set_debugger(writer, vcpu, _debugger_control(writer) if writer.chance(30) else 0)
    writer.run(vcpu)
    if writer.chance(40):
        scenes.arm(writer, vcpu)
    for _ in range(1 + writer.below(3)):
        register, kind = writer.below(8), writer.pick(EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR)
        value = writer.operand(register) if kind == EventKind.MOV_TO_DR else 0
        writer.add(kind, vcpu, register, value, modes=writer.mov_dr_modes(), marks=Mark.NOT_RETIRED)
    if writer.mix.debugger and writer.chance(50):
        _set_debugger(writer, vcpu, _debugger_control(writer))
    for _ in range(writer.below(4)):
        _take_over(writer, vcpu)
    _go_on(writer, vcpu)


def busy_host(writer: Writer, vcpu: int) -> None:
    """Change things from outside again and again, and let the guest change its DR7 in between."""
    for _ in range(2 + writer.below(5)):
        if writer.chance(60):
            writer.run(vcpu)
            writer.write_dr(vcpu, 7, _dr7(writer))
        if writer.mix.nested and writer.chance(15):
            nest(writer, vcpu)
        _take_over(writer, vcpu)


def _take_over(writer: Writer, vcpu: int) -> None:
    """Do one thing that a host does."""
    mix = writer.mix
    ways: list[Scene] = [
        *([_change_debugger] * 3 if mix.debugger else []),
        *([scenes.outside, _set_dr7, _reset] if mix.outside else []),
        *([scenes.host_breakpoints] * 2 if mix.host else []),
        *([read_debugregs] if mix.reading else []),
        *([scenes.schedule] if mix.scheduling else []),
        *([scenes.migrate] if mix.kicks else []),
    ]
    if ways:
        writer.pick(*ways)(writer, vcpu)


def _dr7(writer: Writer) -> int:
    """Return a value for DR7, more often than others with general detect, and with that alone."""
    if not writer.mix.general_detect or writer.chance(60):
        return writer.dr7()
    return GENERAL_DETECT | (0x400 if writer.chance(40) else writer.dr7())


def _set_dr7(writer: Writer, vcpu: int) -> None:
    """Set the registers from outside, DR7 so that general detect matters."""
    writer.stage(vcpu, {**{slot: writer.address() for slot in range(4)}, STAGE_DR6: writer.dr6()})
    writer.add(EventKind.STAGE, vcpu, STAGE_DR7, _dr7(writer))
    writer.add(EventKind.SET_DEBUGREGS, vcpu)


def _reset(writer: Writer, vcpu: int) -> None:
    """Reset the vCPU."""
    writer.add(writer.pick(EventKind.RESET, EventKind.INIT), vcpu)


def _change_debugger(writer: Writer, vcpu: int) -> None:
    """Give the guest to the host's debugger, or take it back."""
    _set_debugger(writer, vcpu, _debugger_control(writer) if writer.chance(70) else 0)


# Nested guests.


def nest(writer: Writer, vcpu: int) -> None:
    """Enter a nested guest, let it do something, and perhaps leave it; or leave one that still runs."""
    writer.run(vcpu)
    if not any(writer.gate.nested(vcpu)) or writer.chance(20):
        # With the fixed bits of DR7, as L1 finds what it staged where VMX does not save.
        dr7 = (_dr7(writer) & 0xFFFF_2BFF) | 0x400
        writer.add(EventKind.STAGE, vcpu, STAGE_DR7, dr7)
        writer.add(EventKind.STAGE, vcpu, STAGE_DR6, writer.dr6())
        if writer.mix.debug_control:
            writer.add(EventKind.STAGE, vcpu, STAGE_DEBUGCTL, writer.debugctl())
        writer.add(EventKind.VMRUN, vcpu, value=writer.below(16))
        _go_on(writer, vcpu)
        if writer.chance(30):
            return
        writer.run(vcpu)
    writer.add(EventKind.VMEXIT_TO_L1, vcpu, selector=writer.pick(*L1_REASONS))


def _guest_scenes(mix: Mix) -> list[Scene]:
    """Return the scenes that a nested or debugged guest can be in."""
    always = [scenes.one_access, scenes.arm, scenes.touch, refused]
    control = [scenes.debug_control] if mix.debug_control else []
    return [*always, *control, *(scene for weight, scene in own_scenes(mix) if weight)]


def host_scenes(mix: Mix) -> list[tuple[int, Scene]]:
    """Return the scenes of this module with how frequent they are."""
    return [
        (4 if mix.debugger else 0, debug_from_host),
        (3 if mix.debugger else 0, busy_host),
        (4 if mix.reading else 0, read_debugregs),
        (4 if mix.nested else 0, nest),
        (3 if mix.not_retired else 0, interrupted_access),
    ]
