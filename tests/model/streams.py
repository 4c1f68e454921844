"""Random event streams: what guests do with debug registers, and what is done to them.

``random_stream`` takes a seed; ``streams`` is a hypothesis strategy that takes a seed's stream and shrinks by
leaving events out. A stream is a row of small scenes, each on one vCPU; a ``Mix`` says which scenes and
decorations occur. Addresses come from a small pool, so that breakpoints hit.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from exitlab.events import COLUMN_DTYPES, COLUMN_NAMES, FETCH_END, Column, EventColumns, EventKind, Mark

from . import debug_scenes, host_scenes, scenes
from .gate import Gate, Row
from .mix import Mix
from .second_model import SecondModel, Story
from .writer import Writer

__all__ = ["Mix", "mixes", "random_stream", "streams"]


def _scenes(mix: Mix) -> list[Callable[[Writer, int], None]]:
    """Return the scenes of ``mix``, the more frequent ones several times."""
    weights: list[tuple[int, Callable[[Writer, int], None]]] = [
        (8, scenes.one_access),
        (6, scenes.arm),
        (2, scenes.context_switch),
        (12 if mix.computed else 0, scenes.touch),
        (0 if mix.computed else 6, scenes.exception),
        (8 if mix.exits else 0, scenes.exit_once),
        (3 if mix.debug_extensions else 0, scenes.debug_extensions),
        (4 if mix.debug_control else 0, scenes.debug_control),
        (3 if mix.outside else 0, scenes.outside),
        (2 if mix.host else 0, scenes.host_breakpoints),
        (3 if mix.scheduling else 0, scenes.schedule),
        (1 if mix.kicks else 0, scenes.migrate),
        *debug_scenes.own_scenes(mix),
        *host_scenes.host_scenes(mix),
    ]
    return [scene for weight, scene in weights for _ in range(weight)]


def _first_rows(seed: int, events: int, mix: Mix) -> list[Row]:
    """Return the first ``events`` rows of the endless stream of ``seed``."""
    writer = Writer(mix, seed)
    choices = _scenes(mix)
    vcpu = 0
    while len(writer.rows) < events:
        if writer.chance(30):
            vcpu = writer.below(mix.vcpus)
        writer.pick(*choices)(writer, vcpu)
    return writer.rows[:events]


def _with_recorded_values(rows: list[Row], mix: Mix) -> list[Row]:
    """Return ``rows`` with recorded values: what the second model reads, off by the error drafted there.

    Where nothing has told the value before, the draft is the value.
    """
    model = SecondModel(mix.vcpus, rtm=mix.rtm, bus_lock=mix.bus_lock, computed=mix.computed)
    filled = []
    for row in rows:
        told = model.take(row.event)
        is_recorded = row.marks & Mark.VALUE_EXPECTED and told.story == Story.READ
        known = told.value & ~told.undefined_dr6
        filled.append(row._replace(value=row.value ^ known) if is_recorded else row)
    return filled


def _as_columns(rows: list[Row], mix: Mix) -> EventColumns:
    """Return ``rows`` as columns."""
    if not mix.computed:
        rows = _with_recorded_values(rows, mix)
    numbers = zip(*rows, strict=True) if rows else [()] * len(Column)
    arrays: dict[str, Any] = {
        name: np.array(column, dtype=dtype)
        for name, dtype, column in zip(COLUMN_NAMES, COLUMN_DTYPES.values(), numbers, strict=True)
    }
    return EventColumns(**arrays)


DEFAULT_MIX: Final = Mix()


def random_stream(seed: int, events: int, mix: Mix = DEFAULT_MIX) -> EventColumns:
    """Return ``events`` random events; the same seed and mix give the same stream."""
    mix = mix.effective
    return _as_columns(_first_rows(seed, events, mix), mix)


def _atoms(rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows that only make sense together: staged operands with what uses them, an end of what."""
    atom: list[Row] = []
    for row in rows:
        is_end = row.kind == EventKind.FETCH and row.arg == FETCH_END
        if atom and atom[-1].kind != EventKind.STAGE and not is_end:
            yield atom
            atom = []
        atom.append(row)
    yield atom


@st.composite
def streams(draw: st.DrawFn, mix: Mix = DEFAULT_MIX, max_events: int = 120) -> EventColumns:
    """Draw a seed's stream with some events left out; it shrinks by leaving out more."""
    mix = mix.effective
    rows = _first_rows(draw(st.integers(0, 0xFFFF_FFFF)), draw(st.integers(0, max_events)), mix)
    kept = [row for atom in _atoms(rows) if draw(st.integers(0, 31)) for row in atom]
    gate = Gate(mix)  # what was left out may have made others illegal
    return _as_columns([row for one in kept for row in gate.admitted(one)], mix)


@st.composite
def mixes(draw: st.DrawFn, base: Mix = DEFAULT_MIX) -> Mix:
    """Draw a mix: each group that ``base`` has may be left out; counts and ``computed`` stay."""
    groups = [name for name in Mix.__slots__ if getattr(base, name) is True and name != "computed"]
    choices: dict[str, Any] = {name: draw(st.booleans()) for name in groups}
    return replace(base, **choices)
