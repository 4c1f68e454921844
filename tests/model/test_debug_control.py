"""DEBUGCTL in the second model: what is kept, what is not known, what a guest hypervisor makes of it.

Source: kvm-unit-tests ``vmx_tests.c``, "debug controls"; Intel SDM volume 3, "Initialization Overview".
"""

from collections import Counter
from typing import Final

import pytest

from exitlab.events import EventKind, Mark, Mode, NestedControl

from . import debug_control
from .rows import simple, staged
from .second_model import VENDORS, Event, Guest, SecondModel, Story, Told, events_of
from .streams import Mix, random_stream

LOAD: Final = NestedControl.LOADS_DEBUG_CONTROLS
SAVE: Final = NestedControl.SAVES_DEBUG_CONTROLS
NOTHING: Final = Told()
LEAVE: Final = Event(EventKind.VMEXIT_TO_L1, selector=18)
ALL: Final = 0b11


def _put(value: int, marks: int = 0) -> Event:
    """Return a write."""
    return Event(EventKind.WRMSR, marks=marks, selector=0x1D9, value=value)


def _got(value: int = 0, marks: int = 0) -> Event:
    """Return a read, with the value that a recording has."""
    return Event(EventKind.RDMSR, marks=marks, selector=0x1D9, value=value)


def _vmrun(controls: int, debugctl: int) -> list[Event]:
    """Return the events that enter a nested guest with DR7 0x404."""
    return staged({5: 0x404, 4: 0xFFFF_0FF0, 0: debugctl}, Event(EventKind.VMRUN, value=controls))


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("before", "value"),
    [
        ([], 0),
        ([_put(1)], 1),
        ([_put(0xFFFF)], 3),
        ([_put(2), _put(1, Mark.VALUE_UNKNOWN)], 2),
        ([_put(3), simple(EventKind.RESET)], 0),
        ([_put(3), simple(EventKind.INIT)], 3),
        ([_put(3), Event(EventKind.WRMSR, selector=0x1DA)], 3),
    ],
)
def test_what_a_read_shows(before: list[Event], value: int, vendor: str) -> None:
    """Two bits of the last known value, until a RESET."""
    guest = Guest(vendor)
    for event in before:
        assert guest.take(event) == NOTHING
    assert guest.take(_got()) == Told(Story.READ, value)
    assert guest.take(Event(EventKind.RDMSR, selector=0x1DA)) == NOTHING


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_recording_tells_it_sooner_or_later(vendor: str) -> None:
    """Before a write or a recorded read nobody knows it; then it is what they said."""
    guest = Guest(vendor, computed=False)
    assert guest.take(_got()) == Told(Story.READ, 0, ALL)
    guest.take(_put(1, Mark.VALUE_UNKNOWN))
    guest.take(simple(EventKind.INIT))
    assert guest.take(_got(0x4002, Mark.VALUE_EXPECTED)) == Told(Story.READ, 2, ALL)
    assert guest.take(_got(1, Mark.VALUE_EXPECTED)) == Told(Story.READ, 2)
    for teller in (_put(0), simple(EventKind.RESET)):
        guest = Guest(vendor, computed=False)
        guest.take(teller)
        assert guest.take(_got()) == Told(Story.READ, 0)


@pytest.mark.parametrize(
    ("controls", "inside", "found"),
    [(LOAD | SAVE, 2, 3), (0, 1, 2), (LOAD, 2, 2), (SAVE, 1, 3)],
)
def test_debug_controls_on_vmx(controls: int, inside: int, found: int) -> None:
    """L1 has 1 and gives 2, L2 writes 3: what L2 reads, L1 finds beside the cause, and then has: nothing."""
    guest = Guest()
    for event in [_put(1), *_vmrun(controls, 2)]:
        guest.take(event)
    assert guest.take(_got()) == Told(Story.READ, inside)
    guest.take(_put(3))
    assert guest.take(LEAVE).value & 0xFFFF_FFFF == found << 24
    assert guest.take(_got()) == Told(Story.READ, 0)


def test_what_is_not_known_is_not_found() -> None:
    """In a recording L1 finds undefined bits where L2's are saved and nobody has told them."""
    guest = Guest(computed=False)
    for event in _vmrun(SAVE, 1):
        guest.take(event)
    assert guest.take(LEAVE).undefined_dr6 == ALL << 24
    assert guest.take(_got()) == Told(Story.READ, 0)


def test_svm_shares_it() -> None:
    """On SVM both guests have the same, and it is no part of what L1 finds."""
    guest = Guest("svm")
    for event in [_put(1), *_vmrun(LOAD | SAVE, 2)]:
        guest.take(event)
    assert guest.take(_got()) == Told(Story.READ, 1)
    guest.take(_put(3))
    assert guest.take(LEAVE).value & 0xFFFF_FFFF == 0xFFFF_0FF0
    assert guest.take(_got()) == Told(Story.READ, 3)


def test_streams_reach_it() -> None:
    """Over 100 seeds a nested guest reads every value, leaves every value, and steps over it."""
    mix = Mix.everything()
    inside: Counter[int] = Counter()
    found: Counter[int] = Counter()
    stepped = 0
    for seed in range(100):
        model = SecondModel(mix.vcpus)
        for event in events_of(random_stream(seed, 500, mix)):
            is_nested = model.guests[event.vcpu].processor.nested is not None
            told = model.take(event)
            if debug_control.is_access(event):
                stepped += bool(event.modes & Mode.TF)
                if told.story == Story.READ and is_nested:
                    inside[told.value] += 1
            if told.story == Story.VMEXIT:
                found[told.value >> 24 & ALL] += 1
    assert set(inside) == set(found) == set(range(4))
    assert min(*inside.values(), *found.values(), stepped) >= 10
