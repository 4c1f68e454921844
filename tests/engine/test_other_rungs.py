"""The ladder holds policies that act at any rung."""

from collections.abc import Callable
from typing import Final

import pytest

from exitlab.events import EventColumns, EventKind
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.vocabulary import Action, Moment
from hypervisor_svc.policies.base import Policy, Sees, do, tabulate
from tests.engine.build import (
    FULL,
    HEAVY,
    SVM,
    VENDOR_OF,
    VENDORS,
    VMX,
    Counts,
    Row,
    context_switch,
    cpuid,
    engine_for,
    event,
    fetch,
    get_dr,
    host_breakpoints,
    interrupt,
    mov_dr,
    outcomes,
    run,
    scheduled_in,
    set_debugregs,
    set_dr,
    standing,
    stream,
    synchronization,
    total,
    windows,
    wrmsr,
)
from tests.engine.decorate import decorated
from tests.engine.other_rungs import (
    OTHERS,
    OpenUntilDescheduled,
    OpenUntilHeavyExit,
    Other,
    SwapsEachRun,
    SwapsWithTheHost,
)
from tests.engine.test_story import SAME, differences, final_reads, truth_of
from tests.model.second_model import events_of
from tests.model.streams import Mix, random_stream


def mix_for(kind: Callable[[int], Other], *, computed: bool) -> Mix:
    """Return a mix that a hypervisor can be right on."""
    return Mix(computed=computed, host=kind is not OpenUntilDescheduled)


def some_events(mix: Mix, seed: int, events: int) -> EventColumns:
    """Return a random stream with events of every kind."""
    return decorated(random_stream(seed, events, mix), seed, computed=mix.computed)


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", OTHERS)
def test_same_story(kind: Callable[[int], Other], vendor: int, computed: bool) -> None:
    """Whatever the rung at which registers are switched, the guest sees the architecture's story."""
    mix = mix_for(kind, computed=computed)
    for seed in range(8):
        events = some_events(mix, seed, 300)
        engine = engine_for(mix, kind(vendor), vendor=vendor)
        parts = engine.feed(events, FULL)
        lane = engine.report().lanes[0]
        assert differences(outcomes(parts, 0), truth_of(events, mix, vendor)) == []
        assert (lane.verdict, list(lane.leaks), lane.latent_hazards) == (SAME, [], 0)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("kind", OTHERS)
def test_an_exception_shows_what_its_handler_would_read(kind: Callable[[int], Other], vendor: int) -> None:
    """Wherever the guest's DR6 is when an exception is delivered, it is found there."""
    for computed in (True, False):
        mix = mix_for(kind, computed=computed)
        events = some_events(mix, 1, 250)
        engine = engine_for(mix, kind(vendor), vendor=vendor)
        for at, one in enumerate(events_of(events)):
            part = engine.feed(events.rows(at, at + 1), FULL)[0]
            if part.stories[0] in (2, 3, 4, 5):
                assert part.story_values[0] == final_reads(engine, 0, one.vcpu), at


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_exception_that_leaves_the_session(vendor: int) -> None:
    """Where the exit for an exception goes up to where registers are saved, they are found in the shadow."""
    table = tabulate(SwapsEachRun(vendor))
    table.classes.add(reason=0x46 if vendor == SVM else 0, exit_class=HEAVY)
    rows = stream(host_breakpoints(dr7=0x402), event(EventKind.STATE, value=1), set_dr(6, 0xF), get_dr(4))
    lane = run(rows, table, vendor=vendor).lanes[0]
    assert (lane.verdict, lane.first_divergence.what) == (SAME, "")


BURST: Final = context_switch()
HIT: Final = [set_dr(0, 0x40), set_dr(7, 0x401), fetch(0x40)]
QUIET: Final = event(EventKind.RDTSC)
OUT: Final = event(EventKind.OUT)

# What the published state machines pay: policy, vendor, stream, MOV DR exits, windows, operations.
COSTS: Final[tuple[tuple[Callable[[int], Other], int, list[Row], int, int, Counts], ...]] = (
    # 11 R and 12 W for each exit with its entry, whatever the class; on SVM 10 R and 11 W.
    (SwapsWithTheHost, VMX, [*BURST, wrmsr(0x6E0), cpuid()], 0, 0, Counts(2 * 11, 2 * 12, 2, 0)),
    (SwapsWithTheHost, SVM, [*BURST, wrmsr(0x6E0), cpuid()], 0, 0, Counts(2 * 10, 2 * 11)),
    # 6 W and 5 R for each run; exits that stay in the kernel are free.
    (SwapsEachRun, VMX, [*BURST, cpuid(), interrupt(), OUT], 0, 0, Counts(5, 6, 1, 0)),
    (SwapsEachRun, SVM, [*BURST, cpuid(), interrupt(), OUT], 0, 0, Counts(4, 5)),
    # One exit a session; 6 R and 6 W to open, 5 R and 6 W to close.
    (OpenUntilHeavyExit, VMX, [*BURST, cpuid(), *BURST, OUT], 1, 1, Counts(11, 12, 1, 2)),
    # 5 W to open; nothing at exits; 5 R to close, when another vCPU comes.
    (OpenUntilDescheduled, VMX, [*BURST, OUT, *BURST, get_dr(0, vcpu=1)], 2, 2, Counts(5, 10, 3, 3)),
)


@pytest.mark.parametrize(("kind", "vendor", "rows", "trapped", "opened", "expected"), COSTS)
def test_costs(
    kind: Callable[[int], Other],
    vendor: int,
    rows: list[Row],
    trapped: int,
    opened: int,
    expected: Counts,
) -> None:
    """Exits, windows and operations are those of the published state machines."""
    report = run(stream(rows), kind(vendor), vendor=vendor, vcpus=2, physical_cpus=1, initial=(0, 0))
    lane = report.lanes[0]
    assert (mov_dr(lane)[1], windows(lane)) == (trapped, opened)
    assert total([synchronization(lane), standing(lane)]) == expected


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
