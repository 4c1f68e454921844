"""Columns as authors make them: from numbers and arrays, checked where they are made."""

from typing import Any

import numpy as np
import pytest

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, Column, EventColumns, EventKind
from guest_svc.columns import Event, event_rows, events, joined, repeated


def lists(made: EventColumns) -> dict[str, list[int]]:
    """Return the columns that there are, as lists."""
    return {name: getattr(made, name).tolist() for name in COLUMN_NAMES if getattr(made, name) is not None}


def test_a_number_goes_for_every_event() -> None:
    """Numbers are repeated to the length of the arrays, in the column's own type."""
    made = events(kinds=EventKind.MOV_TO_DR, args=[0, 1, 7], values=2**64 - 1, gap_cycles=np.arange(3))
    assert lists(made) == {
        "kinds": [1, 1, 1],
        "args": [0, 1, 7],
        "gap_cycles": [0, 1, 2],
        "values": [2**64 - 1] * 3,
    }
    for column in made.declared:
        array = made.column(column)
        assert array is not None
        assert array.dtype == COLUMN_DTYPES[column]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_events(count: int) -> None:
    """Numbers alone are one event; empty arrays are none."""
    assert len(events(kinds=[EventKind.CPUID] * count, args=0)) == count
    assert len(events(kinds=EventKind.CPUID)) == 1


def test_an_array_of_the_right_type_is_not_copied() -> None:
    """What is made fast stays fast."""
    kinds = np.full(3, EventKind.CPUID, np.uint8)
    assert events(kinds=kinds).kinds is kinds


BAD: list[tuple[dict[str, Any], str]] = [
    ({"args": [0, 256]}, r"^args\[1\]: 256, expected 0 to 255$"),
    ({"args": -1}, r"^args: -1, expected 0 to 255$"),
    ({"values": [0, 2**64]}, r"^values\[1\]: 18446744073709551616, expected 0 to 18446744073709551615$"),
    ({"values": [-1, 2**64 - 1]}, r"^values\[0\]: -1, "),
    ({"gap_cycles": np.array([0, 1 << 32])}, r"^gap_cycles\[1\]: 4294967296, expected 0 to 4294967295$"),
    ({"gap_cycles": 1.5}, r"^gap_cycles: numbers of type float64, expected whole ones$"),
    ({"gap_cycles": np.array([1.0, 2.0])}, "^gap_cycles: numbers of type float64"),
    ({"args": [True, False]}, "^args: numbers of type bool"),
    ({"args": "67"}, "^args: texts, such as '67', expected whole numbers$"),
    ({"args": np.array(["x", "1"])}, "^args: texts, such as 'x', expected whole numbers$"),
    ({"args": [None, 1]}, "^args: None, expected whole numbers$"),
    ({"args": object()}, "^args: of type object, expected whole numbers$"),
    ({"args": [[1, 2], [3, 4]]}, r"^args: an array of shape \(2, 2\), expected one dimension$"),
    ({"args": [[1, 2], [3]]}, "^args: .*inhomogeneous"),
    ({"args": [1, 2, 3], "rips": [1, 2]}, "^columns of different lengths: kinds 2, args 3, rips 2$"),
]


@pytest.mark.parametrize(("columns", "said"), BAD)
def test_what_fits_no_column_is_refused(columns: dict[str, Any], said: str) -> None:
    """The message names the column, the first place, and what is expected."""
    with pytest.raises(ValueError, match=said):
        events(kinds=[EventKind.CPUID] * 2, **columns)


def test_single_events_become_columns() -> None:
    """A field of each event becomes the column's row."""
    made = event_rows(
        [Event(EventKind.MOV_TO_DR, 7, gap_cycles=3, value=0x400), Event(EventKind.CPUID, vcpu=1)]
    )
    assert made.declared == tuple(Column)
    assert [row.tolist() for row in (made.kinds, made.args, made.vcpus)] == [[1, 7], [7, 0], [0, 1]]  # type: ignore[union-attr]
    assert len(event_rows([])) == 0


def test_parts_are_joined_and_repeated() -> None:
    """A column that only one part has is 0 in the other."""
    one, two = events(kinds=[7, 8]), events(kinds=7, args=5)
    assert lists(joined([one, two])) == {"kinds": [7, 8, 7], "args": [0, 0, 5]}
    assert lists(repeated(two, 3)) == {"kinds": [7] * 3, "args": [5] * 3}
    assert len(joined([])) == len(repeated(one, 0)) == 0
