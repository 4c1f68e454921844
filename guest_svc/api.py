"""What the author of a workload imports, and all that he needs; docs/workloads.md writes one step by step.

::

    from guest_svc.api import EventKind, Parameter, Workload, events

    class Ticks(Workload):
        \"\"\"A guest that does nothing but take timer interrupts.\"\"\"

        api_version = 1
        name = "ticks"
        summary = "timer interrupts"
        parameters = (Parameter("ticks", 10_000, "ticks", "length of the run", 1, 10**9),)

        def generate(self):
            for _ in range(self["ticks"]):
                yield events(kinds=EventKind.EXTERNAL_INTERRUPT, selectors=0xEC, gap_cycles=3_000_000)

Then ``guest-svc compare ./ticks.py:Ticks`` runs it, and ``guest-svc check-workload ./ticks.py:Ticks`` says
whether it keeps what a workload promises.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from exitlab.debugreg import DR6_RESET, DR7_RESET
from exitlab.events import COLUMN_NAMES, MMIO_WRITE, EventColumns, EventKind, Mark, Mode
from exitlab.stories import Story
from guest_svc.columns import Event, event_rows, events, joined, repeated
from guest_svc.outcomes import Outcomes
from guest_svc.workloads.base import API_VERSION, BadParameter, Parameter, Value
from guest_svc.workloads.breakpoints import ON_ACCESS, ON_EXECUTE, ON_WRITE, Breakpoint, dr7_of

__all__ = [
    "API_VERSION",
    "COLUMN_NAMES",
    "DR6_RESET",
    "DR7_RESET",
    "MMIO_WRITE",
    "ON_ACCESS",
    "ON_EXECUTE",
    "ON_WRITE",
    "BadParameter",
    "Breakpoint",
    "Event",
    "EventColumns",
    "EventKind",
    "Generated",
    "Mark",
    "Mode",
    "Outcomes",
    "Parameter",
    "Story",
    "Workload",
    "dr7_of",
    "event_rows",
    "events",
    "joined",
    "repeated",
]

#: What ``generate`` is: it yields events, and is answered with their outcomes if it reads them.
Generated = Generator[EventColumns, Any, None]


class Workload(ABC):
    """A guest, written as a generator of its events.

    An object is one run: it is made anew for each, ``prepare`` is called once, then ``generate`` once. The
    same parameters, seed and outcomes have to give the same events: draw from ``random`` and nothing else.
    The docstring of the class is its documentation.
    """

    #: The version of this interface that it is written for: API_VERSION of that time, as a number.
    api_version: ClassVar[int]
    #: What it is called in lists and reports: at most 100 small letters, digits and dashes.
    name: ClassVar[str]
    #: One line for people.
    summary: ClassVar[str]
    #: What may be set with ``-p NAME=VALUE``.
    parameters: ClassVar[Sequence[Parameter]] = ()
    #: Whether it acts on what its events showed (a closed loop).
    reads_outcomes: ClassVar[bool] = False

    # What follows may also be set by ``prepare``, where it depends on parameters.

    #: Number of virtual CPUs, 1 to 256.
    vcpus: int = 1
    #: Number of physical CPUs; one for each vCPU if None.
    physical_cpus: int | None = None
    #: The physical CPU that each vCPU starts on; vCPU n on CPU n modulo their number if None.
    initial_physical_cpus: Sequence[int] | None = None
    #: Guest cycles in a guest second.
    clock_hertz: int = 3_000_000_000
    #: Names of the columns that its events may have (kinds is always one); less is sent if there are fewer.
    columns: Sequence[str] = COLUMN_NAMES
    #: Whether fetches and accesses are matched with the guest's breakpoints; else its #DBs come as events.
    computed_breakpoints: bool = True

    def __init__(self, values: Mapping[str, Value], seed: int, events_asked: int | None) -> None:
        """Begin a run; an author writes ``prepare`` instead."""
        self._values = dict(values)
        #: The seed that was asked for, 0 to 2**64 - 1.
        self.seed = seed
        #: How many events ``--events`` asks for; what is yielded beyond is not taken. None: all there are.
        self.events_asked = events_asked

    def __getitem__(self, name: str) -> Any:
        """Return the value of a parameter, of its default's type."""
        return self._values[name]

    @cached_property
    def random(self) -> np.random.Generator:
        """Random numbers that depend on the seed, and on nothing else but numpy's version."""
        return np.random.default_rng(self.seed)

    def prepare(self) -> None:  # noqa: B027  (most have nothing to prepare)
        """Set what depends on parameters, and refuse by BadParameter those that do not go together."""

    @abstractmethod
    def generate(self) -> Generated:
        """Yield the guest's events from the first to the last, in parts of any size.

        ``outcomes = yield events(...)``: with ``reads_outcomes`` that is what the guest saw of just these
        events, else None. It may be left at any yield.
        """
