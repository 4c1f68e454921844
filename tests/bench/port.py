"""Writes ``oracle.c``: the oracle loop in C, statement by statement from its Python source.

``python -m tests.bench.port`` writes it again after a change of the loop.
"""

import sys
from pathlib import Path
from typing import Any, Final

from hypervisor_svc.arch import controls, debug_registers, story
from hypervisor_svc.engine import oracle
from tests.bench.translate import Function, source_of

TARGET: Final = Path(__file__).with_name("oracle.c")
HELPERS: Final = (
    debug_registers.first_fault,
    debug_registers.canonical_dr6,
    debug_registers.canonical_dr7,
    debug_registers.dr6_after_db,
    debug_registers._slot_matches,
    debug_registers.matching_slots,
    debug_registers.registers_digest,
    debug_registers.mixed,
    story.is_exception,
    controls.kept_control,
)
_HEAD: Final = """\
/*
 * The oracle loop in C, made by tests/bench/port.py from hypervisor_svc/engine/oracle.py: the same
 * statements over the same arrays. It is what the compiled loop is measured against.
 *
 * layout.h is made from the engine's own numbers when this file is compiled. Nothing is timed before this
 * loop, the compiled one and the plain one agree in every counter, record and outcome.
 */
#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
/* Columns come off the wire and need not be aligned. */
typedef u32 u32_anywhere __attribute__((aligned(1)));
typedef u64 u64_anywhere __attribute__((aligned(1)));
"""


def _helper(function: Any) -> str:
    python = source_of(function)
    port = Function(function, sys.modules[python.__module__])
    parameters = ", ".join(f"u64 {name}" for name in port.parameters)
    name = python.__name__.lstrip("_")
    return f"static inline u64 {name}({parameters})\n{{\n{port.body()}\n}}\n"


def _parameter(name: str, kind: Any, has_size: bool) -> str:
    """Return a parameter of the loop in C; an array whose length is asked for is followed by it."""
    if not hasattr(kind, "ndim"):
        return f"u64 {name}"
    item = {"uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64"}[str(kind.dtype)]
    if not kind.aligned and item in ("u32", "u64"):
        item += "_anywhere"
    if not kind.mutable:
        item = f"const {item}"
    rows = "".join(
        f"[ROW_{name.upper()}{'_' + str(axis) if axis > 1 else ''}]" for axis in range(1, kind.ndim)
    )
    array = f"{item} (*{name}){rows}" if rows else f"{item} *{name}"
    return f"{array}, u64 {name}_size" if has_size else array


def oracle_loop() -> Function:
    """Return the loop, read and ready to be written."""
    return Function(oracle.run_lane, oracle)


def ported() -> str:
    """Return the loop in C."""
    port = oracle_loop()
    kinds = zip(port.parameters, oracle._SIGNATURE.args, strict=True)
    given = ",\n              ".join(_parameter(name, kind, name in port.sized) for name, kind in kinds)
    head = f"void run_lane({given})"
    parts = [_HEAD, *map(_helper, HELPERS), f"{head}\n{{\n{port.body()}\n}}\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(ported(), encoding="ascii")
