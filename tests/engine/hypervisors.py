"""The shipped hypervisors for the second bill, as their published tables have them.

Source: Linux 3.14, 3.15 and 6.14 ``vcpu_enter_guest``, ``handle_dr``, ``dr_interception`` and the sync
functions, counted in operations; the mail of 9 March 2014 for the
alternative that swaps at each entry.
"""

from typing import Final

from exitlab.events import EventKind
from tests.engine.bill_model import FAST, NOTHING, BillModel
from tests.engine.build import Counts
from tests.model.second_model import SAME_AS, Story


class Ignore(BillModel):
    """Never intercepts, never switches."""


class SwapEachEntry(BillModel):
    """DR7 off, DR0-3 and DR6 in; DR0-3, DR6 and DR7 out; SVM has DR6 and DR7 in memory."""

    restores_host_leaving = 0

    def enters_guest(self) -> Counts:
        """Load all."""
        return Counts(writes=5 if self.is_svm else 6)

    def leaves_guest(self) -> Counts:
        """Save all."""
        return Counts(reads=4) if self.is_svm else Counts(reads=5, vmreads=1)

    def takes_over(self) -> Counts | None:
        """Put DR7 into its field."""
        return NOTHING if self.is_svm else Counts(vmwrites=1)


class Kvm(BillModel):
    """What all versions of KVM share."""

    intercepts = True
    restores_host_leaving = FAST
    trap_vmreads = 2  # the qualification, and DR7 for general detect

    @property
    def catches_db(self) -> bool:  # type: ignore[override]  # a constant elsewhere
        """Whether #DB exits."""
        return not self.is_svm

    def takes_over(self) -> Counts | None:
        """Work out anew what is enabled."""
        self.at.vcpu.believes = self.at.enables
        return NOTHING if self.is_svm else Counts(vmwrites=1)

    def trap(self, vmwrites: int = 0) -> Counts:
        """Return what a trapped MOV DR costs with so many VMWRITEs."""
        return NOTHING if self.is_svm else Counts(vmreads=self.trap_vmreads, vmwrites=vmwrites)


class Kvm314(Kvm):
    """Every MOV DR exits and is emulated."""

    def enters_loop(self) -> Counts:
        """Load DR7 off and DR0-3 while a breakpoint is enabled."""
        return Counts(writes=5) if self.at.vcpu.believes else NOTHING

    def answers_mov_dr(self) -> tuple[Counts, bool]:
        """Emulate; a DR7 that was written goes into its field."""
        event = self.at.event
        is_dr7 = event.kind == EventKind.MOV_TO_DR and SAME_AS.get(event.arg, event.arg) == 7
        if self.at.story == Story.NOTHING and is_dr7:
            self.at.vcpu.believes = self.at.enables
            return self.trap(vmwrites=1), False
        return self.trap(), False


class Kvm315(Kvm):
    """The first MOV DR opens a window; what is enabled is not worked out when it closes."""

    def enters_loop(self) -> Counts:
        """Load DR7 off, DR0-3 and DR6, on both vendors: the code is common to them."""
        return Counts(writes=6) if self.at.vcpu.window == "opening" or self.at.vcpu.believes else NOTHING

    def closes_window(self) -> Counts:
        """Save; the control is read before it is written."""
        return Counts(reads=4) if self.is_svm else Counts(reads=5, vmreads=2, vmwrites=1)

    def answers_mov_dr(self) -> tuple[Counts, bool]:
        """Refuse a user's access, else open the window; #UD comes from the processor."""
        if self.at.story in (Story.UD, Story.GP) and self.at.event.modes & 3:
            return self.trap(), False
        return self.trap(vmwrites=1), True


class Kvm614(Kvm):
    """The first MOV DR opens a window; the belief is exact, and fast exits leave the window alone."""

    catches_db = True
    has_fast_exits = True

    def enters_loop(self) -> Counts:
        """Load, DR6 only when a window opens; or mask the host's breakpoints."""
        vcpu = self.at.vcpu
        if vcpu.window == "opening":
            return Counts(writes=5 if self.is_svm else 6)
        if vcpu.believes:
            return Counts(writes=5)
        return Counts(writes=1) if self.at.cpu.has_host_breakpoints else NOTHING

    def closes_window(self) -> Counts:
        """Save, arm, work out what is enabled, and reset DR6."""
        self.at.vcpu.believes = self.at.enables
        return Counts(reads=4) if self.is_svm else Counts(reads=5, writes=1, vmreads=1, vmwrites=2)

    def answers_mov_dr(self) -> tuple[Counts, bool]:
        """Refuse what the processor would refuse before the operand is looked at, else open the window."""
        story, event = self.at.story, self.at.event
        is_early = story in (Story.UD, Story.DB_FAULT) or (story == Story.GP and event.modes & 3 != 0)
        return (self.trap(), False) if is_early else (self.trap(vmwrites=1), True)


HYPERVISORS: Final = {
    "kvm-3.14": Kvm314,
    "kvm-3.15": Kvm315,
    "kvm-6.14": Kvm614,
    "swap-each-entry": SwapEachEntry,
    "ignore": Ignore,
}
