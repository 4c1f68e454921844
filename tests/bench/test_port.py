"""The loops in C are those of the engine, and say the same."""

import ast
import re

import pytest

from hypervisor_svc.engine import oracle
from tests.bench.port import ORACLE, PORTS, Port
from tests.bench.syntax import NotPortable, function_tree
from tests.bench.translate import Function


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.target.name)
def test_the_committed_file_is_of_the_loop_as_it_is(port: Port) -> None:
    """After a change of a loop ``python -m tests.bench.port`` writes its file again."""
    assert port.target.read_text(encoding="ascii") == port.text


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.target.name)
def test_every_constant_of_the_file_has_its_number(port: Port) -> None:
    """What stands in capitals is defined: by the header that is made when the file is compiled."""
    assert port.constants
    assert all(name in port.text for name in port.constants)


def test_what_is_called_stands_before_what_calls_it() -> None:
    """C reads a file from its beginning."""
    text = ORACLE.text
    assert text.index("u64 slot_matches(") < text.index("u64 matching_slots(") < text.index("void run_lane(")


def example(a, b, values):  # type: ignore[no-untyped-def]  # as the loops are
    """Do a bit of everything that the loops were not written with at first."""
    a, values[0] = values[1], b
    for k in range(a, b):
        if k == a:
            pass
        elif k == b:
            break
    return -a


def test_further_forms() -> None:
    """Several targets, a range with a start, a loop that is left, nothing, and a result below zero."""
    text = " ".join(Function(example, oracle).body().split())
    assert "a = values[1]; values[0] = b; for (u64 k = a; k < b; k++) {" in text
    assert "break;" in text
    assert text.endswith("return -a;")


@pytest.mark.parametrize("statement", ["a, b = b, a", "a, values[1] = 1, values[a]", "v[0], b = 1, v[1]"])
def test_targets_that_later_values_read_are_refused(statement: str) -> None:
    """One after the other they would not be what they are at once."""
    with pytest.raises(NotPortable, match=re.escape(ast.unparse(ast.parse(statement)))):
        function_tree(f"def function(a, b, v, values):\n    {statement}\n")
