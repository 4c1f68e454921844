"""What belongs to an exit: the entry before it, and up to the next entry what the host did about it.

Records between which the recorder has lost some do not belong together: what is gone may stand between.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.exits.roster import keys_of
from guest_svc.traces.text.table import Event, Table

NONE: Final = -1
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """For each exit of a table, in order by vCPU and then by time, rows of the table; -1 where there is none.

    Attributes:
        exits: The exit itself.
        vcpus: Its vCPU.
        exit_before: The vCPU's exit before.
        entry_before: The entry after that one: the guest ran from it to this exit.
        entry_after: The next entry, unless another exit comes first.
        msr: The first MSR access after it and before the guest goes on.
        injected: The first exception injected meanwhile.
        userspace: The first exit to user space meanwhile.
        is_after_loss: Whether events were lost since the vCPU's exit before, or its first entry.
        is_open: Whether neither an entry, nor an exit, nor a loss follows: what the host did may still be to
            come.

    """

    exits: Rows
    vcpus: Rows
    exit_before: Rows
    entry_before: Rows
    entry_after: Rows
    msr: Rows
    injected: Rows
    userspace: Rows
    is_after_loss: NDArray[np.bool_]
    is_open: NDArray[np.bool_]


def pair(table: Table, vcpus: Rows) -> Pairs:
    """Return what belongs to each exit of a table, whose records are those of ``vcpus``; -1 for nobody's."""
    order = np.argsort(vcpus.astype(np.int16), kind="stable")  # small numbers are sorted by their digits
    order = order[vcpus[order] >= 0]
    events, whose = table.event[order], vcpus[order]
    losses = np.cumsum(table.event == Event.LOST)
    lost = losses[order]
    exits = np.flatnonzero(events == Event.EXIT)
    entries = np.flatnonzero(events == Event.ENTRY)
    of_each = np.arange(int(whose[-1]) + 1 if len(whose) else 0)
    begins = np.searchsorted(whose, of_each, side="left")[whose[exits]]  # of the exit's vCPU
    ends = np.searchsorted(whose, of_each, side="right")[whose[exits]]

    before = np.append(NONE, exits[:-1])[: len(exits)]
    before = np.where(before >= begins, before, NONE)
    after = np.append(exits[1:], len(order))[: len(exits)]
    after = np.where(after < ends, after, ends)
    entered = _last_before(entries, exits)
    entered = np.where(entered >= np.maximum(begins, before), entered, NONE)
    entering = _first_after(entries, exits, after)
    until = np.where(entering == NONE, after, entering)
    since = np.where(before == NONE, entered, before)

    def whole(places: Rows) -> Rows:
        """Return the places that no loss parts from their exits."""
        return np.where((places == NONE) | _is_parted(lost, exits, places), NONE, places)

    def in_window(event: Event) -> Rows:
        return _rows(order, whole(_first_after(np.flatnonzero(events == event), exits, until)))

    return Pairs(
        exits=order[exits],
        vcpus=whose[exits],
        exit_before=_rows(order, before),
        entry_before=_rows(order, whole(entered)),
        entry_after=_rows(order, whole(entering)),
        msr=in_window(Event.MSR),
        injected=in_window(Event.INJ_EXCEPTION),
        userspace=in_window(Event.USERSPACE_EXIT),
        is_after_loss=(since != NONE) & _is_parted(lost, exits, since),
        is_open=(entering == NONE) & (after == ends) & (lost[exits] == losses[-1:]),
    )


def last_entries(table: Table) -> Table:
    """Return of records without an exit those that an exit to come may need: each vCPU's last entry."""
    losses = np.flatnonzero(table.event == Event.LOST)
    start = int(losses[-1]) + 1 if len(losses) else 0
    entries = start + np.flatnonzero(table.event[start:] == Event.ENTRY)
    _, from_end = np.unique(keys_of(table)[entries][::-1], return_index=True)
    return table.taken(np.sort(entries[::-1][from_end]))


def _is_parted(lost: Rows, places: Rows, others: Rows) -> NDArray[np.bool_]:
    """Return which pairs of places have a loss between them, of which so many came before each place."""
    if not len(lost):
        return np.zeros(len(places), np.bool_)
    found: NDArray[np.bool_] = lost[places] != lost[np.maximum(others, 0)]
    return found


def _rows(order: Rows, places: Rows) -> Rows:
    """Return the rows at places of an order."""
    if not len(order):
        return places
    rows: Rows = np.where(places == NONE, NONE, order[np.maximum(places, 0)])
    return rows


def _last_before(places: Rows, of: Rows) -> Rows:
    """Return the last of ``places`` before each of ``of``."""
    found: Rows = np.append(places, NONE)[np.searchsorted(places, of) - 1]
    return found


def _first_after(places: Rows, of: Rows, until: Rows) -> Rows:
    """Return the first of ``places`` after each of ``of`` and before ``until``."""
    at = np.searchsorted(places, of)
    found = np.append(places, np.iinfo(np.int64).max)[at]
    return np.where(found < until, found, NONE)
