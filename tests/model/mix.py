"""Which groups of events a random stream has.

======================  =========================================================================
group of ``Mix``        what it adds, and what that exercises
======================  =========================================================================
(always)                single MOV DRs to any register; breakpoints armed in bursts; whole context
                        switches of 13 accesses; RTM, bus-lock and reserved bits in DR6 and DR7
computed = True         FETCH, READ and WRITE of 1 to 64 bytes at and around armed addresses, also
                        over the end of the address space: every R/W and LEN, disabled matches
computed = False        recorded #DB with and without its DR6, #UD, #GP and #PF; reads that carry
                        their recorded value, one in eight of them wrong
exits                   CPUID, HLT with the interrupt that ends it, IN, OUT, WRMSR 0x6E0 and 0x830,
                        WRMSR of another, EXTERNAL_INTERRUPT, MOV to CR0, CR3: windows close
class_override          class bits 1 to 3 on those exits
general_detect          GD in some DR7 values: #DB before the access, GD cleared by every #DB
high_bits               bits 63:32 in values for DR4 to DR7: #GP, unless an earlier check fails
user_mode               CPL 3 for some MOV DRs and accesses
operand_32              32-bit operands for some MOV DRs: no high bits, low halves read
debug_extensions        CR4.DE by MOV to CR4 (also of an unknown value) and by STATE: DR4, DR5 #UD
handlers                IF_FAULT and IF_OK after an attempt, other events in between
retired                 MOV DRs that are known to have retired, whatever the checks say
resume_flag             RF in the modes of some fetches: no instruction breakpoint
outside                 STAGE with SET_DEBUGREGS, RESET, INIT
partial_stage           host controls with operands left out, which are zero; off by default
host                    STAGE with HOST_BREAKPOINTS on a physical CPU, on and off
scheduling              SCHED_OUT; SCHED_IN on the same or another physical CPU
kicks                   vCPUs take a shared CPU from each other, or move, without SCHED_OUT
======================  =========================================================================

The rest is off by default; ``Mix.everything`` turns it on. All but ``reading``, ``debug_control`` and
``not_retired`` is there only where breakpoints are computed.

======================  =========================================================================
steps                   runs of instructions with TF on the last event of each, from a POPF to a
                        POPF or an IRET: steps alone, with data breakpoints, after faults none
software_interrupts     INT1, INT3, INTN; EXCEPTION of #UD, #GP and #PF
mov_ss                  MOV_SS with and without a memory operand that is watched, then a fetch and an
                        instruction of any kind: held hits; STI; the interrupt shadow's mode bit
io_breakpoints          IN, OUT, INS and OUTS of 1, 2 and 4 bytes around slots of R/W 10, with CR4.DE
                        (set by STATE) and without
debugger                HOST_DEBUGGER with every control bit, the debugger's DR0 to DR3 and DR7 staged;
                        the guest goes on under it, and is let go; a host that changes one thing after
                        another
reading                 GET_DEBUGREGS
nested                  VMRUN with every set of controls, also inside a nested guest; any guest scene
                        inside; VMEXIT_TO_L1, also where the nested guest was left already
debug_control           RDMSR and WRMSR of DEBUGCTL, some of an unknown value, between all else and in
                        nested guests; recorded reads carry their value, one in eight a wrong one
not_retired             MOV DRs that exit and do not retire, for the host takes over: whatever it does then
======================  =========================================================================

With ``scheduling`` or ``kicks`` the vCPUs share ``cpus`` physical CPUs and start on those that
``Mix.initial_physical_cpus`` names; with neither each has its own. Without ``kicks`` a vCPU runs
only when no other is on its CPU. A guest's own event never follows its SCHED_OUT without SCHED_IN.
A fetch, access or exception of a stream is never conditional (but for the end of a MOV from a debug
register that is stepped), and its lengths are never zero.

A nested guest is never entered or left in the shadow of a MOV SS; VMX refuses the first. While it runs the
host leaves registers and debugger alone. As the vendors leave nested guests at different events, a stream
keeps to that on each of ``Mix.vendors``.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from exitlab.events import EventKind

from .second_model import VENDORS

ALWAYS: Final = frozenset({EventKind.MOV_TO_DR, EventKind.MOV_FROM_DR})
ACCESSES: Final = frozenset({EventKind.FETCH, EventKind.READ, EventKind.WRITE})
EXITS: Final = frozenset(
    {
        EventKind.CPUID,
        EventKind.HLT,
        EventKind.IN,
        EventKind.OUT,
        EventKind.WRMSR,
        EventKind.EXTERNAL_INTERRUPT,
        EventKind.MOV_TO_CR,
    }
)
DEBUG_CONTROL: Final = frozenset({EventKind.RDMSR, EventKind.WRMSR})
OUTSIDE: Final = frozenset({EventKind.STAGE, EventKind.SET_DEBUGREGS, EventKind.RESET, EventKind.INIT})
SCHEDULING: Final = frozenset({EventKind.SCHED_OUT, EventKind.SCHED_IN})
STEPS: Final = frozenset({EventKind.POPF, EventKind.IRET})
INTERRUPTS: Final = frozenset({EventKind.INT1, EventKind.INT3, EventKind.INTN, EventKind.EXCEPTION})
SHADOWS: Final = frozenset({EventKind.MOV_SS, EventKind.STI})
PORTS: Final = frozenset({EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS, EventKind.STATE})
DEBUGGER: Final = frozenset({EventKind.STAGE, EventKind.HOST_DEBUGGER})
NESTED: Final = frozenset({EventKind.STAGE, EventKind.VMRUN, EventKind.VMEXIT_TO_L1})


@dataclass(frozen=True, slots=True)
class Mix:
    """Which groups occur, on how many vCPUs and physical CPUs; the module's tables explain them."""

    vcpus: int = 3
    cpus: int = 2
    computed: bool = True
    exits: bool = True
    class_override: bool = True
    general_detect: bool = True
    high_bits: bool = True
    user_mode: bool = True
    operand_32: bool = True
    debug_extensions: bool = True
    handlers: bool = True
    retired: bool = True
    resume_flag: bool = True
    outside: bool = True
    partial_stage: bool = False
    host: bool = True
    scheduling: bool = True
    kicks: bool = True
    steps: bool = False
    software_interrupts: bool = False
    mov_ss: bool = False
    io_breakpoints: bool = False
    debugger: bool = False
    reading: bool = False
    nested: bool = False
    debug_control: bool = False
    not_retired: bool = False
    rtm: bool = False  # rtm and bus_lock matter to recorded values only
    bus_lock: bool = False
    vendors: tuple[str, ...] = VENDORS  # on which the stream has a meaning

    @classmethod
    def everything(cls, *vendors: str) -> "Mix":
        """Return the mix of all groups, on CPUs without RTM and bus-lock detection."""
        return cls(
            partial_stage=True,
            steps=True,
            software_interrupts=True,
            mov_ss=True,
            io_breakpoints=True,
            debugger=True,
            reading=True,
            nested=True,
            debug_control=True,
            not_retired=True,
            vendors=vendors or VENDORS,
        )

    def switched(self, is_on: bool, *groups: str) -> "Mix":
        """Return this mix with groups on or off."""
        choices: dict[str, Any] = dict.fromkeys(groups, is_on)
        return replace(self, **choices)

    @property
    def effective(self) -> "Mix":
        """Return this mix without what needs breakpoints to be computed where they are not."""
        if self.computed:
            return self
        return replace(
            self,
            steps=False,
            software_interrupts=False,
            mov_ss=False,
            io_breakpoints=False,
            debugger=False,
            nested=False,
        )

    @property
    def physical_cpus(self) -> int:
        """Return the number of physical CPUs that the vCPUs share."""
        return min(self.cpus, self.vcpus) if self.scheduling or self.kicks else self.vcpus

    @property
    def initial_physical_cpus(self) -> tuple[int, ...]:
        """Return the physical CPU that each vCPU starts on."""
        return tuple(vcpu % self.physical_cpus for vcpu in range(self.vcpus))

    @property
    def kinds(self) -> frozenset[EventKind]:
        """Return the kinds of event that can occur."""
        mix = self.effective
        groups = [
            (True, ALWAYS),
            (True, ACCESSES if mix.computed else frozenset({EventKind.EXCEPTION})),
            (mix.exits, EXITS),
            (mix.debug_extensions, frozenset({EventKind.MOV_TO_CR, EventKind.STATE})),
            (mix.debug_control, DEBUG_CONTROL),
            (mix.outside, OUTSIDE),
            (mix.host, frozenset({EventKind.STAGE, EventKind.HOST_BREAKPOINTS})),
            (mix.scheduling, SCHEDULING),
            (mix.kicks, frozenset({EventKind.SCHED_IN})),
            (mix.steps, STEPS),
            (mix.software_interrupts, INTERRUPTS),
            (mix.mov_ss, SHADOWS),
            (mix.io_breakpoints, PORTS),
            (mix.debugger, DEBUGGER),
            (mix.reading, frozenset({EventKind.GET_DEBUGREGS})),
            (mix.nested, NESTED),
        ]
        return frozenset(kind for is_on, kinds in groups if is_on for kind in kinds)
