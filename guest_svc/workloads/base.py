"""What every source of events is: its parameters, its facts, its blocks of events.

Nothing here imports numpy, so that names, parameters and errors cost no start-up time.

::

    WorkloadError          of guest_svc/errors.py
    ├── UnknownWorkload    no workload of that name
    ├── UnknownParameter   the workload has no parameter of that name
    └── BadParameter       a value that the parameter does not take
"""

from __future__ import annotations

import difflib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self, TypeAlias

from exitlab.words import shortened
from guest_svc.errors import WorkloadError

if TYPE_CHECKING:
    from exitlab.events import Column, EventColumns
    from guest_svc.outcomes import Outcomes

API_VERSION: Final = 1  # of the interface that workloads are written for, see guest_svc/api.py
BLOCK_EVENTS: Final = 65_536  # most events of a block unless said otherwise
SEED_LIMIT: Final = 1 << 64
MAX_PHYSICAL_CPUS: Final = 256  # of a session, as a hypervisor limits them unless told otherwise

Value = int | float | bool | str
#: Blocks of events. If their source reads outcomes, it is sent those of each block that it has yielded.
Blocks: TypeAlias = "Generator[EventColumns, Outcomes | None, None]"

_SHOWN: Final = 100  # characters of what is not known, in an error
_BOOLEANS: Final = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}


class UnknownWorkload(WorkloadError):
    """No workload has this name."""


class UnknownParameter(WorkloadError):
    """The workload has no parameter of this name."""


class BadParameter(WorkloadError):
    """A parameter does not take this value."""


def _near_matches(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: the known names nearest to ``name``, or else all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return what is said of a name that nothing of a kind has; a long one is cut."""
    short = name[:_SHOWN]
    return f"no {kind} {short!r}; {_near_matches(short, known)}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a workload; its type is that of its default."""

    name: str
    default: Value
    unit: str
    summary: str
    minimum: int | float | None = None
    maximum: int | float | None = None

    @property
    def type_name(self) -> str:
        """The type for people: int, float, str or bool."""
        return type(self.default).__name__

    @property
    def range_text(self) -> str:
        """The range for people; empty where every value of the type is taken."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum} to {self.maximum}"
        if self.minimum is not None:
            return f"at least {self.minimum}"
        return "" if self.maximum is None else f"at most {self.maximum}"

    def parse(self, workload: str, text: str) -> Value:
        """Return the value that ``text`` stands for.

        Raises:
            BadParameter: It is of another type, or out of range.

        """
        value, given = self._read(text), f"{workload}: {self.name}={shortened(text, _SHOWN)}"
        if value is None:
            expected = ", ".join(filter(None, (self.type_name, self.range_text)))
            raise BadParameter(f"{given}: expected {expected} ({self.unit})")
        if isinstance(value, int | float) and not self._contains(value):
            raise BadParameter(f"{given}: expected {self.range_text} ({self.unit})")
        return value

    def _read(self, text: str) -> Value | None:
        if isinstance(self.default, bool):
            return _BOOLEANS.get(text.strip().lower())
        if isinstance(self.default, str):
            return text
        try:
            number = Decimal(text.strip())
        except InvalidOperation:
            return None
        # Without the bound on the exponent, turning 1e999999999 into an int would not end.
        if not number.is_finite() or number.adjusted() > 30:
            return None
        if isinstance(self.default, float):
            return float(number)
        return int(number) if number == number.to_integral_value() else None

    def _contains(self, value: int | float) -> bool:
        return (self.minimum is None or value >= self.minimum) and (
            self.maximum is None or value <= self.maximum
        )


def parse_parameters(
    workload: str, declared: tuple[Parameter, ...], given: Mapping[str, str]
) -> dict[str, Value]:
    """Return every declared parameter's value, in order: the given one or else the default.

    Raises:
        UnknownParameter: A given name is not declared.
        BadParameter: A given value is not taken.

    """
    names = [parameter.name for parameter in declared]
    for name in given:
        if name not in names:
            raise UnknownParameter(f"{workload}: {unknown('parameter', name, names)}")
    return {
        parameter.name: parameter.parse(workload, given[parameter.name])
        if parameter.name in given
        else parameter.default
        for parameter in declared
    }


def check_run(workload: str, seed: int, events: int | None) -> None:
    """Refuse a seed or a number of events that no run can have.

    Raises:
        BadParameter: One of them is out of range.

    """
    if not 0 <= seed < SEED_LIMIT:
        raise BadParameter(f"{workload}: seed {seed}: expected 0 to {SEED_LIMIT - 1}")
    if events is not None and events < 1:
        raise BadParameter(f"{workload}: events {events}: expected at least 1")


class Workload(ABC):
    """A source of events, made and ready to run.

    The same name, parameters, seed and number of events give byte for byte the same columns, however
    the blocks are cut and however often ``blocks`` is called; of a source that reads outcomes, if those are
    the same.
    """

    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    is_recorded: ClassVar[bool] = False
    #: Whether ``clock_hertz`` is the guest's own; else a price list's clock is taken.
    has_own_clock: ClassVar[bool] = True
    #: Whether it acts on what its events showed (a closed loop): ``blocks`` is sent each block's outcomes.
    reads_outcomes: bool = False

    #: The columns of every block, ascending.
    columns: tuple[Column, ...]
    vcpus: int = 1
    physical_cpus: int = 1
    #: The physical CPU that each vCPU starts on.
    initial_physical_cpus: tuple[int, ...] = (0,)
    #: Whether fetches and accesses are matched; else debug exceptions come as events.
    computed_breakpoints: bool = True
    clock_hertz: int
    #: Whose exits a recording has, by the contract's number; nothing where events are any vendor's.
    vendor: int | None = None
    seed: int
    #: Events of the guest and its host; neither ADVANCE nor unrecorded events are among them. None where that
    #: is not known before ``blocks`` has ended; then it is final, as are records and skipped.
    total_events: int | None
    #: Rows before the first event that set the guest's state as the trace found it.
    unrecorded_events: int = 0
    #: What a trace recorded; of a generated workload, its events.
    records: int
    #: Records that are no events, by kind: records = total_events + skipped.
    skipped: dict[str, int]
    parameters_used: dict[str, object]

    @property
    def told_as(self) -> str:
        """What it is called in an error of its own."""
        return self.name

    @property
    def fraction_read(self) -> float | None:
        """How much of the source is read, 0 to 1, for a progress bar; None where nobody knows."""
        return None

    @abstractmethod
    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield all rows from the start, at most ``block_events`` at a time."""


class WorkloadSource(Protocol):
    """What a name stands for: a workload's class, or a recorded trace that is not read yet."""

    @property
    def name(self) -> str:
        """The name to ask for."""

    @property
    def summary(self) -> str:
        """One line for people."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters."""

    @property
    def documentation(self) -> str:
        """What it does, for people, in as many lines as that takes; may be empty."""

    @property
    def api_version(self) -> int:
        """The version of the interface that it was written for."""

    @property
    def is_recorded(self) -> bool:
        """Whether it is a recorded trace."""

    def make(self, parameters: Mapping[str, str], seed: int = 0, events: int | None = None) -> Workload:
        """Return it ready to run, cut or extended to ``events`` events; a trace is only ever cut."""


class GeneratedWorkload(Workload):
    """A workload made from parameters and a seed; name, summary and parameters are its class's."""

    total_events: int
    documentation: ClassVar[str] = ""  # what its module says of itself
    api_version: ClassVar[int] = API_VERSION

    def __init_subclass__(cls) -> None:
        """Take the documentation from where it is written."""
        cls.documentation = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")

    def __init__(self, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Keep what was asked for; a subclass builds its patterns from it."""
        self.seed = seed
        self.events_asked = events
        self.parameters_used = dict(values)
        self.skipped = {}

    @classmethod
    def make(cls, parameters: Mapping[str, str], seed: int = 0, events: int | None = None) -> Self:
        """Return the workload ready to run.

        Raises:
            WorkloadError: A parameter, the seed or the number of events is not taken.

        """
        check_run(cls.name, seed, events)
        return cls(parse_parameters(cls.name, cls.parameters, parameters), seed, events)

    def number(self, name: str) -> int:
        """Return the whole number that a parameter has."""
        value = self.parameters_used[name]
        assert isinstance(value, int), name
        return value
