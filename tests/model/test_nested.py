"""Nested guests: what the guest hypervisor loads, intercepts and finds.

Sources: kvm-unit-tests ``vmx_tests.c`` ("debug controls", ``vmx_db_test``) and ``svm_tests.c`` ("dr
intercept check"); KVM's ``nested.c`` of both vendors.
"""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind, Mark, NestedControl

from .rows import TF, armed, debugger, fetch, mov_ss, read, simple, staged, touch, vmrun, write
from .second_model import VENDORS, Event, Guest, Story, Told, digest

MOV_DR: Final = NestedControl.INTERCEPTS_MOV_DR
LOAD: Final = NestedControl.LOADS_DEBUG_CONTROLS
SAVE: Final = NestedControl.SAVES_DEBUG_CONTROLS
DB: Final = NestedControl.INTERCEPTS_DB
LEAVE: Final = Event(EventKind.VMEXIT_TO_L1, selector=18)
NOTHING: Final = Told()
AL: Final = 0xFFFF_0FF0
DATA: Final = 0x7000
CODE: Final = 0x1000
WATCHING: Final = 0x3_0405  # slot 0 data, slot 1 code


def _left(dr7: int, dr6: int, undefined: int = 0) -> Told:
    """Return the story of leaving a nested guest."""
    return Told(Story.VMEXIT, dr7 << 32 | dr6, undefined)


def _nested(
    controls: int, dr7: int = 0x400, dr6: int = AL, vendor: str = "vmx", l1_dr7: int = 0x402
) -> Guest:
    """Return a guest whose nested guest runs."""
    guest = armed(l1_dr7, DATA, CODE, vendor=vendor)
    for event in vmrun(controls, dr7, dr6):
        assert guest.take(event) == NOTHING
    return guest


@pytest.mark.parametrize(
    ("controls", "inside", "found"),
    [(LOAD | SAVE, 0x404, 0x408), (0, 0x402, 0x404), (LOAD, 0x404, 0x404), (SAVE, 0x402, 0x408)],
)
def test_debug_controls_on_vmx(controls: int, inside: int, found: int) -> None:
    """L1 has DR7 0x402 and gives 0x404, L2 writes 0x408: what L2 reads, L1 finds and then has."""
    guest = _nested(controls, 0x404)
    assert guest.take(read(7)) == Told(Story.READ, inside)
    guest.take(write(7, 0x408))
    assert guest.take(LEAVE) == _left(found, 0)
    assert guest.take(read(7)) == Told(Story.READ, 0x400)


@pytest.mark.parametrize("controls", [0, LOAD, SAVE, LOAD | SAVE])
def test_svm_always_loads_and_saves(controls: int) -> None:
    """On SVM DR6 and DR7 are taken, masked as by a MOV, and found; DR6 stays when the guest is left."""
    guest = _nested(controls, 0xDFFF_0004, 0xF, "svm")
    assert guest.take(read(7)) == Told(Story.READ, 0xDFFF_0404)
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FFF)
    guest.take(write(7, 0x408))
    guest.take(write(6, 0x4001))
    assert guest.take(LEAVE) == _left(0x408, 0xFFFF_4FF1)
    assert guest.registers()[1:] == (0xFFFF_4FF1, 0x400, 0)


def test_vmx_shares_dr6() -> None:
    """On VMX L1's DR6 is L2's and stays."""
    guest = armed(0x400)
    guest.take(write(6, 0xE))
    for event in vmrun(LOAD, dr6=0x1):
        guest.take(event)
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FFE)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", [EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR])
@pytest.mark.parametrize("register", range(8))
def test_every_intercepted_mov_dr_leaves(register: int, kind: EventKind, vendor: str) -> None:
    """It does not happen, counts as raised, and the next one is L1's own."""
    guest = _nested(MOV_DR | LOAD | SAVE, 0x404, vendor=vendor)
    mov = Event(kind, register, value=5)
    assert guest.take(mov) == _left(0x404, AL if vendor == "svm" else 0)
    assert guest.registers().db == (DATA, CODE, 0, 0)
    assert guest.take(read(7, marks=Mark.IF_FAULT)) == Told(Story.READ, 0x400)
    assert guest.take(mov).story != Story.VMEXIT


@pytest.mark.parametrize(
    ("dr7", "event", "fault"),
    [
        (0x2404, read(4), Story.UD),
        (0x2404, read(0, modes=3), Story.GP),
        (0x2404, read(0), Story.DB_FAULT),
        (0x404, write(7, 1 << 32), None),
    ],
)
def test_what_comes_before_the_intercept(dr7: int, event: Event, fault: Story | None) -> None:
    """On VMX the intercept comes before any check, on SVM after all but that of the operand."""
    for vendor in VENDORS:
        guest = _nested(MOV_DR | LOAD | SAVE, dr7, vendor=vendor)
        guest.take(Event(EventKind.STATE, value=1))
        expected = Story.VMEXIT if vendor == "vmx" or fault is None else fault
        assert guest.take(event).story == expected


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_mov_dr_that_is_known_to_have_retired_was_not_intercepted(vendor: str) -> None:
    """It is done whatever L1 asked for."""
    guest = _nested(MOV_DR, vendor=vendor)
    assert guest.take(write(0, 5, marks=Mark.RETIRED)) == NOTHING
    assert guest.registers().db[0] == 5


HITS: Final[dict[str, tuple[list[Event], int]]] = {
    "step": ([simple(EventKind.CPUID, TF)], 0x4000),
    "code breakpoint": ([fetch(CODE)], 0x2),
    "data breakpoint": ([touch(EventKind.READ, DATA)], 0x1),
    "data breakpoint and step": ([touch(EventKind.READ, DATA, modes=TF)], 0x4001),
    "what MOV SS hit, and step": ([mov_ss(DATA, 2), simple(EventKind.CPUID, TF)], 0x4001),
    "what MOV SS hit, after INT3": ([mov_ss(DATA, 2), simple(EventKind.INT3), fetch(0)], 0x1),
}


@pytest.mark.parametrize(("events", "cause"), HITS.values(), ids=HITS)
def test_an_intercepted_debug_exception_leaves(events: list[Event], cause: int) -> None:
    """VMX names the cause and leaves DR6 and DR7 alone; SVM updates both before L1 finds them."""
    dr6 = AL | 0x400A
    for vendor in VENDORS:
        guest = _nested(DB | LOAD | SAVE, WATCHING, dr6, vendor)
        guest.take(write(6, dr6))
        for event in events[:-1]:
            guest.take(event)
        after = dr6 & ~0xF | cause
        assert guest.take(events[-1]) == _left(WATCHING, cause if vendor == "vmx" else after)
        assert guest.registers()[1:] == (dr6 if vendor == "vmx" else after, 0x400, 0)
        assert guest.take(read(7, marks=Mark.IF_FAULT)) == Told(Story.READ, 0x400)


def test_general_detect_leaves_with_its_cause() -> None:
    """On VMX the DR7 that L1 finds still has GD, on SVM it was cleared first."""
    for vendor, found, dr6 in (("vmx", 0x2404, 0x2000), ("svm", 0x404, AL | 0x2000)):
        guest = _nested(DB | LOAD | SAVE, 0x2404, vendor=vendor)
        assert guest.take(read(0)) == _left(found, dr6)


def test_when_int1_leaves() -> None:
    """An intercepted #DB covers INT1 on VMX, on SVM only one that brings something held; else L2 gets it."""
    int1 = simple(EventKind.INT1)
    assert _nested(DB | LOAD | SAVE).take(int1) == _left(0x400, 0)
    assert _nested(DB, vendor="svm").take(int1) == Told(Story.DB_TRAP, 0x400 << 32 | AL)
    for vendor, told in (("vmx", _left(WATCHING, 1)), ("svm", _left(WATCHING, AL | 1))):
        guest = _nested(DB | LOAD | SAVE, WATCHING, vendor=vendor)
        guest.take(mov_ss(DATA, 2))
        assert guest.take(int1) == told


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_l1_does_not_intercept_stays_inside(vendor: str) -> None:
    """Without intercepts L2 has its registers and exceptions; #BP is never L1's."""
    guest = _nested(LOAD | SAVE, WATCHING, vendor=vendor)
    assert guest.take(read(0)) == Told(Story.READ, DATA)
    assert guest.take(fetch(CODE)) == Told(Story.DB_FAULT, WATCHING << 32 | AL | 2)
    assert guest.take(simple(EventKind.INT3)).story == Story.BP
    assert guest.take(LEAVE).story == Story.VMEXIT


@pytest.mark.parametrize("vendor", VENDORS)
def test_undefined_bits_of_the_cause(vendor: str) -> None:
    """A disabled match may be in VMX's cause, but not in DR6 thereafter; on SVM it is in both."""
    guest = _nested(DB | LOAD | SAVE, 0x33_0401, vendor=vendor)
    guest.take(write(1, DATA))
    told = guest.take(touch(EventKind.WRITE, DATA))
    assert told == _left(0x33_0401, (AL if vendor == "svm" else 0) | 0b11, 0b10)
    assert guest.registers().undefined_dr6 == (0b10 if vendor == "svm" else 0)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_nested_guest_does_not_nest(vendor: str) -> None:
    """VMRUN inside is L1's to handle, and leaves; leaving twice does nothing."""
    guest = _nested(LOAD | SAVE, 0x404, vendor=vendor)
    assert guest.take(vmrun(DB)[-1]).story == Story.VMEXIT
    assert guest.take(LEAVE) == NOTHING
    assert guest.take(read(7)) == Told(Story.READ, 0x400)


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_host_acts_on_the_registers_as_they_are(vendor: str) -> None:
    """The host reads and sets the nested guest's registers; a reset ends the nested guest."""
    guest = _nested(LOAD | SAVE, 0x404, vendor=vendor)
    assert guest.take(simple(EventKind.GET_DEBUGREGS)) == Told(Story.REGISTERS, digest(guest.registers()))
    for event in staged({4: AL, 5: 0x408}, simple(EventKind.SET_DEBUGREGS)):
        guest.take(event)
    assert guest.take(LEAVE) == _left(0x408, AL if vendor == "svm" else 0)
    guest = _nested(LOAD | SAVE | MOV_DR, 0x404, vendor=vendor)
    guest.take(simple(EventKind.INIT))
    assert guest.take(LEAVE) == NOTHING
    assert guest.take(read(7)) == Told(Story.READ, 0x400)


@pytest.mark.parametrize(
    ("control", "vmx", "svm"),
    [
        (DebuggerControl.USE_HW_BP, (Story.NOTHING, Story.NOTHING), (Story.NOTHING, Story.NOTHING)),
        (DebuggerControl.SINGLESTEP, (Story.NOTHING, Story.VMEXIT), (Story.NOTHING, Story.NOTHING)),
        (DebuggerControl.USE_SW_BP, (Story.VMEXIT, Story.READ), (Story.VMEXIT, Story.READ)),
    ],
)
def test_the_debugger_comes_before_l1(
    control: int, vmx: tuple[Story, Story], svm: tuple[Story, Story]
) -> None:
    """A step, then a MOV that GD refuses: what the debugger takes does not reach L1.

    On VMX a guest's GD under a debugger that steps is an exception that KVM makes, for L1.
    """
    enter = [*debugger(DebuggerControl.ENABLE | control, 0x2400), *vmrun(DB | LOAD, 0x2400)]
    for vendor, stories in (("vmx", vmx), ("svm", svm)):
        guest = armed(0x400, vendor=vendor)
        for event in enter:
            guest.take(event)
        assert (guest.take(simple(EventKind.CPUID, TF)).story, guest.take(read(0)).story) == stories
