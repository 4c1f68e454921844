"""A hypervisor in a process of its own, and this process as its guest."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exitlab.blocks import ColumnCrcs
from exitlab.events import COLUMN_NAMES, EventColumns
from exitlab.v1 import events_pb2, hypervisor_pb2, hypervisor_pb2_grpc, outcome_pb2, report_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.stream import EventStream
from tests.bench.cases import Case, loop_engine
from tests.bench.measure import check_same

BLOCK_EVENTS: Final = 32_768
_LISTENING: Final = "listening on"
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Process:
    """A process that says when it listens, and ends with the ``with``."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Start it and wait until it listens."""
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.start_seconds = time.perf_counter() - start
        if _LISTENING not in line:
            self._process.kill()
            raise RuntimeError(f"{' '.join(command)} does not listen: {line.strip() or 'no word'}")

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = (
            Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def peak_bytes(self) -> int:
        """Return the most memory that it ever had resident."""
        return peak_bytes(self._process.pid)


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell a process's peak memory")


def server(
    folder: Path, name: str = "h", environment: dict[str, str] | None = None, flags: Sequence[str] = ()
) -> Process:
    """Start a hypervisor on the unix socket ``name`` in ``folder``."""
    listen = address(folder, name)
    command = [sys.executable, "-m", "hypervisor_svc", "serve", "--listen", listen, "--log-level", "error"]
    return Process([*command, *flags], environment)


def address(folder: Path, name: str = "h") -> str:
    """Return the address of a hypervisor on the unix socket ``name``."""
    return f"unix:{folder}/{name}"


def found(report: report_pb2.Report) -> dict[str, object]:
    """Return what a report says, part by part: counts, bills, registers and story digests."""
    parts: dict[str, object] = {"events": report.events, "events by kind": list(report.events_by_kind)}
    for number, reference in enumerate(report.references):
        parts[f"reference {number}"] = reference.SerializeToString(deterministic=True)
    for number, lane in enumerate(report.lanes):
        parts[f"lane {number} ({lane.policy})"] = lane.SerializeToString(deterministic=True)
    return parts


def loop_report(
    case: Case,
    config: hypervisor_pb2.SessionConfig,
    on_outcomes: Callable[[outcome_pb2.OutcomePart], None] | None = None,
) -> dict[str, object]:
    """Return what the oracle loop in this process finds in a stream, as ``found`` does."""
    one = loop_engine(config)
    for block in case.blocks(BLOCK_EVENTS):
        for part in one.feed(block, int(config.outcome_level)):
            if on_outcomes is not None:
                on_outcomes(part)
    return found(one.report())


def stream(
    hypervisor: Hypervisor,
    config: hypervisor_pb2.SessionConfig,
    blocks: Iterable[EventColumns],
    on_outcomes: Callable[[outcome_pb2.OutcomePart], None] | None = None,
) -> tuple[float, report_pb2.Report]:
    """Stream blocks in a session of their own; return seconds until all are applied, and the report."""
    session = hypervisor.create_session(config)
    columns = next(iter(blocks)).declared
    with EventStream(hypervisor, session, columns, on_outcomes) as events:
        start = time.perf_counter()
        for block in blocks:
            events.send(block)
        events.wait_until_applied()
        seconds = time.perf_counter() - start
        count, crcs = events.next_event, events.crcs
    return seconds, hypervisor.finish_session(session.session_id, count, crcs)


def stream_singly(
    hypervisor: Hypervisor, config: hypervisor_pb2.SessionConfig, case: Case
) -> tuple[float, report_pb2.Report]:
    """Stream a case with one plain event a message; return as ``stream`` does.

    The messages are written as fast as they are taken: nothing waits for an answer.
    """
    session = hypervisor.create_session(config)
    stub = hypervisor_pb2_grpc.HypervisorServiceStub(hypervisor.channel)
    opening = hypervisor_pb2.Open(session_id=session.session_id)
    count = len(case.events)

    def requests() -> Iterator[hypervisor_pb2.StreamEventsRequest]:
        yield hypervisor_pb2.StreamEventsRequest(open=opening)
        yield from _single_events(case.events)

    start = time.perf_counter()
    call = stub.StreamEvents(requests())
    for response in call:
        if response.acknowledgement.applied_events == count:
            break
    seconds = time.perf_counter() - start
    call.cancel()
    crcs = ColumnCrcs(case.events.declared)
    crcs.update(case.events)
    return seconds, hypervisor.finish_session(session.session_id, count, crcs.values)


_EVENT_FIELDS: Final = ("kind", "arg", "modes", "marks", "vcpu", "gap_cycles", "selector", "value", "rip")


def _single_events(events: EventColumns) -> Iterator[hypervisor_pb2.StreamEventsRequest]:
    names = {
        column: field for column, field in zip(COLUMN_NAMES, _EVENT_FIELDS, strict=True)
        if getattr(events, column) is not None
    }  # fmt: skip
    rows = zip(*(getattr(events, column).tolist() for column in names), strict=True)
    for number, row in enumerate(rows):
        event = events_pb2.Event(**dict(zip(names.values(), row, strict=True)))
        yield hypervisor_pb2.StreamEventsRequest(
            events=events_pb2.EventList(first_event=number, events=[event])
        )


def check_report(what: str, truth: dict[str, object], report: report_pb2.Report) -> None:
    """Refuse a report that is not the in-process engine's."""
    check_same(what, truth, found(report))


@contextlib.contextmanager
def pair(folder: Path, name: str) -> Iterator[tuple[Process, Hypervisor]]:
    """Yield a hypervisor's process and a connection to it."""
    with server(folder, name) as process, Hypervisor(address(folder, name)) as hypervisor:
        yield process, hypervisor
