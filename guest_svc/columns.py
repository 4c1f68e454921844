"""Event columns made comfortably: from arrays and numbers, from single events, from smaller ones."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from exitlab.words import as_written

#: What a column is made from: a whole number for every event, or one each.
Numbers = int | np.integer[Any] | Sequence[int] | NDArray[Any]

# Column: its name, and its type.
_COLUMNS: Final = {COLUMN_NAMES[column - 1]: COLUMN_DTYPES[column] for column in Column}
_OF_EVENT: Final = ("kinds", "args", "modes", "marks", "vcpus", "gap_cycles", "selectors", "values", "rips")


class Event(NamedTuple):
    """One event; what each field means by kind is said in protos/exitlab/v1/events.proto."""

    kind: EventKind
    arg: int = 0
    modes: int = 0
    marks: int = 0
    vcpu: int = 0
    gap_cycles: int = 0
    selector: int = 0
    value: int = 0
    rip: int = 0


def events(
    *,
    kinds: Numbers,
    args: Numbers | None = None,
    modes: Numbers | None = None,
    marks: Numbers | None = None,
    vcpus: Numbers | None = None,
    gap_cycles: Numbers | None = None,
    selectors: Numbers | None = None,
    values: Numbers | None = None,
    rips: Numbers | None = None,
) -> EventColumns:
    """Return events as columns; a single number goes for every event, a column left out is 0.

    Arrays that have a column's own type are taken as they are, without a copy.

    Raises:
        ValueError: A column holds what is no whole number, or one out of its range, or the lengths differ.

    """
    given = dict(
        zip(_OF_EVENT, (kinds, args, modes, marks, vcpus, gap_cycles, selectors, values, rips), strict=True)
    )
    arrays = {name: _as_column(name, numbers) for name, numbers in given.items() if numbers is not None}
    lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"columns of different lengths: {said}")
    length = next(iter(lengths.values()), 1)
    made: Any = {
        name: array if array.ndim else np.full(length, array, array.dtype) for name, array in arrays.items()
    }
    return EventColumns(**made)


def event_rows(rows: Iterable[Event]) -> EventColumns:
    """Return single events as columns.

    Raises:
        ValueError: A field is out of its column's range.

    """
    columns = list(zip(*rows, strict=True)) or [()] * len(_OF_EVENT)
    return events(**dict(zip(_OF_EVENT, columns, strict=True)))


def joined(parts: Sequence[EventColumns]) -> EventColumns:
    """Return consecutive events as one; a column that only some have is 0 in the others."""
    names = [name for name in _COLUMNS if any(getattr(part, name) is not None for part in parts)]
    made: Any = {name: np.concatenate([filled(part, name) for part in parts]) for name in names}
    return EventColumns(**made) if made else events(kinds=[])


def repeated(part: EventColumns, times: int) -> EventColumns:
    """Return the same events ``times`` times, one after another."""
    made: Any = {
        name: np.tile(array, times) for name in _COLUMNS if (array := getattr(part, name)) is not None
    }
    return EventColumns(**made)


def filled(part: EventColumns, name: str) -> NDArray[Any]:
    """Return a column of events, of zeros if they do not have it."""
    array: NDArray[Any] | None = getattr(part, name)
    return np.zeros(len(part), _COLUMNS[name]) if array is None else array


def _as_column(name: str, numbers: Numbers) -> NDArray[Any]:
    """Return numbers in a column's type, of no dimension if there is only one."""
    dtype = _COLUMNS[name]
    try:
        array = np.asarray(numbers)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from None
    if array.dtype == dtype and array.ndim <= 1:
        return array
    if array.ndim > 1:
        raise ValueError(f"{name}: an array of shape {array.shape}, expected one dimension")
    if not array.size:
        return np.zeros(0, dtype)
    if array.dtype.kind not in "iu":
        array = _whole(name, array, numbers)
    limit = np.iinfo(dtype)
    is_out = (array < limit.min) | (array > limit.max)
    if is_out.any():
        at = int(np.flatnonzero(is_out)[0])
        place = f"{name}[{at}]" if array.ndim else name
        raise ValueError(f"{place}: {array.flat[at]}, expected {limit.min} to {limit.max}")
    return array.astype(dtype)


def _whole(name: str, array: NDArray[Any], numbers: Numbers) -> NDArray[Any]:
    """Return Python's own whole numbers, which numpy takes for others where they do not fit 64 bits."""
    objects = np.array(numbers, dtype=object)
    if array.dtype.kind in "fO" and all(isinstance(each, int) for each in objects.flat):
        return objects
    strange = [each for each in objects.flat if not isinstance(each, int | float)]
    if strange:
        what = "texts, such as " if isinstance(strange[0], str) else ""
        raise ValueError(f"{name}: {what}{as_written(strange[0])}, expected whole numbers")
    raise ValueError(f"{name}: numbers of type {array.dtype}, expected whole ones")
