"""What a guest keeps of a session until it is committed: its blocks, and digests of their outcomes.

A hypervisor that has crashed goes on at its last checkpoint. It is sent the same blocks again, and what
it answers has to be what it had answered.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from isal import isal_zlib

from exitlab.blocks import ColumnCrcs, DecodedBlock, decode_request, encode_block
from exitlab.events import Column
from exitlab.v1 import outcome_pb2
from guest_svc.errors import CouldNotFinish


class Block(NamedTuple):
    """An encoded block."""

    end: int  # the event after its last
    crcs: tuple[int, ...]  # the columns' running digests there
    data: bytes


class KeptBlocks:
    """Blocks that are not committed, oldest first; some may not be sent yet on the stream there is."""

    def __init__(self, columns: Iterable[Column]) -> None:
        """Begin at the first event."""
        self._columns = ColumnCrcs(columns).declared
        self._start = Block(0, ColumnCrcs(columns).values, b"")
        self._blocks: list[Block] = []
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
        """Take note that the next block is sent, or was by an earlier guest."""
        self._unsent -= 1

    def forget(self, committed: int) -> None:
        """Drop the blocks that are committed."""
        count = 0
        while count < len(self._blocks) and self._blocks[count].end <= committed:
            count += 1
        if count:
            self._start = self._blocks[count - 1]
            del self._blocks[:count]
        self._unsent = min(self._unsent, len(self._blocks))

    def go_back(self, event: int) -> tuple[int, ...] | None:
        """Have all be unsent from an event on; return the digests there, or None if it is not kept."""
        before = self._start
        for place, block in enumerate(self._blocks):
            if before.end < event < block.end:  # an earlier guest had cut elsewhere
                self._blocks[place : place + 1] = self._split(before, block, [event])
                break
            before = block
        self._unsent = sum(block.end > event for block in self._blocks)
        return {block.end: block.crcs for block in (self._start, *self._blocks)}.get(event)

    def cut_unsent(self, most_events: int, heard_events: int) -> None:
        """Cut what is not sent so that no block has more events: the hypervisor may take less than before.

        Raises:
            CouldNotFinish: outcomes of such a block have come. Those of its parts could not be compared.

        """
        first = len(self._blocks) - self._unsent
        before = self._blocks[first - 1] if first else self._start
        parts = []
        for block in self._blocks[first:]:
            places = range(before.end + most_events, block.end, most_events)
            if places and before.end < heard_events:
                raise CouldNotFinish(
                    f"the hypervisor takes no more than {most_events:,} events in a block now, and has to "
                    "answer a larger one again; start the run again"
                )
            parts += self._split(before, block, places)
            before = block
        self._blocks[first:] = parts
        self._unsent = len(parts)

    def _split(self, before: Block, block: Block, places: Iterable[int]) -> list[Block]:
        """Return a block in parts, the second and those after it from ``places`` on."""
        ends = [before.end, *places, block.end]
        if len(ends) == 2:
            return [block]
        decoded = decode_request(block.data, self._columns)
        assert isinstance(decoded, DecodedBlock)  # as it was encoded
        crcs = ColumnCrcs(self._columns, before.crcs)
        parts = []
        for first, end in pairwise(ends):
            part = decoded.events.rows(first - before.end, end - before.end)
            data = encode_block(part, first, crcs)
            parts.append(Block(end, crcs.values, data))
        return parts


class ToldOutcomes:
    """Digests of the outcomes that have arrived and are not committed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._digests: dict[tuple[int, int], tuple[int, int]] = {}  # by first event and lane: end, digest
        self._forgotten_events = 0

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
        """Drop the digests of what has arrived whole and is committed, and so does not come again."""
        if committed <= self._forgotten_events:
            return  # which is said with each block; to look through all would take longer than the block
        self._forgotten_events = committed
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
