"""Policy tables as the loop reads them.

A table is data and may come from anywhere, so it is refused whole, with the moment and the state
that is wrong, before any event is run by it: here what cannot be read, in ``table_checks`` what no
hypervisor could mean.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.profile import FAST, HEAVY, SUB_REASONS, ClassRule
from hypervisor_svc.engine.records import KEEP_MEMORY, READ_LIVE, READ_SHADOW, READ_SHADOW_AS_IS, Words
from hypervisor_svc.engine.table_checks import (
    ENTER_MOMENTS,
    MOST_CLUSTERED,
    BadTable,
    Cell,
    check_cell,
    check_header,
    check_run_again,
    check_sums,
    check_whole,
    classes_of_traps,
    memories_at,
    met,
)
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

__all__ = ["MOST_CLUSTERED", "BadTable", "Table", "make_table", "pack_operations", "rung_of_saving"]

MAX_STATES: Final = 8192  # of one moment; a table of the package has a few hundred
MOST_OPERATIONS: Final = 63  # of a kind in one micro-action
_LEAVE_MOMENTS: Final = (
    Moment.LEAVE_GUEST,
    Moment.LEAVE_LOOP,
    Moment.LEAVE_SESSION,
    Moment.LOSE_RESIDENCE,
)
_NOTHING: Final = (1 << 64) - 1  # base of a moment that does nothing


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
    name: str, rows: policy_pb2.MomentTable, actions: list[Action], memories: Sequence[str]
) -> tuple[Moment, list[Input], Iterator[Cell]]:
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
    if len(set(inputs)) != len(inputs):
        twice = max(inputs, key=inputs.count).name.lower()
        message = f"{name}: {moment.name} asks for {twice} twice"
        raise BadTable(message)
    known = [len(memories) if wanted is Input.MEMORY else INPUT_SIZES[wanted] for wanted in inputs]
    sizes = list(rows.sizes)
    is_known = len(sizes) == len(known) and all(
        1 <= here <= there for here, there in zip(sizes, known, strict=True)
    )
    if not is_known or (inputs and sizes[:1] != known[:1] and inputs[0] is Input.MEMORY):
        expected = [
            f"{'' if one is Input.MEMORY else '1 to '}{size} for {one.name.lower()}"
            for one, size in zip(inputs, known, strict=True)
        ]
        message = f"{name}: {moment.name} has input sizes {sizes}, expected {', '.join(expected) or 'none'}"
        raise BadTable(message)
    if math.prod(known) > MAX_STATES:
        message = f"{name}: {moment.name} tells {math.prod(known)} states apart; {MAX_STATES} is the most"
        raise BadTable(message)
    count = math.prod(sizes)
    for what, given in (("sets of actions", len(rows.actions)), ("next memories", len(rows.next_memory))):
        if given != count:
            message = f"{name}: {moment.name} has {given} {what} for {count} states"
            if given < count:
                place = [int(value) for value in np.unravel_index(given, sizes)] if inputs else []
                state = dict(zip(inputs, place, strict=True))
                first = Cell(moment, state, frozenset(), KEEP_MEMORY, memories)
                message += f"; the first without one is {first.where()}"
            raise BadTable(message)

    def cells() -> Iterator[Cell]:
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
            yield Cell(moment, dict(zip(inputs, state, strict=True)), chosen, memory, memories)

    return moment, inputs, cells()


def _read_source(trap: Cell, loads: dict[int | None, Cell]) -> int:
    """Return where a read that this cell answers gets DR6 and DR7 from."""
    if Action.EMULATE in trap.actions:
        return READ_SHADOW_AS_IS
    if Action.REEXECUTE not in trap.actions:
        return READ_LIVE
    is_loaded = Action.LOAD_DR6 in trap.actions or met(loads, trap) is not None
    return READ_SHADOW if is_loaded else READ_LIVE


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
    return _made_table(without_texts(table))


def without_texts(table: policy_pb2.PolicyTable) -> bytes:
    """Return all of a table that has effects, as bytes: what is kept of it must not grow with its texts."""
    bare = policy_pb2.PolicyTable()
    bare.CopyFrom(table)
    bare.ClearField("summary")
    bare.ClearField("source")
    for rule in bare.deviations:
        rule.ClearField("text")
        rule.ClearField("source")
    bare.DiscardUnknownFields()
    return bare.SerializeToString(deterministic=True)


@lru_cache(maxsize=256)
def _made_table(data: bytes) -> Table:
    table = policy_pb2.PolicyTable.FromString(data)
    check_header(table)
    actions = [_named(Action, word, table.name) for word in table.actions]
    bases = np.full(len(Moment), ~np.uint64(0), np.uint64)
    strides = np.zeros((len(Moment), len(Input)), np.uint64)
    everything: list[Cell] = []
    for rows in table.moments:
        if not 1 <= rows.moment <= len(Moment):
            message = f"{table.name}: moment {rows.moment} does not exist"
            raise BadTable(message)
        moment, inputs, cells = _moment_cells(table.name, rows, actions, tuple(table.memories))
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
        check_cell(table.name, cell)
    check_whole(table, everything)
    rules = _class_rules(table)
    is_svm = table.vendor == policy_pb2.VENDOR_SVM
    check_run_again(table, everything, classes_of_traps(rules, is_svm=is_svm))
    dr6_loads = memories_at(everything, Action.LOAD_DR6, ENTER_MOMENTS)
    costs = _costs(table)
    trap = pack_operations(table.trap_operations, f"{table.name}: a trapped MOV DR")
    clustered = (table.cluster_accesses or MOST_CLUSTERED) if table.cluster_gap_cycles else 0
    check_sums(table.name, everything, costs, trap, clustered)
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
