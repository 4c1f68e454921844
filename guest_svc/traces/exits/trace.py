"""A recorded text trace as a source of events, streamed in one pass.

The first stretch is read when the trace is opened: it says whose numbering the exits have, which vCPUs
and CPUs there are, and whether entries are recorded. The rest is read while its events are sent.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Final

from exitlab.events import EventColumns
from exitlab.exit_reasons import VENDOR_SVM, VENDOR_VMX
from guest_svc.errors import TraceError
from guest_svc.traces.ahead import Ahead
from guest_svc.traces.exits.events import COLUMNS
from guest_svc.traces.exits.pairs import last_entries
from guest_svc.traces.exits.roster import Census, Roster
from guest_svc.traces.exits.stretches import Findings, Reading, Stretches
from guest_svc.traces.exits.vendors import VENDOR_NAMES, leading_vendor
from guest_svc.traces.source import TraceFile
from guest_svc.traces.text.chunks import CHUNK_BYTES
from guest_svc.traces.text.reader import TraceReader
from guest_svc.traces.text.table import Event, Table
from guest_svc.traces.text.tally import Tally
from guest_svc.workloads.base import (
    BLOCK_EVENTS,
    MAX_PHYSICAL_CPUS,
    Blocks,
    Parameter,
    Workload,
    check_run,
    parse_parameters,
)

FIRST_CHUNKS: Final = 4
_CHUNKS_AHEAD: Final = 24  # of some megabytes
_NANOSECONDS: Final = 1_000_000_000
_EXIT_NAME: Final = Event.EXIT.printed_name

PARAMETERS: Final = (
    Parameter(
        "clock_hertz",
        3_000_000_000,
        "Hz",
        "the guest's clock: a trace has seconds (an assumption)",
        10**6,
        9 * 10**9,
    ),
)


class TextTrace(Workload):
    """A text trace; what is known only at its end is filled in when its last block has been taken."""

    is_recorded = True
    has_own_clock: ClassVar[bool] = True
    vendor: int
    parameters = PARAMETERS
    columns = COLUMNS
    computed_breakpoints = False

    def __init__(self, source: "TextTraceSource", clock_hertz: int, events: int | None) -> None:
        """Read the first stretch.

        Raises:
            TraceError: It is no trace that can be replayed.

        """
        self._is_begun = False
        self.name = source.name
        self.summary = source.summary
        self.seed = 0
        self.parameters_used = {"clock_hertz": clock_hertz}
        self.clock_hertz = clock_hertz
        self.accesses_per_window = 1
        self._traps_every_access = False
        self.total_events = None
        self.records = 0
        self.skipped = {}
        self.findings = Findings()
        self.is_whole = False
        self._source = source
        self._path = source.path
        self._events_asked = events
        self._census = Census()
        self._reader = TraceReader(source.path, source.chunk_bytes)
        self._tables = self._read_ahead()
        self.has_entries = False
        self._first = self._read_first(self._tables)
        with self._told():
            self.vendor = leading_vendor(self._first, source.vendor)
        self._set_roster(self._counted())

    @property
    def fraction_read(self) -> float | None:
        """How much of the file is read; nothing for a pipe."""
        return self._reader.fraction_read

    @property
    def can_read_again(self) -> bool:
        """Whether it can be read from its start once more: a pipe cannot."""
        return self._reader.can_read_again

    def with_accesses(self, accesses_per_window: int) -> "TextTrace":
        """Return the same trace, to be read again, with so many accesses in each lazy window.

        What the host is must be known, so the last block of this one has to be taken before.
        """
        assert self.total_events is not None
        source = replace(self._source, vendor=VENDOR_NAMES[self.vendor])
        again = TextTrace(source, self.clock_hertz, self._events_asked)
        again.accesses_per_window = accesses_per_window
        again._traps_every_access = self.findings.hidden.traps_every_access
        again._set_roster(self.roster)
        return again

    def learn_roster(self) -> None:
        """Read the whole trace for its vCPUs and CPUs, and begin again with all of them.

        Raises:
            TraceError: It is a pipe, or there are more than a session takes.

        """
        self._begin_again()
        for table in self._tables:
            self._census.add(table)
        self._set_roster(self._counted())
        self._begin_again()

    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield all rows from the start, at most ``block_events`` at a time.

        Raises:
            RosterGrew: A vCPU or CPU shows up that the first stretch has not: ``learn_roster`` helps.
            TraceError: The trace cannot be read on, or not once more.

        """
        if self._is_begun:
            self._begin_again()
        self._is_begun = True
        reading = Reading(
            self.vendor,
            Fraction(self.clock_hertz, _NANOSECONDS),
            has_entries=self.has_entries,
            accesses_per_window=self.accesses_per_window,
            traps_every_access=self._traps_every_access,
        )
        stretches = Stretches(self.roster, reading, self._events_asked)
        self.findings = stretches.findings
        for table in self._all_tables():
            with self._told():
                rows = stretches.take(table)
            yield from _cut(rows, block_events)
            if stretches.is_full:
                break
        with self._told():
            rows = stretches.take(Table.empty(0), is_last=True)
        yield from _cut(rows, block_events)
        self._finish(is_whole=not stretches.is_full)

    @property
    def tally(self) -> Tally:
        """What was found so far beside the records."""
        return self._reader.tally

    @property
    def thread_names(self) -> dict[int, str]:
        """The names of the threads seen so far."""
        return self._reader.thread_names

    def _all_tables(self) -> Iterator[Table]:
        yield from self._first
        self._first = []
        yield from self._tables

    def _read_first(self, tables: Iterator[Table]) -> list[Table]:
        """Return the first stretch: some chunks, with an exit among them."""
        first: list[Table] = []
        has_exits = False
        for table in tables:
            self._census.add(table)
            first.append(table)
            has_exits = has_exits or bool((table.event == Event.EXIT).any())
            self.has_entries = self.has_entries or bool((table.event == Event.ENTRY).any())
            if len(first) >= FIRST_CHUNKS:
                if has_exits:
                    break
                first = [last_entries(Table.joined(first))]
        return first

    def _begin_again(self) -> None:
        if not self.can_read_again:
            raise TraceError(f"{self._path}: a pipe cannot be read twice; save the trace as a file first")
        self._reader = TraceReader(self._path, self._source.chunk_bytes)
        self._tables = self._read_ahead()
        self._first = []
        self._is_begun = False

    def _read_ahead(self) -> Iterator[Table]:
        """Return the reader's tables; a cut trace is not read past its end, so that counts are its own."""
        tables = self._reader.tables()
        return tables if self._events_asked is not None else Ahead(tables, _CHUNKS_AHEAD)

    def _counted(self) -> Roster:
        """Return everybody seen so far."""
        with self._told():
            return Roster(self._census.members, self._census.cpus | self._header_cpus())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Have what is wrong told with the file's name."""
        try:
            yield
        except TraceError as error:
            raise TraceError(f"{self._path}: {error}") from None

    def _header_cpus(self) -> set[int]:
        cpus = self._reader.header_cpus
        return set(range(cpus)) if cpus <= MAX_PHYSICAL_CPUS else set()

    def _set_roster(self, roster: Roster) -> None:
        self.roster = roster
        self.vcpus = len(roster.members)
        self.physical_cpus = len(roster.cpus)
        self.initial_physical_cpus = roster.initial_cpus
        self._is_begun = False

    def _finish(self, *, is_whole: bool) -> None:
        """Take the counts of what was read."""
        found, tally = self.findings, self._reader.tally
        if is_whole and not found.events:
            self._refuse_without_events()
        self.is_whole = is_whole
        self.total_events = found.events
        self.unrecorded_events = 2 * found.moves + found.modelled
        counted = +tally.records
        self.records = sum(counted.values())
        skipped = {name: count for name, count in sorted(counted.items()) if name != _EXIT_NAME}
        other = VENDOR_NAMES[VENDOR_SVM if self.vendor == VENDOR_VMX else VENDOR_VMX]
        exits = {
            f"{_EXIT_NAME} of {other}": found.other_vendor,
            f"{_EXIT_NAME} without info1": found.undecoded,
        }
        unused = counted[_EXIT_NAME] - found.events - sum(exits.values())
        exits[f"{_EXIT_NAME} after the last event"] = unused
        self.skipped = skipped | {name: count for name, count in exits.items() if count}

    def _refuse_without_events(self) -> None:
        found = self.findings
        raise TraceError(
            f"{self._path}: none of its exits is an event: {found.other_vendor:,} are of another vendor, "
            f"{found.undecoded:,} are MOV DR without info1"
        )


def _cut(rows: EventColumns, block_events: int) -> Iterator[EventColumns]:
    for start in range(0, len(rows), block_events):
        yield rows.rows(start, min(start + block_events, len(rows)))


@dataclass(frozen=True, slots=True)
class TextTraceSource(TraceFile):
    """A text trace's file, not read yet.

    Attributes:
        vendor: What was asked for: ``vmx``, ``svm`` or nothing.
        chunk_bytes: How much of it is read at a time.

    """

    documentation: str = __doc__
    vendor: str | None = None
    chunk_bytes: int = CHUNK_BYTES

    parameters = PARAMETERS

    def make(self, parameters: Mapping[str, str], seed: int = 0, events: int | None = None) -> TextTrace:
        """Return the trace with its first stretch read, cut after ``events`` events; a seed changes nothing.

        Raises:
            TraceError: It cannot be read, or is no trace.
            WorkloadError: A parameter, the seed or the number of events is not taken.

        """
        check_run(self.name, seed, events)
        values = parse_parameters(self.name, PARAMETERS, parameters)
        clock_hertz = values["clock_hertz"]
        assert isinstance(clock_hertz, int)
        return TextTrace(self, clock_hertz, events)
