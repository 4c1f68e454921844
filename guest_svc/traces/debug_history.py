"""What each vCPU of a trace did with its debug registers, and what they held before.

Three things that the recorder leaves unsaid are settled here:

- *Did a MOV DR retire?* It is recorded before it runs, so a fault of its own shows as an exception
  (#DB, #UD, #GP) one instruction later on the same vCPU; a fault of the instruction after it comes
  two later. Of a #DB there, DR6.BD says whether the MOV DR raised it (general detect); where DR6 is
  not known, nothing is claimed. An exception's own address is its handler's, so addresses decide
  nothing. In the shipped traces every MOV DR retires.
- *The DR6 of a #DB* is what this vCPU reads from DR6 next, provided that it neither writes DR6 nor
  takes another #DB before. Else it is unknown.
- *State before the window*: where the first that a vCPU does to a debug register is to read it, the
  register held that value already (DR6: unless a #DB came first). Then, before the first event, the
  vCPU's six registers are set, those that are not known to their reset values.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_BD, DR6_RESET, DR7_RESET, VECTOR_DB, VECTOR_GP, VECTOR_UD
from exitlab.events import EventKind
from guest_svc.traces.records import ByVcpu, RecordKind, Records

# The slots of STAGE in order: register, value after reset.
RESET_VALUES: Final = ((0, 0), (1, 0), (2, 0), (3, 0), (6, DR6_RESET), (7, DR7_RESET))
DR4, DR5, DR6 = 4, 5, 6  # DR4 and DR5 reach DR6 and DR7


@dataclass(frozen=True, slots=True)
class DebugHistory:
    """The accesses of debug registers and the debug exceptions, sorted by vCPU.

    ``register`` names DR6 and DR7 also where they were reached as DR4 and DR5.
    """

    by_vcpu: ByVcpu
    moves: NDArray[np.intp]
    register: NDArray[np.uint8]
    is_write: NDArray[np.bool_]
    #: Whether the operand or result was recorded and can be trusted.
    is_known: NDArray[np.bool_]
    value: NDArray[np.uint64]
    has_retired: NDArray[np.bool_]
    has_faulted: NDArray[np.bool_]
    exceptions: NDArray[np.intp]
    #: DR6 after each exception, where known.
    payload: NDArray[np.uint64]
    has_payload: NDArray[np.bool_]


def debug_history(records: Records, by_vcpu: ByVcpu) -> DebugHistory:
    """Return what each vCPU did with its debug registers, and what of it retired."""
    moves = np.flatnonzero(by_vcpu.kind == RecordKind.MOV_DR)
    at = by_vcpu.positions(moves)
    register = records.reg[at]
    register = np.where((register == DR4) | (register == DR5), register + 2, register)
    is_write = records.write[at] == 1
    value = records.val[at]
    exceptions = np.flatnonzero(by_vcpu.kind == RecordKind.EXC)
    exceptions = exceptions[records.aux[by_vcpu.positions(exceptions)] == VECTOR_DB]

    # An exception one instruction after a MOV DR: that MOV DR's own, unless a debug exception says
    # otherwise. Its result was then taken in the handler, and means nothing.
    following = np.minimum(moves + 1, len(records) - 1)
    vector = records.aux[by_vcpu.positions(following)]
    is_doubtful = (
        by_vcpu.has_successor(moves)
        & (by_vcpu.kind[following] == RecordKind.EXC)
        & (by_vcpu.gap[following] <= 1)
        & np.isin(vector, (VECTOR_DB, VECTOR_UD, VECTOR_GP))
    )
    is_known = (records.vok[at] == 1) & (is_write | ~is_doubtful)
    of_dr6 = register == DR6
    payload, has_payload = _payloads(
        by_vcpu, exceptions, moves[of_dr6], (is_known & ~is_write)[of_dr6], value[of_dr6]
    )
    has_retired = ~is_doubtful
    has_faulted = is_doubtful & (vector != VECTOR_DB)
    by_debug = np.flatnonzero(is_doubtful & (vector == VECTOR_DB))
    its = np.searchsorted(exceptions, following[by_debug])
    is_general_detect = (payload[its] & np.uint64(DR6_BD)) != 0
    has_faulted[by_debug] = has_payload[its] & is_general_detect
    has_retired[by_debug] = has_payload[its] & ~is_general_detect
    return DebugHistory(
        by_vcpu, moves, register, is_write, is_known, value, has_retired, has_faulted,
        exceptions, payload, has_payload,
    )  # fmt: skip


def _payloads(
    by_vcpu: ByVcpu,
    exceptions: NDArray[np.intp],
    dr6_moves: NDArray[np.intp],
    is_known_read: NDArray[np.bool_],
    value: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return DR6 after each debug exception, and where it is known.

    It is known where the vCPU's next exception or access of DR6 is a read of it.
    """
    payload = np.zeros(len(exceptions), dtype=np.uint64)
    has_payload = np.zeros(len(exceptions), dtype=np.bool_)
    if len(exceptions) and len(dr6_moves):
        following = np.searchsorted(dr6_moves, exceptions)
        move = np.minimum(following, len(dr6_moves) - 1)
        limit = np.append(exceptions[1:], len(by_vcpu.kind))
        has_payload = (
            (following < len(dr6_moves))
            & (dr6_moves[move] < limit)
            & (by_vcpu.cpu[dr6_moves[move]] == by_vcpu.cpu[exceptions])
            & is_known_read[move]
        )
        payload[has_payload] = value[move[has_payload]]
    return payload, has_payload


def initial_state(history: DebugHistory) -> list[tuple[EventKind, int, int, int]]:
    """Return the host's events (kind, arg, vCPU, value) that give vCPUs the registers they had at first.

    They are needed where the first that a vCPU does to a register is to read it.
    """
    cpu = history.by_vcpu.cpu[history.moves].astype(np.int64)
    retired = np.flatnonzero(history.has_retired)
    _, first = np.unique(cpu[retired] * 8 + history.register[retired], return_index=True)
    first = retired[first]
    first = first[~history.is_write[first] & history.is_known[first]]
    found: dict[int, dict[int, int]] = {}
    for move in first.tolist():
        vcpu, register = int(cpu[move]), int(history.register[move])
        exceptions = history.exceptions[: np.searchsorted(history.exceptions, history.moves[move])]
        if register == DR6 and (history.by_vcpu.cpu[exceptions] == vcpu).any():
            continue
        found.setdefault(vcpu, {})[register] = int(history.value[move])
    rows: list[tuple[EventKind, int, int, int]] = []
    for vcpu, registers in found.items():
        for slot, (register, reset_value) in enumerate(RESET_VALUES):
            rows.append((EventKind.STAGE, slot, vcpu, registers.get(register, reset_value)))
        rows.append((EventKind.SET_DEBUGREGS, 0, vcpu, 0))
    return rows
