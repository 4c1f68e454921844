"""A policy table is refused whole, with the policy, the moment and the state that is wrong."""

from typing import Final

import pytest

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import BadTable
from hypervisor_svc.engine.vocabulary import Action, Moment
from tests.engine.build import engine_of
from tests.engine.spoil import (
    Spoil,
    added,
    append,
    armed_on_a_longer_way,
    change,
    dear,
    first_next_memory,
    put,
    rows_of,
    ruled,
    shortened,
    shorter_next_memory,
    spoiled,
    twice_armed,
    without_loads,
)

# What is wrong, the policy that it is done to, the change, what the message says.
DEFECTS: Final[tuple[tuple[str, str, Spoil, tuple[str, ...]], ...]] = (
    (
        "re-executed with the intercept on",
        "kvm-6.14",
        change(Moment.DR_TRAPPED, drop=(Action.DISARM,)),
        ("DR_TRAPPED (debugger=NONE, check=NONE", "re-executes"),
    ),
    ("armed again before", "kvm-6.14", added(Moment.ENTER_GUEST, Action.ARM), ("ENTER_GUEST", "DR_TRAPPED")),
    ("armed on a longer way", "kvm-6.14", armed_on_a_longer_way, ("ENTER_SESSION", "DR_TRAPPED")),
    (
        "disarmed, loaded on a way not taken",
        "kvm-6.14",
        ruled(reason=29, exit_class=policy_pb2.EXIT_CLASS_FAST),
        ("DR_TRAPPED", "claims to be correct"),
    ),
    ("disarmed, never loaded", "kvm-6.14", without_loads, ("DR_TRAPPED", "claims to be correct")),
    ("ignores, claims", "ignore", put("claims_correct", True), ("claims to be correct",)),
    (
        "emulated and re-executed",
        "kvm-6.14",
        change(Moment.DR_TRAPPED, add=(Action.EMULATE,)),
        ("DR_TRAPPED", "emulates and re-executes"),
    ),
    *(
        (
            f"{action.name} at {moment.name}",
            "kvm-6.14",
            added(moment, Action.LOAD_DR0_3, action),
            (moment.name, "saves"),
        )
        for moment in (Moment.GAIN_RESIDENCE, Moment.ENTER_SESSION, Moment.ENTER_LOOP, Moment.ENTER_GUEST)
        for action in (Action.SAVE_DR0_3, Action.SAVE_DR6, Action.SAVE_DR7)
    ),
    (
        "restored, never saved",
        "kvm-6.14",
        added(Moment.LEAVE_SESSION, Action.HOST_RESTORE_SAVED),
        ("restores a saved host state",),
    ),
    (
        "no answer in one state",
        "kvm-6.14",
        shortened,
        ("DR_TRAPPED has ", "sets of actions", "the first without one is DR_TRAPPED", "check=GD"),
    ),
    ("no answer at all", "kvm-6.14", added(Moment.DR_TRAPPED), ("DR_TRAPPED (always)", "without an answer")),
    (
        "no answers",
        "kvm-6.14",
        lambda table: table.moments.remove(rows_of(table, Moment.DR_TRAPPED)),
        ("DR_TRAPPED",),
    ),
    (
        "both at once",
        "kvm-6.14",
        change(Moment.LEAVE_LOOP, add=(Action.ARM, Action.DISARM)),
        ("LEAVE_LOOP (memory=CLOSED, host_breakpoints=no)", "arms and disarms"),
    ),
    ("emulates nothing", "kvm-6.14", added(Moment.LEAVE_SESSION, Action.EMULATE), ("LEAVE_SESSION",)),
    (
        "injects without a fault",
        "kvm-6.14",
        added(Moment.DR_TRAPPED, Action.INJECT),
        ("DR_TRAPPED", "injects"),
    ),
    (
        "next memory",
        "kvm-6.14",
        first_next_memory,
        ("DR_TRAPPED", "the table goes on with memory 2, but has 2, numbered from 0"),
    ),
    (
        "a short next_memory",
        "kvm-6.14",
        shorter_next_memory,
        ("LEAVE_LOOP has 3 next memories for 4 states", "the first without one is LEAVE_LOOP (memory=OPEN,"),
    ),
    ("an action twice", "kvm-6.14", twice_armed, ("names ARM more than once",)),
    (
        "stays",
        "kvm-3.14",
        change(Moment.DR_TRAPPED, add=(Action.STAY,)),
        ("DR_TRAPPED (check=UD", "stays in the kernel", "does not emulate"),
    ),
    ("many clustered", "trap-and-cluster", put("cluster_accesses", 65), ("clusters 65 accesses", "64")),
    ("clusters over no gap", "trap-and-cluster", put("cluster_gap_cycles", 0), ("clusters", "no gap")),
    ("no vendor", "kvm-6.14", put("vendor", 0), ("vendor 0",)),
    ("no memories", "kvm-6.14", lambda table: table.ClearField("memories"), ("0 memories", "1 to 8")),
    ("nine memories", "kvm-6.14", lambda table: table.memories.extend("abcdefg"), ("9 memories",)),
    ("unknown action", "kvm-6.14", append("actions", "JUMP"), ("JUMP",)),
    ("unknown quirk", "kvm-6.14", append("quirks", "SLOW"), ("SLOW",)),
    ("unknown rule", "kvm-6.14", lambda table: table.deviations.add(rule="LUCK"), ("LUCK",)),
    ("unknown cost", "kvm-6.14", lambda table: table.costs.add(action="JUMP"), ("JUMP",)),
    ("unknown check", "kvm-6.14", append("check_order", "PF"), ("PF",)),
    ("one check twice", "kvm-6.14", append("check_order", "UD"), ("UD", "once")),
    ("moment 0", "kvm-6.14", lambda table: table.moments.add(moment=0), ("moment 0",)),
    ("moment 14", "kvm-6.14", lambda table: table.moments.add(moment=14), ("moment 14",)),
    (
        "a moment twice",
        "kvm-6.14",
        lambda table: table.moments.append(rows_of(table, Moment.LEAVE_LOOP)),
        ("LEAVE_LOOP", "twice"),
    ),
    (
        "unknown input",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).inputs.append("weather"),
        ("LEAVE_LOOP", "weather"),
    ),
    (
        "an input that is not shown",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).inputs.append("check"),
        ("LEAVE_LOOP", "check", "not shown"),
    ),
    (
        "an input twice",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).inputs.append("memory"),
        ("LEAVE_LOOP asks for memory twice",),
    ),
    (
        "another size",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).sizes.__setitem__(0, 3),
        ("LEAVE_LOOP has input sizes [3, 2], expected 2 for memory, 1 to 2 for host_breakpoints",),
    ),
    (
        "size 0",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).sizes.__setitem__(1, 0),
        ("LEAVE_LOOP has input sizes [2, 0], expected 2 for memory, 1 to 2 for host_breakpoints",),
    ),
    (
        "an action without a name",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).actions.__setitem__(0, 1 << len(Action)),
        ("LEAVE_LOOP", f"bit {len(Action)}"),
    ),
    (
        "an answer too many",
        "kvm-6.14",
        lambda table: rows_of(table, Moment.LEAVE_LOOP).actions.append(0),
        ("LEAVE_LOOP has 5 sets of actions for 4 states",),
    ),
    (
        "a dear action",
        "kvm-6.14",
        lambda table: table.costs.add(action="ARM", operations=policy_pb2.OperationCounts(vmreads=64)),
        ("ARM", "64", "63"),
    ),
    ("dear actions together", "kvm-6.14", dear, ("DR writes", "255")),
    ("class 0", "kvm-6.14", ruled(reason=10), ("reason 10", "class 0")),
    ("class 4", "kvm-6.14", ruled(reason=10, exit_class=4), ("reason 10", "class 4")),
    ("class -1", "kvm-6.14", ruled(reason=10, exit_class=-1), ("reason 10", "class -1")),
    ("class 300", "kvm-6.14", ruled(reason=10, exit_class=300), ("reason 10", "class 300")),
    ("sub-reason 6", "kvm-6.14", ruled(reason=10, exit_class=2, sub_reason=6), ("10", "sub-reason 6")),
    ("sub-reason -1", "kvm-6.14", ruled(reason=10, exit_class=2, sub_reason=-1), ("10", "sub-reason -1")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("base", "spoil", "words"), [defect[1:] for defect in DEFECTS], ids=[defect[0] for defect in DEFECTS]
)
def test_defects(base: str, spoil: Spoil, words: tuple[str, ...]) -> None:
    """Each defect is refused when the engine is made, in words that name the policy and the place."""
    table = spoiled(base, spoil)
    with pytest.raises(BadTable) as refused:
        engine_of(table)
    message = str(refused.value)
    assert message.startswith("mine: ")
    assert [word for word in words if word not in message] == []


def test_operations_of_a_trap() -> None:
    """A trap that is too dear is refused by name too."""
    cost = policy_pb2.OperationCounts(vmreads=64)
    table = spoiled("kvm-6.14", lambda one: one.trap_operations.CopyFrom(cost))
    with pytest.raises(BadTable, match=r"^mine: .* 64 .* 63 "):
        engine_of(table)
