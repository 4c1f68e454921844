"""Which cells of a policy's table some stream can take, and which of them the random streams do take.

``python -m tests.engine.reachable`` prints the shares, and names the cells that are missed.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine.vocabulary import Input, Moment
from tests.engine.abstract_machine import Machine
from tests.engine.abstract_state import NOWHERE, Rules, State
from tests.engine.build import VENDOR_WORDS, VENDORS, policies_on, table_of
from tests.engine.foundation import runs_on


@lru_cache(maxsize=64)
def _reachable(rules: Rules) -> frozenset[int]:
    machine = Machine(rules)
    found = {State(is_armed=rules.initially_armed, host=host) for host in machine.hosts}
    waiting = list(found)
    while waiting:
        fresh = set(machine.after(waiting.pop())) - found
        found |= fresh
        waiting.extend(fresh)
    return frozenset(machine.taken)


def reachable(message: policy_pb2.PolicyTable) -> frozenset[int]:
    """Return the numbers of the cells of a table that some stream can take."""
    return _reachable(Rules.of(message))


def cell_name(message: policy_pb2.PolicyTable, cell: int) -> str:
    """Return a cell's moment and the values of the inputs that it is for."""
    table = make_table(message)
    base, moment = max(
        (int(base), Moment(at)) for at, base in enumerate(table.bases) if base != NOWHERE and base <= cell
    )
    rest, values = cell - base, []
    asked = sorted(((int(table.strides[moment, one]), one) for one in Input), reverse=True)
    for stride, wanted in asked:
        if stride:
            values.append(f"{wanted.name.lower()}={rest // stride}")
            rest %= stride
    return f"{moment.name} ({', '.join(values) or 'always'})"


@dataclass(frozen=True, slots=True)
class Coverage:
    """Cells of one policy's table on one vendor."""

    policy: str
    vendor: int
    cells: int
    reachable: frozenset[int]
    visited: frozenset[int]

    @property
    def share(self) -> float:
        """The share of the reachable cells that were visited, in percent."""
        return 100 * len(self.visited & self.reachable) / len(self.reachable) if self.reachable else 100.0

    def names(self, cells: frozenset[int]) -> list[str]:
        """Return the names of cells."""
        message = table_of(self.policy, self.vendor)
        return [cell_name(message, cell) for cell in sorted(cells)]

    def line(self) -> str:
        """Return the figures in a line."""
        return (
            f"{self.policy} on {VENDOR_WORDS[self.vendor]}: {self.share:.1f} % of {len(self.reachable)} "
            f"reachable cells of {self.cells}"
        )


def coverage(policy: str, vendor: int) -> Coverage:
    """Return what the random streams of the foundation visit of a policy's table."""
    message = table_of(policy, vendor)
    visited = frozenset(int(cell) for cell in runs_on(vendor).visits[policy].nonzero()[0])
    cells = sum(len(rows.actions) for rows in message.moments)
    return Coverage(policy, vendor, cells, reachable(message), visited)


def main() -> int:
    """Print the share of every policy; the exit code says whether a correct one is below 95 %."""
    is_low = False
    for vendor in VENDORS:
        for policy in policies_on(vendor):
            found = coverage(policy, vendor)
            print(found.line())
            for name in found.names(found.reachable - found.visited):
                print(f"    missed: {name}")
            is_low |= found.share < 95 and table_of(policy, vendor).claims_correct
    return int(is_low)


if __name__ == "__main__":
    sys.exit(main())
