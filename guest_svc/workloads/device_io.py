"""A guest that talks to devices: ports, device memory, interrupts, MSRs, CPUID. No MOV DR.

Every operation is one of the few below, drawn by their weights. The guest drives its local APIC
through MSRs (x2APIC): timer, interrupt command and end-of-interrupt are writes of MSRs.
"""

from typing import Final

import numpy as np

from exitlab.events import MMIO_WRITE, EventKind
from guest_svc.workloads.base import Parameter, Value
from guest_svc.workloads.tiling import Pattern, PatternTable, Segments, TiledWorkload, random_choices

MSR_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC_EOI: Final = 0x80B
MSR_X2APIC_ICR: Final = 0x830
TIMER_VECTOR: Final = 0xEC
DISK_VECTOR: Final = 0x26
RESCHEDULE_VECTOR: Final = 0xFD
DISK_NOTIFY: Final = 0xFEBF_3000  # where the guest tells the disk of a new request
DISK_STATUS: Final = 0xFEBF_1000
SERIAL_DATA: Final = 0x3F8
SERIAL_STATUS: Final = 0x3FD
DISK_DATA_PORT: Final = 0x1F0
SECTOR_WORDS: Final = 256
CPUID_LEAF: Final = 0x1

SHORT_CYCLES: Final = 150  # between the events of one operation
DEVICE_CYCLES: Final = 4_000  # from a request to its interrupt


def disk_request() -> Pattern:
    """Return a request to a disk, its interrupt, and the acknowledgements."""
    return (
        Pattern()
        .add(EventKind.MMIO, 2 | MMIO_WRITE, selector=DISK_NOTIFY)
        .add(EventKind.EXTERNAL_INTERRUPT, gap_cycles=DEVICE_CYCLES, selector=DISK_VECTOR)
        .add(EventKind.MMIO, 1, gap_cycles=SHORT_CYCLES, selector=DISK_STATUS, value=1)
        .add(EventKind.WRMSR, gap_cycles=SHORT_CYCLES, selector=MSR_X2APIC_EOI)
    )


def serial_byte() -> Pattern:
    """Return a byte sent to a serial port whose status is asked first."""
    return (
        Pattern()
        .add(EventKind.IN, 1, selector=SERIAL_STATUS)
        .add(EventKind.OUT, 1, gap_cycles=SHORT_CYCLES, selector=SERIAL_DATA)
    )


def timer() -> Pattern:
    """Return a deadline that is set, the interrupt when it passes, and its end."""
    return (
        Pattern()
        .add(EventKind.WRMSR, selector=MSR_TSC_DEADLINE, value=DEVICE_CYCLES)
        .add(EventKind.EXTERNAL_INTERRUPT, gap_cycles=DEVICE_CYCLES, selector=TIMER_VECTOR)
        .add(EventKind.WRMSR, gap_cycles=SHORT_CYCLES, selector=MSR_X2APIC_EOI)
    )


def interprocessor_interrupt() -> Pattern:
    """Return an interrupt sent to CPU 1."""
    return Pattern().add(EventKind.WRMSR, selector=MSR_X2APIC_ICR, value=1 << 32 | RESCHEDULE_VECTOR)


def cpuid() -> Pattern:
    """Return a CPUID."""
    return Pattern().add(EventKind.CPUID, selector=CPUID_LEAF)


def sector() -> Pattern:
    """Return a disk sector read and another written through a port, a REP each."""
    return (
        Pattern()
        .add(EventKind.INS, 2, selector=DISK_DATA_PORT, value=SECTOR_WORDS)
        .add(EventKind.OUTS, 2, gap_cycles=DEVICE_CYCLES, selector=DISK_DATA_PORT, value=SECTOR_WORDS)
    )


# Operation: how often, relative to the others.
OPERATIONS: Final = (
    (disk_request, 30),
    (serial_byte, 20),
    (timer, 25),
    (interprocessor_interrupt, 15),
    (cpuid, 5),
    (sector, 5),
)


class DeviceIo(TiledWorkload):
    """Operations on devices in a seeded order."""

    name = "io"
    summary = "port I/O, device memory, interrupts, MSR writes and CPUID, no MOV DR"
    parameters = (
        Parameter("operations", 100_000, "operations", "length of the run", 1, 10**12),
        Parameter("operations_per_guest_second", 50_000, "1/s", "in guest time", 1, 10**8),
        Parameter("clock_hertz", 3_000_000_000, "Hz", "guest cycles in a guest second", 10**6, 10**10),
    )

    def __init__(self, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Build one pattern for each kind of operation."""
        super().__init__(values, seed, events)
        self.clock_hertz = self.number("clock_hertz")
        self.default_steps = self.number("operations")
        self._weights = [weight for _, weight in OPERATIONS]
        patterns = [build() for build, _ in OPERATIONS]
        self.pace = self.pace_of("operations_per_guest_second", max(pattern.cycles for pattern in patterns))
        self.table = PatternTable(patterns)
        self.step_events = max(len(pattern.rows) for pattern in patterns)
        self._finish()

    def segments(self, start: int, stop: int) -> Segments:
        """Return the operations from ``start`` to ``stop``."""
        patterns = random_choices(self.seed, start, stop, self._weights)
        return Segments(patterns, self.pace.cycles_of(np.arange(start, stop)) - self.table.cycles[patterns])
