"""A guest that does nothing: timer interrupts, their acknowledgement, HLT. No MOV DR.

Halted time is guest time here, so that ticks come at their rate; it is in the gap of the interrupt
that ends it. Some ticks are followed by a wake-up from another CPU.
"""

from typing import Final

import numpy as np

from exitlab.events import MMIO_WRITE, EventKind
from guest_svc.workloads.base import Parameter, Value
from guest_svc.workloads.tiling import Pattern, PatternTable, Segments, TiledWorkload, random_choices

TIMER_VECTOR: Final = 0xEC
RESCHEDULE_VECTOR: Final = 0xFD
LOCAL_APIC_EOI: Final = 0xFEE0_00B0
LOCAL_APIC_TIMER_COUNT: Final = 0xFEE0_0380
IDLE_CR3: Final = 0x1FD3_6000
TASK_CR3: Final = 0x1FD3_8000
TICK_COUNT: Final = 250_000  # the timer's initial count that the guest writes

EOI_CYCLES: Final = 600
TIMER_CYCLES: Final = 1_500  # from the acknowledgement to the timer's next start
HALT_CYCLES: Final = 400
WAKE_UP_CYCLES: Final = 20_000  # from one halt to the wake-up by another CPU
TASK_CYCLES: Final = 8_000


class Idle(TiledWorkload):
    """Ticks and halts."""

    name = "idle"
    summary = "timer interrupts and HLT, no MOV DR"
    parameters = (
        Parameter("ticks", 50_000, "ticks", "length of the run", 1, 10**12),
        Parameter("ticks_per_guest_second", 250, "1/s", "in guest time, halts included", 1, 10**8),
        Parameter("clock_hertz", 3_000_000_000, "Hz", "guest cycles in a guest second", 10**6, 10**10),
        Parameter("wake_up_percent", 20, "%", "of the ticks are followed by a wake-up", 0, 100),
    )

    def __init__(self, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Build the two patterns: a tick alone, and one followed by a wake-up."""
        super().__init__(values, seed, events)
        self.clock_hertz = self.number("clock_hertz")
        self.default_steps = self.number("ticks")
        share = self.number("wake_up_percent")
        self._weights = (100 - share, share)
        patterns = [tick_pattern(), wake_up_pattern()]
        self.pace = self.pace_of("ticks_per_guest_second", max(pattern.cycles for pattern in patterns))
        self.table = PatternTable(patterns)
        self.step_events = max(len(pattern.rows) for pattern in patterns)
        self._finish()

    def segments(self, start: int, stop: int) -> Segments:
        """Return the ticks from ``start`` to ``stop``."""
        patterns = random_choices(self.seed, start, stop, self._weights)
        return Segments(patterns, self.pace.cycles_of(np.arange(start, stop)) - self.table.cycles[patterns])


def tick_pattern() -> Pattern:
    """Return a timer interrupt, its acknowledgement, the timer's next start, and the halt."""
    return (
        Pattern()
        .add(EventKind.EXTERNAL_INTERRUPT, selector=TIMER_VECTOR)
        .add(EventKind.MMIO, 4 | MMIO_WRITE, gap_cycles=EOI_CYCLES, selector=LOCAL_APIC_EOI)
        .add(EventKind.RDTSC, gap_cycles=TIMER_CYCLES // 2)
        .add(
            EventKind.MMIO,
            4 | MMIO_WRITE,
            gap_cycles=TIMER_CYCLES // 2,
            selector=LOCAL_APIC_TIMER_COUNT,
            value=TICK_COUNT,
        )
        .add(EventKind.HLT, gap_cycles=HALT_CYCLES)
    )


def wake_up_pattern() -> Pattern:
    """Return a tick, then an interrupt from another CPU and a task that runs a little."""
    return (
        tick_pattern()
        .add(EventKind.EXTERNAL_INTERRUPT, gap_cycles=WAKE_UP_CYCLES, selector=RESCHEDULE_VECTOR)
        .add(EventKind.MMIO, 4 | MMIO_WRITE, gap_cycles=EOI_CYCLES, selector=LOCAL_APIC_EOI)
        .add(EventKind.MOV_TO_CR, 3, gap_cycles=HALT_CYCLES, value=TASK_CR3)
        .add(EventKind.MOV_TO_CR, 3, gap_cycles=TASK_CYCLES, value=IDLE_CR3)
        .add(EventKind.HLT, gap_cycles=HALT_CYCLES)
    )
