"""I/O breakpoints, rule by rule of ``docs/model.md``."""

from typing import Final

import pytest

from exitlab.events import EventKind

from .rows import TF, armed, fetch, port, taken, touch
from .second_model import Event, Guest, Story, Told

AL: Final = 0xFFFF_0FF0


def _port_guest(dr7: int, *ports: int, has_de: bool = True) -> Guest:
    """Return a guest whose slots hold ``ports``."""
    guest = armed(dr7, *ports)
    guest.take(Event(EventKind.STATE, value=int(has_de)))
    return guest


@pytest.mark.parametrize("kind", [EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS])
@pytest.mark.parametrize("has_de", [False, True])
def test_a_port_breakpoint_needs_cr4_de(kind: EventKind, has_de: bool) -> None:
    """Every kind of port access traps at a slot of R/W 10, if CR4.DE is set."""
    guest = _port_guest(0x2_0401, 0x3F8, has_de=has_de)
    expected = (Story.DB_TRAP, AL | 1) if has_de else (Story.NOTHING, 0)
    assert taken(guest, port(kind, 0x3F8)) == [expected]


@pytest.mark.parametrize(
    ("length_bits", "slot", "number", "width", "hits"),
    [
        (0b00, 0x3F8, 0x3F9, 1, False),
        (0b00, 0x3F8, 0x3F7, 1, False),
        (0b00, 0x3F8, 0x3F7, 2, True),
        (0b01, 0x3F9, 0x3F8, 1, True),
        (0b01, 0x3F9, 0x3FA, 1, False),
        (0b11, 0x3FB, 0x3F8, 1, True),
        (0b11, 0x3FB, 0x3FC, 4, False),
        (0b10, 0x3FF, 0x3F8, 1, True),
        (0b10, 0x3FF, 0x3F5, 4, True),
        (0b10, 0x3FF, 0x400, 4, False),
        (0b00, 0x1_03F8, 0x3F8, 1, False),
    ],
)
def test_a_slot_watches_its_aligned_ports(
    length_bits: int, slot: int, number: int, width: int, hits: bool
) -> None:
    """LEN gives 1, 2, 8 or 4 ports, aligned down; any overlap hits, and all of the slot's address counts."""
    guest = _port_guest(0x2_0401 | length_bits << 18, slot)
    assert (guest.take(port(EventKind.IN, number, width)).story == Story.DB_TRAP) is hits


def test_memory_and_ports_are_apart() -> None:
    """Slots for memory do not break on ports, nor slots for ports on memory or fetches."""
    guest = _port_guest(0x0321_0455, 0x3F8, 0x3F8, 0x3F8, 0x3F8)
    assert taken(guest, port(EventKind.OUT, 0x3F8)) == [(Story.DB_TRAP, AL | 2)]
    guest = _port_guest(0x2_0401, 0x3F8)
    events = (touch(EventKind.READ, 0x3F8), touch(EventKind.WRITE, 0x3F8), fetch(0x3F8))
    assert taken(guest, *events) == [(Story.NOTHING, 0)] * 3


def test_a_port_breakpoint_and_a_step_are_one_exception() -> None:
    """BS joins the slot's bit; a disabled slot that matches is undefined."""
    guest = _port_guest(0x22_0401, 0x3F8, 0x3F8)
    told = guest.take(port(EventKind.IN, 0x3F8, modes=TF))
    assert told == Told(Story.DB_TRAP, 0x22_0401_FFFF_4FF3, 0b10)
