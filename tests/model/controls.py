"""What a host's debugger and a guest hypervisor ask for, in the numbers of the contract."""

from typing import NamedTuple

from exitlab.events import DebuggerControl, NestedControl

from .debug_control import DebugControl


class Debugger(NamedTuple):
    """What the host's debugger has asked for: the control bits of KVM_SET_GUEST_DEBUG, and its DR7."""

    control: int = 0
    dr7: int = 0

    def _has(self, bit: int) -> bool:
        """Return whether ``bit`` is set and anything but injection is on at all."""
        return self.control & DebuggerControl.ENABLE != 0 and self.control & bit != 0

    @property
    def has_hardware_breakpoints(self) -> bool:
        """Whether it owns DR0 to DR3 and DR7."""
        return self._has(DebuggerControl.USE_HW_BP)

    @property
    def has_software_breakpoints(self) -> bool:
        """Whether it takes breakpoint exceptions."""
        return self._has(DebuggerControl.USE_SW_BP)

    @property
    def takes_debug_exceptions(self) -> bool:
        """Whether debug exceptions go to it: it has hardware breakpoints or single-steps."""
        return self.has_hardware_breakpoints or self._has(DebuggerControl.SINGLESTEP)

    @property
    def injects_db(self) -> bool:
        """Whether it injects a #DB; where a #BP is asked for too, KVM injects this one."""
        return self.control & DebuggerControl.INJECT_DB != 0

    @property
    def injects_bp(self) -> bool:
        """Whether it injects a #BP."""
        return self.control & DebuggerControl.INJECT_BP != 0


class Nested(NamedTuple):
    """What the guest hypervisor has asked for while its guest runs, and the DR7 and DEBUGCTL that it gave."""

    controls: int
    dr7: int
    debugctl: DebugControl

    @property
    def intercepts_mov_dr(self) -> bool:
        """Whether a MOV DR leaves the nested guest."""
        return self.controls & NestedControl.INTERCEPTS_MOV_DR != 0

    @property
    def loads(self) -> bool:
        """Whether VMX loads DR7 and DEBUGCTL when entering."""
        return self.controls & NestedControl.LOADS_DEBUG_CONTROLS != 0

    @property
    def saves(self) -> bool:
        """Whether VMX saves DR7 and DEBUGCTL when leaving."""
        return self.controls & NestedControl.SAVES_DEBUG_CONTROLS != 0

    @property
    def intercepts_db(self) -> bool:
        """Whether a debug exception leaves the nested guest."""
        return self.controls & NestedControl.INTERCEPTS_DB != 0
