"""Writes the compiled loops in C, statement by statement from their Python sources.

``python -m tests.bench.port`` writes the files again after a change of a loop.
"""

import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from hypervisor_svc.arch import reference
from hypervisor_svc.engine import machine, oracle, symbols
from tests.bench.syntax import NotPortable
from tests.bench.translate import Function, source_of

_HEAD: Final = """\
/*
 * {summary} in C, made by tests/bench/port.py from {source}: the same
 * statements over the same arrays. It is what the compiled loop is measured against.
 *
 * layout.h is made from the engine's own numbers when this file is compiled. Nothing is timed before this
 * loop and the compiled one agree in every counter, record and outcome.
 */
#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;
/* Columns come off the wire and need not be aligned. */
typedef u16 u16_anywhere __attribute__((aligned(1)));
typedef u32 u32_anywhere __attribute__((aligned(1)));
typedef u64 u64_anywhere __attribute__((aligned(1)));
"""
_ITEMS: Final = {"uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "int64": "i64"}


class Port:
    """A compiled loop of the engine with all that it calls, in C."""

    def __init__(self, summary: str, function: Any, module: ModuleType) -> None:
        """Take the loop; ``summary`` says which it is."""
        self.summary = summary
        self.function = function
        self.name = source_of(function).__name__
        self._module = module
        self._main = Function(function, module)
        self.target = Path(__file__).with_name(f"{module.__name__.rpartition('.')[2]}.c")

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters."""
        return self._main.parameters

    @cached_property
    def sized(self) -> set[str]:
        """The arrays that are given with their lengths."""
        return self._main.sized

    @property
    def has_result(self) -> bool:
        """Whether it returns a number."""
        return str(self._module._SIGNATURE.return_type) != "none"

    @property
    def text(self) -> str:
        """The file."""
        return self._written[0]

    @property
    def constants(self) -> dict[str, int]:
        """The macros that the file uses."""
        return self._written[1]

    @cached_property
    def _written(self) -> tuple[str, dict[str, int]]:
        source = f"{self._module.__name__.replace('.', '/')}.py"
        helpers: dict[Any, Function] = {}
        _find_helpers(self._main, helpers)
        parts = [_HEAD.format(summary=self.summary, source=source), *map(_helper, helpers.values())]
        head = f"{'i64' if self.has_result else 'void'} {self.name}("
        kinds = zip(self.parameters, self._module._SIGNATURE.args, strict=True)
        given = [_parameter(name, kind, name in self.sized) for name, kind in kinds]
        parts.append(f"{head}{(',' + chr(10) + ' ' * len(head)).join(given)})\n{{\n{self._main.body()}\n}}\n")
        constants: dict[str, int] = {}
        for function in (*helpers.values(), self._main):
            for name, number in function.constants.items():
                if constants.setdefault(name, number) != number:
                    raise NotPortable(f"{name} is two numbers: {number} and {constants[name]}")
        return "\n".join(parts), constants


def _find_helpers(function: Function, found: dict[Any, Function]) -> None:
    """Add all that a function calls, before what calls it."""
    for called in function.called:
        if called not in found:
            helper = Function(called, sys.modules[source_of(called).__module__])
            _find_helpers(helper, found)
            found[called] = helper


def _helper(port: Function) -> str:
    parameters = ", ".join(f"u64 {name}" for name in port.parameters)
    name = port.tree.name.lstrip("_")
    return f"static inline u64 {name}({parameters})\n{{\n{port.body()}\n}}\n"


def _parameter(name: str, kind: Any, has_size: bool) -> str:
    """Return a parameter of the loop in C; an array whose length is asked for is followed by it."""
    if not hasattr(kind, "ndim"):
        return f"u64 {name}"
    item = _ITEMS[str(kind.dtype)]
    if not kind.aligned and item != "u8":
        item += "_anywhere"
    if not kind.mutable:
        item = f"const {item}"
    rows = "".join(f"[{row_macro(name, axis)}]" for axis in range(1, kind.ndim))
    array = f"{item} (*{name}){rows}" if rows else f"{item} *{name}"
    return f"{array}, u64 {name}_size" if has_size else array


def row_macro(name: str, axis: int) -> str:
    """Return the macro that has the length of an array's rows along an axis."""
    return f"ROW_{name.upper()}" + (f"_{axis}" if axis > 1 else "")


ORACLE: Final = Port("The oracle loop", oracle.run_lane, oracle)
REFERENCE: Final = Port("The reference", reference.run_reference, reference)
SYMBOLS: Final = Port("The pass that reads symbols", symbols.read_symbols, symbols)
MACHINES: Final = Port("Four bill machines", machine.run_machines, machine)
PORTS: Final = (ORACLE, REFERENCE, SYMBOLS, MACHINES)


if __name__ == "__main__":
    for port in PORTS:
        port.target.write_text(port.text, encoding="ascii")
