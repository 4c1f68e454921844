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
from hypervisor_svc.engine.table_checks import Cell
from hypervisor_svc.engine.vocabulary import (
    INPUT_SIZES,
    NO_OPERATIONS,
    Action,
    Check,
    Deviation,
    Input,
    Moment,
    Operations,
    Quirk,
)
from hypervisor_svc.policies.sees import Asked, Do, PolicyError, Sees, do

__all__ = [
    "SVM",
    "VMX",
    "Declared",
    "Do",
    "NoMemory",
    "Policy",
    "PolicyError",
    "Sees",
    "Vendor",
    "do",
    "operation_counts",
    "tabulate",
]

VMX: Final = policy_pb2.VENDOR_VMX
SVM: Final = policy_pb2.VENDOR_SVM
Vendor: TypeAlias = policy_pb2.Vendor.ValueType


class NoMemory(IntEnum):
    """The memory of a policy that remembers nothing."""

    NOTHING = 0


@dataclass(frozen=True, slots=True)
class Declared:
    """A deviation from the architecture that a policy declares."""

    rule: Deviation
    text: str
    source: str


class Policy:
    """A debug-register policy; subclass it and override the moments at which it acts."""

    api_version: int = 0  # of hypervisor_svc.api, as an author's class was written for it; ours state none
    name: str = ""
    vendors: tuple[Vendor, ...] = ()  # of an author's class; none: the one below
    vendor: Vendor = VMX  # of the policy that was made
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


def _sizes(policy: Policy, inputs: Iterable[Input]) -> list[int]:
    """Return how many values each input has for this policy."""
    return [len(policy.memories) if wanted is Input.MEMORY else INPUT_SIZES[wanted] for wanted in inputs]


def _answer(policy: Policy, moment: Moment, values: dict[Input, int]) -> Do:
    """Return a policy's answer in a state; a mistake of the policy's author is told with the state."""
    answer: Callable[[Sees], object] = getattr(policy, moment.name.lower())
    try:
        done = answer(Sees(policy.name, moment, values))
    except (PolicyError, Asked, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever an author may raise
        where = _where(policy, moment, values)
        message = f"{where} fails: {type(error).__name__}: {error}"
        raise PolicyError(message, moment, where) from error
    if done is None:
        return Do(frozenset())
    problem = _problem(policy, done)
    if problem or not isinstance(done, Do):
        message = f"{_where(policy, moment, values)} {problem}"
        raise PolicyError(message, moment)
    return done


def _where(policy: Policy, moment: Moment, values: dict[Input, int]) -> str:
    """Return which state a policy was asked for."""
    names = [memory.name for memory in policy.memories]
    cell = Cell(moment, values, frozenset(), KEEP_MEMORY, names)
    return f"{policy.name}: at {cell.where()} the policy"


def _problem(policy: Policy, done: object) -> str:
    """Return what is wrong with an answer, if anything is."""
    if not isinstance(done, Do):
        return f"answers {done!r}, expected do(...) or None"
    strange = [action for action in done.actions if not isinstance(action, Action)]
    if strange:
        return f"answers with {strange[0]!r}, which is no Action"
    if done.memory is not None and done.memory not in list(policy.memories):
        return f"goes on with memory {done.memory!r}, which is none of {policy.memories.__name__}"
    return ""


def _asked_inputs(policy: Policy, moment: Moment) -> list[Input]:
    """Return the inputs that the answer can depend on, found by asking as far as it asks."""
    asked: set[Input] = set()
    states: list[dict[Input, int]] = [{}]
    while states:
        values = states.pop()
        try:
            _answer(policy, moment, values)
        except Asked as question:
            asked.add(question.wanted)
            (size,) = _sizes(policy, [question.wanted])
            states.extend({**values, question.wanted: value} for value in reversed(range(size)))
    return sorted(asked)


def _moment_table(policy: Policy, moment: Moment, actions: list[Action]) -> policy_pb2.MomentTable | None:
    inputs = _asked_inputs(policy, moment)
    sizes = _sizes(policy, inputs)
    rows = policy_pb2.MomentTable(
        moment=policy_pb2.Moment.ValueType(moment + 1),
        inputs=[wanted.name.lower() for wanted in inputs],
        sizes=sizes,
    )
    memory = bytearray()
    for state in itertools.product(*(range(size) for size in sizes)):
        done = _answer(policy, moment, dict(zip(inputs, state, strict=True)))
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
        PolicyError: the policy asks for an input that a moment does not show, fails, or answers with
            what is no answer.

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
