"""What an author has yielded: checked part by part, and given just the columns of the session."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exitlab.blocks import FIRST_KIND, LAST_KIND
from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from exitlab.plugins import PluginError
from guest_svc.workloads.base import Workload

_KINDS: Final = COLUMN_NAMES[Column.KINDS - 1]
_VCPUS: Final = COLUMN_NAMES[Column.VCPUS - 1]


class Yielded:
    """The events that an author has yielded so far."""

    def __init__(self, workload: Workload) -> None:
        """Begin with none."""
        self._columns = [(COLUMN_NAMES[column - 1], COLUMN_DTYPES[column]) for column in workload.columns]
        self._undeclared = [name for name in COLUMN_NAMES if name not in dict(self._columns)]
        self._vcpus = workload.vcpus
        self.rows = 0  # ADVANCE among them
        self.events = 0

    def taken(self, yielded: object, left: int | None) -> EventColumns:
        """Return a part, checked, whole, and cut after the ``left`` events that are still asked for.

        Raises:
            PluginError: It is no legal part of a stream; which event is told.

        """
        if not isinstance(yielded, EventColumns):
            raise PluginError(
                f"at event {self.rows:,} it yields {type(yielded).__name__}, expected what events() returns"
            )
        for name in self._undeclared:
            if getattr(yielded, name) is not None:
                raise PluginError(
                    f"at event {self.rows:,} it yields {name}, which its columns do not declare"
                )
        count = self._count(yielded)
        arrays = {name: self._column(yielded, name, dtype, count) for name, dtype in self._columns}
        self._check_range(arrays[_KINDS], FIRST_KIND, LAST_KIND, _KINDS)
        if _VCPUS in arrays:
            self._check_range(arrays[_VCPUS], 0, self._vcpus - 1, _VCPUS)
        part = EventColumns(**arrays)
        is_event = part.kinds != EventKind.ADVANCE
        events = int(np.count_nonzero(is_event))
        if left is not None and events > left:
            part = part.rows(0, int(np.flatnonzero(is_event)[left - 1]) + 1)
            events = left
        self.rows += len(part)
        self.events += events
        return part

    def _count(self, yielded: EventColumns) -> int:
        kinds = yielded.kinds
        if not isinstance(kinds, np.ndarray) or kinds.ndim != 1:
            raise PluginError(f"at event {self.rows:,} it yields kinds of {_form(kinds)}, expected an array")
        return len(kinds)

    def _column(self, yielded: EventColumns, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        array: Any = getattr(yielded, name)
        if array is None:
            return np.zeros(count, dtype)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (count,):
            raise PluginError(
                f"at event {self.rows:,} it yields {name} of {_form(array)}, expected {dtype} of shape "
                f"({count},)"
            )
        return array

    def _check_range(self, array: NDArray[Any], least: int, most: int, name: str) -> None:
        if len(array) and not least <= array.min() <= array.max() <= most:
            row = int(np.flatnonzero((array < least) | (array > most))[0])
            raise PluginError(f"event {self.rows + row:,}: {name} {array[row]}, expected {least} to {most}")


def _form(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return type(array).__name__


class Batch:
    """Small parts that are waiting to be sent as one: copied, since their author may use his arrays again."""

    def __init__(self, columns: Sequence[Column], size: int) -> None:
        """Have room for ``size`` events."""
        self._columns = [(COLUMN_NAMES[column - 1], COLUMN_DTYPES[column]) for column in columns]
        self._size = size
        self._begin()

    def _begin(self) -> None:
        self._arrays = {name: np.empty(self._size, dtype) for name, dtype in self._columns}
        self._count = 0

    def has_room(self, events: int) -> bool:
        """Tell whether so many more fit."""
        return self._count + events <= self._size

    def add(self, part: EventColumns) -> None:
        """Take in events, which have every column."""
        end = self._count + len(part)
        for name, array in self._arrays.items():
            array[self._count : end] = getattr(part, name)
        self._count = end

    def take(self) -> EventColumns:
        """Hand out what is waiting, and begin anew."""
        arrays: dict[str, Any] = {name: array[: self._count] for name, array in self._arrays.items()}
        self._begin()
        return EventColumns(**arrays)


def cut(events: EventColumns, block_events: int) -> Iterator[EventColumns]:
    """Yield events in blocks; of none, none."""
    if 0 < len(events) <= block_events:
        yield events
        return
    for start in range(0, len(events), block_events):
        yield events.rows(start, start + block_events)
