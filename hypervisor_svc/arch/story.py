"""Numbers of what a guest can see of an event, as in the contract's ``Story``."""

from enum import IntEnum
from typing import Final

from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.debug_registers import U64


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
    VMEXIT = 10  # cause of a #DB | DEBUGCTL << 24 (SVM: DR6) | DR7 << 32, the last two as L1 finds them


_FIRST_EXCEPTION: Final = U64(Story.DB_FAULT)
_LAST_EXCEPTION: Final = U64(Story.GP_SKIPPED)
_BP: Final = U64(Story.BP)


@compiled()
def is_exception(story):  # type: ignore[no-untyped-def]  # numba infers
    """Return whether a story is an exception that the guest's handler takes."""
    return (story >= _FIRST_EXCEPTION and story <= _LAST_EXCEPTION) or story == _BP
