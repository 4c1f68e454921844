"""What events a vector becomes, and what follows from what they showed."""

from typing import Any

import pytest

from exitlab.events import EventKind, Mark, Mode
from exitlab.v1 import outcome_pb2
from guest_svc.vectors import Vector
from guest_svc.vectors.layout import HANDLER, Place
from guest_svc.vectors.program import conversation
from guest_svc.vectors.rows import Answer, Row, columns_of
from tests.guest.vector_rows import FRESH, NOP, read_dr, write_dr

TF, CLR, SS = {"op": "popf_tf"}, {"op": "popf_clr"}, {"op": "mov_ss", "pre": 0}
FETCH, END = EventKind.FETCH, 1


def all_rows(vector: Vector, stories: dict[int, int] | None = None) -> list[Row]:
    """Return the rows of a vector if a row shows its story in ``stories``, by number, else nothing."""
    talk = conversation(vector)
    rows: list[Row] = []
    batch = next(talk, None)
    while batch is not None:
        first = len(rows)
        rows += batch
        answers = [Answer((stories or {}).get(k, 0), 0) for k in range(first, len(rows))]
        try:
            batch = talk.send(answers)
        except StopIteration:
            batch = None
    return rows


def shape(rows: list[Row]) -> list[tuple[EventKind, int, int, Place | None]]:
    """Return what matters of rows: kind, arg of a fetch, modes, and where they are."""
    return [(row.kind, row.arg if row.kind == FETCH else 0, row.modes, row.at) for row in rows]


def test_each_instruction_of_a_step_is_fetched(make: Any) -> None:
    """A read is set-up, MOV and store; the store is fetched only if the MOV did not fault."""
    rows = all_rows(make(read_dr(6), NOP))
    assert [(row.kind, row.at, row.marks) for row in rows] == [
        (FETCH, Place(0, "pre"), 0),
        (FETCH, Place(0, "insn"), 0),
        (EventKind.MOV_FROM_DR, Place(0, "insn"), 0),
        (FETCH, Place(0, "post"), Mark.IF_OK),
        (FETCH, Place(1, "insn"), 0),
    ]
    assert rows[2].read_step == 0


@pytest.mark.parametrize(
    ("step", "kind", "fields"),
    [
        (write_dr(7, "0x401"), EventKind.MOV_TO_DR, {"arg": 7, "value": 0x401}),
        ({"op": "store", "off": 256}, EventKind.WRITE, {"arg": 4, "value": 0x20100}),
        ({"op": "load", "off": 260, "size": 8}, EventKind.READ, {"arg": 8, "value": 0x20104}),
        ({"op": "cpuid"}, EventKind.CPUID, {"selector": 0}),
        ({"op": "out"}, EventKind.OUT, {"arg": 1, "selector": 0x80}),
        ({"op": "in", "port": 5, "size": 2}, EventKind.IN, {"arg": 2, "selector": 5}),
        ({"op": "ud2"}, EventKind.EXCEPTION, {"selector": 6}),
        ({"op": "pop_ss"}, EventKind.EXCEPTION, {"selector": 6}),
        (TF, EventKind.POPF, {"value": 0x102}),
        (CLR, EventKind.POPF, {"value": 0x2}),
        ({"op": "mov_ss"}, EventKind.MOV_SS, {"arg": 0, "value": 0}),
        ({"op": "mov_ss", "off": 4, "size": 8}, EventKind.MOV_SS, {"arg": 8, "value": 0x20004}),
        ({"op": "sti"}, EventKind.STI, {}),
        ({"op": "int1"}, EventKind.INT1, {}),
        ({"op": "int3"}, EventKind.INT3, {}),
        ({"op": "intn", "vector": 9}, EventKind.INTN, {"selector": 9}),
        ({"op": "iret"}, EventKind.IRET, {}),
        ({"op": "hlt", "class": "light"}, EventKind.HLT, {"marks": 0x80}),
        ({"op": "wrmsr", "msr": 3, "v": 4}, EventKind.WRMSR, {"selector": 3, "value": 4}),
        ({"op": "rdmsr", "msr": 3}, EventKind.RDMSR, {"selector": 3, "read_step": None}),
        ({"op": "rdmsr", "msr": "0x1d9"}, EventKind.RDMSR, {"selector": 0x1D9, "read_step": 0}),
        ({"op": "interrupt", "class": "fast"}, EventKind.EXTERNAL_INTERRUPT, {"selector": 32, "marks": 0x40}),
        ({"op": "vmexit_to_l1", "reason": 18}, EventKind.VMEXIT_TO_L1, {"selector": 18}),
        ({"op": "cr4_de", "v": 1}, EventKind.STATE, {"arg": 0, "value": 1}),
        ({"op": "get_debugregs"}, EventKind.GET_DEBUGREGS, {"read_step": 0}),
        ({"op": "run_on", "cpu": 1}, EventKind.SCHED_IN, {"selector": 1}),
        ({"op": "vmrun", "controls": 5}, EventKind.VMRUN, {"value": 5}),
        ({"op": "host_breakpoints", "cpu": 1}, EventKind.HOST_BREAKPOINTS, {"selector": 1}),
        ({"op": "host_debugger", "control": 3}, EventKind.HOST_DEBUGGER, {"selector": 3}),
    ],
)
def test_each_operation_is_an_event(
    make: Any, step: dict[str, Any], kind: EventKind, fields: dict[str, int]
) -> None:
    """What an operation does beyond being fetched is one event, after all others of its step."""
    row = all_rows(make(step))[-1]
    assert (row.kind, {name: getattr(row, name) for name in fields}) == (kind, fields)
    assert row.after == (Place(0, "handler") if step["op"] == "intn" else Place(1, "end"))


def test_real_mode_has_a_pop_of_ss(make: Any) -> None:
    """POP SS does not exist in long mode."""
    assert all_rows(make({"op": "pop_ss"}, mode="real"))[-1].kind == EventKind.MOV_SS


STAGED = [(0, 1), (1, 0x20002), (2, 3), (3, 4), (4, 0xFFFF0FF0), (5, 0x2400)]
INIT: dict[str, Any] = {"db": [1, {"data": 2}, 3, 4], "dr7": "0x2400"}


def test_the_state_that_a_vector_starts_in_comes_first(make: Any) -> None:
    """CR4.DE is state, and the six registers are set from outside; what is not said is as after reset."""
    rows = all_rows(make(NOP, cr4_de=1, init=INIT, expect=FRESH | {"db": [1, "0x20002", 3, 4]}))
    assert [(row.kind, row.arg, row.value) for row in rows[:-1]] == [
        (EventKind.STATE, 0, 1),
        *((EventKind.STAGE, slot, value) for slot, value in STAGED),
        (EventKind.SET_DEBUGREGS, 0, 0),
    ]


def test_a_guest_can_write_the_first_registers_itself(make: Any) -> None:
    """Where nobody may set registers from outside, the guest starts with six writes."""
    vector = make(NOP, init=INIT, expect=FRESH | {"db": [1, "0x20002", 3, 4]}, cpl=3)
    (rows,) = conversation(vector, is_written_by_guest=True)
    assert [(row.kind, row.arg, row.value, row.modes) for row in rows[:-1]] == [
        (EventKind.MOV_TO_DR, slot + 2 * (slot > 3), value, 0) for slot, value in STAGED
    ]


@pytest.mark.parametrize(
    "step",
    [
        {"op": "set_debugregs"} | INIT,
        {"op": "host_debugger", "control": 1} | INIT,
        {"op": "host_breakpoints"} | INIT,
    ],
)
def test_registers_are_handed_over_before_their_event(make: Any, step: dict[str, Any]) -> None:
    """What the host sets is staged for the vCPU that it is about."""
    rows = all_rows(make(step | {"vcpu": 1}, cpus=[0, 1]))
    assert [(row.kind, row.arg, row.value) for row in rows[:-1]] == [
        (EventKind.STAGE, slot, value) for slot, value in STAGED
    ]
    assert {row.vcpu for row in rows} == {1}


@pytest.mark.parametrize(
    ("fields", "modes"),
    [({"cpl": 3}, [3, 3, 3, 3, 0]), ({"mode": "real"}, [Mode.OPERAND_32] * 5), ({}, [0] * 5)],
)
def test_modes_are_those_of_the_vector_or_the_step(
    make: Any, fields: dict[str, Any], modes: list[int]
) -> None:
    """Every event runs at its step's privilege, which is the vector's if it says none."""
    vector = make(read_dr(0), NOP | {"cpl": 0}, **fields)
    columns = columns_of(vector, all_rows(vector))
    assert columns.modes is not None
    assert columns.modes.tolist() == modes


@pytest.mark.parametrize(
    ("story", "is_repeated", "is_stored"),
    [
        (0, False, True),
        (outcome_pb2.STORY_DB_FAULT, True, True),
        (outcome_pb2.STORY_GP, False, False),
        (outcome_pb2.STORY_UD, False, False),
    ],
)
def test_a_handler_that_retries_repeats_the_access(
    make: Any, story: int, is_repeated: bool, is_stored: bool
) -> None:
    """After a general-detect fault the access is fetched and done again; after any other it is not."""
    rows = all_rows(make(read_dr(0), NOP, on_bd="retry"), {2: story})
    access = [(FETCH, 0, 0, Place(0, "insn")), (EventKind.MOV_FROM_DR, 0, 0, Place(0, "insn"))]
    assert shape(rows) == [
        (FETCH, 0, 0, Place(0, "pre")),
        *access,
        *(access if is_repeated else []),
        *([(FETCH, 0, 0, Place(0, "post"))] if is_stored else []),
        (FETCH, 0, 0, Place(1, "insn")),
    ]


def test_a_stepped_guest_has_tf_on_the_last_event_of_each_instruction(make: Any) -> None:
    """Set-up and store are stepped too; POPF that sets TF is not, POPF that clears it is."""
    rows = all_rows(make(TF, read_dr(0), write_dr(0, 0), CLR, NOP))
    tf = int(Mode.TF)
    assert shape(rows) == [
        (FETCH, 0, 0, Place(0, "pre")),
        (FETCH, 0, 0, Place(0, "insn")),
        (EventKind.POPF, 0, 0, Place(0, "insn")),
        (FETCH, 0, tf, Place(1, "pre")),
        (FETCH, 0, 0, Place(1, "insn")),
        (EventKind.MOV_FROM_DR, 0, 0, Place(1, "insn")),
        (FETCH, END, tf, Place(1, "post")),
        (FETCH, 0, tf, Place(1, "post")),
        (FETCH, 0, tf, Place(2, "pre")),
        (FETCH, 0, 0, Place(2, "insn")),
        (EventKind.MOV_TO_DR, 0, tf, Place(2, "insn")),
        (FETCH, 0, tf, Place(3, "pre")),
        (FETCH, 0, 0, Place(3, "insn")),
        (EventKind.POPF, 0, tf, Place(3, "insn")),
        (FETCH, 0, 0, Place(4, "insn")),
    ]


@pytest.mark.parametrize(
    ("steps", "stepped"),
    [
        ([{"op": "host_debugger", "control": 3}, NOP, {"op": "host_debugger", "control": 0}, NOP], [1]),
        ([{"op": "host_debugger", "control": 2}, NOP], []),
        ([TF, {"op": "iret", "tf": 0}, NOP], [1]),
        ([{"op": "iret", "tf": 1}, NOP, {"op": "reset"}, NOP], [1]),
        ([TF | {"vcpu": 1}, NOP, NOP | {"vcpu": 1}], [2]),
    ],
)
def test_who_is_stepped_follows_from_flags_and_debuggers(
    make: Any, steps: list[dict[str, Any]], stepped: list[int]
) -> None:
    """A host debugger's single steps, an IRET and a reset decide too, each for its vCPU."""
    rows = all_rows(make(*steps, cpus=[0, 1]))
    assert [row.at.step for row in rows if row.modes & Mode.TF and row.at is not None] == stepped


def test_a_stepped_instruction_that_a_breakpoint_stops_runs_with_rf(make: Any) -> None:
    """The handler of an instruction breakpoint resumes with RF; the instruction is then stepped."""
    rows = all_rows(make(TF, NOP, NOP), {3: outcome_pb2.STORY_DB_FAULT})
    assert [row.modes for row in rows[3:]] == [Mode.TF, Mode.TF | Mode.RF, Mode.TF]


@pytest.mark.parametrize("story", [outcome_pb2.STORY_GP, outcome_pb2.STORY_DB_FAULT, outcome_pb2.STORY_UD])
def test_a_stepped_access_that_faults_goes_on_with_the_next_step(make: Any, story: int) -> None:
    """Neither the end of the instruction nor the store of its result comes."""
    rows = all_rows(make(TF, read_dr(0), NOP), {5: story})
    assert [row.at for row in rows[5:]] == [Place(1, "insn"), Place(2, "insn")]
    assert rows[-1].modes == Mode.TF


@pytest.mark.parametrize("number", [3, 5])
def test_a_nested_guest_that_is_left_takes_its_tf_along(make: Any, number: int) -> None:
    """The guest hypervisor goes on with the next step, unstepped."""
    rows = all_rows(make(TF, read_dr(0), NOP), {number: outcome_pb2.STORY_VMEXIT})
    assert shape(rows[number + 1 :]) == [(FETCH, 0, 0, Place(2, "insn"))]


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (NOP, [(FETCH, 0, Place(1, "insn")), (FETCH, END, Place(2, "insn"))]),
        (CLR | {"pre": 0}, [(FETCH, 0, Place(1, "insn")), (EventKind.POPF, 0, Place(1, "insn"))]),
        (
            read_dr(0) | {"pre": 0},
            [
                (FETCH, 0, Place(1, "insn")),
                (EventKind.MOV_FROM_DR, 0, Place(1, "insn")),
                (FETCH, END, Place(1, "post")),
                (FETCH, 0, Place(1, "post")),
            ],
        ),
        (
            {"op": "int3"},
            [
                (FETCH, 0, Place(1, "insn")),
                (EventKind.INT3, 0, Place(1, "insn")),
                (FETCH, 0, Place(1, "handler")),
            ],
        ),
    ],
)
def test_the_instruction_after_a_mov_ss_has_an_end(make: Any, step: dict[str, Any], shown: list[Any]) -> None:
    """What MOV SS held back comes at the end of the next instruction, or in the handler of an INT3."""
    rows = all_rows(make(SS, step, NOP))
    assert [(kind, arg, at) for kind, arg, _, at in shape(rows[2:-1])] == shown
    assert all(row.value == HANDLER for row in rows if row.at == Place(1, "handler"))


def test_an_int3_that_a_debugger_takes_has_no_handler(make: Any) -> None:
    """With software breakpoints of the host no handler of the guest runs."""
    rows = all_rows(make({"op": "host_debugger", "control": 0x10001}, SS, {"op": "int3"}, NOP))
    assert [row.at for row in rows[-2:]] == [Place(2, "insn"), Place(3, "insn")]
