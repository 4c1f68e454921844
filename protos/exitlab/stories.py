"""What an event can show a guest, as numbers of the contract's ``Story``; a test holds the two together."""

from enum import IntEnum
from typing import Final


class Story(IntEnum):
    """What one event showed the guest; what its story value is, is said for each."""

    NOTHING = 0  # no value and no exception
    READ = 1  # the value read
    DB_FAULT = 2  # DR6 in bits 0-31, DR7 in bits 32-63, as the handler's first MOV would read them
    DB_TRAP = 3  # as DB_FAULT, and so are the next three and BP
    UD = 4
    GP = 5
    GP_SKIPPED = 6  # although the instruction pointer moved on
    NOT_TAKEN = 7  # the event was conditional and did not happen
    REGISTERS = 8  # a digest of the six
    BP = 9
    VMEXIT = 10  # a nested guest was left; see the contract


# Exceptions that the guest's own handler takes: their value is DR6 and DR7.
EXCEPTIONS: Final = frozenset({Story.DB_FAULT, Story.DB_TRAP, Story.UD, Story.GP, Story.GP_SKIPPED, Story.BP})
# Of these the instruction itself did not take effect.
FAULTS: Final = frozenset({Story.DB_FAULT, Story.UD, Story.GP})
