"""The second model's IA32_DEBUGCTL: two bits that are kept, and what a recording has not shown of them.

Source: Intel SDM volume 3, "IA32_DEBUGCTL MSR" and, of a reset, "Initialization Overview"; which bits are
kept is a decision of ``docs/model.md``.
"""

from typing import Final, NamedTuple

from exitlab.events import EventKind, Mark

from .vocabulary import Event, Story, Told

NUMBER: Final = 0x1D9
LAST_BRANCHES: Final = 1 << 0
STEP_ON_BRANCHES: Final = 1 << 1
KEPT: Final = LAST_BRANCHES | STEP_ON_BRANCHES
IN_VMEXIT: Final = 24  # where VMX shows it in the story of a nested guest that was left


class DebugControl(NamedTuple):
    """The bits, and those of them that nobody knows."""

    bits: int = 0
    unknown: int = 0

    @property
    def in_vmexit(self) -> "DebugControl":
        """Where both stand in the story of a nested guest that VMX leaves."""
        return DebugControl(self.bits << IN_VMEXIT, self.unknown << IN_VMEXIT)


NOT_RECORDED: Final = DebugControl(unknown=KEPT)


def is_access(event: Event) -> bool:
    """Return whether ``event`` reads or writes the register."""
    return event.kind in (EventKind.RDMSR, EventKind.WRMSR) and event.selector == NUMBER


def of(value: int) -> DebugControl:
    """Return what is there after ``value`` was put there."""
    return DebugControl(value & KEPT)


def access(before: DebugControl, event: Event) -> tuple[DebugControl, Told]:
    """Do a RDMSR or WRMSR, and return what is there then and what the guest sees.

    A recorded read tells what is there if nothing else has; the guest is shown that, but no hypervisor
    could know it before.
    """
    if event.kind == EventKind.WRMSR:
        return (before if event.marks & Mark.VALUE_UNKNOWN else of(event.value)), Told()
    after = of(event.value) if event.marks & Mark.VALUE_EXPECTED and before.unknown else before
    return after, Told(Story.READ, after.bits, before.unknown)
