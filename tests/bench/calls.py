"""Calls that an engine makes of a compiled loop, recorded so that they can be made again."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Final
from unittest import mock

import numpy as np

from tests.bench.loop import Call, Loop
from tests.bench.port import Port

Arguments = tuple[Any, ...]
MOST_CALLS: Final = 64  # of one stream: the copies of a call's tables take megabytes


def copied(arguments: Arguments) -> Arguments:
    """Return arguments with arrays of their own; an array that is given twice stays one."""
    copies: dict[int, Any] = {}
    for one in arguments:
        if isinstance(one, np.ndarray):
            copies.setdefault(id(one), one.copy())
    return tuple(copies.get(id(one), one) for one in arguments)


@dataclass(slots=True)
class Recorded:
    """The first calls of one loop while something ran."""

    port: Port
    calls: list[Arguments] = field(default_factory=list)

    def ready(self, loop: Loop) -> list[tuple[Arguments, Call]]:
        """Return every call ready to be made, on copies of what it was called with."""
        fresh = [copied(arguments) for arguments in self.calls]
        return [(arguments, loop(arguments)) for arguments in fresh]

    def results(self, loop: Loop) -> dict[str, object]:
        """Make all calls; return what each returns, and a digest of all that its arrays then hold."""
        found: dict[str, object] = {}
        with np.errstate(over="ignore"):
            for number, (arguments, call) in enumerate(self.ready(loop)):
                found[f"result of call {number}"] = call()
                for name, array in zip(self.port.parameters, arguments, strict=True):
                    if isinstance(array, np.ndarray):
                        found[f"{name} of call {number}"] = sha256(array.tobytes()).hexdigest()
        return found

    def run_seconds(self, loop: Loop) -> float:
        """Return the processor time of all calls, the preparation left out."""
        calls = [call for _, call in self.ready(loop)]
        with np.errstate(over="ignore"):
            start = time.thread_time()
            for call in calls:
                call()
            return time.thread_time() - start


def compiled(port: Port, arguments: Arguments) -> Call:
    """Return a call of the engine's own loop."""
    return partial(port.function, *arguments)


def record(ports: tuple[Port, ...], run: Callable[[], object]) -> list[Recorded]:
    """Run something and return the calls of each loop that it made."""
    found = [Recorded(port) for port in ports]
    with ExitStack() as stack:
        for one in found:
            for module in _users_of(one.port):
                stack.enter_context(mock.patch.object(module, one.port.name, partial(_note, one)))
        run()
    return found


def _note(recorded: Recorded, *arguments: Any) -> Any:
    if len(recorded.calls) < MOST_CALLS:
        recorded.calls.append(copied(arguments))
    return recorded.port.function(*arguments)


def _users_of(port: Port) -> list[Any]:
    """Return the modules that have the loop under its name."""
    modules = [module for name, module in sys.modules.items() if name.startswith("hypervisor_svc")]
    return [module for module in modules if vars(module).get(port.name) is port.function]
