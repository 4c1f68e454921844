"""Compressed traces: members and what stands between them, damage, and bombs."""

import gzip
import random
import tracemalloc
from pathlib import Path

import pytest

from guest_svc.traces.text.chunks import CHUNK_BYTES
from guest_svc.traces.text.files import PART_BYTES
from tests.traces.test_files import GOOD, tally_of, write
from tests.traces.writer import lines, random_records


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_of_a_damaged_gzip_the_beginning_is_used_and_the_damage_told(kept: float, tmp_path: Path) -> None:
    """Cut short or overwritten, what was read before it counts."""
    text = lines(random_records(random.Random(3), 30_000))
    packed = gzip.compress(text)
    at = int(len(packed) * kept)
    for damaged in (packed[:at], packed[:at] + bytes(len(packed) - at), packed + b"rest"):
        tally = tally_of(write(tmp_path / "trace.gz", damaged))
        assert "the gzip data" in tally.damage or "is no gzip data" in tally.damage
        assert 0 < tally.lines <= text.count(b"\n")


def test_a_gzip_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A quarter of a gigabyte of one line in 250 KB is read in the memory of a few chunks."""
    bomb = gzip.compress(b"x" * (1 << 24)) * 16
    path = write(tmp_path / "bomb.gz", bomb + gzip.compress(b"\n" + GOOD))
    tracemalloc.start()
    try:
        tally = tally_of(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tally.too_long.count, tally.too_long.first_line) == (1, 1)
    assert tally.lines == GOOD.count(b"\n") + 1
    assert peak < 16 * CHUNK_BYTES


@pytest.mark.parametrize("zeros", [1, 512, PART_BYTES, 3 * PART_BYTES + 5])
def test_a_member_after_zeros_is_read(zeros: int, tmp_path: Path) -> None:
    """However many: blocks of a tape are filled up with them, and parts of the file may be nothing else."""
    text = gzip.compress(GOOD[:1000]) + bytes(zeros) + gzip.compress(GOOD[1000:]) + bytes(zeros)
    tally = tally_of(write(tmp_path / "trace.gz", text))
    assert (tally.lines, tally.malformed.count, tally.damage) == (GOOD.count(b"\n"), 0, "")
