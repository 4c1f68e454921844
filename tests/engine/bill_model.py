"""A second bill: what each event costs, from the tables that describe the hypervisors, slowly.

It shares neither table nor loop with the engine. The ladder is the one of the design: a vCPU comes down
only when its next event needs the guest, whoever holds its physical CPU gives way first, and an entry
belongs to the exit before it. ``hypervisors`` says what each hypervisor does on the way.

What a guest sees is not this model's business: it asks the second model. So a wrong hypervisor may be
given only streams on which its mistakes cannot change what exits.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from exitlab.events import EventColumns, EventKind, Mark
from exitlab.exit_reasons import SVM_EXIT_REASONS, VMX_EXIT_REASONS
from exitlab.v1 import report_pb2
from tests.engine.build import EXIT, HOST, KICK, SIGNAL, START, SVM, VENDOR_WORDS, VMX, Counts, counts, total
from tests.model.second_model import MOV_DR, Event, SecondModel, Story, events_of
from tests.model.streams import Mix

FAST: Final = 1
LIGHT: Final = 2
HEAVY: Final = 3
OUT_OF_SESSION: Final = 3
NOT_RESIDENT: Final = 4

# Names on VMX and SVM of the exits that events cause, from the VM profile.
NAMES: Final = {
    EventKind.CPUID: ("CPUID", "cpuid"),
    EventKind.HLT: ("HLT", "hlt"),
    EventKind.IN: ("IO_INSTRUCTION", "io"),
    EventKind.OUT: ("IO_INSTRUCTION", "io"),
    EventKind.INS: ("IO_INSTRUCTION", "io"),
    EventKind.OUTS: ("IO_INSTRUCTION", "io"),
    EventKind.VMCALL: ("VMCALL", "hypercall"),
    EventKind.XSETBV: ("XSETBV", "xsetbv"),
    EventKind.WBINVD: ("WBINVD", "wbinvd"),
    EventKind.INVD: ("INVD", "invd"),
    EventKind.MONITOR: ("MONITOR_INSTRUCTION", "monitor"),
    EventKind.MWAIT: ("MWAIT_INSTRUCTION", "mwait"),
    EventKind.RDPMC: ("RDPMC", "rdpmc"),
    EventKind.RDMSR: ("MSR_READ", "msr"),
    EventKind.WRMSR: ("MSR_WRITE", "msr"),
    EventKind.MMIO: ("EPT_VIOLATION", "npf"),
    EventKind.EPT_VIOLATION: ("EPT_VIOLATION", "npf"),
    EventKind.EXTERNAL_INTERRUPT: ("EXTERNAL_INTERRUPT", "interrupt"),
    EventKind.NMI: ("EXCEPTION_NMI", "nmi"),
    EventKind.PREEMPTION_TIMER: ("PREEMPTION_TIMER", "interrupt"),
    EventKind.VMRUN: ("VMLAUNCH", "vmrun"),
    EventKind.MOV_TO_CR: ("CR_ACCESS", "write_cr{arg}"),
    EventKind.MOV_TO_DR: ("DR_ACCESS", "write_dr{arg}"),
    EventKind.MOV_FROM_DR: ("DR_ACCESS", "read_dr{arg}"),
}
EXCEPTION_NAMES: Final = {1: "DB excp", 6: "UD excp", 17: "AC excp", 18: "MC excp"}
PASSED_MSRS: Final = {0xC000_0100, 0xC000_0101, 0xC000_0102, 0x174, 0x175, 0x176, 0x10, 0x48, 0x49}
SUB_REASON_OF_MSR: Final = {0x6E0: 1, 0x830: 2}
HEAVY_KINDS: Final = {EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS}
NUMBERS: Final = (
    {name: number for number, name in VMX_EXIT_REASONS.items()},
    {name: number for number, name in SVM_EXIT_REASONS.items()},
)
VECTOR_OF: Final[dict[int, int]] = {Story.UD: 6, Story.GP: 13, Story.DB_FAULT: 1, Story.DB_TRAP: 1}
NOTHING: Final = Counts()
NO_EVENT: Final = Event(0)


class Key(NamedTuple):
    """What a row of the bill stands for."""

    account: int
    reason: int = 0
    sub_reason: int = 0
    exit_class: int = 0


class BillRow(NamedTuple):
    """A row of the bill with its operations."""

    key: Key
    synchronization: Counts
    standing: Counts


@dataclass(slots=True)
class Cpu:
    """One physical CPU."""

    resident: int | None = None
    has_host_breakpoints: bool = False


@dataclass(slots=True)
class Vcpu:
    """One vCPU as its hypervisor has it."""

    home: int
    on: int | None = None
    rung: int = NOT_RESIDENT
    window: str = "closed"  # or opening, open
    believes: bool = False  # that the guest's DR7 enables a breakpoint
    pending: Key | None = field(default_factory=lambda: Key(START))
    synchronization: list[Counts] = field(default_factory=list)
    standing: list[Counts] = field(default_factory=list)
    executed: int = 0
    trapped: int = 0
    windows: int = 0
    free: int = 0  # accesses in the open window
    exits: Counter[int] = field(default_factory=Counter)  # by class


@dataclass(slots=True)
class At:
    """What a hypervisor is asked about."""

    vcpu: Vcpu
    cpu: Cpu
    dr7: int  # as the guest has it
    event: Event = NO_EVENT
    story: int = Story.NOTHING

    @property
    def enables(self) -> bool:
        """Whether the guest's DR7 enables a breakpoint."""
        return self.dr7 & 0xFF != 0


class BillModel:
    """The bill of a hypervisor that never intercepts and never switches; others override what they do."""

    intercepts = False
    catches_db = False
    has_fast_exits = False
    restores_host_leaving: int | None = None  # this rung
    at: At

    def __init__(self, mix: Mix, *, is_svm: bool) -> None:
        """Start as after power-up."""
        self.is_svm = is_svm
        self.cpus = [Cpu() for _ in range(mix.physical_cpus)]
        self.vcpus = [Vcpu(home) for home in mix.initial_physical_cpus]
        self.bill: Counter[BillRow] = Counter()
        self.sizes: Counter[int] = Counter()
        self._staged_dr7 = [0] * mix.vcpus
        vendor = VENDOR_WORDS[SVM if is_svm else VMX]
        self._guests = SecondModel(mix.vcpus, vendor, mix.rtm, mix.bus_lock, mix.computed)

    # What a hypervisor does, about what ``self.at`` holds; each returns operations.

    def enters_loop(self) -> Counts:
        """Before the run loop."""
        return NOTHING

    def enters_guest(self) -> Counts:
        """At each entry."""
        return NOTHING

    def leaves_guest(self) -> Counts:
        """At each exit."""
        return NOTHING

    def closes_window(self) -> Counts:
        """When the run loop is left with the window open."""
        return NOTHING

    def answers_mov_dr(self) -> tuple[Counts, bool]:
        """For a trapped MOV DR, and whether it then runs natively."""
        raise NotImplementedError

    def takes_over(self) -> Counts | None:
        """When registers are set from outside; None where nobody notices."""
        return None

    # The ladder.

    def enter(self, number: int) -> None:
        """Bring a vCPU into the guest."""
        vcpu = self.vcpus[number]
        if vcpu.rung < NOT_RESIDENT and vcpu.on != vcpu.home:
            self.climb(number, NOT_RESIDENT)
        cpu = self.cpus[vcpu.home]
        if vcpu.rung == NOT_RESIDENT:
            if cpu.resident is not None:
                self.climb(cpu.resident, NOT_RESIDENT)
            cpu.resident, vcpu.on, vcpu.rung = number, vcpu.home, OUT_OF_SESSION
        self._look(number, cpu)
        if vcpu.rung >= LIGHT:
            side = vcpu.synchronization if vcpu.window == "opening" else vcpu.standing
            side.append(self.enters_loop())
            vcpu.rung = FAST
        if vcpu.rung == FAST:
            vcpu.standing.append(self.enters_guest())
            vcpu.rung = 0
            if vcpu.window == "opening":
                vcpu.window, vcpu.free = "open", 0
                vcpu.windows += 1
            self._settle(vcpu)

    def climb(self, number: int, target: int, key: Key | None = None) -> None:
        """Take a vCPU up to ``target``: out of the guest by ``key``, or by a kick."""
        vcpu = self.vcpus[number]
        cpu = self.cpus[vcpu.home if vcpu.on is None else vcpu.on]
        self._look(number, cpu)
        if vcpu.rung == 0:
            vcpu.pending = key or Key(EXIT, self._number(EventKind.EXTERNAL_INTERRUPT), KICK, LIGHT)
            if vcpu.pending.account == EXIT:
                vcpu.exits[vcpu.pending.exit_class] += 1
            vcpu.standing.append(self.leaves_guest())
            self._restore_host(vcpu, cpu, rung=0)
            vcpu.rung = FAST
        if vcpu.rung == FAST and target > FAST:
            if vcpu.window == "open":
                vcpu.synchronization.append(self.closes_window())
                vcpu.window = "closed"
                self.sizes[vcpu.free] += 1
            self._restore_host(vcpu, cpu, rung=FAST)
            vcpu.rung = LIGHT
        vcpu.rung = max(vcpu.rung, target)
        if vcpu.rung == NOT_RESIDENT and vcpu.on is not None:
            cpu.resident, vcpu.on = None, None

    def _look(self, number: int, cpu: Cpu) -> None:
        self.at = At(self.vcpus[number], cpu, self._guests.registers(number).dr7)

    def _restore_host(self, vcpu: Vcpu, cpu: Cpu, rung: int) -> None:
        if cpu.has_host_breakpoints and self.restores_host_leaving == rung:
            vcpu.standing.append(Counts(writes=6))

    def _settle(self, vcpu: Vcpu) -> None:
        if vcpu.pending is not None:
            self.bill[BillRow(vcpu.pending, total(vcpu.synchronization), total(vcpu.standing))] += 1
        vcpu.pending, vcpu.synchronization, vcpu.standing = None, [], []

    # What exits.

    def _number(self, kind: EventKind, arg: int = 0) -> int:
        return NUMBERS[self.is_svm][NAMES[kind][self.is_svm].format(arg=arg)]

    def _is_fast(self, kind: EventKind, sub_reason: int) -> bool:
        if not self.has_fast_exits:
            return False
        return sub_reason in (1, 2) or (kind == EventKind.PREEMPTION_TIMER and not self.is_svm)

    def _exit(self, event: Event) -> Key | None:
        """Return the exit that an event always causes."""
        kind, sub_reason = EventKind(event.kind), 0
        if kind == EventKind.SIGNAL:
            return Key(SIGNAL, exit_class=HEAVY)
        if kind == EventKind.EXIT:
            return self._recorded_exit(event.selector)
        if kind in MOV_DR or kind not in NAMES:
            return None
        if kind == EventKind.MOV_TO_CR and event.arg not in (0, 4):
            return None
        if kind in (EventKind.RDMSR, EventKind.WRMSR):
            if event.selector in PASSED_MSRS:
                return None
            sub_reason = SUB_REASON_OF_MSR.get(event.selector, 0) if kind == EventKind.WRMSR else 0
        exit_class = HEAVY if kind in HEAVY_KINDS else LIGHT
        if kind == EventKind.MMIO:
            is_apic = 0xFEE0_0000 <= event.selector < 0xFEE0_1000
            sub_reason, exit_class = (3, LIGHT) if is_apic else (5, HEAVY)
        if self._is_fast(kind, sub_reason):
            exit_class = FAST
        return Key(EXIT, self._number(kind, event.arg), sub_reason, exit_class)

    def _recorded_exit(self, reason: int) -> Key:
        exit_class = LIGHT
        if reason == self._number(EventKind.IN):
            exit_class = HEAVY
        elif reason == NUMBERS[0]["PREEMPTION_TIMER"] and self._is_fast(EventKind.PREEMPTION_TIMER, 0):
            exit_class = FAST
        return Key(EXIT, reason, 0, exit_class)

    def _exception(self, vector: int) -> Key | None:
        """Return the exit that an exception causes."""
        if vector not in EXCEPTION_NAMES or (vector == 1 and not self.catches_db):
            return None
        name = EXCEPTION_NAMES[vector] if self.is_svm else "EXCEPTION_NMI"
        return Key(EXIT, NUMBERS[self.is_svm][name], 0, LIGHT)

    def _leave(self, event: Event, key: Key | None, *, is_answered: bool = False) -> None:
        """Exit by ``key``, in the class that the event names unless a policy answers it."""
        if key is None:
            return
        override = event.marks >> 6
        if override and not is_answered:
            key = key._replace(exit_class=override)
        self.climb(event.vcpu, key.exit_class, key)

    # Events.

    def take(self, event: Event) -> None:
        """Let one event happen."""
        told = self._guests.take(event)
        if told.story == Story.NOT_TAKEN or event.kind in (EventKind.ADVANCE, EventKind.STATE):
            return
        if event.kind >= EventKind.SCHED_OUT:
            self._host(event)
            return
        self.enter(event.vcpu)
        if event.kind in MOV_DR:
            self._mov_dr(event, told.story)
        elif event.kind == EventKind.EXCEPTION:
            self._leave(event, self._exception(event.selector), is_answered=True)
        elif told.story in VECTOR_OF:
            self._leave(event, self._exception(1), is_answered=True)
        else:
            self._leave(event, self._exit(event))

    def _mov_dr(self, event: Event, story: int) -> None:
        vcpu = self.vcpus[event.vcpu]
        vcpu.executed += 1
        raises_first = self.is_svm and (
            story in (Story.UD, Story.DB_FAULT) or bool(story and event.modes & 3)
        )
        raises_first = raises_first and story in VECTOR_OF
        if self.intercepts and vcpu.window == "closed" and not raises_first:
            vcpu.trapped += 1
            reason = self._number(EventKind(event.kind), event.arg)
            self._leave(event, Key(EXIT, reason, 0, LIGHT), is_answered=True)
            self.at.event, self.at.story = event, story
            operations, opens = self.answers_mov_dr()
            (vcpu.synchronization if opens else vcpu.standing).append(operations)
            if not opens:
                return
            vcpu.window = "opening"
            if event.marks & Mark.NOT_RETIRED:
                return
            self.enter(event.vcpu)
        if story in VECTOR_OF:
            self._leave(event, self._exception(VECTOR_OF[story]), is_answered=True)
        elif vcpu.window == "open" and not event.marks & Mark.NOT_RETIRED:
            vcpu.free += 1

    def _host(self, event: Event) -> None:
        vcpu = self.vcpus[event.vcpu]
        if event.kind == EventKind.STAGE:
            if event.arg == 5:
                self._staged_dr7[event.vcpu] = event.value
        elif event.kind == EventKind.SCHED_OUT:
            self.climb(event.vcpu, OUT_OF_SESSION)
        elif event.kind == EventKind.SCHED_IN:
            if event.selector != vcpu.home:
                self.climb(event.vcpu, OUT_OF_SESSION)
            vcpu.home = event.selector
        elif event.kind == EventKind.HOST_BREAKPOINTS:
            cpu = self.cpus[event.selector]
            if cpu.resident is not None:
                self.climb(cpu.resident, OUT_OF_SESSION)
            cpu.has_host_breakpoints = self._staged_dr7[event.vcpu] & 0xFF != 0
            self._staged_dr7[event.vcpu] = 0
        else:
            self.climb(event.vcpu, OUT_OF_SESSION)
            if event.kind == EventKind.SET_DEBUGREGS:
                self._staged_dr7[event.vcpu] = 0
            operations = self.takes_over()
            if operations is not None:
                self.bill[BillRow(Key(HOST), NOTHING, operations)] += 1

    def run(self, events: EventColumns) -> None:
        """Let a stream happen; exits without an entry after them are billed at the end."""
        for event in events_of(events):
            self.take(event)
        for vcpu in self.vcpus:
            if vcpu.pending != Key(START):
                self._settle(vcpu)


def bill_of(lane: report_pb2.LaneReport) -> Counter[BillRow]:
    """Return a lane's bill in this model's words."""
    bill: Counter[BillRow] = Counter()
    for row in lane.patterns:
        key = Key(row.account, row.reason, row.sub_reason, row.exit_class)
        bill[BillRow(key, counts(row.synchronization), counts(row.standing))] += row.count
    return bill
