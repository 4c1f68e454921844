"""The stream so far and its random choices; scenes write with it."""

from typing import Final, TypeVar

import numpy as np

from exitlab.events import EventKind, Mark, Mode

from . import debug_control
from .gate import Gate, Row
from .mix import Mix

Item = TypeVar("Item")

CODE: Final = (0x40_1000, 0x40_1003, 0xFFFF_FFFF_8100_0010)
DATA: Final = (0x7000, 0x7004, 0x7006, 0x7008, 0x0, 0x3, 0xFFFF_FFFF_FFFF_FFF8, 0xFFFF_FFFF_FFFF_FFFE)
LENGTHS: Final = (1, 2, 4, 8, 8, 16, 64)


class Writer:
    """The stream so far, where each vCPU is, and the small choices that all scenes share."""

    def __init__(self, mix: Mix, seed: int) -> None:
        """Start an empty stream."""
        self.mix = mix
        self.rows: list[Row] = []
        self.gate = Gate(mix)
        self.last_cpu = dict(enumerate(mix.initial_physical_cpus))
        self._generator = np.random.default_rng(seed)
        self._words: list[int] = []

    def below(self, limit: int) -> int:
        """Return a number from 0 to ``limit`` - 1."""
        if not self._words:
            self._words = self._generator.integers(0, 1 << 64, 1024, dtype=np.uint64).tolist()
        return self._words.pop() % limit

    def chance(self, percent: int) -> bool:
        """Return true ``percent`` times in a hundred."""
        return self.below(100) >= 100 - percent

    def pick(self, *items: Item) -> Item:
        """Return one of ``items``."""
        return items[self.below(len(items))]

    def add(
        self,
        kind: EventKind,
        vcpu: int,
        arg: int = 0,
        value: int = 0,
        selector: int = 0,
        modes: int = 0,
        marks: int = 0,
    ) -> None:
        """Append an event with a gap and an instruction address, if it is legal there."""
        gap = self.below(1 << 32) if self.chance(3) else self.below(200)
        rip = self.pick(*CODE) if self.chance(20) else 0
        row = Row(kind, arg, modes, marks, vcpu, gap, selector, value % (1 << 64), rip)
        self.rows += self.gate.admitted(row)

    def stage(self, vcpu: int, values: dict[int, int]) -> None:
        """Stage ``values`` by slot, or some of them."""
        for slot, value in values.items():
            if not (self.mix.partial_stage and self.chance(25)):
                self.add(EventKind.STAGE, vcpu, slot, value)

    def run(self, vcpu: int) -> None:
        """Make sure that ``vcpu`` may run, scheduling it in where it is not."""
        if self.gate.cpu_of[vcpu] is None:
            cpu = self.last_cpu[vcpu] if self.chance(50) else self.below(self.mix.physical_cpus)
            self.clear(cpu)
            self.move(vcpu, cpu)

    def clear(self, cpu: int) -> None:
        """Schedule out whoever is on ``cpu``, unless vCPUs may be kicked."""
        for other, where in self.gate.cpu_of.items():
            if where == cpu and not self.mix.kicks:
                self.leave(other)

    def move(self, vcpu: int, cpu: int) -> None:
        """Schedule ``vcpu`` in on ``cpu``."""
        self.add(EventKind.SCHED_IN, vcpu, selector=cpu)
        self.last_cpu[vcpu] = cpu

    def leave(self, vcpu: int) -> None:
        """Schedule ``vcpu`` out."""
        self.add(EventKind.SCHED_OUT, vcpu)

    def address(self) -> int:
        """Return an address for a breakpoint: mostly of the pool."""
        if self.chance(5):
            return self.below(1 << 64)
        return self.pick(*CODE) if self.chance(40) else self.pick(*DATA)

    def dr6(self) -> int:
        """Return a value for DR6."""
        if self.chance(40):
            return self.pick(0xFFFF_0FF0, 0, 0xF, 0xFFFF_FFFF, 0xFFFE_07F0, 0xFFFF_4FF1)
        return self.below(1 << 32)

    def dr7(self) -> int:
        """Return a value for DR7: a few slots of any type, GD now and then, some bits that do nothing."""
        value = 0x400
        for slot in range(4):
            value |= self.slot(slot)
        if self.mix.general_detect and self.chance(20):
            value |= 1 << 13
        return value | (self.below(1 << 16) & 0xDB00 if self.chance(15) else 0)

    def slot(self, slot: int) -> int:
        """Return the bits of DR7 for ``slot``: enabled or not, of any R/W and LEN."""
        enable = self.pick(0, 0, 1, 2, 3)
        read_write = self.pick(0b00, 0b00, 0b01, 0b11, 0b11, 0b10)
        is_plain = read_write == 0b00 and not self.chance(10)
        length = 0b00 if is_plain else self.below(4)
        return enable << (2 * slot) | read_write << (16 + 4 * slot) | length << (18 + 4 * slot)

    def operand(self, register: int) -> int:
        """Return a value for ``register``, with high bits now and then."""
        if register < 4:
            return self.address()
        value = self.dr6() if register in (4, 6) else self.dr7()
        if self.mix.high_bits and self.chance(8):
            value |= self.pick(1 << 32, 1 << 63, 0xFFFF_FFFF << 32)
        return value

    def debugctl(self) -> int:
        """Return a value for DEBUGCTL, now and then with bits that are not kept."""
        return self.below(1 << 16) if self.chance(25) else self.below(4)

    def write_debugctl(self, vcpu: int, modes: int = 0) -> None:
        """Append a WRMSR of DEBUGCTL."""
        marks = self.class_marks() | (Mark.VALUE_UNKNOWN if self.chance(10) else 0)
        self.add(EventKind.WRMSR, vcpu, 0, self.debugctl(), debug_control.NUMBER, modes, marks)

    def read_debugctl(self, vcpu: int) -> None:
        """Append a RDMSR of DEBUGCTL, where recorded with the error of its value."""
        is_recorded = not self.mix.computed and self.chance(60)
        error = self.pick(1, 2, 1 << 14) if is_recorded and self.chance(12) else 0
        marks = self.class_marks() | (Mark.VALUE_EXPECTED if is_recorded else 0)
        self.add(EventKind.RDMSR, vcpu, 0, error, debug_control.NUMBER, 0, marks)

    def class_marks(self) -> int:
        """Return mark bits that override the class of an exit, or none."""
        return self.below(4) << 6 if self.mix.class_override and self.chance(20) else 0

    def cpl(self) -> int:
        """Return mode bits: CPL 0, or 3 where users may come."""
        return 3 if self.mix.user_mode and self.chance(6) else 0

    def mov_dr(self, vcpu: int, register: int, is_write: bool, marks: int = 0, modes: int = 0) -> None:
        """Append a MOV DR of some value."""
        if is_write:
            self.write_dr(vcpu, register, self.operand(register), marks, modes)
        else:
            self.read_dr(vcpu, register, marks, modes)

    def mov_dr_modes(self) -> int:
        """Return mode bits for a MOV DR."""
        return self.cpl() | (Mode.OPERAND_32 if self.mix.operand_32 and self.chance(8) else 0)

    def mov_dr_marks(self) -> int:
        """Return mark bits for a MOV DR."""
        return Mark.RETIRED if self.mix.retired and self.chance(4) else 0

    def write_dr(self, vcpu: int, register: int, value: int, marks: int = 0, modes: int = 0) -> None:
        """Append a MOV to ``register``."""
        modes |= self.mov_dr_modes()
        self.add(EventKind.MOV_TO_DR, vcpu, register, value, modes=modes, marks=marks | self.mov_dr_marks())

    def read_dr(self, vcpu: int, register: int, marks: int = 0, modes: int = 0) -> None:
        """Append a MOV from ``register``, where recorded with the error of its value."""
        modes |= self.mov_dr_modes()
        marks |= self.mov_dr_marks()
        is_recorded = not self.mix.computed and self.chance(60)
        error = self.pick(1, 1 << 40, 0x10) if is_recorded and self.chance(12) else 0
        marks |= Mark.VALUE_EXPECTED if is_recorded else 0
        self.add(EventKind.MOV_FROM_DR, vcpu, register, error, modes=modes, marks=marks)
