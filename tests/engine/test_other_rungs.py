"""The ladder holds policies that act at any rung."""

from typing import Final

import pytest

from exitlab.debugreg import VECTOR_UD
from exitlab.events import EventKind
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.vocabulary import Action, Moment
from hypervisor_svc.policies.base import Policy, Sees, do, tabulate
from tests.engine.build import (
    HEAVY,
    SVM,
    VENDOR_OF,
    VENDORS,
    Row,
    cpuid,
    event,
    get_dr,
    host_breakpoints,
    run,
    scheduled_in,
    set_debugregs,
    set_dr,
    standing,
    stream,
    synchronization,
    table_of,
    total,
    wrmsr,
)
from tests.engine.test_story import SAME


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_exception_that_leaves_the_session(vendor: int) -> None:
    """Where the exit for an exception goes up to where registers are saved, they are found in the shadow."""
    table = table_of("nvmm", vendor)
    table.intercepted_exceptions |= 1 << VECTOR_UD
    table.classes.add(reason=0x46 if vendor == SVM else 0, exit_class=HEAVY)
    rows = stream(host_breakpoints(dr7=0x402), event(EventKind.STATE, value=1), set_dr(6, 0xF), get_dr(4))
    lane = run(rows, table, vendor=vendor).lanes[0]
    assert (lane.verdict, lane.first_divergence.what) == (SAME, "")


QUIET: Final = event(EventKind.RDTSC)
OUT: Final = event(EventKind.OUT)


def spy(moment: Moment, vendor: int) -> policy_pb2.PolicyTable:
    """Return a policy that does nothing but read DR6 once at one moment, which can be counted."""

    def answer(_: Policy, sees: Sees) -> object:  # noqa: ARG001  # answers alike in every state
        return do(Action.READ_DR6)

    made: Policy = type("Spy", (Policy,), {moment.name.lower(): answer, "initially_armed": False})()
    made.name, made.vendor, made.claims_correct = moment.name, VENDOR_OF[vendor], False
    return tabulate(made)


SPIED: Final = [moment for moment in Moment if moment not in (Moment.DR_TRAPPED, Moment.DB_EXIT)]
X1, X2, X3, X4 = Moment.LEAVE_GUEST, Moment.LEAVE_LOOP, Moment.LEAVE_SESSION, Moment.LOSE_RESIDENCE
N1, N2, N3, N4 = Moment.ENTER_GUEST, Moment.ENTER_LOOP, Moment.ENTER_SESSION, Moment.GAIN_RESIDENCE
IN, GONE, CONTROL = Moment.SCHEDULED_IN, Moment.SCHEDULED_OUT, Moment.CONTROL_CHANGED
OTHER: Final = event(EventKind.RDTSC, vcpu=1)
DOWN: Final = {N4: 1, N3: 1, N2: 1, N1: 1}

CROSSED: Final[tuple[tuple[list[Row], dict[Moment, int]], ...]] = (
    ([], {}),
    ([QUIET, QUIET], DOWN),
    ([wrmsr(0x6E0)._replace(marks=1 << 6)], {**DOWN, X1: 1}),  # a fast exit goes to 1
    ([wrmsr(0x6E0)._replace(marks=1 << 6), QUIET], {**DOWN, X1: 1, N1: 2}),
    ([cpuid()], {**DOWN, X1: 1, X2: 1}),  # a light one to 2, and down is lazy
    ([cpuid(), QUIET], {**DOWN, X1: 1, X2: 1, N2: 2, N1: 2}),
    ([OUT, QUIET], {N4: 1, N3: 2, N2: 2, N1: 2, X1: 1, X2: 1, X3: 1}),  # a heavy one to 3
    # Scheduling out goes to 3; residence is lost when another vCPU comes.
    ([QUIET, event(EventKind.SCHED_OUT)], {**DOWN, X1: 1, X2: 1, X3: 1, GONE: 1}),
    ([cpuid(), event(EventKind.SCHED_OUT)], {**DOWN, X1: 1, X2: 1, X3: 1, GONE: 1}),
    ([event(EventKind.SCHED_OUT)], {GONE: 1}),
    (
        [QUIET, event(EventKind.SCHED_OUT), scheduled_in(0), QUIET],
        {N4: 1, N3: 2, N2: 2, N1: 2, X1: 1, X2: 1, X3: 1, GONE: 1, IN: 1},
    ),
    ([QUIET, OTHER], {N4: 2, N3: 2, N2: 2, N1: 2, X1: 1, X2: 1, X3: 1, X4: 1}),
    ([QUIET, scheduled_in(0)], {**DOWN, IN: 1}),
    (
        [QUIET, scheduled_in(1), QUIET],
        {N4: 2, N3: 2, N2: 2, N1: 2, X1: 1, X2: 1, X3: 1, X4: 1, IN: 1},
    ),
    # Host control first climbs to 3; from where the vCPU is.
    ([QUIET, *set_debugregs()], {**DOWN, X1: 1, X2: 1, X3: 1, CONTROL: 1}),
    ([cpuid(), event(EventKind.RESET)], {**DOWN, X1: 1, X2: 1, X3: 1, CONTROL: 1}),
    (set_debugregs(), {CONTROL: 1}),
    ([QUIET, *host_breakpoints(cpu=0, vcpu=1)], {**DOWN, X1: 1, X2: 1, X3: 1, CONTROL: 1}),
    ([QUIET, *host_breakpoints(cpu=1)], DOWN),  # nobody is resident there
)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("rows", "expected"), CROSSED)
def test_moments_are_crossed_lazily(rows: list[Row], expected: dict[Moment, int], vendor: int) -> None:
    """Each event crosses the rungs that it needs, upwards at once and downwards when the guest runs."""
    spies = [spy(moment, vendor) for moment in SPIED]
    report = run(stream(rows), *spies, vendor=vendor, vcpus=2, physical_cpus=2, initial=(0, 0))
    found = {
        moment: total([synchronization(lane), standing(lane)]).reads
        for moment, lane in zip(SPIED, report.lanes, strict=True)
    }
    assert {moment: crossings for moment, crossings in found.items() if crossings} == expected
