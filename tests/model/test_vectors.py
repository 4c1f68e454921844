"""The second model does what real processors and emulators were measured to do."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from exitlab.events import FETCH_END, EventKind, Mode

from .debug_registers import DR6_AT_RESET
from .rows import staged
from .second_model import VENDORS, Event, Guest, Story, Told

VECTORS: Final = Path(__file__).parents[2] / "guest_svc" / "vectors" / "debugreg.json"

# How a step is laid out: its instructions and their bytes. The measuring programs loaded a register
# before (10 bytes) and stored one after; a vector's DR values show the addresses that follow from it.
PARTS: Final = {
    "mov_to_dr": (("pre", 10), ("insn", 3)),
    "mov_from_dr": (("pre", 10), ("insn", 3), ("post", 10)),
    "cpuid": (("pre", 10), ("insn", 2)),
    "mov_ss": (("pre", 10), ("insn", 2)),
    "popf_clr": (("pre", 10), ("insn", 1)),
}
# What is neither a MOV DR nor an access.
KINDS: Final = {
    "nop": EventKind.PAUSE,  # nothing that anybody sees
    "cpuid": EventKind.CPUID,
    "ud2": EventKind.EXCEPTION,
    "int1": EventKind.INT1,
    "int3": EventKind.INT3,
    "mov_ss": EventKind.MOV_SS,
    "popf_tf": EventKind.POPF,
    "popf_clr": EventKind.POPF,
}
CODE_AT: Final = {"long": 0x1_0000, "real": 0xD000}
DATA_AT: Final = 0x2_0000
ERROR_CODE: Final = {1: None, 3: None, 6: None, 13: 0}
VECTOR_OF: Final = {Story.DB_FAULT: 1, Story.DB_TRAP: 1, Story.UD: 6, Story.GP: 13, Story.BP: 3}
TRAPS: Final = (Story.DB_TRAP, Story.BP)


def _vectors() -> list[dict[str, Any]]:
    """Return the vectors."""
    vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    return vectors


class _Driver:
    """A program and its exception handler, run on one guest instruction by instruction."""

    def __init__(self, vector: dict[str, Any], vendor: str) -> None:
        """Lay the program out and set the registers from outside."""
        self.steps: list[dict[str, Any]] = vector["steps"]
        self.retries_bd = vector.get("on_bd", "skip") == "retry"
        self.modes = vector["cpl"] | (Mode.OPERAND_32 if vector["mode"] == "real" else 0)
        self.trap_flag = 0
        self.guest = Guest(vendor, rtm=bool(vector.get("rtm")))
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
        values = {slot: self._number(value) for slot, value in enumerate(slots)}
        for event in staged(values, Event(EventKind.SET_DEBUGREGS)):
            self.guest.take(event)
        self.guest.take(Event(EventKind.STATE, 0, value=has_de))

    def _event(self, step: dict[str, Any]) -> Event:
        """Return the event of the instruction that ``step`` is about."""
        modes = self.modes | self.trap_flag
        data = DATA_AT + step.get("off", 0)
        match step["op"]:
            case "mov_to_dr":
                return Event(EventKind.MOV_TO_DR, step["n"], modes, value=self._number(step["v"]))
            case "mov_from_dr":
                return Event(EventKind.MOV_FROM_DR, step["n"], self.modes)
            case "store":
                return Event(EventKind.WRITE, step.get("size", 4), modes, value=data)
            case "load":
                return Event(EventKind.READ, step.get("size", 4), modes, value=data)
            case "out":
                return Event(EventKind.OUT, 1, modes)
        selector = 6 if step["op"] == "ud2" else 0
        return Event(KINDS[step["op"]], modes=modes, selector=selector)

    def _note(self, told: Told, place: tuple[int, str]) -> None:
        """Write down what the exception handler finds."""
        vector = VECTOR_OF[Story(told.story)]
        dr6, dr7 = hex(told.value & 0xFFFF_FFFF), hex(told.value >> 32)
        self.exceptions.append(["exc", vector, ERROR_CODE[vector], list(place), dr6, dr7])

    def _fetch(self, number: int) -> None:
        """Fetch, and with that execute what has no event; a code breakpoint is resumed with RF set."""
        place = self.places[number]
        modes = self.modes | (0 if place[1] == "insn" else self.trap_flag)
        fetch = Event(EventKind.FETCH, modes=modes, value=self.at[place])
        told = self.guest.take(fetch)
        if told.story == Story.DB_FAULT:
            self._note(told, place)
            told = self.guest.take(fetch._replace(modes=modes | Mode.RF))
        if told.story:
            assert told.story == Story.DB_TRAP
            self._note(told, self.places[number + 1])

    def _take(self, step: dict[str, Any]) -> Told:
        """Execute an instruction that was fetched; POPF changes how the next ones run."""
        told = self.guest.take(self._event(step))
        if step["op"] in ("popf_tf", "popf_clr"):
            self.trap_flag = int(Mode.TF) if step["op"] == "popf_tf" else 0
        return told

    def _execute(self, number: int) -> int:
        """Execute the instruction at place ``number``, and return the number of the next place."""
        index, where = place = self.places[number]
        self._fetch(number)
        if where != "insn":
            return number + 1
        step = self.steps[index]
        told = self._take(step)
        if step["op"] == "mov_from_dr":
            self.reads[str(index)] = told.value if told.story == Story.READ else None
        if told.story == Story.READ and self.trap_flag:
            told = self.guest.take(Event(EventKind.FETCH, FETCH_END, self.modes | self.trap_flag))
        if told.story in (Story.NOTHING, Story.READ):
            return number + 1
        is_trap = told.story in TRAPS
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
    """Fewer vectors than were measured would hold the model to less."""
    assert len(_vectors()) == 131


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: str(vector["id"]))
def test_the_model_does_what_at_least_two_implementations_do(vector: dict[str, Any], vendor: str) -> None:
    """A measured sequence gives the measured reads, exceptions and final registers, on both vendors."""
    driver = _Driver(vector, vendor)
    driver.run()
    assert driver.outcome() == vector["expect"]
