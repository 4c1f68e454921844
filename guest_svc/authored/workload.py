"""An author's workload under way: his generator as blocks of a session.

Nothing of his is trusted beyond: what he declares and yields is checked here.
"""

import ctypes
import inspect
from collections.abc import Generator, Sequence, Set
from typing import Any, Final

import numpy as np

from exitlab.events import COLUMN_NAMES, MAX_VCPUS, Column, EventColumns
from exitlab.plugins import PluginError, place_of
from exitlab.words import as_written
from guest_svc import api
from guest_svc.authored.author import Author
from guest_svc.authored.yielded import Batch, Yielded, cut
from guest_svc.outcomes import Outcomes
from guest_svc.workloads.base import BLOCK_EVENTS, MAX_PHYSICAL_CPUS, Blocks, Value, Workload

LARGEST_CLOCK_HERTZ: Final = 10**12
_BATCH_EVENTS: Final = 8_192  # of small yields that are sent as one block


class Authored(Workload):
    """An author's workload, ready to run; each call of ``blocks`` is a run of its own."""

    def __init__(self, author: Author, values: dict[str, Value], seed: int, events: int | None) -> None:
        """Ask the author's code for what a session must know."""
        self._author, self._values, self._events_asked = author, values, events
        self.name, self.seed = author.name, seed
        self.parameters_used = dict(values)
        self.total_events: int | None = None
        self.records, self.skipped = 0, {}
        made = author.begin(values, seed, events)
        with author.blaming("its declarations"):
            self._take_facts(made)

    def _take_facts(self, made: api.Workload) -> None:
        self.vcpus = self._whole("vcpus", made.vcpus, 1, MAX_VCPUS)
        physical_cpus = self.vcpus if made.physical_cpus is None else made.physical_cpus
        self.physical_cpus = self._whole("physical_cpus", physical_cpus, 1, MAX_PHYSICAL_CPUS)
        initial = made.initial_physical_cpus
        if initial is None:
            initial = [vcpu % self.physical_cpus for vcpu in range(self.vcpus)]
        if not isinstance(initial, Sequence | np.ndarray):
            raise self._author.error(f"initial_physical_cpus: {as_written(initial)}, expected one a vCPU")
        if len(initial) != self.vcpus:
            raise self._author.error(
                f"initial_physical_cpus: {len(initial)} of them, expected {self.vcpus}, one a vCPU"
            )
        largest = self.physical_cpus - 1
        self.initial_physical_cpus = tuple(
            self._whole("initial_physical_cpus", each, 0, largest) for each in initial
        )
        self.clock_hertz = self._whole("clock_hertz", made.clock_hertz, 1, LARGEST_CLOCK_HERTZ)
        computed = made.computed_breakpoints
        if not isinstance(computed, bool | np.bool_):
            raise self._author.error(f"computed_breakpoints: {as_written(computed)}, expected True or False")
        self.computed_breakpoints = bool(computed)
        self.columns = self._declared_columns(made.columns)

    def _declared_columns(self, declared: object) -> tuple[Column, ...]:
        names = (declared,) if isinstance(declared, str) else declared
        if not isinstance(names, Sequence | Set | np.ndarray):
            raise self._author.error(f"columns: {as_written(declared)}, expected a tuple of names")
        for name in names:
            if not isinstance(name, str) or name not in COLUMN_NAMES:
                expected = f"expected some of {', '.join(COLUMN_NAMES)}"
                raise self._author.error(f"columns: {as_written(name)} is none, {expected}")
        return tuple(
            column for column in Column if column is Column.KINDS or COLUMN_NAMES[column - 1] in names
        )

    def _whole(self, what: str, number: object, least: int, most: int) -> int:
        whole = int(number) if isinstance(number, np.integer) else number
        if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
            expected = f"expected a whole number from {least} to {most}"
            raise self._author.error(f"{what}: {as_written(whole)}, {expected}")
        return whole

    @property
    def told_as(self) -> str:
        """What it is called in an error of its own."""
        return self._author.told_as

    def blocks(self, block_events: int = BLOCK_EVENTS) -> Blocks:
        """Yield all events from the start, at most ``block_events`` at a time.

        Raises:
            AuthorError: His code fails, or yields what is no events.

        """
        parts = Yielded(self)
        run = self._author.begin(self._values, self.seed, self._events_asked)
        with self._author.blaming("generate"):
            generator = run.generate()
        if not isinstance(generator, Generator):
            raise self._author.error(
                f"generate returned {type(generator).__name__}, expected a generator: a method that yields"
            )
        try:
            if self.reads_outcomes:
                yield from self._answered(generator, parts, block_events)
            else:
                yield from self._gathered(generator, parts, block_events)
        finally:
            with self._author.blaming(f"at event {parts.rows:,}, when it was to end"):
                _end(generator)
        if not parts.rows:
            raise self._author.error("it ended without an event")
        self.total_events = self.records = parts.events

    def _next(
        self, generator: Generator[Any, Any, Any], parts: Yielded, outcomes: Outcomes | None
    ) -> EventColumns | None:
        """Return the next events that the author's generator yields, checked; None at its end."""
        if parts.events == self._events_asked:
            return None
        with self._author.blaming(f"at event {parts.rows:,}"):
            try:
                yielded = generator.send(outcomes)
            except StopIteration:
                return None
        left = None if self._events_asked is None else self._events_asked - parts.events
        try:
            return parts.taken(yielded, left)
        except PluginError as error:
            raise self._author.error(f"{error} ({place_of(generator)})") from None

    def _gathered(self, generator: Generator[Any, Any, Any], parts: Yielded, block_events: int) -> Blocks:
        """Yield blocks of an open loop: small parts are gathered, as nothing waits for them."""
        least = min(_BATCH_EVENTS, block_events)
        batch = Batch(self.columns, least)
        while (part := self._next(generator, parts, None)) is not None:
            if not batch.has_room(len(part)):
                yield from cut(batch.take(), block_events)
            if len(part) < least:
                batch.add(part)
            else:
                yield from cut(part, block_events)
        yield from cut(batch.take(), block_events)

    def _answered(self, generator: Generator[Any, Any, Any], parts: Yielded, block_events: int) -> Blocks:
        """Yield blocks of a closed loop, and answer each part with the outcomes of all its blocks."""
        outcomes = None
        while (part := self._next(generator, parts, outcomes)) is not None:
            arrived = []
            for block in cut(part, block_events):
                answer = yield block
                assert answer is not None  # whoever runs it knows that it reads outcomes
                arrived.append(answer)
            outcomes = Outcomes.joined(arrived)


def _end(generator: Generator[Any, Any, Any]) -> None:
    """Close a generator; one that does not end is never freed, as Python would complain of it once more."""
    parts: list[Any] = [generator]  # with those that it yields from
    while inspect.isgenerator(parts[-1].gi_yieldfrom):
        parts.append(parts[-1].gi_yieldfrom)
    try:
        generator.close()
    except BaseException:
        for part in parts:
            if part.gi_frame is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        raise
