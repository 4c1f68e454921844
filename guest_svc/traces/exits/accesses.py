"""What an exit of MOV DR says, and what it hides.

A host that tracks debug registers lazily drops the intercept at the first access and runs the
instruction again: the entry is at the same address, and later accesses leave no record until the next
exit that ends the window. So such an exit is a *window* of one access or more. A host that emulates the
access enters behind it: that exit is one access, exactly. An access that the host refuses opens no window.
Where entries print no address, exits of MOV DR that follow one another on a vCPU speak for a host that traps
every access, as a lazy host has another exit between. A few do not prove it: the exit between, or the
injection that refused the first access, may not be recorded.

Source: Linux 7.1.5, ``handle_dr`` and ``dr_interception`` (the instruction is not skipped; with CPL above 0
or DR7.GD set an exception is injected, and no window is opened), ``vcpu_enter_guest`` (the intercept is back
after the next exit that is no fast path).
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.exit_reasons import SVM_READ_DR0, SVM_WRITE_DR0, VENDOR_VMX, VMX_DR_ACCESS
from guest_svc.traces.exits.pairs import NONE, Pairs
from guest_svc.traces.text.table import Flag, Known, Table

_VMX_REGISTER: Final = np.uint64(
    7
)  # of the exit qualification: SDM volume 3, "Exit Qualification for MOV DR"
_VMX_READ: Final = np.uint64(1 << 4)
_VMX_OPERAND: Final = np.uint64(8)
_OPERANDS: Final = np.uint64(15)
OPERAND_NAMES: Final = (
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)),
)  # fmt: skip
#: What MOV DR raises: #DB (DR7.GD), #UD (DR4 and DR5 with CR4.DE), #GP. Any other exception that is injected,
#: as #PF for a page that the host has to fetch, is delivered before the access is tried again.
_REFUSALS: Final = (1, 6, 13)
#: How many exits of MOV DR must follow another, and at least one of how many of all, to prove a host that
#: traps every access (an assumption).
_PROOF_PAIRS: Final = 3
_PROOF_SHARE: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """Exits of MOV DR among some exits, an array each.

    Attributes:
        is_access: Whether the exit is one.
        is_decoded: Whether it says which register: a trimmed VMX line does not.
        register: 0 to 7.
        is_read: MOV from DR.
        operand: General register, 0 (RAX) to 15; on SVM only with decode assists, else 0.

    """

    is_access: NDArray[np.bool_]
    is_decoded: NDArray[np.bool_]
    register: NDArray[np.uint8]
    is_read: NDArray[np.bool_]
    operand: NDArray[np.uint8]


def decode(table: Table, rows: NDArray[np.int64], vendor: int) -> Access:
    """Return what exits at some rows say of MOV DR, in a vendor's numbering."""
    reason, info1 = table.reason[rows], table.info1[rows]
    if vendor == VENDOR_VMX:
        is_access = (reason == VMX_DR_ACCESS) & (table.flags[rows] & Flag.FAILED_ENTRY == 0)
        register = (info1 & _VMX_REGISTER).astype(np.uint8)
        is_read = info1 & _VMX_READ != 0
        operand = (info1 >> _VMX_OPERAND & _OPERANDS).astype(np.uint8)
        return Access(is_access, table.known[rows] & Known.INFO1 != 0, register, is_read, operand)
    is_read = (reason >= SVM_READ_DR0) & (reason < SVM_READ_DR0 + 8)
    is_access = is_read | (reason >= SVM_WRITE_DR0) & (reason < SVM_WRITE_DR0 + 8)
    return Access(
        is_access,
        np.ones(len(rows), np.bool_),
        (reason & 7).astype(np.uint8),
        is_read,
        (info1 & _OPERANDS).astype(np.uint8),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What became of each exit of MOV DR, an array each; all false for other exits.

    Attributes:
        is_rerun: The guest went on at the instruction itself: a lazy window.
        is_emulated: It went on elsewhere: exactly one access.
        is_faulted: It got an exception at the instruction: an access that did not happen.
        is_unclear: No address, or no entry, says it, or events were lost before the entry.
        is_adjacent: The vCPU's exit before was one too, which no exception followed, and nothing is known to
            be lost between.

    """

    is_rerun: NDArray[np.bool_]
    is_emulated: NDArray[np.bool_]
    is_faulted: NDArray[np.bool_]
    is_unclear: NDArray[np.bool_]
    is_adjacent: NDArray[np.bool_]


def judge(table: Table, pairs: Pairs, access: Access) -> Verdicts:
    """Return what became of exits of MOV DR; ``pairs`` are all of the table's, ``access`` decodes them."""
    entry = np.maximum(pairs.entry_after, 0)
    has_addresses = (table.known[pairs.exits] & table.known[entry] & Known.RIP != 0) & (
        pairs.entry_after != NONE
    )
    is_here = access.is_access & has_addresses & (table.rip[pairs.exits] == table.rip[entry])
    is_injected = pairs.injected != NONE
    is_refused = is_injected & np.isin(table.number[np.maximum(pairs.injected, 0)], _REFUSALS)
    # The exit before of the same vCPU stands one place before.
    follows = np.append(False, (access.is_access & ~is_injected)[:-1])[: len(is_injected)]
    return Verdicts(
        is_rerun=is_here & ~is_refused,
        is_emulated=access.is_access & has_addresses & ~is_here,
        is_faulted=is_here & is_refused,
        is_unclear=access.is_access & ~has_addresses,
        is_adjacent=access.is_access & follows & (pairs.exit_before != NONE) & ~pairs.is_after_loss,
    )


@dataclass(slots=True)
class Hidden:
    """What a trace's exits of MOV DR were, counted, and so what the trace hides."""

    exits: int = 0
    rerun: int = 0
    emulated: int = 0
    faulted: int = 0
    unclear: int = 0
    adjacent: int = 0
    other_exits: int = 0

    def add(self, verdicts: Verdicts, access: Access) -> None:
        """Count some exits."""
        self.exits += int(access.is_access.sum())
        self.other_exits += int((~access.is_access).sum())
        self.rerun += int(verdicts.is_rerun.sum())
        self.emulated += int(verdicts.is_emulated.sum())
        self.faulted += int(verdicts.is_faulted.sum())
        self.unclear += int(verdicts.is_unclear.sum())
        self.adjacent += int(verdicts.is_adjacent.sum())

    @property
    def traps_every_access(self) -> bool:
        """Whether the host is known to trap each access: then those that say nothing are one access each."""
        if self.rerun or self.emulated:
            return not self.rerun
        # In a trace of these exits alone, those between are missing, and nothing is proven.
        is_proven = self.adjacent >= _PROOF_PAIRS and self.adjacent * _PROOF_SHARE >= self.exits
        return is_proven and self.other_exits > 0

    @property
    def windows(self) -> int:
        """Exits that stand for one access or more."""
        return self.rerun + (0 if self.traps_every_access else self.unclear)

    @property
    def host(self) -> str:
        """What the host is: ``none``, ``lazy``, ``trapping``, ``mixed``, ``assumed_lazy`` or ``not_shown``.

        ``not_shown``: all accesses were refused, which looks alike on every host, and hides nothing.
        """
        if not self.exits:
            return "none"
        if self.rerun:
            return "mixed" if self.emulated else "lazy"
        if self.traps_every_access:
            return "trapping"
        return "not_shown" if self.faulted == self.exits else "assumed_lazy"

    def document(self) -> dict[str, Any]:
        """Return it as scripts read it."""
        return {
            "exits": self.exits,
            "rerun": self.rerun,
            "emulated": self.emulated,
            "faulted": self.faulted,
            "unclear": self.unclear,
            "adjacent": self.adjacent,
            "host": self.host,
            "windows": self.windows,
        }
