"""What single steps of the other hypervisors cost, state by state; KVM's are in ``test_kvm_costs``.

Source: the published code named in each policy's file, counted in operations. P2 to P9 as in
``test_hypervisors``; the states are those of the policies' memories.
"""

from typing import Final

import pytest

from exitlab.events import EventKind, Mode, NestedControl
from tests.engine.build import (
    DR_VMX,
    SVM,
    VMX,
    Row,
    event,
    exits,
    get_dr,
    run,
    set_debugregs,
    set_dr,
    staged,
    stream,
)
from tests.engine.kvm_versions import OWN, debugger
from tests.engine.paid import AWAY, HEAVY, HOSTED, LIGHT, NOTHING, QUIET, START, SWITCH, Paid, steps_of

STEPPED: Final = [event(EventKind.RDTSC, modes=int(Mode.TF))]  # a #DB that no register is needed for
READ: Final = [get_dr(0), QUIET]
BACK: Final = [event(EventKind.SCHED_OUT, arg=1), event(EventKind.SCHED_IN), QUIET]  # nobody between
GD_SET: Final = set_debugregs(dr7=0x2400)
MERGED: Final = [*debugger(OWN, db0=0x1000, dr7=0x402), QUIET]

# A policy, what comes before, the step, and what it pays on each vendor that the policy exists on.
Step = tuple[str, list[Row], list[Row], dict[int, Paid]]
STEPS: Final[dict[str, Step]] = {
    # P4, Xen. CLEAN to OPEN, and back in with a breakpoint enabled: LOADED on VMX, OPEN on SVM.
    "xen, the first access while CLEAN": (
        *("xen", START, READ),
        {VMX: Paid(1, 0, 5, 1, 1), SVM: Paid(1, 0, 4, 0, 0, 4)},
    ),
    "xen, an access while OPEN": ("xen", [*START, *READ], READ, {VMX: NOTHING, SVM: NOTHING}),
    "xen, the first access after coming in with a breakpoint": (
        *("xen", [*SWITCH, *AWAY], READ),
        {VMX: Paid(1, 0, 0, 1, 1), SVM: NOTHING},
    ),
    "xen, the second": ("xen", [*SWITCH, *AWAY, *READ], READ, {VMX: NOTHING, SVM: NOTHING}),
    "xen, coming in without a breakpoint": (
        *("xen", READ, AWAY),
        {VMX: Paid(0, 5, 0, 1, 1), SVM: Paid(reads=4, msrs=4)},
    ),
    "xen, idle and back": ("xen", SWITCH, BACK, {VMX: NOTHING, SVM: NOTHING}),
    "xen, #DB while CLEAN": ("xen", START, STEPPED, {VMX: Paid(writes=5 + 1), SVM: NOTHING}),
    "xen, #DB while LOADED": ("xen", [*START, *STEPPED], STEPPED, {VMX: Paid(writes=1), SVM: NOTHING}),
    "xen, #DB while OPEN": ("xen", READ, STEPPED, {VMX: Paid(writes=1), SVM: NOTHING}),
    "xen, the first access after #DB": (
        *("xen", [*START, *STEPPED], READ),
        {VMX: Paid(1, 0, 0, 1, 1), SVM: Paid(1, 0, 4, 0, 0, 4)},
    ),
    # P5, VirtualBox. The host's DR7 is written where it is in use, and general detect alone opens.
    "virtualbox, an access while HOST": (
        *("virtualbox", START, READ),
        {VMX: Paid(1, 6, 5, 0, 1), SVM: Paid(1, 6, 4)},
    ),
    "virtualbox, the same with host breakpoints": (
        *("virtualbox", [*HOSTED, *START], READ),
        {VMX: Paid(1, 6, 5 + 1, 0, 1), SVM: Paid(1, 6, 4 + 1)},
    ),
    "virtualbox, a session that begins with general detect": (
        *("virtualbox", START, [*GD_SET, QUIET]),
        {VMX: Paid(0, 6, 5, 0, 2), SVM: Paid(0, 6, 4)},
    ),
    "virtualbox, the same with host breakpoints at its begin": (
        *("virtualbox", [*HOSTED, *START], [*GD_SET, QUIET]),
        {VMX: Paid(0, 6, 5 + 1, 0, 2), SVM: Paid(0, 6, 4 + 1)},
    ),
    "virtualbox, a session that begins with a debugger": (
        *("virtualbox", START, MERGED),
        {VMX: Paid(0, 6, 5, 0, 1), SVM: Paid(0, 6, 4)},
    ),
    "virtualbox, a read while HYPER": (
        *("virtualbox", [*START, *MERGED], READ),
        {VMX: Paid(traps=1), SVM: Paid(traps=1)},
    ),
    # P6a, HAXM: DR7 is read at each entry and DR6 at each exit; the host's five only where it has some.
    "haxm, an exit and its entry": ("haxm", START, LIGHT, {VMX: Paid(reads=2)}),
    "haxm, the same with host breakpoints": (
        *("haxm", [*HOSTED, *START], LIGHT),
        {VMX: Paid(0, 1 + 1 + 5, 6 + 6, 0, 1)},
    ),
    "haxm, a read": ("haxm", START, READ, {VMX: Paid(traps=1, reads=2)}),
    "haxm, a write": ("haxm", START, [set_dr(0, 1), QUIET], {VMX: Paid(1, 2, 6, 0, 1)}),
    # P6b and P6c, under software: #DB is read from DR6; PVM resets it too.
    "kvm-pvm, #DB": ("kvm-pvm", START, STEPPED, {VMX: Paid(reads=1, writes=1)}),
    "xen-pv, #DB": ("xen-pv", START, STEPPED, {VMX: Paid(reads=1)}),
    "xen-pv, DR7 is turned on": ("xen-pv", START, [set_dr(7, 0x401), QUIET], {VMX: Paid(1, 0, 6)}),
    "xen-pv, DR7 is turned off": ("xen-pv", SWITCH, [set_dr(7, 0x400), QUIET], {VMX: Paid(1, 0, 1)}),
    # P8 and P9: the host's DR7 goes off before the guest runs, and six come back after.
    **{
        f"{policy}, {name} host breakpoints": (
            *(policy, before, step),
            dict.fromkeys((VMX, SVM), Paid(writes=writes)),
        )
        for policy in ("hardware-switch", "trap-and-cluster")
        for name, before, step, writes in (
            ("the first entry with", HOSTED, START, 1),
            ("an exit and its entry with", [*HOSTED, *START], LIGHT, 6 + 1),
            ("an exit and its entry without", START, LIGHT, 0),
        )
    },
    # P2, NVMM: a run call with the host's registers, an exit inside it without.
    "nvmm, the first run with host breakpoints": (
        *("nvmm", HOSTED, START),
        {VMX: Paid(0, 6, 6), SVM: Paid(0, 6, 5)},
    ),
    "nvmm, an exit inside it": ("nvmm", [*HOSTED, *START], LIGHT, {VMX: NOTHING, SVM: NOTHING}),
    "nvmm, its end and the next": (
        *("nvmm", [*HOSTED, *START], HEAVY),
        {VMX: Paid(0, 5 + 6, 6 + 6), SVM: Paid(0, 4 + 6, 6 + 5)},
    ),
}


@pytest.mark.parametrize(
    ("name", "vendor"), [(name, vendor) for name, (*_, paid) in STEPS.items() for vendor in paid]
)
def test_operations_of_each_step(name: str, vendor: int) -> None:
    """Each step costs what the source does in that state, and a MOV DR exits in that state or does not."""
    policy, before, step, paid = STEPS[name]
    assert steps_of(policy, vendor, before, step)[1] == paid[vendor]


L2: Final = [
    *staged(dr7=0x400, dr6=0xFFFF_0FF0),
    event(
        EventKind.VMRUN,
        value=NestedControl.LOADS_DEBUG_CONTROLS
        | NestedControl.SAVES_DEBUG_CONTROLS
        | NestedControl.INTERCEPTS_MOV_DR,
    ),
]


@pytest.mark.parametrize(
    ("policy", "before", "exited"),
    [
        ("xen", [], 2),  # L0 loads and runs it again; then it is L1's
        ("xen", [get_dr(0)], 1 + 1),  # L1's own has opened, so L2's goes to L1 at once
        ("kvm-6.14", [], 1),
    ],
)
def test_a_nested_access_that_l1_wants(policy: str, before: list[Row], exited: int) -> None:
    """Xen loads before it forwards L2's MOV DR, at one exit more (``vvmx.c``); KVM forwards at once."""
    rows = [*before, *L2, get_dr(0)]
    assert exits(run(stream(rows), policy).lanes[0])[DR_VMX] == exited
