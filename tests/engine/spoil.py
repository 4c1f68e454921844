"""Ways to change a shipped policy's table."""

from collections.abc import Callable

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.vocabulary import Action, Moment
from tests.engine.build import VMX, table_of

Table = policy_pb2.PolicyTable
Spoil = Callable[[Table], object]


def rows_of(table: Table, moment: Moment) -> policy_pb2.MomentTable:
    """Return the rows of a moment."""
    return next(rows for rows in table.moments if rows.moment == moment + 1)


def spoiled(base: str, spoil: Spoil, vendor: int = VMX) -> Table:
    """Return the table of a shipped policy with something changed."""
    table = table_of(base, vendor)
    table.name = "mine"
    spoil(table)
    return table


def change(moment: Moment, add: tuple[Action, ...] = (), drop: tuple[Action, ...] = ()) -> Spoil:
    """Return a change of the actions in every row of a moment."""

    def spoil(table: Table) -> None:
        rows = rows_of(table, moment)
        for at in range(len(rows.actions)):
            bits = rows.actions[at] | sum(1 << action for action in add)
            rows.actions[at] = bits & ~sum(1 << action for action in drop)

    return spoil


def added(moment: Moment, *actions: Action) -> Spoil:
    """Return the addition of a moment with one row, in place of the moment's own."""

    def spoil(table: Table) -> None:
        kept = [rows for rows in table.moments if rows.moment != moment + 1]
        del table.moments[:]
        table.moments.extend(kept)
        rows = table.moments.add(moment=policy_pb2.Moment.ValueType(moment + 1))
        rows.actions.append(sum(1 << action for action in actions))
        rows.next_memory = bytes([KEEP_MEMORY])

    return spoil


def without_loads(table: Table) -> None:
    """Take every load of addresses away."""
    change(Moment.ENTER_LOOP, drop=(Action.LOAD_DR0_3,))(table)


def dear(table: Table) -> None:
    """Make each action dear enough that an exit and its entry could not be counted."""
    for action in (Action.ZERO_DR7, Action.LOAD_DR0_3, Action.LOAD_DR6, Action.SAVE_DR0_3, Action.ARM):
        operations = policy_pb2.OperationCounts(dr_writes=60)
        table.costs.add(action=action.name, operations=operations)


def shortened(table: Table) -> None:
    """Take the last answer of a trapped MOV DR away."""
    rows = rows_of(table, Moment.DR_TRAPPED)
    del rows.actions[-1]
    rows.next_memory = rows.next_memory[:-1]


def armed_on_a_longer_way(table: Table) -> None:
    """Let a MOV DR exit leave the session, and arm the intercept when that is entered again."""
    ruled(reason=29, exit_class=policy_pb2.EXIT_CLASS_HEAVY)(table)
    added(Moment.ENTER_SESSION, Action.ARM)(table)


def first_next_memory(table: Table) -> None:
    """Let the first answer of a trapped MOV DR go on with a memory that is not there."""
    rows = rows_of(table, Moment.DR_TRAPPED)
    rows.next_memory = bytes([2]) + rows.next_memory[1:]


def shorter_next_memory(table: Table) -> None:
    """Take the last memory that follows when the loop is left, and leave its actions."""
    rows = rows_of(table, Moment.LEAVE_LOOP)
    rows.next_memory = rows.next_memory[:-1]


def twice_armed(table: Table) -> None:
    """Call another action's bit ARM as well."""
    table.actions[Action.READ_DR6] = "ARM"


def append(field: str, value: object) -> Spoil:
    """Return the addition of a value to a repeated field."""
    return lambda table: getattr(table, field).append(value)


def put(field: str, value: object) -> Spoil:
    """Return the change of a field."""
    return lambda table: setattr(table, field, value)


def ruled(**rule: int) -> Spoil:
    """Return the addition of a class rule."""
    return lambda table: table.classes.add(**rule)
