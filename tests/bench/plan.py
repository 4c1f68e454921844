"""How much is measured."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run; ``folder`` is empty and goes away afterwards."""

    folder: Path
    is_quick: bool

    @property
    def rounds(self) -> int:
        """Rounds of what takes a second or so."""
        return 1 if self.is_quick else 5

    @property
    def short_rounds(self) -> int:
        """Rounds of what takes milliseconds."""
        return 3 if self.is_quick else 25

    @property
    def loop_events(self) -> int:
        """Events of a stream for the loop alone."""
        return 20_000 if self.is_quick else 300_000

    @property
    def random_events(self) -> int:
        """Events of a random stream, which is slow to make."""
        return 5_000 if self.is_quick else 60_000

    @property
    def plain_events(self) -> int:
        """Events of a stream for the loop as plain Python."""
        return 500 if self.is_quick else 2_000

    @property
    def stream_events(self) -> int:
        """Events of one stream between two processes."""
        return 1 << (18 if self.is_quick else 22)

    @property
    def single_events(self) -> int:
        """Events that are sent one a message."""
        return 500 if self.is_quick else 2_000

    @property
    def session_events(self) -> int:
        """Fewest events of a session where there are many."""
        return 1 << (15 if self.is_quick else 18)

    @property
    def memory_events(self) -> tuple[int, ...]:
        """Lengths of the streams whose peaks of memory are compared: three decades or more."""
        return (1_000, 10_000, 100_000) if self.is_quick else (100_000, 1_000_000, 10_000_000, 100_000_000)

    @property
    def growth_blocks(self) -> tuple[int, ...]:
        """Lengths, in blocks, of the streams through the engine alone: three decades."""
        short = (1, 2, 5, 10, 20, 50, 100)
        return short if self.is_quick else (*short, 200, 500, 1000)

    @property
    def vcpu_events(self) -> int:
        """Events of each vCPU where there are many."""
        return 1 << (13 if self.is_quick else 17)
