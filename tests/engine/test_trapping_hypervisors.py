"""What KVM-PVM and HAXM do that is their own: how they answer a trapped access, and no host debugger.

Source: KVM-PVM of kernel 6.18, measured, and virt-pvm/linux ``pvm.c``; intel/haxm ``core/vcpu.c``.
"""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind
from exitlab.v1 import report_pb2
from hypervisor_svc.engine.vocabulary import Deviation
from tests.engine.build import Row, event, get_dr, run, set_dr, stream, table_of
from tests.engine.kvm_versions import ATTACH, DECLARED, OWN, SAME, debugger

GD: Final = 1 << 13
DE: Final = event(EventKind.STATE, value=1)
INJECT: Final = int(DebuggerControl.ENABLE | DebuggerControl.INJECT_DB)


def lane_of(policy: str, rows: list[Row]) -> report_pb2.LaneReport:
    """Return a policy's lane on a stream."""
    return run(stream(rows), policy).lanes[0]


@pytest.mark.parametrize("control", [ATTACH, OWN, INJECT])
@pytest.mark.parametrize("policy", ["haxm", "kvm-pvm"])
def test_a_host_debugger_is_refused(policy: str, control: int) -> None:
    """A debugger is refused and counted, and nobody is told of anything."""
    lane = lane_of(policy, [*debugger(control, dr7=0x2400), get_dr(0)])
    assert table_of(policy).refuses_debugger
    assert (lane.refused_controls, list(lane.debug_exits)) == (1, [])


# Accesses, and the rules that are declared. The last one was read in the source, the rest was measured.
MEASURED: Final[dict[str, tuple[list[Row], list[str]]]] = {
    "general detect clears GD, and B0 to B3": (
        [set_dr(6, 0xF), set_dr(7, GD), get_dr(0), get_dr(7), get_dr(6)],
        [],
    ),
    "a DR4 that is no alias comes before general detect": ([DE, set_dr(7, GD), get_dr(4), get_dr(5)], []),
    "privilege comes before general detect": ([set_dr(7, GD), get_dr(0, modes=3)], []),
    "privilege comes before a DR4 that is no alias": ([DE, get_dr(4, modes=3)], [Deviation.CHECK_ORDER.name]),
}


@pytest.mark.parametrize("what", MEASURED)
def test_the_order_of_checks_of_pvm(what: str) -> None:
    """PVM's emulator refuses an access in its own order, and declares where that is another one."""
    rows, rules = MEASURED[what]
    lane = lane_of("kvm-pvm", rows)
    assert (lane.verdict, [one.rule for one in lane.declared]) == (DECLARED if rules else SAME, rules)
