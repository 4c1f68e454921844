"""What a policy is: a short object that answers, at each moment, with micro-actions.

A policy overrides the methods of the moments at which it acts. Each receives ``sees``, what the
policy believes and the host can see, and returns ``do(...)`` or None for nothing. The answers must
depend on nothing else, for the policy is *tabulated* once: asked for every state that it tells apart.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from exitlab import debugreg
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.profile import ClassRule
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.vocabulary import (
    INPUT_SIZES,
    NO_OPERATIONS,
    SHOWN_INPUTS,
    Action,
    Check,
    Control,
    Debugger,
    Deviation,
    Input,
    Moment,
    Operations,
    Quirk,
    RegisterClass,
)

VMX: Final = policy_pb2.VENDOR_VMX
SVM: Final = policy_pb2.VENDOR_SVM
Vendor: TypeAlias = policy_pb2.Vendor.ValueType


class NoMemory(IntEnum):
    """The memory of a policy that remembers nothing."""

    NOTHING = 0


@dataclass(frozen=True, slots=True)
class Do:
    """An answer: micro-actions, and the next memory or None to keep it."""

    actions: frozenset[Action]
    memory: IntEnum | None = None


def do(*actions: Action | Iterable[Action], memory: IntEnum | None = None) -> Do:
    """Return an answer; groups of actions may be given as iterables. Order does not matter."""
    flat: set[Action] = set()
    for action in actions:
        flat.update((action,) if isinstance(action, Action) else action)
    return Do(frozenset(flat), memory)


@dataclass(frozen=True, slots=True)
class Declared:
    """A deviation from the architecture that a policy declares."""

    rule: Deviation
    text: str
    source: str


class PolicyError(ValueError):
    """A policy that cannot be tabulated; the message names it, the moment and the input."""


class _Asked(Exception):  # a question, not an error
    def __init__(self, wanted: Input) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Sees:
    """What a policy can see at a moment; asking for what is not shown there is a PolicyError."""

    def __init__(self, policy: "Policy", moment: Moment, values: dict[Input, int]) -> None:
        """Hold the known ``values``; a further one raises the question to the tabulator."""
        self._policy = policy
        self._moment = moment
        self._values = values

    def _get(self, wanted: Input) -> int:
        if wanted in self._values:
            return self._values[wanted]
        if wanted not in SHOWN_INPUTS[self._moment]:
            message = f"{self._policy.name}: {self._moment.name} does not show {wanted.name.lower()}"
            raise PolicyError(message)
        raise _Asked(wanted)

    @property
    def memory(self) -> int:
        """The policy's own memory."""
        return self._get(Input.MEMORY)

    @property
    def breakpoints_enabled(self) -> bool:
        """The belief that the effective DR7 enables a breakpoint; changed by RECOMPUTE only."""
        return bool(self._get(Input.BREAKPOINTS_ENABLED))

    @property
    def debugger(self) -> Debugger:
        """What the host's debugger does with this vCPU."""
        return Debugger(self._get(Input.DEBUGGER))

    @property
    def host_breakpoints(self) -> bool:
        """Whether the host uses breakpoints on this physical CPU."""
        return bool(self._get(Input.HOST_BREAKPOINTS))

    @property
    def shadow_enables(self) -> bool:
        """Whether the shadow DR7 enables a breakpoint; it may be stale."""
        return bool(self._get(Input.SHADOW_ENABLES))

    @property
    def shadow_has_gd(self) -> bool:
        """Whether the shadow DR7 has general detect; it may be stale."""
        return bool(self._get(Input.SHADOW_HAS_GD))

    @property
    def moved(self) -> bool:
        """Whether this physical CPU is not the one of the vCPU's last load."""
        return bool(self._get(Input.MOVED))

    @property
    def debug_controls_at_reset(self) -> bool:
        """Whether the next entry would load what the host has there: DR7 0x400 and DEBUGCTL 0."""
        return bool(self._get(Input.DEBUG_CONTROLS_AT_RESET))

    @property
    def check(self) -> Check:
        """At DR_TRAPPED: the first check that fails, in the policy's own order."""
        return Check(self._get(Input.CHECK))

    @property
    def is_write(self) -> bool:
        """At DR_TRAPPED: whether it is a MOV to the register."""
        return bool(self._get(Input.IS_WRITE))

    @property
    def register_class(self) -> RegisterClass:
        """At DR_TRAPPED: which register is named."""
        return RegisterClass(self._get(Input.REGISTER_CLASS))

    @property
    def would_enable(self) -> bool:
        """At DR_TRAPPED: whether the DR7 value written enables a breakpoint."""
        return bool(self._get(Input.WOULD_ENABLE))

    @property
    def control(self) -> Control:
        """At CONTROL_CHANGED: what changed."""
        return Control(self._get(Input.CONTROL))


class Policy:
    """A debug-register policy; subclass it and override the moments at which it acts."""

    name: str = ""
    vendor: Vendor = VMX
    summary: str = ""
    source: str = ""
    claims_correct: bool = True
    memories: type[IntEnum] = NoMemory
    initially_armed: bool = True
    check_order: tuple[Check, ...] = (Check.UD, Check.GP, Check.GD)
    intercepted_exceptions: tuple[int, ...] = ()
    class_rules: tuple[ClassRule, ...] = ()
    trap_operations: Operations = NO_OPERATIONS
    costs: Mapping[Action, Operations] = MappingProxyType({})
    emulated_dr6_writable: int = debugreg.DR6_WRITABLE
    emulated_dr6_fixed: int = debugreg.DR6_RESET
    emulated_dr7_writable: int = debugreg.DR7_WRITABLE
    quirks: Quirk = Quirk(0)
    deviations: tuple[Declared, ...] = ()
    unintercepted_accesses: int = 0  # bit n: reads of DRn, bit n + 8: writes
    cluster_gap_cycles: int = 0  # largest gap to a next MOV DR that STAY still emulates
    cluster_accesses: int = 0  # most accesses in one exit; 0 for no limit
    refuses_set_debugregs: bool = False
    refuses_debugger: bool = True
    refuses_host_breakpoints: bool = False
    supports_nesting: bool = False

    def gain_residence(self, sees: Sees) -> Do | None:
        """Answer when the vCPU becomes resident on a physical CPU."""

    def enter_session(self, sees: Sees) -> Do | None:
        """Answer when the run session is entered."""

    def enter_loop(self, sees: Sees) -> Do | None:
        """Answer when the inner run loop is entered."""

    def enter_guest(self, sees: Sees) -> Do | None:
        """Answer at each VM entry, fast re-entry included."""

    def leave_guest(self, sees: Sees) -> Do | None:
        """Answer at each VM exit."""

    def leave_loop(self, sees: Sees) -> Do | None:
        """Answer when the inner run loop is left."""

    def leave_session(self, sees: Sees) -> Do | None:
        """Answer when the run session is left."""

    def lose_residence(self, sees: Sees) -> Do | None:
        """Answer when another vCPU takes the physical CPU or this one runs elsewhere."""

    def scheduled_in(self, sees: Sees) -> Do | None:
        """Answer when the host schedules the vCPU in."""

    def scheduled_out(self, sees: Sees) -> Do | None:
        """Answer when the host schedules the vCPU out."""

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Answer a MOV DR that trapped."""

    def db_exit(self, sees: Sees) -> Do | None:
        """Answer a debug exception that caused an exit."""

    def control_changed(self, sees: Sees) -> Do | None:
        """Answer a change of the guest's debug state from outside."""


def _asked_inputs(policy: Policy, moment: Moment, answer: Callable[[Sees], Do | None]) -> list[Input]:
    """Return the inputs that the answer can depend on, found by asking as far as it asks."""
    asked: set[Input] = set()
    states: list[dict[Input, int]] = [{}]
    while states:
        values = states.pop()
        try:
            answer(Sees(policy, moment, values))
        except _Asked as question:
            asked.add(question.wanted)
            size = len(policy.memories) if question.wanted is Input.MEMORY else INPUT_SIZES[question.wanted]
            states.extend({**values, question.wanted: value} for value in range(size))
    return sorted(asked)


def _moment_table(policy: Policy, moment: Moment, actions: list[Action]) -> policy_pb2.MomentTable | None:
    answer: Callable[[Sees], Do | None] = getattr(policy, moment.name.lower())
    inputs = _asked_inputs(policy, moment, answer)
    sizes = [len(policy.memories) if wanted is Input.MEMORY else INPUT_SIZES[wanted] for wanted in inputs]
    rows = policy_pb2.MomentTable(
        moment=policy_pb2.Moment.ValueType(moment + 1),
        inputs=[wanted.name.lower() for wanted in inputs],
        sizes=sizes,
    )
    memory = bytearray()
    for state in itertools.product(*(range(size) for size in sizes)):
        done = answer(Sees(policy, moment, dict(zip(inputs, state, strict=True))))
        done = done or Do(frozenset())
        rows.actions.append(sum(1 << actions.index(action) for action in done.actions))
        memory.append(KEEP_MEMORY if done.memory is None else done.memory)
    rows.next_memory = bytes(memory)
    does_something = any(rows.actions) or any(value != KEEP_MEMORY for value in memory)
    return rows if does_something else None


def operation_counts(operations: Operations) -> policy_pb2.OperationCounts:
    """Return operations as the contract's message."""
    return policy_pb2.OperationCounts(
        dr_reads=operations.dr_reads,
        dr_writes=operations.dr_writes,
        vmreads=operations.vmreads,
        vmwrites=operations.vmwrites,
        msr_accesses=operations.msr_accesses,
    )


def tabulate(policy: Policy) -> policy_pb2.PolicyTable:
    """Return the policy as data.

    Raises:
        PolicyError: the policy asks for an input that a moment does not show.

    """
    actions = list(Action)
    moments = (_moment_table(policy, moment, actions) for moment in Moment)
    return policy_pb2.PolicyTable(
        name=policy.name,
        vendor=policy.vendor,
        claims_correct=policy.claims_correct,
        summary=policy.summary,
        source=policy.source,
        actions=[action.name for action in actions],
        moments=[rows for rows in moments if rows is not None],
        memories=[memory.name for memory in policy.memories],
        initially_armed=policy.initially_armed,
        check_order=[check.name for check in policy.check_order],
        intercepted_exceptions=sum(1 << vector for vector in policy.intercepted_exceptions),
        classes=[
            policy_pb2.ClassRule(
                reason=rule.reason,
                sub_reason=policy_pb2.SubReason.ValueType(rule.sub_reason or 0),
                exit_class=policy_pb2.ExitClass.ValueType(rule.exit_class),
            )
            for rule in policy.class_rules
        ],
        trap_operations=operation_counts(policy.trap_operations),
        costs=[
            policy_pb2.ActionCost(action=action.name, operations=operation_counts(operations))
            for action, operations in policy.costs.items()
        ],
        emulated_dr6_writable=policy.emulated_dr6_writable,
        emulated_dr6_fixed=policy.emulated_dr6_fixed,
        emulated_dr7_writable=policy.emulated_dr7_writable,
        quirks=[quirk.name or "" for quirk in policy.quirks],
        deviations=[
            policy_pb2.DeclaredDeviation(rule=declared.rule.name, text=declared.text, source=declared.source)
            for declared in policy.deviations
        ],
        unintercepted_accesses=policy.unintercepted_accesses,
        cluster_gap_cycles=policy.cluster_gap_cycles,
        cluster_accesses=policy.cluster_accesses,
        refuses_set_debugregs=policy.refuses_set_debugregs,
        refuses_debugger=policy.refuses_debugger,
        refuses_host_breakpoints=policy.refuses_host_breakpoints,
        supports_nesting=policy.supports_nesting,
    )
