"""What a guest keeps of a session until it is committed: its blocks, and digests of their outcomes.

A hypervisor that has crashed goes on at its last checkpoint. It is sent the same blocks again, and what
it answers has to be what it had answered.
"""

from collections import deque
from typing import NamedTuple

from isal import isal_zlib

from exitlab.v1 import outcome_pb2
from guest_svc.errors import CouldNotFinish


class Block(NamedTuple):
    """An encoded block."""

    end: int  # the event after its last
    crcs: tuple[int, ...]  # the columns' running digests there
    data: bytes


class KeptBlocks:
    """Blocks that are not committed, oldest first; some may not be sent yet on the stream there is."""

    def __init__(self, start: int, crcs: tuple[int, ...]) -> None:
        """Begin at an event, with the running digests there."""
        self._start = Block(start, crcs, b"")
        self._blocks: deque[Block] = deque()
        self._unsent = 0

    @property
    def unsent(self) -> Block | None:
        """The block to send next."""
        return self._blocks[-self._unsent] if self._unsent else None

    def add(self, block: Block) -> None:
        """Keep a block that is to be sent."""
        self._blocks.append(block)
        self._unsent += 1

    def sent(self) -> None:
        """Take note that the next block is sent."""
        self._unsent -= 1

    def forget(self, committed: int) -> None:
        """Drop the blocks that are committed."""
        while self._blocks and self._blocks[0].end <= committed:
            self._start = self._blocks.popleft()
        self._unsent = min(self._unsent, len(self._blocks))

    def go_back(self, event: int) -> tuple[int, ...] | None:
        """Have all be unsent from an event on; return the digests there, or None if no block ends there."""
        ends = {block.end: block.crcs for block in (self._start, *self._blocks)}
        self._unsent = sum(block.end > event for block in self._blocks)
        return ends.get(event)


class ToldOutcomes:
    """Digests of the outcomes that have arrived and are not committed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._digests: dict[tuple[int, int], tuple[int, int]] = {}  # by first event and lane: end, digest

    def is_new(self, part: outcome_pb2.OutcomePart) -> bool:
        """Tell whether a part has not come before.

        Raises:
            CouldNotFinish: it has come before, and said something else.

        """
        key, end = (part.first_event, part.lane), part.first_event + part.event_count
        said = end, _digest(part)
        known = self._digests.setdefault(key, said)
        if known is said:
            return True
        if known != said:
            raise CouldNotFinish(
                f"the hypervisor sent outcomes of events {part.first_event:,} to {end:,} again, and others"
            )
        return False

    def forget(self, committed: int) -> None:
        """Drop the digests of what is committed, and so does not come again as it is made anew."""
        for key in [key for key, (end, _) in self._digests.items() if end <= committed]:
            del self._digests[key]


def _digest(part: outcome_pb2.OutcomePart) -> int:
    """Return a digest of a part without the decisions that it defines: those depend on the stream."""
    if part.new_decisions:
        told = part
        part = outcome_pb2.OutcomePart()
        part.CopyFrom(told)
        del part.new_decisions[:]
    return isal_zlib.crc32(part.SerializeToString(deterministic=True))
