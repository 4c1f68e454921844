"""Symbols: what all lanes of a reference need to know of a stretch of events, and no more.

A bill machine (``machine.py``) reads one symbol for each event that a policy can act on: a MOV DR, an
event that can exit, an exception, and the first event after one of these that needs the guest, as the
entry that was postponed runs there. Everything else shows the same under every policy and costs nothing.

A symbol stands for a *feature word*: everything about an event, beside the state of its vCPU, on which
the oracle loop's answer can depend. Words are numbered in the order in which they are met. An event
whose answer depends on more than its word says ends the stretch, and is left to the oracle loop.
"""

from typing import Final

import numba.types as nt
import numpy as np

from exitlab.events import EventKind, Mark, Mode
from hypervisor_svc.arch.compiled import compiled
from hypervisor_svc.arch.controls import MSR_DEBUGCTL
from hypervisor_svc.arch.debug_registers import (
    DR7_ENABLES,
    DR7_GD,
    DR7_RESET,
    LOW_32,
    ONE,
    U64,
    ZERO,
    canonical_dr7,
    mixed,
)
from hypervisor_svc.arch.story import Story
from hypervisor_svc.engine import profile

# A feature word of a MOV DR.
WORD_DR: Final = 1 << 18
WORD_DR_WRITE: Final = 1 << 3  # bits 0-2 are the register as the instruction names it
WORD_DR_USER: Final = 1 << 4
WORD_DR_RETIRED: Final = 1 << 5
WORD_DR_NOT_RETIRED: Final = 1 << 6
WORD_DR_CUT: Final = 1 << 7  # the operand's high half is not part of the instruction
WORD_DR_WIDE: Final = 1 << 8  # a value for DR6 or DR7 with a bit above 31
WORD_DR_ENABLES: Final = 1 << 9  # a value for DR7
WORD_DR_GD: Final = 1 << 10  # a value for DR7
WORD_DR_BIT_11: Final = 1 << 11  # a value for DR6 (bus lock) or DR7 (RTM)
WORD_DR_BIT_16: Final = 1 << 12  # a value for DR6 (RTM)
WORD_DR_RESET: Final = 1 << 13  # a value for DR7 that makes it 0x400
# A feature word of any other event: the kind in bits 0-5, a detail of its own in bits 6-13, the event's
# own class in bits 14-15.
WORD_DETAIL_SHIFT: Final = 6
WORD_CLASS_SHIFT: Final = 14
WORD_STEPS: Final = 1 << 17  # of every word: the trap flag is set in a session that computes
WORDS: Final = 1 << 19
# Details.
DETAIL_HIT: Final = 1  # FETCH, READ, WRITE and ports: a breakpoint matches
DETAIL_PASSED: Final = 3  # RDMSR, WRMSR: does not exit; 1 and 2 are sub-reasons
DETAIL_CR4: Final = 1  # MOV_TO_CR: CR4, else CR0
DETAIL_CR4_DE: Final = 2
DETAIL_CR4_UNKNOWN: Final = 4

MAX_SYMBOLS: Final = 255  # numbered from 0; 0 is QUIET
QUIET: Final = 0  # needs the guest and does nothing
QUIET_WORD: Final = int(EventKind.PAUSE)
KNOWN_CODES: Final = profile.CLASSED_CODES
MAX_REASONS: Final = 256  # recorded exit reasons with a detail of their own

# What the pass returns about a stretch: rows of one vCPU each.
SYMBOLS: Final = 0  # how many symbols
ACCESSES: Final = 1  # MOV DRs of the stretch that do what they say, wherever they run natively
OWES: Final = 2  # the next event that needs the guest is a symbol
VCPU_COLUMNS: Final = 3
# And of all: how many events were taken, how many words and reasons are known.
TAKEN: Final = 0
KNOWN_WORDS: Final = 1
KNOWN_REASONS: Final = 2
STRETCH_FIELDS: Final = 3

_MOV_TO_DR: Final = int(EventKind.MOV_TO_DR)
_IN: Final = int(EventKind.IN)
_OUTS: Final = int(EventKind.OUTS)
_WRMSR: Final = int(EventKind.WRMSR)
_ADVANCE: Final = int(EventKind.ADVANCE)

_QUIET: Final = int(profile.Group.QUIET)
_DR: Final = int(profile.Group.DR)
_MATCH: Final = int(profile.Group.MATCH)
_MSR: Final = int(profile.Group.MSR)
_CR_WRITE: Final = int(profile.Group.CR_WRITE)
_MMIO: Final = int(profile.Group.MMIO)
_EXCEPTION: Final = int(profile.Group.EXCEPTION)
_RECORDED_EXIT: Final = int(profile.Group.RECORDED_EXIT)
_SIGNAL: Final = int(profile.Group.SIGNAL)
_EXITING: Final = int(profile.Group.EXITING)
_SOFTWARE: Final = int(profile.Group.SOFTWARE)
_INTN: Final = int(EventKind.INTN)
_MOV_SS: Final = int(EventKind.MOV_SS)

_UNKNOWN: Final = U64(Mark.VALUE_UNKNOWN)
_RETIRED: Final = U64(Mark.RETIRED)
_NOT_RETIRED: Final = U64(Mark.NOT_RETIRED)
_CPL: Final = U64(Mode.CPL)
_TF: Final = U64(Mode.TF)
_OPERAND_32: Final = U64(Mode.OPERAND_32)

_NOTHING: Final = U64(Story.NOTHING)
_NOT_TAKEN: Final = U64(Story.NOT_TAKEN)
_DONE: Final = U64(
    1 << Story.NOTHING | 1 << Story.READ | 1 << Story.DB_TRAP
)  # stories of an access that is done

_TWO: Final = U64(2)
_THREE: Final = U64(3)
_FOUR: Final = U64(4)
_12: Final = U64(12)
_32: Final = U64(32)
_CLASS_OF_MARK: Final = U64(6)
_DETAIL: Final = U64(WORD_DETAIL_SHIFT)
_CLASS: Final = U64(WORD_CLASS_SHIFT)
_BIT_11: Final = U64(1 << 11)
_BIT_16: Final = U64(1 << 16)
_W_DR: Final = U64(WORD_DR)
_W_WRITE: Final = U64(WORD_DR_WRITE)
_W_USER: Final = U64(WORD_DR_USER)
_W_RETIRED: Final = U64(WORD_DR_RETIRED)
_W_NOT_RETIRED: Final = U64(WORD_DR_NOT_RETIRED)
_W_CUT: Final = U64(WORD_DR_CUT)
_W_WIDE: Final = U64(WORD_DR_WIDE)
_W_ENABLES: Final = U64(WORD_DR_ENABLES)
_W_GD: Final = U64(WORD_DR_GD)
_W_RESET: Final = U64(WORD_DR_RESET)
_W_STEPS: Final = U64(WORD_STEPS)
_CODES: Final = U64(KNOWN_CODES)
_MOST_REASONS: Final = U64(MAX_REASONS)
_MOST_SYMBOLS: Final = U64(MAX_SYMBOLS)


def is_recorded_exit(word: int) -> bool:
    """Tell whether a feature word is of a recorded exit."""
    return not word & WORD_DR and word & 0x3F == EventKind.EXIT


def without_number(word: int) -> int:
    """Return a feature word without the number that a recorded exit's reason has in one session."""
    return word & ~(0xFF << WORD_DETAIL_SHIFT) if is_recorded_exit(word) else word


def recorded_reason(word: int) -> int:
    """Return which of the recorded reasons a recorded exit's feature word names."""
    return word >> WORD_DETAIL_SHIFT & 0xFF


_U8 = nt.Array(nt.uint8, 1, "C", readonly=True, aligned=False)
_U32 = nt.Array(nt.uint32, 1, "C", readonly=True, aligned=False)
_U64 = nt.Array(nt.uint64, 1, "C", readonly=True, aligned=False)
_SIGNATURE = nt.void(
    *(_U8, _U8, _U8, _U8, _U8, _U32, _U64),  # events
    *(nt.uint64, nt.uint64, nt.boolean),
    *(nt.uint8[::1], nt.uint64[::1], nt.uint32[::1]),  # the reference's story
    *(nt.uint8[::1], nt.uint32[::1]),  # profile
    *(nt.uint8[::1], nt.uint32[::1], nt.uint16[::1], nt.uint32[::1]),  # numbers of words and of reasons
    *(nt.int64[::1], nt.uint64[:, ::1]),
    *(nt.uint8[::1], nt.uint32[::1], nt.uint32[::1], nt.uint64[::1]),
)


@compiled(_SIGNATURE)
def read_symbols(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915  # one pass, typed by its signature
    kinds,
    args,
    modes,
    marks,
    vcpus,
    selectors,
    values,
    start,
    stop,
    is_computed,
    stories,
    story_values,
    undefined,
    groups,
    passed_msrs,
    numbers,
    words,
    reason_numbers,
    reasons,
    places,
    per_vcpu,
    symbols,
    accesses_before,
    events,
    stretch,
):
    """Read the symbols of events ``start`` to ``stop``, or to the first that has none.

    ``symbols``, ``accesses_before`` (the MOV DRs of the same vCPU before it in this stretch) and
    ``events`` (which event it is) are filled from ``places[v]`` on for vCPU v. ``numbers`` is the symbol
    of a word plus one, ``words`` the word of a symbol, and likewise ``reason_numbers`` and ``reasons``.
    """
    known_words = stretch[KNOWN_WORDS]
    known_reasons = stretch[KNOWN_REASONS]
    current = ZERO  # the vCPU whose columns are at hand
    at = U64(places[ZERO])
    accesses = ZERO
    owes = per_vcpu[ZERO, OWES]
    i = start
    while i < stop:
        kind = U64(kinds[i])
        story = U64(stories[i])
        if kind == _ADVANCE or story == _NOT_TAKEN:
            i += ONE
            continue
        mark = U64(marks[i])
        mode = U64(modes[i])
        group = groups[kind]
        steps = is_computed and (mode & _TF) != ZERO
        if group != _DR:  # what has not retired has no step, whatever it is
            steps = steps and (mark & _NOT_RETIRED) == ZERO
        word = U64(QUIET_WORD)
        counts = ZERO
        if group == _DR:
            arg = U64(args[i])
            word = _W_DR | arg
            if ((mark & (_RETIRED | _NOT_RETIRED)) | mode) != ZERO:
                if (mode & _CPL) != ZERO:
                    word |= _W_USER
                if (mark & _RETIRED) != ZERO:
                    word |= _W_RETIRED
                if (mark & _NOT_RETIRED) != ZERO:
                    word |= _W_NOT_RETIRED
            if kind == _MOV_TO_DR:
                word |= _W_WRITE
                value = values[i]
                if (mark & _UNKNOWN) != ZERO:
                    if story != _NOTHING or (mark & _NOT_RETIRED) != ZERO:
                        break
                    value = story_values[i]
                if (mode & _OPERAND_32) != ZERO:
                    if (value >> _32) != ZERO:
                        word |= _W_CUT
                    value &= LOW_32
                if arg >= _FOUR:
                    if (value >> _32) != ZERO:
                        word |= _W_WIDE
                    word |= value & _BIT_11  # as WORD_DR_BIT_11
                    if (arg & ONE) == ZERO:
                        word |= (value & _BIT_16) >> _FOUR  # as WORD_DR_BIT_16
                    else:
                        if (value & DR7_ENABLES) != ZERO:
                            word |= _W_ENABLES
                        if (value & DR7_GD) != ZERO:
                            word |= _W_GD
                        if canonical_dr7(value & LOW_32) == DR7_RESET:
                            word |= _W_RESET
            if (mark & _NOT_RETIRED) == ZERO:
                counts = (_DONE >> story) & ONE
        elif group == _QUIET:
            if steps:
                word = kind
        elif group == _MATCH:
            if story != _NOTHING or steps:
                word = kind
                if story != _NOTHING and (story_values[i] & U64(15)) != ZERO:
                    word |= U64(DETAIL_HIT) << _DETAIL
        elif group == _EXITING:
            word = kind | ((mark >> _CLASS_OF_MARK) << _CLASS)
            is_io = kind >= U64(_IN) and kind <= U64(_OUTS)
            if is_io and story != _NOTHING and (story_values[i] & U64(15)) != ZERO:
                word |= U64(DETAIL_HIT) << _DETAIL
        elif group == _MSR:
            selector = U64(selectors[i])
            if selector == MSR_DEBUGCTL:
                break
            is_passed = False
            for k in range(U64(passed_msrs.size)):
                if selector == U64(passed_msrs[k]):
                    is_passed = True
            if not is_passed:
                word = kind | ((mark >> _CLASS_OF_MARK) << _CLASS)
                if kind == _WRMSR and selector == profile.MSR_TSC_DEADLINE:
                    word |= ONE << _DETAIL
                elif kind == _WRMSR and selector == profile.MSR_X2APIC_ICR:
                    word |= _TWO << _DETAIL
            elif steps:
                word = kind | (U64(DETAIL_PASSED) << _DETAIL)
        elif group == _CR_WRITE:
            arg = U64(args[i])
            if (arg & ~_FOUR) == ZERO:
                word = kind | ((mark >> _CLASS_OF_MARK) << _CLASS)
                if arg == _FOUR:
                    word |= U64(DETAIL_CR4) << _DETAIL
                    if (mark & _UNKNOWN) != ZERO:
                        word |= U64(DETAIL_CR4_UNKNOWN) << _DETAIL
                    elif ((values[i] >> _THREE) & ONE) != ZERO:
                        word |= U64(DETAIL_CR4_DE) << _DETAIL
            elif steps:
                break
        elif group == _MMIO:
            word = kind | ((mark >> _CLASS_OF_MARK) << _CLASS)
            if (U64(selectors[i]) >> _12) == profile.LOCAL_APIC_PAGE:
                word |= ONE << _DETAIL
        elif group == _EXCEPTION:
            if U64(selectors[i]) == ONE and (mark & _UNKNOWN) != ZERO:
                break
            word = kind | (U64(selectors[i]) << _DETAIL)
        elif group == _RECORDED_EXIT:
            code = U64(selectors[i])
            if code >= _CODES:
                break
            number = U64(reason_numbers[code])
            if number == ZERO:
                if known_reasons == _MOST_REASONS:
                    break
                reasons[known_reasons] = np.uint32(code)
                known_reasons += ONE
                number = known_reasons
                reason_numbers[code] = np.uint16(number)
            word = kind | ((number - ONE) << _DETAIL) | ((mark >> _CLASS_OF_MARK) << _CLASS)
        elif group == _SIGNAL:
            word = kind | ((mark >> _CLASS_OF_MARK) << _CLASS)
        elif group == _SOFTWARE and (not is_computed or kind != _MOV_SS):
            if is_computed and (kind != _INTN or steps):
                word = kind
        else:
            break  # what a host, a nested guest or MOV SS does
        if story != _NOTHING and undefined[i] != 0:
            break
        if steps:
            word |= _W_STEPS
        symbol = ZERO
        if word != U64(QUIET_WORD):
            symbol = U64(numbers[word])
            if symbol == ZERO:
                if known_words == _MOST_SYMBOLS:
                    break
                words[known_words] = np.uint32(word)
                symbol = known_words
                known_words += ONE
                numbers[word] = np.uint8(known_words)
            else:
                symbol -= ONE
        v = U64(vcpus[i])
        if v != current:
            per_vcpu[current, SYMBOLS] = at - U64(places[current])
            per_vcpu[current, ACCESSES] = accesses
            per_vcpu[current, OWES] = owes
            current = v
            at = U64(places[v]) + per_vcpu[v, SYMBOLS]
            accesses = per_vcpu[v, ACCESSES]
            owes = per_vcpu[v, OWES]
        # Always written, and kept by going on: a branch would be guessed wrong too often.
        symbols[at] = np.uint8(symbol)
        accesses_before[at] = np.uint32(accesses)
        events[at] = np.uint32(i)
        is_symbol = ONE if symbol != ZERO else ZERO
        at += is_symbol | owes
        owes = is_symbol
        accesses += counts
        i += ONE
    per_vcpu[current, SYMBOLS] = at - U64(places[current])
    per_vcpu[current, ACCESSES] = accesses
    per_vcpu[current, OWES] = owes
    stretch[TAKEN] = i
    stretch[KNOWN_WORDS] = known_words
    stretch[KNOWN_REASONS] = known_reasons


@compiled(nt.uint64(nt.uint8[::1], nt.uint64[::1], _U8, nt.uint64))
def digest_of(stories, values, vcpus, first_event):  # type: ignore[no-untyped-def]  # typed by its signature
    """Return what the stories of a stretch, in which nothing is undefined, add to a lane's digest."""
    digest = ZERO
    for i in range(U64(stories.size)):
        story = U64(stories[i])
        if story != _NOTHING and story != _NOT_TAKEN:
            digest += mixed(first_event + i, U64(vcpus[i]), story, values[i])
    return digest
