"""What holds for KVM's versions after every event of any stream, and what it costs to have windows.

Source of the numbered invariants: derived from ``vcpu_enter_guest``, ``handle_dr`` and the sync functions
of Linux 3.14 to 7.1 (I1 to I6), and from the state machine of opening and closing a window (P3). Their
exceptions: a window that is about to open survives KVM_SET_GUEST_DEBUG, and on 3.15 and 4.4 the belief
that a breakpoint is enabled goes stale (B1).
"""

from collections.abc import Iterator
from typing import Final

import pytest

from exitlab.events import EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.engine import Engine, records
from hypervisor_svc.engine.records import Words
from tests.engine.build import (
    FULL,
    LIGHT,
    SUMMARY,
    VENDORS,
    VMX,
    engine_for,
    exits,
    mov_dr,
    outcomes,
    policies_on,
)
from tests.engine.decorate import GROUPS, mix_of
from tests.engine.test_invariants import NOT_RESIDENT, some_steps, vcpus
from tests.model.second_model import Event
from tests.model.streams import Mix, random_stream

ENABLES: Final = 0xFF
OPEN: Final = 1  # the memory of every version in a window
STALE_BELIEF: Final = ("kvm-3.15", "kvm-4.4")


def kvm_on(vendor: int, *, windows: bool = False) -> tuple[str, ...]:
    """Return the versions of KVM that exist on ``vendor``, or those that open windows."""
    names = [name for name in policies_on(vendor) if name.startswith("kvm-") and name != "kvm-pvm"]
    return tuple(name for name in names if name != "kvm-3.14" or not windows)


def rows_after(vendor: int, group: str, names: tuple[str, ...]) -> Iterator[tuple[str, Event, int, Words]]:
    """Yield for each step each lane's policy, the event, and each vCPU with its record.

    A lane that has refused to nest goes another way than its stream, and is left out from there.
    """
    for event, engine in some_steps(vendor, *names, mix=mix_of(group, vendor)):
        for lane in engine.lanes:
            if not lane.state.counts[records.REFUSED]:
                for number, row in enumerate(lane.state.vcpus):
                    yield lane.message.name, event, number, row


@pytest.mark.parametrize("vendor", VENDORS)
def test_versions_show_the_same_registers(vendor: int) -> None:
    """I1: on one stream all versions that are right show the same values, but where they declare others."""
    mix = mix_of("everything", vendor)
    names = [name for name in kvm_on(vendor) if name in policies_on(vendor, correct=True)]
    alike = 0
    for seed in range(6):
        engine = engine_for(mix, *names, vendor=vendor)
        parts = engine.feed(random_stream(seed, 250, mix), FULL)
        same = [
            number
            for number, lane in enumerate(engine.report().lanes)
            if lane.verdict == report_pb2.VERDICT_SAME
        ]
        told = [(outcomes(parts, number).stories, engine.lanes[number].final_registers()) for number in same]
        alike += len(told)
        assert all(one == told[0] for one in told)
    assert alike > 0


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_no_window_under_a_debugger(vendor: int, group: str) -> None:
    """I2: WONT_EXIT is not set while a debugger is attached, unless it was about to take effect then."""
    surviving: set[tuple[str, int]] = set()
    for name, event, number, row in rows_after(vendor, group, kvm_on(vendor, windows=True)):
        key = (name, number)
        is_open = row[records.MEMORY] == OPEN
        if not is_open:
            surviving.discard(key)
        elif event.kind == EventKind.HOST_DEBUGGER and event.vcpu == number:
            assert row[records.WINDOW] == records.WINDOW_OPENING, name
            surviving.add(key)
        assert not is_open or row[records.DEBUGGER] == 0 or key in surviving, name


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_window_is_open_or_intercepted(vendor: int, group: str) -> None:
    """I3: WONT_EXIT means that the intercept is off; out of the run loop it can only be about to open."""
    opened = 0
    for name, _, _, row in rows_after(vendor, group, kvm_on(vendor, windows=True)):
        is_open = row[records.MEMORY] == OPEN
        opened += is_open
        assert is_open == (row[records.ARMED] == 0), name
        assert is_open == (row[records.WINDOW] != records.WINDOW_CLOSED), name
        assert row[records.WINDOW] != records.WINDOW_OPEN or row[records.RUNG] < LIGHT, name
        assert row[records.WINDOW] != records.WINDOW_OPENING or row[records.RUNG] >= LIGHT, name
    assert opened > 100


def _believes_rightly(row: Words) -> bool:
    """Return whether the belief is that of the DR7 that goes to the hardware."""
    enables = int(row[records.EFFECTIVE_DR7]) & ENABLES != 0
    return bool(row[records.BELIEF]) == enables


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_belief_is_exact(vendor: int, group: str) -> None:
    """I4: outside of windows BP_ENABLED is set just when DR7 enables something; not so on 3.15 and 4.4."""
    wrong = dict.fromkeys(STALE_BELIEF, 0)
    for name, _, _, row in rows_after(vendor, group, kvm_on(vendor)):
        if row[records.WINDOW] != records.WINDOW_CLOSED:
            continue
        if name in STALE_BELIEF:
            wrong[name] += not _believes_rightly(row)
            continue
        assert _believes_rightly(row), name
        if row[records.DEBUGGER] != 2 and row[records.RUNG] >= LIGHT:
            unlike = int(row[records.FIELD_DR7] ^ row[records.TRUE_DR7]) & ~int(row[records.DECLARED_DR7])
            assert unlike & ENABLES == 0, name
    assert all(wrong.values())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_windows_save_exits(vendor: int, group: str) -> None:
    """I5: no version with windows makes more MOV DR exits than 3.14 does without."""
    mix = mix_of(group, vendor)
    for seed in range(5):
        engine = engine_for(mix, *kvm_on(vendor), vendor=vendor)
        engine.feed(random_stream(seed, 400, mix), SUMMARY)
        old, *others = engine.report().lanes
        assert old.policy == "kvm-3.14"
        if old.refused_controls:
            continue  # no nested guest, so no access that is L1's to answer
        for lane in others:
            assert mov_dr(lane)[1] <= mov_dr(old)[1], lane.policy
        if vendor == VMX:
            assert mov_dr(old)[1] == mov_dr(old)[0]


@pytest.mark.parametrize("computed", [True, False])
def test_windows_save_all_exits_on_vmx(computed: bool) -> None:
    """I5: where nothing is stepped, 6.14 makes no more exits of any reason than 3.14."""
    mix = Mix(computed=computed, outside=False)
    for seed in range(5):
        engine = engine_for(mix, "kvm-3.14", "kvm-6.14", vendor=VMX)
        engine.feed(random_stream(seed, 400, mix), SUMMARY)
        old, new = engine.report().lanes
        assert sum(exits(old).values()) >= sum(exits(new).values())


def _host_rungs(engine: Engine) -> Iterator[tuple[str, int, Words]]:
    """Yield each lane's policy, and each CPU that the host uses with the rung of who is resident there."""
    for name, rows, cpus in vcpus(engine):
        for cpu in cpus:
            if cpu[records.HOST_ACTIVE]:
                resident = int(cpu[records.RESIDENT])
                yield name, int(rows[resident - 1, records.RUNG]) if resident else NOT_RESIDENT, cpu


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_host_has_its_own_back(vendor: int, group: str) -> None:
    """I6: where the host uses breakpoints, its registers are back once the run loop is left."""
    seen = 0
    for _, engine in some_steps(vendor, *kvm_on(vendor), mix=mix_of(group, vendor)):
        for name, rung, cpu in _host_rungs(engine):
            if rung >= LIGHT:
                seen += 1
                assert cpu[:4].tolist() == cpu[records.HOST : records.HOST + 4].tolist(), name
                assert cpu[records.HARDWARE_DR7] == cpu[records.HOST_DR7], name
                owners = cpu[records.OWNER : records.OWNER + 4].tolist()
                assert owners == [records.OWNER_HOST] * 4, name
    assert seen > 50


# Accesses that are refused do not open a window; P3 leaves them out.
GRANTED: Final = Mix(general_detect=False, user_mode=False, debug_extensions=False)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_window_needs_an_exit_to_close_it(vendor: int) -> None:
    """P3: on each vCPU there is at most one MOV DR exit more than other exits that leave the run loop."""
    tight = 0
    for seed in range(8):
        engine = engine_for(GRANTED, *kvm_on(vendor, windows=True), vendor=vendor)
        engine.feed(random_stream(seed, 400, GRANTED), SUMMARY)
        for lane in engine.report().lanes:
            for vcpu in lane.vcpus:
                _, light, heavy = vcpu.exits_by_class
                others = light + heavy - vcpu.mov_dr_trapped
                assert vcpu.mov_dr_trapped <= min(others + 1, vcpu.mov_dr_executed), lane.policy
                tight += vcpu.mov_dr_trapped * 2 > others
    assert tight > 0
