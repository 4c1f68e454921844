"""A short session with much in it, by a guest that only tells, and by one that acts on what it hears.

The first is an open loop: its events are known before. The second is a closed loop: which events it sends
next depends on all that the reference has answered so far. Three lanes, of which one diverges, two vCPUs,
blocks of unequal sizes, every outcome of every lane.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from zlib import crc32

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.own_policies import NO_OWN
from guest_svc.stream import EventStream
from guest_svc.workloads import find_workload
from guest_svc.workloads.base import Workload

Loop = Literal["open", "closed"]
LOOPS: Final[tuple[Loop, ...]] = ("open", "closed")
VMX: Final = policy_pb2.VENDOR_VMX
POLICIES: Final = ("kvm-6.14", "swap-each-entry", "hyperplatform")  # the last one diverges
REFERENCE: Final = len(POLICIES)  # its number in outcomes
VCPUS: Final = 2
SHORT: Final = (1, 7, 2, 30, 5)  # events in each block
LONG: Final = SHORT * 4
RETRY_SECONDS: Final = 60.0
_POOL_EVENTS: Final = 1000  # that a closed loop chooses from


@dataclass
class Told:
    """What a guest was told of its events."""

    parts: list[bytes] = field(default_factory=list)  # without the decisions that they define
    decisions: dict[tuple[int, int], bytes] = field(default_factory=dict)  # by lane and number
    reference_crc: int = 0  # of the parts of the reference

    def add(self, part: outcome_pb2.OutcomePart) -> None:
        """Take note of a part: a decision that is defined again has to be the same."""
        for decision in part.new_decisions:
            data = decision.SerializeToString(deterministic=True)
            assert self.decisions.setdefault((part.lane, decision.number), data) == data, "another decision"
        bare = outcome_pb2.OutcomePart()
        bare.CopyFrom(part)
        del bare.new_decisions[:]
        self.parts.append(bare.SerializeToString(deterministic=True))
        if part.lane == REFERENCE:
            self.reference_crc = crc32(self.parts[-1], self.reference_crc)


@dataclass(frozen=True)
class Ran:
    """What came of a session: its stored report, and all that the guest was told."""

    report: bytes
    told: Told


def make_workload(events: int) -> Workload:
    """Return a source of events of several vCPUs."""
    return find_workload("context-switch").make({"vcpus": str(VCPUS)}, 0, events)


def config_of(workload: Workload) -> hypervisor_pb2.SessionConfig:
    """Return the config of a session of all lanes and outcomes."""
    return hypervisor_pb2.SessionConfig(
        lanes=[NO_OWN.lane(policy, VMX) for policy in POLICIES],
        columns=[int(column) for column in workload.columns],  # type: ignore[misc]  # stubs want their own enum
        vcpus=VCPUS,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=VMX,
        outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL,
    )


def blocks_of(loop: Loop, pool: EventColumns, sizes: Sequence[int], told: Told) -> Iterator[EventColumns]:
    """Go through a guest's blocks; each of a closed loop's depends on what it was told before."""
    start = 0
    for size in sizes:
        at = start if loop == "open" else told.reference_crc % (len(pool) - size)
        yield pool.rows(at, at + size)
        start += size


def run_session(
    address: str,
    loop: Loop = "open",
    sizes: Sequence[int] = SHORT,
    *,
    greets: bool = False,
    on_hypervisor: Callable[[Hypervisor], None] | None = None,
    on_session: Callable[[str], None] | None = None,
) -> Ran:
    """Run a session at an address to its end.

    A guest that ``greets`` asks for something else first: it has been answered then, and makes its session
    again if that is cut. ``on_hypervisor`` may change the connection before anything is sent.
    """
    workload = make_workload(sum(sizes) if loop == "open" else _POOL_EVENTS)
    pool = next(iter(workload.blocks()))
    told = Told()
    with Hypervisor(address, retry_seconds=RETRY_SECONDS) as hypervisor:
        if on_hypervisor is not None:
            on_hypervisor(hypervisor)
        if greets:
            hypervisor.policy_table(POLICIES[0], VMX)
        session = hypervisor.create_session(config_of(workload))
        if on_session is not None:
            on_session(session.session_id)
        with EventStream(hypervisor, session, workload.columns, told.add) as stream:
            for block in blocks_of(loop, pool, sizes, told):
                stream.send(block)
                if loop == "closed":
                    stream.wait_until_applied()
            report = stream.finish()
        stored = hypervisor.priced(session.session_id, ()).report
    assert report.SerializeToString(deterministic=True) == stored
    return Ran(stored, told)
