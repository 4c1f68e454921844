"""What goes into the second model and what comes out: events, stories, registers."""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from exitlab.events import Column, EventColumns, EventKind


class Story(IntEnum):
    """What the guest sees of an event, in the numbers of the contract; 6 is of hypervisors alone."""

    NOTHING = 0
    READ = 1
    DB_FAULT = 2
    DB_TRAP = 3
    UD = 4
    GP = 5
    NOT_TAKEN = 7
    REGISTERS = 8
    BP = 9
    VMEXIT = 10


class Event(NamedTuple):
    """One event, with the columns that can matter to a guest's debug registers."""

    kind: int
    arg: int = 0
    modes: int = 0
    marks: int = 0
    vcpu: int = 0
    selector: int = 0
    value: int = 0


class Registers(NamedTuple):
    """The six registers as a MOV would read them, and the undefined bits of DR6."""

    db: tuple[int, int, int, int]
    dr6: int
    dr7: int
    undefined_dr6: int


class Told(NamedTuple):
    """What the guest saw: a story, its value, and the undefined bits of a DR6 or DEBUGCTL in that value."""

    story: int = Story.NOTHING
    value: int = 0
    undefined_dr6: int = 0


def digest(registers: Registers) -> int:
    """Return the number that stands for the six registers; undefined bits count as zero."""
    six = (*registers.db, registers.dr6 & ~registers.undefined_dr6, registers.dr7)
    multiplied = (one * (2 * k + 1) * 0x9E37_79B9_7F4A_7C15 for k, one in enumerate(six))
    return sum(multiplied) % (1 << 64)


MOV_DR: Final = frozenset({EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR})
PORT_ACCESSES: Final = frozenset({EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS})
# What a guest attempts: its instructions and accesses, which the contract numbers 1 to 37, and
# the exceptions that a recording says it raised.
INSTRUCTIONS: Final = frozenset(range(EventKind.MOV_TO_DR, EventKind.STI + 1))
ATTEMPTED: Final = INSTRUCTIONS | {EventKind.EXCEPTION}
EXCEPTIONS: Final = frozenset({Story.DB_FAULT, Story.DB_TRAP, Story.UD, Story.GP, Story.BP})
RAISED: Final = EXCEPTIONS | {Story.VMEXIT}  # stories of an attempt that counts as faulted


def events_of(columns: EventColumns) -> Iterator[Event]:
    """Return the rows of ``columns`` one at a time; a column that is not there is zero."""

    def numbers(column: Column) -> Iterable[int]:
        array = columns.column(column)
        return [0] * len(columns) if array is None else [int(number) for number in array]

    unseen = {Column.GAP_CYCLES, Column.RIPS}
    wanted = [numbers(column) for column in Column if column not in unseen]
    return (Event(*row) for row in zip(*wanted, strict=True))
