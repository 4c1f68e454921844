"""Events to ask a policy's loop about: one for each feature word, with telling values."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from exitlab.debugreg import DR7_GD, DR7_RESET
from exitlab.events import COLUMN_DTYPES, Column, DebuggerControl, EventKind, Mark, Mode
from hypervisor_svc.engine import profile, symbols
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.states import MISSED, TELLING
from hypervisor_svc.engine.validation import Block

PORTS: Final = (EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS)
ACCESSES: Final = (EventKind.FETCH, EventKind.READ, EventKind.WRITE)

# Telling values.
_CONDITION: Final = {  # of the slot that the event hits
    EventKind.READ: 0xF_0000,
    EventKind.WRITE: 0xF_0000,
    **dict.fromkeys(PORTS, 0x2_0000),
}
_HIT: Final = int(TELLING[0])
_WRITTEN: Final = 0x7000_0000
_WRITTEN_DR6: Final = 0xFFFE_87F1
_WRITTEN_DR7: Final = 0x300
_MSRS: Final = {0: 0x3A, 1: int(profile.MSR_TSC_DEADLINE), 2: int(profile.MSR_X2APIC_ICR), 3: 0x10}


def events_of(words: Sequence[int], reasons: Sequence[int]) -> tuple[Block, Words]:
    """Return an event for each word, and the condition of the slot that it hits."""
    keys = list(zip(words, reasons, strict=True))
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    few = Block(*(np.zeros(len(places), COLUMN_DTYPES[column]) for column in Column))
    conditions = np.array([_put_event(few, place, *key) for key, place in places.items()], np.uint64)
    chosen = [places[key] for key in keys]
    events: Any = (column[chosen] for column in few)
    return Block(*events), conditions[chosen]


def _put_event(block: Block, k: int, word: int, reason: int) -> int:
    """Write event ``k`` so that it has a feature word; return the condition of the slot that it hits."""
    if word & symbols.WORD_STEPS:
        block.modes[k] |= Mode.TF
    if word & symbols.WORD_DR:
        _put_access(block, k, word)
        return 0
    kind = EventKind(word & 0x3F)
    detail = word >> symbols.WORD_DETAIL_SHIFT & 0xFF
    block.kinds[k] = kind
    block.marks[k] |= (word >> symbols.WORD_CLASS_SHIFT & 3) << 6
    if kind in ACCESSES:
        block.args[k] = 0 if kind == EventKind.FETCH else 4
        block.values[k] = _HIT if detail & symbols.DETAIL_HIT else MISSED
    elif kind in PORTS:
        block.args[k] = 1
        block.selectors[k] = _HIT if detail & symbols.DETAIL_HIT else MISSED
    elif kind in (EventKind.RDMSR, EventKind.WRMSR):
        block.selectors[k] = _MSRS[detail]
    elif kind == EventKind.MOV_TO_CR:
        block.args[k] = 4 if detail & symbols.DETAIL_CR4 else 0
        block.values[k] = 8 if detail & symbols.DETAIL_CR4_DE else 0
        if detail & symbols.DETAIL_CR4_UNKNOWN:
            block.marks[k] |= Mark.VALUE_UNKNOWN
    elif kind == EventKind.MMIO:
        block.selectors[k] = int(profile.LOCAL_APIC_PAGE) << 12 if detail else 0xFEB0_0000
    elif kind == EventKind.EXCEPTION:
        block.selectors[k] = detail
        block.values[k] = 1
    elif kind == EventKind.EXIT:
        block.selectors[k] = reason
    elif kind == EventKind.HOST_DEBUGGER:
        block.selectors[k] = DebuggerControl.ENABLE
    return _CONDITION.get(kind, 0)


def _put_access(block: Block, k: int, word: int) -> None:
    """Write event ``k`` as a MOV DR that has a feature word."""
    register = word & 7
    is_write = bool(word & symbols.WORD_DR_WRITE)
    block.kinds[k] = EventKind.MOV_TO_DR if is_write else EventKind.MOV_FROM_DR
    block.args[k] = register
    if word & symbols.WORD_DR_USER:
        block.modes[k] |= 3
    if word & symbols.WORD_DR_RETIRED:
        block.marks[k] |= Mark.RETIRED
    if word & symbols.WORD_DR_NOT_RETIRED:
        block.marks[k] |= Mark.NOT_RETIRED
    if not is_write:
        return
    value = _WRITTEN + register
    if register in (4, 6):
        value = _WRITTEN_DR6 | (0x800 if word & symbols.WORD_DR_BIT_11 else 0)
        value |= 0x1_0000 if word & symbols.WORD_DR_BIT_16 else 0
    elif register in (5, 7):
        value = DR7_RESET if word & symbols.WORD_DR_RESET else _WRITTEN_DR7
        value |= (DR7_GD if word & symbols.WORD_DR_GD else 0) | (
            0xFF if word & symbols.WORD_DR_ENABLES else 0
        )
        value |= 0x800 if word & symbols.WORD_DR_BIT_11 else 0
    if word & symbols.WORD_DR_WIDE:
        value |= 1 << 32
    if word & symbols.WORD_DR_CUT:
        value |= 1 << 33
        block.modes[k] |= Mode.OPERAND_32
    block.values[k] = value
