"""Policy tables as the loop reads them, and the checks that a table must pass.

A table is data and may come from anywhere, so it is refused whole, with the moment and the state
that is wrong, before any event is run by it.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.profile import FAST, HEAVY, SUB_REASONS, ClassRule, make_profile
from hypervisor_svc.engine.records import KEEP_MEMORY, READ_LIVE, READ_SHADOW, READ_SHADOW_AS_IS, Words
from hypervisor_svc.engine.vocabulary import (
    INPUT_SIZES,
    SHOWN_INPUTS,
    SVM_COSTS,
    VMX_COSTS,
    Action,
    Check,
    Deviation,
    Input,
    Moment,
    Operations,
    Quirk,
)

MAX_MEMORIES: Final = 8
MAX_STATES: Final = 8192  # of one moment; a table of the package has a few hundred
MOST_CLUSTERED: Final = 64  # accesses in one exit
MOST_OPERATIONS: Final = 63  # of a kind in one micro-action
_MOST_IN_AN_EXIT: Final = 255  # eight bits a count
_OPERATION_NAMES: Final = ("DR reads", "DR writes", "VMREADs", "VMWRITEs", "MSR accesses")
_ENTER_MOMENTS: Final = (Moment.GAIN_RESIDENCE, Moment.ENTER_SESSION, Moment.ENTER_LOOP, Moment.ENTER_GUEST)
_LEAVE_MOMENTS: Final = (
    Moment.LEAVE_GUEST,
    Moment.LEAVE_LOOP,
    Moment.LEAVE_SESSION,
    Moment.LOSE_RESIDENCE,
)
_NOTHING: Final = (1 << 64) - 1  # base of a moment that does nothing
# Crossed between a trap and the access that is run again, by the class of the exit.
_RUN_AGAIN_MOMENTS: Final = (Moment.ENTER_GUEST, Moment.ENTER_LOOP, Moment.ENTER_SESSION)
_SAVES: Final = (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)
_ANSWERS: Final = (Action.EMULATE, Action.INJECT, Action.REEXECUTE, Action.WRITE_THROUGH)


class BadTable(ValueError):
    """A policy table that cannot be run; the message names the policy, the moment and the state."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A checked policy table as arrays.

    ``cells[bases[moment] + sum(strides[moment, input] * value)]`` is the set of micro-actions as
    bits; a base of 2^64-1 stands for a moment that does nothing.
    """

    bases: Words  # (moments,)
    strides: Words  # (moments, inputs)
    cells: Words
    next_memories: np.ndarray[tuple[int], np.dtype[np.uint8]]
    read_sources: np.ndarray[tuple[int], np.dtype[np.uint8]]  # of DR_TRAPPED's cells
    cell_operations: Words  # packed operations of each cell, HOST_RESTORE's left out
    cell_host_operations: Words  # those of HOST_RESTORE, which never open or close a window
    recompute_operations: int
    check_order: int  # two bits for each of the eight conditions
    quirks: Quirk
    declares: int
    class_rules: tuple[ClassRule, ...]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One row of a table, with the state it answers."""

    moment: Moment
    state: dict[Input, int]
    actions: frozenset[Action]
    next_memory: int

    def where(self) -> str:
        state = ", ".join(f"{key.name.lower()}={value}" for key, value in self.state.items()) or "always"
        return f"{self.moment.name} ({state})"


def pack_operations(operations: Operations | policy_pb2.OperationCounts, what: str = "an action") -> int:
    """Return operations packed as the loop counts them: reads, writes, VMREADs, VMWRITEs, MSRs."""
    parts = (
        operations.dr_reads,
        operations.dr_writes,
        operations.vmreads,
        operations.vmwrites,
        operations.msr_accesses,
    )
    if max(parts) > MOST_OPERATIONS:
        message = f"{what} costs {max(parts)} operations of a kind; {MOST_OPERATIONS} is the most"
        raise BadTable(message)
    return sum(part << (8 * k) for k, part in enumerate(parts))


def _order_codes(order: list[str], name: str) -> int:
    try:
        checks = [Check[word] for word in order]
    except KeyError as error:
        message = f"{name}: check_order has {error.args[0]}, expected UD, GP and GD"
        raise BadTable(message) from None
    if len(set(checks)) != len(checks) or Check.NONE in checks:
        message = f"{name}: check_order names UD, GP and GD at most once each"
        raise BadTable(message)
    codes = 0
    bits = {Check.UD: 1, Check.GP: 2, Check.GD: 4}
    for condition in range(8):
        first = next((check for check in checks if condition & bits[check]), Check.NONE)
        codes |= first << (2 * condition)
    return codes


def _moment_cells(
    name: str, rows: policy_pb2.MomentTable, actions: list[Action], memories: int
) -> tuple[Moment, list[Input], Iterator[_Cell]]:
    moment = Moment(rows.moment - 1)
    try:
        inputs = [Input[word.upper()] for word in rows.inputs]
    except KeyError as error:
        message = f"{name}: {moment.name} asks for {error.args[0].lower()}, which is no input"
        raise BadTable(message) from None
    for wanted in inputs:
        if wanted not in SHOWN_INPUTS[moment]:
            message = f"{name}: {moment.name} asks for {wanted.name.lower()}, which is not shown there"
            raise BadTable(message)
    known = [memories if wanted is Input.MEMORY else INPUT_SIZES[wanted] for wanted in inputs]
    sizes = list(rows.sizes)
    is_known = len(sizes) == len(known) and all(
        1 <= here <= there for here, there in zip(sizes, known, strict=True)
    )
    if (
        not is_known
        or len(set(inputs)) != len(inputs)
        or (inputs and sizes[:1] != known[:1] and inputs[0] is Input.MEMORY)
    ):
        message = f"{name}: {moment.name} has input sizes {sizes}, expected at most {known}"
        raise BadTable(message)
    if math.prod(known) > MAX_STATES:
        message = f"{name}: {moment.name} tells {math.prod(known)} states apart; {MAX_STATES} is the most"
        raise BadTable(message)
    count = math.prod(sizes)
    if len(rows.actions) != count or len(rows.next_memory) != count:
        lacking = min(len(rows.actions), len(rows.next_memory))
        message = f"{name}: {moment.name} has {lacking} rows for {count} states"
        if lacking < count:
            place = [int(value) for value in np.unravel_index(lacking, sizes)] if inputs else []
            state = dict(zip(inputs, place, strict=True))
            message += f"; the first without an answer is {_Cell(moment, state, frozenset(), 0).where()}"
        raise BadTable(message)

    def cells() -> Iterator[_Cell]:
        # A value that the table's author did not know yet is answered as the last one that he did.
        for state in itertools.product(*(range(size) for size in known)):
            row = 0
            for value, size in zip(state, sizes, strict=True):
                row = row * size + min(value, size - 1)
            bits, memory = rows.actions[row], rows.next_memory[row]
            if bits >> len(actions):
                message = f"{name}: {moment.name} uses an action without a name (bit {bits.bit_length() - 1})"
                raise BadTable(message)
            chosen = frozenset(action for k, action in enumerate(actions) if bits >> k & 1)
            yield _Cell(moment, dict(zip(inputs, state, strict=True)), chosen, memory)

    return moment, inputs, cells()


def _check_cell(name: str, cell: _Cell, memories: int) -> None:
    """Refuse what no hypervisor could mean."""
    problem = ""
    has = cell.actions.__contains__
    if cell.next_memory != KEEP_MEMORY and cell.next_memory >= memories:
        problem = f"next memory {cell.next_memory} does not exist"
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
    elif cell.moment in _ENTER_MOMENTS and any(map(has, _SAVES)):
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


def _classes_of_traps(rules: tuple[ClassRule, ...], *, is_svm: bool) -> tuple[int, int]:
    """Return the lowest and the highest class that an exit of MOV DR can have."""
    classes = make_profile(is_svm=is_svm, rules=rules).classes
    codes = [*range(0x20, 0x28), *range(0x30, 0x38)] if is_svm else [29]
    return int(classes[codes, 0].min()), int(classes[codes, 0].max())


def _memories_at(cells: list[_Cell], action: Action, moments: tuple[Moment, ...]) -> dict[int | None, _Cell]:
    """Return, by the memory that it is for (None: any), a cell of ``moments`` that takes ``action``."""
    return {
        cell.state.get(Input.MEMORY): cell
        for cell in cells
        if cell.moment in moments and action in cell.actions
    }


def _met(found: dict[int | None, _Cell], trap: _Cell) -> _Cell | None:
    """Return one of the cells found that a vCPU can come to after ``trap``."""
    memory = trap.next_memory if trap.next_memory != KEEP_MEMORY else trap.state.get(Input.MEMORY)
    if memory is None:
        return next(iter(found.values()), None)
    return found.get(memory) or found.get(None)


def _check_run_again(table: policy_pb2.PolicyTable, cells: list[_Cell], classes: tuple[int, int]) -> None:
    """Refuse what comes between a trap and the access that is run again: an intercept, or no load."""
    lowest, highest = classes
    arms = _memories_at(cells, Action.ARM, _RUN_AGAIN_MOMENTS[:highest])
    loads = _memories_at(cells, Action.LOAD_DR0_3, _RUN_AGAIN_MOMENTS[:lowest])
    loaded = {cell.next_memory for cell in cells if Action.LOAD_DR0_3 in cell.actions} - {KEEP_MEMORY}
    for trap in cells:
        if trap.moment is not Moment.DR_TRAPPED:
            continue
        armed = _met(arms, trap) if Action.REEXECUTE in trap.actions else None
        if armed is not None:
            message = (
                f"{table.name}: at {armed.where()} the table arms what {trap.where()} let run again: the "
                "same access would exit for ever"
            )
            raise BadTable(message)
        is_loaded = Action.LOAD_DR0_3 in trap.actions or _met(loads, trap) is not None
        is_loaded |= trap.state.get(Input.MEMORY) in loaded  # it remembers that it has loaded
        if Action.DISARM in trap.actions and table.claims_correct and not is_loaded:
            message = (
                f"{table.name}: at {trap.where()} the intercept goes off and no way back into the guest "
                "loads its registers, yet the policy claims to be correct"
            )
            raise BadTable(message)


def _read_source(trap: _Cell, loads: dict[int | None, _Cell]) -> int:
    """Return where a read that this cell answers gets DR6 and DR7 from."""
    if Action.EMULATE in trap.actions:
        return READ_SHADOW_AS_IS
    if Action.REEXECUTE not in trap.actions:
        return READ_LIVE
    is_loaded = Action.LOAD_DR6 in trap.actions or _met(loads, trap) is not None
    return READ_SHADOW if is_loaded else READ_LIVE


def _check_header(table: policy_pb2.PolicyTable) -> None:
    name = table.name
    problem = ""
    if table.vendor not in (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM):
        problem = f"vendor {table.vendor} is unknown"
    elif not 1 <= len(table.memories) <= MAX_MEMORIES:
        problem = f"has {len(table.memories)} memories, expected 1 to {MAX_MEMORIES}"
    elif table.cluster_accesses > MOST_CLUSTERED:
        problem = f"clusters {table.cluster_accesses} accesses in an exit; {MOST_CLUSTERED} is the most"
    elif table.cluster_accesses and not table.cluster_gap_cycles:
        problem = "limits clusters of accesses, but states no gap over which they form"
    if problem:
        message = f"{name}: {problem}"
        raise BadTable(message)


def _class_rules(table: policy_pb2.PolicyTable) -> tuple[ClassRule, ...]:
    rules = []
    for rule in table.classes:
        what = f"{table.name}: the class rule for reason {rule.reason}"
        if not FAST <= rule.exit_class <= HEAVY:
            message = f"{what} has class {rule.exit_class}, expected {FAST} to {HEAVY}"
            raise BadTable(message)
        if not 0 <= rule.sub_reason < SUB_REASONS:
            message = f"{what} has sub-reason {rule.sub_reason}, expected 0 to {SUB_REASONS - 1}"
            raise BadTable(message)
        rules.append(ClassRule(rule.reason, rule.sub_reason or None, rule.exit_class))
    return tuple(rules)


def _check_sums(name: str, cells: list[_Cell], costs: dict[Action, int], trap: int, clustered: int) -> None:
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


def _check_whole(table: policy_pb2.PolicyTable, cells: list[_Cell]) -> None:
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


_Word = TypeVar("_Word", Action, Quirk, Deviation)


def _named(kind: type[_Word], word: str, name: str) -> _Word:
    try:
        return kind[word]
    except KeyError:
        message = f"{name}: {word} is no {kind.__name__.lower()}"
        raise BadTable(message) from None


def _costs(table: policy_pb2.PolicyTable) -> dict[Action, int]:
    defaults = SVM_COSTS if table.vendor == policy_pb2.VENDOR_SVM else VMX_COSTS
    costs = {action: pack_operations(operations) for action, operations in defaults.items()}
    for cost in table.costs:
        what = f"{table.name}: {cost.action}"
        costs[_named(Action, cost.action, table.name)] = pack_operations(cost.operations, what)
    return costs


def make_table(table: policy_pb2.PolicyTable) -> Table:
    """Check ``table`` and return it as arrays, which nobody may change: sessions share them.

    Raises:
        BadTable: naming the policy, the moment and the state.

    """
    return _made_table(table.SerializeToString(deterministic=True))


@lru_cache(maxsize=256)
def _made_table(data: bytes) -> Table:
    table = policy_pb2.PolicyTable.FromString(data)
    _check_header(table)
    actions = [_named(Action, word, table.name) for word in table.actions]
    bases = np.full(len(Moment), ~np.uint64(0), np.uint64)
    strides = np.zeros((len(Moment), len(Input)), np.uint64)
    everything: list[_Cell] = []
    for rows in table.moments:
        if not 1 <= rows.moment <= len(Moment):
            message = f"{table.name}: moment {rows.moment} does not exist"
            raise BadTable(message)
        moment, inputs, cells = _moment_cells(table.name, rows, actions, len(table.memories))
        if bases[moment] != ~np.uint64(0):
            message = f"{table.name}: {moment.name} is there twice"
            raise BadTable(message)
        bases[moment] = len(everything)
        stride = 1
        for wanted in reversed(inputs):
            strides[moment, wanted] = stride
            stride *= len(table.memories) if wanted is Input.MEMORY else INPUT_SIZES[wanted]
        everything.extend(cells)
    for cell in everything:
        _check_cell(table.name, cell, len(table.memories))
    _check_whole(table, everything)
    rules = _class_rules(table)
    is_svm = table.vendor == policy_pb2.VENDOR_SVM
    _check_run_again(table, everything, _classes_of_traps(rules, is_svm=is_svm))
    dr6_loads = _memories_at(everything, Action.LOAD_DR6, _ENTER_MOMENTS)
    costs = _costs(table)
    trap = pack_operations(table.trap_operations, f"{table.name}: a trapped MOV DR")
    clustered = (table.cluster_accesses or MOST_CLUSTERED) if table.cluster_gap_cycles else 0
    _check_sums(table.name, everything, costs, trap, clustered)
    host_cost = costs.get(Action.HOST_RESTORE, 0)
    host = [host_cost if Action.HOST_RESTORE in cell.actions else 0 for cell in everything]
    own = [
        sum(costs.get(action, 0) for action in cell.actions if action is not Action.HOST_RESTORE)
        for cell in everything
    ]
    bits = [sum(1 << action for action in cell.actions) for cell in everything]
    quirks = Quirk(0)
    for word in table.quirks:
        quirks |= _named(Quirk, word, table.name)
    return Table(
        bases=bases,
        strides=strides,
        cells=np.array(bits or [0], np.uint64),
        next_memories=np.array([cell.next_memory for cell in everything] or [KEEP_MEMORY], np.uint8),
        read_sources=np.array([_read_source(cell, dr6_loads) for cell in everything] or [0], np.uint8),
        cell_operations=np.array(own or [0], np.uint64),
        cell_host_operations=np.array(host or [0], np.uint64),
        recompute_operations=costs.get(Action.RECOMPUTE, 0),
        check_order=_order_codes(list(table.check_order), table.name),
        quirks=quirks,
        declares=sum({1 << _named(Deviation, rule.rule, table.name) for rule in table.deviations}),
        class_rules=rules,
    )


def rung_of_saving(table: Table) -> int:
    """Return the rung on whose way up DR6 is first saved, so that the shadow is current there; 0: none."""
    bases = [int(base) for base in table.bases]
    for rung, moment in enumerate(_LEAVE_MOMENTS, 1):
        if bases[moment] == _NOTHING:
            continue
        later = [base for base in bases if bases[moment] < base < _NOTHING]
        cells = table.cells[bases[moment] : min(later, default=len(table.cells))]
        if any(int(cell) >> Action.SAVE_DR6 & 1 for cell in cells):
            return rung
    return 0
