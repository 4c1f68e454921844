"""What a vector file says, in plain data: steps, what a guest sees of them, and what lanes add."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from exitlab.debugreg import DR6_RESET, DR7_RESET

_FOLDER: Final = Path(__file__).parent
SHIPPED: Final = tuple(
    _FOLDER / name for name in ("debugreg.json", "kvm_unit_tests.json", "selftest.json", "windows.json")
)

MOV_OPS: Final = frozenset({"mov_to_dr", "mov_from_dr"})
# What the guest executes: these have an address, are fetched, and can be stepped.
INSTRUCTIONS: Final = MOV_OPS | {
    *("nop", "cpuid", "in", "out", "ud2", "store", "load", "hlt", "rdmsr", "wrmsr", "vmcall", "wbinvd"),
    *("popf_tf", "popf_clr", "iret", "mov_ss", "pop_ss", "sti", "int1", "int3", "intn", "vmrun"),
}
# What happens to the guest from outside.
HAPPENINGS: Final = frozenset(
    {"interrupt", "nmi", "preemption_timer", "signal", "ept_violation", "vmexit_to_l1", "cr4_de"}
)
# What the host does.
CONTROLS: Final = frozenset(
    {"set_debugregs", "get_debugregs", "host_debugger", "host_breakpoints", "reset", "init"}
    | {"sched_out", "run_on"}
)
ALL_OPS: Final = INSTRUCTIONS | HAPPENINGS | CONTROLS

LaneName = tuple[str, str]
"""A policy's name and a vendor's."""


@dataclass(frozen=True, slots=True)
class NamedLanes:
    """A policy that a field names, and the only vendor that it names it for, if any."""

    field: str
    policy: str
    vendor: str | None


@dataclass(frozen=True, slots=True)
class Symbol:
    """An address that the layout decides: a step's instruction, or an offset into the data."""

    kind: str
    number: int


Operand = int | Symbol


@dataclass(frozen=True, slots=True)
class Registers:
    """DR0 to DR3, DR6 and DR7."""

    db: tuple[Operand, ...] = (0, 0, 0, 0)
    dr6: int = DR6_RESET
    dr7: int = DR7_RESET


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an operation, and what it needs; what an operation has no use for stays as it is here."""

    op: str
    register: int = 0
    operand: Operand = 0  # a value to write
    offset: int | None = None  # into the data; None without a memory operand
    size_bytes: int = 4
    selector: int = 0  # port, vector, MSR, physical CPU, reason or control flags
    registers: Registers | None = None  # that the host or a guest hypervisor hands over
    trap_flag: bool | None = None  # what an IRET loads; None for the flags that it was entered with
    vcpu: int = 0
    cpl: int = 0
    exit_class: int = 0
    has_set_up: bool = True


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception: vector, error code, where the saved RIP points, and DR6 and DR7 after.

    Of kind ``vmexit`` it is an exit of a nested guest to its hypervisor: no vector, ``dr6`` the cause of a
    debug exception (SVM: DR6), ``dr7`` the nested guest's as its hypervisor finds it.
    """

    vector: int | None
    error_code: int | None
    step: int
    where: str
    dr6: int
    dr7: int
    kind: str = "exc"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a guest sees of a vector: reads by step (``None`` where it faulted), exceptions, registers.

    ``digests`` are of the registers that the host reads, by step; ``others`` are the final registers of
    vCPUs other than 0.
    """

    reads: dict[int, int | None]
    raised: tuple[Raised, ...]
    registers: Registers
    digests: dict[int, Registers | int] = field(default_factory=dict)
    others: dict[int, Registers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector."""

    name: str
    is_real_mode: bool = False
    has_de: bool = False
    has_rtm: bool = False
    has_bus_lock: bool = False
    retries_general_detect: bool = False
    init: Registers | None = None
    steps: tuple[Step, ...] = ()
    expect: Seen = field(default_factory=lambda: Seen({}, (), Registers()))
    vendor: str | None = None  # the only one that it is about
    physical_cpus: tuple[int, ...] = (0,)  # that each vCPU starts on
    out: str | None = None  # why it is not run
    differs: Mapping[LaneName, Seen] = field(default_factory=dict)
    bills: Mapping[LaneName, Mapping[str, int]] = field(default_factory=dict)
    debug_exits: Mapping[LaneName, tuple[tuple[int, int, int], ...]] = field(default_factory=dict)
    named_lanes: tuple[NamedLanes, ...] = ()  # by the three fields above
    path: Path = Path()  # of the file that it is from
    row: int = 0

    @property
    def file(self) -> str:
        """What people call its file: a shipped one by its name alone."""
        return self.path.name if self.path in SHIPPED else str(self.path)

    def expected(self, lane: LaneName) -> Seen:
        """Return what a guest sees under a lane."""
        return self.differs.get(lane, self.expect)
