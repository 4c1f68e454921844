"""A table means what is written in it, by name; and policies are tabulated by asking."""

import random
import sys
from itertools import product
from typing import Final

import pytest

from exitlab import debugreg
from exitlab.events import EventKind
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine.vocabulary import SHOWN_INPUTS, Action, Deviation, Input, Moment
from hypervisor_svc.policies.base import Do, Policy, PolicyError, Sees, do, tabulate
from hypervisor_svc.policies.kvm import ERA_6_14, Kvm
from tests.engine.build import (
    FAST,
    HEAVY,
    LIGHT,
    SVM,
    VENDORS,
    VMX,
    Row,
    by_class,
    cpuid,
    event,
    fetch,
    get_dr,
    policies_on,
    run,
    set_dr,
    stream,
    table_of,
)
from tests.engine.spoil import Table, ruled, spoiled


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("wanted", Input)
def test_policies_ask_for_what_is_shown(moment: Moment, wanted: Input) -> None:
    """A policy that asks for an input that its moment does not show is refused by name; any other is not."""

    class Asking(Policy):
        name = "asking"

    names = {
        Input.BREAKPOINTS_ENABLED: "breakpoints_enabled",
        Input.DEBUG_CONTROLS_AT_RESET: "debug_controls_at_reset",
    }
    shown_as = names.get(wanted, wanted.name.lower())

    def answer(_: Policy, sees: Sees) -> Do | None:
        getattr(sees, shown_as)
        return None

    setattr(Asking, moment.name.lower(), answer)
    if wanted in SHOWN_INPUTS[moment]:
        tabulate(Asking())
        return
    with pytest.raises(PolicyError) as refused:
        tabulate(Asking())
    assert str(refused.value) == f"asking: {moment.name} does not show {wanted.name.lower()}"


SHIPPED: Final = [(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor)]


@pytest.mark.parametrize(("policy", "vendor"), SHIPPED)
def test_a_table_is_looked_up_as_it_is_written(policy: str, vendor: int) -> None:
    """Rows are in row-major order of the inputs: each state finds the row that was written for it."""
    message = table_of(policy, vendor)
    table = make_table(message)
    for rows in message.moments:
        moment = Moment(rows.moment - 1)
        inputs = [Input[name.upper()] for name in rows.inputs]
        for at, state in enumerate(product(*(range(size) for size in rows.sizes))):
            cell = int(table.bases[moment]) + sum(
                int(table.strides[moment, wanted]) * value
                for wanted, value in zip(inputs, state, strict=True)
            )
            assert int(table.cells[cell]) == rows.actions[at]
            assert int(table.next_memories[cell]) == rows.next_memory[at]


@pytest.mark.parametrize(("policy", "vendor"), SHIPPED)
def test_names_count_and_not_positions(policy: str, vendor: int) -> None:
    """A table whose actions and moments come in another order is the same policy."""
    message = table_of(policy, vendor)
    shuffled = Table.FromString(message.SerializeToString())
    order = list(range(len(message.actions)))
    random.Random(1).shuffle(order)
    shuffled.actions[:] = [message.actions[at] for at in order]
    place = {at: position for position, at in enumerate(order)}
    for rows in shuffled.moments:
        rows.actions[:] = [
            sum(1 << place[at] for at in range(len(order)) if bits >> at & 1) for bits in rows.actions
        ]
    backwards = list(reversed(shuffled.moments))
    del shuffled.moments[:]
    shuffled.moments.extend(backwards)
    rows_ = stream([set_dr(0, 0x40), set_dr(7, 0x2401), fetch(0x40), cpuid(), get_dr(6), get_dr(7)])
    ours, theirs = run(rows_, message, shuffled, vendor=vendor).lanes
    assert ours == theirs


class Curious(Kvm):
    """KVM that asks for more than it needs, so that its table is large."""

    asked = 0

    def dr_trapped(self, sees: Sees) -> Do | None:
        """Look around, then answer as always."""
        for what in ("host_breakpoints", "shadow_enables", "moved", "is_write", "would_enable")[: self.asked]:
            getattr(sees, what)
        return super().dr_trapped(sees)


def _calls_to_check(asked: int) -> tuple[int, int]:
    """Return the rows of a table and the calls that its check makes."""
    policy = Curious(ERA_6_14, VMX, dr6_writable=debugreg.DR6_WRITABLE)
    policy.asked = asked
    table = tabulate(policy)
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        make_table(table)
    finally:
        sys.setprofile(None)
    return sum(len(rows.actions) for rows in table.moments), calls


def test_a_large_table_is_checked_in_proportion() -> None:
    """The work of checking a table grows with its rows, not with their square."""
    (few, for_few), (many, for_many) = _calls_to_check(1), _calls_to_check(5)
    assert many > 6 * few
    assert for_many / many < 1.3 * for_few / few


def test_a_rule_declared_twice_is_declared_once() -> None:
    """Two texts for one deviation declare that one, and no other."""
    table = table_of("kvm-6.14")
    del table.deviations[:]
    for _ in range(2):
        table.deviations.add(rule=Deviation.CHECK_ORDER.name)
    assert make_table(table).declares == 1 << Deviation.CHECK_ORDER


RECORDED_DB: Final = event(EventKind.EXCEPTION, selector=1, value=0xFFFF_0FF1)

# Vendor, event, the reason of its exit.
REASONS: Final[tuple[tuple[int, Row, int], ...]] = (
    (VMX, cpuid(), 10),
    (VMX, event(EventKind.NMI), 0),
    (VMX, RECORDED_DB, 0),
    (VMX, get_dr(3), 29),
    (VMX, event(EventKind.MOV_TO_CR, arg=4), 28),
    (VMX, event(EventKind.EXIT, selector=12), 12),
    (SVM, cpuid(), 0x72),
    (SVM, event(EventKind.MOV_TO_CR, arg=0), 0x10),
    (SVM, event(EventKind.MOV_TO_CR, arg=4), 0x14),
    (SVM, RECORDED_DB, 0x41),
    (SVM, get_dr(3), 0x23),
    (SVM, set_dr(7, 0x400), 0x37),
    (SVM, event(EventKind.EXIT, selector=0x400), 0x400),
)


@pytest.mark.parametrize(("vendor", "row", "reason"), REASONS)
def test_class_rules_go_by_reason(vendor: int, row: Row, reason: int) -> None:
    """A rule changes the class of exits with its very reason, and of no other."""
    for number in {*(one for on, _, one in REASONS if on == vendor), 1}:
        table = spoiled("kvm-6.14", ruled(reason=number, exit_class=HEAVY), vendor)
        found = by_class(run(stream(row), table, vendor=vendor, computed=False).lanes[0])
        assert found == ((0, 0, 1) if number == reason else (0, 1, 0)), number


def test_class_rules_do_not_touch_signals() -> None:
    """A signal has no reason, so no rule is about it."""
    table = spoiled("kvm-6.14", ruled(reason=0, exit_class=FAST))
    lane = run(stream(get_dr(0), event(EventKind.SIGNAL), get_dr(0)), table).lanes[0]
    assert lane.vcpus[0].windows == 2


@pytest.mark.parametrize(("classes", "expected"), [((FAST, HEAVY), (1, 0, 0)), ((LIGHT, FAST), (0, 1, 0))])
def test_the_first_rule_that_fits_decides(classes: tuple[int, int], expected: tuple[int, int, int]) -> None:
    """Of two rules for one reason the first counts."""
    table = spoiled("kvm-6.14", ruled(reason=10, exit_class=classes[0]))
    ruled(reason=10, exit_class=classes[1])(table)
    assert by_class(run(stream(cpuid()), table).lanes[0]) == expected


def test_a_rule_for_one_sub_reason() -> None:
    """A rule for a sub-reason leaves the reason's other exits alone; one before it for all includes it."""
    rows = stream(event(EventKind.WRMSR, selector=0x6E0), event(EventKind.WRMSR, selector=0x1D9))
    apart = spoiled("kvm-3.14", ruled(reason=32, sub_reason=1, exit_class=HEAVY))
    assert by_class(run(rows, apart).lanes[0]) == (0, 1, 1)
    together = spoiled("kvm-3.14", ruled(reason=32, exit_class=HEAVY))
    assert by_class(run(rows, together).lanes[0]) == (0, 0, 2)


def test_groups_of_actions() -> None:
    """A policy may answer with groups of actions, in any order."""
    group = (Action.ZERO_DR7, Action.LOAD_DR0_3)
    assert do(Action.LOAD_DR6, group) == do(*reversed(group), Action.LOAD_DR6)
