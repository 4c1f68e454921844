"""Visits every state of a setup, breadth first, so that the path to what is wrong is a shortest one."""

from dataclasses import dataclass

from tests.protocol.model import all_steps, start
from tests.protocol.promises import NO_DEAD_END, NO_LOOP, broken_promise, may_end_here
from tests.protocol.records import Setup, Step, World


@dataclass(frozen=True)
class Violation:
    """A broken promise, and a shortest path to it in words."""

    promise: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        """Return it for people."""
        return "\n".join([f"broken: {self.promise}", *(f"  {n}. {s}" for n, s in enumerate(self.path, 1))])


@dataclass(frozen=True)
class Exploration:
    """How many states there are and steps between them, how far the farthest is, and what is wrong."""

    states: int
    steps: int
    depth: int
    violation: Violation | None


class _Visited:
    """The states so far by number, and how each was first come to."""

    def __init__(self, first: World) -> None:
        self.worlds = [first]
        self.numbers = {first: 0}
        self.came_from = [(0, "")]
        self.depths = [0]

    def number(self, step: Step, before: int) -> int:
        """Return the number of the state that a step leads to."""
        number = self.numbers.setdefault(step.world, len(self.worlds))
        if number == len(self.worlds):
            self.worlds.append(step.world)
            self.came_from.append((before, step.text))
            self.depths.append(self.depths[before] + 1)
        return number

    def path(self, number: int) -> tuple[str, ...]:
        """Return the steps to a state."""
        texts = []
        while number:
            number, text = self.came_from[number]
            texts.append(text)
        return tuple(reversed(texts))


def explore(setup: Setup) -> Exploration:
    """Visit every state; up to the first that breaks a promise, if one does."""
    visited = _Visited(start(setup))
    must: list[tuple[int, ...]] = []  # for each state, the states that steps other than faults lead to
    steps = 0
    violation = None
    for here, world in enumerate(visited.worlds):  # grows while it is gone through
        promise = broken_promise(setup, world)
        if promise is not None:
            reasons = [f"a guest stops: {guest.stopped_by}" for guest in world.guests if guest.stopped_by]
            violation = Violation(promise, (*visited.path(here), *reasons))
            break
        after = [(visited.number(step, here), step.is_fault) for step in all_steps(setup, world)]
        steps += len(after)
        must.append(tuple(number for number, is_fault in after if not is_fault))
        if not must[here] and not may_end_here(setup, world):
            violation = Violation(NO_DEAD_END, (*visited.path(here), "nothing more happens"))
            break
    if violation is None:
        violation = _loop(visited, must)
    return Exploration(len(visited.worlds), steps, max(visited.depths), violation)


def _loop(visited: _Visited, must: list[tuple[int, ...]]) -> Violation | None:
    """Find a state from which a path without faults goes on for ever.

    States are peeled off from the ends: what is left when no more can be is on a loop, or leads to one.
    """
    before: list[list[int]] = [[] for _ in must]
    left = [len(after) for after in must]
    for here, after in enumerate(must):
        for there in after:
            before[there].append(here)
    ends = [here for here, count in enumerate(left) if count == 0]
    while ends:
        for here in before[ends.pop()]:
            left[here] -= 1
            if left[here] == 0:
                ends.append(here)
    loop = next((here for here, count in enumerate(left) if count), None)
    return None if loop is None else Violation(NO_LOOP, visited.path(loop))
