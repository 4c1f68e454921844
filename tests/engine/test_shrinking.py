"""The known bugs of KVM's versions are found in random streams, and shrink to the shortest that show them.

Nothing in the engine knows of them. Each is told from other differences by its repair: the same version
with one fact put right, which tells the story that the version does not.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import pytest

from exitlab.events import EventColumns, EventKind
from hypervisor_svc.arch.story import Story
from hypervisor_svc.engine import BadEvents
from tests.engine.build import SUMMARY, SVM, VMX, PolicyLike, Row, engine_for, stream
from tests.engine.repairs import Repair, kvm, loading_once, recomputing
from tests.engine.shrinking import Shows, rows_of, shrunk, smallest
from tests.model.streams import Mix, random_stream

# Two vCPUs on one physical CPU and their breakpoints; what is in no known bug is left out.
PLAIN: Final = Mix(
    vcpus=2,
    cpus=1,
    class_override=False,
    general_detect=False,
    high_bits=False,
    user_mode=False,
    operand_32=False,
    debug_extensions=False,
    handlers=False,
    retired=False,
    outside=False,
    host=False,
    scheduling=False,
)
SEEDS: Final = range(60)
EVENTS: Final = 60

# Fault: the kind of event that shows it, the versions that have it by vendor, its repair, and the length of
# the shortest streams that an exhaustive search on another model found. (B1 can do with one less, see below.)
FAULTS: Final[dict[str, tuple[EventKind, tuple[tuple[str, int], ...], Repair, int]]] = {
    "B1, missed breakpoint": (
        EventKind.FETCH,
        tuple((version, vendor) for version in ("3.15", "4.4") for vendor in (VMX, SVM)),
        recomputing,
        4,
    ),
    "D1, stale DR6": (
        EventKind.MOV_FROM_DR,
        (("5.14", SVM), *((version, vendor) for version in ("5.17", "6.8") for vendor in (VMX, SVM))),
        loading_once,
        3,
    ),
}
CASES: Final = [
    (name, version, vendor) for name, (_, lanes, _, _) in FAULTS.items() for version, vendor in lanes
]


def diverges(policy: PolicyLike, vendor: int, kind: EventKind | None = None) -> Shows:
    """Return the question whether an event of a stream shows the guest less under a policy, or another value.

    The first that differs is of ``kind``, if one is given. What only the registers at the end would show is
    not counted, nor what is no stream.
    """

    def shows(events: EventColumns) -> bool:
        engine = engine_for(PLAIN, policy, vendor=vendor)
        with contextlib.suppress(BadEvents):
            engine.feed(events, SUMMARY)
        lane = engine.report().lanes[0]
        first = lane.first_divergence
        is_less = int(first.story) in (Story.NOTHING, Story.READ)
        return lane.diverged_events > 0 and (kind is None or (int(first.kind) == kind and is_less))

    return shows


def random_streams() -> Iterator[EventColumns]:
    """Return the streams that are searched."""
    return (random_stream(seed, EVENTS, PLAIN) for seed in SEEDS)


def is_away_from_zero(events: EventColumns) -> bool:
    """Return whether no fetch or access is at address 0, which DR0 to DR3 hold without a write."""
    is_access = np.isin(events.kinds, (EventKind.FETCH, EventKind.READ, EventKind.WRITE))
    assert events.values is not None
    return bool(np.all((events.values[is_access] + np.uint64(64)) >= np.uint64(128)))


def without_zero(events: EventColumns) -> EventColumns:
    """Return a stream without its fetches and accesses at address 0."""
    return stream([row for row in rows_of(events) if is_away_from_zero(stream([row]))])


@pytest.mark.parametrize(("name", "version", "vendor"), CASES)
def test_the_shrinker_finds_the_shortest(name: str, version: str, vendor: int) -> None:
    """A random stream shrinks to the length that an exhaustive search gives; without an event it is gone."""
    kind, _, repair, length = FAULTS[name]
    has_diverged = diverges(kvm(version, vendor), vendor, kind)

    def shows(events: EventColumns) -> bool:
        return is_away_from_zero(events) and has_diverged(events)

    rows = smallest(map(without_zero, random_streams()), shows)
    assert len(rows) == length, rows
    for left_out in range(len(rows)):
        assert not shows(stream(rows[:left_out] + rows[left_out + 1 :]))
    assert not diverges(kvm(version, vendor, repair), vendor)(stream(rows))


@pytest.mark.parametrize(("name", "version", "vendor"), CASES)
def test_every_divergence_is_the_known_one(name: str, version: str, vendor: int) -> None:
    """What diverges under a version does not under the same with the one fact put right."""
    _, _, repair, _ = FAULTS[name]
    shows, repaired = (diverges(kvm(version, vendor, how), vendor) for how in (lambda era: era, repair))
    found = [events for events in random_streams() if shows(events)]
    assert found
    assert not any(repaired(events) for events in found)


@pytest.mark.parametrize("vendor", [VMX, SVM])
def test_a_breakpoint_needs_no_address_of_its_own(vendor: int) -> None:
    """B1 in three events: enabled with no address written, it misses address 0, or hits another vCPU's."""
    rows = smallest(random_streams(), diverges(kvm("3.15", vendor), vendor))
    assert [row.kind for row in rows[:2]] == [EventKind.MOV_TO_DR] * 2
    assert len(rows) == 3
    assert rows[1].vcpu != rows[2].vcpu == rows[0].vcpu


def test_shrinking_keeps_the_fault_and_nothing_else() -> None:
    """Of a hundred events the two that are asked for stay, with columns zero where they do not matter."""
    wanted = {EventKind.CPUID, EventKind.HLT}

    def shows(events: EventColumns) -> bool:
        return wanted <= set(events.kinds.tolist())

    rows = [Row(EventKind.RDTSC, value=number) for number in range(100)]
    rows[17], rows[80] = Row(EventKind.CPUID, selector=5, vcpu=1), Row(EventKind.HLT)
    assert shrunk(rows, shows) == [Row(EventKind.CPUID), Row(EventKind.HLT)]
