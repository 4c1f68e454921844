"""The random streams take nearly every cell that any stream could."""

from typing import Final

import pytest

from tests.engine.build import VENDORS, policies_on
from tests.engine.reachable import coverage

LEAST_PERCENT: Final = 95
RIGHT: Final = [(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor, correct=True)]
ALL: Final = [(policy, vendor) for vendor in VENDORS for policy in policies_on(vendor)]


@pytest.mark.parametrize(("policy", "vendor"), RIGHT)
def test_streams_visit_the_reachable_cells(policy: str, vendor: int) -> None:
    """On each vendor at least 95 % of the reachable cells of a policy are taken; the rest are named."""
    found = coverage(policy, vendor)
    print(found.line())
    missed = found.names(found.reachable - found.visited)
    assert found.share >= LEAST_PERCENT, f"{found.line()}; missed: {missed}"


@pytest.mark.parametrize(("policy", "vendor"), ALL)
def test_what_is_visited_is_reachable(policy: str, vendor: int) -> None:
    """The exploration leaves out no cell that a stream takes, or its constraints are wrong."""
    found = coverage(policy, vendor)
    assert found.names(found.visited - found.reachable) == []


def test_the_exploration_leaves_something_out() -> None:
    """Constraints count: no policy with a table of some size could take all of its cells."""
    sizes = [coverage(policy, vendor) for policy, vendor in ALL]
    assert all(len(found.reachable) < found.cells for found in sizes if found.cells > 20)
