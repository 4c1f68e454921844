"""The guest of the idea's first mail: every context switch saves and restores the debug registers.

One switch is a burst of 13 accesses a few cycles apart (read DR0-3, DR6 and DR7, turn DR7 off,
write DR0-3 and DR6, turn DR7 on), and between two bursts two other exits: the interrupt that causes
the next switch and its end-of-interrupt at the local APIC. Each vCPU has tasks of its own and
switches among them in turn; each task's breakpoints lie at addresses of its own, so that a register
of the wrong task, vCPU or host shows. With ``fetches`` a task runs into one right after the burst, with
``late_fetches`` just before the next: after other exits, and wherever its vCPU has been moved by then.

Every vCPU keeps the rate in its own guest time: its n-th switch begins at
floor(n * clock_hertz / switches_per_guest_second), and the sum of its gaps is that number exactly.
The first event of a switch takes what is left, so the rate holds whatever else a switch contains.
"""

from math import lcm
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_RESET
from exitlab.events import MAX_VCPUS, MMIO_WRITE, EventKind, Mark
from guest_svc.workloads.base import BadParameter, Parameter, Value
from guest_svc.workloads.breakpoints import (
    DR7_OFF,
    DR_SLOTS,
    LENGTH_CODES,
    ON_ACCESS,
    ON_EXECUTE,
    ON_WRITE,
    Breakpoint,
    dr7_of,
)
from guest_svc.workloads.tiling import Pattern, PatternTable, Segments, TiledWorkload, random_number

SEED_ACCESSES: Final = 13
ACCESS_GAP_CYCLES: Final = 20  # between two accesses of a burst
RETURN_CYCLES: Final = 200  # from the burst to the task's own code
EOI_CYCLES: Final = 600  # from an interrupt to its end-of-interrupt
TIMER_VECTOR: Final = 0xEC
LOCAL_APIC_EOI: Final = 0xFEE0_00B0
MAX_PATTERN_EVENTS: Final = 1_000_000

TASK_SPACE_BITS: Final = 20  # each task's addresses lie in a space of this size
CODE_BASE: Final = 0x5500_0000_0000
DATA_OFFSET: Final = 0x8_0000

# What a shorter burst leaves out, first to last: it keeps a usable breakpoint as long as it can.
_OMIT_ORDER: Final = ("r0", "r1", "r2", "r3", "r6", "r7", "off", "w3", "w2", "w1", "w6", "w0")
_BURST: Final = ("r0", "r1", "r2", "r3", "r6", "r7", "off", "w0", "w1", "w2", "w3", "w6", "on")


class ContextSwitch(TiledWorkload):
    """Tasks that switch, each with its own breakpoints."""

    name = "context-switch"
    summary = "every context switch saves and restores the debug registers, 13 accesses close together"
    parameters = (
        Parameter("switches", 20_000, "switches", "length of the run, all vCPUs together", 1, 10**12),
        Parameter("switches_per_guest_second", 51_500, "1/s", "of each vCPU, in guest time", 1, 10**8),
        Parameter("clock_hertz", 3_000_000_000, "Hz", "guest cycles in a guest second", 10**6, 10**10),
        Parameter(
            "accesses",
            SEED_ACCESSES,
            "MOV DR",
            "in each burst; fewer leave out reads, then DR7 off, then DR3, DR2, DR1, DR6, DR0; "
            "more read DR6 again in front",
            1,
            256,
        ),
        Parameter("other_exits", 2, "exits", "between bursts: interrupts, each followed by its EOI", 0, 256),
        Parameter("tasks", 2, "tasks", "of each vCPU, switched to in turn", 1, 64),
        Parameter("tasks_with_breakpoints", -1, "tasks", "the first so many; -1: all", -1, 64),
        Parameter(
            "breakpoints",
            -1,
            "breakpoints",
            "of each such task, in DR0 and up; -1: as many as the burst writes",
            -1,
            DR_SLOTS,
        ),
        Parameter("vcpus", 1, "vCPUs", "each with tasks of its own", 1, MAX_VCPUS),
        Parameter(
            "physical_cpus",
            0,
            "CPUs",
            "0: one for each vCPU, one more with migrate; fewer are shared in turns",
            0,
            MAX_VCPUS,
        ),
        Parameter("switches_per_slice", 20, "switches", "of a vCPU's turn on a shared CPU", 1, 10**9),
        Parameter(
            "migrate", 0, "switches", "after so many each vCPU moves on to another CPU; 0: no", 0, 10**9
        ),
        Parameter("fetches", False, "0 or 1", "each task then runs through its own breakpoint"),
        Parameter("late_fetches", False, "0 or 1", "it does so after the other exits and any move"),
        Parameter("handlers", False, "0 or 1", "a hit's handler reads and clears DR6; needs either"),
    )

    def __init__(self, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Build one pattern for each task of each vCPU, and those of the host's scheduler."""
        super().__init__(values, seed, events)
        self.vcpus = self.number("vcpus")
        self.tasks = self.number("tasks")
        self.clock_hertz = self.number("clock_hertz")
        self.default_steps = self.number("switches")
        self._operations = burst_operations(self.number("accesses"))
        self._resolve()
        self.pace = self.pace_of("switches_per_guest_second", self._least_cycles())
        switches = [self._switch(vcpu, task) for vcpu in range(self.vcpus) for task in range(self.tasks)]
        moves = self._moves()
        self._first_move = len(switches)
        self._move_count = len(moves)
        self.table = PatternTable([*switches, *moves])
        self.step_events = len(switches[0].rows)
        if moves:
            self.step_events += -(-max(len(move.rows) for move in moves) // self._switches_per_move)
        self._finish()

    def _resolve(self) -> None:
        """Fill in what depends on other parameters, and refuse what contradicts them."""
        used = self.parameters_used
        migrate = self.number("migrate")
        if self.number("tasks_with_breakpoints") < 0:
            used["tasks_with_breakpoints"] = self.tasks
        if self.number("tasks_with_breakpoints") > self.tasks:
            raise BadParameter(f"{self.name}: tasks_with_breakpoints is more than tasks={self.tasks}")
        written = sum(f"w{slot}" in self._operations for slot in range(DR_SLOTS))
        if self.number("breakpoints") < 0:
            used["breakpoints"] = written
        if self.number("breakpoints") > written:
            raise BadParameter(
                f"{self.name}: breakpoints={self.number('breakpoints')}: a burst of"
                f" accesses={self.number('accesses')} writes {written} addresses"
            )
        if used["handlers"] and not (used["fetches"] or used["late_fetches"]):
            raise BadParameter(
                f"{self.name}: handlers=1 needs fetches=1 or late_fetches=1, or nothing is ever hit"
            )
        if not self.number("physical_cpus"):
            used["physical_cpus"] = min(self.vcpus + (1 if migrate else 0), MAX_VCPUS)
        self.physical_cpus = self.number("physical_cpus")
        if migrate and self.physical_cpus < max(self.vcpus, 2):
            raise BadParameter(
                f"{self.name}: migrate needs physical_cpus of at least 2 and of vcpus={self.vcpus}"
            )
        events = self.vcpus * self.tasks * (self.number("accesses") + self.number("other_exits"))
        if events > MAX_PATTERN_EVENTS:
            raise BadParameter(
                f"{self.name}: vcpus * tasks * (accesses + other_exits) is {events}:"
                f" expected at most {MAX_PATTERN_EVENTS}"
            )
        self.initial_physical_cpus = tuple(vcpu % self.physical_cpus for vcpu in range(self.vcpus))

    def _least_cycles(self) -> int:
        interrupts, ends = self._other_exits()
        cycles = ACCESS_GAP_CYCLES * (len(self._operations) + interrupts) + EOI_CYCLES * ends
        fetches = sum(bool(self.parameters_used[name]) for name in ("fetches", "late_fetches"))
        return cycles + RETURN_CYCLES * fetches

    def _other_exits(self) -> tuple[int, int]:
        exits = self.number("other_exits")
        return (exits + 1) // 2, exits // 2

    # The guest.

    def _breakpoints(self, vcpu: int, task: int) -> dict[int, Breakpoint]:
        """Return the slots that a task uses: code in slot 0, data of seeded kinds in the others."""
        if task >= self.number("tasks_with_breakpoints"):
            return {}
        owner = vcpu * self.tasks + task
        space = CODE_BASE + (owner << TASK_SPACE_BITS)
        slots: dict[int, Breakpoint] = {}
        for slot in range(self.number("breakpoints")):  # a shorter burst leaves out the highest first
            draw = random_number(self.seed, owner * DR_SLOTS + slot)
            if slot == 0:
                slots[slot] = Breakpoint(space + 0x10 * (draw % 0x1000), ON_EXECUTE)
                continue
            length = list(LENGTH_CODES)[draw % len(LENGTH_CODES)]
            condition = (ON_WRITE, ON_ACCESS)[(draw >> 8) % 2]
            address = space + slot * DATA_OFFSET // DR_SLOTS + DATA_OFFSET + 8 * ((draw >> 16) % 0x1000)
            slots[slot] = Breakpoint(address, condition, length)
        return slots

    def _switch(self, vcpu: int, task: int) -> Pattern:
        """Return one switch to ``task``; its gaps add up to the fewest cycles of any switch, or less."""
        pattern = Pattern()
        slots = self._breakpoints(vcpu, task)
        if self.parameters_used["late_fetches"]:  # by the task that is switched from
            self._run_through(pattern, vcpu, self._breakpoints(vcpu, (task - 1) % self.tasks))
        for operation in self._operations:
            register = 7 if operation in ("off", "on") else int(operation[1])
            if operation.startswith("r"):
                pattern.add(EventKind.MOV_FROM_DR, register, vcpu=vcpu, gap_cycles=ACCESS_GAP_CYCLES)
                continue
            value = {"off": DR7_OFF, "w6": DR6_RESET, "on": dr7_of(slots)}.get(operation)
            if value is None:
                value = slots[register].address if register in slots else 0
            pattern.add(EventKind.MOV_TO_DR, register, vcpu=vcpu, gap_cycles=ACCESS_GAP_CYCLES, value=value)
        if self.parameters_used["fetches"]:
            self._run_through(pattern, vcpu, slots)
        interrupts, ends = self._other_exits()
        free_cycles = self.pace.least_cycles - pattern.cycles - EOI_CYCLES * ends
        for number in range(interrupts):
            pattern.add(
                EventKind.EXTERNAL_INTERRUPT,
                vcpu=vcpu,
                gap_cycles=free_cycles // (interrupts + 1),
                selector=TIMER_VECTOR,
            )
            if number < ends:
                pattern.add(
                    EventKind.MMIO, 4 | MMIO_WRITE, vcpu=vcpu, gap_cycles=EOI_CYCLES, selector=LOCAL_APIC_EOI
                )
        return pattern

    def _run_through(self, pattern: Pattern, vcpu: int, slots: dict[int, Breakpoint]) -> None:
        """Add the fetch that a task's own breakpoint hits, and the handler of that hit.

        A task without breakpoints runs through the address of the vCPU's first task, which must not
        hit. The handler takes no guest time, so that the rate holds where it does not run.
        """
        target = slots or self._breakpoints(vcpu, 0)
        address = target[0].address if 0 in target else CODE_BASE
        pattern.add(EventKind.FETCH, vcpu=vcpu, gap_cycles=RETURN_CYCLES, value=address)
        if self.parameters_used["handlers"]:
            pattern.add(EventKind.MOV_FROM_DR, 6, marks=Mark.IF_FAULT, vcpu=vcpu)
            pattern.add(EventKind.MOV_TO_DR, 6, marks=Mark.IF_FAULT, vcpu=vcpu, value=DR6_RESET)

    # The host's scheduler.

    def _moves(self) -> list[Pattern]:
        """Return what the host does between two placements of vCPUs, for a whole round of them."""
        self._switches_per_move = 0
        if self.physical_cpus < self.vcpus:
            self._switches_per_move = self.physical_cpus * self.number("switches_per_slice")
            self._cpu_vcpus = np.bincount(
                np.arange(self.vcpus) % self.physical_cpus, minlength=self.physical_cpus
            )
            round_moves = lcm(*self._cpu_vcpus.tolist())
        elif self.number("migrate"):
            self._switches_per_move = self.vcpus * self.number("migrate")
            round_moves = self.physical_cpus
        else:
            return []
        return [move_pattern(self._placed(n - 1), self._placed(n)) for n in range(round_moves)]

    def _placed(self, number: int) -> dict[int, int]:
        """Return the physical CPU of each vCPU that runs after move ``number``."""
        if self.physical_cpus < self.vcpus:
            turns = [int(number % vcpus) for vcpus in self._cpu_vcpus]
            return {cpu + self.physical_cpus * turn: cpu for cpu, turn in enumerate(turns)}
        return {vcpu: (vcpu + number) % self.physical_cpus for vcpu in range(self.vcpus)}

    # The stream.

    def _whose(self, switch: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the vCPU of each switch of the stream, and the switch's number on that vCPU."""
        if self.physical_cpus >= self.vcpus:
            return switch % self.vcpus, switch // self.vcpus
        on_cpu, cpu = np.divmod(switch, self.physical_cpus)
        slice_, in_slice = np.divmod(on_cpu, self.number("switches_per_slice"))
        turns_before, turn = np.divmod(slice_, self._cpu_vcpus[cpu])
        return cpu + self.physical_cpus * turn, turns_before * self.number("switches_per_slice") + in_slice

    def segments(self, start: int, stop: int) -> Segments:
        """Return the switches from ``start`` to ``stop``, the host's moves before those they precede."""
        switch = np.arange(start, stop)
        vcpu, number = self._whose(switch)
        patterns = vcpu * self.tasks + number % self.tasks
        extra = self.pace.cycles_of(number) - self.table.cycles[patterns]
        if self._move_count:
            at = np.flatnonzero((switch % self._switches_per_move == 0) & (switch > 0))
            moves = switch[at] // self._switches_per_move % self._move_count
            patterns = np.insert(patterns, at, self._first_move + moves)
            extra = np.insert(extra, at, 0)
        return Segments(patterns, extra)


def burst_operations(accesses: int) -> list[str]:
    """Return the accesses of a burst in order: ``r`` or ``w`` and a register, or DR7 ``off``, ``on``."""
    if accesses >= SEED_ACCESSES:
        return ["r6"] * (accesses - SEED_ACCESSES) + list(_BURST)
    omitted = _OMIT_ORDER[: SEED_ACCESSES - accesses]
    return [operation for operation in _BURST if operation not in omitted]


def move_pattern(before: dict[int, int], after: dict[int, int]) -> Pattern:
    """Return the host's events from one placement to the next: all leave before any enters."""
    pattern = Pattern()
    for vcpu, cpu in before.items():
        if after.get(vcpu) != cpu:
            pattern.add(EventKind.SCHED_OUT, vcpu=vcpu)
    for vcpu, cpu in after.items():
        if before.get(vcpu) != cpu:
            pattern.add(EventKind.SCHED_IN, vcpu=vcpu, selector=cpu)
    return pattern
