"""The second model: what the architecture alone shows a guest, written a second time and slowly.

It exists to disagree. The project has a reference of its own; this one was written from the manuals
and the measured table of real processors without looking at it, and it shares no code, mask or table
with it: only the numbers of the contract's events. Where the two tell different stories, one is wrong.

Each vCPU is a ``Guest`` with a processor of its own and no hypervisor. An event goes in, and what the
guest sees of it comes out: a story, its value, and which bits of a DR6 in that value are undefined.

What is decided here, and where no manual says it:

- *Attempted* events, to which IF_FAULT and IF_OK look back, are the guest's own instructions, fetches
  and accesses, and recorded exceptions. What the host does and what arrives from outside is not
  attempted by anybody. Before the first of them nothing has been raised.
- Undefined bits of DR6 stay so until the guest writes DR6 or the host or a reset sets it. A debug
  exception defines B0 to B3 anew and leaves the other undefined bits as they are.
- A debug exception sets DR6 bit 16 (RTM, active low: none here comes from within a transaction) and
  leaves bit 11 (bus lock, active low) as it is.
- Staged operands belong to the vCPU that staged them. The next host control of that vCPU uses them up;
  a slot that was not staged counts as zero.
- RESET and INIT clear CR4, and with it CR4.DE.
- Nothing here depends on the vendor; the parameter is kept for what will.

Not modelled (their story is 0): INT1, INT3, INT n, POPF, IRET, MOV SS, STI, single-stepping, a host
debugger, nested guests, the digest of GET_DEBUGREGS, and the faults of instructions other than MOV DR.

Source: Intel SDM volume 3, chapter "Debug, Branch Profile, TSC, and Intel Resource Director
Technology"; volume 2, "MOV - Move to/from Debug Registers"; AMD APM volume 2, "Software-Debug Resources".
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from exitlab.events import Column, EventColumns, EventKind, Mark, Mode


class Story(IntEnum):
    """What the guest sees of an event, in the numbers of the contract."""

    NOTHING = 0
    READ = 1
    DB_FAULT = 2
    DB_TRAP = 3
    UD = 4
    GP = 5
    NOT_TAKEN = 7


class Event(NamedTuple):
    """One event, with the columns that can matter to a guest's debug registers."""

    kind: int
    arg: int = 0
    modes: int = 0
    marks: int = 0
    vcpu: int = 0
    selector: int = 0
    value: int = 0


class Told(NamedTuple):
    """What the guest saw: a story, its value, and the undefined bits of the DR6 in that value."""

    story: int = Story.NOTHING
    value: int = 0
    undefined_dr6: int = 0


class Registers(NamedTuple):
    """The six registers as a MOV would read them, and the undefined bits of DR6."""

    db: tuple[int, int, int, int]
    dr6: int
    dr7: int
    undefined_dr6: int


DR6_AT_RESET: Final = 0xFFFF_0FF0
DR7_AT_RESET: Final = 0x0000_0400
B0_TO_B3: Final = 0x000F
BUS_LOCK: Final = 1 << 11
BD: Final = 1 << 13
BD_BS_BT: Final = 0xE000
RTM: Final = 1 << 16
GENERAL_DETECT: Final = 1 << 13
DR7_SETTABLE: Final = 0xFFFF_2BFF  # all of bits 31:0 but 10 (always one), 12, 14 and 15 (always zero)
DR7_ALWAYS_ONE: Final = 1 << 10
CR4_DE: Final = 1 << 3
LOW_32: Final = 0xFFFF_FFFF
ADDRESS_SPACE: Final = 1 << 64

# R/W of a slot -> the accesses that it breaks on. I/O breakpoints (0b10) match no memory access.
BREAKS_ON: Final[dict[int, frozenset[EventKind]]] = {
    0b00: frozenset({EventKind.FETCH}),
    0b01: frozenset({EventKind.WRITE}),
    0b10: frozenset(),
    0b11: frozenset({EventKind.READ, EventKind.WRITE}),
}
BYTES_OF_LEN: Final = {0b00: 1, 0b01: 2, 0b10: 8, 0b11: 4}
SAME_AS: Final = {4: 6, 5: 7}  # with CR4.DE = 0

MOV_DR: Final = frozenset({EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR})
# What a guest attempts: its instructions and accesses, which the contract numbers 1 to 37, and
# the exceptions that a recording says it raised.
ATTEMPTED: Final = frozenset(range(EventKind.MOV_TO_DR, EventKind.STI + 1)) | {EventKind.EXCEPTION}
EXCEPTIONS: Final = frozenset({Story.DB_FAULT, Story.DB_TRAP, Story.UD, Story.GP})
STORY_OF_VECTOR: Final = {6: Story.UD, 13: Story.GP}


def _bytes_at(address: int, length: int) -> set[int]:
    """Return the addresses of ``length`` bytes from ``address`` on, around the end of the address space."""
    return {(address + offset) % ADDRESS_SPACE for offset in range(length)}


class Guest:
    """One vCPU with a processor of its own."""

    def __init__(self, rtm: bool, bus_lock: bool, computed: bool) -> None:
        """Start as after power-up."""
        self.settable_dr6 = B0_TO_B3 | BD_BS_BT | (RTM if rtm else 0) | (BUS_LOCK if bus_lock else 0)
        self.computed = computed
        self.has_raised = False  # about the last unconditional attempted event
        self.staged: dict[int, int] = {}
        self._reset()

    # What the registers make of a value.

    def _set_register(self, number: int, value: int) -> None:
        """Put ``value`` into DR0 to DR3, DR6 or DR7; fixed bits stay what they are."""
        if number == 6:
            self.dr6 = (DR6_AT_RESET & ~self.settable_dr6) | (value & self.settable_dr6)
            self.undefined_dr6 = 0
        elif number == 7:
            self.dr7 = (value & DR7_SETTABLE) | DR7_ALWAYS_ONE
        else:
            self.db[number] = value

    def _get_register(self, number: int) -> int:
        """Return DR0 to DR3, DR6 or DR7."""
        return {**self.db, 6: self.dr6, 7: self.dr7}[number]

    def _reset(self) -> None:
        """Become what RESET and INIT leave."""
        self.db = {0: 0, 1: 0, 2: 0, 3: 0}
        self.dr6 = DR6_AT_RESET
        self.dr7 = DR7_AT_RESET
        self.undefined_dr6 = 0
        self.has_de = False

    # How exceptions arrive.

    def _handler_sees(self, story: Story) -> Told:
        """Return ``story`` with DR6 and DR7 as the handler's first MOVs would read them."""
        return Told(story, self.dr6 | self.dr7 << 32, self.undefined_dr6)

    def _raise_db(self, story: Story, causes: int, undefined: int = 0) -> Told:
        """Deliver a debug exception: B0 to B3 are set anew, the rest of DR6 collects, GD goes off.

        The manual says that the RTM bit is set unless a transactional region raised the exception.
        """
        self.dr6 = (self.dr6 & ~B0_TO_B3) | RTM | causes
        self.undefined_dr6 = (self.undefined_dr6 & ~B0_TO_B3) | undefined
        self.dr7 &= ~GENERAL_DETECT
        return self._handler_sees(story)

    # MOV to and from debug registers.

    def _fault_of_mov_dr(self, event: Event, operand: int) -> Story | None:
        """Return the first check that an attempted MOV DR fails, in the processor's order."""
        if event.arg in SAME_AS and self.has_de:
            return Story.UD
        if event.modes & Mode.CPL:
            return Story.GP
        if self.dr7 & GENERAL_DETECT:
            return Story.DB_FAULT
        is_write = event.kind == EventKind.MOV_TO_DR
        if is_write and SAME_AS.get(event.arg, event.arg) in (6, 7) and operand > LOW_32:
            return Story.GP
        return None

    def _mov_dr(self, event: Event) -> Told:
        """Do or refuse a MOV DR; one that is known to have retired is done whatever the checks say."""
        operand = event.value & LOW_32 if event.modes & Mode.OPERAND_32 else event.value
        fault = None if event.marks & Mark.RETIRED else self._fault_of_mov_dr(event, operand)
        if fault is Story.DB_FAULT:
            return self._raise_db(Story.DB_FAULT, BD)
        if fault is not None:
            return self._handler_sees(fault)
        number = SAME_AS.get(event.arg, event.arg)
        if event.kind == EventKind.MOV_TO_DR:
            self._set_register(number, operand)
            return Told()
        return self._read(number, event.modes)

    def _read(self, number: int, modes: int) -> Told:
        """Return what a MOV from register ``number`` shows."""
        value = self._get_register(number)
        shown = value & LOW_32 if modes & Mode.OPERAND_32 else value
        return Told(Story.READ, shown, self.undefined_dr6 if number == 6 else 0)

    # Breakpoints.

    def _slot_matches(self, slot: int, event: Event) -> bool:
        """Return whether the address and kind of ``slot`` fit the access, enabled or not."""
        read_write = self.dr7 >> (16 + 4 * slot) & 0b11
        length = BYTES_OF_LEN[self.dr7 >> (18 + 4 * slot) & 0b11]
        if event.kind not in BREAKS_ON[read_write]:
            return False
        if event.kind == EventKind.FETCH:
            return length == 1 and self.db[slot] == event.value
        watched = _bytes_at(self.db[slot] - self.db[slot] % length, length)
        return not watched.isdisjoint(_bytes_at(event.value, event.arg))

    def _access(self, event: Event) -> Told:
        """Fetch or access memory: breakpoints on a fetch fault, those on data trap."""
        is_fetch = event.kind == EventKind.FETCH
        if not self.computed or (is_fetch and event.modes & Mode.RF):
            return Told()
        matching = {slot for slot in self.db if self._slot_matches(slot, event)}
        enabled = {slot for slot in matching if self.dr7 >> (2 * slot) & 0b11}
        if not enabled:
            return Told()
        causes = sum(1 << slot for slot in matching)
        undefined = sum(1 << slot for slot in matching - enabled)
        return self._raise_db(Story.DB_FAULT if is_fetch else Story.DB_TRAP, causes, undefined)

    # What a recording or the host says.

    def _recorded_exception(self, event: Event) -> Told:
        """Take a recorded exception; an unknown DR6 of a #DB leaves its cause bits undefined."""
        if event.selector != 1:
            story = STORY_OF_VECTOR.get(event.selector)
            return Told() if story is None else self._handler_sees(story)
        if self.computed:
            raise ValueError("a recorded #DB came where breakpoints are computed")
        if not event.marks & Mark.VALUE_UNKNOWN:
            return self._raise_db(Story.DB_FAULT, event.value & (B0_TO_B3 | BD_BS_BT))
        self.undefined_dr6 |= B0_TO_B3 | BD_BS_BT
        self.dr6 |= RTM
        self.dr7 &= ~GENERAL_DETECT
        return self._handler_sees(Story.DB_FAULT)

    def _control(self, event: Event) -> Told:
        """Do what the host or the guest does to the state around the registers."""
        if event.kind in (EventKind.RESET, EventKind.INIT):
            self._reset()
        elif event.kind == EventKind.STATE and event.arg == 0:
            self.has_de = event.value != 0
        elif event.kind == EventKind.MOV_TO_CR and event.arg == 4 and not event.marks & Mark.VALUE_UNKNOWN:
            self.has_de = event.value & CR4_DE != 0
        return Told()

    def _host_control(self, event: Event) -> Told:
        """Stage an operand, or use up those staged; only SET_DEBUGREGS shows in the guest's registers."""
        if event.kind == EventKind.STAGE:
            self.staged[event.arg] = event.value
            return Told()
        staged, self.staged = self.staged, {}
        if event.kind == EventKind.SET_DEBUGREGS:
            for number, slot in {0: 0, 1: 1, 2: 2, 3: 3, 6: 4, 7: 5}.items():
                self._set_register(number, staged.get(slot, 0))
        return Told()

    # Events.

    def _happen(self, event: Event) -> Told:
        """Let ``event`` happen."""
        if event.kind in MOV_DR:
            return self._mov_dr(event)
        if event.kind in (EventKind.FETCH, EventKind.READ, EventKind.WRITE):
            return self._access(event)
        if event.kind == EventKind.EXCEPTION:
            return self._recorded_exception(event)
        if event.kind in (EventKind.STAGE, EventKind.SET_DEBUGREGS):
            return self._host_control(event)
        if event.kind in (EventKind.HOST_DEBUGGER, EventKind.HOST_BREAKPOINTS):
            return self._host_control(event)
        return self._control(event)

    def take(self, event: Event) -> Told:
        """Let ``event`` happen if its condition holds, and return what the guest sees."""
        if event.marks & Mark.IF_FAULT and not self.has_raised:
            return Told(Story.NOT_TAKEN)
        if event.marks & Mark.IF_OK and self.has_raised:
            return Told(Story.NOT_TAKEN)
        told = self._happen(event)
        is_conditional = event.marks & (Mark.IF_FAULT | Mark.IF_OK)
        if event.kind in ATTEMPTED and not is_conditional:
            self.has_raised = told.story in EXCEPTIONS or event.kind == EventKind.EXCEPTION
        return told

    def registers(self) -> Registers:
        """Return the registers as MOVs would read them now."""
        db = (self.db[0], self.db[1], self.db[2], self.db[3])
        return Registers(db, self.dr6, self.dr7, self.undefined_dr6)


class SecondModel:
    """Several vCPUs, each alone with the architecture."""

    def __init__(
        self,
        vcpus: int,
        vendor: str = "vmx",
        rtm: bool = False,
        bus_lock: bool = False,
        computed: bool = True,
    ) -> None:
        """Start ``vcpus`` guests; ``computed`` matches breakpoints, otherwise exceptions come as events."""
        if vendor not in ("vmx", "svm"):
            raise ValueError(f"expected the vendor vmx or svm, got {vendor!r}")
        self.vendor = vendor
        self.guests = [Guest(rtm, bus_lock, computed) for _ in range(vcpus)]

    def take(self, event: Event) -> Told:
        """Let the vCPU of ``event`` take it, and return what that guest sees."""
        return self.guests[event.vcpu].take(event)

    def tell(self, events: Iterable[Event]) -> list[Told]:
        """Take all ``events`` in order, and return the story of each."""
        return [self.take(event) for event in events]

    def registers(self, vcpu: int) -> Registers:
        """Return the registers of ``vcpu``."""
        return self.guests[vcpu].registers()


def events_of(columns: EventColumns) -> Iterator[Event]:
    """Return the rows of ``columns`` one at a time; a column that is not there is zero."""

    def numbers(column: Column) -> list[int]:
        array = columns.column(column)
        return [0] * len(columns) if array is None else [int(number) for number in array]

    unseen = {Column.GAP_CYCLES, Column.RIPS}
    wanted = [numbers(column) for column in Column if column not in unseen]
    return (Event(*row) for row in zip(*wanted, strict=True))
