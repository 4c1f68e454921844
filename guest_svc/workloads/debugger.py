"""A guest in which one process traces another with hardware breakpoints.

One stop is one hit of a breakpoint of the child and what follows, as Linux does it: the switch to
the child loads its breakpoints, the child runs until one is hit, the debug-exception handler reads
and clears DR6, the switch to the tracer turns DR7 off. Slots 0 to 2 watch data, slot 3 code. A data
breakpoint hits after the access (a trap), a code breakpoint before the instruction (a fault): its
instruction is stepped over while DR7 is off.

With ``fast_exits`` the handler, having cleared DR6, sets the timer's deadline and then reads DR6 again:
between a write and a read of DR6 lie exits that a hypervisor may handle without leaving its inner
loop. That is the sequence of CVE-2025-21839; that a handler does so at every stop is an assumption.

The tracer moves the first watchpoint to and fro between two addresses. The child also writes to the
one that is not watched just now, which must not hit.
"""

from typing import Final

import numpy as np

from exitlab.debugreg import DR6_RESET
from exitlab.events import MMIO_WRITE, EventKind, Mark
from guest_svc.workloads.base import Parameter, Value
from guest_svc.workloads.breakpoints import (
    DR7_OFF,
    DR_SLOTS,
    ON_ACCESS,
    ON_EXECUTE,
    ON_WRITE,
    Breakpoint,
    dr7_of,
)
from guest_svc.workloads.device_io import MSR_TSC_DEADLINE
from guest_svc.workloads.tiling import (
    Pattern,
    PatternTable,
    Segments,
    TiledWorkload,
    random_choices,
    random_number,
)

CODE_SLOT: Final = 3
LAYOUTS: Final = 2  # of the addresses: the first watchpoint here or there
TICKS: Final = 2  # patterns without and with a timer interrupt
TIMER_VECTOR: Final = 0xEC
LOCAL_APIC_EOI: Final = 0xFEE0_00B0
CHILD_CR3: Final = 0x1FD3_8000
TRACER_CR3: Final = 0x1FD3_6000
CHILD_BASE: Final = 0x40_0000

# Cycles between events, in the proportions of a recorded tracer under Linux.
SWITCH_CYCLES: Final = 450  # to the write of CR3, or from it to the breakpoints
RUN_CYCLES: Final = 1_400  # of the child until it is stopped
ENTRY_CYCLES: Final = 60  # from the exception to the read of DR6
CLEAR_CYCLES: Final = 15  # from the read to the write of DR6
DEADLINE_CYCLES: Final = 100  # to a write of the timer's deadline
LOAD_CYCLES: Final = 30  # between two loads of debug registers
EOI_CYCLES: Final = 600


class Debugger(TiledWorkload):
    """A tracer and its child, stop by stop."""

    name = "debugger"
    summary = "a tracer's child hits data watchpoints and code breakpoints, with handler and task switches"
    parameters = (
        Parameter("stops", 20_000, "stops", "length of the run", 1, 10**12),
        Parameter("stops_per_guest_second", 50_000, "1/s", "in guest time", 1, 10**8),
        Parameter("clock_hertz", 3_000_000_000, "Hz", "guest cycles in a guest second", 10**6, 10**10),
        Parameter("code_percent", 25, "%", "of the stops are at the code breakpoint", 0, 100),
        Parameter("stops_per_move", 16, "stops", "after which the tracer moves a watchpoint", 1, 10**9),
        Parameter("stops_per_tick", 200, "stops", "with one timer interrupt and its EOI", 1, 10**9),
        Parameter(
            "fast_exits",
            0,
            "exits",
            "of the handler, writes of TSC_DEADLINE, after it has cleared DR6; then it reads DR6 again",
            0,
            256,
        ),
    )

    def __init__(self, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Build a pattern for each layout, slot that is hit, and with or without a tick."""
        super().__init__(values, seed, events)
        self.clock_hertz = self.number("clock_hertz")
        self.default_steps = self.number("stops")
        data_weight = 100 - self.number("code_percent")
        self._weights = (*(data_weight,) * CODE_SLOT, CODE_SLOT * self.number("code_percent"))
        patterns = [
            self._stop(layout, slot, has_tick=bool(tick))
            for layout in range(LAYOUTS)
            for slot in range(DR_SLOTS)
            for tick in range(TICKS)
        ]
        self.pace = self.pace_of("stops_per_guest_second", max(pattern.cycles for pattern in patterns))
        self.table = PatternTable(patterns)
        self.step_events = max(len(pattern.rows) for pattern in patterns)
        self._finish()

    def _breakpoints(self, layout: int) -> dict[int, Breakpoint]:
        draws = [random_number(~self.seed, index) % 0x1000 for index in range(DR_SLOTS + 1)]
        first = draws[0] if layout == 0 else 0x1000 + draws[DR_SLOTS]
        return {
            0: Breakpoint(CHILD_BASE + 0x10_0000 + 8 * first, ON_WRITE, 4),
            1: Breakpoint(CHILD_BASE + 0x20_0000 + 8 * draws[1], ON_ACCESS, 8),
            2: Breakpoint(CHILD_BASE + 0x30_0000 + 8 * draws[2], ON_WRITE, 1),
            CODE_SLOT: Breakpoint(CHILD_BASE + 0x10 * draws[3], ON_EXECUTE),
        }

    def _stop(self, layout: int, hit_slot: int, *, has_tick: bool) -> Pattern:
        slots = self._breakpoints(layout)
        hit = slots[hit_slot]
        unwatched = self._breakpoints(1 - layout)[0]
        pattern = Pattern()
        # The switch to the child.
        pattern.add(EventKind.MOV_TO_CR, 3, gap_cycles=SWITCH_CYCLES, value=CHILD_CR3)
        for slot, breakpoint_ in slots.items():
            gap = LOAD_CYCLES if slot else SWITCH_CYCLES
            pattern.add(EventKind.MOV_TO_DR, slot, gap_cycles=gap, value=breakpoint_.address)
        pattern.add(EventKind.MOV_TO_DR, 7, gap_cycles=LOAD_CYCLES, value=dr7_of(slots))
        # The child runs into the breakpoint, and its handler.
        pattern.add(EventKind.WRITE, 4, gap_cycles=RUN_CYCLES // 2, value=unwatched.address)
        kind = {ON_EXECUTE: EventKind.FETCH, ON_WRITE: EventKind.WRITE, ON_ACCESS: EventKind.READ}
        length = 0 if hit_slot == CODE_SLOT else hit.length_bytes
        pattern.add(kind[hit.condition], length, gap_cycles=RUN_CYCLES // 2, value=hit.address)
        pattern.add(EventKind.MOV_FROM_DR, 6, marks=Mark.IF_FAULT, gap_cycles=ENTRY_CYCLES)
        pattern.add(EventKind.MOV_TO_DR, 6, marks=Mark.IF_FAULT, gap_cycles=CLEAR_CYCLES, value=DR6_RESET)
        for _ in range(self.number("fast_exits")):
            pattern.add(
                EventKind.WRMSR,
                marks=Mark.IF_FAULT,
                gap_cycles=DEADLINE_CYCLES,
                selector=MSR_TSC_DEADLINE,
                value=RUN_CYCLES,
            )
        if self.number("fast_exits"):
            pattern.add(EventKind.MOV_FROM_DR, 6, marks=Mark.IF_FAULT, gap_cycles=CLEAR_CYCLES)
        # The switch to the tracer.
        pattern.add(EventKind.MOV_TO_DR, 7, gap_cycles=SWITCH_CYCLES, value=DR7_OFF)
        pattern.add(EventKind.MOV_TO_CR, 3, gap_cycles=SWITCH_CYCLES, value=TRACER_CR3)
        if has_tick:
            pattern.add(EventKind.EXTERNAL_INTERRUPT, gap_cycles=RUN_CYCLES, selector=TIMER_VECTOR)
            pattern.add(EventKind.MMIO, 4 | MMIO_WRITE, gap_cycles=EOI_CYCLES, selector=LOCAL_APIC_EOI)
        if hit_slot == CODE_SLOT:
            # The instruction itself has not run yet: it does now, with DR7 still off.
            pattern.add(EventKind.MOV_TO_CR, 3, gap_cycles=SWITCH_CYCLES, value=CHILD_CR3)
            pattern.add(EventKind.FETCH, gap_cycles=SWITCH_CYCLES, value=hit.address)
        return pattern

    def segments(self, start: int, stop: int) -> Segments:
        """Return the stops from ``start`` to ``stop``."""
        number = np.arange(start, stop)
        layout = number // self.number("stops_per_move") % LAYOUTS
        slot = random_choices(self.seed, start, stop, self._weights)
        per_tick = self.number("stops_per_tick")
        has_tick = (number % per_tick == per_tick - 1).astype(np.int64)
        patterns = (layout * DR_SLOTS + slot) * TICKS + has_tick
        return Segments(patterns, self.pace.cycles_of(number) - self.table.cycles[patterns])
