"""The states of an abstract machine of policies' tables, and what its moves depend on."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from exitlab.debugreg import DR7_GD
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.profile import make_profile
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine.vocabulary import Action, Check, Input, Quirk, RegisterClass

FAST, LIGHT, HEAVY, AWAY = 1, 2, 3, 4  # rungs: after an exit of each class, and out of residence
OWNS: Final = 2  # the debugger
# Bits of an abstract DR7; none is the value after a reset.
ENABLES: Final = 1
HAS_GD: Final = 2
HAS_OTHER: Final = 4
NOWHERE: Final = (1 << 64) - 1
# What changes an abstract state, or is the answer to an access.
SEEN_ACTIONS: Final = (
    *(Action.SAVE_DR7, Action.ARM, Action.MERGE_DB_SHADOW, Action.EMULATE, Action.INJECT),
    *(Action.EFFECTIVE, Action.EFFECTIVE_RAW, Action.EFFECTIVE_MERGED),
    *(Action.RECOMPUTE, Action.LOAD_DR0_3, Action.LOAD_DR7),
    *(Action.MERGE_DB_HARDWARE, Action.DISARM, Action.REEXECUTE, Action.STAY),
)
_SEEN: Final = sum(1 << action for action in SEEN_ACTIONS)


class State(NamedTuple):
    """An abstract state between two events."""

    rung: int = AWAY
    memory: int = 0
    is_armed: bool = True
    believes: bool = False
    debugger: int = 0
    debugger_dr7: int = 0
    shadow: int = 0
    effective: int = 0
    field: int = 0
    host: bool = False
    moved: bool = True
    debugctl: bool = False  # not zero
    stays: bool = False  # the next access may be answered with no exit


class Access(NamedTuple):
    """A trapped MOV DR as a table sees it, and what it writes to DR7."""

    check: int = Check.NONE
    is_write: bool = False
    register_class: int = RegisterClass.ADDRESS
    written: int = 0

    @property
    def would_enable(self) -> bool:
        """Whether it is a DR7 that enables something."""
        return self.is_write and self.register_class == RegisterClass.CONTROL and bool(self.written & ENABLES)


NO_ACCESS: Final = Access()


@dataclass(frozen=True, slots=True)
class Rules:
    """All of a policy that reachability depends on; many versions have the same."""

    is_svm: bool
    bases: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    actions: tuple[int, ...]
    next_memories: tuple[int, ...]
    check_order: int
    initially_armed: bool
    intercepts_db: bool
    db_keeps_gd: bool
    can_write_gd: bool
    trap_class: int
    db_class: int
    takes_debugregs: bool
    takes_debugger: bool
    takes_host: bool
    nests: bool

    @classmethod
    def of(cls, message: policy_pb2.PolicyTable) -> "Rules":
        """Return the rules of a table."""
        table = make_table(message)
        is_svm = message.vendor == policy_pb2.VENDOR_SVM
        classes = make_profile(is_svm=is_svm, rules=table.class_rules).classes
        return cls(
            is_svm=is_svm,
            bases=tuple(table.bases.tolist()),
            strides=tuple(tuple(row) for row in table.strides.tolist()),
            actions=tuple(cell & _SEEN for cell in table.cells.tolist()),
            next_memories=tuple(table.next_memories.tolist()),
            check_order=table.check_order,
            initially_armed=message.initially_armed,
            intercepts_db=bool(message.intercepted_exceptions >> 1 & 1),
            db_keeps_gd=bool(table.quirks & Quirk.DB_KEEPS_GD),
            can_write_gd=bool(message.emulated_dr7_writable & DR7_GD),
            trap_class=int(classes[0x20 if is_svm else 29, 0]),
            db_class=int(classes[0x41 if is_svm else 0, 0]),
            takes_debugregs=not message.refuses_set_debugregs,
            takes_debugger=not message.refuses_debugger,
            takes_host=not message.refuses_host_breakpoints,
            nests=message.supports_nesting,
        )

    def asks(self, *inputs: Input) -> bool:
        """Return whether the table asks for any of ``inputs`` at any moment."""
        return any(row[wanted] for row in self.strides for wanted in inputs)
