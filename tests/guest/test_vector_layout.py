"""Where a vector's instructions and data lie."""

from typing import Any

import pytest

from guest_svc.vectors import Symbol
from guest_svc.vectors.layout import Layout, Place
from tests.guest.vector_rows import FRESH, NOP, read_dr, write_dr


def test_instructions_lie_one_after_another(make: Any) -> None:
    """A step's instruction follows its set-up; in real mode the set-up of a write is shorter."""
    steps = (write_dr(0, 0x5), write_dr(7, 0x401), {"op": "reset"}, NOP, NOP)
    assert Layout(make(*steps)).address(Symbol("step", 4)) == 0x1001B
    assert Layout(make(*steps, mode="real")).address(Symbol("step", 4)) == 0xD013


@pytest.mark.parametrize(
    ("fields", "symbol", "address"),
    [
        ({"init": {"db": [0, 0, {"step": 2}, 0]}}, Symbol("step", 2), 0x77),
        ({"init": {"db": [0, 0, {"data": 8}, 0]}}, Symbol("data", 16), 0x7F),
        ({"init": {"db": [0, 0, {"data": 8}, 0]}, "mode": "real"}, Symbol("data", 16), 0x7F),
        ({"init": {"db": [0, 0, 5, 0]}}, Symbol("data", 16), 0x20010),
        ({"init": {"db": [0, 0, 5, 0]}, "mode": "real"}, Symbol("data", 16), 0xF010),
    ],
)
def test_addresses_that_the_expectation_tells_are_taken(
    make: Any, fields: dict[str, Any], symbol: Symbol, address: int
) -> None:
    """Where DR0 to DR3 end as an address that a symbol stands for, the code or data lies there."""
    vector = make(NOP, NOP, NOP, expect=FRESH | {"db": [0, 0, 0x77, 0]}, **fields)
    assert Layout(vector).address(symbol) == address


def test_a_write_that_faults_tells_no_address(make: Any) -> None:
    """A register that a faulting write left alone says nothing of the write's operand."""
    raised = [["exc", 13, 0, [0, "insn"], "0xffff0ff0", "0x400"]]
    vector = make(write_dr(2, {"step": 0}), cpl=3, expect=FRESH | {"ev": raised})
    assert Layout(vector).address(Symbol("step", 0)) == 0x1000A


def test_an_instruction_is_followed_by_the_next_of_its_vcpu(make: Any) -> None:
    """What the host or another vCPU does in between is no place to return to."""
    layout = Layout(make(read_dr(0), {"op": "reset"}, NOP | {"vcpu": 1}, write_dr(0, 1), cpus=[0, 1]))
    assert [layout.after(0, where) for where in ("pre", "insn", "post")] == [
        Place(0, "insn"),
        Place(0, "post"),
        Place(3, "pre"),
    ]
    assert layout.after(2) == Place(4, "end")


def test_addresses_wrap(make: Any) -> None:
    """Code at the first address and data past the last are still addresses."""
    steps = (write_dr(0, {"step": 0}), {"op": "store", "off": 2**64 - 1})
    layout = Layout(make(*steps, expect=FRESH | {"db": [1, 0, 0, 0]}))
    assert layout.parts(0)[0].address == 2**64 - 9
    assert layout.data(2**64 - 1) == 0x1FFFF
