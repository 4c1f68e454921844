"""What stands around a guest's debug registers: MOV SS's shadow, the host's debugger, the nesting guest.

All numbers are ``uint64``, for the compiled loops.
"""

from typing import Final

from exitlab import debugreg
from exitlab.events import FETCH_END, DebuggerControl, EventKind, NestedControl
from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.debug_registers import U64, ZERO

END_OF_FETCH: Final = U64(FETCH_END)

# Kinds that do more than read or write registers, match, or fault; and those that use staged operands.
SPECIAL_KINDS: Final = U64(
    sum(
        1 << kind
        for kind in (
            *(EventKind.INT1, EventKind.INT3, EventKind.INTN, EventKind.MOV_SS, EventKind.VMRUN),
            *(EventKind.VMEXIT_TO_L1, EventKind.HOST_DEBUGGER, EventKind.RESET, EventKind.INIT),
        )
    )
)
USING_KINDS: Final = U64(
    1 << EventKind.SET_DEBUGREGS
    | 1 << EventKind.HOST_DEBUGGER
    | 1 << EventKind.HOST_BREAKPOINTS
    | 1 << EventKind.VMRUN
)

# How far the shadow of a MOV SS has come.
SHADOW_NONE: Final = U64(0)
SHADOW_CAST: Final = U64(1)  # MOV SS was the last instruction
SHADOW_FETCHED: Final = U64(2)  # and the next has been fetched
SHADOW_OVERDUE: Final = U64(3)  # what is held comes instead of the next event

# Control flags of the host's debugger.
TAKES_DB: Final = U64(DebuggerControl.SINGLESTEP | DebuggerControl.USE_HW_BP)
USES_HW: Final = U64(DebuggerControl.USE_HW_BP)
USES_SW: Final = U64(DebuggerControl.USE_SW_BP)
INJECTS_DB: Final = U64(DebuggerControl.INJECT_DB)
INJECTS_BP: Final = U64(DebuggerControl.INJECT_BP)
_ENABLE: Final = U64(DebuggerControl.ENABLE)
_INJECTS: Final = U64(DebuggerControl.INJECT_DB | DebuggerControl.INJECT_BP)

# What a guest hypervisor asks for.
WANTS_MOV_DR: Final = U64(NestedControl.INTERCEPTS_MOV_DR)
LOADS_CONTROLS: Final = U64(NestedControl.LOADS_DEBUG_CONTROLS)
SAVES_CONTROLS: Final = U64(NestedControl.SAVES_DEBUG_CONTROLS)
WANTS_DB: Final = U64(NestedControl.INTERCEPTS_DB)

# IA32_DEBUGCTL, and where it stands in the story value of a nested guest that VMX leaves.
MSR_DEBUGCTL: Final = U64(debugreg.MSR_DEBUGCTL)
DEBUGCTL_BITS: Final = U64(debugreg.DEBUGCTL_BITS)
DEBUGCTL_SHIFT: Final = U64(24)


@compiled()
def kept_control(selector):  # type: ignore[no-untyped-def]  # numba infers
    """Return the flags that stay in force after HOST_DEBUGGER; without ENABLE, none."""
    return selector & ~_INJECTS if (selector & _ENABLE) != ZERO else ZERO
