"""KVM's versions in tests: what holds from which version on, and a lane for each.

Expectations are given as the versions in which they change: ``{"3.15": 6, "5.17": 5}`` holds 6 from 3.15
on and 5 from 5.17 on.
"""

from collections.abc import Iterable
from typing import Final, TypeVar

from exitlab.events import DebuggerControl, EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.policies.kvm import ERAS
from tests.engine.build import Row, event, run, staged, stream

T = TypeVar("T")
Changes = dict[str, T]

VERSIONS: Final = tuple(era.version for era in ERAS if not era.skips_debug_controls)
NAMES: Final = tuple(f"kvm-{version}" for version in VERSIONS)
SAME: Final = report_pb2.VERDICT_SAME
DECLARED: Final = report_pb2.VERDICT_SAME_BUT_DECLARED
DIVERGED: Final = report_pb2.VERDICT_DIVERGED
ATTACH: Final = DebuggerControl.ENABLE | DebuggerControl.USE_SW_BP
OWN: Final = DebuggerControl.ENABLE | DebuggerControl.USE_HW_BP


def at(changes: Changes[T], version: str) -> T:
    """Return what holds in a version: the last change up to it."""
    upto = VERSIONS[: VERSIONS.index(version) + 1]
    return changes[next(known for known in reversed(upto) if known in changes)]


Span = tuple[str, str] | None  # the first and the last version
ALWAYS: Final[Span] = ("3.14", "7.1")


def in_span(version: str, span: Span) -> bool:
    """Return whether a version lies in a span."""
    return span is not None and VERSIONS.index(span[0]) <= VERSIONS.index(version) <= VERSIONS.index(span[1])


def lanes(*rows: Row | Iterable[Row], vendor: int, vcpus: int = 1) -> dict[str, report_pb2.LaneReport]:
    """Return the lane of each version on a stream; vCPUs are all on the first of two physical CPUs."""
    report = run(stream(*rows), *NAMES, vendor=vendor, vcpus=vcpus, physical_cpus=2, initial=(0,) * vcpus)
    return dict(zip(VERSIONS, report.lanes, strict=True))


def verdicts(*rows: Row | Iterable[Row], vendor: int, vcpus: int = 1) -> dict[str, int]:
    """Return the verdict on each version that does not tell the same story as the architecture."""
    found = lanes(*rows, vendor=vendor, vcpus=vcpus)
    return {version: lane.verdict for version, lane in found.items() if lane.verdict != SAME}


def debugger(control: int, **values: int) -> list[Row]:
    """Return the events with which a host debugger takes over, or lets go."""
    return [*staged(**{"dr7": 0x400, **values}), event(EventKind.HOST_DEBUGGER, selector=control)]
