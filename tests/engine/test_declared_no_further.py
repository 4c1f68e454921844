"""A declared deviation excuses what it is about, and no other difference of the same event."""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind, Mark, Mode
from exitlab.v1 import report_pb2
from tests.engine.build import (
    SVM,
    TSC_DEADLINE,
    VMX,
    Row,
    event,
    fetch,
    get_dr,
    run,
    set_debugregs,
    set_dr,
    stream,
    table_of,
    wrmsr,
)
from tests.engine.kvm_versions import DECLARED

DIVERGED: Final = report_pb2.VERDICT_DIVERGED
HW_BP: Final = DebuggerControl.ENABLE | DebuggerControl.USE_HW_BP

# A DR6 that kvm-6.8 loses (CVE-2025-21839), at events at which a declared rule fires.
LOST: Final[dict[str, list[Row]]] = {
    "by INT1, which clears B0 to B3 and general detect": [
        *(set_dr(6, 0x4000), wrmsr(TSC_DEADLINE), event(EventKind.INT1), get_dr(6)),
    ],
    "by a step of an instruction that matches no port": [
        *(set_dr(6, 0x2000), wrmsr(TSC_DEADLINE), event(EventKind.OUT, arg=1, modes=Mode.TF), get_dr(6)),
    ],
    "by a match of an address that a surviving window declares": [
        set_dr(0, 0, marks=Mark.NOT_RETIRED),
        *(event(EventKind.HOST_DEBUGGER, selector=HW_BP), event(EventKind.HOST_DEBUGGER)),
        *(set_dr(0, 0x5000), set_dr(7, 0x401), set_dr(6, 0x4000), wrmsr(TSC_DEADLINE)),
        *(fetch(0x5000), get_dr(6)),
    ],
    "by a host that reads registers of which another was set raw": [
        *(*set_debugregs(dr7=0), set_dr(6, 0xF), wrmsr(TSC_DEADLINE), event(EventKind.RDTSC)),
        event(EventKind.GET_DEBUGREGS),
    ],
}


@pytest.mark.parametrize("case", LOST)
@pytest.mark.parametrize("vendor", [VMX, SVM])
def test_a_lost_register_is_no_declared_one(vendor: int, case: str) -> None:
    """What kvm-6.8 loses diverges, and where kvm-6.14 keeps it nothing does."""
    wrong, right = run(stream(*LOST[case]), "kvm-6.8", "kvm-6.14", vendor=vendor).lanes
    assert wrong.verdict == DIVERGED
    assert right.verdict != DIVERGED


@pytest.mark.parametrize("mode", [0, Mode.TF])
def test_masks_excuse_only_where_they_are_declared(mode: int) -> None:
    """A policy that cuts a bit off DR7 and does not say so diverges, stepped or not."""
    table = table_of("trap-and-cluster")
    table.emulated_dr7_writable &= ~0x800
    kept = [rule for rule in table.deviations if rule.rule != "EMULATED_MASKS"]
    del table.deviations[:]
    table.deviations.extend(kept)
    lane = run(stream(set_dr(7, 0x800, modes=mode), get_dr(7)), table).lanes[0]
    assert lane.verdict == DIVERGED


@pytest.mark.parametrize("vendor", [VMX, SVM])
def test_a_stale_address_at_the_end_is_named(vendor: int) -> None:
    """kvm-3.15 has not loaded an address from outside, which only the registers at the end show."""
    lane = run(stream(*set_debugregs(db0=0x1000), get_dr(7)), "kvm-3.15", vendor=vendor).lanes[0]
    assert lane.verdict == DECLARED
    assert [rule.rule for rule in lane.declared] == ["STALE_EFFECTIVE"]
