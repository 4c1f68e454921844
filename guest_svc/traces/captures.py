"""Recorded traces as a source of events.

Every record becomes an event or is skipped and counted; the guest time of a skipped record goes to
the next event of its vCPU, so that guest cycles equal the instructions recorded (at one cycle an
instruction). Time after a vCPU's last event, and what does not fit 32 bits, becomes ADVANCE, which is
neither an event nor a record. Exceptions come as events: breakpoints are not computed.

What the recorder leaves unsaid of debug registers is settled in ``debug_history``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from exitlab.events import Column
from guest_svc.traces.debug_history import debug_history, initial_state
from guest_svc.traces.recorded_events import (
    EVENT_OF,
    event_columns,
    event_cycles,
    join,
    state_columns,
)
from guest_svc.traces.records import ByVcpu, Records, kind_name, read_records
from guest_svc.traces.source import TraceFile
from guest_svc.workloads.base import (
    BLOCK_EVENTS,
    Blocks,
    Parameter,
    Workload,
    check_run,
    parse_parameters,
)

RECORDED_HERTZ: Final = 1_000_000_000  # an instruction of the recorder's clock is a nanosecond
CPI_DENOMINATOR: Final = 10**6  # the finest step of cycles per instruction

PARAMETERS: Final = (
    Parameter("cpi", 1.0, "cycles/instruction", "guest cycles that one instruction takes", 1e-3, 1e3),
)


class CaptureTrace(Workload):
    """A recorded trace, read and turned into events."""

    is_recorded = True
    has_own_clock = False
    parameters = PARAMETERS
    computed_breakpoints = False
    clock_hertz = RECORDED_HERTZ
    total_events: int
    #: Guest instructions, by the recorder's count.
    instructions: int

    def __init__(self, source: "CaptureSource", cpi: float, seed: int, events: int | None) -> None:
        """Read the whole file; end it after ``events`` events."""
        self.name = source.name
        self.summary = source.summary
        self.seed = seed
        self.parameters_used = {"cpi": cpi}
        records = read_records(source.path)
        self.vcpus = int(records.cpu.max()) + 1
        self.physical_cpus = self.vcpus
        self.initial_physical_cpus = tuple(range(self.vcpus))
        taken = np.flatnonzero(EVENT_OF[0][records.kind])
        if events is not None and events < len(taken):
            taken = taken[:events]
            records = records.until(int(taken[-1]) + 1)
        self.records = len(records)
        self.total_events = len(taken)
        self.instructions = int(records.gap.sum(dtype=np.int64))
        self.skipped = _count_skipped(records)
        self.columns = tuple(
            column
            for column in Column
            if column is not Column.MODES and (column is not Column.VCPUS or self.vcpus > 1)
        )

        by_vcpu = ByVcpu(records)
        history = debug_history(records, by_vcpu)
        state = initial_state(history)
        self.unrecorded_events = len(state)
        is_event = EVENT_OF[0][records.kind] != 0
        cycles, rest = event_cycles(by_vcpu, is_event, Fraction(cpi).limit_denominator(CPI_DENOMINATOR))
        self._rows = join(
            self.columns, state_columns(state), event_columns(records, taken, history), cycles, rest
        )

    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield all rows from the start, at most ``block_events`` at a time."""
        for start in range(0, len(self._rows), block_events):
            yield self._rows.rows(start, min(start + block_events, len(self._rows)))


def _count_skipped(records: Records) -> dict[str, int]:
    counts = np.bincount(records.kind)
    return {
        kind_name(int(kind)): int(counts[kind]) for kind in np.flatnonzero(counts) if not EVENT_OF[0][kind]
    }


@dataclass(frozen=True, slots=True)
class CaptureSource(TraceFile):
    """A capture's file, not read yet."""

    documentation: str = __doc__

    parameters = PARAMETERS

    def make(self, parameters: Mapping[str, str], seed: int = 0, events: int | None = None) -> CaptureTrace:
        """Return the trace, cut after ``events`` events if it has more; the seed changes nothing.

        Raises:
            WorkloadError: A parameter is not taken, or the file cannot be read.

        """
        check_run(self.name, seed, events)
        cpi = parse_parameters(self.name, self.parameters, parameters)["cpi"]
        return CaptureTrace(self, float(cpi), seed, events)
