"""What a policy can see, and what the loop counts beside stories: leaks, blindness, selective intercepts."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from exitlab.events import EventKind
from exitlab.v1 import policy_pb2, report_pb2
from hypervisor_svc.engine.vocabulary import Action, Check, Control, Moment, RegisterClass
from hypervisor_svc.policies.base import Do, Policy, Sees, do, tabulate
from tests.engine.build import (
    NOT_RETIRED,
    SVM,
    TSC_DEADLINE,
    VENDOR_OF,
    VENDORS,
    VMX,
    Row,
    cpuid,
    event,
    get_dr,
    host_breakpoints,
    mov_dr,
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

Question = Callable[[Sees], bool]
GD: Final = 1 << 13


def emulator(moment: Moment, vendor: int, asks: Question, **attributes: Any) -> policy_pb2.PolicyTable:
    """Return a policy that emulates, and reads DR6 once whenever ``asks`` is true at a moment."""

    def counted(sees: Sees, answer: Do | None) -> Do | None:
        extra = (Action.READ_DR6,) if asks(sees) else ()
        return do(answer.actions if answer else (), extra)

    def dr_trapped(sees: Sees) -> Do | None:
        fault = sees.check is not Check.NONE
        answer = do(Action.INJECT) if fault else do(Action.EMULATE, Action.RECOMPUTE)
        return counted(sees, answer) if moment is Moment.DR_TRAPPED else answer

    def other(sees: Sees) -> Do | None:
        loads = {Moment.ENTER_LOOP: do(Action.ZERO_DR7, Action.LOAD_DR0_3)}
        takes_over = {Moment.CONTROL_CHANGED: do(Action.EFFECTIVE, Action.RECOMPUTE)}
        return counted(sees, {**loads, **takes_over}.get(moment))

    methods = {"dr_trapped": staticmethod(dr_trapped), moment.name.lower(): staticmethod(other)}
    if moment is Moment.DR_TRAPPED:
        methods[moment.name.lower()] = staticmethod(dr_trapped)
    made: Policy = type("Emulator", (Policy,), {**methods, **attributes})()
    made.name, made.vendor = "emulator", VENDOR_OF[vendor]
    return tabulate(made)


def times(table: policy_pb2.PolicyTable, vendor: int, *rows: Row | list[Row]) -> int:
    """Return how often the question was answered with yes, on two vCPUs and two physical CPUs."""
    lane = run(stream(*rows), table, vendor=vendor, vcpus=2, physical_cpus=2, initial=(0, 0)).lanes[0]
    return total([synchronization(lane), standing(lane)]).reads


HOSTED: Final = host_breakpoints(db0=0x40, dr7=0x402)
UNHOSTED: Final = host_breakpoints()

# A moment, a question there, a stream, how often the answer is yes.
SEEN: Final[tuple[tuple[Moment, Question, list[Row], int], ...]] = (
    (
        Moment.ENTER_LOOP,
        lambda s: s.breakpoints_enabled,
        [set_dr(7, 0x401), get_dr(0), set_dr(7, 0), cpuid()],
        2,
    ),
    (
        Moment.ENTER_LOOP,
        lambda s: s.shadow_enables,
        [set_dr(7, 0x480), get_dr(0), set_dr(7, 0x300), cpuid()],
        2,
    ),
    (
        Moment.ENTER_LOOP,
        lambda s: s.debug_controls_at_reset,
        [set_dr(7, 0x500), get_dr(0), set_dr(7, 0), cpuid()],
        2,
    ),
    (Moment.LEAVE_LOOP, lambda s: s.host_breakpoints, [*HOSTED, cpuid(), cpuid(), *UNHOSTED, cpuid()], 2),
    (Moment.LEAVE_LOOP, lambda s: s.host_breakpoints, [*host_breakpoints(cpu=1, dr7=0x402), cpuid()], 0),
    # Moved: not on the CPU of the last load, or never loaded.
    (Moment.ENTER_LOOP, lambda s: s.moved, [cpuid(), cpuid(), cpuid()], 1),
    (Moment.ENTER_LOOP, lambda s: s.moved, [cpuid(), scheduled_in(1), cpuid(), cpuid()], 2),
    (Moment.ENTER_LOOP, lambda s: s.moved, [cpuid(), cpuid(vcpu=1), cpuid()], 2),
    # Of the trapped access itself.
    (Moment.DR_TRAPPED, lambda s: s.is_write, [set_dr(0, 1), get_dr(0), set_dr(6, 1)], 2),
    (
        Moment.DR_TRAPPED,
        lambda s: s.register_class is RegisterClass.ADDRESS,
        [get_dr(n) for n in (0, 1, 2, 3, 4, 5, 6, 7)],
        4,
    ),
    (
        Moment.DR_TRAPPED,
        lambda s: s.register_class is RegisterClass.STATUS,
        [get_dr(n) for n in (3, 4, 5, 6)],
        2,
    ),
    (
        Moment.DR_TRAPPED,
        lambda s: s.register_class is RegisterClass.CONTROL,
        [get_dr(n) for n in (4, 5, 6, 7)],
        2,
    ),
    (
        Moment.DR_TRAPPED,
        lambda s: s.would_enable,
        [set_dr(7, 0x401), set_dr(7, 0x700), set_dr(6, 1), get_dr(7)],
        1,
    ),
    (Moment.DR_TRAPPED, lambda s: s.would_enable, [set_dr(5, 0x40)], 1),
    (
        Moment.CONTROL_CHANGED,
        lambda s: s.control is Control.DEBUGREGS,
        [cpuid(), *set_debugregs(), event(EventKind.RESET), *HOSTED],
        1,
    ),
    (
        Moment.CONTROL_CHANGED,
        lambda s: s.control is Control.RESET,
        [cpuid(), *set_debugregs(), event(EventKind.RESET), event(EventKind.INIT), *HOSTED],
        2,
    ),
    (
        Moment.CONTROL_CHANGED,
        lambda s: s.control is Control.HOST_BREAKPOINTS,
        [cpuid(), *HOSTED, *UNHOSTED],
        2,
    ),
)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("moment", "asks", "rows", "expected"), SEEN)
def test_inputs(moment: Moment, asks: Question, rows: list[Row], expected: int, vendor: int) -> None:
    """Each input is what the host can see, or the belief as RECOMPUTE left it."""
    assert times(emulator(moment, vendor, asks), vendor, rows) == expected


DE: Final = event(EventKind.STATE, value=1)
ORDERS: Final[dict[tuple[Check, ...], Check]] = {
    (Check.UD, Check.GP, Check.GD): Check.UD,
    (Check.GP, Check.GD, Check.UD): Check.GP,
    (Check.GD, Check.UD, Check.GP): Check.GD,
    (Check.GD, Check.GP): Check.GD,  # a check may be left out
    (Check.GP,): Check.GP,
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_first_check_in_the_policys_own_order(order: tuple[Check, ...]) -> None:
    """An access that fails all three checks fails the policy's first; on VMX the exit comes before them."""
    rows = [DE, set_dr(7, GD), get_dr(4, modes=3)]
    for asked in Check:
        table = emulator(Moment.DR_TRAPPED, VMX, lambda s, asked=asked: s.check is asked, check_order=order)  # type: ignore[misc]
        assert times(table, VMX, rows) == (asked in (ORDERS[order], Check.NONE))


@pytest.mark.parametrize("vendor", VENDORS)
def test_accesses_that_are_never_intercepted(vendor: int) -> None:
    """Reads and writes of a register may be left out of the intercept, each by its own bit."""
    rows = stream([get_dr(0), cpuid(), set_dr(0, 1), cpuid(), get_dr(7), cpuid(), set_dr(7, 0x400), cpuid()])
    for bits, trapped in ((0, 4), (1 << 0, 3), (1 << 8, 3), (1 << 7 | 1 << 15, 2), (0xFFFF, 0)):
        table = table_of("kvm-6.14", vendor)
        table.unintercepted_accesses = bits
        assert mov_dr(run(rows, table, vendor=vendor).lanes[0]) == (4, trapped)


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_host_is_blind_in_fast_exits(vendor: int) -> None:
    """An exit that stays in the run loop masks the host's breakpoints; KVM restores them at others."""
    rows = stream(HOSTED, wrmsr(TSC_DEADLINE), cpuid(), wrmsr(TSC_DEADLINE))
    new, old, swap = run(rows, "kvm-6.14", "kvm-3.15", "swap-each-entry", vendor=vendor).lanes
    assert [lane.host_blind for lane in (new, old, swap)] == [2, 0, 0]
    never = run(rows, "ignore", vendor=vendor).lanes[0]
    assert never.host_blind == 3


class Masking(Policy):
    """Gives the host its registers back, then masks them further up."""

    name = "masking"
    claims_correct = False
    initially_armed = False
    by: Action = Action.ZERO_DR7

    def leave_loop(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Restore the host's registers."""
        return do(Action.HOST_RESTORE)

    def leave_session(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Mask them."""
        return do(self.by)


@pytest.mark.parametrize("by", [Action.ZERO_DR7, Action.DR7_OFF])
@pytest.mark.parametrize("vendor", VENDORS)
def test_actions_that_mask(vendor: int, by: Action) -> None:
    """Both bare ways to write 0x400 to the hardware's DR7 mask the host's breakpoints."""
    policy = Masking()
    policy.vendor, policy.by = VENDOR_OF[vendor], by
    lane = run(stream(HOSTED, cpuid(), event(EventKind.OUT)), policy, vendor=vendor).lanes[0]
    assert lane.host_blind == 1


class Reckless(Policy):
    """Turns the hardware's DR7 on again, with the guest's registers still there."""

    name = "reckless"
    claims_correct = False
    initially_armed = False

    def leave_guest(self, sees: Sees) -> Do | None:  # noqa: ARG002  # answers alike in every state
        """Take the guest's DR7 over, and write it."""
        return do(Action.SAVE_DR7, Action.EFFECTIVE, Action.DR7_ON)


@pytest.mark.parametrize("vendor", VENDORS)
def test_host_code_over_foreign_registers(vendor: int) -> None:
    """The host leaks a guest's address where its own DR7 is enabled over it; a masked DR7 is no leak."""
    policy = Reckless()
    policy.vendor = VENDOR_OF[vendor]
    rows = stream(HOSTED, set_dr(0, 0x99), set_dr(7, 0x402), cpuid())
    leaks = run(rows, policy, vendor=vendor).lanes[0].leaks
    found = {(leak.kind, leak.register, leak.owner): leak.count for leak in leaks}
    assert found == {(report_pb2.LEAK_KIND_ARMED_IN_HOST, 0, 0): 1}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("policy", ["kvm-6.14", "swap-each-entry", "kvm-3.14"])
def test_scheduling_in_place_is_not_host_code(policy: str, vendor: int) -> None:
    """Told that it runs where it runs, a vCPU stays in the guest, and no host code runs."""
    rows = stream(HOSTED, set_dr(0, 0x99), set_dr(7, 0x402), scheduled_in(0))
    lane = run(rows, policy, vendor=vendor).lanes[0]
    assert (list(lane.leaks), lane.host_blind) == ([], 0)


# The first event, the second on another vCPU of the same physical CPU, and the leaks under ``ignore``.
FOREIGN: Final = {
    "read": ([set_dr(2, 5), get_dr(2, vcpu=1)], {("USED_BY_GUEST", 2, 0): 1}),
    "own": ([set_dr(2, 5), set_dr(2, 6, vcpu=1), get_dr(2, vcpu=1)], {}),
    "reset value": ([get_dr(2), get_dr(3, vcpu=1)], {}),
    "armed": (
        [set_dr(1, 5), set_dr(7, 0x404, vcpu=1), cpuid(vcpu=1), get_dr(7, vcpu=1)],
        {("ARMED_IN_GUEST", 1, 0): 1},
    ),
    "hit": (
        [set_dr(1, 5), set_dr(7, 0x404, vcpu=1), event(EventKind.FETCH, 1, value=5)],
        {("USED_BY_GUEST", 1, 0): 1},
    ),
    "host's": (
        [*host_breakpoints(db3=7, dr7=0x480), get_dr(3)],
        {("USED_BY_GUEST", 3, 256): 1},
    ),
    "not retired": ([set_dr(2, 5), get_dr(2, vcpu=1, marks=NOT_RETIRED)], {}),
}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("rows", "expected"), FOREIGN.values(), ids=FOREIGN)
def test_leaks_of_ignore(rows: list[Row], expected: dict[tuple[str, int, int], int], vendor: int) -> None:
    """A foreign register is a leak where it is read, hits, or is enabled at an entry."""
    lane = run(stream(rows), "ignore", vendor=vendor, vcpus=2, physical_cpus=1, initial=(0, 0)).lanes[0]
    found = {
        (
            report_pb2.LeakKind.Name(leak.kind).removeprefix("LEAK_KIND_"),
            leak.register,
            leak.owner,
        ): leak.count
        for leak in lane.leaks
    }
    assert found == expected


def test_dr6_is_the_vcpus_own_on_svm() -> None:
    """DR6 leaks under ``ignore`` on VMX only: on SVM it is part of the VMCB."""
    rows = stream(set_dr(6, 0xF), get_dr(6, vcpu=1))
    for vendor, expected in ((VMX, [(6, 0, 1)]), (SVM, [])):
        lane = run(rows, "ignore", vendor=vendor, vcpus=2, physical_cpus=1, initial=(0, 0)).lanes[0]
        assert [(leak.register, leak.owner, leak.count) for leak in lane.leaks] == expected
