"""The words that policies and the loop share: moments, inputs, micro-actions, quirks, deviations.

A vCPU stands on a rung of a ladder::

    0 guest · 1 inner loop · 2 kernel · 3 out of the run session · 4 not resident on its CPU

Going down crosses the four *enter* moments, going up the four *leave* moments. At each moment a
policy's table says, for what the policy believes and the host can see, which micro-actions to take.
They are always taken in the one order of ``Action``.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final


class Moment(IntEnum):
    """When a policy may act; the number plus one is the contract's."""

    GAIN_RESIDENCE = 0
    ENTER_SESSION = 1
    ENTER_LOOP = 2
    ENTER_GUEST = 3
    LEAVE_GUEST = 4
    LEAVE_LOOP = 5
    LEAVE_SESSION = 6
    LOSE_RESIDENCE = 7
    SCHEDULED_IN = 8
    SCHEDULED_OUT = 9
    DR_TRAPPED = 10
    DB_EXIT = 11
    CONTROL_CHANGED = 12


class Check(IntEnum):
    """The first check of a trapped MOV DR that fails, in the policy's own order."""

    NONE = 0
    UD = 1
    GP = 2
    GD = 3


class Debugger(IntEnum):
    """What the host's debugger does with the vCPU."""

    NONE = 0
    ATTACHED = 1
    OWNS_BREAKPOINTS = 2


class RegisterClass(IntEnum):
    """Which register a trapped MOV DR names."""

    ADDRESS = 0  # DR0 to DR3
    STATUS = 1  # DR6
    CONTROL = 2  # DR7


class Control(IntEnum):
    """What changed from outside."""

    DEBUGREGS = 0
    RESET = 1
    DEBUGGER = 2
    HOST_BREAKPOINTS = 3
    NESTED = 4  # a nested guest was entered or left, and DR7 switched


class Input(IntEnum):
    """What a policy may ask; the first two are its beliefs, the rest are facts a host can see.

    Never the truth about ownership: a policy that could see it would not have the bugs that are to
    be shown.
    """

    MEMORY = 0
    BREAKPOINTS_ENABLED = 1  # belief, changed by RECOMPUTE only
    DEBUGGER = 2
    HOST_BREAKPOINTS = 3  # the host uses breakpoints on this physical CPU
    SHADOW_ENABLES = 4  # the shadow DR7 enables something
    SHADOW_HAS_GD = 5
    MOVED = 6  # this physical CPU is not the one of the last load
    DEBUG_CONTROLS_AT_RESET = 7  # what an entry would load is the host's: DR7 0x400 and DEBUGCTL 0
    CHECK = 8
    IS_WRITE = 9
    REGISTER_CLASS = 10
    WOULD_ENABLE = 11  # the DR7 value written enables something
    CONTROL = 12


INPUT_SIZES: Final[dict[Input, int]] = {
    Input.MEMORY: 8,
    Input.BREAKPOINTS_ENABLED: 2,
    Input.DEBUGGER: 3,
    Input.HOST_BREAKPOINTS: 2,
    Input.SHADOW_ENABLES: 2,
    Input.SHADOW_HAS_GD: 2,
    Input.MOVED: 2,
    Input.DEBUG_CONTROLS_AT_RESET: 2,
    Input.CHECK: 4,
    Input.IS_WRITE: 2,
    Input.REGISTER_CLASS: 3,
    Input.WOULD_ENABLE: 2,
    Input.CONTROL: 5,
}

_ALWAYS_SHOWN: Final = tuple(Input)[: Input.CHECK]
SHOWN_INPUTS: Final[dict[Moment, tuple[Input, ...]]] = {
    moment: _ALWAYS_SHOWN
    + {
        Moment.DR_TRAPPED: (Input.CHECK, Input.IS_WRITE, Input.REGISTER_CLASS, Input.WOULD_ENABLE),
        Moment.CONTROL_CHANGED: (Input.CONTROL,),
    }.get(moment, ())
    for moment in Moment
}


class Action(IntEnum):
    """The micro-actions in the one order in which a cell's are taken.

    load = shadow to hardware, save = hardware to shadow. *Field* is GUEST_DR7 on VMX, and DR6 and
    DR7 of the VMCB on SVM.
    """

    HOST_SAVE = 0  # this vCPU's save area := hardware DR0-3, 6, 7 with their owners
    ZERO_DR7 = 1  # hardware DR7 := 0x400, so that nothing matches while loading
    SAVE_DR0_3 = 2
    SAVE_DR6 = 3  # on SVM from the field
    SAVE_DR7 = 4  # from the field
    RESET_DR6 = 5  # hardware DR6 := 0xffff0ff0
    ARM = 6  # intercept on
    MERGE_DB_SHADOW = 7  # shadow DR6 takes the #DB's cause, GD cleared in shadow and field
    EMULATE = 8  # do the access on the shadow
    INJECT = 9  # deliver the failing check's fault
    EFFECTIVE = 10  # effective := the debugger's if it owns breakpoints, else the shadow
    EFFECTIVE_RAW = 11  # effective := shadow always
    EFFECTIVE_MERGED = 12  # effective := both; the debugger's slots win where both enable one
    RECOMPUTE = 13  # belief BREAKPOINTS_ENABLED and field DR7 := those of the effective DR7
    LOAD_DR0_3 = 14  # hardware := effective
    LOAD_DR6 = 15  # hardware (SVM: field) := shadow
    CLEAN_DR6 = 16  # SVM: field DR6 := 0xffff0ff0, so that a #DB shows its cause
    LOAD_DR7 = 17  # field := effective
    MERGE_DB_HARDWARE = 18  # hardware DR6 (SVM: field) takes the cause, GD cleared in the field
    WRITE_THROUGH = 19  # do the access on the physical register
    HOST_RESTORE = 20  # hardware := the host's true registers
    HOST_RESTORE_SAVED = 21  # hardware := this vCPU's save area
    DR7_ON = 22  # bare write of the effective DR7
    DR7_OFF = 23  # bare write of 0x400 to hardware DR7
    READ_DR7 = 24  # bare read
    READ_DR6 = 25  # bare read
    CONTROLS_OFF = 26  # entries and exits leave DR7 and DEBUGCTL alone
    CONTROLS_ON = 27
    DISARM = 28  # intercept off
    REEXECUTE = 29  # run the trapped instruction again natively
    STAY = 30  # remain in the kernel for the next instruction


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations on debug registers and their controls; a number of each."""

    dr_reads: int = 0
    dr_writes: int = 0
    vmreads: int = 0
    vmwrites: int = 0
    msr_accesses: int = 0


NO_OPERATIONS: Final = Operations()
_R6: Final = Operations(dr_reads=6)
_W1: Final = Operations(dr_writes=1)
_VW1: Final = Operations(vmwrites=1)
_W6: Final = Operations(dr_writes=6)

VMX_COSTS: Final[dict[Action, Operations]] = {
    Action.HOST_SAVE: _R6,
    Action.ZERO_DR7: _W1,
    Action.SAVE_DR0_3: Operations(dr_reads=4),
    Action.SAVE_DR6: Operations(dr_reads=1),
    Action.SAVE_DR7: Operations(vmreads=1),
    Action.RESET_DR6: _W1,
    Action.ARM: _VW1,
    Action.RECOMPUTE: _VW1,
    Action.LOAD_DR0_3: Operations(dr_writes=4),
    Action.LOAD_DR6: _W1,
    Action.LOAD_DR7: _VW1,
    Action.MERGE_DB_HARDWARE: _W1,
    Action.HOST_RESTORE: _W6,
    Action.HOST_RESTORE_SAVED: _W6,
    Action.DR7_ON: _W1,
    Action.DR7_OFF: _W1,
    Action.READ_DR7: Operations(dr_reads=1),
    Action.READ_DR6: Operations(dr_reads=1),
    Action.CONTROLS_OFF: _VW1,
    Action.CONTROLS_ON: _VW1,
    Action.DISARM: _VW1,
}
"""Default operations of each action on VMX; WRITE_THROUGH costs one read or write by direction."""

SVM_COSTS: Final[dict[Action, Operations]] = {
    action: Operations(operations.dr_reads, operations.dr_writes)
    for action, operations in VMX_COSTS.items()
    if action not in (Action.SAVE_DR6, Action.LOAD_DR6, Action.MERGE_DB_HARDWARE)
}
"""On SVM the fields are memory: VMREAD and VMWRITE become plain accesses, and DR6 is a field."""


class Quirk(IntFlag):
    """How a hypervisor's emulation differs from the processor, beyond its check order and masks."""

    GD_KEEPS_TRAP_BITS = 1 << 0  # an injected general-detect #DB leaves B0 to B3 as they were
    DB_KEEPS_GD = 1 << 1  # merging a #DB does not clear GD
    SKIPS_ON_FAULT = 1 << 2  # an emulated access that faults moves the instruction pointer on
    FULL_OPERAND = 1 << 3  # emulation takes 64 bits of a 32-bit operand
    STOP_WITHOUT_RTM = 1 << 4  # a host debugger is told a DR6 whose RTM bit is clear
    STOP_SHOWS_SHADOW = 1 << 5  # told of general detect with the guest's own DR6
    STOP_UNWRITTEN = 1 << 6  # told nothing: DR6 and DR7 of a processor's #DB are not filled in
    INT1_NOT_SKIPPED = 1 << 7  # an INT1 that exits is raised before it, not after it
    NESTED_TRAPS_FIRST = 1 << 8  # what L1 wants is answered by the table once before L1 gets it
    NESTED_NEEDS_CONTROLS = 1 << 9  # a nested entry that does not switch the debug controls is refused
    MATCHES_IO = 1 << 10  # an I/O instruction that exits is matched by the hypervisor


class Deviation(IntEnum):
    """Ways in which a guest may see something else than the architecture that a policy can declare."""

    CHECK_ORDER = 0  # a trapped access fails another check first
    GD_KEEPS_TRAP_BITS = 1
    DB_KEEPS_GD = 2
    EMULATED_MASKS = 3  # an emulated write keeps or drops other bits
    STALE_EFFECTIVE = 4  # registers set from outside reach the hardware late
    RAW_READS = 5  # registers set from outside read back unmasked
    SKIPS_ON_FAULT = 6
    FULL_OPERAND = 7
    SHADOW_KEEPS_GD = 8  # the processor cleared GD, the shadow did not
    IO_BREAKPOINT = 9  # an I/O instruction that exits matches no breakpoint
    INT1_AS_DB = 10  # an INT1 that exits is raised as a #DB without a cause
    OPEN_SURVIVES_DEBUGGER = 11  # a window that is about to open stays so when a debugger takes over
