"""Where the instructions of a vector lie, and where its data does.

A step is not one instruction. ``mov_from_dr`` is a set-up instruction, the MOV and a store of its
result; ``mov_to_dr``, ``cpuid``, ``mov_ss``, ``popf_tf`` and ``popf_clr`` are a set-up instruction and the
instruction itself; most others are one instruction. What the host does has no address.

The lengths of the first five operations are those of the given vectors; all others are assumed.
"""

from dataclasses import dataclass
from typing import Final

from guest_svc.vectors.model import INSTRUCTIONS, Operand, Step, Symbol, Vector

_CODE_BASE: Final = 0x10000
_REAL_CODE_BASE: Final = 0xD000
_DATA_BASE: Final = 0x20000
_REAL_DATA_BASE: Final = 0xF000
ADDRESSES: Final = 2**64  # how many there are
HANDLER: Final = 0x30000  # a handler's first instruction, out of the way of code and data
# Bytes of the set-up instruction, the instruction and the store of the result; 0 where there is none.
_BYTES: Final = {
    "mov_to_dr": (10, 3, 0),  # MOV r64, imm64; MOV DRn, r64
    "mov_from_dr": (3, 3, 4),
    "cpuid": (5, 2, 0),
    "ud2": (0, 2, 0),
    "out": (0, 2, 0),
    "store": (0, 7, 0),
    "load": (0, 7, 0),
    "popf_tf": (5, 1, 0),  # PUSH imm32; POPF
    "popf_clr": (5, 1, 0),
    "mov_ss": (2, 2, 0),  # MOV r16, SS; MOV SS, r16
    "pop_ss": (1, 1, 0),  # PUSH SS; POP SS
    "in": (0, 2, 0),
    "intn": (0, 2, 0),
    "iret": (0, 2, 0),
    "rdmsr": (0, 2, 0),
    "wrmsr": (0, 2, 0),
    "vmcall": (0, 3, 0),
    "wbinvd": (0, 2, 0),
    "vmrun": (0, 3, 0),
}
_ONE_BYTE: Final = (0, 1, 0)
_FROM_MEMORY: Final = (0, 7, 0)  # MOV SS from memory needs no set-up
_REAL_SET_UP_BYTES: Final = {"mov_to_dr": 6}  # MOV r32, imm32 with an operand-size prefix


@dataclass(frozen=True, slots=True)
class Place:
    """Where a saved RIP can point.

    ``where`` is a step's set-up (pre), instruction (insn) or store (post), the first instruction of the
    handler of the interrupt that the step raises (handler), or past the last step (end).
    """

    step: int
    where: str


@dataclass(frozen=True, slots=True)
class Part:
    """One instruction of a step."""

    place: Place
    address: int


class Layout:
    """Where the instructions of a vector lie, one after another from the code's base.

    Where the expectation tells an address that a symbol stands for, that address is taken: the vector
    was run where it was, and its length is not known for every operation.
    """

    def __init__(self, vector: Vector) -> None:
        """Place every step of ``vector``."""
        self._steps = vector.steps
        self._data_base = _REAL_DATA_BASE if vector.is_real_mode else _DATA_BASE
        known = _known_addresses(vector)
        for symbol, address in known.items():
            if symbol.kind == "data":
                self._data_base = address - symbol.number
        self._instructions: list[int] = []
        self._parts: list[tuple[Part, ...]] = []
        address = _REAL_CODE_BASE if vector.is_real_mode else _CODE_BASE
        for number, step in enumerate(vector.steps):
            set_up, instruction, store = _bytes_of(step, is_real_mode=vector.is_real_mode)
            start = known.get(Symbol("step", number), address + set_up)
            parts = [("pre", start - set_up, set_up), ("insn", start, instruction)]
            parts.append(("post", start + instruction, store))
            self._parts.append(
                tuple(
                    Part(Place(number, where), place % ADDRESSES)
                    for where, place, size_bytes in parts
                    if size_bytes
                )
            )
            self._instructions.append(start % ADDRESSES)
            address = start + instruction + store

    def address(self, operand: Operand) -> int:
        """Return the number that an operand stands for."""
        if isinstance(operand, int):
            return operand
        if operand.kind == "step":
            return self._instructions[operand.number]
        return self.data(operand.number)

    def data(self, offset: int) -> int:
        """Return the address of a byte of the data."""
        return (self._data_base + offset) % ADDRESSES

    def parts(self, step: int) -> tuple[Part, ...]:
        """Return a step's instructions; none if nothing of it is executed by the guest."""
        return self._parts[step]

    def after(self, step: int, where: str = "post") -> Place:
        """Return where a saved RIP points after one of a step's instructions, or after all of them."""
        places = [part.place for part in self._parts[step]]
        names = [place.where for place in places]
        if where in names[:-1]:
            return places[names.index(where) + 1]
        vcpu = self._steps[step].vcpu
        for number in range(step + 1, len(self._steps)):
            if self._steps[number].vcpu == vcpu and self._parts[number]:
                return self._parts[number][0].place
        return Place(len(self._steps), "end")


def _bytes_of(step: Step, *, is_real_mode: bool) -> tuple[int, int, int]:
    if step.op not in INSTRUCTIONS:
        return 0, 0, 0
    if step.op == "mov_ss" and step.offset is not None:
        return _FROM_MEMORY
    set_up, instruction, store = _BYTES.get(step.op, _ONE_BYTE)
    if is_real_mode:
        set_up = _REAL_SET_UP_BYTES.get(step.op, set_up)
    return set_up if step.has_set_up else 0, instruction, store


def _known_addresses(vector: Vector) -> dict[Symbol, int]:
    """Return the addresses that symbols must stand for, so that the expected DR0 to DR3 come out."""
    faulted = {raised.step for raised in vector.expect.raised if raised.where == "insn"}
    last: list[Operand] = list(vector.init.db) if vector.init is not None else [0, 0, 0, 0]
    for number, step in enumerate(vector.steps):
        is_written = number not in faulted or vector.retries_general_detect
        if step.op == "mov_to_dr" and step.register < len(last) and is_written:
            last[step.register] = step.operand
    return {
        operand: expected
        for operand, expected in zip(last, vector.expect.registers.db, strict=True)
        if isinstance(operand, Symbol) and isinstance(expected, int)
    }
