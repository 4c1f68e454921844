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
from hypervisor_svc.arch.debug_registers import (
    ACCESS_FETCH,
    ACCESS_READ,
    ACCESS_WRITE,
    DR6_BD,
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
)
from hypervisor_svc.arch.story import Story

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
REFERENCE_FIELDS: Final = 17

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
FIRST_REGISTER: Final = 9
FIRST_RECORDED: Final = 10
FIRST_READ: Final = 11
CONFLICTS: Final = 12  # conditional events that the leading reference decided otherwise
CONFLICT_EVENT: Final = 13  # the first, plus one
REFERENCE_COUNTS: Final = 14

_MOV_TO_DR: Final = int(EventKind.MOV_TO_DR)
_MOV_FROM_DR: Final = int(EventKind.MOV_FROM_DR)
_MOV_TO_CR: Final = int(EventKind.MOV_TO_CR)
_FETCH: Final = int(EventKind.FETCH)
_READ: Final = int(EventKind.READ)
_WRITE: Final = int(EventKind.WRITE)
_EXCEPTION: Final = int(EventKind.EXCEPTION)
_STAGE: Final = int(EventKind.STAGE)
_SET_DEBUGREGS: Final = int(EventKind.SET_DEBUGREGS)
_HOST_BREAKPOINTS: Final = int(EventKind.HOST_BREAKPOINTS)
_RESET: Final = int(EventKind.RESET)
_INIT: Final = int(EventKind.INIT)
_STATE: Final = int(EventKind.STATE)
_ADVANCE: Final = int(EventKind.ADVANCE)
_FIRST_ASYNCHRONOUS: Final = int(EventKind.EXTERNAL_INTERRUPT)

_UNKNOWN: Final = U64(Mark.VALUE_UNKNOWN)
_EXPECTED: Final = U64(Mark.VALUE_EXPECTED)
_RETIRED: Final = U64(Mark.RETIRED)
_NOT_RETIRED: Final = U64(Mark.NOT_RETIRED)
_IF_FAULT: Final = U64(Mark.IF_FAULT)
_IF_OK: Final = U64(Mark.IF_OK)
_CPL: Final = U64(Mode.CPL)
_RF: Final = U64(Mode.RF)
_OPERAND_32: Final = U64(Mode.OPERAND_32)
_TWO: Final = U64(2)
_THREE: Final = U64(3)
_FOUR: Final = U64(4)
_SIX: Final = U64(6)
_SEVEN: Final = U64(7)
_THIRTEEN: Final = U64(13)
_32: Final = U64(32)

NOTHING: Final = U64(Story.NOTHING)
READ: Final = U64(Story.READ)
DB_FAULT: Final = U64(Story.DB_FAULT)
DB_TRAP: Final = U64(Story.DB_TRAP)
UD: Final = U64(Story.UD)
GP: Final = U64(Story.GP)
NOT_TAKEN: Final = U64(Story.NOT_TAKEN)

_U8 = nt.Array(nt.uint8, 1, "C", readonly=True, aligned=False)
_U32 = nt.Array(nt.uint32, 1, "C", readonly=True, aligned=False)
_U64 = nt.Array(nt.uint64, 1, "C", readonly=True, aligned=False)
_SIGNATURE = nt.void(
    *(_U8, _U8, _U8, _U8, _U8, _U32, _U32, _U64),
    *(nt.uint64, nt.boolean, nt.boolean, nt.uint64, nt.uint8[::1]),
    *(nt.uint64[:, ::1], nt.uint64[::1], nt.uint8[::1], nt.uint64[::1], nt.uint32[::1]),
)


def new_reference_state(vcpus: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Return the records of ``vcpus`` vCPUs after reset, shape (vcpus, REFERENCE_FIELDS)."""
    state = np.zeros((vcpus, REFERENCE_FIELDS), np.uint64)
    state[:, DR6] = state[:, DR6_UNAIDED] = DR6_RESET
    state[:, DR7] = DR7_RESET
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
        arg = U64(args[i])
        value = values[i]
        story = NOTHING
        seen = ZERO
        fault = FAULT_NONE
        cause = ZERO
        if (kind == _MOV_TO_DR or kind == _MOV_FROM_DR) and (mark & _NOT_RETIRED) == ZERO:
            is_alias = arg == _FOUR or arg == U64(5)
            register = arg + _TWO if is_alias else arg
            is_write = kind == _MOV_TO_DR
            if (U64(modes[i]) & _OPERAND_32) != ZERO:
                value &= LOW_32
            fault = first_fault(
                is_alias and state[v, HAS_DE] != ZERO,
                (U64(modes[i]) & _CPL) != ZERO,
                (state[v, DR7] & DR7_GD) != ZERO,
            )
            is_known = (mark & _UNKNOWN) == ZERO
            if fault == FAULT_NONE and is_write and is_known and register >= _SIX and (value >> _32) != ZERO:
                fault = FAULT_GP
            if fault != FAULT_NONE and (mark & _RETIRED) != ZERO:
                counts[CONTRADICTIONS] += ONE
                fault = FAULT_NONE
            if fault != FAULT_NONE:
                cause = DR6_BD
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
                if (U64(modes[i]) & _OPERAND_32) != ZERO:
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
            if fault == FAULT_UD:
                story = UD
            elif fault == FAULT_GP:
                story = GP
            elif fault == FAULT_GD:
                story = DB_FAULT
        elif kind == _FETCH or kind == _READ or kind == _WRITE:
            is_resumed = kind == _FETCH and (U64(modes[i]) & _RF) != ZERO
            if is_computed and not is_resumed and (state[v, DR7] & DR7_ENABLES) != ZERO:
                access = ACCESS_FETCH if kind == _FETCH else (ACCESS_READ if kind == _READ else ACCESS_WRITE)
                hits = matching_slots(
                    access, value, arg, state[v, 0], state[v, 1], state[v, 2], state[v, 3], state[v, DR7]
                )
                if (hits & U64(15)) != ZERO:
                    cause = hits >> _FOUR
                    state[v, UNDEFINED] = (state[v, UNDEFINED] & ~U64(15)) | (cause & ~hits)
                    story = DB_FAULT if kind == _FETCH else DB_TRAP
        elif kind == _EXCEPTION:
            vector = U64(selectors[i])
            if vector == ONE:
                story = DB_FAULT
                if (mark & _UNKNOWN) != ZERO:
                    cause = state[v, DR6] & DR6_CAUSES
                    state[v, UNDEFINED] |= DR6_CAUSES
                else:
                    cause = value & DR6_CAUSES
                    state[v, UNDEFINED] &= ~U64(15)
            elif vector == _SIX:
                story = UD
            elif vector == _THIRTEEN:
                story = GP
        elif kind == _MOV_TO_CR:
            if arg == _FOUR and (mark & _UNKNOWN) == ZERO:
                state[v, HAS_DE] = (value >> _THREE) & ONE
        elif kind == _STATE:
            state[v, HAS_DE] = value & ONE
        elif kind == _STAGE:
            state[v, U64(STAGED) + arg] = value
        elif kind == _SET_DEBUGREGS:
            for k in range(U64(6)):
                state[v, k] = state[v, U64(STAGED) + k]
                state[v, U64(STAGED) + k] = ZERO
            state[v, DR6] = canonical_dr6(state[v, DR6] & LOW_32, writable_dr6)
            state[v, DR7] = canonical_dr7(state[v, DR7])
            state[v, DR6_UNAIDED] = state[v, DR6]
            state[v, UNDEFINED] = ZERO
        elif kind == _HOST_BREAKPOINTS:
            for k in range(U64(6)):
                state[v, U64(STAGED) + k] = ZERO
        elif kind == _RESET or kind == _INIT:
            for k in range(U64(4)):
                state[v, k] = ZERO
            state[v, DR6] = DR6_RESET
            state[v, DR6_UNAIDED] = DR6_RESET
            state[v, DR7] = DR7_RESET
            state[v, UNDEFINED] = ZERO
            state[v, HAS_DE] = ZERO
        if story == DB_FAULT or story == DB_TRAP:
            state[v, DR6] = dr6_after_db(state[v, DR6], cause)
            if kind != _EXCEPTION:
                state[v, DR6_UNAIDED] = dr6_after_db(state[v, DR6_UNAIDED], cause)
                if kind != _FETCH and kind != _READ and kind != _WRITE:
                    state[v, UNDEFINED] &= ~U64(15)
            state[v, DR7] &= ~DR7_GD
        if story >= DB_FAULT:
            seen = state[v, DR6] | (state[v, DR7] << _32)
            undefined[i] = np.uint32(state[v, UNDEFINED])
        if conditional == ZERO and kind < _FIRST_ASYNCHRONOUS:
            state[v, FAULTED] = ONE if story >= DB_FAULT or kind == _EXCEPTION else ZERO
        stories[i] = story
        story_values[i] = seen
        if story != NOTHING:
            counts[DIGEST] += mixed(first_event + U64(i), v, story, seen & ~U64(undefined[i]))
