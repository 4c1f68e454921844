"""Small policies that act at other rungs than the shipped ones: what real hypervisors do, in a few lines.

They are here to hold the loop to its word that no policy needs a special case: each synchronizes at
another rung of the ladder, and all must tell the same story.

Source: the state machines of bhyve, NVMM, VirtualBox (``hmR0VmxLeave``, ``vmxHCExitMovDRx``) and Xen HVM
(``vmx_dr_access``, ``vmx_save_dr``), simplified: none of them merges a debugger's breakpoints here.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar, Final

from exitlab import debugreg
from hypervisor_svc.engine.vocabulary import Action, Control, Operations
from hypervisor_svc.policies.base import Do, Policy, Sees, do
from tests.engine.build import VENDOR_OF

LOAD: Final = (Action.LOAD_DR0_3, Action.LOAD_DR6)
SAVE: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7, Action.EFFECTIVE)
TAKE_OVER: Final = (Action.EFFECTIVE, Action.LOAD_DR7)


class Other(Policy):
    """What they share: #UD is intercepted, and registers set from outside are loaded when it is time."""

    initially_armed = False
    intercepted_exceptions: tuple[int, ...] = (debugreg.VECTOR_UD,)

    def __init__(self, vendor: int) -> None:
        """Make the policy for a vendor."""
        self.vendor = VENDOR_OF[vendor]
        self.name = type(self).__name__

    def control_changed(self, sees: Sees) -> Do | None:
        """Put the new registers where the next load takes them from."""
        return None if sees.control is Control.HOST_BREAKPOINTS else do(TAKE_OVER)


class SwapsWithTheHost(Other):
    """bhyve: never intercepts; at each entry saves the host's six and loads the guest's, and back."""

    def enter_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Save the host's, load the guest's."""
        return do(Action.HOST_SAVE, Action.ZERO_DR7, LOAD)

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Save the guest's, restore the host's."""
        return do(SAVE, Action.HOST_RESTORE_SAVED)


class SwapsEachRun(Other):
    """NVMM: never intercepts; swaps once around the run ioctl."""

    def enter_session(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Load the guest's."""
        return do(Action.ZERO_DR7, LOAD)

    def leave_session(self, sees: Sees) -> Do | None:
        """Save the guest's, and give the host back what it uses."""
        return do(SAVE, Action.HOST_RESTORE if sees.host_breakpoints else ())


class Owner(IntEnum):
    """Whose registers the hardware holds."""

    HOST = 0
    GUEST = 1


class OpenUntilHeavyExit(Other):
    """VirtualBox: the first access opens a window that lasts until the ring-0 session is left."""

    initially_armed = True
    memories = Owner
    intercepted_exceptions = (debugreg.VECTOR_DB, debugreg.VECTOR_UD)
    _OPEN: ClassVar = (Action.HOST_SAVE, Action.ZERO_DR7, LOAD, Action.DISARM)

    def enter_session(self, sees: Sees) -> Do | None:
        """Open at once where the guest uses breakpoints or general detect."""
        if sees.shadow_enables or sees.shadow_has_gd:
            return do(*self._OPEN, memory=Owner.GUEST)
        return None

    def dr_trapped(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Load at the exit itself, and run the access again."""
        return do(*self._OPEN, Action.REEXECUTE, memory=Owner.GUEST)

    def leave_session(self, sees: Sees) -> Do | None:
        """Save, arm, and restore the host's."""
        if sees.memory == Owner.GUEST:
            return do(SAVE, Action.ARM, Action.HOST_RESTORE_SAVED, memory=Owner.HOST)
        return None

    def db_exit(self, sees: Sees) -> Do | None:
        """Put the cause where the guest's DR6 is."""
        return do(Action.MERGE_DB_HARDWARE if sees.memory == Owner.GUEST else Action.MERGE_DB_SHADOW)


class Place(IntEnum):
    """Where the guest's registers are."""

    CLEAN = 0
    LOADED = 1  # in the hardware, the intercept on
    OPEN = 2


class OpenUntilDescheduled(Other):
    """Xen HVM on VMX: a window lasts until another vCPU takes the physical CPU; no host breakpoints."""

    initially_armed = True
    memories = Place
    intercepted_exceptions = (debugreg.VECTOR_DB, debugreg.VECTOR_UD)
    trap_operations = Operations(vmreads=1)

    def enter_session(self, sees: Sees) -> Do | None:
        """Load where the guest uses breakpoints, and leave the intercept on."""
        if sees.memory == Place.CLEAN and sees.shadow_enables:
            return do(LOAD, memory=Place.LOADED)
        return None

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Load if that is to be done, and run the access again: the processor makes all checks."""
        load = LOAD if sees.memory == Place.CLEAN else ()
        return do(load, Action.DISARM, Action.REEXECUTE, memory=Place.OPEN)

    def lose_residence(self, sees: Sees) -> Do | None:
        """Save and arm."""
        return None if sees.memory == Place.CLEAN else do(SAVE, Action.ARM, memory=Place.CLEAN)

    def db_exit(self, sees: Sees) -> Do | None:
        """Put the cause into the hardware's DR6."""
        if sees.memory == Place.CLEAN:
            return do(LOAD, Action.MERGE_DB_HARDWARE, memory=Place.LOADED)
        return do(Action.MERGE_DB_HARDWARE)

    def control_changed(self, sees: Sees) -> Do | None:
        """Load at once what is loaded already."""
        if sees.control is Control.HOST_BREAKPOINTS:
            return None
        return do(TAKE_OVER, LOAD if sees.memory != Place.CLEAN else ())


OTHERS: Final[tuple[Callable[[int], Other], ...]] = (
    SwapsWithTheHost,
    SwapsEachRun,
    OpenUntilHeavyExit,
    OpenUntilDescheduled,
)
