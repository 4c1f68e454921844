"""The compiled loops in C, compiled when they are needed and called in place of the compiled Python."""

import ctypes
import os
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.bench.loop import Call, Loop
from tests.bench.measure import say
from tests.bench.port import Port, row_macro

FLAGS: Final = ("-O3", "-std=c11", "-Wall", "-Wextra", "-Wno-unused", "-shared", "-fPIC")


class NoTwin(RuntimeError):
    """A loop in C cannot be had here; the message says why."""


def rows_of(port: Port, arguments: tuple[Any, ...]) -> dict[str, int]:
    """Return the lengths of the rows of a call's arrays."""
    return {
        row_macro(name, axis): length
        for name, argument in zip(port.parameters, arguments, strict=True)
        if isinstance(argument, np.ndarray)
        for axis, length in enumerate(argument.shape[1:], start=1)
    }


def layout(port: Port, rows: dict[str, int]) -> str:
    """Return the header that gives a loop in C the engine's numbers."""
    lines = [f"#define {name} {number:#x}ull" for name, number in {**port.constants, **rows}.items()]
    return "/* Made from the engine's numbers. */\n" + "\n".join(lines) + "\n"


def compiler() -> list[str]:
    """Return the command of the C compiler."""
    return shlex.split(os.environ.get("CC", "cc"))


def compile_twin(
    port: Port, example: tuple[Any, ...], folder: Path, extra_flags: tuple[str, ...] = ()
) -> Loop:
    """Compile a loop into ``folder`` for calls like the example's, and return it.

    Raises:
        NoTwin: there is no compiler, or it refuses the source.

    """
    if not port.target.is_file() or port.target.read_text(encoding="ascii") != port.text:
        say(f"{port.target.name} is of an older loop; measured is this one (python -m tests.bench.port)")
    own = folder / port.target.stem
    own.mkdir(exist_ok=True)
    source, library = own / port.target.name, own / "twin.so"
    rows = rows_of(port, example)
    source.write_text(port.text, encoding="ascii")
    (own / "layout.h").write_text(layout(port, rows), encoding="ascii")
    command = [*compiler(), *FLAGS, *extra_flags, str(source), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoTwin(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NoTwin(f"{shlex.join(command)}: {done.stderr.strip()}")
    function = ctypes.CDLL(str(library))[port.name]
    function.restype = ctypes.c_int64 if port.has_result else None
    return partial(_ready, port, function, rows)


def _ready(port: Port, function: Any, rows: dict[str, int], arguments: tuple[Any, ...]) -> Call:
    if rows_of(port, arguments) != rows:
        raise ValueError(f"{port.name}: rows of {rows_of(port, arguments)}, expected {rows}")
    given: list[Any] = []
    for name, argument in zip(port.parameters, arguments, strict=True):
        if not isinstance(argument, np.ndarray):
            given.append(ctypes.c_uint64(int(argument)))
            continue
        if not argument.flags.c_contiguous:
            raise ValueError(f"{port.name}: {name} is not contiguous")
        given.append(argument.ctypes.data_as(ctypes.c_void_p))
        if name in port.sized:
            given.append(ctypes.c_uint64(len(argument)))
    return partial(function, *given)
