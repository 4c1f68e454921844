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
from guest_svc.traces.text.table import UNKNOWN, Event, Flag, Known, Table
from guest_svc.traces.text.tally import Tally
from guest_svc.traces.text.times import Timed, Times
from guest_svc.traces.text.words import Words

_NAME_STEPS: Final = parse_format("{name:s}: ")
_KNOWN_COLUMNS: Final = {
    "rip": Known.RIP, "info1": Known.INFO1, "info2": Known.INFO2, "intr_info": Known.INTR_INFO,
    "error_code": Known.ERROR_CODE, "number": Known.NUMBER, "value": Known.VALUE,
}  # fmt: skip
_SHORT_EVENTS: Final = (Event.INJ_EXCEPTION, Event.INJ_VIRQ, Event.USERSPACE_EXIT)
_LARGEST_CODE: Final = (1 << 32) - 1
_LARGEST_VCPU: Final = np.uint64((1 << 31) - 1)
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
        by_row = np.full(len(chunk), -1, np.int64)
        by_row[timed.rows] = np.arange(len(timed.rows))
        tables: list[Table] = []
        for event, cursors in self._by_event(chunk, timed, others):
            table = self._read_event(chunk, event, cursors)
            at = by_row[table.line]
            table.time_ns[:] = timed.time_ns[at]
            _set_heads(table, whose[at])
            tables.append(table)
        joined = Table.joined([self._read_others(chunk, sorted(others)), *tables])
        joined = joined.taken(np.argsort(joined.line, kind="stable"))
        joined.line[:] = chunk.lines[joined.line]
        return joined

    def _read_head(self, text: bytes) -> int:
        head = heads.read_head(text)
        if head is not None and head.thread >= 0 and len(self.thread_names) < _MOST_THREADS:
            self.thread_names.setdefault(head.thread, head.name.decode("utf-8", "replace"))
        return heads.pack(head)

    def _read_others(self, chunk: Chunk, rows: list[int]) -> Table:
        """Count lines without a record; return those that tell of lost events."""
        lost: list[tuple[int, int]] = []
        malformed: list[int] = []
        for row in rows:
            line = chunk.line(row)
            oddity, number = read_oddity(line)
            if oddity is Oddity.LOST:
                self.tally.lost_notes += 1
                self.tally.lost_events += number or 0
                lost.append((row, number or 0))
            elif oddity is Oddity.HEADER:
                self.tally.header_lines += 1
                if line.startswith(b"cpus="):
                    self.header_cpus = int(line[len(b"cpus=") :][:6])
            elif oddity is Oddity.CALL_CHAIN:
                self.tally.call_chain_lines += 1
            else:
                malformed.append(row)
        if malformed:
            self._read_malformed(chunk, np.array(malformed))
        table = Table.empty(len(lost))
        table.event[:] = Event.LOST
        table.line[:] = [row for row, _ in lost]
        table.number[:] = [number for _, number in lost]
        return table

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

    def _read_event(self, chunk: Chunk, event: Event, cursors: Cursors) -> Table:
        """Return the records of one event; ``line`` is the row in the chunk, heads and times are to come."""
        cursors.blanks()
        rows, at = cursors.rows, cursors.at
        tables: list[Table] = []
        fitted: list[int] = []
        for form in self._formats[event]:
            tried = Cursors(chunk, rows, at)
            if len(rows):
                tried.walk(parse_format(form.text))
            fitted.append(len(tried.rows))
            if not len(tried.rows):
                continue
            table, is_read = self._columns(chunk, event, form, tried)
            tables.append(table.taken(is_read) if not is_read.all() else table)
            is_left = ~chunk.mask(tables[-1].line)[rows]
            rows, at = rows[is_left], at[is_left]
        order = sorted(range(len(fitted)), key=lambda number: -fitted[number])
        if fitted[order[0]]:
            self._formats[event] = [self._formats[event][number] for number in order]
        tables.append(self._read_singly(chunk, event, rows, at))
        return Table.joined(tables)

    def _columns(
        self, chunk: Chunk, event: Event, form: Format, cursors: Cursors
    ) -> tuple[Table, NDArray[np.bool_]]:
        """Return the columns that a format's cursors have taken, and which of the rows can be used."""
        table = Table.empty(len(cursors.rows))
        table.line[:] = cursors.rows
        table.event[:] = event
        table.flags[:] = form.flags
        is_read = np.ones(len(table), np.bool_)
        for name, values in cursors.numbers.items():
            if name in _KNOWN_COLUMNS:
                getattr(table, name)[:] = values
                table.known[:] |= np.uint8(_KNOWN_COLUMNS[name])
            elif name in _FAULTY:
                table.flags[:] |= (values != 0) * np.uint8(_FAULTY[name])
            elif name == "vcpu":
                is_read &= values <= _LARGEST_VCPU
                table.vcpu[:] = np.minimum(values, _LARGEST_VCPU).astype(np.int32)
        if "reason" in cursors.texts:
            is_read &= _set_reasons(table, self._reasons.values(chunk, *cursors.texts["reason"]))
        elif "code" in cursors.numbers:
            is_read &= _set_reasons(table, _numbered(cursors.numbers))
        elif "text" in cursors.texts:
            said = self._shorts[event].values(chunk, *cursors.texts["text"])
            is_read &= said >= 0
            _set_shorts(table, event, said)
        return table, is_read

    def _read_singly(
        self, chunk: Chunk, event: Event, rows: NDArray[np.int64], at: NDArray[np.int64]
    ) -> Table:
        """Return what texts of no known format say, one by one; count those that say nothing."""
        read: list[tuple[int, payloads.Fields]] = []
        for row, start in zip(rows.tolist(), at.tolist(), strict=True):
            text = chunk.text[start : int(chunk.ends[row])].decode("latin-1")
            fields = payloads.read_payload(event, text)
            if fields is not None:
                read.append((row, fields))
                continue
            if name := payloads.unnamed_reason(text):
                self.tally.add_unnamed_reason(name)
            self.tally.records[f"kvm_{event.name.lower()}"] -= 1  # a line is counted once
            self._read_malformed(chunk, np.array([row]))
        table = Table.empty(len(read))
        table.event[:] = event
        for place, (row, fields) in enumerate(read):
            table.line[place] = row
            for name, value in fields.items():
                getattr(table, name)[place] = value
                table.known[place] |= _KNOWN_COLUMNS.get(name, Known(0))
        return table


def _short_lexicon(event: Event) -> Lexicon:
    return Lexicon(lambda text: payloads.read_short(event, text))


def _set_heads(table: Table, whose: NDArray[np.int64]) -> None:
    table.cpu[:] = whose & heads.CPU_MASK
    table.thread[:] = ((whose >> heads.THREAD_SHIFT) & heads.THREAD_MASK) - 1
    named = ((whose >> heads.NAMED_SHIFT) - 1).astype(np.int32)
    table.vcpu[:] = np.where(table.vcpu == UNKNOWN, named, table.vcpu)


def _set_reasons(table: Table, packed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Set an exit's reason from packed ones; return where there is one."""
    is_known = packed >= 0
    table.reason[:] = np.where(is_known, packed & _LARGEST_CODE, UNKNOWN)
    table.vendor[:] = np.where(is_known, packed >> 33, 0)
    table.flags[:] |= (is_known & ((packed >> 32) & 1 != 0)) * np.uint8(Flag.FAILED_ENTRY)
    return is_known


def _numbered(numbers: dict[str, Words]) -> NDArray[np.int64]:
    """Return packed reasons of numbers in the numbering that ``isa`` names; each pair is read once."""
    isa, code = numbers["isa"], numbers["code"]
    is_small = (isa <= np.uint64(VENDOR_SVM)) & (code <= np.uint64(_LARGEST_CODE))
    pairs, which = np.unique(np.where(is_small, isa << np.uint64(32) | code, 0), return_inverse=True)
    read = [reasons.pack(_of_isa(pair >> 32, pair & _LARGEST_CODE)) for pair in pairs.tolist()]
    return np.array(read, np.int64)[which]


def _of_isa(isa: int, code: int) -> reasons.Reason | None:
    return reasons.reason_of_number(isa, code) if isa in (VENDOR_VMX, VENDOR_SVM) else None


def _set_shorts(table: Table, event: Event, said: NDArray[np.int64]) -> None:
    """Set the number, and the value where there is one, of texts that were read as one number."""
    distinct, which = np.unique(np.maximum(said, 0), return_inverse=True)
    fields = [payloads.short_fields(event, int(number)) for number in distinct]
    table.number[:] = np.array([one["number"] for one in fields], np.uint64)[which]
    table.value[:] = np.array([one.get("value", 0) for one in fields], np.uint64)[which]
    known = [Known.NUMBER | (Known.VALUE if "value" in one else Known(0)) for one in fields]
    table.known[:] = np.array(known, np.uint8)[which]
