"""Explores everything, and tells how much there is and the shortest path to each violation."""

import sys
import time

from tests.protocol.cases import SETUPS, WEAKENED
from tests.protocol.explore import explore


def main() -> int:
    """Print what was found; 1 if the protocol as it is breaks a promise."""
    failures = 0
    for setup in SETUPS:
        began = time.perf_counter()
        found = explore(setup)
        seconds = time.perf_counter() - began
        counts = f"{found.states:>9,} states {found.steps:>9,} steps  depth {found.depth}"
        print(f"{counts}  {seconds:5.1f} s  {setup.name}")
        if found.violation is not None:
            failures += 1
            print(found.violation)
    for weakened in WEAKENED:
        found = explore(weakened.weakened_setup)
        print(f"\nif {weakened.what_happens} ({weakened.setup.name}):")
        print(found.violation or "nothing breaks")
        failures += found.violation is None
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
