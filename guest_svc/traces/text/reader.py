"""One pass over a text trace: tables of records, and at its end what else was there."""

from collections.abc import Generator
from pathlib import Path
from typing import Final

from guest_svc.errors import TraceError
from guest_svc.traces.text.chunks import CHUNK_BYTES, chunks
from guest_svc.traces.text.files import TextFile
from guest_svc.traces.text.scan import Scanner
from guest_svc.traces.text.table import Event, Table
from guest_svc.traces.text.tally import Tally

_SHOWN_NAMES: Final = 3


class TraceReader:
    """A trace's records, once from its start to its end."""

    def __init__(self, path: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Look at the file, which is read some ``chunk_bytes`` at a time.

        Raises:
            TraceError: It is not there.

        """
        self.path = path
        self._file = TextFile(path)
        self._chunk_bytes = chunk_bytes
        self._scanner = Scanner()
        self._has_exits = False

    @property
    def tally(self) -> Tally:
        """What was found so far beside the records."""
        return self._scanner.tally

    @property
    def header_cpus(self) -> int:
        """The physical CPUs of which the trace's first line speaks; 0 if it does not."""
        return self._scanner.header_cpus

    @property
    def thread_names(self) -> dict[int, str]:
        """The names of the threads seen so far."""
        return self._scanner.thread_names

    @property
    def can_read_again(self) -> bool:
        """Whether it is a file and no pipe."""
        return self._file.is_regular

    @property
    def fraction_read(self) -> float | None:
        """How much of the file is read, or nothing where its size is not known."""
        size = self._file.size
        return min(1.0, self._file.read_bytes / size) if size else None

    def tables(self) -> Generator[Table]:
        """Yield the records chunk by chunk.

        Raises:
            TraceError: It is no text trace, or one without a single exit; told at its end.

        """
        for chunk in chunks(self._file.parts(), self._chunk_bytes):
            table = self._scanner.read(chunk)
            self._has_exits = self._has_exits or bool((table.event == Event.EXIT).any())
            yield table
        self.tally.damage = self._file.damage
        if not self._has_exits:
            raise TraceError(f"{self.path}: {self._why_none()}")

    def _why_none(self) -> str:
        """Return why a trace has no exits."""
        tally, scanner = self.tally, self._scanner
        damage = f"; {tally.damage}" if tally.damage else ""
        if scanner.foreign:
            architecture, line = scanner.foreign
            return f"line {line:,}: a record of {architecture}; only traces of x86 are read{damage}"
        if scanner.other_clock_line is not None:
            return (
                f"line {scanner.other_clock_line:,}: its time is a plain number; record with a clock of "
                f"seconds, as trace-cmd record -C mono does{damage}"
            )
        unnamed = ", ".join(list(tally.unnamed_reasons)[:_SHOWN_NAMES])
        if unnamed:
            where = f"line {tally.malformed.first_line:,}"
            return f"{where}: an exit reason that is not known here: {unnamed}{damage}"
        if not +tally.records:
            if not tally.malformed.count:
                return f"none of its {tally.lines:,} lines is a record{damage}"
            return (
                f"line {tally.malformed.first_line:,}: neither perf script nor trace-cmd report print such a "
                f"line; none of its {tally.lines:,} lines is a record{damage}"
            )
        names = ", ".join(
            f"{count:,} {name}" for name, count in tally.records.most_common(_SHOWN_NAMES) if count
        )
        unread = ""
        if tally.malformed.count:
            unread = (
                f"; {tally.malformed.count:,} lines cannot be read, first line {tally.malformed.first_line:,}"
            )
        named = f": {names}" if names else ""
        records = sum(tally.records.values())
        return f"no {Event.EXIT.printed_name} among its {records:,} records{named}{unread}{damage}"
