"""What a policy table must not say: each check refuses it by the moment and the state."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.profile import ClassRule, make_profile
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.vocabulary import (
    Action,
    Check,
    Control,
    Debugger,
    Input,
    Moment,
    RegisterClass,
)

MAX_MEMORIES: Final = 8
MOST_CLUSTERED: Final = 64  # accesses in one exit
_MOST_IN_AN_EXIT: Final = 255  # eight bits a count
_OPERATION_NAMES: Final = ("DR reads", "DR writes", "VMREADs", "VMWRITEs", "MSR accesses")
ENTER_MOMENTS: Final = (Moment.GAIN_RESIDENCE, Moment.ENTER_SESSION, Moment.ENTER_LOOP, Moment.ENTER_GUEST)
# Crossed between a trap and the access that is run again, by the class of the exit.
_RUN_AGAIN_MOMENTS: Final = (Moment.ENTER_GUEST, Moment.ENTER_LOOP, Moment.ENTER_SESSION)
_SAVES: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)
_ANSWERS: Final = (Action.EMULATE, Action.INJECT, Action.REEXECUTE, Action.WRITE_THROUGH)
# What the values of an input are called; of one that is not here they are no and yes, of MEMORY the table's.
_VALUE_NAMES: Final[dict[Input, type[IntEnum]]] = {
    Input.DEBUGGER: Debugger,
    Input.CHECK: Check,
    Input.REGISTER_CLASS: RegisterClass,
    Input.CONTROL: Control,
}


class BadTable(ValueError):
    """A policy table that cannot be run; the message names the policy, the moment and the state."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a table, with the state it answers."""

    moment: Moment
    state: dict[Input, int]
    actions: frozenset[Action]
    next_memory: int
    memories: Sequence[str]

    def where(self) -> str:
        """Return the moment and the state, in the words of ``hypervisor-svc policy``."""
        return f"{self.moment.name} ({', '.join(map(self._said, self.state)) or 'always'})"

    def _said(self, wanted: Input) -> str:
        name, value = wanted.name.lower(), self.state[wanted]
        if wanted is Input.MEMORY:
            return f"{name}={self.memories[value]}"
        if wanted in _VALUE_NAMES:
            return f"{name}={_VALUE_NAMES[wanted](value).name}"
        return name if value else f"{name}=no"


def check_header(table: policy_pb2.PolicyTable) -> None:
    """Refuse what is wrong whatever the table's rows say."""
    name = table.name
    problem = ""
    if table.vendor not in (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM):
        problem = f"vendor {table.vendor} is unknown"
    elif not 1 <= len(table.memories) <= MAX_MEMORIES:
        problem = f"has {len(table.memories)} memories, expected 1 to {MAX_MEMORIES}"
    elif twice := _named_twice(table):
        problem = f"names {twice}"
    elif table.cluster_accesses > MOST_CLUSTERED:
        problem = f"clusters {table.cluster_accesses} accesses in an exit; {MOST_CLUSTERED} is the most"
    elif table.cluster_accesses and not table.cluster_gap_cycles:
        problem = "limits clusters of accesses, but states no gap over which they form"
    if problem:
        message = f"{name}: {problem}"
        raise BadTable(message)


def _named_twice(table: policy_pb2.PolicyTable) -> str:
    """Return which name a list has more than once, and which list: one of the two would say nothing."""
    lists = {
        "actions": table.actions,
        "memories": table.memories,
        "quirks": table.quirks,
        "costs": [cost.action for cost in table.costs],
    }
    for what, words in lists.items():
        if twice := [word for word, count in Counter(words).items() if count > 1]:
            return f"{', '.join(twice)} more than once in its {what}"
    return ""


def check_cell(name: str, cell: Cell) -> None:
    """Refuse what no hypervisor could mean."""
    problem = ""
    has = cell.actions.__contains__
    count = len(cell.memories)
    if cell.next_memory != KEEP_MEMORY and cell.next_memory >= count:
        problem = f"goes on with memory {cell.next_memory}, but has {count}, numbered from 0"
    elif has(Action.REEXECUTE) and not has(Action.DISARM):
        problem = "re-executes with the intercept still on: the same access would exit for ever"
    elif has(Action.REEXECUTE) and has(Action.EMULATE):
        problem = "emulates and re-executes the same access"
    elif sum(map(has, _ANSWERS)) > 1:
        problem = "answers one MOV DR in several ways"
    elif has(Action.STAY) and not has(Action.EMULATE):
        problem = "stays in the kernel for the next access, but does not emulate this one"
    elif has(Action.ARM) and has(Action.DISARM):
        problem = "arms and disarms at once"
    elif cell.moment in ENTER_MOMENTS and any(map(has, _SAVES)):
        problem = "saves on the way into the guest, where the hardware is not yet the guest's"
    elif cell.moment is not Moment.DR_TRAPPED and any(map(has, _ANSWERS)):
        problem = "answers a MOV DR where none trapped"
    elif cell.moment is Moment.DR_TRAPPED and not any(map(has, _ANSWERS)):
        problem = "leaves a trapped MOV DR without an answer"
    elif has(Action.INJECT) and cell.state.get(Input.CHECK, Check.NONE) == Check.NONE:
        problem = "injects a fault although every check passed"
    if problem:
        message = f"{name}: at {cell.where()} the table {problem}"
        raise BadTable(message)


def memories_at(cells: list[Cell], action: Action, moments: tuple[Moment, ...]) -> dict[int | None, Cell]:
    """Return, by the memory that it is for (None: any), a cell of ``moments`` that takes ``action``."""
    return {
        cell.state.get(Input.MEMORY): cell
        for cell in cells
        if cell.moment in moments and action in cell.actions
    }


def met(found: dict[int | None, Cell], trap: Cell) -> Cell | None:
    """Return one of the cells found that a vCPU can come to after ``trap``."""
    memory = trap.next_memory if trap.next_memory != KEEP_MEMORY else trap.state.get(Input.MEMORY)
    if memory is None:
        return next(iter(found.values()), None)
    return found.get(memory) or found.get(None)


def classes_of_traps(rules: tuple[ClassRule, ...], *, is_svm: bool) -> tuple[int, int]:
    """Return the lowest and the highest class that an exit of MOV DR can have."""
    classes = make_profile(is_svm=is_svm, rules=rules).classes
    codes = [*range(0x20, 0x28), *range(0x30, 0x38)] if is_svm else [29]
    return int(classes[codes, 0].min()), int(classes[codes, 0].max())


def check_run_again(table: policy_pb2.PolicyTable, cells: list[Cell], classes: tuple[int, int]) -> None:
    """Refuse what comes between a trap and the access that is run again: an intercept, or no load."""
    lowest, highest = classes
    arms = memories_at(cells, Action.ARM, _RUN_AGAIN_MOMENTS[:highest])
    loads = memories_at(cells, Action.LOAD_DR0_3, _RUN_AGAIN_MOMENTS[:lowest])
    loaded = {cell.next_memory for cell in cells if Action.LOAD_DR0_3 in cell.actions} - {KEEP_MEMORY}
    for trap in cells:
        if trap.moment is not Moment.DR_TRAPPED:
            continue
        armed = met(arms, trap) if Action.REEXECUTE in trap.actions else None
        if armed is not None:
            message = (
                f"{table.name}: at {armed.where()} the table arms what {trap.where()} let run again: the "
                "same access would exit for ever"
            )
            raise BadTable(message)
        is_loaded = Action.LOAD_DR0_3 in trap.actions or met(loads, trap) is not None
        is_loaded |= trap.state.get(Input.MEMORY) in loaded  # it remembers that it has loaded
        if Action.DISARM in trap.actions and table.claims_correct and not is_loaded:
            message = (
                f"{table.name}: at {trap.where()} the intercept goes off and no way back into the guest "
                "loads its registers, yet the policy claims to be correct"
            )
            raise BadTable(message)


def check_sums(name: str, cells: list[Cell], costs: dict[Action, int], trap: int, clustered: int) -> None:
    """Refuse operations that could pass what an exit and its entry can count."""
    for number, what in enumerate(_OPERATION_NAMES):

        def count(packed: int, place: int = number) -> int:
            return packed >> (8 * place) & 0xFF

        dearest = dict.fromkeys(Moment, 0)
        for cell in cells:
            total = sum(count(costs.get(action, 0)) for action in cell.actions)
            dearest[cell.moment] = max(dearest[cell.moment], total)
        most = 2 * (sum(dearest.values()) + count(trap))  # an event can exit twice
        most += clustered * dearest[Moment.DR_TRAPPED]
        if most > _MOST_IN_AN_EXIT:
            message = f"{name}: an event could take {most} {what}; {_MOST_IN_AN_EXIT} is the most"
            raise BadTable(message)


def check_whole(table: policy_pb2.PolicyTable, cells: list[Cell]) -> None:
    """Refuse what no row says alone."""
    used = frozenset().union(*(cell.actions for cell in cells)) if cells else frozenset()
    problem = ""
    if Action.HOST_RESTORE_SAVED in used and Action.HOST_SAVE not in used:
        problem = "restores a saved host state that nothing saves"
    elif table.claims_correct and not table.initially_armed and Action.LOAD_DR0_3 not in used:
        problem = "never intercepts and never loads, yet the policy claims to be correct"
    elif (table.initially_armed or Action.ARM in used) and not any(
        cell.moment is Moment.DR_TRAPPED for cell in cells
    ):
        problem = "intercepts MOV DR but has no answer at DR_TRAPPED"
    if problem:
        message = f"{table.name}: {problem}"
        raise BadTable(message)
