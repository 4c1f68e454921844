"""A small load, and a small soak; the long ones are ``python -m tests.attack load`` and ``soak``."""

from pathlib import Path

import pytest

from tests.attack.load import Size, run_load
from tests.attack.soak import run_soak


@pytest.mark.parametrize("is_stored", [False, True], ids=["in memory", "stored"])
def test_reports_under_load(tmp_path: Path, is_stored: bool) -> None:
    """Fast, slow and mute guests at once: every report is that of the same stream alone."""
    found = run_load(tmp_path, Size(sessions=8, events=10_000, block_events=1000), is_stored=is_stored)
    assert (found.sessions, found.wrong) == (8, 0)
    assert found.peak_bytes < 1 << 30


@pytest.mark.parametrize("is_stored", [False, True], ids=["in memory", "stored"])
def test_guests_that_come_and_go(tmp_path: Path, is_stored: bool) -> None:
    """Sessions cut and resumed end in the same reports, among others that are left for ever."""
    found = run_soak(tmp_path, 0.02, is_stored=is_stored)
    assert found.wrong == 0
    assert found.sessions["finished"] > 0
