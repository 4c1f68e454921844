"""The second bill of KVM's versions between 3.15 and 6.14, and of 7.1, as their source has it.

Source: Linux ``vcpu_enter_guest``, ``handle_dr``, ``dr_interception``, ``kvm_arch_vcpu_put``, the sync and
the fast-path functions of the versions named, counted in operations.
"""

from typing import Final

from exitlab.events import EventKind
from tests.engine.bill_model import FAST, NOTHING, NUMBERS, OUT_OF_SESSION, Key
from tests.engine.build import Counts, total
from tests.engine.hypervisors import Kvm614
from tests.model.streams import Mix


class Kvm44(Kvm614):
    """4.4: as 6.14, but each load is of DR6 too, the control is read first, and the belief may be stale."""

    has_fast_exits = False
    load: Counts = Counts(writes=6)
    svm_open: Counts = Counts(writes=6)
    vmx_close: Counts = Counts(reads=5, vmreads=2, vmwrites=1)
    reads_control = True
    recomputes = False
    remembers_reload = True
    clears_dr6_at_put = False
    masks_host = False

    def __init__(self, mix: Mix, *, is_svm: bool) -> None:
        """Start as after power-up."""
        super().__init__(mix, is_svm=is_svm)
        self._reloading: set[int] = set()  # vCPUs by identity

    def enters_loop(self) -> Counts:
        """Load, or mask the host's breakpoints."""
        vcpu = self.at.vcpu
        is_reloading = id(vcpu) in self._reloading
        self._reloading.discard(id(vcpu))
        if vcpu.window == "opening":
            return self.svm_open if self.is_svm else Counts(writes=6)
        if vcpu.believes or is_reloading:
            return self.load
        return Counts(writes=1) if self.masks_host and self.at.cpu.has_host_breakpoints else NOTHING

    def closes_window(self) -> Counts:
        """Save and arm; from 4.6 on work out what is enabled."""
        if self.recomputes:
            self.at.vcpu.believes = self.at.enables
        return Counts(reads=4) if self.is_svm else self.vmx_close

    def answers_mov_dr(self) -> tuple[Counts, bool]:
        """As 6.14; where the control is not cached, read it before it is written."""
        operations, opens = super().answers_mov_dr()
        is_read = opens and self.reads_control and not self.is_svm
        return (total((operations, Counts(vmreads=1))) if is_read else operations), opens

    def takes_over(self) -> Counts | None:
        """Remember to load what was set."""
        if self.remembers_reload and self.at.vcpu.window != "opening":
            self._reloading.add(id(self.at.vcpu))
        return super().takes_over()

    def climb(self, number: int, target: int, key: Key | None = None) -> None:
        """Clear DR6 when the vCPU is put."""
        vcpu = self.vcpus[number]
        before = vcpu.rung
        super().climb(number, target, key)
        if self.clears_dr6_at_put and before < OUT_OF_SESSION <= vcpu.rung:
            vcpu.standing.append(Counts(writes=1))


class Kvm46(Kvm44):
    """4.6: the belief is worked out anew."""

    vmx_close = Counts(reads=5, vmreads=2, vmwrites=2)
    recomputes = True


class Kvm54(Kvm46):
    """5.4 and 5.7: execution controls are cached, and DR6 is cleared when the vCPU is put."""

    vmx_close = Counts(reads=5, vmreads=1, vmwrites=2)
    reads_control = False
    clears_dr6_at_put = True


class Kvm514(Kvm54):
    """5.14: fast exits, and DR7 off where the host has breakpoints."""

    has_fast_exits = True
    masks_host = True


class Kvm517(Kvm514):
    """5.17 and 6.8: DR6 is loaded at each entry with the window open, and reset when it closes."""

    load = Counts(writes=5)
    svm_open = Counts(writes=5)
    vmx_close = Counts(reads=5, writes=1, vmreads=1, vmwrites=2)
    remembers_reload = False
    clears_dr6_at_put = False

    def enters_guest(self) -> Counts:
        """Load DR6 again after a fast exit; the first entry's load is part of the window's opening."""
        return Counts(writes=1) if self.at.vcpu.window == "open" and not self.is_svm else NOTHING


class Kvm71(Kvm614):
    """7.1: HLT and INVD are fast too."""

    def _is_fast(self, kind: EventKind, sub_reason: int) -> bool:
        return kind in (EventKind.HLT, EventKind.INVD) or super()._is_fast(kind, sub_reason)

    def _recorded_exit(self, reason: int) -> Key:
        names = ("hlt", "invd") if self.is_svm else ("HLT", "INVD")
        key = super()._recorded_exit(reason)
        is_fast = reason in {NUMBERS[self.is_svm][name] for name in names}
        return key._replace(exit_class=FAST) if is_fast else key


KVM_BILLS: Final[dict[str, type[Kvm614]]] = {
    "kvm-4.4": Kvm44,
    "kvm-4.6": Kvm46,
    "kvm-5.4": Kvm54,
    "kvm-5.7": Kvm54,
    "kvm-5.14": Kvm514,
    "kvm-5.17": Kvm517,
    "kvm-6.8": Kvm517,
    "kvm-7.1": Kvm71,
}
