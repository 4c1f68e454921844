"""Compiled code: taken from the cache at every further start, and without reference counting in loops."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
import pytest
from llvmlite import binding

from hypervisor_svc.arch import reference
from hypervisor_svc.arch.compiled import IS_PLAIN
from hypervisor_svc.engine import machine, oracle, symbols, validation

HOT: Final = {
    "run_lane": oracle.run_lane,
    "run_reference": reference.run_reference,
    "read_symbols": symbols.read_symbols,
    "run_machines": machine.run_machines,
    "tell_steps": machine.tell_steps,
    "_first_broken": validation._first_broken,
}
COUNTING: Final = {"NRT_incref", "NRT_decref"}
LISTING: Final = """
import sys
from numba.core.registry import CPUDispatcher
from hypervisor_svc import parts
found = set()
for name, module in sorted(sys.modules.items()):
    if name.startswith("hypervisor_svc"):
        for made in vars(module).values():
            if isinstance(made, CPUDispatcher) and made.signatures and made not in found:
                found.add(made)
                hits, misses = (sum(count.values()) for count in made.stats[1:])
                print(made.py_func.__name__, hits, misses)
"""
SMALL: Final = """
import numba
from exitlab_small import double
print(double(21), *(sum(count.values()) for count in double.stats[1:]))
"""
SMALL_MODULE: Final = """
import numba.types as nt
from hypervisor_svc.arch.compiled import compiled

@compiled(nt.int64(nt.int64))
def double(number):
    return 2 * number
"""

pytestmark = pytest.mark.usefixtures("is_compiled")


@pytest.fixture
def is_compiled() -> None:
    """Refuse to run where nothing is compiled: these tests would say nothing."""
    assert not IS_PLAIN, "the loops run as plain Python"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def counting_in_loops(made: Any) -> list[str]:
    """Return the blocks of a compiled function that count references and lie on a cycle.

    It looks at what is kept in the cache beside the machine's code: the code as it is optimized before
    it is linked with its helpers, so that taking code from the cache is enough.
    """
    (kept,) = made.overloads.values()
    found = []
    for function in kept.library._get_module_for_linking().functions:
        successors = {block.name: set(_successors(block)) for block in function.blocks}
        for block in function.blocks:
            if _called(block) & COUNTING and block.name in _reached(successors, block.name):
                found.append(f"{function.name}: {block.name}")
    return found


def _successors(block: Any) -> Iterator[str]:
    *_, last = block.instructions
    return (operand.name for operand in last.operands if operand.value_kind == binding.ValueKind.basic_block)


def _called(block: Any) -> set[str]:
    calls = (one for one in block.instructions if one.opcode in {"call", "invoke"})
    return {operand.name for call in calls for operand in call.operands}


def _reached(successors: dict[str, set[str]], start: str) -> set[str]:
    """Return the blocks that come after one, itself only if there is a way back."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = successors[waiting.pop()] - reached
        reached |= fresh
        waiting += fresh
    return reached


@pytest.mark.parametrize("name", HOT)
def test_hot_loops_count_no_references(name: str) -> None:
    """No loop of the engine counts references to its arrays, which would cost more than all of its work."""
    assert counting_in_loops(HOT[name]) == []


def test_counting_in_a_loop_is_found() -> None:
    """A loop that keeps an array counts references, and is found."""

    @numba.njit(["int64(uint64[::1])"])
    def keeping(array):  # type: ignore[no-untyped-def]
        kept = [array]
        for _ in range(array.size):
            kept.append(array)
        return len(kept)

    assert keeping(np.zeros(3, np.uint64)) == 4
    assert any("keeping" in place for place in counting_in_loops(keeping))


def test_a_further_start_compiles_nothing() -> None:
    """Every compiled function of another process comes from the cache, and nobody is told to wait."""
    started = run(LISTING)
    rows = [line.split() for line in started.stdout.splitlines()]
    assert started.stderr == ""
    assert {name for name, *_ in rows} >= set(HOT)
    assert [(name, hits, misses) for name, hits, misses in rows if (hits, misses) != ("1", "0")] == []


def test_code_is_compiled_once_and_said_so(tmp_path: Path) -> None:
    """The first start tells that it compiles; the next, of a source with another date, does not have to."""
    source = tmp_path / "exitlab_small.py"
    source.write_text(SMALL_MODULE, encoding="utf-8")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "EXITLAB_CACHE_DIR": str(tmp_path / "cache"),
    }
    first = run(SMALL, **environment)
    os.utime(source, (1, 1))
    second = run(SMALL, **environment)
    assert (first.stdout.split(), first.stderr.startswith("compiling the engine, once")) == (
        ["42", "0", "1"],
        True,
    )
    assert (second.stdout.split(), second.stderr) == (["42", "1", "0"], "")


def test_code_that_is_gone_is_compiled_again_and_said_so(tmp_path: Path) -> None:
    """One missing file of code is told before it is compiled, however full the rest of the cache is."""
    (tmp_path / "exitlab_small.py").write_text(SMALL_MODULE, encoding="utf-8")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        "EXITLAB_CACHE_DIR": str(tmp_path / "cache"),
    }
    run(SMALL, **environment)
    (code,) = (tmp_path / "cache").rglob("exitlab_small.double*.nbc")
    other = code.with_name(code.name.replace("exitlab_small.double", "oracle.run_lane"))
    code.rename(other)
    again = run(SMALL, **environment)
    assert (again.stdout.split(), again.stderr.startswith("compiling the engine, once")) == (
        ["42", "0", "1"],
        True,
    )
