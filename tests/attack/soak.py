"""A server under guests that come and go for long: its memory must stay what it was."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from exitlab.blocks import ColumnCrcs, encode_block
from tests.attack.guest import FULL, Guest, Source, Stream, whole_run
from tests.attack.served import Served

GUESTS: Final = 4
EVENTS, BLOCK_EVENTS, LANES = 2000, 250, 3
SAMPLE_SECONDS: Final = 0.5
SESSIONS_A_CONNECTION: Final = 50
# So small that all of them are reached soon, and what is dropped is dropped while it is looked at.
FLAGS: Final = (
    "--idle-seconds",
    "2",
    "--max-reports",
    "64",
    "--max-sessions",
    "4096",
    "--log-level",
    "error",
)


@dataclass(frozen=True)
class Soak:
    """What came of it."""

    seconds: float
    sessions: Counter[str]  # by what became of them
    wrong: int
    first_bytes: float
    last_bytes: float
    slope_bytes_a_second: float  # of the second half
    cuts: int

    def __str__(self) -> str:
        """Return the figures in lines."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.sessions.items()))
        return (
            f"{self.seconds / 60:.1f} minutes, {self.sessions.total()} sessions ({kinds}), {self.cuts} cuts, "
            f"{self.wrong} wrong\n"
            f"resident {self.first_bytes / 1e6:.1f} MB after a quarter, {self.last_bytes / 1e6:.1f} MB at "
            f"the end; slope of the second half {self.slope_bytes_a_second * 3600 / 1e6:+.1f} MB an hour"
        )


class _Guests:
    """Guests that do as they like until they are told to stop."""

    def __init__(self, served: Served, seed: int) -> None:
        """Run every source once, to know its report."""
        self._served = served
        self._seed = seed
        self._sources = [Source(number, EVENTS, LANES, FULL) for number in range(4)]
        guest = Guest(served.address)
        self._reports = [whole_run(guest, source, BLOCK_EVENTS) for source in self._sources]
        guest.close()
        self.is_over = threading.Event()
        self.sessions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.cuts = 0
        self._turn = threading.Lock()

    def live(self, number: int) -> None:
        """Be one guest."""
        draw = random.Random(self._seed * 1000 + number)
        while not self.is_over.is_set():
            guest = Guest(self._served.address)
            for _ in range(SESSIONS_A_CONNECTION):
                if self.is_over.is_set():
                    break
                try:
                    self._session(guest, draw)
                except (grpc.RpcError, StopIteration) as error:
                    self._note("failed", repr(error))
            guest.close()

    def _session(self, guest: Guest, draw: random.Random) -> None:
        """Run a session with cuts; finish it, or leave it for ever."""
        number = draw.randrange(len(self._sources))
        source, cuts = self._sources[number], draw.choice([0, 1, 3])
        is_left = draw.random() < 0.3
        blocks = list(source.blocks(BLOCK_EVENTS))
        places = set(draw.sample(range(len(blocks)), cuts))
        session_id, crcs, at = guest.create(source.config), ColumnCrcs(source.columns), 0
        stream = Stream(guest, session_id)
        for place, block in enumerate(blocks[: draw.randrange(len(blocks))] if is_left else blocks):
            stream.put(encode_block(block, at, crcs))
            at += len(block)
            while stream.applied() < at:
                pass
            if place in places:
                stream.cut()
                stream = Stream(guest, session_id, received_events=draw.choice([0, at]))
        if is_left:
            stream.cut()
            self._note("left")
        else:
            is_right = guest.finish(session_id, crcs, at) == self._reports[number]
            stream.cut()
            self._note("finished", "" if is_right else "another report")
        with self._turn:
            self.cuts += cuts

    def _note(self, kind: str, wrong: str = "") -> None:
        with self._turn:
            self.sessions[kind] += 1
            if wrong:
                self.wrong.append(wrong)


def run_soak(folder: Path, minutes: float, *, is_stored: bool, seed: int = 0) -> Soak:
    """Let guests come and go for so long, and look at the server's memory meanwhile."""
    flags = (*FLAGS, "--state-dir", str(folder / "state")) if is_stored else FLAGS
    with Served(folder, *flags) as served:
        guests = _Guests(served, seed)
        threads = [threading.Thread(target=guests.live, args=(number,)) for number in range(GUESTS)]
        begun = time.monotonic()
        samples: list[tuple[float, int]] = []
        for thread in threads:
            thread.start()
        while (now := time.monotonic() - begun) < minutes * 60 or not samples:
            samples.append((now, served.resident_bytes()))
            guests.is_over.wait(SAMPLE_SECONDS)
        guests.is_over.set()
        for thread in threads:
            thread.join()
        guests.wrong += [str(fault) for fault in served.faults()]
        seconds, sizes = (np.array(column, float) for column in zip(*samples, strict=True))
        half = len(samples) // 2
        is_line = len(samples) - half > 1
        slope = float(np.polyfit(seconds[half:], sizes[half:], 1)[0]) if is_line else 0.0
        for wrong in guests.wrong[:5]:
            print(wrong)
        return Soak(
            seconds=now,
            sessions=guests.sessions,
            wrong=len(guests.wrong),
            first_bytes=float(sizes[len(sizes) // 4]),
            last_bytes=float(sizes[-1]),
            slope_bytes_a_second=slope,
            cuts=guests.cuts,
        )
