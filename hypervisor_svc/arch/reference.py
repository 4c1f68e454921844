"""The reference: what the architecture alone would do, each vCPU on a CPU of its own.

It runs once per block for each vendor and set of CPU features, whatever lanes are asked for, and
tells for each event what the guest sees. It decides conditional events, checks recorded values, and
keeps the registers that every lane is compared with.

A recorded debug exception carries the DR6 that results (taken by the reader from the read that
follows). To show that nothing in between loses it, a second DR6 is kept as it would be without.
"""

from typing import Final

import numba.types as nt
import numpy as np

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
    USING_KINDS,
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
    DR7_ENABLES,
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

# A vCPU's record.
DB: Final = 0  # DR0 to DR3 at 0 to 3
DR6: Final = 4
DR7: Final = 5
UNDEFINED: Final = 6  # bits of DR6 that the architecture leaves undefined
DR6_UNAIDED: Final = 7  # DR6 had no recorded #DB carried it
HAS_DE: Final = 8
FAULTED: Final = 9  # the last unconditional event raised an exception
STAGED: Final = 10  # six operands of the next host control event
CYCLES: Final = 16
SHADOW: Final = 17  # of MOV SS: see below
HELD: Final = 18  # what MOV SS hit: enabled slots in bits 0-3, all that match in bits 4-7
CONTROL: Final = 19  # of the host's debugger
DEBUGGER_DR7: Final = 20
NESTED: Final = 21  # a nested guest runs
NESTED_CONTROL: Final = 22
NESTED_DR7: Final = 23  # as the guest hypervisor finds it
EXTRA: Final = 24  # not zero while one of SHADOW, CONTROL and NESTED is not
DEBUGCTL: Final = 25
DEBUGCTL_UNKNOWN: Final = 26  # bits of it that a recording has not shown yet
NESTED_DEBUGCTL: Final = 27  # that the guest hypervisor gave (VMX)
REFERENCE_FIELDS: Final = 28

# Counts of the whole reference.
EVENTS: Final = 0
RECORDED_READS: Final = 1
DISAGREEMENTS: Final = 2
AGREEMENTS_UNAIDED: Final = 3
DR6_READS: Final = 4
CONTRADICTIONS: Final = 5
DIGEST: Final = 6
FIRST_EVENT: Final = 7  # of the first disagreement, plus one
FIRST_VCPU: Final = 8
FIRST_REGISTER: Final = 9  # MSR_DEBUGCTL where it was no MOV DR
FIRST_RECORDED: Final = 10
FIRST_READ: Final = 11
CONFLICTS: Final = 12  # conditional events that the leading reference decided otherwise
CONFLICT_EVENT: Final = 13  # the first, plus one
REFERENCE_COUNTS: Final = 14

_MOV_TO_DR: Final = int(EventKind.MOV_TO_DR)
_MOV_FROM_DR: Final = int(EventKind.MOV_FROM_DR)
_MOV_TO_CR: Final = int(EventKind.MOV_TO_CR)
_FETCH: Final = int(EventKind.FETCH)
_RDMSR: Final = int(EventKind.RDMSR)
_WRMSR: Final = int(EventKind.WRMSR)
_READ: Final = int(EventKind.READ)
_WRITE: Final = int(EventKind.WRITE)
_IN: Final = int(EventKind.IN)
_OUTS: Final = int(EventKind.OUTS)
_INT1: Final = int(EventKind.INT1)
_INT3: Final = int(EventKind.INT3)
_INTN: Final = int(EventKind.INTN)
_MOV_SS: Final = int(EventKind.MOV_SS)
_VMRUN: Final = int(EventKind.VMRUN)
_VMEXIT_TO_L1: Final = int(EventKind.VMEXIT_TO_L1)
_GET_DEBUGREGS: Final = int(EventKind.GET_DEBUGREGS)
_HOST_DEBUGGER: Final = int(EventKind.HOST_DEBUGGER)
_EXCEPTION: Final = int(EventKind.EXCEPTION)
_STAGE: Final = int(EventKind.STAGE)
_SET_DEBUGREGS: Final = int(EventKind.SET_DEBUGREGS)
_HOST_BREAKPOINTS: Final = int(EventKind.HOST_BREAKPOINTS)
_RESET: Final = int(EventKind.RESET)
_INIT: Final = int(EventKind.INIT)
_STATE: Final = int(EventKind.STATE)
_ADVANCE: Final = int(EventKind.ADVANCE)
_FIRST_ASYNCHRONOUS: Final = int(EventKind.EXTERNAL_INTERRUPT)

# Kinds that show nothing and change nothing here; some only where no breakpoint is enabled, or for most MSRs.
_MATCHING: Final = (
    *(EventKind.FETCH, EventKind.READ, EventKind.WRITE),
    *(EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS),
)
_MSR: Final = (EventKind.RDMSR, EventKind.WRMSR)
_ACTING: Final = (
    *(EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR, EventKind.MOV_TO_CR),
    *(EventKind.INT1, EventKind.INT3, EventKind.INTN, EventKind.MOV_SS, EventKind.EXCEPTION),
    *range(EventKind.VMRUN, EventKind.ADVANCE + 1),
)
_MATCHING_KINDS: Final = U64(sum(1 << kind for kind in _MATCHING))
_MSR_KINDS: Final = U64(sum(1 << kind for kind in _MSR))
_PLAIN_KINDS: Final = U64(sum(1 << kind for kind in EventKind if kind not in (*_MATCHING, *_MSR, *_ACTING)))

_UNKNOWN: Final = U64(Mark.VALUE_UNKNOWN)
_EXPECTED: Final = U64(Mark.VALUE_EXPECTED)
_RETIRED: Final = U64(Mark.RETIRED)
_NOT_RETIRED: Final = U64(Mark.NOT_RETIRED)
_IF_FAULT: Final = U64(Mark.IF_FAULT)
_IF_OK: Final = U64(Mark.IF_OK)
_CPL: Final = U64(Mode.CPL)
_RF: Final = U64(Mode.RF)
_TF: Final = U64(Mode.TF)
_INTERRUPT_SHADOW: Final = U64(Mode.INTERRUPT_SHADOW)
_OPERAND_32: Final = U64(Mode.OPERAND_32)
_TWO: Final = U64(2)
_THREE: Final = U64(3)
_FOUR: Final = U64(4)
_SIX: Final = U64(6)
_SEVEN: Final = U64(7)
_THIRTEEN: Final = U64(13)
_15: Final = U64(15)
_32: Final = U64(32)

NOTHING: Final = U64(Story.NOTHING)
READ: Final = U64(Story.READ)
DB_FAULT: Final = U64(Story.DB_FAULT)
DB_TRAP: Final = U64(Story.DB_TRAP)
UD: Final = U64(Story.UD)
GP: Final = U64(Story.GP)
NOT_TAKEN: Final = U64(Story.NOT_TAKEN)
REGISTERS: Final = U64(Story.REGISTERS)
BP: Final = U64(Story.BP)
VMEXIT: Final = U64(Story.VMEXIT)

_U8 = nt.Array(nt.uint8, 1, "C", readonly=True, aligned=False)
_U32 = nt.Array(nt.uint32, 1, "C", readonly=True, aligned=False)
_U64 = nt.Array(nt.uint64, 1, "C", readonly=True, aligned=False)
_SIGNATURE = nt.void(
    *(_U8, _U8, _U8, _U8, _U8, _U32, _U32, _U64),
    *(nt.uint64, nt.boolean, nt.boolean, nt.boolean, nt.uint64, nt.uint8[::1]),
    *(nt.uint64[:, ::1], nt.uint64[::1], nt.uint8[::1], nt.uint64[::1], nt.uint32[::1]),
)


def new_reference_state(vcpus: int, *, is_computed: bool) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Return the records of ``vcpus`` vCPUs after reset, shape (vcpus, REFERENCE_FIELDS).

    A recording need not begin at a reset. Its reader sets the debug registers that it finds later, but
    DEBUGCTL is not among those that a host can set.
    """
    state = np.zeros((vcpus, REFERENCE_FIELDS), np.uint64)
    state[:, DR6] = state[:, DR6_UNAIDED] = DR6_RESET
    state[:, DR7] = DR7_RESET
    state[:, NESTED_DR7] = DR7_RESET
    state[:, DEBUGCTL_UNKNOWN] = ZERO if is_computed else DEBUGCTL_BITS
    return state


@compiled(_SIGNATURE)
def run_reference(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915  # one pass, typed by its signature
    kinds,
    args,
    modes,
    marks,
    vcpus,
    gap_cycles,
    selectors,
    values,
    first_event,
    is_computed,
    is_leading,
    is_svm,
    writable_dr6,
    leading_stories,
    state,
    counts,
    stories,
    story_values,
    undefined,
):
    """Run a checked block; fill ``stories``, ``story_values`` and ``undefined``, one value an event.

    For a MOV to a debug register that shows nothing, the story value is the value that the register
    then holds, so that lanes need not work it out again.
    """
    for i in range(U64(kinds.size)):
        kind = kinds[i]
        v = U64(vcpus[i])
        undefined[i] = 0
        if kind == _ADVANCE:
            state[v, CYCLES] += U64(gap_cycles[i])
            stories[i] = NOTHING
            story_values[i] = ZERO
            continue
        counts[EVENTS] += ONE
        mark = U64(marks[i])
        arg = U64(args[i])
        mode = U64(modes[i])
        value = values[i]
        is_ordinary = state[v, EXTRA] == ZERO and (mode & _TF) == ZERO
        if kind <= _MOV_FROM_DR and is_ordinary and ((mark & ~_EXPECTED) | mode) == ZERO:
            # Most streams are made of accesses about which there is nothing special: a short way for them.
            slot = arg if arg < _FOUR else arg - _TWO
            is_done = (state[v, DR7] & DR7_GD) == ZERO and (arg & ~ONE) != _FOUR
            seen = value
            story = NOTHING
            if kind == _MOV_TO_DR:
                is_done = is_done and (arg < _FOUR or (value >> _32) == ZERO)
                if is_done:
                    if arg == _SIX:
                        seen = canonical_dr6(value, writable_dr6)
                        state[v, UNDEFINED] = ZERO
                        state[v, DR6_UNAIDED] = seen
                    elif arg == _SEVEN:
                        seen = canonical_dr7(value)
                    state[v, slot] = seen
            else:
                story = READ
                seen = state[v, slot]
                is_expected = (mark & _EXPECTED) != ZERO
                unaided = seen
                if arg == _SIX:
                    is_done = is_done and state[v, UNDEFINED] == ZERO
                    unaided = state[v, DR6_UNAIDED]
                is_done = is_done and (not is_expected or seen == value)
                if is_done:
                    counts[DIGEST] += mixed(first_event + U64(i), v, story, seen)
                    if is_expected:
                        counts[RECORDED_READS] += ONE
                        if arg == _SIX:
                            counts[DR6_READS] += ONE
                        if unaided == value:
                            counts[AGREEMENTS_UNAIDED] += ONE
            if is_done:
                state[v, CYCLES] += U64(gap_cycles[i])
                state[v, FAULTED] = ZERO
                stories[i] = story
                story_values[i] = seen
                continue
        conditional = mark & (_IF_FAULT | _IF_OK)
        if conditional != ZERO:
            faulted = state[v, FAULTED] != ZERO
            taken = ((mark & _IF_FAULT) != ZERO) == faulted
            if not is_leading:
                lead_taken = leading_stories[i] != NOT_TAKEN
                if lead_taken != taken:
                    counts[CONFLICTS] += ONE
                    if counts[CONFLICT_EVENT] == ZERO:
                        counts[CONFLICT_EVENT] = first_event + U64(i) + ONE
                taken = lead_taken
            if not taken:
                stories[i] = NOT_TAKEN
                story_values[i] = ZERO
                continue
        state[v, CYCLES] += U64(gap_cycles[i])
        is_plain = ((_PLAIN_KINDS >> U64(kind)) & ONE) != ZERO
        if ((_MATCHING_KINDS >> U64(kind)) & ONE) != ZERO:
            is_plain = (state[v, DR7] & DR7_ENABLES) == ZERO
        elif ((_MSR_KINDS >> U64(kind)) & ONE) != ZERO:
            is_plain = U64(selectors[i]) != MSR_DEBUGCTL
        if is_plain and is_ordinary:
            if conditional == ZERO and kind < _FIRST_ASYNCHRONOUS:
                state[v, FAULTED] = ZERO
            stories[i] = NOTHING
            story_values[i] = ZERO
            continue
        story = NOTHING
        seen = ZERO
        fault = FAULT_NONE
        hits = ZERO  # enabled slots that match in bits 0-3, all that match in bits 4-7
        cause = ZERO  # of a debug exception, beside the hits
        is_kept = False  # the exception leaves DR6 as it is
        is_guests = kind < _FIRST_ASYNCHRONOUS
        is_io = kind >= _IN and kind <= _OUTS
        is_fetch = kind == _FETCH and arg != END_OF_FETCH
        control = ZERO
        takes_db = False
        is_nested = False
        nested_control = ZERO
        shadow = SHADOW_NONE
        is_overdue = False
        is_special = state[v, EXTRA] != ZERO or (mode & _TF) != ZERO
        is_special = is_special or ((SPECIAL_KINDS >> U64(kind)) & ONE) != ZERO
        if is_special:
            control = state[v, CONTROL]
            takes_db = (control & TAKES_DB) != ZERO
            is_nested = state[v, NESTED] != ZERO
            nested_control = state[v, NESTED_CONTROL] if is_nested else ZERO
            shadow = state[v, SHADOW]
            is_overdue = shadow == SHADOW_OVERDUE or (shadow == SHADOW_FETCHED and is_fetch)
            is_sure = (mark & (_RETIRED | _NOT_RETIRED)) != ZERO
            is_overdue = is_overdue and is_guests and not is_sure and state[v, HELD] != ZERO
        if is_overdue:
            hits = state[v, HELD]
            state[v, HELD] = ZERO
            state[v, SHADOW] = SHADOW_NONE
            story = DB_FAULT
        elif (kind == _MOV_TO_DR or kind == _MOV_FROM_DR) and (mark & _NOT_RETIRED) == ZERO:
            is_alias = arg == _FOUR or arg == U64(5)
            register = arg + _TWO if is_alias else arg
            is_write = kind == _MOV_TO_DR
            if (mode & _OPERAND_32) != ZERO:
                value &= LOW_32
            is_intercepted = (nested_control & WANTS_MOV_DR) != ZERO
            dr7 = state[v, DEBUGGER_DR7] if (control & USES_HW) != ZERO else state[v, DR7]
            fault = first_fault(
                is_alias and state[v, HAS_DE] != ZERO, (mode & _CPL) != ZERO, (dr7 & DR7_GD) != ZERO
            )
            is_known = (mark & _UNKNOWN) == ZERO
            is_too_wide = is_write and is_known and register >= _SIX and (value >> _32) != ZERO
            if is_intercepted and (not is_svm or fault == FAULT_NONE):
                story = VMEXIT
                fault = FAULT_NONE
            elif fault == FAULT_NONE and is_too_wide:
                fault = FAULT_GP
            if (fault != FAULT_NONE or story == VMEXIT) and (mark & _RETIRED) != ZERO:
                counts[CONTRADICTIONS] += ONE
                fault = FAULT_NONE
                story = NOTHING
            if story == VMEXIT:
                pass
            elif fault == FAULT_GD:
                cause = DR6_BD
                # A debugger that takes it leaves the access undone, and the guest sees nothing.
                is_taken = (control & USES_HW) != ZERO or (takes_db and is_svm)
                story = NOTHING if is_taken else DB_FAULT
            elif fault == FAULT_UD:
                story = UD
            elif fault == FAULT_GP:
                story = GP
            elif is_write:
                slot = register if register < _FOUR else register - _TWO
                if (mark & _UNKNOWN) != ZERO:
                    value = state[v, slot]  # an assumption: it writes what is there
                if register == _SIX:
                    value = canonical_dr6(value, writable_dr6)
                    state[v, UNDEFINED] = ZERO
                    state[v, DR6_UNAIDED] = value
                elif register == _SEVEN:
                    value = canonical_dr7(value)
                state[v, slot] = value
                seen = value
            else:
                slot = register if register < _FOUR else register - _TWO
                seen = state[v, slot]
                mask = ~ZERO
                if (mode & _OPERAND_32) != ZERO:
                    seen &= LOW_32
                    mask = LOW_32
                if register == _SIX:
                    undefined[i] = np.uint32(state[v, UNDEFINED])
                    mask &= ~state[v, UNDEFINED]
                story = READ
                if (mark & _EXPECTED) != ZERO:
                    counts[RECORDED_READS] += ONE
                    if register == _SIX:
                        counts[DR6_READS] += ONE
                        if state[v, DR6_UNAIDED] == value:
                            counts[AGREEMENTS_UNAIDED] += ONE
                    elif seen == value:
                        counts[AGREEMENTS_UNAIDED] += ONE
                    if ((seen ^ value) & mask) != ZERO:
                        counts[DISAGREEMENTS] += ONE
                        if counts[FIRST_EVENT] == ZERO:
                            counts[FIRST_EVENT] = first_event + U64(i) + ONE
                            counts[FIRST_VCPU] = v
                            counts[FIRST_REGISTER] = register
                            counts[FIRST_RECORDED] = value
                            counts[FIRST_READ] = seen
        elif kind == _FETCH or kind == _READ or kind == _WRITE or is_io:
            # A step shows disabled breakpoints that match as well, in bits that are undefined.
            may_show = (state[v, DR7] & DR7_ENABLES) != ZERO or (mode & _TF) != ZERO
            is_matching = is_computed and not takes_db and may_show
            address = U64(selectors[i]) if is_io else value
            access = ACCESS_IO
            is_blocked = is_io and (state[v, HAS_DE] == ZERO or arg == ZERO)
            if kind == _FETCH:
                access = ACCESS_FETCH
                # On VMX the shadow of MOV SS covers a code breakpoint on the next instruction.
                is_shaded = shadow == SHADOW_CAST or (mode & _INTERRUPT_SHADOW) != ZERO
                is_blocked = not is_fetch or (mode & _RF) != ZERO or (is_shaded and not is_svm)
            elif kind == _READ:
                access = ACCESS_READ
            elif kind == _WRITE:
                access = ACCESS_WRITE
            if is_matching and not is_blocked:
                hits = matching_slots(
                    access, address, arg, state[v, 0], state[v, 1], state[v, 2], state[v, 3], state[v, DR7]
                )
                if (hits & _15) != ZERO:
                    story = DB_FAULT if kind == _FETCH else DB_TRAP
        elif kind == _MOV_SS:
            if is_computed and not takes_db and arg != ZERO and (state[v, DR7] & DR7_ENABLES) != ZERO:
                hits = matching_slots(
                    ACCESS_READ, value, arg, state[v, 0], state[v, 1], state[v, 2], state[v, 3], state[v, DR7]
                )
            if is_computed and shadow == SHADOW_NONE:
                state[v, HELD] = hits if (hits & _15) != ZERO else ZERO
                state[v, SHADOW] = SHADOW_CAST
                hits = ZERO
            elif (hits & _15) != ZERO:
                story = DB_TRAP
        elif kind == _INT1:
            if is_computed and (not takes_db or is_svm):
                story = DB_TRAP
                is_kept = True
        elif kind == _INT3:
            if is_computed and (control & USES_SW) == ZERO:
                story = BP
        elif kind == _EXCEPTION:
            vector = U64(selectors[i])
            if vector == ONE:
                story = DB_FAULT
                if (mark & _UNKNOWN) != ZERO:
                    cause = state[v, DR6] & DR6_CAUSES
                    state[v, UNDEFINED] |= DR6_CAUSES
                else:
                    cause = value & DR6_CAUSES
                    state[v, UNDEFINED] &= ~_15
            elif vector == _SIX:
                story = UD
            elif vector == _THIRTEEN:
                story = GP
        elif kind == _MOV_TO_CR:
            if arg == _FOUR and (mark & _UNKNOWN) == ZERO:
                state[v, HAS_DE] = (value >> _THREE) & ONE
        elif kind == _RDMSR:
            if U64(selectors[i]) == MSR_DEBUGCTL:
                story = READ
                undefined[i] = np.uint32(state[v, DEBUGCTL_UNKNOWN])
                if (mark & _EXPECTED) != ZERO:
                    value &= DEBUGCTL_BITS
                    if state[v, DEBUGCTL_UNKNOWN] != ZERO:
                        state[v, DEBUGCTL] = value
                        state[v, DEBUGCTL_UNKNOWN] = ZERO
                    counts[RECORDED_READS] += ONE
                    if state[v, DEBUGCTL] == value:
                        counts[AGREEMENTS_UNAIDED] += ONE
                    else:
                        counts[DISAGREEMENTS] += ONE
                        if counts[FIRST_EVENT] == ZERO:
                            counts[FIRST_EVENT] = first_event + U64(i) + ONE
                            counts[FIRST_VCPU] = v
                            counts[FIRST_REGISTER] = MSR_DEBUGCTL
                            counts[FIRST_RECORDED] = value
                            counts[FIRST_READ] = state[v, DEBUGCTL]
                seen = state[v, DEBUGCTL]
        elif kind == _WRMSR:
            if U64(selectors[i]) == MSR_DEBUGCTL and (mark & _UNKNOWN) == ZERO:
                state[v, DEBUGCTL] = value & DEBUGCTL_BITS
                state[v, DEBUGCTL_UNKNOWN] = ZERO
        elif kind == _STATE:
            state[v, HAS_DE] = value & ONE
        elif kind == _STAGE:
            state[v, U64(STAGED) + arg] = value
        elif kind == _SET_DEBUGREGS:
            for k in range(U64(6)):
                state[v, k] = state[v, U64(STAGED) + k]
            state[v, DR6] = canonical_dr6(state[v, DR6] & LOW_32, writable_dr6)
            state[v, DR7] = canonical_dr7(state[v, DR7])
            state[v, DR6_UNAIDED] = state[v, DR6]
            state[v, UNDEFINED] = ZERO
        elif kind == _GET_DEBUGREGS:
            story = REGISTERS
            dr6 = state[v, DR6] & ~state[v, UNDEFINED]
            seen = registers_digest(state[v, 0], state[v, 1], state[v, 2], state[v, 3], dr6, state[v, DR7])
        elif kind == _HOST_DEBUGGER:
            wanted = U64(selectors[i])
            state[v, CONTROL] = kept_control(wanted)
            state[v, DEBUGGER_DR7] = canonical_dr7(state[v, U64(STAGED) + U64(5)] & LOW_32)
            takes_db = False  # what is injected is the guest's
            if (wanted & INJECTS_DB) != ZERO:
                story = DB_FAULT
                is_kept = True
            elif (wanted & INJECTS_BP) != ZERO:
                story = BP
        elif kind == _RESET or kind == _INIT:
            for k in range(U64(4)):
                state[v, k] = ZERO
            state[v, DR6] = DR6_RESET
            state[v, DR6_UNAIDED] = DR6_RESET
            state[v, DR7] = DR7_RESET
            state[v, UNDEFINED] = ZERO
            state[v, HAS_DE] = ZERO
            state[v, NESTED] = ZERO
            state[v, HELD] = ZERO
            state[v, SHADOW] = SHADOW_NONE
            if kind == _RESET:  # an INIT leaves MSRs as they are
                state[v, DEBUGCTL] = ZERO
                state[v, DEBUGCTL_UNKNOWN] = ZERO
        elif kind == _VMRUN:
            if is_nested:
                story = VMEXIT
            else:
                state[v, NESTED] = ONE
                state[v, NESTED_CONTROL] = value
                state[v, NESTED_DR7] = canonical_dr7(state[v, U64(STAGED) + U64(5)] & LOW_32)
                if is_svm or (value & LOADS_CONTROLS) != ZERO:
                    state[v, DR7] = state[v, NESTED_DR7]
                if is_svm:
                    state[v, DR6] = canonical_dr6(state[v, U64(STAGED) + _FOUR] & LOW_32, writable_dr6)
                    state[v, DR6_UNAIDED] = state[v, DR6]
                    state[v, UNDEFINED] = ZERO
                else:
                    state[v, NESTED_DEBUGCTL] = state[v, U64(STAGED)] & DEBUGCTL_BITS
                    if (value & LOADS_CONTROLS) != ZERO:
                        state[v, DEBUGCTL] = state[v, NESTED_DEBUGCTL]
                        state[v, DEBUGCTL_UNKNOWN] = ZERO
        elif kind == _VMEXIT_TO_L1 and is_nested:
            story = VMEXIT
        if ((USING_KINDS >> U64(kind)) & ONE) != ZERO:
            for k in range(U64(6)):
                state[v, U64(STAGED) + k] = ZERO
        is_raised = kind == _EXCEPTION
        if is_special or is_raised or story > READ:
            # The end of an instruction: its single step, and what a MOV SS before it has held.
            is_refused = fault != FAULT_NONE or story == DB_FAULT or kind == _EXCEPTION or story == VMEXIT
            is_tail = is_special and is_computed and is_guests and (mark & _NOT_RETIRED) == ZERO
            if is_tail and not is_refused:
                is_whole = (mode & _TF) != ZERO or kind != _FETCH or not is_fetch
                if (mode & _TF) != ZERO and story != READ and kind != _MOV_SS:
                    if kind != _INT1 and kind != _INT3 and kind != _INTN:
                        cause |= DR6_BS
                        story = DB_TRAP
                if kind == _MOV_SS:
                    if shadow != SHADOW_NONE:
                        if state[v, HELD] != ZERO:
                            hits |= state[v, HELD]
                            story = DB_TRAP
                        state[v, HELD] = ZERO
                        state[v, SHADOW] = SHADOW_NONE
                elif shadow == SHADOW_CAST and not is_whole:
                    state[v, SHADOW] = SHADOW_FETCHED
                elif shadow != SHADOW_NONE:
                    state[v, SHADOW] = SHADOW_NONE
                    if state[v, HELD] != ZERO:
                        if story == READ or kind == _INT3:
                            state[v, SHADOW] = SHADOW_OVERDUE
                        else:
                            hits |= state[v, HELD]
                            state[v, HELD] = ZERO
                            story = DB_TRAP
                            is_kept = False
            elif is_tail:
                state[v, HELD] = ZERO
                state[v, SHADOW] = SHADOW_NONE
            if story == DB_FAULT or story == DB_TRAP:
                cause |= hits >> _FOUR
                # No intercept of #DB covers INT1 on SVM, unless something held comes with it (assumed).
                is_native_int1 = is_svm and kind == _INT1 and is_kept
                is_wanted = (
                    (nested_control & WANTS_DB) != ZERO and kind != _HOST_DEBUGGER and not is_native_int1
                )
                if takes_db and fault != FAULT_GD and not is_native_int1:
                    story = NOTHING  # the host's debugger has it
                elif is_wanted and not is_svm:
                    story = VMEXIT
                    undefined[i] = np.uint32((hits >> _FOUR) & ~hits)
                else:
                    if not is_kept:
                        state[v, DR6] = dr6_after_db(state[v, DR6], cause)
                        if kind != _EXCEPTION:
                            state[v, DR6_UNAIDED] = dr6_after_db(state[v, DR6_UNAIDED], cause)
                            state[v, UNDEFINED] = (state[v, UNDEFINED] & ~_15) | ((hits >> _FOUR) & ~hits)
                    if not is_kept or kind == _HOST_DEBUGGER:
                        state[v, DR7] &= ~DR7_GD
                    if is_wanted:
                        story = VMEXIT
            if story == VMEXIT:
                is_raised = True
                if is_svm:
                    cause = state[v, DR6]
                    undefined[i] = np.uint32(state[v, UNDEFINED])
                if is_svm or (state[v, NESTED_CONTROL] & SAVES_CONTROLS) != ZERO:
                    state[v, NESTED_DR7] = state[v, DR7]
                seen = (cause & LOW_32) | (state[v, NESTED_DR7] << _32)
                if not is_svm:
                    if (state[v, NESTED_CONTROL] & SAVES_CONTROLS) != ZERO:
                        state[v, NESTED_DEBUGCTL] = state[v, DEBUGCTL]
                        undefined[i] |= np.uint32(state[v, DEBUGCTL_UNKNOWN] << DEBUGCTL_SHIFT)
                    seen |= state[v, NESTED_DEBUGCTL] << DEBUGCTL_SHIFT
                    state[v, DEBUGCTL] = ZERO
                    state[v, DEBUGCTL_UNKNOWN] = ZERO
                state[v, DR7] = DR7_RESET
                state[v, NESTED] = ZERO
            elif is_exception(story):
                is_raised = True
                seen = state[v, DR6] | (state[v, DR7] << _32)
                undefined[i] = np.uint32(state[v, UNDEFINED])
            if is_special:
                state[v, EXTRA] = state[v, SHADOW] | state[v, CONTROL] | state[v, NESTED]
        if conditional == ZERO and is_guests:
            state[v, FAULTED] = ONE if is_raised else ZERO
        stories[i] = story
        story_values[i] = seen
        if story != NOTHING:
            counts[DIGEST] += mixed(first_event + U64(i), v, story, seen & ~U64(undefined[i]))
