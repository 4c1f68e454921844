"""What holds after every event, looked up in the records of vCPUs and physical CPUs.

Source of the numbered invariants: derived from ``vcpu_enter_guest`` and ``handle_dr`` of Linux 3.14 to
6.14 (I1 to I6), and from the state machine of opening and closing a window (P3).
"""

from collections.abc import Iterator
from typing import Final

import pytest

from exitlab.debugreg import DR7_RESET
from exitlab.events import EventColumns
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.engine import Engine, records
from hypervisor_svc.engine.records import Words
from tests.engine.build import (
    FAST,
    LIGHT,
    SUMMARY,
    VENDORS,
    VMX,
    engine_for,
    exits,
    mov_dr,
    policies_on,
)
from tests.engine.decorate import decorated
from tests.model.second_model import Event, events_of
from tests.model.streams import Mix, random_stream

ENABLES: Final = 0xFF
OPEN: Final = 1  # the memory of KVM in a window
KVM_WINDOWS: Final = ("kvm-3.15", "kvm-6.14")
NOT_RESIDENT: Final = 4


def steps(engine: Engine, events: EventColumns) -> Iterator[Event]:
    """Feed a stream event by event, and yield each once it is applied."""
    for at, event in enumerate(events_of(events)):
        engine.feed(events.rows(at, at + 1), SUMMARY)
        yield event


def some_steps(vendor: int, *policies: str, computed: bool = True) -> Iterator[tuple[Event, Engine]]:
    """Yield each step of a few random streams, plain and decorated."""
    mix = Mix(computed=computed)
    for seed in range(3):
        plain = random_stream(seed, 200, mix)
        for events in (plain, decorated(plain, seed, computed=computed, all_retire=True)):
            engine = engine_for(mix, *policies, vendor=vendor)
            for event in steps(engine, events):
                yield event, engine


def vcpus(engine: Engine) -> Iterator[tuple[str, Words, Words]]:
    """Return each lane's policy with the records of its vCPUs and physical CPUs."""
    for lane in engine.lanes:
        yield lane.message.name, lane.state.vcpus, lane.state.physical_cpus


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_vcpu_on_a_physical_cpu(vendor: int) -> None:
    """A vCPU below the top rung is the one resident on its CPU; out of the guest, its DR7 matches nothing."""
    for _, engine in some_steps(vendor, *policies_on(vendor)):
        for name, rows, cpus in vcpus(engine):
            for number, row in enumerate(rows):
                is_resident = row[records.RUNG] < NOT_RESIDENT
                assert is_resident == (row[records.RESIDENT_ON] != 0)
                if is_resident:
                    cpu = cpus[int(row[records.RESIDENT_ON]) - 1]
                    assert cpu[records.RESIDENT] == number + 1
                    masked = (DR7_RESET, int(cpu[records.HOST_DR7]))
                    assert row[records.RUNG] == 0 or cpu[records.HARDWARE_DR7] in masked, name
            residents = [int(cpu[records.RESIDENT]) for cpu in cpus if cpu[records.RESIDENT]]
            assert len(set(residents)) == len(residents)


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_truth_beside_the_beliefs(vendor: int, computed: bool) -> None:
    """The registers that every lane compares with are the reference's, after every event."""
    for _, engine in some_steps(vendor, *policies_on(vendor), computed=computed):
        (one,) = engine.references.values()
        for name, rows, _ in vcpus(engine):
            for row, truth in zip(rows, one.state, strict=True):
                ours = row[records.TRUE : records.TRUE_DR7 + 1].tolist()
                theirs = truth[: ref.DR7 + 1].tolist()
                undefined = int(truth[ref.UNDEFINED])
                ours[4], theirs[4] = ours[4] & ~undefined, theirs[4] & ~undefined
                assert ours == theirs, name
                assert row[records.HAS_DE] == truth[ref.HAS_DE]


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_window_is_open_or_intercepted(vendor: int) -> None:
    """I3: WONT_EXIT means that the intercept is off, and out of the run loop it is never set."""
    opened = 0
    for _, engine in some_steps(vendor, *KVM_WINDOWS):
        for name, rows, _ in vcpus(engine):
            for row in rows:
                is_open = row[records.MEMORY] == OPEN
                opened += is_open
                assert is_open == (row[records.ARMED] == 0), name
                assert is_open == (row[records.WINDOW] == records.WINDOW_OPEN), name
                assert not (is_open and row[records.RUNG] >= LIGHT), name
    assert opened > 100


def _believes_rightly(row: Words) -> bool:
    """Return whether the belief is that of the DR7 that goes to the hardware."""
    enables = int(row[records.EFFECTIVE_DR7]) & ENABLES != 0
    return bool(row[records.BELIEF]) == enables


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_belief_is_exact(vendor: int) -> None:
    """I4: outside of windows BP_ENABLED is set just when DR7 enables something; not so on 3.15."""
    wrong = 0
    for _, engine in some_steps(vendor, "kvm-3.15", "kvm-6.14", "kvm-3.14"):
        for name, rows, _ in vcpus(engine):
            closed = [row for row in rows if row[records.WINDOW] == records.WINDOW_CLOSED]
            for row in closed:
                if name == "kvm-3.15":
                    wrong += not _believes_rightly(row)
                    continue
                assert _believes_rightly(row), name
                if name == "kvm-6.14":
                    assert (row[records.FIELD_DR7] ^ row[records.TRUE_DR7]) & ENABLES == 0
    assert wrong > 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_host_has_its_own_back(vendor: int) -> None:
    """I6: where the host uses breakpoints, its registers are back once the run loop is left."""
    seen = 0
    first_rung = {name: LIGHT for name in policies_on(vendor) if name.startswith("kvm")}
    for _, engine in some_steps(vendor, *first_rung, "swap-each-entry"):
        for name, rows, cpus in vcpus(engine):
            for cpu in cpus:
                if not cpu[records.HOST_ACTIVE]:
                    continue
                resident = int(cpu[records.RESIDENT])
                rung = int(rows[resident - 1, records.RUNG]) if resident else NOT_RESIDENT
                if rung >= first_rung.get(name, FAST):
                    seen += 1
                    assert cpu[:4].tolist() == cpu[records.HOST : records.HOST + 4].tolist(), name
                    assert cpu[records.HARDWARE_DR7] == cpu[records.HOST_DR7], name
                    owners = cpu[records.OWNER : records.OWNER + 4].tolist()
                    assert owners == [records.OWNER_HOST] * 4, name
    assert seen > 50


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
def test_windows_save_exits(vendor: int, computed: bool) -> None:
    """I5: KVM with windows never makes more MOV DR exits than without, and on VMX no more exits at all."""
    mix = Mix(computed=computed, outside=False)
    for seed in range(5):
        engine = engine_for(mix, "kvm-3.14", "kvm-3.15", "kvm-6.14", vendor=vendor)
        engine.feed(random_stream(seed, 400, mix), SUMMARY)
        old, first, new = engine.report().lanes
        assert mov_dr(old)[1] >= max(mov_dr(first)[1], mov_dr(new)[1])
        if vendor == VMX:
            assert mov_dr(old)[1] == mov_dr(old)[0]
            assert sum(exits(old).values()) >= sum(exits(new).values())


# Accesses that are refused do not open a window; P3 leaves them out.
GRANTED: Final = Mix(general_detect=False, user_mode=False, debug_extensions=False)


@pytest.mark.parametrize("policy", KVM_WINDOWS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_window_needs_an_exit_to_close_it(vendor: int, policy: str) -> None:
    """P3: on each vCPU there is at most one MOV DR exit more than other exits that leave the run loop."""
    tight = 0
    for seed in range(8):
        engine = engine_for(GRANTED, policy, vendor=vendor)
        engine.feed(random_stream(seed, 400, GRANTED), SUMMARY)
        for vcpu in engine.report().lanes[0].vcpus:
            _, light, heavy = vcpu.exits_by_class
            others = light + heavy - vcpu.mov_dr_trapped
            assert vcpu.mov_dr_trapped <= min(others + 1, vcpu.mov_dr_executed)
            tight += vcpu.mov_dr_trapped * 2 > others
    assert tight > 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_owed_before_an_entry(vendor: int) -> None:
    """A vCPU in the guest owes nothing; out of it, what it has done since is charged to its last exit."""
    for _, engine in some_steps(vendor, *policies_on(vendor)):
        for name, rows, _ in vcpus(engine):
            for row in rows:
                owes = int(row[records.PENDING_KEY]) != 0
                assert owes == (row[records.RUNG] != 0), name


@pytest.mark.parametrize("vendor", VENDORS)
def test_swap_never_intercepts(vendor: int) -> None:
    """P1: the intercept stays off, no MOV DR exits, and after each exit the shadow is the guest's."""
    for _, engine in some_steps(vendor, "swap-each-entry"):
        for _, rows, _ in vcpus(engine):
            for row in rows:
                assert row[records.ARMED] == 0
                assert row[records.TRAPPED] == 0
                if row[records.RUNG] > 0 and not row[records.TRUE_UNDEFINED]:
                    shadow = row[records.SHADOW : records.SHADOW + 4].tolist()
                    assert shadow == row[records.TRUE : records.TRUE + 4].tolist()
