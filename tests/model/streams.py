"""Random event streams of part 1: MOV DR, breakpoints, exits, the host's hand and shared CPUs.

``random_stream`` takes a seed; ``streams`` is a hypothesis strategy that takes a seed's stream and shrinks by
leaving events out. A stream is a row of small scenes, each on one vCPU; a ``Mix`` says which scenes and
decorations occur. Addresses come from a small pool, so that breakpoints hit.

======================  =========================================================================
group of ``Mix``        what it adds, and what that exercises
======================  =========================================================================
(always)                single MOV DRs to any register; breakpoints armed in bursts; whole context
                        switches of 13 accesses; RTM, bus-lock and reserved bits in DR6 and DR7
computed = True         FETCH, READ and WRITE of 1 to 64 bytes at and around armed addresses, also
                        over the end of the address space: every R/W and LEN, disabled matches
computed = False        recorded #DB with and without its DR6, #UD, #GP and #PF; reads that carry
                        their recorded value, one in eight of them wrong
exits                   CPUID, HLT with the interrupt that ends it, IN, OUT, WRMSR 0x6E0 and 0x830,
                        WRMSR of another, EXTERNAL_INTERRUPT, MOV to CR0, CR3: windows close
class_override          class bits 1 to 3 on those exits
general_detect          GD in some DR7 values: #DB before the access, GD cleared by every #DB
high_bits               bits 63:32 in values for DR4 to DR7: #GP, unless an earlier check fails
user_mode               CPL 3 for some MOV DRs and accesses
operand_32              32-bit operands for some MOV DRs: no high bits, low halves read
debug_extensions        CR4.DE by MOV to CR4 (also of an unknown value) and by STATE: DR4, DR5 #UD
handlers                IF_FAULT and IF_OK after an attempt, other events in between
retired                 MOV DRs that are known to have retired, whatever the checks say
resume_flag             RF in the modes of some fetches: no instruction breakpoint
outside                 STAGE with SET_DEBUGREGS, RESET, INIT
partial_stage           SET_DEBUGREGS and HOST_BREAKPOINTS with slots left out. Off by default: the
                        contract does not say what a slot is that was not staged
host                    STAGE with HOST_BREAKPOINTS on a physical CPU, on and off
scheduling              SCHED_OUT; SCHED_IN on the same or another physical CPU
kicks                   vCPUs take a shared CPU from each other, or move, without SCHED_OUT
======================  =========================================================================

With ``scheduling`` or ``kicks`` the vCPUs share ``cpus`` physical CPUs and start on those that
``Mix.initial_physical_cpus`` names; with neither each has its own. Without ``kicks`` a vCPU runs
only when no other is on its CPU. A guest's own event never follows its SCHED_OUT without SCHED_IN.
A fetch, access or exception of a stream is never conditional, and its lengths are never zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from hypothesis import strategies as st

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind, Mark, Mode

from .second_model import Event, SecondModel, Story

Item = TypeVar("Item")

CODE: Final = (0x40_1000, 0x40_1003, 0xFFFF_FFFF_8100_0010)
DATA: Final = (0x7000, 0x7004, 0x7006, 0x7008, 0x0, 0x3, 0xFFFF_FFFF_FFFF_FFF8, 0xFFFF_FFFF_FFFF_FFFE)
LENGTHS: Final = (1, 2, 4, 8, 8, 16, 64)
ALWAYS: Final = frozenset({EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR})
ACCESSES: Final = frozenset({EventKind.FETCH, EventKind.READ, EventKind.WRITE})
EXITS: Final = frozenset(
    {
        EventKind.CPUID,
        EventKind.HLT,
        EventKind.IN,
        EventKind.OUT,
        EventKind.WRMSR,
        EventKind.EXTERNAL_INTERRUPT,
        EventKind.MOV_TO_CR,
    }
)
OUTSIDE: Final = frozenset({EventKind.STAGE, EventKind.SET_DEBUGREGS, EventKind.RESET, EventKind.INIT})
HOST: Final = OUTSIDE | {EventKind.HOST_BREAKPOINTS, EventKind.STATE}  # happens wherever the vCPU is
SCHEDULING: Final = frozenset({EventKind.SCHED_OUT, EventKind.SCHED_IN})


@dataclass(frozen=True, slots=True)
class Mix:
    """Which groups occur, on how many vCPUs and physical CPUs; the module's table explains them."""

    vcpus: int = 3
    cpus: int = 2
    computed: bool = True
    exits: bool = True
    class_override: bool = True
    general_detect: bool = True
    high_bits: bool = True
    user_mode: bool = True
    operand_32: bool = True
    debug_extensions: bool = True
    handlers: bool = True
    retired: bool = True
    resume_flag: bool = True
    outside: bool = True
    partial_stage: bool = False
    host: bool = True
    scheduling: bool = True
    kicks: bool = True
    rtm: bool = False  # rtm and bus_lock matter to recorded values only
    bus_lock: bool = False

    @property
    def physical_cpus(self) -> int:
        """Return the number of physical CPUs that the vCPUs share."""
        return min(self.cpus, self.vcpus) if self.scheduling or self.kicks else self.vcpus

    @property
    def initial_physical_cpus(self) -> tuple[int, ...]:
        """Return the physical CPU that each vCPU starts on."""
        return tuple(vcpu % self.physical_cpus for vcpu in range(self.vcpus))

    @property
    def kinds(self) -> frozenset[EventKind]:
        """Return the kinds of event that can occur."""
        kinds = set(ALWAYS | (ACCESSES if self.computed else {EventKind.EXCEPTION}))
        kinds |= EXITS if self.exits else set()
        kinds |= {EventKind.MOV_TO_CR, EventKind.STATE} if self.debug_extensions else set()
        kinds |= OUTSIDE if self.outside else set()
        kinds |= {EventKind.STAGE, EventKind.HOST_BREAKPOINTS} if self.host else set()
        kinds |= SCHEDULING if self.scheduling else set()
        kinds |= {EventKind.SCHED_IN} if self.kicks else set()
        return frozenset(kinds)


class _Row(NamedTuple):
    """One event with all nine columns."""

    kind: int
    arg: int
    modes: int
    marks: int
    vcpu: int
    gap_cycles: int
    selector: int
    value: int
    rip: int


class _Places:
    """Where each vCPU is."""

    def __init__(self, mix: Mix) -> None:
        """Put vCPUs where they start; those that find their CPU taken wait, unless they may kick."""
        self._may_kick = mix.kicks
        self.cpu_of: dict[int, int | None] = {}
        for vcpu, cpu in enumerate(mix.initial_physical_cpus):
            self.cpu_of[vcpu] = cpu if self.may_enter(vcpu, cpu) else None

    def may_enter(self, vcpu: int, cpu: int) -> bool:
        """Return whether ``vcpu`` may be scheduled in on ``cpu``."""
        return self._may_kick or cpu not in {at for other, at in self.cpu_of.items() if other != vcpu}


class _Writer:
    """The stream so far, where each vCPU is, and the small choices that all scenes share."""

    def __init__(self, mix: Mix, seed: int) -> None:
        """Start an empty stream."""
        self.mix = mix
        self.rows: list[_Row] = []
        self.cpu_of = _Places(mix).cpu_of
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
        """Append an event with a gap and an instruction address."""
        gap = self.below(1 << 32) if self.chance(3) else self.below(200)
        rip = self.pick(*CODE) if self.chance(20) else 0
        self.rows.append(_Row(kind, arg, modes, marks, vcpu, gap, selector, value % (1 << 64), rip))

    def run(self, vcpu: int) -> None:
        """Make sure that ``vcpu`` may run, scheduling it in where it is not."""
        if self.cpu_of[vcpu] is None:
            cpu = self.last_cpu[vcpu] if self.chance(50) else self.below(self.mix.physical_cpus)
            self.clear(cpu)
            self.move(vcpu, cpu)

    def clear(self, cpu: int) -> None:
        """Schedule out whoever is on ``cpu``, unless vCPUs may be kicked."""
        for other, where in self.cpu_of.items():
            if where == cpu and not self.mix.kicks:
                self.leave(other)

    def move(self, vcpu: int, cpu: int) -> None:
        """Schedule ``vcpu`` in on ``cpu``."""
        self.add(EventKind.SCHED_IN, vcpu, selector=cpu)
        self.cpu_of[vcpu] = self.last_cpu[vcpu] = cpu

    def leave(self, vcpu: int) -> None:
        """Schedule ``vcpu`` out."""
        self.add(EventKind.SCHED_OUT, vcpu)
        self.cpu_of[vcpu] = None

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

    def cpl(self) -> int:
        """Return mode bits: CPL 0, or 3 where users may come."""
        return 3 if self.mix.user_mode and self.chance(6) else 0

    def mov_dr(self, vcpu: int, register: int, is_write: bool, marks: int = 0) -> None:
        """Append a MOV DR of some value."""
        if is_write:
            self.write_dr(vcpu, register, self.operand(register), marks)
        else:
            self.read_dr(vcpu, register, marks)

    def mov_dr_modes(self) -> int:
        """Return mode bits for a MOV DR."""
        return self.cpl() | (Mode.OPERAND_32 if self.mix.operand_32 and self.chance(8) else 0)

    def mov_dr_marks(self) -> int:
        """Return mark bits for a MOV DR."""
        return Mark.RETIRED if self.mix.retired and self.chance(4) else 0

    def write_dr(self, vcpu: int, register: int, value: int, marks: int = 0) -> None:
        """Append a MOV to ``register``."""
        modes = self.mov_dr_modes()
        self.add(EventKind.MOV_TO_DR, vcpu, register, value, modes=modes, marks=marks | self.mov_dr_marks())

    def read_dr(self, vcpu: int, register: int, marks: int = 0) -> None:
        """Append a MOV from ``register``, where recorded with the error of its value."""
        modes = self.mov_dr_modes()
        marks |= self.mov_dr_marks()
        is_recorded = not self.mix.computed and self.chance(60)
        error = self.pick(1, 1 << 40, 0x10) if is_recorded and self.chance(12) else 0
        marks |= Mark.VALUE_EXPECTED if is_recorded else 0
        self.add(EventKind.MOV_FROM_DR, vcpu, register, error, modes=modes, marks=marks)


# Scenes. Each takes the writer and a vCPU, and appends a few events.


def _one_access(writer: _Writer, vcpu: int) -> None:
    """Do a single MOV DR, perhaps with its handler."""
    writer.run(vcpu)
    writer.mov_dr(vcpu, writer.below(8), is_write=writer.chance(50))
    _handler(writer, vcpu)


def _handler(writer: _Writer, vcpu: int) -> None:
    """Do what a guest does after an attempt, by whether it raised an exception."""
    if not writer.mix.handlers or not writer.chance(20):
        return
    for _ in range(1 + writer.below(4)):
        if writer.chance(15):
            _interlude(writer, vcpu)
        marks = writer.pick(Mark.IF_FAULT, Mark.IF_FAULT, Mark.IF_OK)
        if writer.mix.exits and writer.chance(10):
            writer.add(EventKind.CPUID, vcpu, selector=1, marks=marks)
        else:
            writer.mov_dr(vcpu, writer.pick(6, 7, 0, 4), is_write=writer.chance(40), marks=marks)


def _interlude(writer: _Writer, vcpu: int) -> None:
    """Do something that is no attempt of this vCPU, between its attempt and its handler."""
    if writer.mix.exits and writer.chance(50):
        writer.add(EventKind.EXTERNAL_INTERRUPT, vcpu, selector=0xEC)
        return
    other = writer.below(writer.mix.vcpus)
    if other != vcpu:
        writer.run(other)
        writer.mov_dr(other, writer.below(8), is_write=writer.chance(50))
        writer.run(vcpu)


def _arm(writer: _Writer, vcpu: int) -> None:
    """Write one or two addresses, then a DR7 that enables mostly those slots for what lies there."""
    writer.run(vcpu)
    dr7 = writer.operand(7)
    for _ in range(1 + writer.below(2)):
        slot = writer.below(4)
        is_code = dr7 >> (16 + 4 * slot) & 0b11 == 0b00
        address = writer.pick(*(CODE if is_code else DATA)) if writer.chance(70) else writer.address()
        writer.write_dr(vcpu, slot, address)
        dr7 |= writer.pick(0, 1, 2) << (2 * slot)
    writer.write_dr(vcpu, 7, dr7)


def _context_switch(writer: _Writer, vcpu: int) -> None:
    """Six reads, DR7 off, six writes that end in DR7 on."""
    writer.run(vcpu)
    for register in (0, 1, 2, 3, 6, 7):
        writer.mov_dr(vcpu, register, is_write=False)
    writer.add(EventKind.MOV_TO_DR, vcpu, 7, 0x400)
    for register in (0, 1, 2, 3, 6, 7):
        writer.mov_dr(vcpu, register, is_write=True)


def _touch(writer: _Writer, vcpu: int) -> None:
    """Fetch and access memory, mostly where breakpoints are."""
    writer.run(vcpu)
    for _ in range(1 + writer.below(5)):
        modes = writer.cpl()
        if writer.chance(35):
            modes |= Mode.RF if writer.mix.resume_flag and writer.chance(15) else 0
            address = writer.pick(*CODE, *CODE, *CODE, *DATA)
            writer.add(EventKind.FETCH, vcpu, value=address, modes=modes)
        else:
            kind = writer.pick(EventKind.READ, EventKind.WRITE)
            address = writer.pick(*DATA, *DATA, *CODE) + (writer.below(9) - 4 if writer.chance(50) else 0)
            writer.add(kind, vcpu, writer.pick(*LENGTHS), address, modes=modes)
        _handler(writer, vcpu)


def _exception(writer: _Writer, vcpu: int) -> None:
    """Record an exception, and perhaps the read of DR6 that follows a #DB."""
    writer.run(vcpu)
    vector = writer.pick(1, 1, 1, 6, 13, 14)
    is_unknown = vector == 1 and writer.chance(20)
    payload = 0xFFFF_0FF0 | (writer.below(1 << 16) & 0xE00F)
    value = payload if vector == 1 and not is_unknown else 0
    marks = Mark.VALUE_UNKNOWN if is_unknown else 0
    writer.add(EventKind.EXCEPTION, vcpu, value=value, selector=vector, marks=marks)
    if writer.chance(50):
        writer.mov_dr(vcpu, 6, is_write=False)
    elif vector in (1, 6, 13):
        _handler(writer, vcpu)


def _exit(writer: _Writer, vcpu: int) -> None:
    """Execute an instruction that exits, or take an interrupt."""
    writer.run(vcpu)
    marks = writer.below(4) << 6 if writer.mix.class_override and writer.chance(20) else 0
    kind = writer.pick(*sorted(EXITS))
    if kind == EventKind.WRMSR:
        msr = writer.pick(0x6E0, 0x830, 0x1D9)
        writer.add(kind, vcpu, selector=msr, value=writer.below(1 << 16), marks=marks)
    elif kind in (EventKind.IN, EventKind.OUT):
        writer.add(kind, vcpu, writer.pick(1, 2, 4), selector=writer.pick(0x3F8, 0xCF8), marks=marks)
    elif kind == EventKind.MOV_TO_CR:
        writer.add(kind, vcpu, writer.pick(0, 3), value=0x8005_0033, marks=marks)
    else:
        writer.add(kind, vcpu, selector=writer.pick(1, 0xEC), marks=marks)
    if kind == EventKind.HLT:
        writer.add(EventKind.EXTERNAL_INTERRUPT, vcpu, selector=0xEC)


def _debug_extensions(writer: _Writer, vcpu: int) -> None:
    """Change CR4.DE, or move an unknown value to CR4."""
    has_de = writer.pick(0, 1, 1)
    if writer.chance(30):
        writer.add(EventKind.STATE, vcpu, arg=0, value=has_de)
        return
    writer.run(vcpu)
    marks = Mark.VALUE_UNKNOWN if writer.chance(15) else 0
    writer.add(EventKind.MOV_TO_CR, vcpu, 4, 0x3506F0 & ~0x8 | has_de << 3, marks=marks)


def _stage(writer: _Writer, vcpu: int, values: dict[int, int]) -> None:
    """Stage ``values`` by slot, or some of them."""
    for slot, value in values.items():
        if not (writer.mix.partial_stage and writer.chance(25)):
            writer.add(EventKind.STAGE, vcpu, slot, value)


def _outside(writer: _Writer, vcpu: int) -> None:
    """Set the guest's registers from outside, or reset it."""
    if writer.chance(30):
        writer.add(writer.pick(EventKind.RESET, EventKind.INIT), vcpu)
        return
    values = {slot: writer.operand(register) for slot, register in enumerate((0, 1, 2, 3, 6, 7))}
    _stage(writer, vcpu, values)
    writer.add(EventKind.SET_DEBUGREGS, vcpu)


def _host_breakpoints(writer: _Writer, vcpu: int) -> None:
    """Turn the host's own breakpoints on the CPU of ``vcpu`` on or off."""
    if writer.chance(60):
        values = {slot: writer.address() for slot in range(4)}
        values[5] = (writer.dr7() & 0xFFFF_00FF) | 0x402
    else:
        values = {0: 0, 1: 0, 2: 0, 3: 0, 5: 0x400}
    _stage(writer, vcpu, values)
    writer.add(EventKind.HOST_BREAKPOINTS, vcpu, selector=writer.last_cpu[vcpu])


def _schedule(writer: _Writer, vcpu: int) -> None:
    """Take a vCPU off its CPU, and perhaps put it back there or elsewhere."""
    if writer.cpu_of[vcpu] is not None:
        writer.leave(vcpu)
    if writer.chance(60):
        writer.run(vcpu)


def _migrate(writer: _Writer, vcpu: int) -> None:
    """Put a vCPU on a CPU without taking it off its own."""
    writer.move(vcpu, writer.below(writer.mix.physical_cpus))


def _scenes(mix: Mix) -> list[Callable[[_Writer, int], None]]:
    """Return the scenes of ``mix``, the more frequent ones several times."""
    weights: list[tuple[int, Callable[[_Writer, int], None]]] = [
        (8, _one_access),
        (6, _arm),
        (2, _context_switch),
        (12 if mix.computed else 0, _touch),
        (0 if mix.computed else 6, _exception),
        (8 if mix.exits else 0, _exit),
        (3 if mix.debug_extensions else 0, _debug_extensions),
        (3 if mix.outside else 0, _outside),
        (2 if mix.host else 0, _host_breakpoints),
        (3 if mix.scheduling else 0, _schedule),
        (1 if mix.kicks else 0, _migrate),
    ]
    return [scene for weight, scene in weights for _ in range(weight)]


def _first_rows(seed: int, events: int, mix: Mix) -> list[_Row]:
    """Return the first ``events`` rows of the endless stream of ``seed``."""
    writer = _Writer(mix, seed)
    scenes = _scenes(mix)
    vcpu = 0
    while len(writer.rows) < events:
        if writer.chance(30):
            vcpu = writer.below(mix.vcpus)
        writer.pick(*scenes)(writer, vcpu)
    return writer.rows[:events]


def _with_recorded_values(rows: list[_Row], mix: Mix) -> list[_Row]:
    """Return ``rows`` with recorded values: what the second model reads, off by the error drafted there."""
    model = SecondModel(mix.vcpus, rtm=mix.rtm, bus_lock=mix.bus_lock, computed=mix.computed)
    filled = []
    for row in rows:
        told = model.take(Event(row.kind, row.arg, row.modes, row.marks, row.vcpu, row.selector, row.value))
        is_recorded = row.marks & Mark.VALUE_EXPECTED and told.story == Story.READ
        filled.append(row._replace(value=row.value ^ told.value) if is_recorded else row)
    return filled


def _as_columns(rows: list[_Row], mix: Mix) -> EventColumns:
    """Return ``rows`` as columns."""
    if not mix.computed:
        rows = _with_recorded_values(rows, mix)
    numbers = zip(*rows, strict=True) if rows else [()] * len(Column)
    arrays: dict[str, Any] = {
        name: np.array(column, dtype=dtype)
        for name, dtype, column in zip(COLUMN_NAMES, COLUMN_DTYPES.values(), numbers, strict=True)
    }
    return EventColumns(**arrays)


DEFAULT_MIX: Final = Mix()


def random_stream(seed: int, events: int, mix: Mix = DEFAULT_MIX) -> EventColumns:
    """Return ``events`` random events; the same seed and mix give the same stream."""
    return _as_columns(_first_rows(seed, events, mix), mix)


def _atoms(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Yield the rows that only make sense together: staged operands with what uses them."""
    atom: list[_Row] = []
    for row in rows:
        atom.append(row)
        if row.kind != EventKind.STAGE:
            yield atom
            atom = []
    yield atom


def _only_legal(rows: list[_Row], mix: Mix) -> list[_Row]:
    """Return ``rows`` without those that scheduling forbids once others have been left out."""
    places = _Places(mix)
    legal = []
    for row in rows:
        if row.kind == EventKind.SCHED_IN and places.may_enter(row.vcpu, row.selector):
            places.cpu_of[row.vcpu] = row.selector
        elif row.kind == EventKind.SCHED_OUT and places.cpu_of[row.vcpu] is not None:
            places.cpu_of[row.vcpu] = None
        elif row.kind in SCHEDULING or (row.kind not in HOST and places.cpu_of[row.vcpu] is None):
            continue
        legal.append(row)
    return legal


@st.composite
def streams(draw: st.DrawFn, mix: Mix = DEFAULT_MIX, max_events: int = 120) -> EventColumns:
    """Draw a seed's stream with some events left out; it shrinks by leaving out more."""
    rows = _first_rows(draw(st.integers(0, 0xFFFF_FFFF)), draw(st.integers(0, max_events)), mix)
    kept = [row for atom in _atoms(rows) if draw(st.integers(0, 31)) for row in atom]
    return _as_columns(_only_legal(kept, mix), mix)


@st.composite
def mixes(draw: st.DrawFn, base: Mix = DEFAULT_MIX) -> Mix:
    """Draw a mix: each group that ``base`` has may be left out; counts and ``computed`` stay."""
    groups = [name for name in Mix.__slots__ if getattr(base, name) is True and name != "computed"]
    return replace(base, **{name: draw(st.booleans()) for name in groups})
