"""A debugger on the host, as the guest sees it: what leaves the story, what stays, what is injected.

Sources: the selftest ``debug_regs.c`` of Linux for what a debugger takes; KVM's handlers of MOV DR and
#DB on VMX and SVM for the difference between them; the ioctls measured on KVM for injection.
"""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind, Mark

from .rows import TF, armed, debugger, fetch, mov_ss, port, read, simple, staged, touch, write
from .second_model import VENDORS, Event, Guest, Story, Told, digest

ENABLE: Final = DebuggerControl.ENABLE
HARDWARE: Final = ENABLE | DebuggerControl.USE_HW_BP
SOFTWARE: Final = ENABLE | DebuggerControl.USE_SW_BP
STEPPING: Final = ENABLE | DebuggerControl.SINGLESTEP | DebuggerControl.BLOCKIRQ
NOTHING: Final = Told()
GD: Final = 0x2000
CODE: Final = 0x1000
DATA: Final = 0x7000
WATCHING: Final = 0x3_0405  # slot 0 data, slot 1 code
BOTH_WAYS: Final = [HARDWARE, STEPPING, HARDWARE | STEPPING]


def _debugged(control: int, dr7: int = 0x400, guests_dr7: int = WATCHING, vendor: str = "vmx") -> Guest:
    """Return a guest that watches data and code, in the hands of a debugger."""
    guest = armed(guests_dr7, DATA, CODE, vendor=vendor)
    for event in debugger(control, dr7):
        guest.take(event)
    return guest


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("control", BOTH_WAYS)
@pytest.mark.parametrize(
    "event",
    [
        fetch(CODE),
        touch(EventKind.WRITE, DATA),
        simple(EventKind.CPUID, TF),
        fetch(CODE, TF),
        port(EventKind.OUT, 0x3F8),
    ],
)
def test_matches_and_steps_leave_the_story(event: Event, control: int, vendor: str) -> None:
    """Whatever the guest itself watches or steps, it sees nothing of it, and its DR6 and DR7 stay."""
    guest = _debugged(control, vendor=vendor)
    before = guest.registers()
    assert guest.take(event) == NOTHING
    assert guest.registers() == before
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)


@pytest.mark.parametrize("control", [0, ENABLE, SOFTWARE, HARDWARE & ~ENABLE, STEPPING & ~ENABLE])
def test_without_these_the_guest_sees_its_breakpoints(control: int) -> None:
    """Software breakpoints alone take no debug exception, and nothing works without the enabling bit."""
    guest = _debugged(control)
    assert guest.take(fetch(CODE)) == Told(Story.DB_FAULT, WATCHING << 32 | 0xFFFF_0FF2)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_dropped_guest_sees_its_breakpoints_again(vendor: str) -> None:
    """With control bits of zero the debugger is gone, its DR7 too."""
    guest = _debugged(HARDWARE, dr7=0x400 | GD, vendor=vendor)
    for event in debugger(0):
        assert guest.take(event) == NOTHING
    assert guest.take(read(0)) == Told(Story.READ, DATA)
    assert guest.take(touch(EventKind.READ, DATA)).story == Story.DB_TRAP


@pytest.mark.parametrize(
    ("control", "story"),
    [(0, Story.BP), (HARDWARE, Story.BP), (STEPPING, Story.BP), (SOFTWARE, Story.NOTHING)],
)
def test_int3_leaves_with_software_breakpoints_only(control: int, story: Story) -> None:
    """A breakpoint exception goes to a debugger that has software breakpoints."""
    assert _debugged(control).take(simple(EventKind.INT3)).story == story


@pytest.mark.parametrize(
    ("control", "vmx", "svm"),
    [
        (0, Story.DB_TRAP, Story.DB_TRAP),
        (SOFTWARE, Story.DB_TRAP, Story.DB_TRAP),
        (HARDWARE, Story.NOTHING, Story.DB_TRAP),
        (STEPPING, Story.NOTHING, Story.DB_TRAP),
    ],
)
def test_int1_leaves_on_vmx_only(control: int, vmx: Story, svm: Story) -> None:
    """On VMX an intercepted #DB covers INT1; on SVM it does not exit."""
    for vendor, story in (("vmx", vmx), ("svm", svm)):
        assert _debugged(control, vendor=vendor).take(simple(EventKind.INT1)).story == story


@pytest.mark.parametrize(
    ("control", "debuggers_gd", "guests_gd", "vmx", "svm"),
    [
        (HARDWARE, 0, GD, Story.READ, Story.READ),
        (HARDWARE, GD, 0, Story.NOTHING, Story.NOTHING),
        (HARDWARE | STEPPING, GD, 0, Story.NOTHING, Story.NOTHING),
        (HARDWARE | STEPPING, 0, GD, Story.READ, Story.READ),
        (STEPPING, GD, 0, Story.READ, Story.READ),
        (STEPPING, 0, GD, Story.DB_FAULT, Story.NOTHING),
        (SOFTWARE, GD, 0, Story.READ, Story.READ),
        (SOFTWARE, 0, GD, Story.DB_FAULT, Story.DB_FAULT),
    ],
)
def test_whose_general_detect_refuses(
    control: int, debuggers_gd: int, guests_gd: int, vmx: Story, svm: Story
) -> None:
    """With hardware breakpoints the debugger's DR7 is tested; a step alone hides the guest's on SVM only."""
    for vendor, story in (("vmx", vmx), ("svm", svm)):
        guest = _debugged(control, 0x400 | debuggers_gd, 0x400 | guests_gd, vendor)
        assert guest.take(read(6)).story == story
        after = 0x400 if story == Story.DB_FAULT else 0x400 | guests_gd
        assert guest.registers().dr7 == after


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_refused_mov_dr_does_not_happen(vendor: str) -> None:
    """The write is not done; earlier checks still fault, and a known retirement still counts."""
    guest = _debugged(HARDWARE, dr7=0x400 | GD, vendor=vendor)
    assert guest.take(write(0, 5)) == NOTHING
    assert guest.registers().db[0] == DATA
    assert guest.take(write(7, 1 << 32)) == NOTHING
    assert guest.take(write(0, 5, modes=3)).story == Story.GP
    assert guest.take(write(0, 5, marks=Mark.RETIRED)) == NOTHING
    assert guest.registers().db[0] == 5


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_guest_keeps_its_own_registers(vendor: str) -> None:
    """Reads, writes and the host's own accesses go to the guest's registers, never to the debugger's."""
    guest = armed(WATCHING, DATA, CODE, vendor=vendor)
    values = {0: 0xAAAA, 1: 0xBBBB, 2: 0xCCCC, 3: 0xDDDD, 5: 0xFF}
    for event in staged(values, Event(EventKind.HOST_DEBUGGER, selector=HARDWARE)):
        guest.take(event)
    assert guest.take(read(0)) == Told(Story.READ, DATA)
    guest.take(write(3, 7))
    assert guest.registers().db == (DATA, CODE, 0, 7)
    assert guest.take(Event(EventKind.GET_DEBUGREGS)) == Told(Story.REGISTERS, digest(guest.registers()))


@pytest.mark.parametrize("kind", [EventKind.RESET, EventKind.INIT, EventKind.SET_DEBUGREGS])
def test_a_debugger_stays_when_registers_are_set(kind: EventKind) -> None:
    """Neither a reset nor registers from outside drop the debugger."""
    guest = _debugged(HARDWARE, dr7=0x400 | GD)
    guest.take(simple(kind))
    assert guest.take(read(6)) == NOTHING


@pytest.mark.parametrize("enable", [0, ENABLE, HARDWARE, STEPPING])
@pytest.mark.parametrize("vendor", VENDORS)
def test_an_injected_debug_exception(enable: int, vendor: str) -> None:
    """It leaves DR6 alone and clears GD, whoever else is debugging, and is no attempt of the guest's."""
    guest = armed(WATCHING | GD, DATA, CODE, vendor=vendor)
    guest.take(write(6, 0xE00E, marks=Mark.RETIRED))
    event = debugger(enable | DebuggerControl.INJECT_DB)[-1]
    assert guest.take(event) == Told(Story.DB_FAULT, WATCHING << 32 | 0xFFFF_EFFE)
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)


def test_an_injected_breakpoint_changes_nothing() -> None:
    """GD stays too; where both are asked for, KVM injects the debug exception."""
    guest = armed(0x400 | GD)
    told = guest.take(debugger(DebuggerControl.INJECT_BP)[-1])
    assert told == Told(Story.BP, (0x400 | GD) << 32 | 0xFFFF_0FF0)
    both = DebuggerControl.INJECT_BP | DebuggerControl.INJECT_DB
    assert guest.take(debugger(both)[-1]) == Told(Story.DB_FAULT, 0x400 << 32 | 0xFFFF_0FF0)


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_held_goes_to_the_debugger(vendor: str) -> None:
    """What MOV SS hit before the debugger came is not the guest's any more; under it nothing is held."""
    guest = armed(WATCHING, DATA, CODE, vendor=vendor)
    guest.take(mov_ss(DATA, 2))
    for event in debugger(HARDWARE):
        guest.take(event)
    assert guest.take(simple(EventKind.CPUID)) == NOTHING
    guest.take(mov_ss(DATA, 2))
    for event in debugger(0):
        guest.take(event)
    assert guest.take(simple(EventKind.CPUID)) == NOTHING
    assert guest.registers().dr6 == 0xFFFF_0FF0


def test_the_debuggers_operands_are_used_once() -> None:
    """HOST_DEBUGGER uses up what was staged, and an operand that was not staged is zero."""
    guest = _debugged(HARDWARE, dr7=0x400 | GD)
    guest.take(debugger(HARDWARE)[-1])
    assert guest.take(read(0)) == Told(Story.READ, DATA)
