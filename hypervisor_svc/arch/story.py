"""Numbers of what a guest can see of an event, as in the contract's ``Story``."""

from enum import IntEnum


class Story(IntEnum):
    """What one event showed the guest; the story value is said for each."""

    NOTHING = 0
    READ = 1  # the value read
    DB_FAULT = 2  # DR6 | DR7 << 32 as the handler's first MOV would read them
    DB_TRAP = 3
    UD = 4
    GP = 5
    GP_SKIPPED = 6
    NOT_TAKEN = 7
    REGISTERS = 8  # a digest of the six
    BP = 9
    VMEXIT = 10  # cause of a #DB (SVM: DR6) | the nested DR7 that L1 finds << 32
