"""Cuts and kills sessions everywhere, and compares what comes of them; ``make torture``."""

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from tests.torture import guest_cases, server_cases
from tests.torture.yard import Yard

SECONDS: Final = 60.0  # no case takes this long unless it hangs
_SHOWN_FAILURES: Final = 20


class Section(NamedTuple):
    """A kind of case; a case is a number, and all that it draws comes from that."""

    run: Callable[[Yard, int], Counter[str]]
    cases: int  # 0: as many as there are places to cut
    sampled: int  # of them, in the tests


SECTIONS: Final = {
    "cuts": Section(guest_cases.cut, 0, 20),
    "toxics": Section(guest_cases.spoiled_line, 140, 7),
    "acknowledgements": Section(guest_cases.unacknowledged, 100, 4),
    "kills": Section(server_cases.killed, 520, 13),
    "moments": Section(server_cases.killed_at_random_moments, 200, 4),
    "guests": Section(guest_cases.killed_guest, 100, 4),
    "closed-loop-guests": Section(guest_cases.killed_closed_loop, 40, 2),
    "drains": Section(server_cases.drained, 100, 6),
    "disk-full": Section(server_cases.filled, 90, 5),
    "clocks": Section(server_cases.clocked, 60, 3),
}


class Score(NamedTuple):
    """What came of the cases of one section."""

    cases: int
    seen: Counter[str]  # what has happened in them
    failures: list[str]


def run_section(yard: Yard, name: str, numbers: Iterable[int]) -> Score:
    """Run cases of a section; what is wrong in one does not end the others."""
    seen: Counter[str] = Counter()
    failures: list[str] = []
    cases = 0
    for number in numbers:
        cases += 1
        try:
            with limited(SECONDS):
                seen += SECTIONS[name].run(yard, number)
        except Exception as error:
            alone = f"python -m tests.torture --section {name} --seed {number} --cases 1"
            failures.append(f"{type(error).__name__}: {error}\n    alone: {alone}")
    return Score(cases, seen, failures)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes so long: it hangs. For the main thread."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Run what is asked for, print what has happened, and return 1 if anything was lost or different."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="may be repeated (default all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first case (default 0)")
    parser.add_argument("--cases", type=int, metavar="N", help="how many of each section")
    options = parser.parse_args()
    scores = []
    began = time.monotonic()
    with Yard() as yard:
        for name in options.section or SECTIONS:
            begun = time.monotonic()
            places = len(yard.places()) - options.seed if name == "cuts" else 0
            count = SECTIONS[name].cases or places
            if options.cases is not None:
                count = min(options.cases, places or options.cases)
            score = run_section(yard, name, range(options.seed, options.seed + count))
            scores.append(score)
            _show(name, score, time.monotonic() - begun)
    cases = sum(score.cases for score in scores)
    failures = sum(len(score.failures) for score in scores)
    minutes = (time.monotonic() - began) / 60
    print(f"torture: {cases:,} cases in {minutes:.1f} minutes, {failures:,} lost something or differed")
    return 1 if failures else 0


def _show(name: str, score: Score, seconds: float) -> None:
    print(f"{name}: {score.cases:,} cases in {seconds:.0f} s, {len(score.failures):,} failed")
    for what, count in sorted(score.seen.items()):
        print(f"  {count:6,}  {what}")
    for failure in score.failures[:_SHOWN_FAILURES]:
        print(f"  FAILED {failure}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
