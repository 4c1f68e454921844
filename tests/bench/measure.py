"""How things are timed: variants in turn, again and again, and medians of what is told."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Self

Measure = Callable[[], float]


class Differs(RuntimeError):
    """A variant that does not yield what it must; nothing is timed then."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of each variant, one a round; in one round the variants ran one after another."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Return a variant's median."""
        return median(self.seconds[name])

    def speed(self, name: str, other: str) -> float:
        """Return how many times as fast as ``other`` a variant is: the median of the rounds' ratios.

        A round's runs are neighbours in time, so a machine that is slower for a while slows both.
        """
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return median(theirs / ours for ours, theirs in pairs)

    def scaled(self, units: Mapping[str, float]) -> Self:
        """Return seconds for one of each variant's units (say, events)."""
        return type(self)({name: [one / units[name] for one in all_] for name, all_ in self.seconds.items()})


def alternate(variants: Mapping[str, Measure], rounds: int) -> Samples:
    """Run each variant once a round, in an order that turns around every round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            names = list(variants)
            for name in names if number % 2 == 0 else reversed(names):
                seconds[name].append(variants[name]())
    finally:
        gc.enable()
    return Samples(seconds)


def check_same(what: str, expected: Mapping[str, object], got: Mapping[str, object]) -> None:
    """Refuse to go on unless two results are equal part by part.

    Raises:
        Differs: naming the variant and the parts.

    """
    differing = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    if differing:
        raise Differs(f"{what}: not timed, since it differs in {', '.join(differing)}")


def say(text: str) -> None:
    """Tell what is being done, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


__all__ = ["Differs", "Measure", "Samples", "alternate", "check_same", "geometric_mean", "say"]
