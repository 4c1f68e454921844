"""What belongs to an exit: the entry before it, and up to the next entry what the host did about it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
        is_open: Whether neither an entry nor an exit follows: what the host did may still be to come.

    """

    exits: Rows
    vcpus: Rows
    exit_before: Rows
    entry_before: Rows
    entry_after: Rows
    msr: Rows
    injected: Rows
    userspace: Rows
    is_open: NDArray[np.bool_]


def pair(table: Table, vcpus: Rows) -> Pairs:
    """Return what belongs to each exit of a table, whose records are those of ``vcpus``; -1 for nobody's."""
    order = np.argsort(vcpus.astype(np.int16), kind="stable")  # small numbers are sorted by their digits
    order = order[vcpus[order] >= 0]
    events, whose = table.event[order], vcpus[order]
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

    def in_window(event: Event) -> Rows:
        return _rows(order, _first_after(np.flatnonzero(events == event), exits, until))

    return Pairs(
        exits=order[exits],
        vcpus=whose[exits],
        exit_before=_rows(order, before),
        entry_before=_rows(order, entered),
        entry_after=_rows(order, entering),
        msr=in_window(Event.MSR),
        injected=in_window(Event.INJ_EXCEPTION),
        userspace=in_window(Event.USERSPACE_EXIT),
        is_open=(entering == NONE) & (after == ends),
    )


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
