"""Which states answer alike, in few words.

A moment's states are the product of the values of its inputs, too many to read one by one. States
that answer alike are said as *cubes*: for each input the values that it may have, joined by *and*.
A cube is as wide as its answer allows; an input that may have any value in it is not mentioned.

Cubes are found greedily. From the first state that none holds yet, every input is widened in turn, in
several orders, and the cube that holds most of what is left is taken; at last those that others make
needless go. So they are few, though not proven to be the fewest. Cubes of one answer may overlap,
those of different answers cannot.
"""

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

YES_NO: Final = ("no", "yes")
_EVERY_ORDER_UP_TO: Final = 4  # inputs: 24 orders; beyond, the rotations of one order and of its reverse

Cube = tuple[tuple[int, ...], ...]  # by input, the values that it may have
_Label = TypeVar("_Label", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Term:
    """What a condition says about one input."""

    name: str
    values: tuple[str, ...]
    others: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in the fewest words."""
        if {*self.values, *self.others} == set(YES_NO):
            return self.name if self.values == ("yes",) else f"{self.name}=no"
        if len(self.others) == 1 < len(self.values):
            return f"{self.name}!={self.others[0]}"
        return f"{self.name}={'/'.join(self.values)}"


@dataclass(frozen=True, slots=True)
class Space:
    """The states of a moment: inputs by name, with the names of their values, slowest first."""

    inputs: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of values of each input."""
        return tuple(map(len, self.values))

    def places(self, cube: Cube) -> Iterator[int]:
        """Return the places of a cube's states among all states."""
        steps = strides(self.sizes)
        for state in itertools.product(*cube):
            yield sum(map(int.__mul__, state, steps))

    def terms(self, cube: Cube) -> tuple[Term, ...]:
        """Return what a cube says, about those inputs only that may not have any value."""
        return tuple(
            Term(
                name,
                tuple(names[value] for value in chosen),
                tuple(word for value, word in enumerate(names) if value not in chosen),
            )
            for name, names, chosen in zip(self.inputs, self.values, cube, strict=True)
            if len(chosen) < len(names)
        )

    def condition(self, cube: Cube) -> str:
        """Return a cube as text."""
        return ", ".join(map(str, self.terms(cube))) or "always"


def cubes(sizes: Sequence[int], labels: Sequence[_Label | None]) -> list[tuple[Cube, _Label]]:
    """Return few cubes, with their labels, that hold every state that has a label and no other.

    ``labels`` has one for each state, the last input fastest; None is of no interest. Cubes of one label
    stand together, in the order of the labels' first states.
    """
    relevant = {i for i in range(len(sizes)) if depends_on(i, sizes, labels)}
    kept = [size if i in relevant else 1 for i, size in enumerate(sizes)]
    steps = strides(sizes)
    states: dict[_Label, list[int]] = {}
    for place, state in enumerate(itertools.product(*map(range, kept))):
        label = labels[sum(map(int.__mul__, state, steps))]
        if label is not None:
            states.setdefault(label, []).append(place)
    found = []
    for label, places in states.items():
        for cube in _cover(kept, places):
            full = (cube[i] if i in relevant else tuple(range(size)) for i, size in enumerate(sizes))
            found.append((tuple(full), label))
    return found


def strides(sizes: Sequence[int]) -> list[int]:
    """Return by how many places two states differ that differ by one in one input."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def depends_on(i: int, sizes: Sequence[int], labels: Sequence[object]) -> bool:
    """Return whether labels, one for each state, depend on the i-th input."""
    stride = math.prod(sizes[i + 1 :])
    period = sizes[i] * stride
    return any(
        labels[at : at + stride] != labels[start : start + stride]
        for start in range(0, len(labels), period)
        for at in range(start + stride, start + period, stride)
    )


def _orders(count: int) -> list[tuple[int, ...]]:
    if count <= _EVERY_ORDER_UP_TO:
        return list(itertools.permutations(range(count)))
    forwards = tuple(range(count))
    return [order[i:] + order[:i] for order in (forwards, forwards[::-1]) for i in range(count)]


def _cover(sizes: Sequence[int], places: Sequence[int]) -> list[Cube]:
    """Return few cubes that together hold exactly the states at ``places``."""
    count = math.prod(sizes)
    bits = bytearray(count // 8 + 1)
    for place in places:
        bits[place // 8] |= 1 << place % 8
    wanted = int.from_bytes(bits, "little")
    unwanted = ((1 << count) - 1) ^ wanted
    orders = _orders(sum(size > 1 for size in sizes))
    inputs = [i for i, size in enumerate(sizes) if size > 1]
    left = wanted
    found: list[tuple[int, Cube]] = []
    while left:
        first = (left & -left).bit_length() - 1
        candidates = {_widened(sizes, first, unwanted, [inputs[k] for k in order]) for order in orders}
        held, cube = max(candidates, key=lambda one: _worth(sizes, one, left))
        found.append((held, cube))
        left &= ~held
    return sorted(_without_needless(found))


def _worth(sizes: Sequence[int], candidate: tuple[int, Cube], left: int) -> tuple[object, ...]:
    """Return what makes a cube better: more states not held yet, less to say, the same choice every time."""
    held, cube = candidate
    said = sum(len(values) < size for values, size in zip(cube, sizes, strict=True))
    return (held & left).bit_count(), -said, held.bit_count(), cube


def _widened(sizes: Sequence[int], place: int, unwanted: int, order: Sequence[int]) -> tuple[int, Cube]:
    """Return the states, as bits, and the values of a cube that holds ``place`` and cannot be wider."""
    held = 1 << place
    steps = strides(sizes)
    cube: list[tuple[int, ...]] = [
        (place // stride % size,) for size, stride in zip(sizes, steps, strict=True)
    ]
    for i in order:
        here = cube[i][0]
        wider, values = 0, []
        for value in range(sizes[i]):
            # All states so far have one value of this input: with another they are as many places on.
            shift = (value - here) * steps[i]
            moved = held << shift if shift >= 0 else held >> -shift
            if not moved & unwanted:
                wider |= moved
                values.append(value)
        held, cube[i] = wider, tuple(values)
    return held, tuple(cube)


def _without_needless(found: Sequence[tuple[int, Cube]]) -> list[Cube]:
    """Return the cubes without those whose states the rest holds too."""
    later = list(itertools.accumulate((held for held, _ in reversed(found)), int.__or__, initial=0))[::-1]
    kept, so_far = [], 0
    for (held, cube), rest in zip(found, later[1:], strict=True):
        if held & ~(so_far | rest):
            kept.append(cube)
            so_far |= held
    return kept
