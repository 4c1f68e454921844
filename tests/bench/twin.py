"""The oracle loop in C, compiled when it is needed and called in place of the compiled Python."""

import ctypes
import os
import shlex
import subprocess
from enum import IntEnum, IntFlag
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from hypervisor_svc.arch import controls, debug_registers, story
from hypervisor_svc.engine import oracle, profile, records
from hypervisor_svc.engine.vocabulary import Input
from tests.bench.loop import Call, Loop
from tests.bench.measure import say
from tests.bench.port import TARGET, oracle_loop, ported
from tests.bench.translate import macro

FLAGS: Final = ("-O3", "-std=c11", "-Wall", "-Wextra", "-Wno-unused", "-shared", "-fPIC")
# The rows of the arrays of more than one dimension.
ROWS: Final[dict[str, tuple[int, ...]]] = {
    "strides": (len(Input),),
    "classes": (profile.SUB_REASONS,),
    "vcpu": (records.VCPU_FIELDS,),
    "physical": (records.PHYSICAL_FIELDS,),
    "bill_keys": (2,),
    "leaks": (8, records.LEAK_OWNERS),
    "debug_exits": (records.DEBUG_EXIT_FIELDS,),
    "declared": (2,),
    "decision_keys": (2,),
    "decisions": (2,),
}


class NoTwin(RuntimeError):
    """The loop in C cannot be had here; the message says why."""


def layout() -> str:
    """Return the header that gives the loop in C the engine's numbers."""
    numbers: dict[str, int] = {}
    for module in (profile, debug_registers, controls, story, oracle):
        for name, value in vars(module).items():
            is_number = isinstance(value, int | np.integer) and not isinstance(value, IntEnum | IntFlag)
            if name.isupper() and is_number:
                numbers[macro(name)] = int(value)
    for name, row in ROWS.items():
        for axis, length in enumerate(row, start=1):
            numbers[f"ROW_{name.upper()}" + (f"_{axis}" if axis > 1 else "")] = length
    lines = [f"#define {name} {number:#x}ull" for name, number in numbers.items()]
    return "/* Made from the engine's numbers. */\n" + "\n".join(lines) + "\n"


def compiler() -> list[str]:
    """Return the command of the C compiler."""
    return shlex.split(os.environ.get("CC", "cc"))


def compile_twin(folder: Path, extra_flags: tuple[str, ...] = ()) -> Loop:
    """Compile the loop into ``folder`` and return it.

    Raises:
        NoTwin: there is no compiler, or it refuses the source.

    """
    text = ported()
    if not TARGET.is_file() or TARGET.read_text(encoding="ascii") != text:
        say(f"{TARGET.name} is of an older loop; measured is this one (python -m tests.bench.port writes it)")
    source, library = folder / TARGET.name, folder / "oracle.so"
    source.write_text(text, encoding="ascii")
    (folder / "layout.h").write_text(layout(), encoding="ascii")
    command = [*compiler(), *FLAGS, *extra_flags, str(source), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoTwin(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise NoTwin(f"{shlex.join(command)}: {done.stderr.strip()}")
    return _loop(ctypes.CDLL(str(library)).run_lane)


def _loop(function: Any) -> Loop:
    function.restype = None
    port = oracle_loop()
    names, sizes = port.parameters, port.sized

    def ready(arguments: tuple[Any, ...]) -> Call:
        given: list[Any] = []
        for name, argument in zip(names, arguments, strict=True):
            if not isinstance(argument, np.ndarray):
                given.append(ctypes.c_uint64(int(argument)))
                continue
            _check_shape(name, argument)
            given.append(argument.ctypes.data_as(ctypes.c_void_p))
            if name in sizes:
                given.append(ctypes.c_uint64(len(argument)))
        return partial(function, *given)

    return ready


def _check_shape(name: str, array: np.ndarray[Any, Any]) -> None:
    """Refuse an array whose rows the header does not describe."""
    if array.shape[1:] != ROWS.get(name, ()) or not array.flags.c_contiguous:
        raise ValueError(f"{name} has rows of shape {array.shape[1:]}, expected {ROWS.get(name, ())}")
