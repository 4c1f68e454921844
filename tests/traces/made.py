"""Traces made of records, and their rows one by one."""

from pathlib import Path
from typing import Any, Final

from exitlab.events import EventKind as K
from guest_svc.traces.exits.trace import FIRST_CHUNKS, TextTrace, TextTraceSource
from guest_svc.traces.text.chunks import CHUNK_BYTES
from tests.traces.writer import Record, exit_record, lazy_host, lines

Row = dict[str, int]
SMALL_CHUNKS: Final = 1 << 14  # bytes: some hundred lines, so that a trace of a few thousand has many


def trace_of(tmp_path: Path, records: list[Record], text: str = "raw", **asked: Any) -> TextTrace:
    """Return the trace of some records, written in a dialect."""
    path = tmp_path / "trace.txt"
    path.write_bytes(lines(records, text))
    return made(path, **asked)


def made(
    path: Path,
    vendor: str | None = None,
    events: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    **parameters: str,
) -> TextTrace:
    """Return the trace of a file."""
    return TextTraceSource(path, vendor=vendor, chunk_bytes=chunk_bytes).make(parameters, 0, events)


def rows_of(trace: TextTrace, block_events: int = 1000) -> list[Row]:
    """Return all rows one by one."""
    found: list[Row] = []
    for block in trace.blocks(block_events):
        assert 0 < len(block) <= block_events
        columns = {column.name.lower(): block.column(column) for column in trace.columns}
        for at in range(len(block)):
            found.append({name: int(values[at]) for name, values in columns.items() if values is not None})
    return found


def events_of(trace: TextTrace) -> list[Row]:
    """Return the recorded events alone."""
    others = (K.SCHED_OUT, K.SCHED_IN, K.ADVANCE)
    return [row for row in rows_of(trace) if row["kinds"] not in others]


def grown(path: Path, late: int = 20) -> Path:
    """Write a trace of 32,000 exits of one vCPU, and ``late`` of one that the first stretch does not show."""
    records = [exit_record(10**15 + n, 10, thread=99, vcpu=7, cpu=9) for n in range(late)]
    path.write_bytes(lines([*lazy_host(16_000), *records]))
    assert path.stat().st_size > FIRST_CHUNKS * CHUNK_BYTES
    return path
