"""Many guests at once on one server: fast ones, slow ones, and such that never read."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Final

from exitlab.blocks import ColumnCrcs, encode_block
from tests.attack.guest import FULL, Guest, Source, Stream, whole_run
from tests.attack.raw import byte_by_byte
from tests.attack.served import Served

LANES: Final = 8
SOURCES: Final = 8  # different ones; more would only be more of the same
WINDOW_BLOCKS: Final = 4
SLOW_EVENTS_SHARE: Final = 50
SLOW_BLOCK_EVENTS: Final = 64
_PAUSE_SECONDS: Final = 0.05  # of a slow guest, after each block
_MUTE_BLOCKS: Final = 64
_BYTE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Size:
    """How much load."""

    sessions: int = 64
    events: int = 200_000  # of a fast guest
    block_events: int = 8192

    @property
    def fast(self) -> int:
        """Guests that send as fast as they are answered."""
        return self.sessions * 5 // 8

    @property
    def mute(self) -> int:
        """Guests that never read."""
        return self.sessions // 8

    @property
    def slow(self) -> int:
        """Guests that wait after every block."""
        return self.sessions - self.fast - self.mute


@dataclass(frozen=True)
class Load:
    """What came of it."""

    sessions: int
    wrong: int  # reports that are not those of the same streams alone
    seconds: float  # until the last fast guest had its report
    lane_events: int  # of the fast guests
    slowest_share: float  # the slowest fast guest's rate, in parts of their mean
    peak_bytes: int

    def __str__(self) -> str:
        """Return the figures in a line."""
        return (
            f"{self.sessions} sessions, {self.wrong} wrong reports, {self.seconds:.1f} s, "
            f"{self.lane_events / self.seconds / 1e6:.1f} million lane events a second, "
            f"slowest fast guest {self.slowest_share:.2f} of the mean, peak {self.peak_bytes / 1e6:.0f} MB"
        )


def run_load(folder: Path, size: Size, *, is_stored: bool) -> Load:
    """Run a server with a load, and compare every report with that of the same stream alone."""
    flags: tuple[str, ...] = (
        "--max-sessions",
        "4096",
        "--max-all-sessions",
        "4096",
        "--log-level",
        "warning",
    )
    if is_stored:
        flags += ("--state-dir", str(folder / "state"))
    with Served(folder, *flags) as served:
        fast = [Source(number, size.events, LANES) for number in range(SOURCES)]
        slow = [Source(number, size.events // SLOW_EVENTS_SHARE, LANES) for number in range(SOURCES)]
        alone = [_alone(served, source, size.block_events) for source in fast]
        slow_alone = [_alone(served, source, SLOW_BLOCK_EVENTS) for source in slow]
        with _bytes_at_leisure(served), ThreadPoolExecutor(size.sessions) as threads:
            muted = [threads.submit(_mute, served, fast[n % SOURCES].workload.seed) for n in range(size.mute)]
            mute = [each.result() for each in muted]
            begun = time.perf_counter()
            slow_runs = [threads.submit(_slow, served, slow[n % SOURCES]) for n in range(size.slow)]
            run = partial(_fast, served, size.block_events)
            fast_runs = [threads.submit(run, fast[n % SOURCES]) for n in range(size.fast)]
            ends = [each.result() for each in fast_runs]
            reports = [each.result() for each in slow_runs]
            for stream, guest in mute:
                stream.cut()
                guest.close()
        wrong = sum(report != alone[n % SOURCES] for n, (report, _) in enumerate(ends))
        wrong += sum(report != slow_alone[n % SOURCES] for n, report in enumerate(reports))
        wrong += len(served.faults())
        return Load(
            sessions=size.sessions,
            wrong=wrong,
            seconds=max(end for _, end in ends) - begun,
            lane_events=size.fast * size.events * LANES,
            slowest_share=min(1 / (end - begun) for _, end in ends)
            / mean(1 / (end - begun) for _, end in ends),
            peak_bytes=served.peak_bytes(),
        )


def _alone(served: Served, source: Source, block_events: int) -> bytes:
    guest = Guest(served.address)
    report = whole_run(guest, source, block_events)
    guest.close()
    return report


def _fast(served: Served, block_events: int, source: Source) -> tuple[bytes, float]:
    """Send with a few blocks ahead; return the report and when it came."""
    guest = Guest(served.address)
    session_id, crcs, at, applied = guest.create(source.config), ColumnCrcs(source.columns), 0, 0
    stream = Stream(guest, session_id)
    for block in source.blocks(block_events):
        stream.put(encode_block(block, at, crcs))
        at += len(block)
        while at - applied >= WINDOW_BLOCKS * block_events:
            applied = stream.applied()
    while applied < at:
        applied = stream.applied()
    report = guest.finish(session_id, crcs, at)
    end = time.perf_counter()
    stream.cut()
    guest.close()
    return report, end


def _slow(served: Served, source: Source) -> bytes:
    guest = Guest(served.address)
    session_id, crcs, at = guest.create(source.config), ColumnCrcs(source.columns), 0
    stream = Stream(guest, session_id)
    for block in source.blocks(SLOW_BLOCK_EVENTS):
        stream.put(encode_block(block, at, crcs))
        at += len(block)
        time.sleep(_PAUSE_SECONDS)
    while stream.applied() < at:
        pass
    report = guest.finish(session_id, crcs, at)
    stream.cut()
    guest.close()
    return report


def _mute(served: Served, number: int) -> tuple[Stream, Guest]:
    """Send much whose outcomes are many times as much, and never read any; return what must be held."""
    guest = Guest(served.address)
    source = Source(number, _MUTE_BLOCKS * 4096, LANES, FULL)
    session_id, crcs, at = guest.create(source.config), ColumnCrcs(source.columns), 0
    stream = Stream(guest, session_id)
    for block in source.blocks(4096):
        stream.put(encode_block(block, at, crcs))
        at += len(block)
    return stream, guest


@contextmanager
def _bytes_at_leisure(served: Served) -> Iterator[None]:
    """Have somebody send a byte a second meanwhile."""
    is_over = threading.Event()

    def send() -> None:
        with byte_by_byte(served.address, 1) as send_next:
            while not is_over.wait(_BYTE_SECONDS):
                send_next()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
