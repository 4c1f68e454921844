"""What kvm-unit-tests expects of debug exceptions (x86/debug.c, x86/emulator.c at commit 1da1819e).

A case is a guest's program in events. Where an exception is expected, DR6 as its handler finds it stands
beside the event. Instructions without an event of their own are fetches alone, so TF is on them.
"""

from typing import Final, NamedTuple

import pytest

from exitlab.events import EventKind

from .rows import TF, fetch, mov_ss, read, simple, touch, write
from .second_model import VENDORS, Event, Guest, Story

AL: Final = 0xFFFF_0FF0  # DR6 with nothing in it
B1, B2, BD, BS = 0x2, 0x4, 0x2000, 0x4000
CODE: Final = 0x40_0000
DATA: Final = 0x60_0000


class Seen(NamedTuple):
    """An event, and the exception that it raises with the DR6 that its handler finds."""

    event: Event
    story: Story = Story.NOTHING
    dr6: int = 0


def _stepped(*events: Event) -> list[Seen]:
    """Return ``events`` that are single steps, and raise nothing else."""
    return [Seen(event, Story.DB_TRAP, AL | BS) for event in events]


def _quiet(*events: Event) -> list[Seen]:
    """Return ``events`` that raise nothing."""
    return [Seen(event) for event in events]


SET_TF: Final = simple(EventKind.POPF)
CLEAR_TF: Final = simple(EventKind.POPF, TF)
NEXT: Final = fetch(CODE, TF)  # an instruction that nobody else sees, stepped

CASES: Final[dict[str, list[Seen]]] = {
    "#BP": [Seen(simple(EventKind.INT3), Story.BP, AL)],
    "hardware breakpoint: DR6 is the slot's bit": [
        *_quiet(write(2, CODE), write(6, 0), write(7, 0x420)),
        Seen(fetch(CODE), Story.DB_FAULT, AL | B2),
    ],
    "hardware breakpoint: DR6.BS stays, other slots' bits go": [
        *_quiet(write(2, CODE), write(7, 0x420), write(6, AL | BS | B1)),
        Seen(fetch(CODE), Story.DB_FAULT, AL | BS | B2),
    ],
    "single step": [*_quiet(write(6, 0), SET_TF), *_stepped(NEXT, NEXT, CLEAR_TF)],
    "single step of what KVM emulates": [
        *_quiet(write(6, 0), SET_TF),
        *_stepped(NEXT, NEXT, simple(EventKind.CPUID, TF), NEXT, simple(EventKind.IN, TF, 0x60)),
        *_stepped(NEXT, CLEAR_TF),
    ],
    "STI blocks no step": [
        *_quiet(write(6, 0), SET_TF),
        *_stepped(simple(EventKind.STI, TF), NEXT, NEXT, CLEAR_TF),
    ],
    "MOV SS is not stepped": [
        *_quiet(write(6, 0), SET_TF, mov_ss(modes=TF)),
        *_stepped(NEXT, NEXT, CLEAR_TF),
    ],
    "INT1 in the shadow of MOV SS, and another": [
        *_quiet(write(6, 0), SET_TF, mov_ss(modes=TF), fetch(CODE)),
        Seen(simple(EventKind.INT1, TF), Story.DB_TRAP, AL),
        Seen(simple(EventKind.INT1, TF), Story.DB_TRAP, AL),
        *_stepped(NEXT, NEXT, CLEAR_TF),
    ],
    "general detect in the shadow of MOV SS; the handler clears DR6": [
        *_quiet(write(6, 0), write(7, 0x2400), SET_TF, mov_ss(modes=TF), fetch(CODE)),
        Seen(read(6), Story.DB_FAULT, AL | BD),
        *_quiet(write(6, 0)),
        Seen(read(6), Story.READ, AL),
        *_stepped(Event(EventKind.FETCH, 1, TF), NEXT, NEXT, CLEAR_TF),
    ],
    "STI, then HLT": [
        *_quiet(write(6, 0), SET_TF),
        *_stepped(simple(EventKind.STI, TF), simple(EventKind.HLT, TF)),
        *_quiet(simple(EventKind.EXTERNAL_INTERRUPT, selector=0xEE)),
        *_stepped(NEXT, NEXT, CLEAR_TF),
    ],
    "watchpoint: DR6.BS stays": [
        *_quiet(write(1, DATA), write(6, BS), write(7, 0x00D0_040A)),
        Seen(touch(EventKind.WRITE, DATA, 8), Story.DB_TRAP, AL | BS | B1),
        *_quiet(touch(EventKind.READ, DATA, 8)),
    ],
    "watchpoint: DR6 is the slot's bit": [
        *_quiet(write(1, DATA), write(6, 0), write(7, 0x00D0_040A)),
        Seen(touch(EventKind.WRITE, DATA, 8), Story.DB_TRAP, AL | B1),
    ],
    "INT1 names no cause": [
        *_quiet(write(1, DATA), write(6, 0), write(7, 0x00D0_040A)),
        Seen(simple(EventKind.INT1), Story.DB_TRAP, AL),
    ],
    "MOV SS from watched memory, then INT1: one exception": [
        *_quiet(write(1, DATA), write(6, 0), write(7, 0x00F0_040A), mov_ss(DATA, 2), fetch(CODE)),
        Seen(simple(EventKind.INT1), Story.DB_TRAP, AL | B1),
        *_quiet(fetch(CODE)),
    ],
    "MOV SS from watched memory, then int $1: an exception beside the software interrupt": [
        *_quiet(write(1, DATA), write(6, 0), write(7, 0x00F0_040A), mov_ss(DATA, 2), fetch(CODE)),
        Seen(simple(EventKind.INTN, selector=1), Story.DB_TRAP, AL | B1),
        *_quiet(fetch(CODE)),
    ],
    "MOV SS from watched memory, then INT3: both exceptions": [
        *_quiet(write(1, DATA), write(6, 0), write(7, 0x00F0_040A), mov_ss(DATA, 2), fetch(CODE)),
        Seen(simple(EventKind.INT3), Story.BP, AL),
        Seen(fetch(CODE), Story.DB_FAULT, AL | B1),
        *_quiet(fetch(CODE)),
    ],
    "MOV to and from DR6": [*_quiet(write(6, 0)), Seen(read(6), Story.READ, AL)],
}


def _run(case: list[Seen], vendor: str) -> list[Seen]:
    """Return what a guest sees of the events of ``case``."""
    guest = Guest(vendor)
    told = [guest.take(one.event) for one in case]
    return [
        Seen(one.event, Story(each.story), each.value & 0xFFFF_FFFF)
        for one, each in zip(case, told, strict=True)
    ]


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_program_raises_what_kvm_unit_tests_expects(case: list[Seen], vendor: str) -> None:
    """On both vendors each event raises what the suite expects of a processor, and nothing else."""
    assert _run(case, vendor) == case


@pytest.mark.parametrize(("vendor", "story"), [("vmx", Story.NOTHING), ("svm", Story.DB_FAULT)])
def test_a_code_breakpoint_after_mov_ss_is_the_vendors_difference(vendor: str, story: Story) -> None:
    """Intel suppresses a code breakpoint on the instruction after MOV SS, AMD does not (x86/emulator.c)."""
    guest = Guest(vendor)
    for event in (write(0, CODE), write(7, 0x402), mov_ss()):
        guest.take(event)
    assert guest.take(fetch(CODE)).story == story
