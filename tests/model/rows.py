"""Events and guests in few words, for cases that are written by hand."""

from exitlab.events import EventKind, Mode

from .second_model import Event, Guest, Story

TF = int(Mode.TF)


def write(register: int, value: int, modes: int = 0, marks: int = 0) -> Event:
    """Return a MOV to a debug register."""
    return Event(EventKind.MOV_TO_DR, register, modes, marks, value=value)


def read(register: int, modes: int = 0, marks: int = 0) -> Event:
    """Return a MOV from a debug register."""
    return Event(EventKind.MOV_FROM_DR, register, modes, marks)


def fetch(address: int, modes: int = 0) -> Event:
    """Return a fetch."""
    return Event(EventKind.FETCH, modes=modes, value=address)


def touch(kind: EventKind, address: int, length: int = 1, modes: int = 0) -> Event:
    """Return an access of ``kind`` to memory."""
    return Event(kind, length, modes, value=address)


def port(kind: EventKind, number: int, width: int = 1, modes: int = 0) -> Event:
    """Return an access of ``kind`` to a port."""
    return Event(kind, width, modes, selector=number, value=1)


def mov_ss(address: int = 0, length: int = 0, modes: int = 0) -> Event:
    """Return a MOV to SS, of ``length`` bytes of memory or of a register."""
    return Event(EventKind.MOV_SS, length, modes, value=address)


def simple(kind: EventKind, modes: int = 0, selector: int = 0, marks: int = 0) -> Event:
    """Return an event of ``kind`` that needs no more."""
    return Event(kind, modes=modes, marks=marks, selector=selector)


def staged(values: dict[int, int], user: Event) -> list[Event]:
    """Return the events that stage ``values`` by slot, and the one that uses them up."""
    return [*(Event(EventKind.STAGE, slot, value=value) for slot, value in values.items()), user]


def debugger(control: int, dr7: int = 0x400) -> list[Event]:
    """Return the events that give the guest to the host's debugger, or back."""
    return staged({5: dr7}, Event(EventKind.HOST_DEBUGGER, selector=control))


def vmrun(controls: int, dr7: int = 0x400, dr6: int = 0xFFFF_0FF0) -> list[Event]:
    """Return the events that enter a nested guest."""
    return staged({5: dr7, 4: dr6}, Event(EventKind.VMRUN, value=controls))


def armed(dr7: int, *addresses: int, computed: bool = True, vendor: str = "vmx") -> Guest:
    """Return a guest that has written ``addresses`` and ``dr7``."""
    guest = Guest(vendor, computed=computed)
    for register, address in enumerate(addresses):
        guest.take(write(register, address))
    guest.take(write(7, dr7))
    return guest


def taken(guest: Guest, *events: Event) -> list[tuple[Story, int]]:
    """Return the story of each of ``events``, and the DR6 that a handler finds."""
    told = [guest.take(event) for event in events]
    return [(Story(one.story), one.value & 0xFFFF_FFFF) for one in told]
