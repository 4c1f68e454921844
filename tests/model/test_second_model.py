"""What the vectors do not cover of MOV DR, breakpoints, records and registers set from outside.

Each row is from the manual or a decision of the model's docstring.
"""

import pytest

from exitlab.events import EventKind, Mark, Mode

from .debug_registers import BD, DR6_AT_RESET
from .rows import armed, fetch, read, write
from .second_model import Event, Guest, Registers, Story, Told


@pytest.mark.parametrize(
    ("rtm", "bus_lock", "zero_reads"),
    [
        (False, False, 0xFFFF_0FF0),
        (True, False, 0xFFFE_0FF0),
        (False, True, 0xFFFF_07F0),
        (True, True, 0xFFFE_07F0),
    ],
)
def test_a_feature_makes_its_bit_of_dr6_writable(rtm: bool, bus_lock: bool, zero_reads: int) -> None:
    """Bits 16 and 11 of DR6 are fixed to one unless the guest has RTM or bus-lock detection."""
    guest = Guest(rtm=rtm, bus_lock=bus_lock)
    guest.take(write(6, 0))
    assert guest.take(read(6)) == Told(Story.READ, zero_reads)
    guest.take(write(6, 0xFFFF_FFFF))
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_EFFF)


@pytest.mark.parametrize(
    ("kind", "read_write", "hits"),
    [
        (EventKind.READ, 0b00, False),
        (EventKind.READ, 0b01, False),
        (EventKind.READ, 0b10, False),
        (EventKind.READ, 0b11, True),
        (EventKind.WRITE, 0b00, False),
        (EventKind.WRITE, 0b01, True),
        (EventKind.WRITE, 0b10, False),
        (EventKind.WRITE, 0b11, True),
        (EventKind.FETCH, 0b00, True),
        (EventKind.FETCH, 0b01, False),
        (EventKind.FETCH, 0b10, False),
        (EventKind.FETCH, 0b11, False),
    ],
)
def test_a_slot_breaks_on_the_accesses_of_its_type(kind: EventKind, read_write: int, hits: bool) -> None:
    """R/W 00 is execution, 01 writes, 11 reads and writes, 10 no memory access at all."""
    guest = armed(0x401 | read_write << 16, 0x7000)
    length = 0 if kind == EventKind.FETCH else 1
    assert (guest.take(Event(kind, length, value=0x7000)).story != Story.NOTHING) is hits


@pytest.mark.parametrize(
    ("length_bits", "slot", "address", "length", "hits"),
    [
        (0b00, 0x7001, 0x7000, 1, False),
        (0b00, 0x7001, 0x7000, 2, True),
        (0b01, 0x7001, 0x7000, 1, True),
        (0b01, 0x7001, 0x7002, 1, False),
        (0b11, 0x7007, 0x7003, 1, False),
        (0b11, 0x7007, 0x7004, 1, True),
        (0b11, 0x7007, 0x7000, 64, True),
        (0b10, 0x7007, 0x6FFF, 1, False),
        (0b10, 0x7007, 0x6FFF, 2, True),
        (0b10, 0x7007, 0x7008, 8, False),
        (0b00, 0x0000, 0xFFFF_FFFF_FFFF_FFFF, 2, True),
        (0b00, 0x0001, 0xFFFF_FFFF_FFFF_FFFF, 2, False),
        (0b10, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFF8, 1, True),
        (0b10, 0xFFFF_FFFF_FFFF_FFFF, 0x0000, 8, False),
    ],
)
def test_a_slot_watches_its_aligned_bytes(
    length_bits: int, slot: int, address: int, length: int, hits: bool
) -> None:
    """LEN gives 1, 2, 8 or 4 bytes, aligned down; any overlap hits, also around the address space."""
    guest = armed(0x401 | 0b01 << 16 | length_bits << 18, slot)
    assert (guest.take(Event(EventKind.WRITE, length, value=address)).story == Story.DB_TRAP) is hits


@pytest.mark.parametrize("length_bits", [0b01, 0b10, 0b11])
def test_an_instruction_breakpoint_needs_len_0(length_bits: int) -> None:
    """A slot for execution with another LEN never hits."""
    assert armed(0x401 | length_bits << 18, 0x1000).take(fetch(0x1000)) == Told()


def test_the_resume_flag_lets_one_fetch_pass() -> None:
    """RF suppresses instruction breakpoints."""
    assert armed(0x401, 0x1000).take(fetch(0x1000, Mode.RF)) == Told()


def test_nothing_is_matched_when_exceptions_are_recorded() -> None:
    """With recorded breakpoints neither fetches nor accesses hit."""
    guest = armed(0x3_0005, 0x1000, 0x1000, computed=False)
    assert guest.take(fetch(0x1000)) == Told()
    assert guest.take(Event(EventKind.WRITE, 1, value=0x1000)) == Told()


def test_a_disabled_match_is_undefined_until_dr6_is_written() -> None:
    """A matching slot that is not enabled may set its bit, if another slot hit."""
    guest = armed(0x401, 0x1000, 0x1000, 0x2000)
    assert guest.take(fetch(0x1000)) == Told(Story.DB_FAULT, 0x401_FFFF_0FF3, 0b10)
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FF3, 0b10)
    assert guest.take(read(7)) == Told(Story.READ, 0x401)
    guest.take(write(6, 0xFFFF_0FF3))
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FF3)


def test_a_disabled_match_alone_is_nothing() -> None:
    """Only an enabled slot raises an exception."""
    assert armed(0x400, 0x1000).take(fetch(0x1000)) == Told()


def test_a_later_debug_exception_defines_b0_to_b3_anew() -> None:
    """A general-detect fault clears B0 to B3, so none of them is undefined after it."""
    guest = armed(0x401, 0x1000, 0x1000)
    guest.take(fetch(0x1000))
    guest.take(write(7, 0x2401))
    assert guest.take(read(0)) == Told(Story.DB_FAULT, 0x401_FFFF_2FF0)


def test_a_breakpoint_keeps_the_sticky_bits_and_clears_gd() -> None:
    """BD, BS and BT stay over a breakpoint, and it clears GD."""
    guest = armed(0x400, 0x1000)
    guest.take(write(6, 0xE00E))
    guest.take(write(7, 0x2401))
    assert guest.take(fetch(0x1000)) == Told(Story.DB_FAULT, 0x401_FFFF_EFF1)


@pytest.mark.parametrize("register", [4, 5, 6, 7])
@pytest.mark.parametrize(
    ("has_de", "cpl", "gd", "high", "expected"),
    [
        (1, 3, 1, 1, Story.UD),
        (0, 3, 1, 1, Story.GP),
        (0, 0, 1, 1, Story.DB_FAULT),
        (0, 0, 0, 1, Story.GP),
        (0, 0, 0, 0, Story.NOTHING),
    ],
)
def test_the_checks_come_in_the_native_order(
    register: int, has_de: int, cpl: int, gd: int, high: int, expected: Story
) -> None:
    """#UD of CR4.DE, #GP of the CPL, #DB of GD, #GP of bits 63:32."""
    guest = armed(0x400 | gd << 13)
    guest.take(Event(EventKind.STATE, 0, value=has_de))
    value = 0x400 | high << 32
    if has_de and register > 5:
        expected = Story.GP
    assert guest.take(write(register, value, modes=cpl)).story == expected
    is_general_detect = expected == Story.DB_FAULT
    assert guest.registers().dr6 == DR6_AT_RESET | (BD if is_general_detect else 0)


def test_a_32_bit_operand_has_no_high_bits() -> None:
    """The operand is its low half, and a read shows the low half."""
    guest = armed(0x400, 0x1234_5678_9ABC_DEF0)
    assert guest.take(read(0, modes=Mode.OPERAND_32)) == Told(Story.READ, 0x9ABC_DEF0)
    assert guest.take(write(7, 0xFFFF_FFFF_0000_0402, modes=Mode.OPERAND_32)) == Told()
    assert guest.take(read(7)) == Told(Story.READ, 0x402)
    guest.take(write(0, 0x1_0000_0001, modes=Mode.OPERAND_32))
    assert guest.take(read(0)) == Told(Story.READ, 1)


def test_an_access_that_is_known_to_have_retired_is_done() -> None:
    """A retired MOV DR passes every check; GD stays, since nothing was raised."""
    guest = armed(0x2400)
    guest.take(Event(EventKind.STATE, 0, value=1))
    assert guest.take(write(4, 0x1_0000_4000, modes=3, marks=Mark.RETIRED)) == Told()
    assert guest.take(read(4, modes=3, marks=Mark.RETIRED)) == Told(Story.READ, 0xFFFF_4FF0)
    assert guest.registers().dr7 == 0x2400


def test_an_access_that_did_not_retire_is_not_done() -> None:
    """It shows nothing, whatever it would have been; and it did not fault."""
    guest = armed(0x2400)
    guest.take(read(0, modes=3))
    assert guest.take(read(0, marks=Mark.NOT_RETIRED)) == Told()
    assert guest.take(write(0, 5, marks=Mark.NOT_RETIRED)) == Told()
    assert guest.take(read(0, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    assert guest.registers() == Registers((0, 0, 0, 0), 0xFFFF_0FF0, 0x2400, 0)


def test_an_unknown_operand_leaves_the_register() -> None:
    """The checks that do not need the operand are made; then nothing is written that anybody could know."""
    guest = armed(0x401, 1 << 40)
    guest.take(write(0, 5, modes=Mode.OPERAND_32, marks=Mark.VALUE_UNKNOWN))
    guest.take(write(7, 1 << 63, marks=Mark.VALUE_UNKNOWN))
    assert guest.registers() == Registers((1 << 40, 0, 0, 0), 0xFFFF_0FF0, 0x401, 0)
    assert guest.take(write(0, 5, modes=3, marks=Mark.VALUE_UNKNOWN)).story == Story.GP


def test_conditions_look_at_the_last_unconditional_attempt() -> None:
    """Conditional events, interrupts and the host's hand do not change what IF_FAULT and IF_OK mean."""
    guest = armed(0x2400)
    assert guest.take(read(0, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    assert guest.take(read(0)).story == Story.DB_FAULT
    for kind in (EventKind.EXTERNAL_INTERRUPT, EventKind.SCHED_OUT, EventKind.SCHED_IN, EventKind.STAGE):
        guest.take(Event(kind))
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_2FF0)
    assert guest.take(write(6, 1, marks=Mark.IF_OK)) == Told(Story.NOT_TAKEN)
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_2FF0)
    guest.take(Event(EventKind.CPUID))
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    assert guest.take(read(6, marks=Mark.IF_OK)) == Told(Story.READ, 0xFFFF_2FF0)


def test_a_data_breakpoint_counts_as_an_exception() -> None:
    """IF_FAULT holds after a trap too."""
    guest = armed(0x1_0401, 0x7000)
    guest.take(Event(EventKind.WRITE, 1, value=0x7000))
    assert guest.take(read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_0FF1)


def test_a_recorded_debug_exception_brings_its_dr6() -> None:
    """B0 to B3 come from the payload, BD, BS and BT collect, and GD goes off."""
    guest = armed(0x2400, computed=False)
    guest.take(write(6, 0x4001, marks=Mark.RETIRED))
    event = Event(EventKind.EXCEPTION, selector=1, value=0xFFFF_8FF2)
    assert guest.take(event) == Told(Story.DB_FAULT, 0x400_FFFF_CFF2)


def test_a_recorded_debug_exception_without_dr6_leaves_its_causes_undefined() -> None:
    """DR6 keeps its value, and its cause bits are undefined until it is written."""
    guest = armed(0x2400, computed=False)
    event = Event(EventKind.EXCEPTION, selector=1, marks=Mark.VALUE_UNKNOWN)
    assert guest.take(event) == Told(Story.DB_FAULT, 0x400_FFFF_0FF0, 0xE00F)
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FF0, 0xE00F)
    guest.take(write(6, 0))
    assert guest.take(read(6)) == Told(Story.READ, 0xFFFF_0FF0)


@pytest.mark.parametrize(("vector", "story"), [(6, Story.UD), (13, Story.GP), (14, Story.NOTHING)])
def test_other_recorded_exceptions_change_no_register(vector: int, story: Story) -> None:
    """#UD and #GP show DR6 and DR7 as they are; of other vectors nothing shows."""
    guest = armed(0x2400, computed=False)
    value = 0x2400_FFFF_0FF0 if story else 0
    assert guest.take(Event(EventKind.EXCEPTION, selector=vector)) == Told(story, value)


def test_any_recorded_exception_counts_as_one() -> None:
    """IF_FAULT holds after a page fault, though nothing shows of it here."""
    guest = armed(0x400, computed=False)
    guest.take(Event(EventKind.EXCEPTION, selector=14))
    assert guest.take(read(7, marks=Mark.IF_FAULT)) == Told(Story.READ, 0x400)


def test_a_recorded_debug_exception_is_refused_where_breakpoints_are_computed() -> None:
    """Both at once would deliver it twice."""
    with pytest.raises(ValueError, match="recorded #DB"):
        armed(0x400).take(Event(EventKind.EXCEPTION, selector=1))


def test_registers_set_from_outside_are_made_canonical() -> None:
    """Fixed bits apply, high halves of DR6 and DR7 are dropped, and nothing stays undefined."""
    guest = armed(0x401, 0x1000, 0x1000)
    guest.take(fetch(0x1000))
    for slot, value in enumerate((1, 2, 3, 1 << 63, (1 << 63) + 2, 0xFFFF_FFFF_FFFF_FFFF)):
        guest.take(Event(EventKind.STAGE, slot, value=value))
    guest.take(Event(EventKind.SET_DEBUGREGS))
    assert guest.registers() == Registers((1, 2, 3, 1 << 63), 0xFFFF_0FF2, 0xFFFF_2FFF, 0)


@pytest.mark.parametrize("user", [EventKind.HOST_BREAKPOINTS, EventKind.SET_DEBUGREGS])
def test_staged_operands_are_used_once(user: EventKind) -> None:
    """A slot that was not staged since the last host control counts as zero."""
    guest = armed(0x400)
    for event in (Event(EventKind.STAGE, 1, value=5), Event(user), Event(EventKind.STAGE, 0, value=7)):
        guest.take(event)
    guest.take(Event(EventKind.SET_DEBUGREGS))
    assert guest.registers() == Registers((7, 0, 0, 0), 0xFFFF_0FF0, 0x400, 0)


@pytest.mark.parametrize("kind", [EventKind.RESET, EventKind.INIT])
def test_a_reset_leaves_the_values_of_the_manual(kind: EventKind) -> None:
    """DR0 to DR3 are zero, DR6 and DR7 as after power-up, and CR4.DE is off."""
    guest = armed(0x402, 1, 2, 3, 4)
    guest.take(Event(EventKind.MOV_TO_CR, 4, value=0x8))
    guest.take(Event(kind))
    assert guest.registers() == Registers((0, 0, 0, 0), 0xFFFF_0FF0, 0x400, 0)
    assert guest.take(read(4)) == Told(Story.READ, 0xFFFF_0FF0)


def test_cr4_de_follows_known_values_only() -> None:
    """A MOV to CR4 of an unknown value changes nothing here, and other registers never do."""
    guest = Guest()
    guest.take(Event(EventKind.MOV_TO_CR, 4, value=0x8))
    guest.take(Event(EventKind.MOV_TO_CR, 4, marks=Mark.VALUE_UNKNOWN))
    guest.take(Event(EventKind.MOV_TO_CR, 3))
    assert guest.take(read(5)).story == Story.UD
    guest.take(Event(EventKind.MOV_TO_CR, 4))
    assert guest.take(read(5)) == Told(Story.READ, 0x400)
