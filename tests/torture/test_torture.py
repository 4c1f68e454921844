"""A sample of each section of the torture."""

from collections.abc import Iterator

import pytest

from tests.torture.__main__ import SECTIONS, run_section
from tests.torture.yard import Yard


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    """Return what all cases share."""
    with Yard() as yard:
        yield yard


@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_is_lost_or_double(yard: Yard, name: str) -> None:
    """What comes of a session is what comes of one that is left alone; and something has happened."""
    section = SECTIONS[name]
    step = len(yard.places()) // section.sampled if name == "cuts" else 1
    score = run_section(yard, name, range(0, section.sampled * step, step))
    assert score.failures == []
    assert score.seen.total() > 0
