"""The second model agrees with what real processors and emulators were measured to do."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlab.events import COLUMN_DTYPES, Column, EventColumns, EventKind, Mark, Mode

from .second_model import (
    BD,
    DR6_AT_RESET,
    GENERAL_DETECT,
    MOV_DR,
    Event,
    Guest,
    Registers,
    SecondModel,
    Story,
    Told,
    events_of,
)
from .streams import Mix, mixes, random_stream, streams

VECTORS: Final = Path(__file__).parents[2] / "guest_svc" / "vectors" / "debugreg.json"
SIMPLE_STEPS: Final = {"mov_to_dr", "mov_from_dr", "nop", "store", "load", "cpuid", "out", "ud2"}

# How a step is laid out: its instructions and their bytes. The measuring programs loaded a register
# before (10 bytes) and stored one after; a vector's DR values show the addresses that follow from it.
PARTS: Final = {
    "mov_to_dr": (("pre", 10), ("insn", 3)),
    "mov_from_dr": (("pre", 10), ("insn", 3), ("post", 10)),
    "cpuid": (("pre", 10), ("insn", 2)),
}
CODE_AT: Final = {"long": 0x1_0000, "real": 0xD000}
DATA_AT: Final = 0x2_0000
ERROR_CODE: Final = {1: None, 6: None, 13: 0}
VECTOR_OF: Final = {Story.DB_FAULT: 1, Story.DB_TRAP: 1, Story.UD: 6, Story.GP: 13}


def _vectors() -> list[dict[str, Any]]:
    """Return the vectors that hold only simple steps."""
    if not VECTORS.exists():
        return []
    vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    return [vector for vector in vectors if {step["op"] for step in vector["steps"]} <= SIMPLE_STEPS]


class _Driver:
    """A program and its exception handler, run on one guest instruction by instruction."""

    def __init__(self, vector: dict[str, Any]) -> None:
        """Lay the program out and set the registers from outside."""
        self.steps: list[dict[str, Any]] = vector["steps"]
        self.retries_bd = vector.get("on_bd", "skip") == "retry"
        self.modes = vector["cpl"] | (Mode.OPERAND_32 if vector["mode"] == "real" else 0)
        self.guest = Guest(rtm=bool(vector.get("rtm")), bus_lock=False, computed=True)
        self.at: dict[tuple[int, str], int] = {}
        self.places: list[tuple[int, str]] = []
        self._lay_out(CODE_AT[vector["mode"]])
        self.reads: dict[str, int | None] = {}
        self.exceptions: list[list[Any]] = []
        self._initialize(vector.get("init", {}), vector["cr4_de"])

    def _lay_out(self, address: int) -> None:
        """Give every instruction an address from ``address`` on."""
        for index, step in enumerate(self.steps):
            for where, size in PARTS.get(step["op"], (("insn", 1),)):
                self.places.append((index, where))
                self.at[index, where] = address
                address += size
        self.places.append((len(self.steps), "end"))

    def _number(self, value: Any) -> int:
        """Return the number that ``value`` of a vector stands for."""
        if isinstance(value, dict):
            return self.at[value["step"], "insn"] if "step" in value else DATA_AT + int(value["data"])
        return value if isinstance(value, int) else int(value, 16)

    def _initialize(self, init: dict[str, Any], has_de: int) -> None:
        """Set the registers as the host does."""
        slots = [*init.get("db", [0, 0, 0, 0]), init.get("dr6", DR6_AT_RESET), init.get("dr7", 0x400)]
        for slot, value in enumerate(slots):
            self.guest.take(Event(EventKind.STAGE, slot, value=self._number(value)))
        self.guest.take(Event(EventKind.SET_DEBUGREGS))
        self.guest.take(Event(EventKind.STATE, 0, value=has_de))

    def _event(self, step: dict[str, Any]) -> Event:
        """Return the event of the instruction that ``step`` is about."""
        data = DATA_AT + step.get("off", 0)
        match step["op"]:
            case "mov_to_dr":
                return Event(EventKind.MOV_TO_DR, step["n"], self.modes, value=self._number(step["v"]))
            case "mov_from_dr":
                return Event(EventKind.MOV_FROM_DR, step["n"], self.modes)
            case "store":
                return Event(EventKind.WRITE, step.get("size", 4), self.modes, value=data)
            case "load":
                return Event(EventKind.READ, step.get("size", 4), self.modes, value=data)
            case "ud2":
                return Event(EventKind.EXCEPTION, modes=self.modes, selector=6)
            case "cpuid":
                return Event(EventKind.CPUID, modes=self.modes)
            case "out":
                return Event(EventKind.OUT, 1, self.modes)
        return Event(EventKind.PAUSE, modes=self.modes)  # a nop: nothing that anybody sees

    def _note(self, told: Told, place: tuple[int, str]) -> None:
        """Write down what the exception handler finds."""
        vector = VECTOR_OF[Story(told.story)]
        dr6, dr7 = hex(told.value & 0xFFFF_FFFF), hex(told.value >> 32)
        self.exceptions.append(["exc", vector, ERROR_CODE[vector], list(place), dr6, dr7])

    def _fetch(self, place: tuple[int, str]) -> None:
        """Fetch; the handler of a code breakpoint resumes with RF set."""
        fetch = Event(EventKind.FETCH, modes=self.modes, value=self.at[place])
        told = self.guest.take(fetch)
        if told.story:
            self._note(told, place)
            assert self.guest.take(fetch._replace(modes=self.modes | Mode.RF)) == Told()

    def _execute(self, number: int) -> int:
        """Execute the instruction at place ``number``, and return the number of the next place."""
        index, where = place = self.places[number]
        self._fetch(place)
        if where != "insn":
            return number + 1
        told = self.guest.take(self._event(self.steps[index]))
        if self.steps[index]["op"] == "mov_from_dr":
            self.reads[str(index)] = told.value if told.story == Story.READ else None
        if told.story in (Story.NOTHING, Story.READ):
            return number + 1
        is_trap = told.story == Story.DB_TRAP
        self._note(told, self.places[number + 1] if is_trap else place)
        if is_trap or (self.retries_bd and told.story == Story.DB_FAULT):
            return number + is_trap
        return next(later for later, (step, _) in enumerate(self.places) if step > index)

    def run(self) -> None:
        """Run the program to its end."""
        number = 0
        while number < len(self.places) - 1:
            number = self._execute(number)

    def outcome(self) -> dict[str, Any]:
        """Return what happened in the vectors' form."""
        registers = self.guest.registers()
        return {
            "db": [hex(address) for address in registers.db],
            "dr6": hex(registers.dr6),
            "dr7": hex(registers.dr7),
            "ev": self.exceptions,
            "reads": {index: None if value is None else hex(value) for index, value in self.reads.items()},
        }


def test_the_vectors_are_there() -> None:
    """Without its vector file the next test would pass on nothing."""
    assert len(_vectors()) == 120


@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: str(vector["id"]))
def test_the_model_does_what_at_least_two_implementations_do(vector: dict[str, Any]) -> None:
    """A measured sequence gives the measured reads, exceptions and final registers."""
    driver = _Driver(vector)
    driver.run()
    assert driver.outcome() == vector["expect"]


# What the vectors do not cover, each row from the manual or a decision of the model's docstring.


def _write(register: int, value: int, **columns: int) -> Event:
    """Return a MOV to a debug register."""
    return Event(EventKind.MOV_TO_DR, register, value=value, **columns)


def _read(register: int, **columns: int) -> Event:
    """Return a MOV from a debug register."""
    return Event(EventKind.MOV_FROM_DR, register, **columns)


def _fetch(address: int, modes: int = 0) -> Event:
    """Return a fetch."""
    return Event(EventKind.FETCH, modes=modes, value=address)


def _armed(dr7: int, *addresses: int, computed: bool = True) -> Guest:
    """Return a guest that has written ``addresses`` and ``dr7``."""
    guest = Guest(rtm=False, bus_lock=False, computed=computed)
    for register, address in enumerate(addresses):
        guest.take(_write(register, address))
    guest.take(_write(7, dr7))
    return guest


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
    guest = Guest(rtm=rtm, bus_lock=bus_lock, computed=True)
    guest.take(_write(6, 0))
    assert guest.take(_read(6)) == Told(Story.READ, zero_reads)
    guest.take(_write(6, 0xFFFF_FFFF))
    assert guest.take(_read(6)) == Told(Story.READ, 0xFFFF_EFFF)


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
    guest = _armed(0x401 | read_write << 16, 0x7000)
    assert (guest.take(Event(kind, 1, value=0x7000)).story != Story.NOTHING) is hits


@pytest.mark.parametrize(
    ("length_bits", "armed", "address", "length", "hits"),
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
    length_bits: int, armed: int, address: int, length: int, hits: bool
) -> None:
    """LEN gives 1, 2, 8 or 4 bytes, aligned down; any overlap hits, also around the address space."""
    guest = _armed(0x401 | 0b01 << 16 | length_bits << 18, armed)
    assert (guest.take(Event(EventKind.WRITE, length, value=address)).story == Story.DB_TRAP) is hits


@pytest.mark.parametrize("length_bits", [0b01, 0b10, 0b11])
def test_an_instruction_breakpoint_needs_len_0(length_bits: int) -> None:
    """A slot for execution with another LEN never hits."""
    assert _armed(0x401 | length_bits << 18, 0x1000).take(_fetch(0x1000)) == Told()


def test_the_resume_flag_lets_one_fetch_pass() -> None:
    """RF suppresses instruction breakpoints."""
    assert _armed(0x401, 0x1000).take(_fetch(0x1000, Mode.RF)) == Told()


def test_nothing_is_matched_when_exceptions_are_recorded() -> None:
    """With recorded breakpoints neither fetches nor accesses hit."""
    guest = _armed(0x3_0005, 0x1000, 0x1000, computed=False)
    assert guest.take(_fetch(0x1000)) == Told()
    assert guest.take(Event(EventKind.WRITE, 1, value=0x1000)) == Told()


def test_a_disabled_match_is_undefined_until_dr6_is_written() -> None:
    """A matching slot that is not enabled may set its bit, if another slot hit."""
    guest = _armed(0x401, 0x1000, 0x1000, 0x2000)
    assert guest.take(_fetch(0x1000)) == Told(Story.DB_FAULT, 0x401_FFFF_0FF3, 0b10)
    assert guest.take(_read(6)) == Told(Story.READ, 0xFFFF_0FF3, 0b10)
    assert guest.take(_read(7)) == Told(Story.READ, 0x401)
    guest.take(_write(6, 0xFFFF_0FF3))
    assert guest.take(_read(6)) == Told(Story.READ, 0xFFFF_0FF3)


def test_a_disabled_match_alone_is_nothing() -> None:
    """Only an enabled slot raises an exception."""
    assert _armed(0x400, 0x1000).take(_fetch(0x1000)) == Told()


def test_a_later_debug_exception_defines_b0_to_b3_anew() -> None:
    """A general-detect fault clears B0 to B3, so none of them is undefined after it."""
    guest = _armed(0x401, 0x1000, 0x1000)
    guest.take(_fetch(0x1000))
    guest.take(_write(7, 0x2401))
    assert guest.take(_read(0)) == Told(Story.DB_FAULT, 0x401_FFFF_2FF0)


def test_a_breakpoint_keeps_the_sticky_bits_and_clears_gd() -> None:
    """BD, BS and BT stay over a breakpoint, and it clears GD."""
    guest = _armed(0x400, 0x1000)
    guest.take(_write(6, 0xE00E))
    guest.take(_write(7, 0x2401))
    assert guest.take(_fetch(0x1000)) == Told(Story.DB_FAULT, 0x401_FFFF_EFF1)


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
    guest = _armed(0x400 | gd << 13)
    guest.take(Event(EventKind.STATE, 0, value=has_de))
    value = 0x400 | high << 32
    if has_de and register > 5:
        expected = Story.GP
    assert guest.take(_write(register, value, modes=cpl)).story == expected
    is_general_detect = expected == Story.DB_FAULT
    assert guest.registers().dr6 == DR6_AT_RESET | (BD if is_general_detect else 0)


def test_a_32_bit_operand_has_no_high_bits() -> None:
    """The operand is its low half, and a read shows the low half."""
    guest = _armed(0x400, 0x1234_5678_9ABC_DEF0)
    assert guest.take(_read(0, modes=Mode.OPERAND_32)) == Told(Story.READ, 0x9ABC_DEF0)
    assert guest.take(_write(7, 0xFFFF_FFFF_0000_0402, modes=Mode.OPERAND_32)) == Told()
    assert guest.take(_read(7)) == Told(Story.READ, 0x402)
    guest.take(_write(0, 0x1_0000_0001, modes=Mode.OPERAND_32))
    assert guest.take(_read(0)) == Told(Story.READ, 1)


def test_an_access_that_is_known_to_have_retired_is_done() -> None:
    """A retired MOV DR passes every check; GD stays, since nothing was raised."""
    guest = _armed(0x2400)
    guest.take(Event(EventKind.STATE, 0, value=1))
    assert guest.take(_write(4, 0x1_0000_4000, modes=3, marks=Mark.RETIRED)) == Told()
    assert guest.take(_read(4, modes=3, marks=Mark.RETIRED)) == Told(Story.READ, 0xFFFF_4FF0)
    assert guest.registers().dr7 == 0x2400


def test_conditions_look_at_the_last_unconditional_attempt() -> None:
    """Conditional events, interrupts and the host's hand do not change what IF_FAULT and IF_OK mean."""
    guest = _armed(0x2400)
    assert guest.take(_read(0, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    assert guest.take(_read(0)).story == Story.DB_FAULT
    for kind in (EventKind.EXTERNAL_INTERRUPT, EventKind.SCHED_OUT, EventKind.SCHED_IN, EventKind.STAGE):
        guest.take(Event(kind))
    assert guest.take(_read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_2FF0)
    assert guest.take(_write(6, 1, marks=Mark.IF_OK)) == Told(Story.NOT_TAKEN)
    assert guest.take(_read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_2FF0)
    guest.take(Event(EventKind.CPUID))
    assert guest.take(_read(6, marks=Mark.IF_FAULT)) == Told(Story.NOT_TAKEN)
    assert guest.take(_read(6, marks=Mark.IF_OK)) == Told(Story.READ, 0xFFFF_2FF0)


def test_a_data_breakpoint_counts_as_an_exception() -> None:
    """IF_FAULT holds after a trap too."""
    guest = _armed(0x1_0401, 0x7000)
    guest.take(Event(EventKind.WRITE, 1, value=0x7000))
    assert guest.take(_read(6, marks=Mark.IF_FAULT)) == Told(Story.READ, 0xFFFF_0FF1)


def test_a_recorded_debug_exception_brings_its_dr6() -> None:
    """B0 to B3 come from the payload, BD, BS and BT collect, and GD goes off."""
    guest = _armed(0x2400, computed=False)
    guest.take(_write(6, 0x4001, marks=Mark.RETIRED))
    event = Event(EventKind.EXCEPTION, selector=1, value=0xFFFF_8FF2)
    assert guest.take(event) == Told(Story.DB_FAULT, 0x400_FFFF_CFF2)


def test_a_recorded_debug_exception_without_dr6_leaves_its_causes_undefined() -> None:
    """DR6 keeps its value, and its cause bits are undefined until it is written."""
    guest = _armed(0x2400, computed=False)
    event = Event(EventKind.EXCEPTION, selector=1, marks=Mark.VALUE_UNKNOWN)
    assert guest.take(event) == Told(Story.DB_FAULT, 0x400_FFFF_0FF0, 0xE00F)
    assert guest.take(_read(6)) == Told(Story.READ, 0xFFFF_0FF0, 0xE00F)
    guest.take(_write(6, 0))
    assert guest.take(_read(6)) == Told(Story.READ, 0xFFFF_0FF0)


@pytest.mark.parametrize(("vector", "story"), [(6, Story.UD), (13, Story.GP), (14, Story.NOTHING)])
def test_other_recorded_exceptions_change_no_register(vector: int, story: Story) -> None:
    """#UD and #GP show DR6 and DR7 as they are; of other vectors nothing shows."""
    guest = _armed(0x2400, computed=False)
    value = 0x2400_FFFF_0FF0 if story else 0
    assert guest.take(Event(EventKind.EXCEPTION, selector=vector)) == Told(story, value)


def test_any_recorded_exception_counts_as_one() -> None:
    """IF_FAULT holds after a page fault, though nothing shows of it here."""
    guest = _armed(0x400, computed=False)
    guest.take(Event(EventKind.EXCEPTION, selector=14))
    assert guest.take(_read(7, marks=Mark.IF_FAULT)) == Told(Story.READ, 0x400)


def test_a_recorded_debug_exception_is_refused_where_breakpoints_are_computed() -> None:
    """Both at once would deliver it twice."""
    with pytest.raises(ValueError, match="recorded #DB"):
        _armed(0x400).take(Event(EventKind.EXCEPTION, selector=1))


def test_registers_set_from_outside_are_made_canonical() -> None:
    """Fixed bits apply, high halves of DR6 and DR7 are dropped, and nothing stays undefined."""
    guest = _armed(0x401, 0x1000, 0x1000)
    guest.take(_fetch(0x1000))
    for slot, value in enumerate((1, 2, 3, 1 << 63, (1 << 63) + 2, 0xFFFF_FFFF_FFFF_FFFF)):
        guest.take(Event(EventKind.STAGE, slot, value=value))
    guest.take(Event(EventKind.SET_DEBUGREGS))
    assert guest.registers() == Registers((1, 2, 3, 1 << 63), 0xFFFF_0FF2, 0xFFFF_2FFF, 0)


@pytest.mark.parametrize("user", [EventKind.HOST_BREAKPOINTS, EventKind.SET_DEBUGREGS])
def test_staged_operands_are_used_once(user: EventKind) -> None:
    """A slot that was not staged since the last host control counts as zero."""
    guest = _armed(0x400)
    for event in (Event(EventKind.STAGE, 1, value=5), Event(user), Event(EventKind.STAGE, 0, value=7)):
        guest.take(event)
    guest.take(Event(EventKind.SET_DEBUGREGS))
    assert guest.registers() == Registers((7, 0, 0, 0), 0xFFFF_0FF0, 0x400, 0)


@pytest.mark.parametrize("kind", [EventKind.RESET, EventKind.INIT])
def test_a_reset_leaves_the_values_of_the_manual(kind: EventKind) -> None:
    """DR0 to DR3 are zero, DR6 and DR7 as after power-up, and CR4.DE is off."""
    guest = _armed(0x402, 1, 2, 3, 4)
    guest.take(Event(EventKind.MOV_TO_CR, 4, value=0x8))
    guest.take(Event(kind))
    assert guest.registers() == Registers((0, 0, 0, 0), 0xFFFF_0FF0, 0x400, 0)
    assert guest.take(_read(4)) == Told(Story.READ, 0xFFFF_0FF0)


def test_cr4_de_follows_known_values_only() -> None:
    """A MOV to CR4 of an unknown value changes nothing here, and other registers never do."""
    guest = Guest(rtm=False, bus_lock=False, computed=True)
    guest.take(Event(EventKind.MOV_TO_CR, 4, value=0x8))
    guest.take(Event(EventKind.MOV_TO_CR, 4, marks=Mark.VALUE_UNKNOWN))
    guest.take(Event(EventKind.MOV_TO_CR, 3))
    assert guest.take(_read(5)).story == Story.UD
    guest.take(Event(EventKind.MOV_TO_CR, 4))
    assert guest.take(_read(5)) == Told(Story.READ, 0x400)


# The streams.

RECORDED: Final = Mix(computed=False)
STORIES: Final = frozenset(Story)


def _tell(columns: EventColumns, mix: Mix) -> list[Told]:
    """Return the second model's story of a stream."""
    return SecondModel(mix.vcpus, computed=mix.computed).tell(events_of(columns))


def _count(mix: Mix) -> tuple[Counter[int], Counter[int], int]:
    """Return how often kinds, stories and undefined bits occur over 200 seeds."""
    kinds: Counter[int] = Counter()
    stories: Counter[int] = Counter()
    undefined = 0
    for seed in range(200):
        columns = random_stream(seed, 200, mix)
        told = _tell(columns, mix)
        kinds.update(columns.kinds.tolist())
        stories.update(each.story for each in told)
        undefined += sum(each.undefined_dr6 != 0 for each in told)
    return kinds, stories, undefined


@pytest.mark.parametrize("mix", [Mix(), RECORDED], ids=["computed", "recorded"])
def test_every_kind_and_story_occurs_over_200_seeds(mix: Mix) -> None:
    """A mix makes just the kinds that it names, and every story that they can tell."""
    kinds, stories, undefined = _count(mix)
    assert set(kinds) == mix.kinds
    assert set(stories) == (STORIES if mix.computed else STORIES - {Story.DB_TRAP})
    assert min(kinds.values()) >= 50
    assert min(stories.values()) >= 100
    assert undefined >= 100


def _slot_types_that_hit(mix: Mix) -> set[tuple[int, int, int]]:
    """Return (R/W, LEN, event kind) of enabled slots that hit over 60 seeds."""
    types = set()
    for seed in range(60):
        model = SecondModel(mix.vcpus)
        for event in events_of(random_stream(seed, 400, mix)):
            dr7 = model.registers(event.vcpu).dr7
            told = model.take(event)
            if told.story in (Story.DB_FAULT, Story.DB_TRAP) and event.kind not in MOV_DR:
                hits = [slot for slot in range(4) if told.value >> slot & 1 and dr7 >> (2 * slot) & 3]
                fields = [dr7 >> (16 + 4 * slot) for slot in hits]
                types |= {(bits & 3, bits >> 2 & 3, event.kind) for bits in fields}
    return types


def test_every_type_and_length_of_breakpoint_hits() -> None:
    """Over 60 seeds execution, writes and reads hit with every LEN that they can have."""
    data = {(0b01, length, EventKind.WRITE) for length in range(4)}
    data |= {(0b11, length, kind) for length in range(4) for kind in (EventKind.READ, EventKind.WRITE)}
    assert _slot_types_that_hit(Mix()) == data | {(0b00, 0b00, EventKind.FETCH)}


def test_the_same_seed_gives_the_same_stream() -> None:
    """A stream is its seed; another seed is another stream."""
    first, again, other = random_stream(7, 300), random_stream(7, 300), random_stream(8, 300)
    assert list(events_of(first)) == list(events_of(again))
    assert list(events_of(first)) != list(events_of(other))


@given(st.data(), st.sampled_from([Mix(), RECORDED, Mix(partial_stage=True, kicks=False)]))
@settings(max_examples=60, deadline=None)
def test_a_stream_keeps_to_its_mix(data: st.DataObject, base: Mix) -> None:
    """Columns are of one length and their own types, and only the mix's kinds and CPUs occur."""
    mix = data.draw(mixes(base))
    columns = data.draw(streams(mix))
    for column in Column:
        array = columns.column(column)
        assert array is not None
        assert (len(array), array.dtype) == (len(columns), COLUMN_DTYPES[column])
    assert {EventKind(kind) for kind in columns.kinds.tolist()} <= mix.kinds
    assert _cpus_in_use(columns, mix) <= set(range(mix.physical_cpus))


@given(streams())
@settings(max_examples=60, deadline=None)
def test_registers_keep_their_fixed_bits(columns: EventColumns) -> None:
    """DR6 and DR7 read their fixed bits at all times, and no #DB leaves GD set."""
    model = SecondModel(Mix().vcpus)
    for event in events_of(columns):
        told = model.take(event)
        registers = model.registers(event.vcpu)
        assert registers.dr6 & ~0xE00F == DR6_AT_RESET
        assert registers.dr7 & ~0xFFFF_2BFF == 0x400
        assert told.story not in (Story.DB_FAULT, Story.DB_TRAP) or not registers.dr7 & GENERAL_DETECT


@pytest.mark.parametrize("mix", [Mix(), RECORDED], ids=["computed", "recorded"])
def test_vcpus_and_the_host_do_not_show_in_a_vcpus_story(mix: Mix) -> None:
    """A vCPU's story is the same when other vCPUs, scheduling and host breakpoints are taken out."""
    mix = replace(mix, outside=False)
    unseen = {EventKind.SCHED_IN, EventKind.SCHED_OUT, EventKind.EXTERNAL_INTERRUPT, EventKind.STAGE}
    unseen |= {EventKind.HOST_BREAKPOINTS}
    for seed in range(20):
        events = list(events_of(random_stream(seed, 200, mix)))
        told = SecondModel(mix.vcpus, computed=mix.computed).tell(events)
        for vcpu in range(mix.vcpus):
            own = [at for at, event in enumerate(events) if event.vcpu == vcpu and event.kind not in unseen]
            alone = SecondModel(mix.vcpus, computed=mix.computed).tell(events[at] for at in own)
            assert alone == [told[at] for at in own]


def _cpus_in_use(columns: EventColumns, mix: Mix) -> set[int]:
    """Return the physical CPUs that guests ran on, failing where one runs that is scheduled out."""
    where: dict[int, int | None] = dict(enumerate(mix.initial_physical_cpus))
    used = set()
    for event in events_of(columns):
        if event.kind == EventKind.SCHED_IN:
            where[event.vcpu] = event.selector
        elif event.kind == EventKind.SCHED_OUT:
            where[event.vcpu] = None
        elif event.kind <= EventKind.STI:
            cpu = where[event.vcpu]
            assert cpu is not None
            used.add(cpu)
    return used


@pytest.mark.parametrize("seed", range(10))
def test_a_guest_runs_only_where_it_was_put(seed: int) -> None:
    """No guest event follows SCHED_OUT without SCHED_IN, and CPUs are those of the mix."""
    for mix in (Mix(), Mix(kicks=False), Mix(scheduling=False), Mix(scheduling=False, kicks=False), RECORDED):
        assert _cpus_in_use(random_stream(seed, 400, mix), mix) <= set(range(mix.physical_cpus))


def test_recorded_reads_carry_the_value_mostly() -> None:
    """Of the reads that are marked expected and happen, most carry what the model reads, some do not."""
    right = wrong = 0
    for seed in range(20):
        columns = random_stream(seed, 200, RECORDED)
        for event, told in zip(events_of(columns), _tell(columns, RECORDED), strict=True):
            if event.marks & Mark.VALUE_EXPECTED and told.story == Story.READ:
                right += event.value == told.value
                wrong += event.value != told.value
    assert right > 4 * wrong > 0


def test_a_group_that_is_off_leaves_no_trace() -> None:
    """Marks and modes of groups that are left out do not occur."""
    mix = Mix(handlers=False, retired=False, class_override=False, debug_extensions=False)
    mix = replace(mix, user_mode=False, operand_32=False, resume_flag=False)
    for seed in range(10):
        events = events_of(random_stream(seed, 200, mix))
        assert not any(event.marks or event.modes for event in events)
