"""Single steps, software interrupts and the shadow of MOV SS, rule by rule of ``docs/model.md``."""

from typing import Final

import pytest

from exitlab.events import FETCH_END, EventKind, Mark, Mode

from .rows import TF, armed, fetch, mov_ss, port, read, simple, taken, touch, write
from .second_model import VENDORS, Event, Guest, Story, Told

AL: Final = 0xFFFF_0FF0
BS: Final = 0x4000
CODE: Final = 0x1000
DATA: Final = 0x7000
READS: Final = 0x3_0401  # slot 0 watches a byte for reads and writes
READS_AND_CODE: Final = READS | 0x4  # slot 1 watches code


# Single steps.


STEPPED: Final = [
    *(EventKind.CPUID, EventKind.HLT, EventKind.IN, EventKind.MMIO, EventKind.POPF, EventKind.IRET),
    *(EventKind.MOV_TO_DR, EventKind.FETCH, EventKind.STI, EventKind.VMCALL),
]


@pytest.mark.parametrize("kind", STEPPED)
def test_what_is_stepped(kind: EventKind) -> None:
    """A trap flag steps every instruction but those that the rules name."""
    assert taken(armed(0x400, *[~0] * 4), simple(kind, TF)) == [(Story.DB_TRAP, AL | BS)]


@pytest.mark.parametrize(
    ("event", "story"),
    [
        (mov_ss(modes=TF), Story.NOTHING),
        (simple(EventKind.INT1, TF), Story.DB_TRAP),
        (simple(EventKind.INT3, TF), Story.BP),
        (simple(EventKind.INTN, TF, 0x80), Story.NOTHING),
        (simple(EventKind.EXCEPTION, TF, 6), Story.UD),
        (simple(EventKind.EXCEPTION, TF, 14), Story.NOTHING),
        (simple(EventKind.EXTERNAL_INTERRUPT, TF), Story.NOTHING),
        (simple(EventKind.ADVANCE, TF), Story.NOTHING),
        (write(7, 1 << 32, TF), Story.GP),
        (write(0, 0, TF | 3), Story.GP),
    ],
)
def test_what_is_not_stepped(event: Event, story: Story) -> None:
    """Loads of SS, software interrupts, exceptions, faults and what arrives leave BS alone."""
    guest = Guest()
    assert guest.take(event).story == story
    assert guest.registers().dr6 == AL


def test_a_step_and_a_breakpoint_are_one_exception() -> None:
    """A data breakpoint and the step of the same instruction set their bits together."""
    assert taken(armed(READS, DATA), touch(EventKind.READ, DATA, modes=TF)) == [(Story.DB_TRAP, AL | BS | 1)]


def test_a_step_shows_disabled_matches_as_undefined() -> None:
    """A disabled slot that matches data or the fetch may show beside BS; what RF suppresses does not."""
    guest = armed(0x3_0400, DATA)
    assert guest.take(touch(EventKind.READ, DATA, modes=TF)) == Told(Story.DB_TRAP, 0x3_0400_FFFF_4FF1, 1)
    assert armed(0x400, CODE).take(fetch(CODE, TF)) == Told(Story.DB_TRAP, 0x400_FFFF_4FF1, 1)
    guest = armed(0x400, CODE)
    assert guest.take(fetch(CODE, TF | Mode.RF)) == Told(Story.DB_TRAP, 0x400_FFFF_4FF0)


def test_a_code_breakpoint_comes_before_the_step() -> None:
    """A fetch that faults steps nothing; with RF it runs, and is stepped."""
    guest = armed(0x401, CODE)
    seen = taken(guest, fetch(CODE, TF), fetch(CODE, TF | Mode.RF))
    assert seen == [(Story.DB_FAULT, AL | 1), (Story.DB_TRAP, AL | BS)]


def test_a_mov_from_a_debug_register_is_stepped_where_it_ends() -> None:
    """It shows its value; the step follows with the event that ends it, which fetches nothing."""
    guest = armed(0x401, CODE)
    end = Event(EventKind.FETCH, FETCH_END, TF, value=CODE)
    assert taken(guest, read(0), end) == [(Story.READ, CODE), (Story.DB_TRAP, AL | BS)]


def test_a_step_sees_what_the_instruction_wrote() -> None:
    """A MOV that sets GD is stepped, and that clears GD; one to DR6 is written before BS is set."""
    guest = Guest()
    assert guest.take(write(7, 0x2400, TF)) == Told(Story.DB_TRAP, 0x400_FFFF_4FF0)
    assert guest.take(write(6, 0xE, TF)) == Told(Story.DB_TRAP, 0x400_FFFF_4FF0)


def test_int1_leaves_general_detect_alone() -> None:
    """INT1 changes neither DR6 nor DR7, unlike other debug exceptions."""
    guest = armed(0x2400)
    assert guest.take(simple(EventKind.INT1)) == Told(Story.DB_TRAP, 0x2400_FFFF_0FF0)
    assert guest.take(simple(EventKind.INT3)) == Told(Story.BP, 0x2400_FFFF_0FF0)


@pytest.mark.parametrize(
    "event",
    [
        simple(EventKind.INT1),
        simple(EventKind.INT3),
        simple(EventKind.CPUID, TF),
        port(EventKind.OUT, 0x3F8),
        mov_ss(DATA, 2),
    ],
)
def test_nothing_of_this_is_computed_where_exceptions_are_recorded(event: Event) -> None:
    """With recorded exceptions no such event raises any."""
    guest = armed(0x2_0401 | READS, 0x3F8, DATA, computed=False)
    assert taken(guest, event, simple(EventKind.CPUID)) == [(Story.NOTHING, 0)] * 2


# The shadow of MOV SS. The guest watches data in slot 0 and code in slot 1.

HELD: Final = mov_ss(DATA, 2)
NOTHING: Final = (Story.NOTHING, 0)
TRAP: Final = (Story.DB_TRAP, AL | 1)
FAULT: Final = (Story.DB_FAULT, AL | 1)
CPUID: Final = simple(EventKind.CPUID)

SHADOWS: Final[dict[str, tuple[list[Event], list[tuple[Story, int]]]]] = {
    "an instruction without a trap of its own": ([HELD, CPUID], [NOTHING, TRAP]),
    "its fetch and the instruction": ([HELD, fetch(0), CPUID], [NOTHING, NOTHING, TRAP]),
    "an access that hits the same": ([HELD, touch(EventKind.WRITE, DATA)], [NOTHING, TRAP]),
    "a stepped instruction": ([HELD, simple(EventKind.CPUID, TF)], [NOTHING, (Story.DB_TRAP, AL | BS | 1)]),
    "a stepped fetch": ([HELD, fetch(CODE + 1, TF), CPUID], [NOTHING, (Story.DB_TRAP, AL | BS | 1), NOTHING]),
    "a MOV that writes DR6 first": ([HELD, write(6, 0xE)], [NOTHING, TRAP]),
    "INT1": ([HELD, simple(EventKind.INT1)], [NOTHING, TRAP]),
    "INTN": ([HELD, simple(EventKind.INTN, selector=3)], [NOTHING, TRAP]),
    "INT3, then an instruction": (
        [HELD, simple(EventKind.INT3), CPUID, CPUID],
        [NOTHING, (Story.BP, AL), FAULT, NOTHING],
    ),
    "INT3, then a read that does not happen": (
        [HELD, fetch(0), simple(EventKind.INT3), read(0), read(0)],
        [NOTHING, NOTHING, (Story.BP, AL), FAULT, (Story.READ, DATA)],
    ),
    "INT3, then a MOV SS that does not happen": (
        [HELD, simple(EventKind.INT3), HELD, CPUID],
        [NOTHING, (Story.BP, AL), FAULT, NOTHING],
    ),
    "INT3, then a write that is known to have retired": (
        [HELD, simple(EventKind.INT3), write(6, 0xE, marks=Mark.RETIRED), CPUID],
        [NOTHING, (Story.BP, AL), TRAP, NOTHING],
    ),
    "a MOV that did not retire, which changes nothing": (
        [
            HELD,
            read(0, marks=Mark.NOT_RETIRED),
            simple(EventKind.INT3),
            read(0, marks=Mark.NOT_RETIRED),
            CPUID,
        ],
        [NOTHING, NOTHING, (Story.BP, AL), NOTHING, FAULT],
    ),
    "a read of a debug register, then an instruction": (
        [HELD, read(0), CPUID, CPUID],
        [NOTHING, (Story.READ, DATA), FAULT, NOTHING],
    ),
    "a second fetch": ([HELD, fetch(0), fetch(0), CPUID], [NOTHING, NOTHING, FAULT, NOTHING]),
    "#GP": ([HELD, write(7, 1 << 32), CPUID], [NOTHING, (Story.GP, AL), NOTHING]),
    "a recorded #UD": (
        [HELD, simple(EventKind.EXCEPTION, selector=6), CPUID],
        [NOTHING, (Story.UD, AL), NOTHING],
    ),
    "a MOV SS": ([HELD, mov_ss(), CPUID], [NOTHING, TRAP, NOTHING]),
    "a MOV SS that hits, and casts no shadow": ([mov_ss(), HELD, CPUID], [NOTHING, TRAP, NOTHING]),
    "a MOV SS, whose next fetch is not covered": (
        [HELD, mov_ss(), fetch(CODE)],
        [NOTHING, TRAP, (Story.DB_FAULT, AL | 2)],
    ),
    "what the host does and what arrives": (
        [
            HELD,
            simple(EventKind.EXTERNAL_INTERRUPT),
            simple(EventKind.SCHED_OUT),
            simple(EventKind.ADVANCE),
            CPUID,
        ],
        [NOTHING, NOTHING, NOTHING, NOTHING, TRAP],
    ),
    "a reset": ([HELD, simple(EventKind.INIT), CPUID], [NOTHING, NOTHING, NOTHING]),
    "what is not taken": (
        [HELD, simple(EventKind.CPUID, marks=Mark.IF_FAULT), simple(EventKind.CPUID, marks=Mark.IF_OK)],
        [NOTHING, (Story.NOT_TAKEN, 0), TRAP],
    ),
    "nothing held": ([mov_ss(DATA + 8, 2), CPUID, fetch(0)], [NOTHING, NOTHING, NOTHING]),
    "a register": ([mov_ss(DATA), CPUID], [NOTHING, NOTHING]),
}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("events", "seen"), SHADOWS.values(), ids=SHADOWS)
def test_what_a_mov_ss_hits_is_held(events: list[Event], seen: list[tuple[Story, int]], vendor: str) -> None:
    """What MOV SS hit comes with, after or instead of what follows, or is lost, on both vendors alike."""
    assert taken(armed(READS_AND_CODE, DATA, CODE, vendor=vendor), *events) == seen


def test_only_reads_are_watched_by_mov_ss() -> None:
    """MOV SS reads its operand, so a slot for writes does not hold."""
    assert taken(armed(0x1_0401, DATA), HELD, CPUID) == [NOTHING, NOTHING]


def test_a_disabled_match_is_held_with_an_enabled_one() -> None:
    """What MOV SS may have hit stays undefined until it is raised; alone it raises nothing."""
    guest = armed(0x33_0401, DATA, DATA)
    guest.take(HELD)
    assert guest.take(CPUID) == Told(Story.DB_TRAP, 0x33_0401_FFFF_0FF3, 0b10)
    guest = armed(0x3_0400, DATA)
    guest.take(HELD)
    assert guest.take(simple(EventKind.CPUID, TF)) == Told(Story.DB_TRAP, 0x3_0400_FFFF_4FF0)


def test_held_hits_do_not_raise_before_they_come() -> None:
    """IF_FAULT looks at what was raised: not at the MOV SS, but at what its hit was raised with."""
    guest = armed(READS, DATA)
    guest.take(HELD)
    assert guest.take(read(7, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    guest.take(CPUID)
    assert guest.take(read(7, marks=Mark.IF_FAULT)) == Told(Story.READ, READS)


@pytest.mark.parametrize(
    ("events", "vmx", "svm"),
    [
        ([mov_ss(), fetch(CODE)], NOTHING, (Story.DB_FAULT, AL | 2)),
        ([mov_ss(), fetch(CODE), fetch(CODE)], (Story.DB_FAULT, AL | 2), (Story.DB_FAULT, AL | 2)),
        ([mov_ss(), CPUID, fetch(CODE)], (Story.DB_FAULT, AL | 2), (Story.DB_FAULT, AL | 2)),
        ([fetch(CODE, Mode.INTERRUPT_SHADOW)], NOTHING, (Story.DB_FAULT, AL | 2)),
        ([HELD, fetch(CODE), CPUID], TRAP, NOTHING),
        ([simple(EventKind.STI), fetch(CODE)], (Story.DB_FAULT, AL | 2), (Story.DB_FAULT, AL | 2)),
    ],
)
def test_a_code_breakpoint_in_the_shadow(
    events: list[Event], vmx: tuple[Story, int], svm: tuple[Story, int]
) -> None:
    """On VMX the shadow suppresses a code breakpoint; on SVM it hits, and what is held is lost."""
    for vendor, last in (("vmx", vmx), ("svm", svm)):
        assert taken(armed(READS_AND_CODE, DATA, CODE, vendor=vendor), *events)[-1] == last


@pytest.mark.parametrize("kind", [EventKind.READ, EventKind.CPUID, EventKind.MOV_SS])
def test_the_shadow_that_is_a_mode_suppresses_nothing_else(kind: EventKind) -> None:
    """The mode bit holds no data breakpoint and no step."""
    event = Event(kind, 2, TF | Mode.INTERRUPT_SHADOW, value=DATA)
    expected = {EventKind.READ: AL | BS | 1, EventKind.CPUID: AL | BS, EventKind.MOV_SS: 0}[kind]
    assert taken(armed(READS, DATA), event)[0][1] == expected
