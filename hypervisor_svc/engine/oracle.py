"""The oracle loop: one lane's whole machine, event by event.

It holds what a real host holds: hardware registers of every physical CPU with their owners, shadow,
effective and field registers of every vCPU, the rung it stands on, and the policy's memory and
belief. It knows no policy: at each moment it looks up a cell and takes its micro-actions.

For one event the loop walks through *steps*: bring the vCPU into the guest (which runs the lazily
postponed entry), attempt the instruction, climb to the rung where the exit is handled, let the
policy handle it, deliver what the guest sees. Each turn of the inner ``while`` crosses at most one
moment, so the micro-actions stand in one place.

It is one function because helpers that take arrays leave reference counting in the loop.
"""

from typing import Final

import numba.types as nt

from exitlab.events import EventKind, Mark, Mode
from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.controls import (
    DEBUGCTL_BITS,
    DEBUGCTL_SHIFT,
    END_OF_FETCH,
    INJECTS_BP,
    INJECTS_DB,
    LOADS_CONTROLS,
    MSR_DEBUGCTL,
    SAVES_CONTROLS,
    SHADOW_CAST,
    SHADOW_FETCHED,
    SHADOW_NONE,
    SHADOW_OVERDUE,
    SPECIAL_KINDS,
    TAKES_DB,
    USES_HW,
    USES_SW,
    WANTS_DB,
    WANTS_MOV_DR,
    kept_control,
)
from hypervisor_svc.arch.debug_registers import (
    ACCESS_FETCH,
    ACCESS_IO,
    ACCESS_READ,
    ACCESS_WRITE,
    DR6_BD,
    DR6_BS,
    DR6_CAUSES,
    DR6_RESET,
    DR6_RTM,
    DR6_TRAP_BITS,
    DR7_ENABLES,
    DR7_FIXED,
    DR7_GD,
    DR7_RESET,
    FAULT_GD,
    FAULT_GP,
    FAULT_NONE,
    FAULT_UD,
    LOW_32,
    ONE,
    U64,
    ZERO,
    canonical_dr6,
    canonical_dr7,
    dr6_after_db,
    first_fault,
    matching_slots,
    mixed,
    registers_digest,
)
from hypervisor_svc.arch.story import Story, is_exception
from hypervisor_svc.engine import profile
from hypervisor_svc.engine.records import (
    ACCOUNT_EXIT,
    ACCOUNT_HOST,
    ACCOUNT_SIGNAL,
    ARMED,
    BELIEF,
    BILL_ROWS,
    CHECK_ORDER,
    CLUSTER,
    CLUSTER_ACCESSES,
    CLUSTER_GAP,
    CLUSTERED,
    CONTROL,
    CONTROLS_ARE_OFF,
    DEBUG_EXIT_COUNT,
    DEBUG_EXIT_DR6,
    DEBUG_EXIT_DR7,
    DEBUG_EXIT_EXCEPTION,
    DEBUG_EXIT_FIRST,
    DEBUG_EXIT_ROWS,
    DEBUGGER,
    DEBUGGER_DB,
    DEBUGGER_DR7,
    DECISION_ROWS,
    DECLARED,
    DECLARED_DEBUGCTL,
    DECLARED_DR6,
    DECLARED_DR7,
    DECLARED_RULE,
    DECLARES,
    DIGEST,
    DIVERGED,
    DUE_RULE,
    EFFECTIVE,
    EFFECTIVE_DR7,
    EMULATED_DR6_FIXED,
    EMULATED_DR6_WRITABLE,
    EMULATED_DR7_WRITABLE,
    EXECUTED,
    EXITS_BY_CLASS,
    EXTRA,
    FAILURE,
    FAILURE_BILL_FULL,
    FAILURE_LIVE_LOCK,
    FIELD_DEBUGCTL,
    FIELD_DR6,
    FIELD_DR7,
    FIRST_EVENT,
    FIRST_KIND,
    FIRST_REGISTER,
    FIRST_STORY,
    FIRST_TRUE_STORY,
    FIRST_TRUE_VALUE,
    FIRST_VALUE,
    FIRST_VCPU,
    HARDWARE_DEBUGCTL,
    HARDWARE_DR6,
    HARDWARE_DR7,
    HAS_DE,
    HELD,
    HOME,
    HOST,
    HOST_ACTIVE,
    HOST_BLIND,
    HOST_DR6,
    HOST_DR7,
    INTERCEPTED,
    IS_COMPUTED,
    IS_SVM,
    KEEP_MEMORY,
    KEY_ACCOUNT_SHIFT,
    KEY_CLASS_SHIFT,
    KEY_CLOSED,
    KEY_CLUSTER_SHIFT,
    KEY_EMULATED,
    KEY_MSR_SHIFT,
    KEY_OPENED,
    KEY_REEXECUTED,
    KEY_SECOND,
    KEY_SKIPPED,
    KEY_STORY_SHIFT,
    KEY_SUB_REASON_SHIFT,
    LAST_LOAD,
    LATENT,
    LEAK_ARMED_IN_GUEST,
    LEAK_ARMED_IN_HOST,
    LEAK_USED_BY_GUEST,
    MEMORY,
    MOST_DEBUG_EXITS,
    NESTED,
    NESTED_CONTROL,
    NESTED_DEBUGCTL,
    NESTED_DR7,
    OWNER,
    OWNER_DEBUGGER,
    OWNER_DR6,
    OWNER_HOST,
    OWNER_NOBODY,
    PENDING_KEY,
    PENDING_OPERATIONS,
    QUIRKS,
    READ_LIVE,
    READ_SHADOW_AS_IS,
    RECOMPUTE_OPERATIONS,
    REFUSED,
    REFUSES,
    REFUSES_DEBUGGER,
    REFUSES_DEBUGREGS,
    REFUSES_HOST,
    REFUSES_NESTING,
    RESIDENT,
    RESIDENT_ON,
    RUNG,
    RUNG_OF_SAVING,
    SAVED,
    SAVED_OWNERS,
    SHADOW,
    SHADOW_DR6,
    SHADOW_DR7,
    SHADOW_OF_SS,
    STAGED,
    STAGED_DR7,
    STALE_SLOTS,
    SURVIVED,
    SWITCHES,
    TRAP_OPERATIONS,
    TRAPPED,
    TRUE,
    TRUE_DR6,
    TRUE_DR7,
    TRUE_UNDEFINED,
    UNINTERCEPTED,
    WINDOW,
    WINDOW_EXACT,
    WINDOW_SIZE,
    WINDOWS,
    WRITABLE_DR6,
)
from hypervisor_svc.engine.vocabulary import Action, Deviation, Input, Moment, Quirk

# Steps.
_ENTER: Final = 0
_ATTEMPT: Final = 1
_CLIMB: Final = 2
_HANDLED: Final = 3
_DELIVER: Final = 4
_SHOW: Final = 5
_HOST: Final = 6
_HOST_APPLY: Final = 7
_CLUSTER: Final = 8
_LEAVE_NESTED: Final = 9
_DONE: Final = 10

_NO_MOMENT: Final = U64(len(Moment))
_ENTER_GUEST: Final = U64(Moment.ENTER_GUEST)
_LEAVE_GUEST: Final = U64(Moment.LEAVE_GUEST)
_LOSE_RESIDENCE: Final = U64(Moment.LOSE_RESIDENCE)
_SCHEDULED_IN: Final = U64(Moment.SCHEDULED_IN)
_SCHEDULED_OUT: Final = U64(Moment.SCHEDULED_OUT)
_DR_TRAPPED: Final = U64(Moment.DR_TRAPPED)
_DB_EXIT: Final = U64(Moment.DB_EXIT)
_CONTROL_CHANGED: Final = U64(Moment.CONTROL_CHANGED)

_QUIET: Final = int(profile.Group.QUIET)
_EXITING: Final = int(profile.Group.EXITING)
_DR: Final = int(profile.Group.DR)
_MATCH: Final = int(profile.Group.MATCH)
_MSR: Final = int(profile.Group.MSR)
_CR_WRITE: Final = int(profile.Group.CR_WRITE)
_MMIO: Final = int(profile.Group.MMIO)
_EXCEPTION: Final = int(profile.Group.EXCEPTION)
_RECORDED_EXIT: Final = int(profile.Group.RECORDED_EXIT)
_SIGNAL: Final = int(profile.Group.SIGNAL)
_HOST_GROUP: Final = int(profile.Group.HOST)
_SOFTWARE: Final = int(profile.Group.SOFTWARE)
_NESTED_GROUP: Final = int(profile.Group.NESTED)

_MOV_TO_DR: Final = int(EventKind.MOV_TO_DR)
_WRMSR: Final = int(EventKind.WRMSR)
_IN: Final = int(EventKind.IN)
_OUTS: Final = int(EventKind.OUTS)
_INT1: Final = int(EventKind.INT1)
_INT3: Final = int(EventKind.INT3)
_MOV_SS: Final = int(EventKind.MOV_SS)
_VMRUN: Final = int(EventKind.VMRUN)
_VMEXIT_TO_L1: Final = int(EventKind.VMEXIT_TO_L1)
_FETCH: Final = int(EventKind.FETCH)
_READ_KIND: Final = int(EventKind.READ)
_EXTERNAL_INTERRUPT: Final = int(EventKind.EXTERNAL_INTERRUPT)
_SCHED_OUT: Final = int(EventKind.SCHED_OUT)
_SCHED_IN: Final = int(EventKind.SCHED_IN)
_STAGE: Final = int(EventKind.STAGE)
_SET_DEBUGREGS: Final = int(EventKind.SET_DEBUGREGS)
_GET_DEBUGREGS: Final = int(EventKind.GET_DEBUGREGS)
_HOST_DEBUGGER: Final = int(EventKind.HOST_DEBUGGER)
_HOST_BREAKPOINTS: Final = int(EventKind.HOST_BREAKPOINTS)
_STATE: Final = int(EventKind.STATE)
_ADVANCE: Final = int(EventKind.ADVANCE)
_RESET: Final = int(EventKind.RESET)
_FIRST_ASYNCHRONOUS: Final = int(EventKind.EXTERNAL_INTERRUPT)

_UNKNOWN: Final = U64(Mark.VALUE_UNKNOWN)
_EXPECTED: Final = U64(Mark.VALUE_EXPECTED)
_RETIRED: Final = U64(Mark.RETIRED)
_NOT_RETIRED: Final = U64(Mark.NOT_RETIRED)
_CLASS_SHIFT: Final = U64(6)
_NOT_PLAIN: Final = U64(0xFF & ~(Mark.VALUE_EXPECTED | Mark.IF_FAULT | Mark.IF_OK | Mark.RETIRED))
_CPL: Final = U64(Mode.CPL)
_RF: Final = U64(Mode.RF)
_TF: Final = U64(Mode.TF)
_INTERRUPT_SHADOW: Final = U64(Mode.INTERRUPT_SHADOW)
_OPERAND_32: Final = U64(Mode.OPERAND_32)

_TWO: Final = U64(2)
_THREE: Final = U64(3)
_FOUR: Final = U64(4)
_FIVE: Final = U64(5)
_SIX: Final = U64(6)
_SEVEN: Final = U64(7)
_EIGHT: Final = U64(8)
_12: Final = U64(12)
_13: Final = U64(13)
_15: Final = U64(15)
_16: Final = U64(16)
_32: Final = U64(32)
_NO_VECTOR: Final = ~ZERO
_40: Final = U64(40)
_FFF: Final = U64(0xFFF)

_NOTHING: Final = U64(Story.NOTHING)
_STORY_READ: Final = U64(Story.READ)
_STORY_DB_FAULT: Final = U64(Story.DB_FAULT)
_STORY_DB_TRAP: Final = U64(Story.DB_TRAP)
_STORY_UD: Final = U64(Story.UD)
_STORY_GP: Final = U64(Story.GP)
_STORY_GP_SKIPPED: Final = U64(Story.GP_SKIPPED)
_STORY_NOT_TAKEN: Final = U64(Story.NOT_TAKEN)
_STORY_REGISTERS: Final = U64(Story.REGISTERS)
_STORY_BP: Final = U64(Story.BP)
_STORY_VMEXIT: Final = U64(Story.VMEXIT)

_LIVE: Final = U64(READ_LIVE)
_SHADOW_AS_IS: Final = U64(READ_SHADOW_AS_IS)

# Where fields of several words begin.
_DEBUGGER_DB_AT: Final = U64(DEBUGGER_DB)
_DECLARED_AT: Final = U64(DECLARED)
_EFFECTIVE_AT: Final = U64(EFFECTIVE)
_HOST_AT: Final = U64(HOST)
_OWNER_AT: Final = U64(OWNER)
_SAVED_AT: Final = U64(SAVED)
_SHADOW_AT: Final = U64(SHADOW)
_STAGED_AT: Final = U64(STAGED)
_TRUE_AT: Final = U64(TRUE)
_EXITS_BY_CLASS_AT: Final = U64(EXITS_BY_CLASS - 1)

_HOST_OWNER: Final = U64(OWNER_HOST)
_NOBODY: Final = U64(OWNER_NOBODY)
_DEBUGGER_OWNER: Final = U64(OWNER_DEBUGGER)
_REFUSES_DEBUGREGS: Final = U64(REFUSES_DEBUGREGS)
_REFUSES_DEBUGGER: Final = U64(REFUSES_DEBUGGER)
_REFUSES_HOST: Final = U64(REFUSES_HOST)
_REFUSES_NESTING: Final = U64(REFUSES_NESTING)
_LAST_DEBUG_EXIT: Final = U64(MOST_DEBUG_EXITS - 1)
_FAST: Final = U64(1)
_LIGHT: Final = U64(2)
_HEAVY: Final = U64(3)
_CLASS_OF_KEY: Final = U64(3 << KEY_CLASS_SHIFT)
_PREEMPTION_TIMER_REASON: Final = U64(52)
_OUT_OF_SESSION: Final = U64(3)
_NOT_RESIDENT: Final = U64(4)
_SUB_KICK: Final = U64(profile.SUB_KICK)
_SUB_DEVICE_MEMORY: Final = U64(profile.SUB_DEVICE_MEMORY)
_OWNS_BREAKPOINTS: Final = U64(2)
_WINDOW_CLOSED: Final = U64(0)
_WINDOW_OPENING: Final = U64(1)
_WINDOW_OPEN: Final = U64(2)
_WINDOW_EXACT: Final = U64(WINDOW_EXACT)

_ACCOUNTS: Final = U64(7 << KEY_ACCOUNT_SHIFT)
_EXIT_ACCOUNT: Final = U64(ACCOUNT_EXIT << KEY_ACCOUNT_SHIFT)
_HOST_ACCOUNT: Final = U64(ACCOUNT_HOST << KEY_ACCOUNT_SHIFT)
_KEY_CLASS: Final = U64(KEY_CLASS_SHIFT)
_KEY_SUB: Final = U64(KEY_SUB_REASON_SHIFT)
_KEY_CLUSTER: Final = U64(KEY_CLUSTER_SHIFT)
_KEY_MSR: Final = U64(KEY_MSR_SHIFT)
_KEY_STORY: Final = U64(KEY_STORY_SHIFT)
_EMULATED: Final = U64(KEY_EMULATED)
_SKIPPED: Final = U64(KEY_SKIPPED)
_REEXECUTED: Final = U64(KEY_REEXECUTED)
_OPENED: Final = U64(KEY_OPENED)
_CLOSED: Final = U64(KEY_CLOSED)
_SECOND: Final = U64(KEY_SECOND)
_SIGNAL_KEY: Final = U64(ACCOUNT_SIGNAL << KEY_ACCOUNT_SHIFT)

# Micro-actions as bits of a cell.
_A_HOST_SAVE: Final = U64(1 << Action.HOST_SAVE)
_A_ZERO_DR7: Final = U64(1 << Action.ZERO_DR7)
_A_SAVE_DR0_3: Final = U64(1 << Action.SAVE_DR0_3)
_A_SAVE_DR6: Final = U64(1 << Action.SAVE_DR6)
_A_SAVE_DR7: Final = U64(1 << Action.SAVE_DR7)
_A_RESET_DR6: Final = U64(1 << Action.RESET_DR6)
_A_ARM: Final = U64(1 << Action.ARM)
_A_MERGE_DB_SHADOW: Final = U64(1 << Action.MERGE_DB_SHADOW)
_A_EMULATE: Final = U64(1 << Action.EMULATE)
_A_INJECT: Final = U64(1 << Action.INJECT)
_A_EFFECTIVE: Final = U64(1 << Action.EFFECTIVE)
_A_EFFECTIVE_RAW: Final = U64(1 << Action.EFFECTIVE_RAW)
_A_EFFECTIVE_MERGED: Final = U64(1 << Action.EFFECTIVE_MERGED)
_A_RECOMPUTE: Final = U64(1 << Action.RECOMPUTE)
_A_LOAD_DR0_3: Final = U64(1 << Action.LOAD_DR0_3)
_A_LOAD_DR6: Final = U64(1 << Action.LOAD_DR6)
_A_CLEAN_DR6: Final = U64(1 << Action.CLEAN_DR6)
_A_LOAD_DR7: Final = U64(1 << Action.LOAD_DR7)
_A_MERGE_DB_HARDWARE: Final = U64(1 << Action.MERGE_DB_HARDWARE)
_A_WRITE_THROUGH: Final = U64(1 << Action.WRITE_THROUGH)
_A_HOST_RESTORE: Final = U64(1 << Action.HOST_RESTORE)
_A_HOST_RESTORE_SAVED: Final = U64(1 << Action.HOST_RESTORE_SAVED)
_A_DR7_ON: Final = U64(1 << Action.DR7_ON)
_A_DR7_OFF: Final = U64(1 << Action.DR7_OFF)
_A_CONTROLS_OFF: Final = U64(1 << Action.CONTROLS_OFF)
_A_CONTROLS_ON: Final = U64(1 << Action.CONTROLS_ON)
_A_ANSWERS: Final = _A_EMULATE | _A_INJECT | _A_WRITE_THROUGH
_A_DISARM: Final = U64(1 << Action.DISARM)
_A_REEXECUTE: Final = U64(1 << Action.REEXECUTE)
_A_STAY: Final = U64(1 << Action.STAY)

_I_MEMORY: Final = int(Input.MEMORY)
_I_BELIEF: Final = int(Input.BREAKPOINTS_ENABLED)
_I_DEBUGGER: Final = int(Input.DEBUGGER)
_I_HOST: Final = int(Input.HOST_BREAKPOINTS)
_I_ENABLES: Final = int(Input.SHADOW_ENABLES)
_I_GD: Final = int(Input.SHADOW_HAS_GD)
_I_MOVED: Final = int(Input.MOVED)
_I_AT_RESET: Final = int(Input.DEBUG_CONTROLS_AT_RESET)
_I_CHECK: Final = int(Input.CHECK)
_I_WRITE: Final = int(Input.IS_WRITE)
_I_CLASS: Final = int(Input.REGISTER_CLASS)
_I_WOULD_ENABLE: Final = int(Input.WOULD_ENABLE)
_I_CONTROL: Final = int(Input.CONTROL)
_CONTROL_DEBUGREGS: Final = U64(0)
_CONTROL_RESET: Final = U64(1)
_CONTROL_DEBUGGER: Final = U64(2)
_CONTROL_HOST: Final = U64(3)
_CONTROL_NESTED: Final = U64(4)

_Q_GD_KEEPS_TRAP_BITS: Final = U64(Quirk.GD_KEEPS_TRAP_BITS)
_Q_DB_KEEPS_GD: Final = U64(Quirk.DB_KEEPS_GD)
_Q_SKIPS_ON_FAULT: Final = U64(Quirk.SKIPS_ON_FAULT)
_Q_FULL_OPERAND: Final = U64(Quirk.FULL_OPERAND)
_Q_STOP_WITHOUT_RTM: Final = U64(Quirk.STOP_WITHOUT_RTM)
_Q_STOP_SHOWS_SHADOW: Final = U64(Quirk.STOP_SHOWS_SHADOW)
_Q_STOP_UNWRITTEN: Final = U64(Quirk.STOP_UNWRITTEN)
_Q_INT1_NOT_SKIPPED: Final = U64(Quirk.INT1_NOT_SKIPPED)
_Q_NESTED_TRAPS_FIRST: Final = U64(Quirk.NESTED_TRAPS_FIRST)
_Q_NESTED_NEEDS_CONTROLS: Final = U64(Quirk.NESTED_NEEDS_CONTROLS)
_Q_MATCHES_IO: Final = U64(Quirk.MATCHES_IO)

# A deviation's rule number is its number plus one; 0 is none.
_R_CHECK_ORDER: Final = U64(Deviation.CHECK_ORDER + 1)
_R_GD_KEEPS_TRAP_BITS: Final = U64(Deviation.GD_KEEPS_TRAP_BITS + 1)
_R_DB_KEEPS_GD: Final = U64(Deviation.DB_KEEPS_GD + 1)
_R_EMULATED_MASKS: Final = U64(Deviation.EMULATED_MASKS + 1)
_R_STALE_EFFECTIVE: Final = U64(Deviation.STALE_EFFECTIVE + 1)
_R_RAW_READS: Final = U64(Deviation.RAW_READS + 1)
_R_SKIPS_ON_FAULT: Final = U64(Deviation.SKIPS_ON_FAULT + 1)
_R_FULL_OPERAND: Final = U64(Deviation.FULL_OPERAND + 1)
_R_SHADOW_KEEPS_GD: Final = U64(Deviation.SHADOW_KEEPS_GD + 1)
_R_IO_BREAKPOINT: Final = U64(Deviation.IO_BREAKPOINT + 1)
_R_INT1_AS_DB: Final = U64(Deviation.INT1_AS_DB + 1)
_R_OPEN_SURVIVES: Final = U64(Deviation.OPEN_SURVIVES_DEBUGGER + 1)

LEVEL_DECISIONS: Final = 3
LEVEL_FULL: Final = 4
_UNNUMBERED: Final = U64(0xFFFF)

_U8 = nt.Array(nt.uint8, 1, "C", readonly=True, aligned=False)
_U32 = nt.Array(nt.uint32, 1, "C", readonly=True, aligned=False)
_U64 = nt.Array(nt.uint64, 1, "C", readonly=True, aligned=False)
_SIGNATURE = nt.void(
    *(_U8, _U8, _U8, _U8, _U8, _U32, _U32, _U64, nt.uint64),  # events
    *(nt.uint8[::1], nt.uint64[::1], nt.uint32[::1]),  # the reference's story
    *(
        nt.uint64[::1],
        nt.uint64[::1],
        nt.uint64[:, ::1],
        nt.uint64[::1],
        nt.uint8[::1],
        nt.uint8[::1],
    ),  # policy
    *(nt.uint64[::1], nt.uint64[::1]),  # operations of each cell
    *(nt.uint8[::1], nt.uint32[::1], nt.uint32[::1], nt.uint8[:, ::1], nt.uint32[::1]),  # profile
    *(nt.uint64[:, ::1], nt.uint64[:, ::1], nt.uint64[::1]),  # state
    *(nt.uint64[:, ::1], nt.uint64[::1], nt.uint64[::1], nt.uint64[:, :, ::1], nt.uint64[:, ::1]),  # counters
    *(nt.uint64[:, ::1], nt.uint64[::1]),  # exits to a host debugger, visits of cells
    *(nt.int64, nt.uint64[:, ::1], nt.uint64[::1], nt.uint64[:, ::1]),  # outcomes
    *(nt.uint16[::1], nt.uint8[::1], nt.uint64[::1]),
)


@compiled(_SIGNATURE)
def run_lane(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915  # see the module's docstring
    kinds,
    args,
    modes,
    marks,
    vcpus,
    gap_cycles,
    selectors,
    values,
    first_event,
    true_stories,
    true_values,
    true_undefined,
    lane,
    bases,
    strides,
    cells,
    next_memories,
    read_sources,
    cell_operations,
    cell_host_operations,
    groups,
    exit_codes,
    exception_codes,
    classes,
    passed_msrs,
    vcpu,
    physical,
    counts,
    bill_keys,
    bill_counts,
    window_sizes,
    leaks,
    declared,
    debug_exits,
    visits,
    level,
    decision_keys,
    decision_numbers,
    decisions,
    out_decisions,
    out_stories,
    out_values,
):
    """Run a checked block through one lane; every array but the events' is state or result.

    ``bill_keys`` (capacity, 2) and ``bill_counts`` are a hash table from (reason, operation pattern)
    to a count; ``decision_keys`` and ``decision_numbers`` one from a decision to its number plus one,
    and ``decisions`` lists the keys by number. Capacities are powers of two. ``visits`` counts how often
    each cell was taken, unless it is empty.
    """
    is_svm = lane[IS_SVM] != ZERO
    writable_dr6 = lane[WRITABLE_DR6]
    quirks = lane[QUIRKS]
    declares = lane[DECLARES]
    is_computed = lane[IS_COMPUTED] != ZERO
    bill_mask = U64(bill_counts.size) - ONE
    decision_mask = U64(decision_numbers.size) - ONE
    refuses = lane[REFUSES]
    clusters = lane[CLUSTER_GAP] != ZERO
    counts_visits = U64(visits.size) != ZERO
    for i in range(U64(kinds.size)):
        kind = kinds[i]
        group = groups[kind]
        v = U64(vcpus[i])
        true_story = U64(true_stories[i])
        story = _NOTHING
        seen = ZERO
        event_key = ZERO
        event_operations = ZERO
        is_tail = False  # a single step or what MOV SS has held may follow
        is_special = vcpu[v, EXTRA] != ZERO or (U64(modes[i]) & _TF) != ZERO
        is_special = is_special or ((SPECIAL_KINDS >> U64(kind)) & ONE) != ZERO
        if kind == _ADVANCE or true_story == _STORY_NOT_TAKEN:
            story = true_story
            step = _DONE
        elif group == _HOST_GROUP:
            step = _HOST
        elif is_special and (vcpu[v, SHADOW_OF_SS] != SHADOW_NONE or (U64(modes[i]) & _TF) != ZERO):
            step = _ENTER
            is_tail = is_computed and kind < _FIRST_ASYNCHRONOUS
        elif group == _QUIET and vcpu[v, RUNG] == ZERO:
            step = _DONE
        elif vcpu[v, RUNG] == ZERO:
            step = _ATTEMPT
        else:
            step = _ENTER
        if clusters and kind == _ADVANCE:
            vcpu[v, CLUSTER] = ZERO  # time passes; an event that is not taken is nothing
        shows_nothing = true_story == _NOTHING or true_story == _STORY_NOT_TAKEN
        if step == _DONE and shows_nothing and level < LEVEL_DECISIONS:
            continue
        arg = U64(args[i])
        mode = U64(modes[i])
        mark = U64(marks[i])
        is_free = group == _DR and step == _ATTEMPT and vcpu[v, ARMED] == ZERO
        if is_free and level < LEVEL_DECISIONS and not is_special:
            # A plain access that runs natively and shows what it must, as most do: no step is needed.
            p = vcpu[v, RESIDENT_ON] - ONE
            is_retired = (mark & _RETIRED) != ZERO
            is_plain = is_retired or (physical[p, HARDWARE_DR7] & DR7_GD) == ZERO
            if is_plain and (mode | (mark & _NOT_PLAIN)) == ZERO and arg != _FOUR and arg != _FIVE:
                slot = arg if arg < _FOUR else arg - _TWO
                true_value = true_values[i]
                if kind == _MOV_TO_DR:
                    value = values[i]
                    if true_story == _NOTHING and (is_retired or arg < _SIX or (value >> _32) == ZERO):
                        if arg == _SIX:
                            value = canonical_dr6(value, writable_dr6)
                            vcpu[v, TRUE_UNDEFINED] = ZERO
                        elif arg == _SEVEN:
                            value = canonical_dr7(value)
                        else:
                            vcpu[v, STALE_SLOTS] &= ~(ONE << slot)
                        physical[p, slot] = value
                        if slot < _FIVE:
                            physical[p, _OWNER_AT + slot] = v + ONE
                        if vcpu[v, WINDOW] == _WINDOW_OPEN:
                            vcpu[v, WINDOW_SIZE] += ONE
                        vcpu[v, _TRUE_AT + slot] = true_value
                        vcpu[v, _DECLARED_AT + slot] = ZERO
                        vcpu[v, EXECUTED] += ONE
                        continue
                else:
                    seen = physical[p, slot]
                    is_own = slot == _FIVE or physical[p, _OWNER_AT + slot] == v + ONE
                    is_true = ((seen ^ true_value) & ~U64(true_undefined[i])) == ZERO
                    if is_own and is_true and true_story == _STORY_READ:
                        if vcpu[v, WINDOW] == _WINDOW_OPEN:
                            vcpu[v, WINDOW_SIZE] += ONE
                        vcpu[v, EXECUTED] += ONE
                        seen &= ~U64(true_undefined[i])
                        counts[DIGEST] += mixed(first_event + U64(i), v, _STORY_READ, seen)
                        continue
                    seen = ZERO
        selector = U64(selectors[i])
        value = values[i]
        true_value = true_values[i]
        # A MOV DR: the register after aliasing, its slot in a record, and what it is refused for.
        is_alias = False
        register = arg
        slot = arg
        is_write = False
        if group == _DR:
            is_alias = arg == _FOUR or arg == _FIVE
            register = arg + _TWO if is_alias else arg
            slot = register if register < _FOUR else register - _TWO
            is_write = kind == _MOV_TO_DR
            vcpu[v, EXECUTED] += ONE if step != _DONE else ZERO
        full_value = value
        if group == _DR and (mode & _OPERAND_32) != ZERO:
            value &= LOW_32
        if is_write and (mark & _UNKNOWN) != ZERO:
            value = vcpu[v, _TRUE_AT + slot]  # as the reference takes it: the value that is there
            full_value = value
        subject = v  # the vCPU whose ladder is climbed
        target = ZERO  # rung to climb to
        handler = _NO_MOMENT  # the moment of the exit itself
        cause = ZERO  # of a debug exception
        check = FAULT_NONE
        control = ZERO
        rule = ZERO  # the declared deviation that fired in this event
        raising = ZERO  # the cause of a debug exception that the next entry delivers
        is_kept = False  # the exception leaves DR6 and DR7 as they are
        is_held = False  # what MOV SS has held takes part
        enters_nested = False
        is_clustered = False
        is_undone = False  # a debugger's general detect left the access undone
        is_explained = False  # registers that differ as a declared deviation has left them
        is_due = False  # what MOV SS has held, if anything, comes instead of this event
        is_surviving = False  # in a window that has survived the debugger's coming
        exit_class = _LIGHT
        stop = ZERO  # the exception that the host's debugger is told of
        stop_dr6 = ZERO
        stop_dr7 = ZERO
        held_before = ZERO
        asks_debugctl = False  # an access to it waits for the hypervisor
        sets_debugctl = False
        left_debugctl = ZERO  # what a nested guest that was left had there
        host_control = ZERO
        nested_control = ZERO
        takes_db = False
        if is_special:
            held_before = vcpu[v, HELD]
            host_control = vcpu[v, CONTROL]
            nested_control = vcpu[v, NESTED_CONTROL] if vcpu[v, NESTED] != ZERO else ZERO
            takes_db = (host_control & TAKES_DB) != ZERO
        is_fetch = kind == _FETCH and arg != END_OF_FETCH
        is_io = kind >= _IN and kind <= _OUTS
        taint = ZERO  # bits that an emulated write left different
        kept_gd = ZERO  # what a debug exception of this event should have cleared
        kept_dr6 = ZERO  # what one that should not have come has set
        is_exit = False
        if clusters and vcpu[v, CLUSTER] != ZERO and step != _DONE:
            is_near = U64(gap_cycles[i]) <= lane[CLUSTER_GAP] and vcpu[v, RUNG] != ZERO
            # An exception that is due is delivered first.
            is_allowed = vcpu[v, CLUSTER] < lane[CLUSTER_ACCESSES] and vcpu[v, SHADOW_OF_SS] != SHADOW_OVERDUE
            if group == _DR and is_near and is_allowed and (mark & _NOT_RETIRED) == ZERO and step == _ENTER:
                step = _CLUSTER
            else:
                vcpu[v, CLUSTER] = ZERO
        is_tail = is_tail and (mark & _NOT_RETIRED) == ZERO
        is_reexecuted = False
        peeks = False  # a look into the table, with nothing done
        source = _LIVE
        while step != _DONE:
            moment = _NO_MOMENT
            climbs = False
            c = subject  # the vCPU whose moment it is
            p = ZERO  # the physical CPU that it is on
            if step == _ENTER:
                rung = vcpu[v, RUNG]
                home = vcpu[v, HOME]
                if rung == ZERO:
                    step = _ATTEMPT
                elif rung < _NOT_RESIDENT and vcpu[v, RESIDENT_ON] != home + ONE:
                    climbs = True  # it left a physical CPU on which it was still resident
                elif rung == _NOT_RESIDENT and physical[home, RESIDENT] != ZERO:
                    c = physical[home, RESIDENT] - ONE
                    climbs = True  # another vCPU gives way
                else:
                    moment = _FOUR - rung
                    p = home
                    if rung == _NOT_RESIDENT:
                        physical[p, RESIDENT] = v + ONE
                        vcpu[v, RESIDENT_ON] = p + ONE
                if climbs:
                    moment = _LEAVE_GUEST + vcpu[c, RUNG]
                    p = vcpu[c, RESIDENT_ON] - ONE
            elif step == _CLIMB:
                p = (
                    vcpu[subject, RESIDENT_ON] - ONE
                    if vcpu[subject, RESIDENT_ON] != ZERO
                    else vcpu[subject, HOME]
                )
                if vcpu[subject, RUNG] < target:
                    climbs = True
                    moment = _LEAVE_GUEST + vcpu[subject, RUNG]
                else:
                    is_here = vcpu[subject, RESIDENT_ON] == p + ONE and vcpu[subject, RUNG] != ZERO
                    if physical[p, HOST_ACTIVE] != ZERO and is_here:
                        if physical[p, HARDWARE_DR7] == physical[p, HOST_DR7]:
                            for k in range(_FOUR):
                                enabled = (physical[p, HOST_DR7] >> (_TWO * k)) & _THREE
                                owner = physical[p, _OWNER_AT + k]
                                if enabled != ZERO and owner != _HOST_OWNER and owner != _NOBODY:
                                    leaks[LEAK_ARMED_IN_HOST, k, owner] += ONE
                        else:
                            counts[HOST_BLIND] += ONE
                    if group == _HOST_GROUP:
                        step = _HOST_APPLY
                    elif handler != _NO_MOMENT:
                        moment = handler
                        step = _HANDLED
                    else:
                        step = _DELIVER
            elif step == _ATTEMPT:
                p = vcpu[v, RESIDENT_ON] - ONE
                code = U64(exit_codes[kind])
                sub = ZERO
                is_exit = False
                fault = FAULT_NONE
                vector = _NO_VECTOR
                is_outside = False
                is_overdue = False
                shade = SHADOW_NONE
                step = _DONE
                if is_special:
                    is_outside = vcpu[v, RUNG] != ZERO  # an instruction that was emulated retires
                    step = _DELIVER if is_outside else _DONE
                    shade = vcpu[v, SHADOW_OF_SS]
                    is_due = shade == SHADOW_OVERDUE or (shade == SHADOW_FETCHED and is_fetch)
                    is_due = is_due and is_tail and (mark & _RETIRED) == ZERO
                    is_overdue = is_due and vcpu[v, HELD] != ZERO
                if is_outside:
                    if story == _STORY_DB_TRAP:
                        vector = ONE
                elif raising != ZERO:
                    vector = ONE
                    cause = raising
                    raising = ZERO
                    story = _STORY_DB_TRAP
                elif is_overdue:
                    vector = ONE
                    cause = vcpu[v, HELD] >> _FOUR
                    story = _STORY_DB_FAULT
                    is_held = True
                    vcpu[v, HELD] = ZERO
                    vcpu[v, SHADOW_OF_SS] = SHADOW_NONE
                elif group == _DR:
                    is_sure = (mark & (_RETIRED | _NOT_RETIRED)) != ZERO
                    is_wanted = (nested_control & WANTS_MOV_DR) != ZERO and not is_sure
                    is_armed = vcpu[v, ARMED] != ZERO
                    if is_armed and lane[UNINTERCEPTED] != ZERO:
                        bit = arg + (_EIGHT if is_write else ZERO)
                        is_armed = ((lane[UNINTERCEPTED] >> bit) & ONE) == ZERO
                    is_undefined = is_alias and vcpu[v, HAS_DE] != ZERO
                    is_unprivileged = (mode & _CPL) != ZERO
                    is_retired = (mark & _RETIRED) != ZERO
                    if not is_retired and (is_svm or not (is_armed or is_wanted)):
                        fault = first_fault(
                            is_undefined, is_unprivileged, (physical[p, HARDWARE_DR7] & DR7_GD) != ZERO
                        )
                    if (is_armed or is_wanted) and fault == FAULT_NONE:
                        is_exit = True
                        if not is_reexecuted:
                            vcpu[v, TRAPPED] += ONE
                        if is_svm:
                            code = U64(0x30 if is_write else 0x20) + arg
                        if is_wanted and not (is_armed and (quirks & _Q_NESTED_TRAPS_FIRST) != ZERO):
                            story = _STORY_VMEXIT
                            handler = _NO_MOMENT
                            is_retired = True
                        else:
                            handler = _DR_TRAPPED
                        if not is_retired:
                            gd = (
                                physical[p, HARDWARE_DR7] & DR7_GD
                            ) != ZERO  # what the exit saves in the field
                            condition = (
                                (ONE if is_undefined else ZERO)
                                | (_TWO if is_unprivileged else ZERO)
                                | (_FOUR if gd else ZERO)
                            )
                            check = (lane[CHECK_ORDER] >> (_TWO * condition)) & _THREE
                            is_early = check == FAULT_GD and (is_undefined or is_unprivileged)
                            if is_early and ((declares >> (_R_CHECK_ORDER - ONE)) & ONE) != ZERO:
                                rule = _R_CHECK_ORDER
                            is_answered = check == FAULT_GD and (mark & _NOT_RETIRED) == ZERO
                            if is_answered and (host_control & USES_HW) != ZERO:
                                # It is the debugger's general detect; the access is left undone.
                                stop = ONE
                                stop_dr6 = DR6_RESET | DR6_BD
                                if (quirks & _Q_STOP_SHOWS_SHADOW) != ZERO:
                                    stop_dr6 = vcpu[v, SHADOW_DR6]
                                stop_dr7 = physical[p, HARDWARE_DR7]
                                handler = _NO_MOMENT
                                is_tail = False
                                is_undone = True
                                is_surviving = vcpu[v, SURVIVED] != ZERO
                            elif is_answered and (nested_control & WANTS_DB) != ZERO and not is_svm:
                                story = _STORY_VMEXIT
                                cause = DR6_BD
                                handler = _NO_MOMENT
                    elif (mark & _NOT_RETIRED) == ZERO:
                        if fault == FAULT_NONE and not is_retired and is_write and register >= _SIX:
                            if (value >> _32) != ZERO:
                                fault = FAULT_GP
                        if fault == FAULT_UD:
                            story = _STORY_UD
                            vector = _SIX
                        elif fault == FAULT_GP:
                            story = _STORY_GP
                            vector = _13
                        elif fault == FAULT_GD:
                            story = _STORY_DB_FAULT
                            vector = ONE
                            cause = DR6_BD
                        elif is_write:
                            written = value
                            if register == _SIX:
                                written = canonical_dr6(value, writable_dr6)
                            elif register == _SEVEN:
                                written = canonical_dr7(value)
                            physical[p, slot] = written
                            if slot < _FIVE:
                                physical[p, _OWNER_AT + slot] = v + ONE
                            if vcpu[v, WINDOW] == _WINDOW_OPEN:
                                vcpu[v, WINDOW_SIZE] += ONE
                        else:
                            story = _STORY_READ
                            seen = physical[p, slot]
                            if (mode & _OPERAND_32) != ZERO:
                                seen &= LOW_32
                            if slot < _FIVE:
                                owner = physical[p, _OWNER_AT + slot]
                                if owner != v + ONE and owner != _NOBODY:
                                    leaks[LEAK_USED_BY_GUEST, slot if slot < _FOUR else register, owner] += (
                                        ONE
                                    )
                            if vcpu[v, WINDOW] == _WINDOW_OPEN:
                                vcpu[v, WINDOW_SIZE] += ONE
                elif group == _MATCH:
                    access = ACCESS_WRITE
                    is_blocked = False
                    if kind == _FETCH:
                        access = ACCESS_FETCH
                        # On VMX the shadow of MOV SS covers a code breakpoint on the next instruction.
                        is_shaded = shade == SHADOW_CAST or (mode & _INTERRUPT_SHADOW) != ZERO
                        is_blocked = not is_fetch or (mode & _RF) != ZERO or (is_shaded and not is_svm)
                    elif kind == _READ_KIND:
                        access = ACCESS_READ
                    if is_computed and not is_blocked and (physical[p, HARDWARE_DR7] & DR7_ENABLES) != ZERO:
                        hits = matching_slots(
                            access,
                            value,
                            arg,
                            physical[p, 0],
                            physical[p, 1],
                            physical[p, 2],
                            physical[p, 3],
                            physical[p, HARDWARE_DR7],
                        )
                        if (hits & _15) != ZERO:
                            story = _STORY_DB_FAULT if kind == _FETCH else _STORY_DB_TRAP
                            vector = ONE
                            cause = hits >> _FOUR
                            for k in range(_FOUR):
                                owner = physical[p, _OWNER_AT + k]
                                is_foreign = owner != v + ONE and owner != _NOBODY and not takes_db
                                if ((hits >> k) & ONE) != ZERO and is_foreign:
                                    leaks[LEAK_USED_BY_GUEST, k, owner] += ONE
                elif group == _SOFTWARE:
                    if kind == _INT1 and is_computed:
                        story = _STORY_DB_TRAP
                        vector = ONE
                        is_kept = True
                    elif kind == _INT3 and is_computed:
                        story = _STORY_BP
                        vector = _THREE
                    elif kind == _MOV_SS and is_computed and arg != ZERO:
                        hits = matching_slots(
                            ACCESS_READ,
                            value,
                            arg,
                            physical[p, 0],
                            physical[p, 1],
                            physical[p, 2],
                            physical[p, 3],
                            physical[p, HARDWARE_DR7],
                        )
                        if (hits & _15) == ZERO:
                            hits = ZERO
                        for k in range(_FOUR):
                            owner = physical[p, _OWNER_AT + k]
                            is_foreign = owner != v + ONE and owner != _NOBODY and not takes_db
                            if ((hits >> k) & ONE) != ZERO and is_foreign:
                                leaks[LEAK_USED_BY_GUEST, k, owner] += ONE
                        if shade == SHADOW_NONE and not takes_db:
                            vcpu[v, HELD] = hits
                        elif hits != ZERO:
                            story = _STORY_DB_TRAP
                            vector = ONE
                            cause = hits >> _FOUR
                    if kind == _MOV_SS and is_computed and shade == SHADOW_NONE:
                        vcpu[v, SHADOW_OF_SS] = SHADOW_CAST
                        is_tail = False
                elif group == _NESTED_GROUP:
                    is_refused = (refuses & _REFUSES_NESTING) != ZERO
                    if kind == _VMRUN and (quirks & _Q_NESTED_NEEDS_CONTROLS) != ZERO:
                        needed = LOADS_CONTROLS | SAVES_CONTROLS
                        is_refused = is_refused or (vcpu[v, NESTED] == ZERO and (value & needed) != needed)
                    if is_refused:
                        counts[REFUSED] += ONE
                    elif kind == _VMRUN:
                        is_exit = True
                        enters_nested = vcpu[v, NESTED] == ZERO
                        if not enters_nested:
                            story = _STORY_VMEXIT
                    elif vcpu[v, NESTED] != ZERO:
                        is_exit = True
                        code = selector
                        story = _STORY_VMEXIT
                elif group == _EXITING:
                    is_exit = True
                elif group == _MSR:
                    is_exit = True
                    for k in range(U64(passed_msrs.size)):
                        if selector == U64(passed_msrs[k]):
                            is_exit = False
                    if kind == _WRMSR and selector == profile.MSR_TSC_DEADLINE:
                        sub = ONE
                    elif kind == _WRMSR and selector == profile.MSR_X2APIC_ICR:
                        sub = _TWO
                    elif selector == MSR_DEBUGCTL:
                        # A recording's first read says what was there, as nothing has said so before.
                        says_first = (mark & _EXPECTED) != ZERO and true_undefined[i] != 0
                        sets_debugctl = (mark & _UNKNOWN) == ZERO if kind == _WRMSR else says_first
                        asks_debugctl = is_exit
                        if sets_debugctl:
                            vcpu[v, DECLARED_DEBUGCTL] = ZERO
                        if sets_debugctl and not is_exit:
                            physical[p, HARDWARE_DEBUGCTL] = value & DEBUGCTL_BITS
                        if kind != _WRMSR and not is_exit:
                            story = _STORY_READ
                            seen = physical[p, HARDWARE_DEBUGCTL]
                elif group == _CR_WRITE:
                    if arg == ZERO or arg == _FOUR:
                        is_exit = True
                        if is_svm:
                            code += arg
                    if arg == _FOUR and (mark & _UNKNOWN) == ZERO:
                        vcpu[v, HAS_DE] = (value >> _THREE) & ONE
                elif group == _MMIO:
                    is_exit = True
                    sub = _SUB_DEVICE_MEMORY
                    if (selector >> _12) == profile.LOCAL_APIC_PAGE:
                        sub = _THREE
                elif group == _EXCEPTION:
                    vector = selector
                    if vector == ONE:
                        story = _STORY_DB_FAULT
                        cause = value & DR6_CAUSES if (mark & _UNKNOWN) == ZERO else ZERO
                    elif vector == _SIX:
                        story = _STORY_UD
                    elif vector == _13:
                        story = _STORY_GP
                elif group == _RECORDED_EXIT:
                    is_exit = True
                    code = selector
                elif group == _SIGNAL:
                    is_exit = True
                if is_tail and not is_exit:
                    # The instruction retires, or was refused: its step, and what MOV SS has held.
                    is_tail = False
                    shade = vcpu[v, SHADOW_OF_SS]
                    is_refused = is_exception(story) and story != _STORY_DB_TRAP and story != _STORY_BP
                    is_refused = is_refused or story == _STORY_VMEXIT or group == _EXCEPTION
                    if is_refused:
                        vcpu[v, HELD] = ZERO
                        vcpu[v, SHADOW_OF_SS] = SHADOW_NONE
                    else:
                        if (mode & _TF) != ZERO and story != _STORY_READ and group != _SOFTWARE:
                            cause |= DR6_BS
                            story = _STORY_DB_TRAP
                            vector = ONE
                        if shade == SHADOW_CAST and is_fetch and (mode & _TF) == ZERO:
                            vcpu[v, SHADOW_OF_SS] = SHADOW_FETCHED
                        elif shade != SHADOW_NONE:
                            vcpu[v, SHADOW_OF_SS] = SHADOW_NONE
                            if vcpu[v, HELD] != ZERO:
                                if story == _STORY_READ or kind == _INT3:
                                    vcpu[v, SHADOW_OF_SS] = SHADOW_OVERDUE
                                else:
                                    cause |= vcpu[v, HELD] >> _FOUR
                                    vcpu[v, HELD] = ZERO
                                    story = _STORY_DB_TRAP
                                    vector = ONE
                                    is_kept = False
                                    is_held = True
                if vector != _NO_VECTOR:
                    step = _DELIVER
                    is_taken = vector < _32 and ((lane[INTERCEPTED] >> vector) & ONE) != ZERO
                    # No intercept of #DB covers INT1 on SVM, unless something held comes with it (assumed).
                    is_native_int1 = kind == _INT1 and is_svm and not is_held
                    leaves = vector == ONE and (nested_control & WANTS_DB) != ZERO and not is_native_int1
                    is_told = vector == ONE and takes_db and not is_native_int1
                    is_told = is_told or (vector == _THREE and (host_control & USES_SW) != ZERO)
                    if is_native_int1 or is_told:
                        is_taken = False
                    if is_told:
                        story = _NOTHING
                        stop = vector
                        is_undone = fault == FAULT_GD
                        is_surviving = is_undone and vcpu[v, SURVIVED] != ZERO
                        if vector == ONE and is_outside:
                            stop_dr6 = DR6_RESET | cause  # DR7 is not filled in
                        elif vector == ONE and (quirks & _Q_STOP_UNWRITTEN) == ZERO:
                            stop_dr6 = DR6_RESET | cause
                            if (quirks & _Q_STOP_WITHOUT_RTM) != ZERO:
                                stop_dr6 &= ~DR6_RTM
                            stop_dr7 = physical[p, HARDWARE_DR7]
                            if is_svm:
                                stop_dr7 &= ~DR7_GD  # cleared before the intercept
                        if is_outside and exit_class == _HEAVY:
                            stop = ZERO  # an exit that goes to user space anyhow loses the step
                        elif is_outside:
                            handler = _NO_MOMENT
                            target = _HEAVY
                            step = _CLIMB
                        else:
                            is_exit = True
                            code = U64(exception_codes[vector])
                            handler = _NO_MOMENT
                    elif is_outside:
                        # The hypervisor raises it for the instruction that it has emulated.
                        if leaves:
                            story = _STORY_VMEXIT
                        if is_taken and (is_svm or not leaves):
                            # What is to be injected ends the inner run loop.
                            handler = _DB_EXIT
                            target = _LIGHT
                            step = _CLIMB
                        elif leaves and is_svm:
                            vcpu[v, FIELD_DR6] = dr6_after_db(vcpu[v, SHADOW_DR6], cause)
                            vcpu[v, FIELD_DR7] &= ~DR7_GD
                            vcpu[v, SHADOW_DR6] = vcpu[v, FIELD_DR6]
                        elif not leaves:
                            raising = cause
                            story = _NOTHING
                            step = _ENTER
                    if is_outside and step == _CLIMB and exit_class < target and not is_clustered:
                        # The exit went further than its reason says.
                        key = vcpu[v, PENDING_KEY]
                        vcpu[v, _EXITS_BY_CLASS_AT + exit_class] -= ONE
                        vcpu[v, _EXITS_BY_CLASS_AT + target] += ONE
                        vcpu[v, PENDING_KEY] = (key & ~_CLASS_OF_KEY) | (target << _KEY_CLASS)
                        event_key = (event_key & ~_CLASS_OF_KEY) | (target << _KEY_CLASS)
                        exit_class = target
                    is_native = not (is_told or is_outside or is_kept or is_native_int1)
                    if vector == ONE and is_native and (is_svm or not (is_taken or leaves)):
                        # The processor itself updates DR6 and clears GD; a VMX #DB exit does not.
                        physical[p, HARDWARE_DR6] = dr6_after_db(physical[p, HARDWARE_DR6], cause)
                        physical[p, HARDWARE_DR7] &= ~DR7_GD
                        shadow_has_gd = (vcpu[v, SHADOW_DR7] & DR7_GD) != ZERO
                        if not is_taken and vcpu[v, ARMED] != ZERO and shadow_has_gd:
                            if ((declares >> (_R_SHADOW_KEEPS_GD - ONE)) & ONE) != ZERO:
                                kept_gd = DR7_GD
                                vcpu[v, DECLARED_DR7] |= DR7_GD
                                vcpu[v, DECLARED_RULE] = _R_SHADOW_KEEPS_GD
                    if (is_taken or leaves) and not is_outside and not is_told:
                        is_exit = True
                        code = U64(exception_codes[vector])
                        handler = _NO_MOMENT
                        if vector == ONE and is_taken and (is_svm or not leaves):
                            handler = _DB_EXIT
                        if kind == _INT1 and (quirks & _Q_INT1_NOT_SKIPPED) != ZERO and not is_held:
                            story = _STORY_DB_FAULT
                        if leaves:
                            story = _STORY_VMEXIT
                if is_exit:
                    exit_class = _LIGHT
                    if group == _SIGNAL:
                        exit_class = _HEAVY
                    elif code < U64(classes.shape[0]):
                        exit_class = U64(classes[code, sub])
                    if (mark >> _CLASS_SHIFT) != ZERO and vector == _NO_VECTOR and group != _DR:
                        exit_class = mark >> _CLASS_SHIFT  # not of an answer to a MOV DR or an exception
                    if vcpu[v, NESTED] != ZERO and exit_class == _FAST:
                        if is_svm or code != _PREEMPTION_TIMER_REASON:
                            exit_class = _LIGHT  # of a nested guest's exits only the timer's is fast
                    if stop != ZERO:
                        exit_class = _HEAVY
                    key = code | (exit_class << _KEY_CLASS) | (sub << _KEY_SUB)
                    key |= _SIGNAL_KEY if group == _SIGNAL else _EXIT_ACCOUNT
                    vcpu[v, PENDING_KEY] = key
                    vcpu[v, PENDING_OPERATIONS] = ZERO
                    if group != _SIGNAL:
                        vcpu[v, _EXITS_BY_CLASS_AT + exit_class] += ONE
                    # A MOV DR that exits and is run again may fault, and exit for that too.
                    event_key |= key if (event_key & _ACCOUNTS) == ZERO else _SECOND
                    target = exit_class
                    step = _CLIMB
            elif step == _DELIVER:
                step = _DONE
                if asks_debugctl:
                    asks_debugctl = False
                    if sets_debugctl:
                        vcpu[v, FIELD_DEBUGCTL] = value & DEBUGCTL_BITS
                    if kind != _WRMSR:
                        story = _STORY_READ
                        seen = vcpu[v, FIELD_DEBUGCTL]
                if is_io and (quirks & _Q_MATCHES_IO) != ZERO and is_computed and not takes_db:
                    if vcpu[v, HAS_DE] != ZERO and arg != ZERO and story == _NOTHING:
                        # Against the registers of a guest that has them itself, else against the shadow.
                        p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                        is_saved = lane[RUNG_OF_SAVING] != ZERO and vcpu[v, RUNG] >= lane[RUNG_OF_SAVING]
                        if vcpu[v, ARMED] != ZERO or is_saved:
                            hits = matching_slots(
                                ACCESS_IO,
                                selector,
                                arg,
                                vcpu[v, SHADOW],
                                vcpu[v, SHADOW + 1],
                                vcpu[v, SHADOW + 2],
                                vcpu[v, SHADOW + 3],
                                vcpu[v, SHADOW_DR7],
                            )
                        else:
                            hits = matching_slots(
                                ACCESS_IO,
                                selector,
                                arg,
                                physical[p, 0],
                                physical[p, 1],
                                physical[p, 2],
                                physical[p, 3],
                                vcpu[v, FIELD_DR7],
                            )
                        if (hits & _15) != ZERO:
                            cause = hits >> _FOUR
                            story = _STORY_DB_TRAP
                            is_tail = True
                            is_special = True
                if is_tail and stop == ZERO:
                    step = _ATTEMPT
                elif enters_nested:
                    enters_nested = False
                    p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                    entered_dr7 = canonical_dr7(vcpu[v, STAGED_DR7] & LOW_32)
                    vcpu[v, NESTED] = ONE
                    vcpu[v, NESTED_CONTROL] = value
                    vcpu[v, NESTED_DR7] = entered_dr7
                    if is_svm or (value & LOADS_CONTROLS) != ZERO:
                        vcpu[v, SHADOW_DR7] = entered_dr7
                        control = _CONTROL_NESTED
                        moment = _CONTROL_CHANGED
                    if is_svm:
                        entered_dr6 = vcpu[v, _STAGED_AT + _FOUR] & LOW_32
                        vcpu[v, SHADOW_DR6] = canonical_dr6(entered_dr6, writable_dr6)
                        vcpu[v, FIELD_DR6] = vcpu[v, SHADOW_DR6]
                    else:
                        vcpu[v, NESTED_DEBUGCTL] = vcpu[v, STAGED] & DEBUGCTL_BITS
                        if (value & LOADS_CONTROLS) != ZERO:
                            vcpu[v, FIELD_DEBUGCTL] = vcpu[v, NESTED_DEBUGCTL]
                elif is_exception(story) or story == _STORY_VMEXIT or story == _STORY_REGISTERS:
                    step = _SHOW
                    source = _LIVE
                    p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                    if vcpu[v, ARMED] != ZERO and bases[_DR_TRAPPED] != ~ZERO:
                        peeks = True  # where would the handler's first MOV be answered from?
                        moment = _DR_TRAPPED
                        check = FAULT_NONE
            elif step == _SHOW:
                is_inside = vcpu[v, RUNG] == ZERO
                p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                # Inside, an exit would save what the processor holds; outside, it may have done so.
                saves = lane[RUNG_OF_SAVING] == ONE
                if not is_inside:
                    saves = lane[RUNG_OF_SAVING] != ZERO and vcpu[v, RUNG] >= lane[RUNG_OF_SAVING]
                if is_inside and (saves or source == _LIVE):
                    dr6 = physical[p, HARDWARE_DR6]
                elif saves or source != _LIVE:
                    dr6 = vcpu[v, SHADOW_DR6]
                else:
                    dr6 = vcpu[v, FIELD_DR6] if is_svm else physical[p, HARDWARE_DR6]
                dr7 = physical[p, HARDWARE_DR7] if is_inside else canonical_dr7(vcpu[v, FIELD_DR7])
                if story == _STORY_VMEXIT and vcpu[v, DEBUGGER] != _OWNS_BREAKPOINTS:
                    dr6 = canonical_dr6(dr6, writable_dr6)
                elif source == _SHADOW_AS_IS:
                    dr7 = vcpu[v, SHADOW_DR7]
                else:
                    dr6 = canonical_dr6(dr6, writable_dr6)
                seen = (dr6 & LOW_32) | (dr7 << _32)
                step = _DONE
                if story == _STORY_REGISTERS:
                    dr6 &= ~vcpu[v, TRUE_UNDEFINED]
                    is_shadow = saves or source != _LIVE
                    db0 = vcpu[v, SHADOW] if is_shadow else physical[p, 0]
                    db1 = vcpu[v, SHADOW + 1] if is_shadow else physical[p, 1]
                    db2 = vcpu[v, SHADOW + 2] if is_shadow else physical[p, 2]
                    db3 = vcpu[v, SHADOW + 3] if is_shadow else physical[p, 3]
                    seen = registers_digest(db0, db1, db2, db3, dr6, dr7)
                    # A digest does not say which register differs.
                    unlike = (db0 ^ vcpu[v, TRUE]) & ~vcpu[v, DECLARED]
                    unlike |= (db1 ^ vcpu[v, TRUE + 1]) & ~vcpu[v, DECLARED + 1]
                    unlike |= (db2 ^ vcpu[v, TRUE + 2]) & ~vcpu[v, DECLARED + 2]
                    unlike |= (db3 ^ vcpu[v, TRUE + 3]) & ~vcpu[v, DECLARED + 3]
                    unlike |= (dr6 ^ vcpu[v, TRUE_DR6]) & ~vcpu[v, DECLARED_DR6] & ~vcpu[v, TRUE_UNDEFINED]
                    is_explained = (unlike | ((dr7 ^ vcpu[v, TRUE_DR7]) & ~vcpu[v, DECLARED_DR7])) == ZERO
                elif story == _STORY_VMEXIT:
                    step = _LEAVE_NESTED
            elif step == _LEAVE_NESTED:
                step = _DONE
                p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                if is_svm or (vcpu[v, NESTED_CONTROL] & SAVES_CONTROLS) != ZERO:
                    vcpu[v, NESTED_DR7] = seen >> _32
                seen = ((seen if is_svm else cause) & LOW_32) | (vcpu[v, NESTED_DR7] << _32)
                if not is_svm:
                    left_debugctl = vcpu[v, FIELD_DEBUGCTL]
                    if (vcpu[v, NESTED_CONTROL] & SAVES_CONTROLS) != ZERO:
                        vcpu[v, NESTED_DEBUGCTL] = left_debugctl
                    seen |= vcpu[v, NESTED_DEBUGCTL] << DEBUGCTL_SHIFT
                    vcpu[v, FIELD_DEBUGCTL] = ZERO
                vcpu[v, NESTED] = ZERO
                vcpu[v, SHADOW_DR7] = DR7_RESET
                control = _CONTROL_NESTED
                moment = _CONTROL_CHANGED
            elif step == _CLUSTER:
                step = _HANDLED
                p = vcpu[v, RESIDENT_ON] - ONE if vcpu[v, RESIDENT_ON] != ZERO else vcpu[v, HOME]
                is_clustered = True
                vcpu[v, CLUSTERED] += ONE
                vcpu[v, CLUSTER] += ONE
                vcpu[v, PENDING_KEY] += ONE << _KEY_CLUSTER
                condition = ONE if is_alias and vcpu[v, HAS_DE] != ZERO else ZERO
                if (mode & _CPL) != ZERO:
                    condition |= _TWO
                if (vcpu[v, FIELD_DR7] & DR7_GD) != ZERO:
                    condition |= _FOUR
                if (mark & _RETIRED) == ZERO:
                    check = (lane[CHECK_ORDER] >> (_TWO * condition)) & _THREE
                moment = _DR_TRAPPED
            elif step == _HOST:
                step = _CLIMB
                target = _OUT_OF_SESSION
                is_refused = kind == _HOST_DEBUGGER and (refuses & _REFUSES_DEBUGGER) != ZERO
                if kind == _SET_DEBUGREGS or kind == _GET_DEBUGREGS:
                    is_refused = (refuses & _REFUSES_DEBUGREGS) != ZERO
                elif kind == _HOST_BREAKPOINTS:
                    is_refused = (refuses & _REFUSES_HOST) != ZERO
                if kind == _STAGE:
                    vcpu[v, _STAGED_AT + arg] = value
                    step = _DONE
                elif is_refused:
                    counts[REFUSED] += ONE
                    for k in range(_SIX):
                        vcpu[v, _STAGED_AT + k] = ZERO
                    step = _DONE
                elif kind == _STATE:
                    vcpu[v, HAS_DE] = value & ONE
                    step = _DONE
                elif kind == _SCHED_IN:
                    if selector == vcpu[v, HOME]:
                        target = ZERO
                elif kind == _HOST_BREAKPOINTS:
                    if physical[selector, RESIDENT] != ZERO:
                        subject = physical[selector, RESIDENT] - ONE
                    else:
                        step = _HOST_APPLY
            else:  # _HOST_APPLY
                p = (
                    vcpu[subject, RESIDENT_ON] - ONE
                    if vcpu[subject, RESIDENT_ON] != ZERO
                    else vcpu[subject, HOME]
                )
                step = _DONE
                if kind == _SCHED_OUT:
                    moment = _SCHEDULED_OUT
                elif kind == _SCHED_IN:
                    vcpu[v, HOME] = selector
                    p = selector
                    moment = _SCHEDULED_IN
                elif kind == _HOST_BREAKPOINTS:
                    p = selector
                    for k in range(_SIX):
                        physical[p, _HOST_AT + k] = vcpu[v, _STAGED_AT + k]
                        vcpu[v, _STAGED_AT + k] = ZERO
                    physical[p, HOST_DR6] = DR6_RESET
                    dr7 = canonical_dr7(physical[p, HOST_DR7] & LOW_32)
                    physical[p, HOST_DR7] = dr7
                    physical[p, HARDWARE_DR7] = dr7
                    is_active = (dr7 & DR7_ENABLES) != ZERO
                    physical[p, HOST_ACTIVE] = ONE if is_active else ZERO
                    if is_active:
                        for k in range(_FOUR):
                            physical[p, k] = physical[p, _HOST_AT + k]
                            physical[p, _OWNER_AT + k] = _HOST_OWNER
                    if physical[p, RESIDENT] != ZERO:
                        control = _CONTROL_HOST
                        moment = _CONTROL_CHANGED
                elif kind == _GET_DEBUGREGS:
                    story = _STORY_REGISTERS
                    step = _DELIVER
                elif kind == _HOST_DEBUGGER:
                    vcpu[v, CONTROL] = kept_control(selector)
                    is_attached = vcpu[v, CONTROL] != ZERO
                    owns = (vcpu[v, CONTROL] & USES_HW) != ZERO
                    vcpu[v, DEBUGGER] = _OWNS_BREAKPOINTS if owns else (ONE if is_attached else ZERO)
                    for k in range(_FOUR):
                        vcpu[v, _DEBUGGER_DB_AT + k] = vcpu[v, _STAGED_AT + k]
                    vcpu[v, DEBUGGER_DR7] = canonical_dr7(vcpu[v, STAGED_DR7] & LOW_32)
                    for k in range(_SIX):
                        vcpu[v, _STAGED_AT + k] = ZERO
                    is_opening = vcpu[v, WINDOW] == _WINDOW_OPENING
                    survives = is_opening or vcpu[v, SURVIVED] != ZERO
                    survives = survives and (vcpu[v, CONTROL] & TAKES_DB) != ZERO
                    vcpu[v, SURVIVED] = ONE if survives else ZERO
                    is_hazard = owns and is_opening
                    if is_hazard and ((declares >> (_R_OPEN_SURVIVES - ONE)) & ONE) != ZERO:
                        for k in range(_SIX):
                            vcpu[v, _DECLARED_AT + k] = ~ZERO
                        vcpu[v, DECLARED_RULE] = _R_OPEN_SURVIVES
                    control = _CONTROL_DEBUGGER
                    moment = _CONTROL_CHANGED
                    if (selector & INJECTS_DB) != ZERO:
                        story = _STORY_DB_FAULT
                        step = _DELIVER
                        if (quirks & _Q_DB_KEEPS_GD) == ZERO:
                            vcpu[v, SHADOW_DR7] &= ~DR7_GD
                        elif (vcpu[v, SHADOW_DR7] & DR7_GD) != ZERO:
                            if ((declares >> (_R_DB_KEEPS_GD - ONE)) & ONE) != ZERO:
                                vcpu[v, DECLARED_DR7] |= DR7_GD
                                vcpu[v, DECLARED_RULE] = _R_DB_KEEPS_GD
                    elif (selector & INJECTS_BP) != ZERO:
                        story = _STORY_BP
                        step = _DELIVER
                else:  # SET_DEBUGREGS, RESET, INIT
                    is_set = kind == _SET_DEBUGREGS
                    for k in range(_SIX):
                        reset = DR6_RESET if k == _FOUR else (DR7_RESET if k == _FIVE else ZERO)
                        raw = vcpu[v, _STAGED_AT + k] if is_set else reset
                        raw = raw & LOW_32 if k >= _FOUR else raw
                        true = raw
                        if k == _FOUR:
                            true = canonical_dr6(raw, writable_dr6)
                        elif k == _FIVE:
                            true = canonical_dr7(raw)
                        if is_set:
                            vcpu[v, _STAGED_AT + k] = ZERO
                        vcpu[v, _SHADOW_AT + k] = raw
                        vcpu[v, _TRUE_AT + k] = true
                        vcpu[v, _DECLARED_AT + k] = ZERO
                        if raw != true and ((declares >> (_R_RAW_READS - ONE)) & ONE) != ZERO:
                            vcpu[v, _DECLARED_AT + k] = raw ^ true
                            vcpu[v, DECLARED_RULE] = _R_RAW_READS
                    vcpu[v, TRUE_UNDEFINED] = ZERO
                    is_hazard = vcpu[v, DEBUGGER] == _OWNS_BREAKPOINTS and vcpu[v, WINDOW] == _WINDOW_OPENING
                    if is_hazard and ((declares >> (_R_OPEN_SURVIVES - ONE)) & ONE) != ZERO:
                        for k in range(_SIX):
                            vcpu[v, _DECLARED_AT + k] = ~ZERO
                        vcpu[v, DECLARED_RULE] = _R_OPEN_SURVIVES
                    if not is_set:
                        vcpu[v, HAS_DE] = ZERO
                        vcpu[v, NESTED] = ZERO
                        vcpu[v, HELD] = ZERO
                        vcpu[v, SHADOW_OF_SS] = SHADOW_NONE
                    if kind == _RESET:
                        vcpu[v, FIELD_DEBUGCTL] = ZERO
                        vcpu[v, DECLARED_DEBUGCTL] = ZERO
                    control = _CONTROL_DEBUGREGS if is_set else _CONTROL_RESET
                    moment = _CONTROL_CHANGED
            if moment == _NO_MOMENT:
                continue
            bill_key = ZERO
            bill_operations = ZERO
            if climbs and moment == _LEAVE_GUEST:
                if vcpu[c, CONTROLS_ARE_OFF] == ZERO:
                    vcpu[c, FIELD_DR7] = physical[p, HARDWARE_DR7]
                    vcpu[c, FIELD_DEBUGCTL] = physical[p, HARDWARE_DEBUGCTL]
                if is_svm:
                    vcpu[c, FIELD_DR6] = physical[p, HARDWARE_DR6]
                physical[p, HARDWARE_DR7] = DR7_RESET
                physical[p, HARDWARE_DEBUGCTL] = ZERO
                if not is_exit or c != v:
                    # The host took the vCPU out of the guest: an exit that no event records.
                    key = U64(exit_codes[_EXTERNAL_INTERRUPT]) | (_LIGHT << _KEY_CLASS)
                    key |= _EXIT_ACCOUNT | (_SUB_KICK << _KEY_SUB)
                    vcpu[c, PENDING_KEY] = key
                    vcpu[c, PENDING_OPERATIONS] = ZERO
                    vcpu[c, _EXITS_BY_CLASS_AT + _LIGHT] += ONE
                    if c == v and (event_key & _ACCOUNTS) == ZERO:
                        event_key |= key
            mask = ZERO
            own_operations = ZERO
            host_operations = ZERO
            if bases[moment] != ~ZERO:
                cell = bases[moment]
                cell += strides[moment, _I_MEMORY] * vcpu[c, MEMORY]
                cell += strides[moment, _I_BELIEF] * vcpu[c, BELIEF]
                cell += strides[moment, _I_DEBUGGER] * vcpu[c, DEBUGGER]
                cell += strides[moment, _I_HOST] * physical[p, HOST_ACTIVE]
                if (vcpu[c, SHADOW_DR7] & DR7_ENABLES) != ZERO:
                    cell += strides[moment, _I_ENABLES]
                if (vcpu[c, SHADOW_DR7] & DR7_GD) != ZERO:
                    cell += strides[moment, _I_GD]
                if vcpu[c, LAST_LOAD] != p + ONE:
                    cell += strides[moment, _I_MOVED]
                if vcpu[c, FIELD_DR7] == DR7_RESET and vcpu[c, FIELD_DEBUGCTL] == ZERO:
                    cell += strides[moment, _I_AT_RESET]
                if moment == _DR_TRAPPED:
                    cell += strides[moment, _I_CHECK] * check
                    if peeks:
                        source = U64(read_sources[cell + strides[moment, _I_CLASS]])
                        peeks = False
                        continue
                    if is_write:
                        cell += strides[moment, _I_WRITE]
                    if register >= _SIX:
                        cell += strides[moment, _I_CLASS] * (register - _FIVE)
                    if is_write and register == _SEVEN and (value & DR7_ENABLES) != ZERO:
                        cell += strides[moment, _I_WOULD_ENABLE]
                elif moment == _CONTROL_CHANGED:
                    cell += strides[moment, _I_CONTROL] * control
                mask = cells[cell]
                if counts_visits:
                    visits[cell] += ONE
                if moment == _DR_TRAPPED and (mark & _NOT_RETIRED) != ZERO:
                    mask &= ~_A_ANSWERS  # it exits, and then the host takes over
                own_operations = cell_operations[cell]
                host_operations = cell_host_operations[cell]
                if next_memories[cell] != KEEP_MEMORY:
                    vcpu[c, MEMORY] = U64(next_memories[cell])
            if mask != ZERO or moment == _DR_TRAPPED:
                opens = (mask & _A_DISARM) != ZERO and vcpu[c, ARMED] != ZERO
                closes = (mask & _A_ARM) != ZERO and vcpu[c, WINDOW] != _WINDOW_CLOSED
                synchronizes = opens or closes or vcpu[c, WINDOW] == _WINDOW_OPENING
                operations = own_operations
                if moment == _DR_TRAPPED and not is_clustered:
                    operations += lane[TRAP_OPERATIONS]
                if (mask & _A_HOST_SAVE) != ZERO:
                    owners = ZERO
                    for k in range(_SIX):
                        vcpu[c, _SAVED_AT + k] = physical[p, k]
                        if k < _FIVE:
                            owners |= physical[p, _OWNER_AT + k] << (_12 * k)
                    vcpu[c, SAVED_OWNERS] = owners
                if (mask & _A_ZERO_DR7) != ZERO:
                    physical[p, HARDWARE_DR7] = DR7_RESET
                if (mask & _A_SAVE_DR0_3) != ZERO:
                    for k in range(_FOUR):
                        vcpu[c, _SHADOW_AT + k] = physical[p, k]
                if (mask & _A_SAVE_DR6) != ZERO:
                    vcpu[c, SHADOW_DR6] = vcpu[c, FIELD_DR6] if is_svm else physical[p, HARDWARE_DR6]
                if (mask & _A_SAVE_DR7) != ZERO:
                    vcpu[c, SHADOW_DR7] = vcpu[c, FIELD_DR7]
                if (mask & _A_RESET_DR6) != ZERO:
                    physical[p, HARDWARE_DR6] = DR6_RESET
                    physical[p, OWNER_DR6] = _NOBODY
                if (mask & _A_ARM) != ZERO:
                    if vcpu[c, ARMED] == ZERO:
                        counts[SWITCHES] += ONE
                    vcpu[c, ARMED] = ONE
                    if vcpu[c, WINDOW] == _WINDOW_OPEN:
                        size = vcpu[c, WINDOW_SIZE]
                        bucket = size
                        if size >= _WINDOW_EXACT:
                            bucket = _WINDOW_EXACT - _SEVEN
                            while size > ZERO:
                                size >>= ONE
                                bucket += ONE
                        window_sizes[bucket] += ONE
                        if c == v:
                            event_key |= _CLOSED
                    vcpu[c, WINDOW] = _WINDOW_CLOSED
                if (mask & _A_MERGE_DB_SHADOW) != ZERO:
                    vcpu[c, SHADOW_DR6] = dr6_after_db(vcpu[c, SHADOW_DR6], cause)
                    if (quirks & _Q_DB_KEEPS_GD) == ZERO:
                        vcpu[c, SHADOW_DR7] &= ~DR7_GD
                        vcpu[c, FIELD_DR7] &= ~DR7_GD
                        if vcpu[c, DEBUGGER] != _OWNS_BREAKPOINTS:
                            vcpu[c, EFFECTIVE_DR7] &= ~DR7_GD
                    elif ((vcpu[c, SHADOW_DR7] | vcpu[c, FIELD_DR7]) & DR7_GD) != ZERO:
                        if ((declares >> (_R_DB_KEEPS_GD - ONE)) & ONE) != ZERO:
                            kept_gd = DR7_GD
                            vcpu[c, DECLARED_DR7] |= DR7_GD
                            vcpu[c, DECLARED_RULE] = _R_DB_KEEPS_GD
                if (mask & (_A_EMULATE | _A_INJECT)) != ZERO:
                    # Where this answers another check than the processor would, a declared rule fires.
                    true_check = FAULT_NONE
                    if (mark & _RETIRED) == ZERO:
                        true_check = first_fault(
                            is_alias and vcpu[v, HAS_DE] != ZERO,
                            (mode & _CPL) != ZERO,
                            (vcpu[v, TRUE_DR7] & DR7_GD) != ZERO,
                        )
                    if check != true_check:
                        if check == FAULT_GD and (vcpu[v, DECLARED_DR7] & DR7_GD) != ZERO:
                            rule = vcpu[v, DECLARED_RULE]
                        elif ((declares >> (_R_CHECK_ORDER - ONE)) & ONE) != ZERO:
                            rule = _R_CHECK_ORDER
                if (mask & _A_EMULATE) != ZERO:
                    event_key |= _EMULATED
                    vcpu[c, PENDING_KEY] |= _EMULATED
                    operand = value
                    if (quirks & _Q_FULL_OPERAND) != ZERO and is_write and full_value != value:
                        operand = full_value
                        if ((declares >> (_R_FULL_OPERAND - ONE)) & ONE) != ZERO:
                            rule = _R_FULL_OPERAND
                    if not is_write:
                        story = _STORY_READ
                        seen = vcpu[c, _SHADOW_AT + slot]
                        if (mode & _OPERAND_32) != ZERO:
                            seen &= LOW_32
                    elif register >= _SIX and (operand >> _32) != ZERO and (mark & _RETIRED) == ZERO:
                        story = _STORY_GP
                        if (mask & _A_RECOMPUTE) != ZERO:  # nothing was written
                            mask &= ~_A_RECOMPUTE
                            operations -= lane[RECOMPUTE_OPERATIONS]
                        if (quirks & _Q_SKIPS_ON_FAULT) != ZERO:
                            story = _STORY_GP_SKIPPED
                            if ((declares >> (_R_SKIPS_ON_FAULT - ONE)) & ONE) != ZERO:
                                rule = _R_SKIPS_ON_FAULT
                    else:
                        written = operand
                        if register == _SIX:
                            written = (operand & lane[EMULATED_DR6_WRITABLE]) | lane[EMULATED_DR6_FIXED]
                            taint = written ^ canonical_dr6(value & LOW_32, writable_dr6)
                        elif register == _SEVEN:
                            written = (operand & lane[EMULATED_DR7_WRITABLE]) | DR7_FIXED
                            taint = written ^ canonical_dr7(value & LOW_32)
                        else:
                            taint = written ^ value
                        vcpu[c, _SHADOW_AT + slot] = written
                        if vcpu[c, DEBUGGER] != _OWNS_BREAKPOINTS:
                            if slot < _FOUR:
                                vcpu[c, _EFFECTIVE_AT + slot] = written
                            elif slot == _FIVE:
                                vcpu[c, EFFECTIVE_DR7] = written
                if (mask & _A_INJECT) != ZERO:
                    if check == FAULT_UD:
                        story = _STORY_UD
                    elif check == FAULT_GP:
                        story = _STORY_GP
                    else:
                        story = _STORY_DB_FAULT
                        dr6 = vcpu[c, SHADOW_DR6]
                        if (quirks & _Q_GD_KEEPS_TRAP_BITS) == ZERO:
                            dr6 &= ~DR6_TRAP_BITS
                        elif ((declares >> (_R_GD_KEEPS_TRAP_BITS - ONE)) & ONE) != ZERO:
                            vcpu[c, DECLARED_DR6] |= dr6 & DR6_TRAP_BITS
                            vcpu[c, DECLARED_RULE] = _R_GD_KEEPS_TRAP_BITS
                        vcpu[c, SHADOW_DR6] = dr6 | DR6_BD | DR6_RTM
                        vcpu[c, SHADOW_DR7] &= ~DR7_GD
                        vcpu[c, FIELD_DR7] &= ~DR7_GD
                        if vcpu[c, DEBUGGER] != _OWNS_BREAKPOINTS:
                            vcpu[c, EFFECTIVE_DR7] &= ~DR7_GD
                if (mask & (_A_EFFECTIVE | _A_EFFECTIVE_RAW | _A_EFFECTIVE_MERGED)) != ZERO:
                    owns = vcpu[c, DEBUGGER] == _OWNS_BREAKPOINTS and (mask & _A_EFFECTIVE_RAW) == ZERO
                    merges = owns and (mask & _A_EFFECTIVE_MERGED) != ZERO
                    dr7 = vcpu[c, SHADOW_DR7]
                    for k in range(_FOUR):
                        debugger_slot = (vcpu[c, DEBUGGER_DR7] >> (_TWO * k)) & _THREE
                        if owns and (not merges or debugger_slot != ZERO):
                            vcpu[c, _EFFECTIVE_AT + k] = vcpu[c, _DEBUGGER_DB_AT + k]
                            field = (_THREE << (_TWO * k)) | (_15 << (_16 + _FOUR * k))
                            dr7 = (dr7 & ~field) | (vcpu[c, DEBUGGER_DR7] & field)
                        else:
                            vcpu[c, _EFFECTIVE_AT + k] = vcpu[c, _SHADOW_AT + k]
                    if merges:
                        # The guest's general detect is emulated then.
                        dr7 = (dr7 & ~DR7_GD) | (vcpu[c, DEBUGGER_DR7] & DR7_GD)
                    vcpu[c, EFFECTIVE_DR7] = vcpu[c, DEBUGGER_DR7] if owns and not merges else dr7
                    if (mask & _A_SAVE_DR0_3) != ZERO:  # what was stale is now the shadow
                        for k in range(_FOUR):
                            if ((vcpu[c, STALE_SLOTS] >> k) & ONE) != ZERO:
                                vcpu[c, _DECLARED_AT + k] = ~ZERO
                                vcpu[c, DECLARED_RULE] = _R_STALE_EFFECTIVE
                    vcpu[c, STALE_SLOTS] = ZERO
                if (mask & _A_RECOMPUTE) != ZERO:
                    if (mask & (_A_EFFECTIVE | _A_EFFECTIVE_RAW | _A_EFFECTIVE_MERGED)) == ZERO:
                        owns = vcpu[c, DEBUGGER] == _OWNS_BREAKPOINTS
                        vcpu[c, EFFECTIVE_DR7] = vcpu[c, DEBUGGER_DR7] if owns else vcpu[c, SHADOW_DR7]
                    vcpu[c, FIELD_DR7] = vcpu[c, EFFECTIVE_DR7]
                    vcpu[c, BELIEF] = ONE if (vcpu[c, EFFECTIVE_DR7] & DR7_ENABLES) != ZERO else ZERO
                if (mask & _A_LOAD_DR0_3) != ZERO:
                    for k in range(_FOUR):
                        physical[p, k] = vcpu[c, _EFFECTIVE_AT + k]
                        physical[p, _OWNER_AT + k] = c + ONE
                    if vcpu[c, DEBUGGER] == _OWNS_BREAKPOINTS:
                        for k in range(_FOUR):
                            word = vcpu[c, _EFFECTIVE_AT + k]
                            is_debuggers = word == vcpu[c, _DEBUGGER_DB_AT + k]
                            if is_debuggers and word != vcpu[c, _SHADOW_AT + k]:
                                physical[p, _OWNER_AT + k] = _DEBUGGER_OWNER
                    vcpu[c, LAST_LOAD] = p + ONE
                if (mask & _A_LOAD_DR6) != ZERO:
                    if is_svm:
                        vcpu[c, FIELD_DR6] = vcpu[c, SHADOW_DR6]
                    else:
                        physical[p, HARDWARE_DR6] = canonical_dr6(vcpu[c, SHADOW_DR6], writable_dr6)
                        physical[p, OWNER_DR6] = c + ONE
                if (mask & _A_CLEAN_DR6) != ZERO:
                    vcpu[c, FIELD_DR6] = DR6_RESET
                if (mask & _A_LOAD_DR7) != ZERO:
                    vcpu[c, FIELD_DR7] = vcpu[c, EFFECTIVE_DR7]
                if (mask & _A_MERGE_DB_HARDWARE) != ZERO:
                    if is_svm:
                        vcpu[c, FIELD_DR6] = dr6_after_db(vcpu[c, FIELD_DR6], cause)
                    else:
                        physical[p, HARDWARE_DR6] = dr6_after_db(physical[p, HARDWARE_DR6], cause)
                    vcpu[c, FIELD_DR7] &= ~DR7_GD
                if (mask & _A_WRITE_THROUGH) != ZERO:
                    if is_write:
                        operations += U64(1 << 8)
                        written = value
                        if register == _SIX:
                            written = canonical_dr6(value & LOW_32, writable_dr6)
                        elif register == _SEVEN:
                            written = canonical_dr7(value & LOW_32)
                        physical[p, slot] = written
                        if slot < _FIVE:
                            physical[p, _OWNER_AT + slot] = c + ONE
                    else:
                        operations += ONE
                        story = _STORY_READ
                        seen = physical[p, slot]
                        if (mode & _OPERAND_32) != ZERO:
                            seen &= LOW_32
                        if slot < _FIVE:
                            owner = physical[p, _OWNER_AT + slot]
                            if owner != c + ONE and owner != _NOBODY:
                                leaks[LEAK_USED_BY_GUEST, slot if slot < _FOUR else register, owner] += ONE
                if (mask & _A_HOST_RESTORE) != ZERO:
                    for k in range(_SIX):
                        physical[p, k] = physical[p, _HOST_AT + k]
                        if k < _FIVE:
                            physical[p, _OWNER_AT + k] = _HOST_OWNER
                if (mask & _A_HOST_RESTORE_SAVED) != ZERO:
                    for k in range(_SIX):
                        physical[p, k] = vcpu[c, _SAVED_AT + k]
                        if k < _FIVE:
                            physical[p, _OWNER_AT + k] = (vcpu[c, SAVED_OWNERS] >> (_12 * k)) & _FFF
                if (mask & _A_DR7_ON) != ZERO:
                    physical[p, HARDWARE_DR7] = vcpu[c, EFFECTIVE_DR7]
                if (mask & _A_DR7_OFF) != ZERO:
                    physical[p, HARDWARE_DR7] = DR7_RESET
                if (mask & _A_CONTROLS_OFF) != ZERO:
                    vcpu[c, CONTROLS_ARE_OFF] = ONE
                if (mask & _A_CONTROLS_ON) != ZERO:
                    vcpu[c, CONTROLS_ARE_OFF] = ZERO
                if (mask & _A_DISARM) != ZERO:
                    if vcpu[c, ARMED] != ZERO:
                        counts[SWITCHES] += ONE
                        vcpu[c, WINDOW] = _WINDOW_OPENING
                        vcpu[c, WINDOW_SIZE] = ZERO
                    vcpu[c, ARMED] = ZERO
                if clusters and moment == _DR_TRAPPED:
                    if (mask & _A_STAY) == ZERO:
                        vcpu[c, CLUSTER] = ZERO
                    elif vcpu[c, CLUSTER] == ZERO:
                        vcpu[c, CLUSTER] = ONE
                packed = (operations & LOW_32) if synchronizes else ((operations & LOW_32) << _32)
                packed += (host_operations & LOW_32) << _32
                msr = (operations + host_operations) >> _32
                is_host_moment = moment == _CONTROL_CHANGED and control != _CONTROL_NESTED
                if is_host_moment or moment == _SCHEDULED_IN or moment == _SCHEDULED_OUT:
                    bill_key = _HOST_ACCOUNT | (msr << _KEY_MSR)
                    bill_operations = packed
                else:
                    vcpu[c, PENDING_KEY] += msr << _KEY_MSR
                    vcpu[c, PENDING_OPERATIONS] += packed
                if c == v:
                    event_operations += packed
                    event_key += msr << _KEY_MSR
            if moment <= _ENTER_GUEST:
                vcpu[c, RUNG] -= ONE
                if moment == _ENTER_GUEST:
                    if clusters:
                        vcpu[c, CLUSTER] = ZERO
                    is_skipped = vcpu[c, CONTROLS_ARE_OFF] != ZERO
                    if is_skipped and c == v:
                        event_key |= _SKIPPED
                    if not is_skipped:
                        physical[p, HARDWARE_DR7] = canonical_dr7(vcpu[c, FIELD_DR7] & LOW_32)
                        physical[p, HARDWARE_DEBUGCTL] = vcpu[c, FIELD_DEBUGCTL]
                    if is_svm:
                        physical[p, HARDWARE_DR6] = canonical_dr6(vcpu[c, FIELD_DR6], writable_dr6)
                        physical[p, OWNER_DR6] = c + ONE
                    if vcpu[c, WINDOW] == _WINDOW_OPENING:
                        vcpu[c, WINDOW] = _WINDOW_OPEN
                        vcpu[c, WINDOWS] += ONE
                        if c == v:
                            event_key |= _OPENED
                    if vcpu[c, DEBUGGER] != _OWNS_BREAKPOINTS:
                        dr7 = physical[p, HARDWARE_DR7]
                        true_dr7 = vcpu[c, TRUE_DR7]
                        is_open = vcpu[c, ARMED] == ZERO
                        is_hazard = is_open and dr7 != true_dr7
                        if is_skipped and physical[p, HARDWARE_DEBUGCTL] != vcpu[c, FIELD_DEBUGCTL]:
                            is_hazard = True
                        if is_open:
                            difference = physical[p, HARDWARE_DR6] ^ vcpu[c, TRUE_DR6]
                            is_hazard = is_hazard or (difference & ~vcpu[c, TRUE_UNDEFINED]) != ZERO
                        if is_open or ((dr7 | true_dr7) & DR7_ENABLES) != ZERO:
                            for k in range(_FOUR):
                                here = (dr7 >> (_TWO * k)) & _THREE
                                there = (true_dr7 >> (_TWO * k)) & _THREE
                                differs = physical[p, k] != vcpu[c, _TRUE_AT + k]
                                if here != there or (differs and (is_open or here != ZERO)):
                                    is_hazard = True
                                owner = physical[p, _OWNER_AT + k]
                                if here != ZERO and owner != c + ONE and owner != _NOBODY:
                                    leaks[LEAK_ARMED_IN_GUEST, k, owner] += ONE
                        if is_hazard:
                            counts[LATENT] += ONE
                    bill_key = vcpu[c, PENDING_KEY] | (_SKIPPED if is_skipped else ZERO)
                    bill_operations = vcpu[c, PENDING_OPERATIONS]
                    vcpu[c, PENDING_KEY] = ZERO
                    vcpu[c, PENDING_OPERATIONS] = ZERO
            elif moment <= _LOSE_RESIDENCE:
                vcpu[c, RUNG] += ONE
                if moment == _LOSE_RESIDENCE:
                    physical[p, RESIDENT] = ZERO
                    vcpu[c, RESIDENT_ON] = ZERO
            elif moment == _CONTROL_CHANGED:
                is_set = control == _CONTROL_DEBUGREGS or control == _CONTROL_RESET
                if is_set and vcpu[c, DEBUGGER] != _OWNS_BREAKPOINTS:
                    for k in range(_FOUR):
                        is_stale = vcpu[c, _EFFECTIVE_AT + k] != vcpu[c, _SHADOW_AT + k]
                        if is_stale and ((declares >> (_R_STALE_EFFECTIVE - ONE)) & ONE) != ZERO:
                            vcpu[c, STALE_SLOTS] |= ONE << k
            if step == _HANDLED:
                step = _DELIVER
                if (mask & _A_REEXECUTE) != ZERO:
                    event_key |= _REEXECUTED
                    step = _ENTER
                    if (mark & _NOT_RETIRED) != ZERO:
                        step = _DONE
                    elif is_reexecuted:
                        counts[FAILURE] = FAILURE_LIVE_LOCK
                        return
                    is_reexecuted = True
                    is_exit = False
                    handler = _NO_MOMENT
                    check = FAULT_NONE
            if bill_key != ZERO:
                at = (bill_key ^ (bill_operations * U64(0x9E37_79B9_7F4A_7C15))) * U64(0xBF58_476D_1CE4_E5B9)
                at = (at >> _40) & bill_mask
                while bill_counts[at] != ZERO and (
                    bill_keys[at, 0] != bill_key or bill_keys[at, 1] != bill_operations
                ):
                    at = (at + ONE) & bill_mask
                if bill_counts[at] == ZERO:
                    if counts[BILL_ROWS] + ONE >= bill_mask:
                        counts[FAILURE] = FAILURE_BILL_FULL
                        return
                    counts[BILL_ROWS] += ONE
                    bill_keys[at, 0] = bill_key
                    bill_keys[at, 1] = bill_operations
                bill_counts[at] += ONE
        # What the guest saw, against the reference.
        undefined = U64(true_undefined[i])
        if story != true_story or (story != _NOTHING and ((seen ^ true_value) & ~undefined) != ZERO):
            is_here = story == _STORY_DB_FAULT or story == _STORY_DB_TRAP
            is_there = true_story == _STORY_DB_FAULT or true_story == _STORY_DB_TRAP
            known = vcpu[v, DECLARED_DR6] | (vcpu[v, DECLARED_DR7] << _32)
            if taint != ZERO and slot >= _FOUR and ((declares >> (_R_EMULATED_MASKS - ONE)) & ONE) != ZERO:
                known |= (taint & LOW_32) << (_32 * (slot - _FOUR))  # by this very access
            differing = (seen ^ true_value) & ~undefined & ~known
            if rule == ZERO and is_io and (true_story == _STORY_DB_TRAP or true_story == _STORY_VMEXIT):
                # No bit of a breakpoint, or no exception at all if no step is due either.
                is_missing = story == _NOTHING and (mode & _TF) == ZERO
                is_missing = is_missing or (story == true_story and (differing & ~_15) == ZERO)
                if is_missing and ((declares >> (_R_IO_BREAKPOINT - ONE)) & ONE) != ZERO:
                    rule = _R_IO_BREAKPOINT
            if rule == ZERO and kind == _INT1 and not is_held:
                is_merged = (differing & ~(_15 | DR6_RTM | (DR7_GD << _32))) == ZERO
                is_merged = is_merged and (story == true_story or (is_here and is_there))
                if is_merged and ((declares >> (_R_INT1_AS_DB - ONE)) & ONE) != ZERO:
                    rule = _R_INT1_AS_DB
            is_declared = rule != ZERO
            is_trap = story == _STORY_DB_TRAP or true_story == _STORY_DB_TRAP
            is_trap = is_trap or story == _STORY_VMEXIT or true_story == _STORY_VMEXIT
            is_overtaken = true_story == _STORY_DB_FAULT and (true_value & _15 & ~undefined) != ZERO
            is_due = is_due or (is_overtaken and kind != _FETCH)
            is_matched = group == _MATCH or group == _SOFTWARE or is_held or is_trap or is_overtaken
            if not is_declared and is_matched:
                # Slots that may match otherwise: stale, or with an address or a condition declared.
                slots = vcpu[v, STALE_SLOTS]
                for k in range(_FOUR):
                    conditions = (_THREE << (_TWO * k)) | (_15 << (_16 + _FOUR * k))
                    if vcpu[v, _DECLARED_AT + k] != ZERO or (vcpu[v, DECLARED_DR7] & conditions) != ZERO:
                        slots |= ONE << k
                hits = seen if is_here or story == _STORY_VMEXIT else true_value
                if story == true_story or (is_here and is_there):
                    hits = seen ^ true_value
                if ((true_value | seen) & slots) != ZERO and (
                    kind == _INT1 or is_due or (is_here and is_there and story != true_story)
                ):
                    hits = ZERO  # what it missed, or found, comes instead of what this event brings
                enables = (seen | true_value) >> _32
                for k in range(_FOUR):
                    if ((enables >> (_TWO * k)) & _THREE) == ZERO:
                        hits &= ~(ONE << k)
                # All else that can be seen is as it must be.
                rest = ZERO
                if story == true_story:
                    rest = differing & ~(_15 | (DR6_BS if story == _STORY_VMEXIT else ZERO))
                elif is_here and is_there:
                    rest = differing & ~(_15 | DR6_BS)
                elif is_here and not is_write:
                    rest = seen ^ (vcpu[v, TRUE_DR6] | (vcpu[v, TRUE_DR7] << _32))
                    rest &= ~(vcpu[v, TRUE_UNDEFINED] | known | _15 | DR6_RTM | (DR7_GD << _32))
                if is_due:  # or comes instead of general detect
                    rest &= ~DR6_BD
                if kind == _INT1:  # that changes them only with something held
                    rest &= ~(DR6_RTM | (DR7_GD << _32))
                if (hits & _15 & ~undefined & ~slots) == ZERO and slots != ZERO and rest == ZERO:
                    rule = vcpu[v, DECLARED_RULE] if vcpu[v, STALE_SLOTS] == ZERO else _R_STALE_EFFECTIVE
                is_declared = rule != ZERO
            is_mov_dr = group == _DR
            is_read = story == _STORY_READ and true_story == story
            if not is_declared and is_read and is_mov_dr and slot < _FOUR:
                if ((vcpu[v, STALE_SLOTS] >> slot) & ONE) != ZERO:
                    rule = _R_STALE_EFFECTIVE
                    is_declared = True
            if not is_declared and story == true_story:
                allowed = known
                if story == _STORY_VMEXIT and not is_svm:
                    allowed |= vcpu[v, DECLARED_DEBUGCTL] << DEBUGCTL_SHIFT
                if story == _STORY_READ:
                    allowed = vcpu[v, _DECLARED_AT + slot] if is_mov_dr else vcpu[v, DECLARED_DEBUGCTL]
                elif story == _STORY_REGISTERS:
                    allowed = ~ZERO if is_explained else ZERO
                if ((seen ^ true_value) & ~undefined & ~allowed) == ZERO:
                    is_declared = True
                    rule = vcpu[v, DECLARED_RULE]
                    if rule == ZERO:  # it is by this access, whose masks are declared
                        rule = _R_EMULATED_MASKS
            is_debug = is_here or is_there or story == _STORY_VMEXIT or true_story == _STORY_VMEXIT
            if not is_declared and vcpu[v, DUE_RULE] != ZERO and is_debug:
                # The registers may have changed since, from outside.
                rule = vcpu[v, DUE_RULE]
                is_declared = True
            if not is_declared and is_surviving:
                # The window that survived the debugger let the guest set a general detect of its own.
                if ((declares >> (_R_OPEN_SURVIVES - ONE)) & ONE) != ZERO:
                    rule = _R_OPEN_SURVIVES
                    is_declared = True
            if not is_declared and group == _DR and (vcpu[v, DECLARED_DR7] & DR7_GD) != ZERO:
                is_gd = story == _STORY_DB_FAULT or true_story == _STORY_DB_FAULT or is_undone
                is_gd = is_gd or (takes_db and true_story == _NOTHING)
                if is_gd or story == _STORY_VMEXIT or true_story == _STORY_VMEXIT:
                    rule = vcpu[v, DECLARED_RULE]
                    is_declared = rule != ZERO
            if is_declared:
                declared[rule - ONE, 0] += ONE
                if declared[rule - ONE, 1] == ZERO:
                    declared[rule - ONE, 1] = first_event + U64(i) + ONE
                is_here_undone = is_exception(story) and story != _STORY_DB_TRAP
                is_here_undone = is_here_undone or story == _STORY_VMEXIT
                is_there_undone = is_exception(true_story) and true_story != _STORY_DB_TRAP
                is_there_undone = is_there_undone or true_story == _STORY_VMEXIT
                if story == true_story and is_exception(story):
                    difference = (seen ^ true_value) & ~undefined
                    kept_dr6 |= difference & LOW_32  # a trap comes after the write of its own event
                    kept_gd |= difference >> _32
                    vcpu[v, DECLARED_DR6] |= kept_dr6
                    vcpu[v, DECLARED_DR7] |= kept_gd
                    vcpu[v, DECLARED_RULE] = rule
                if (story == _STORY_VMEXIT) != (true_story == _STORY_VMEXIT):
                    # The stream goes on where the architecture is: the lane is brought there.
                    is_left = true_story == _STORY_VMEXIT
                    vcpu[v, NESTED] = ZERO if is_left else ONE
                    dr7 = DR7_RESET if is_left else vcpu[v, TRUE_DR7]
                    vcpu[v, SHADOW_DR7] = dr7
                    if vcpu[v, DEBUGGER] != _OWNS_BREAKPOINTS:
                        vcpu[v, EFFECTIVE_DR7] = dr7
                        vcpu[v, FIELD_DR7] = dr7
                        vcpu[v, BELIEF] = ONE if (dr7 & DR7_ENABLES) != ZERO else ZERO
                        if vcpu[v, RUNG] == ZERO:
                            physical[vcpu[v, RESIDENT_ON] - ONE, HARDWARE_DR7] = dr7
                    if not is_svm:
                        debugctl = ZERO if is_left else left_debugctl
                        vcpu[v, FIELD_DEBUGCTL] = debugctl
                        if vcpu[v, RUNG] == ZERO:
                            physical[vcpu[v, RESIDENT_ON] - ONE, HARDWARE_DEBUGCTL] = debugctl
                if is_svm and (story == _STORY_VMEXIT or true_story == _STORY_VMEXIT):
                    vcpu[v, DECLARED_DR6] |= DR6_CAUSES | DR6_RTM
                    vcpu[v, DECLARED_RULE] = rule
                if story != true_story:
                    if is_here or is_there:
                        # What the one exception has done and the other has not.
                        before = vcpu[v, TRUE_DR6] | (vcpu[v, TRUE_DR7] << _32)
                        here = seen if is_exception(story) else before
                        there = true_value if is_exception(true_story) else before
                        difference = (here ^ there) | vcpu[v, TRUE_UNDEFINED]
                        if is_write or story == _STORY_VMEXIT or true_story == _STORY_VMEXIT:
                            difference |= DR6_CAUSES | DR6_RTM | (DR7_GD << _32)
                        kept_dr6 = difference & LOW_32
                        vcpu[v, DECLARED_DR6] |= kept_dr6
                        vcpu[v, DECLARED_DR7] |= difference >> _32
                        vcpu[v, DECLARED_RULE] = rule
                    if is_here_undone != is_there_undone:
                        # What MOV SS has held goes on as the stream does.
                        is_quiet_fetch = is_fetch and true_story == _NOTHING
                        is_kept_on = is_here_undone and (is_quiet_fetch or true_story == _STORY_READ)
                        vcpu[v, HELD] = held_before if is_kept_on else ZERO
                        shade = SHADOW_FETCHED if is_fetch else SHADOW_OVERDUE
                        vcpu[v, SHADOW_OF_SS] = shade if is_kept_on and held_before != ZERO else SHADOW_NONE
                    if is_write and is_here_undone != is_there_undone:
                        vcpu[v, _DECLARED_AT + slot] = ~ZERO
                        vcpu[v, DECLARED_RULE] = rule
                    if kind == _WRMSR and selector == MSR_DEBUGCTL and is_here_undone != is_there_undone:
                        vcpu[v, DECLARED_DEBUGCTL] = DEBUGCTL_BITS
                        vcpu[v, DECLARED_RULE] = rule
            else:
                counts[DIVERGED] += ONE
                if counts[FIRST_EVENT] == ZERO:
                    counts[FIRST_EVENT] = first_event + U64(i) + ONE
                    counts[FIRST_VCPU] = v
                    counts[FIRST_KIND] = U64(kind)
                    counts[FIRST_REGISTER] = register
                    counts[FIRST_STORY] = story
                    counts[FIRST_VALUE] = seen
                    counts[FIRST_TRUE_STORY] = true_story
                    counts[FIRST_TRUE_VALUE] = true_value
        if story != _NOTHING and story != _STORY_NOT_TAKEN:
            counts[DIGEST] += mixed(first_event + U64(i), v, story, seen & ~undefined)
        if stop != ZERO:
            rows = counts[DEBUG_EXIT_ROWS]
            at = ZERO
            while at < rows and (
                debug_exits[at, DEBUG_EXIT_EXCEPTION] != stop
                or debug_exits[at, DEBUG_EXIT_DR6] != stop_dr6
                or debug_exits[at, DEBUG_EXIT_DR7] != stop_dr7
            ):
                at += ONE
            if at >= _LAST_DEBUG_EXIT:
                at = _LAST_DEBUG_EXIT
            elif at == rows:
                debug_exits[at, DEBUG_EXIT_EXCEPTION] = stop
                debug_exits[at, DEBUG_EXIT_DR6] = stop_dr6
                debug_exits[at, DEBUG_EXIT_DR7] = stop_dr7
                counts[DEBUG_EXIT_ROWS] += ONE
            if debug_exits[at, DEBUG_EXIT_COUNT] == ZERO:
                debug_exits[at, DEBUG_EXIT_FIRST] = first_event + U64(i)
            debug_exits[at, DEBUG_EXIT_COUNT] += ONE
        if is_special:
            vcpu[v, EXTRA] = vcpu[v, SHADOW_OF_SS] | vcpu[v, CONTROL] | vcpu[v, NESTED]
            if kind == _VMRUN and true_story != _STORY_NOT_TAKEN:
                if true_story != _STORY_VMEXIT and (is_svm or (value & LOADS_CONTROLS) != ZERO):
                    vcpu[v, TRUE_DR7] = canonical_dr7(vcpu[v, STAGED_DR7] & LOW_32)
                if true_story != _STORY_VMEXIT and not is_svm and (value & LOADS_CONTROLS) != ZERO:
                    vcpu[v, DECLARED_DEBUGCTL] = ZERO
                if true_story != _STORY_VMEXIT and is_svm:
                    vcpu[v, TRUE_DR6] = canonical_dr6(vcpu[v, _STAGED_AT + _FOUR] & LOW_32, writable_dr6)
                    vcpu[v, TRUE_UNDEFINED] = ZERO
                for k in range(_SIX):
                    vcpu[v, _STAGED_AT + k] = ZERO
        is_passed = False  # a write that was done before what it brought along left the nested guest
        if true_story == _STORY_VMEXIT and is_write and not is_due:
            tested = vcpu[v, DEBUGGER_DR7] if (host_control & USES_HW) != ZERO else vcpu[v, TRUE_DR7]
            true_fault = first_fault(
                is_alias and vcpu[v, HAS_DE] != ZERO, (mode & _CPL) != ZERO, (tested & DR7_GD) != ZERO
            )
            is_passed = true_fault == FAULT_NONE and (nested_control & WANTS_MOV_DR) == ZERO
            is_passed = is_passed or (mark & _RETIRED) != ZERO
        if true_story >= _STORY_DB_FAULT:
            if true_story == _STORY_VMEXIT:
                vcpu[v, TRUE_DR7] = DR7_RESET
                vcpu[v, DECLARED_DR7] = ZERO
                if is_svm:
                    vcpu[v, TRUE_DR6] = true_value & LOW_32
                    vcpu[v, TRUE_UNDEFINED] = undefined
                else:
                    vcpu[v, DECLARED_DEBUGCTL] = ZERO
            elif is_exception(true_story):
                vcpu[v, TRUE_DR6] = true_value & LOW_32
                vcpu[v, TRUE_DR7] = true_value >> _32
                vcpu[v, TRUE_UNDEFINED] = undefined
        is_written = is_write and (mark & _NOT_RETIRED) == ZERO
        if is_written and (mark & _RETIRED) == ZERO and takes_db:
            # General detect that the debugger takes leaves the access undone.
            tested = vcpu[v, DEBUGGER_DR7] if (host_control & USES_HW) != ZERO else vcpu[v, TRUE_DR7]
            is_mine = (host_control & USES_HW) != ZERO or is_svm
            is_written = not is_mine or (tested & DR7_GD) == ZERO
            if not is_written and not is_undone and (vcpu[v, DECLARED_DR7] & DR7_GD) != ZERO:
                vcpu[v, _DECLARED_AT + slot] = ~ZERO  # a general detect that is missing let it happen
        is_written = is_written and (true_story == _NOTHING or true_story == _STORY_DB_TRAP or is_passed)
        if is_written and not (is_passed and slot == _FIVE):
            if true_story == _NOTHING:
                vcpu[v, _TRUE_AT + slot] = true_value
            elif slot < _FOUR:
                vcpu[v, _TRUE_AT + slot] = value  # DR6 and DR7 come with the trap
            elif is_passed and slot == _FOUR and not is_svm:
                vcpu[v, TRUE_DR6] = canonical_dr6(value & LOW_32, writable_dr6)
            if slot == _FOUR and (true_story == _NOTHING or (is_passed and not is_svm)):
                vcpu[v, TRUE_UNDEFINED] = ZERO
            if is_undone:
                is_open = is_surviving and ((declares >> (_R_OPEN_SURVIVES - ONE)) & ONE) != ZERO
                if is_open:
                    vcpu[v, DECLARED_RULE] = _R_OPEN_SURVIVES
                if is_open or (vcpu[v, DECLARED_DR7] & DR7_GD) != ZERO:
                    vcpu[v, _DECLARED_AT + slot] = ~ZERO  # a general detect that is none took it
            elif not is_exception(story) or story == _STORY_DB_TRAP:
                kept = kept_gd if slot == _FIVE else ZERO
                vcpu[v, _DECLARED_AT + slot] = kept_dr6 if slot == _FOUR else kept
                if slot < _FOUR:
                    vcpu[v, STALE_SLOTS] &= ~(ONE << slot)
                if taint != ZERO:
                    masks_rule = rule if rule != ZERO else _R_EMULATED_MASKS
                    if ((declares >> (masks_rule - ONE)) & ONE) != ZERO:
                        vcpu[v, _DECLARED_AT + slot] |= taint
                        vcpu[v, DECLARED_RULE] = masks_rule
        if is_computed and kind < _FIRST_ASYNCHRONOUS and true_story != _STORY_NOT_TAKEN:
            if kind == _MOV_SS:
                due_rule = vcpu[v, DECLARED_RULE] if vcpu[v, STALE_SLOTS] == ZERO else _R_STALE_EFFECTIVE
                is_open = vcpu[v, STALE_SLOTS] != ZERO or (vcpu[v, DECLARED_DR7] & ~DR7_GD) != ZERO
                for k in range(_FOUR):
                    is_open = is_open or vcpu[v, _DECLARED_AT + k] != ZERO
                vcpu[v, DUE_RULE] = due_rule if is_open else ZERO
            elif vcpu[v, DUE_RULE] != ZERO:
                if is_written and takes_db:
                    vcpu[v, _DECLARED_AT + slot] = ~ZERO  # what goes to the debugger leaves it undone
                    vcpu[v, DECLARED_RULE] = vcpu[v, DUE_RULE]
                is_passing = kind == _FETCH or kind == _INT3 or (group == _DR and not is_write)
                if not is_passing or (is_exception(true_story) and true_story != _STORY_BP):
                    vcpu[v, DUE_RULE] = ZERO
        if level >= LEVEL_DECISIONS:
            key = event_key | (story << _KEY_STORY)
            at = (key ^ (event_operations * U64(0x9E37_79B9_7F4A_7C15))) * U64(0xBF58_476D_1CE4_E5B9)
            at = (at >> _40) & decision_mask
            while decision_numbers[at] != ZERO and (
                decision_keys[at, 0] != key or decision_keys[at, 1] != event_operations
            ):
                at = (at + ONE) & decision_mask
            number = decision_numbers[at]
            if number == ZERO:
                number = counts[DECISION_ROWS] + ONE
                if number < _UNNUMBERED and number < decision_mask:
                    counts[DECISION_ROWS] = number
                    decision_numbers[at] = number
                    decision_keys[at, 0] = key
                    decision_keys[at, 1] = event_operations
                    decisions[number - ONE, 0] = key
                    decisions[number - ONE, 1] = event_operations
                else:
                    number = _UNNUMBERED + ONE
            out_decisions[i] = number - ONE
            if level >= LEVEL_FULL:
                out_stories[i] = story
                out_values[i] = seen
