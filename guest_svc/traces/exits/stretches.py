"""Stretches of records to blocks of events, each exit once and with what is known of it by then.

What the host did about an exit stands in later records, up to the vCPU's next entry. An exit is held back,
with all after it, until that has come; at most for one stretch, so that a vCPU that sleeps does not hold up
the others: then the exit is taken for what it shows.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from exitlab.events import MAX_VCPUS, EventColumns
from guest_svc.errors import TraceError
from guest_svc.traces.exits.accesses import Access, Hidden, Verdicts, decode, judge
from guest_svc.traces.exits.events import Around, columns_of, laid_out
from guest_svc.traces.exits.pairs import NONE, Pairs, pair
from guest_svc.traces.exits.roster import Roster
from guest_svc.traces.text.table import UNKNOWN_VENDOR, Event, Table

T = TypeVar("T", Pairs, Access, Verdicts)
_LONGEST_GUEST_NS: Final = 86_400 * 10**9  # without an exit: a day
_MOST_GUEST_NS: Final = 10**18  # in all: 31 years, of which cycles of 9 GHz fit 64 bits


@dataclass(slots=True)
class Findings:
    """What came of the exits so far, counted.

    Attributes:
        events: Exits that became events.
        hidden: What the exits of MOV DR were.
        reasons: Exits by the number of their reason, as events carry it.
        other_vendor: Exits of the other vendor: no events.
        undecoded: Exits of MOV DR that do not say which register: no events.
        moves: Times that a vCPU was on another physical CPU than before.
        modelled: Accesses that were assumed.
        backwards: Exits at a time before that of their entry: the guest's time counts 0.
        without_entry: Exits with an exit before them on the vCPU and no entry between.
        after_loss: Exits of which the entry is unknown, as events were lost before them.

    """

    events: int = 0
    hidden: Hidden = field(default_factory=Hidden)
    reasons: dict[int, int] = field(default_factory=dict)
    other_vendor: int = 0
    undecoded: int = 0
    moves: int = 0
    modelled: int = 0
    backwards: int = 0
    without_entry: int = 0
    after_loss: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """How exits are read: as ``vendor``'s, with a clock, and so many accesses in a lazy window.

    Attributes:
        has_entries: Whether the guest's time is that from its entries; else all between its exits.
        accesses_per_window: More than 1 are assumed.
        traps_every_access: Whether the host is known to: exits that say nothing are no windows then. That is
            known when all is read, so the whole trace is read with 1 access before more are assumed.

    """

    vendor: int
    cycles_per_ns: Fraction
    has_entries: bool
    accesses_per_window: int = 1
    traps_every_access: bool = False


class Stretches:
    """Takes records stretch by stretch and gives the events that are ready."""

    def __init__(self, roster: Roster, reading: Reading, most_events: int | None = None) -> None:
        """Begin; no more than ``most_events`` are given."""
        self.findings = Findings()
        self._roster = roster
        self._reading = reading
        self._left = most_events
        self._held = Table.empty(0)
        self._done = np.zeros(0, np.bool_)  # those of the held that were given, or are no exits
        self._cpus = np.array(roster.initial_cpus, np.int64)
        self._guest_ns = np.zeros(MAX_VCPUS, np.int64)
        self._guest_cycles = np.zeros(MAX_VCPUS, np.int64)

    @property
    def is_full(self) -> bool:
        """Whether as many events as wanted were given."""
        return self._left == 0

    def take(self, table: Table, *, is_last: bool = False) -> EventColumns:
        """Take the next records and return the next events; all that are left if these are the last.

        Raises:
            RosterGrew: A record is of a vCPU or CPU that the roster does not have.
            TraceError: A time cannot be.

        """
        held = len(self._held)
        table = Table.joined([self._held, table])
        done = np.append(self._done, np.zeros(len(table) - held, np.bool_))
        vcpus, cpus = self._roster.vcpus(table), self._roster.cpus_of(table)
        pairs = pair(table, vcpus)
        access = decode(table, pairs.exits, self._reading.vendor)
        # What was held back once is not held back again.
        open_exits = pairs.exits[pairs.is_open & (pairs.exits >= held)]
        stop = len(table) if is_last else int(open_exits.min(initial=len(table)))
        is_given = ~done[pairs.exits] & (pairs.exits < stop)
        verdicts = judge(table, pairs, access)
        given = np.flatnonzero(is_given)
        given = given[np.argsort(pairs.exits[given])]  # in the order of the trace
        events = self._events(
            table, cpus, _taken(pairs, given), _taken(access, given), _taken(verdicts, given)
        )
        done[:stop] = True
        kept = np.union1d(np.arange(stop, len(table)), _last_of_each(table, vcpus, stop))
        self._held, self._done = table.taken(kept), done[kept]
        return events

    def _events(
        self, table: Table, cpus: NDArray[np.int64], pairs: Pairs, access: Access, verdicts: Verdicts
    ) -> EventColumns:
        found, vendor = self.findings, self._reading.vendor
        printed = table.vendor[pairs.exits]
        is_other = (printed != UNKNOWN_VENDOR) & (printed != vendor)
        is_undecoded = access.is_access & ~access.is_decoded & ~is_other
        is_event = ~is_other & ~is_undecoded
        if self._left is not None:
            is_event &= np.cumsum(is_event) <= self._left
            self._left -= int(is_event.sum())
        found.other_vendor += int(is_other.sum())
        found.undecoded += int(is_undecoded.sum())
        cycles = self._cycles(table, pairs, is_event)
        at = np.flatnonzero(is_event)
        pairs, access, verdicts = _taken(pairs, at), _taken(access, at), _taken(verdicts, at)
        found.events += len(at)
        found.hidden.add(verdicts, access)
        columns = columns_of(table, pairs, access, verdicts, vendor)
        for reason, count in zip(*np.unique(table.reason[pairs.exits], return_counts=True), strict=True):
            found.reasons[int(reason)] = found.reasons.get(int(reason), 0) + int(count)
        accesses = self._assumed(verdicts)
        moves = self._moves(pairs, cpus)
        found.moves += int((moves != NONE).sum())
        found.modelled += int(accesses.sum())
        return laid_out(columns, Around(moves, cycles, accesses))

    def _assumed(self, verdicts: Verdicts) -> NDArray[np.int64]:
        """Return how many accesses are assumed after each event."""
        is_window = verdicts.is_rerun
        if not self._reading.traps_every_access:
            is_window = is_window | verdicts.is_unclear
        return is_window * np.int64(self._reading.accesses_per_window - 1)

    def _moves(self, pairs: Pairs, cpus: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the physical CPU to which each event's vCPU has moved before it; -1 where it has not."""
        order = np.argsort(pairs.vcpus.astype(np.int16), kind="stable")
        whose, now = pairs.vcpus[order], cpus[pairs.exits[order]]
        firsts, lasts = _firsts(whose), _lasts(whose)
        before = np.append(NONE, now[:-1])[: len(now)]
        before[firsts] = self._cpus[whose[firsts]]
        self._cpus[whose[lasts]] = now[lasts]
        moves = np.full(len(now), NONE, np.int64)
        moves[order] = np.where(before != now, now, NONE)
        return moves

    def _cycles(self, table: Table, pairs: Pairs, is_event: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the guest's cycles before each exit that is an event, since the vCPU's event before.

        The running sum is scaled and rounded down, so that nothing drifts.
        """
        order = np.argsort(pairs.vcpus.astype(np.int16), kind="stable")
        whose = pairs.vcpus[order]
        reached = np.cumsum(self._guest_time(table, pairs)[order])
        firsts = _firsts(whose)
        base = self._guest_ns[whose[firsts]] - np.append(0, reached)[firsts]
        reached += np.repeat(base, np.diff(np.append(firsts, len(whose))))
        lasts = _lasts(whose)
        self._guest_ns[whose[lasts]] = reached[lasts]

        scale = self._reading.cycles_per_ns
        kept = is_event[order]
        order, whose, reached = order[kept], whose[kept], reached[kept]
        wholes, rests = np.divmod(
            reached, scale.denominator
        )  # in two steps: their product could pass 64 bits
        cycles = wholes * scale.numerator + rests * scale.numerator // scale.denominator
        gaps = np.diff(cycles, prepend=0)
        firsts, lasts = _firsts(whose), _lasts(whose)
        gaps[firsts] = cycles[firsts] - self._guest_cycles[whose[firsts]]
        self._guest_cycles[whose[lasts]] = cycles[lasts]
        found = np.zeros(len(is_event), np.int64)
        found[order] = gaps
        return found[is_event]

    def _guest_time(self, table: Table, pairs: Pairs) -> NDArray[np.int64]:
        """Return the nanoseconds for which the guest ran before each exit."""
        since = pairs.entry_before if self._reading.has_entries else pairs.exit_before
        is_unknown = since == NONE
        self.findings.after_loss += int((is_unknown & pairs.is_after_loss).sum())
        is_first = pairs.exit_before == NONE
        self.findings.without_entry += int((is_unknown & ~is_first & ~pairs.is_after_loss).sum())
        spent = table.time_ns[pairs.exits] - table.time_ns[np.maximum(since, 0)]
        spent = np.where(is_unknown, 0, spent)
        _check_times(table, pairs, spent)
        self.findings.backwards += int((spent < 0).sum())
        found: NDArray[np.int64] = np.maximum(spent, 0)
        if self._guest_ns.max(initial=0) + found.sum(dtype=np.float64) > _MOST_GUEST_NS:
            seconds = _MOST_GUEST_NS // 10**9
            raise TraceError(f"its guests run for more than {seconds:,} s: its times are wrong")
        return found


def _check_times(table: Table, pairs: Pairs, spent_ns: NDArray[np.int64]) -> None:
    """Refuse guest time that no guest runs for without an exit: a time in the trace is wrong.

    It would also pass what cycles are counted in.
    """
    is_wrong = spent_ns > _LONGEST_GUEST_NS
    if is_wrong.any():
        at = int(is_wrong.argmax())
        line, seconds = int(table.line[pairs.exits[at]]), int(spent_ns[at]) // 10**9
        raise TraceError(f"line {line:,}: its guest would have run for {seconds:,} s: a time is wrong there")


def _firsts(whose: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in rows ordered by vCPU each vCPU's begin."""
    return np.flatnonzero(np.append(True, whose[1:] != whose[:-1])[: len(whose)])


def _lasts(whose: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in rows ordered by vCPU each vCPU's end."""
    return np.flatnonzero(np.append(whose[1:] != whose[:-1], True)[: len(whose)])


def _taken(columns: T, at: NDArray[np.int64]) -> T:
    """Return some rows of columns that belong to exits."""
    parts: dict[str, Any] = {name: getattr(columns, name)[at] for name in type(columns).__slots__}
    return type(columns)(**parts)


def _last_of_each(table: Table, vcpus: NDArray[np.int64], stop: int) -> NDArray[np.int64]:
    """Return the rows before ``stop`` to which the next ones refer.

    They are each vCPU's last exit, entry and injection, and the last loss.
    """
    kept = [np.flatnonzero(table.event[:stop] == Event.LOST)[-1:]]
    for event in (Event.EXIT, Event.ENTRY, Event.INJ_EXCEPTION):
        rows = np.flatnonzero((table.event[:stop] == event) & (vcpus[:stop] >= 0))
        last = np.full(MAX_VCPUS, -1, np.int64)
        last[vcpus[rows]] = rows
        kept.append(last[last >= 0])
    return np.concatenate(kept)
