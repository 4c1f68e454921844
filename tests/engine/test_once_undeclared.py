"""Streams on which a difference that a declared deviation leads to was once taken for a divergence."""

from typing import Final

import pytest

from exitlab.events import DebuggerControl, EventKind, Mark, Mode
from exitlab.v1 import policy_pb2
from tests.engine.build import SVM, VMX, Row, event, fetch, get_dr, run, set_dr, staged, stream
from tests.engine.kvm_versions import DECLARED

STEPPED: Final = DebuggerControl.ENABLE | DebuggerControl.SINGLESTEP
GENERAL_DETECT: Final = 0x2000
LIKE_4: Final = -2 % 2**64

ATTACHED: Final = event(EventKind.HOST_DEBUGGER, selector=STEPPED)
CASES: Final = {
    "a window survives a debugger that steps, and the guest sets general detect in it": (
        *("kvm-6.14", VMX),
        [set_dr(0, 0, marks=Mark.NOT_RETIRED), ATTACHED, set_dr(7, GENERAL_DETECT), set_dr(0, 0)],
    ),
    "the same with general detect set from outside": (
        *("kvm-6.14", VMX),
        [
            *(get_dr(0, marks=Mark.NOT_RETIRED), ATTACHED, *staged(dr7=GENERAL_DETECT)),
            *(event(EventKind.SET_DEBUGREGS), get_dr(0)),
        ],
    ),
    "a match that a stale address misses is due when another breakpoint matches": (
        *("kvm-3.14", SVM),
        [
            *(set_dr(3, 16), event(EventKind.INIT), set_dr(0, 0x1000), set_dr(2, LIKE_4)),
            *(set_dr(7, 0x3000_0490), event(EventKind.MOV_SS, arg=8), fetch(0), fetch(LIKE_4)),
        ],
    ),
    "the same as INT1 comes, whose #DB a guest hypervisor takes": (
        *("kvm-3.14", SVM),
        [
            *(set_dr(1, 0x1000), event(EventKind.SET_DEBUGREGS), *staged(dr7=0xB0_0406)),
            *(event(EventKind.VMRUN, value=8), set_dr(4, 1), event(EventKind.MOV_SS, arg=2)),
            event(EventKind.INT1),
        ],
    ),
    "a match that a stale address misses is due where general detect refuses": (
        *("kvm-3.14", VMX),
        [
            *(set_dr(0, 32), *staged(dr6=0, dr7=0), event(EventKind.SET_DEBUGREGS), set_dr(7, 0x3_2001)),
            *(event(EventKind.MOV_SS, arg=2), event(EventKind.INT3), set_dr(0, 0)),
        ],
    ),
    "a write whose step leaves a nested guest": (
        *("kvm-4.6", VMX),
        [
            *(
                event(EventKind.HOST_DEBUGGER, selector=DebuggerControl.ENABLE),
                event(EventKind.VMRUN, value=8),
            ),
            set_dr(6, 0, modes=Mode.TF),
        ],
    ),
    "a match that is missed is due after registers were set from outside": (
        *("xen-pv", VMX),
        [
            *(set_dr(7, 0xB0_2004), set_dr(7, 0), event(EventKind.MOV_SS, arg=2), event(EventKind.INT3)),
            *(event(EventKind.SET_DEBUGREGS), get_dr(0)),
        ],
    ),
    "a match that is missed comes with a write of DR6": (
        *("xen-pv", VMX),
        [
            *(set_dr(7, GENERAL_DETECT), set_dr(3, 0x7004), set_dr(7, 0x7000_0480)),
            *(event(EventKind.MOV_SS, arg=4), set_dr(6, 0, modes=Mode.TF)),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_follows_from_a_declared_deviation_is_declared(case: str) -> None:
    """The story differs, by a declared rule only."""
    policy, vendor, rows = CASES[case]
    events: list[Row] = rows
    features = policy_pb2.CpuFeatures(rtm=True, bus_lock_detect=True)
    lane = run(stream(*events), policy, vendor=vendor, features=features).lanes[0]
    assert lane.verdict == DECLARED, lane.first_divergence.what
