"""What each part of a stream adds to what a hypervisor has been paid: MOV DR exits and operations."""

import itertools
from typing import Final, NamedTuple

from exitlab.events import EventKind
from exitlab.v1 import report_pb2
from tests.engine.build import (
    Row,
    context_switch,
    cpuid,
    event,
    host_breakpoints,
    mov_dr,
    run,
    scheduled_in,
    standing,
    stream,
    synchronization,
    total,
)


class Paid(NamedTuple):
    """What a lane has paid: MOV DR exits, and operations on debug registers and their controls."""

    traps: int = 0
    reads: int = 0
    writes: int = 0
    vmreads: int = 0
    vmwrites: int = 0
    msrs: int = 0


def paid_by(lane: report_pb2.LaneReport) -> Paid:
    """Return all that a lane has paid."""
    return Paid(mov_dr(lane)[1], *total((synchronization(lane), standing(lane))))


def steps_of(policy: str, vendor: int, *parts: list[Row]) -> list[Paid]:
    """Return what each part of a stream adds to what is paid, on a vCPU alone on two physical CPUs."""
    rows: list[Row] = []
    totals = [Paid()]
    for part in parts:
        rows += part
        totals.append(paid_by(run(stream(rows), policy, vendor=vendor, physical_cpus=2).lanes[0]))
    return [
        Paid(*(a - b for a, b in zip(now, before, strict=True))) for before, now in itertools.pairwise(totals)
    ]


# Each part ends with the guest running, so that it has paid for its own entry.
QUIET: Final = event(EventKind.RDTSC)  # needs the guest, never exits
START: Final = [QUIET]
SWITCH: Final = [*context_switch(), QUIET]  # 13 accesses that end with DR7 on
LIGHT: Final = [cpuid(), QUIET]
HEAVY: Final = [event(EventKind.OUT), QUIET]
AWAY: Final = [event(EventKind.SCHED_OUT), scheduled_in(1), QUIET]  # and back, on another CPU
HOSTED: Final = [*host_breakpoints(0, db0=0x1000, dr7=0x402), *host_breakpoints(1, db0=0x1000, dr7=0x402)]
NOTHING: Final = Paid()
