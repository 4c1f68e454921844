"""Chunks of lines to tables of records, with every line accounted for.

A record's line is a head, a time, an event's name and a text. The text is read by the formats of its
event, those first that fitted most of the last chunk; a text that fits none is read by itself.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.exit_reasons import VENDOR_SVM, VENDOR_VMX
from guest_svc.traces.text import heads, payloads, reasons
from guest_svc.traces.text.chunks import Chunk
from guest_svc.traces.text.cursors import Cursors, parse_format
from guest_svc.traces.text.formats import FORMATS, Format
from guest_svc.traces.text.lexicon import Lexicon
from guest_svc.traces.text.names import Names
from guest_svc.traces.text.oddities import Oddity, foreign_architecture, has_other_clock, read_oddity
from guest_svc.traces.text.table import LARGEST_VCPU, UNKNOWN, Event, Flag, Known, Table
from guest_svc.traces.text.tally import Tally
from guest_svc.traces.text.times import Timed, Times
from guest_svc.traces.text.words import Words

_NAME_STEPS: Final = parse_format("{name:s}: ")
_KNOWN_COLUMNS: Final = {
    "rip": Known.RIP, "info1": Known.INFO1, "intr_info": Known.INTR_INFO, "number": Known.NUMBER,
    "value": Known.VALUE,
}  # fmt: skip
_SHORT_EVENTS: Final = (Event.INJ_EXCEPTION, Event.INJ_VIRQ, Event.USERSPACE_EXIT)
_MOST_THREADS: Final = 4096
_FAULTY: Final = {"is_write": Flag.WRITE, "is_fault": Flag.FAULT}


class Scanner:
    """Reads a trace chunk by chunk; what it has learned of the trace's form serves the next chunks.

    Attributes:
        tally: What was found beside the records.
        header_cpus: The physical CPUs of which trace-cmd's first line speaks; 0 without one.
        foreign: Another architecture of which the trace shows records, and the first such line.
        thread_names: Names of threads, of the first so many.
        other_clock_line: The first line whose time is of a clock that counts no seconds.

    """

    def __init__(self) -> None:
        """Begin with an empty tally."""
        self.tally = Tally()
        self.header_cpus = 0
        self.thread_names: dict[int, str] = {}
        self.foreign: tuple[str, int] | None = None
        self.other_clock_line: int | None = None
        self._times = Times()
        self._heads = Lexicon(self._read_head)
        self._names = Names()
        self._reasons = Lexicon(lambda text: reasons.pack(reasons.reason_of_text(text.decode("latin-1"))))
        self._shorts = {event: _short_lexicon(event) for event in _SHORT_EVENTS}
        self._formats: dict[Event, list[Format]] = {event: list(known) for event, known in FORMATS.items()}

    def read(self, chunk: Chunk) -> Table:
        """Return the records of a chunk in order, and count all else that is in it."""
        self.tally.lines += len(chunk) + len(chunk.too_long) + chunk.cut_line
        self.tally.cut_lines += chunk.cut_line
        for line in chunk.too_long:
            self.tally.too_long.add(line)
        timed, others = self._times.find(chunk)
        whose = self._heads.values(chunk, chunk.starts[timed.rows], timed.head_lengths)
        is_headed = whose >= 0
        if not is_headed.all():
            others += timed.rows[~is_headed].tolist()
            timed = Timed(*(getattr(timed, name)[is_headed] for name in Timed.__slots__))
            whose = whose[is_headed]
        # A row for each line; those that turn out to be no record are dropped at the end.
        table = Table.empty(len(chunk))
        table.line[:] = chunk.lines
        table.time_ns[timed.rows] = timed.time_ns
        _set_heads(table, timed.rows, whose)
        for event, cursors in self._by_event(chunk, timed, others):
            self._read_event(table, chunk, event, cursors)
        self._read_others(table, chunk, sorted(others))
        return table.taken(np.flatnonzero(table.event))

    def _read_head(self, text: bytes) -> int:
        head = heads.read_head(text)
        if head is not None and head.thread >= 0 and len(self.thread_names) < _MOST_THREADS:
            self.thread_names.setdefault(head.thread, head.name.decode("utf-8", "replace"))
        return heads.pack(head)

    def _read_others(self, table: Table, chunk: Chunk, rows: list[int]) -> None:
        """Count lines without a record; set those that tell of lost events."""
        malformed: list[int] = []
        for row in rows:
            line = chunk.line(row)
            oddity, number = read_oddity(line)
            if oddity is Oddity.LOST:
                self.tally.lost_notes += 1
                self.tally.lost_events += number or 0
                table.event[row], table.number[row] = Event.LOST, number or 0
                table.cpu[row] = table.thread[row] = table.vcpu[row] = UNKNOWN
            elif oddity is Oddity.HEADER:
                self.tally.header_lines += 1
                if line.startswith(b"cpus="):
                    self.header_cpus = int(line[len(b"cpus=") :][:6])
            elif oddity is Oddity.CALL_CHAIN:
                self.tally.call_chain_lines += 1
            else:
                malformed.append(row)
        self._read_malformed(chunk, np.array(malformed, np.int64))

    def _read_malformed(self, chunk: Chunk, rows: NDArray[np.int64]) -> None:
        """Count lines that cannot be read, and see why that may be."""
        for row in rows.tolist():
            number, line = int(chunk.lines[row]), chunk.line(row)
            self.tally.malformed.add(number)
            time = heads.TIME.search(line)
            self.tally.negative_times += bool(time and time[1])
            if self.foreign is None and (architecture := foreign_architecture(line)):
                self.foreign = architecture, number
            if self.other_clock_line is None and has_other_clock(line):
                self.other_clock_line = number

    def _by_event(self, chunk: Chunk, timed: Timed, others: list[int]) -> list[tuple[Event, Cursors]]:
        """Return cursors at the texts of records that are read; count or add to ``others`` all else."""
        cursors = Cursors(chunk, timed.rows, timed.at)
        cursors.blanks()
        cursors.walk(_NAME_STEPS, is_whole=False)
        starts, lengths = cursors.texts.get("name", (cursors.at, cursors.at))
        numbers = self._names.values(chunk, starts, lengths)
        unnamed = timed.rows[~chunk.mask(cursors.rows[numbers >= 0])[timed.rows]]
        bare = self._names.count_bare
        others += [row for row in unnamed.tolist() if not bare(chunk.line(row), self.tally)]
        self._names.count(numbers, self.tally)
        foreign = self._names.is_foreign(numbers)
        if self.foreign is None and foreign.any():
            row = int(cursors.rows[foreign.argmax()])
            self.foreign = foreign_architecture(chunk.line(row)) or "another", int(chunk.lines[row])
        events = self._names.events(numbers)
        return [
            (event, Cursors(chunk, cursors.rows[chosen], cursors.at[chosen]))
            for event in FORMATS
            if len(chosen := np.flatnonzero(events == event))
        ]

    def _read_event(self, table: Table, chunk: Chunk, event: Event, cursors: Cursors) -> None:
        """Set the records of one event, by its formats and then by itself what none has fitted."""
        cursors.blanks()
        rows, at = cursors.rows, cursors.at
        fitted: list[int] = []
        for form in self._formats[event]:
            tried = Cursors(chunk, rows, at)
            if len(rows):
                tried.walk(parse_format(form.text))
            fitted.append(len(tried.rows))
            if len(tried.rows):
                self._set_columns(table, chunk, event, form, tried)
                is_left = table.event[rows] == Event.OTHER
                rows, at = rows[is_left], at[is_left]
        order = sorted(range(len(fitted)), key=lambda number: -fitted[number])
        if fitted[order[0]]:
            self._formats[event] = [self._formats[event][number] for number in order]
        self._read_singly(table, chunk, event, rows, at)

    def _set_columns(self, table: Table, chunk: Chunk, event: Event, form: Format, cursors: Cursors) -> None:
        """Set the columns that a format's cursors have taken, of those rows that can be used."""
        packed = said = None
        is_read = np.ones(len(cursors.rows), np.bool_)
        if "vcpu" in cursors.numbers:
            is_read = cursors.numbers["vcpu"] <= np.uint64(LARGEST_VCPU)
        if "reason" in cursors.texts:
            packed = self._reasons.values(chunk, *cursors.texts["reason"])
            is_read &= packed >= 0
        elif "code" in cursors.numbers:
            packed = _numbered(cursors.numbers)
            is_read &= packed >= 0
        elif "text" in cursors.texts:
            said = self._shorts[event].values(chunk, *cursors.texts["text"])
            is_read &= said >= 0
        if not is_read.all():
            packed = None if packed is None else packed[is_read]
            said = None if said is None else said[is_read]
            cursors.keep(is_read)
        rows = cursors.rows
        table.event[rows] = event
        _set_numbers(table, form, cursors)
        if packed is not None:
            _set_reasons(table, rows, packed)
        if said is not None:
            _set_shorts(table, rows, event, said)

    def _read_singly(
        self, table: Table, chunk: Chunk, event: Event, rows: NDArray[np.int64], at: NDArray[np.int64]
    ) -> None:
        """Set what texts of no known format say, one by one; count those that say nothing."""
        for row, start in zip(rows.tolist(), at.tolist(), strict=True):
            text = chunk.text[start : int(chunk.ends[row])].decode("latin-1")
            fields = payloads.read_payload(event, text)
            if fields is None:
                if name := payloads.unnamed_reason(text):
                    self.tally.add_unnamed_reason(name)
                self.tally.records[event.printed_name] -= 1  # a line is counted once
                self._read_malformed(chunk, np.array([row]))
                continue
            table.event[row] = event
            for name, value in fields.items():
                getattr(table, name)[row] = value
                table.known[row] |= _KNOWN_COLUMNS.get(name, Known(0))


def _short_lexicon(event: Event) -> Lexicon:
    return Lexicon(lambda text: payloads.read_short(event, text))


def _set_heads(table: Table, rows: NDArray[np.int64], whose: NDArray[np.int64]) -> None:
    """Set who wrote records; the vCPU is that of the thread's name until the record itself names one."""
    table.cpu[rows], table.thread[rows], table.vcpu[rows] = heads.unpack(whose)


def _set_numbers(table: Table, form: Format, cursors: Cursors) -> None:
    """Set the columns of the numbers that a format's cursors have taken."""
    rows = cursors.rows
    flags = np.full(len(rows), form.flags, np.uint8)
    known = Known(0)
    for name, values in cursors.numbers.items():
        if name in _KNOWN_COLUMNS:
            getattr(table, name)[rows] = values
            known |= _KNOWN_COLUMNS[name]
        elif name in _FAULTY:
            flags |= (values != 0) * np.uint8(_FAULTY[name])
        elif name == "vcpu":
            table.vcpu[rows] = values.astype(np.int32)
    table.known[rows] = known
    table.flags[rows] = flags


def _set_reasons(table: Table, rows: NDArray[np.int64], packed: NDArray[np.int64]) -> None:
    """Set exits' reasons from packed ones."""
    table.vendor[rows], table.reason[rows], is_failed = reasons.unpack(packed)
    table.flags[rows] = is_failed * np.uint8(Flag.FAILED_ENTRY)


def _numbered(numbers: dict[str, Words]) -> NDArray[np.int64]:
    """Return packed reasons of numbers in the numbering that ``isa`` names; each pair is read once."""
    isa, code = numbers["isa"], numbers["code"]
    is_small = (isa <= np.uint64(VENDOR_SVM)) & (code <= np.uint64(reasons.LARGEST_CODE))
    pairs, which = np.unique(np.where(is_small, isa << np.uint64(32) | code, 0), return_inverse=True)
    read = [reasons.pack(_of_isa(pair >> 32, pair & reasons.LARGEST_CODE)) for pair in pairs.tolist()]
    return np.array(read, np.int64)[which]


def _of_isa(isa: int, code: int) -> reasons.Reason | None:
    return reasons.reason_of_number(isa, code) if isa in (VENDOR_VMX, VENDOR_SVM) else None


def _set_shorts(table: Table, rows: NDArray[np.int64], event: Event, said: NDArray[np.int64]) -> None:
    """Set the number, and the value where there is one, of texts that were read as one number."""
    distinct, which = np.unique(said, return_inverse=True)
    fields = [payloads.short_fields(event, int(number)) for number in distinct]
    known = [Known.NUMBER | (Known.VALUE if "value" in one else Known(0)) for one in fields]
    table.number[rows] = np.array([one["number"] for one in fields], np.uint64)[which]
    table.value[rows] = np.array([one.get("value", 0) for one in fields], np.uint64)[which]
    table.known[rows] = np.array(known, np.uint8)[which]
