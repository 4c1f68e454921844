"""A trace's own table: how often each exit happened, and how long the host took, as ``perf kvm stat`` counts.

An exit's time is that from kvm_exit to the next kvm_entry of the same thread. So it holds what the host did
meanwhile, other threads and user space too, and not the processor's own exit and entry. An exit that is
followed by another on its thread is not a sample, as for perf: it is counted apart.

Source: Linux 6.12, ``tools/perf/builtin-kvm.c`` and ``util/stat.c`` (the spread is the standard error of the
mean over the mean).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.exit_reasons import SVM_EXIT_REASONS, VENDOR_VMX, VMX_FLAG_FAILED_VMENTRY, reason_name
from guest_svc.errors import BadInput
from guest_svc.progress import Progress
from guest_svc.traces.exits.pairs import NONE, Pairs, pair
from guest_svc.traces.exits.roster import keys_of, takes_part
from guest_svc.traces.text.chunks import CHUNK_BYTES
from guest_svc.traces.text.reader import TraceReader
from guest_svc.traces.text.table import UNKNOWN, UNKNOWN_VENDOR, Flag, Table

SCHEMA: Final = "exitlab.stat/1"
_VENDOR_SHIFT: Final = 32
_MOST_THREADS: Final = 1 << 14  # as many as may be sorted by 16 bits


@dataclass(slots=True)
class Row:
    """Samples of one reason, in nanoseconds."""

    samples: int = 0
    total_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    squares: float = 0.0  # sum of squared differences from the mean

    def add(self, times_ns: NDArray[np.int64]) -> None:
        """Take in samples."""
        count, total = len(times_ns), int(times_ns.sum())
        mean = total / count
        squares = float(((times_ns - mean) ** 2).sum())
        if self.samples:
            shift = mean - self.total_ns / self.samples
            squares += shift * shift * self.samples * count / (self.samples + count)
        least, most = int(times_ns.min()), int(times_ns.max())
        self.min_ns = min(self.min_ns, least) if self.samples else least
        self.max_ns = max(self.max_ns, most)
        self.samples += count
        self.total_ns += total
        self.squares += squares

    @property
    def spread(self) -> float:
        """The standard error of the mean, as a share of the mean; 0 for a single sample."""
        if self.samples < 2 or not self.total_ns:
            return 0.0
        variance = self.squares / (self.samples - 1)
        return math.sqrt(variance / self.samples) / (self.total_ns / self.samples)


class Statistics:
    """Collects the samples of a trace, table by table."""

    def __init__(self, vcpu: int | None = None) -> None:
        """Begin; of the vCPU that the trace calls ``vcpu`` only, if one is named."""
        self.rows: dict[int, Row] = {}
        self.unfinished = 0  # exits with no entry after them
        self.backwards = 0  # entries at a time before that of their exit: 0 is counted
        self.vcpus_seen: set[int] = set()
        self._vcpu = vcpu
        self._threads: dict[int, int] = {}
        self._vcpu_of: dict[int, int] = {}
        self._held = Table.empty(0)

    def take(self, table: Table) -> None:
        """Take in the next records."""
        table = Table.joined([self._held, table.taken(takes_part(table))])
        threads = self._numbered(table)
        pairs = pair(table, threads)
        self._count(table, pairs, ~pairs.is_open)
        self._held = table.taken(np.sort(pairs.exits[pairs.is_open]))

    def finish(self) -> None:
        """Count the exits that the trace's end leaves without an entry."""
        self.unfinished += int(self._is_chosen(self._held, np.arange(len(self._held))).sum())

    def _numbered(self, table: Table) -> NDArray[np.int64]:
        of_each = keys_of(table)
        keys = np.unique(of_each)
        for key in keys.tolist():
            if key not in self._threads:
                if len(self._threads) == _MOST_THREADS:
                    raise BadInput(f"the trace has more than {_MOST_THREADS:,} threads with exits or entries")
                self._threads[key] = len(self._threads)
        self._learn_vcpus(table)
        numbers = np.array([self._threads[key] for key in keys.tolist()], np.int64)
        return numbers[np.searchsorted(keys, of_each)]

    def _learn_vcpus(self, table: Table) -> None:
        """Learn which vCPU a thread runs: the plug-in's exits do not say, its entries do."""
        is_said = table.vcpu != UNKNOWN
        keys, first = np.unique(keys_of(table)[is_said], return_index=True)
        self._vcpu_of.update(zip(keys.tolist(), table.vcpu[is_said][first].tolist(), strict=True))
        self.vcpus_seen.update(self._vcpu_of.values())

    def _is_chosen(self, table: Table, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        if self._vcpu is None:
            return np.ones(len(rows), np.bool_)
        keys, which = np.unique(keys_of(table)[rows], return_inverse=True)
        vcpus = np.array([self._vcpu_of.get(key, UNKNOWN) for key in keys.tolist()], np.int64)
        chosen: NDArray[np.bool_] = vcpus[which] == self._vcpu
        return chosen

    def _count(self, table: Table, pairs: Pairs, is_closed: NDArray[np.bool_]) -> None:
        is_chosen = self._is_chosen(table, pairs.exits) & is_closed
        is_sample = is_chosen & (pairs.entry_after != NONE)
        self.unfinished += int((is_chosen & ~is_sample).sum())
        exits, entries = pairs.exits[is_sample], pairs.entry_after[is_sample]
        times = table.time_ns[entries] - table.time_ns[exits]
        self.backwards += int((times < 0).sum())
        times = np.maximum(times, 0)
        is_failed = table.flags[exits] & Flag.FAILED_ENTRY != 0
        codes = table.reason[exits] | np.where(is_failed, VMX_FLAG_FAILED_VMENTRY, 0)
        keys = codes | table.vendor[exits].astype(np.int64) << _VENDOR_SHIFT
        for key in np.unique(keys).tolist():
            self.rows.setdefault(key, Row()).add(times[keys == key])


def trace_stat(
    path: Path, vcpu: int | None = None, key: str = "sample", chunk_bytes: int = CHUNK_BYTES
) -> dict[str, Any]:
    """Return a trace's table as one object (schema ``stat.json``), sorted by samples or by time.

    Raises:
        BadInput: The file is no text trace, or has no such vCPU.

    """
    found = Statistics(vcpu)
    reader = TraceReader(path, chunk_bytes)
    with Progress(path.name, None) as progress:
        for table in reader.tables():
            found.take(table)
            progress.update(sum(row.samples for row in found.rows.values()), reader.fraction_read)
        found.finish()
        tally = reader.tally
    if vcpu is not None and vcpu not in found.vcpus_seen:
        seen = ", ".join(map(str, sorted(found.vcpus_seen)[:16])) or "none is named"
        raise BadInput(f"{path}: --vcpu {vcpu}: there is no such vCPU; there are: {seen}")
    samples = sum(row.samples for row in found.rows.values())
    total_ns = sum(row.total_ns for row in found.rows.values())
    rows = [_row_document(packed, row, samples, total_ns) for packed, row in found.rows.items()]
    rows.sort(key=lambda row: (-row["samples" if key == "sample" else "total_us"], row["reason"]))
    return {
        "schema": SCHEMA,
        "trace": path.name,
        "vcpu": vcpu,
        "rows": rows,
        "samples": samples,
        "total_us": total_ns / 1000,
        "lost_events": tally.lost_events,
        "lost_notes": tally.lost_notes,
        "unfinished_exits": found.unfinished,
        "time_backwards": found.backwards,
        "lines": tally.lines,
        "records": {name: count for name, count in tally.records.most_common() if count},
        "malformed": tally.malformed.document(),
        "too_long": tally.too_long.document(),
        "cut_lines": tally.cut_lines,
        "damage": tally.damage or None,
    }


def _row_document(packed: int, row: Row, samples: int, total_ns: int) -> dict[str, Any]:
    return {
        "reason": _name(packed >> _VENDOR_SHIFT, packed & (1 << _VENDOR_SHIFT) - 1),
        "samples": row.samples,
        "samples_share": row.samples / samples,
        "time_share": row.total_ns / total_ns if total_ns else 0.0,
        "min_us": row.min_ns / 1000,
        "max_us": row.max_ns / 1000,
        "mean_us": row.total_ns / row.samples / 1000,
        "total_us": row.total_ns / 1000,
        "relative_standard_error": row.spread,
    }


def _name(vendor: int, code: int) -> str:
    """Return the name by which the trace's kernel calls a reason: here the SVM codes of MOV DR stay apart."""
    if vendor == UNKNOWN_VENDOR:
        return hex(code)
    if vendor == VENDOR_VMX:
        return reason_name(vendor, code)
    return SVM_EXIT_REASONS.get(code, hex(code))
