"""Random streams made richer: every kind and mark that the streams of the model leave out.

Between the events of a stream come exits and quiet instructions of all kinds, on a vCPU that runs
there; some guest events get class bits, some MOV DRs did not retire, and of some the operand is not
known. Nested guests are none of its business: what it adds could be where they cannot be.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from exitlab.events import EventColumns, EventKind, Mark
from tests.engine.build import VENDOR_WORDS, Row, stream
from tests.model.second_model import MOV_DR
from tests.model.streams import Mix, random_stream

LAST_GUEST_KIND: Final = EventKind.EXIT
HOST_KINDS: Final = range(EventKind.VMRUN, EventKind.ADVANCE + 1)
OWN_STREAM: Final = {  # what a stream of the model decides by itself
    *MOV_DR,
    *(EventKind.FETCH, EventKind.READ, EventKind.WRITE, EventKind.EXCEPTION, EventKind.MOV_TO_CR),
}
# Of an INT1 that is computed most policies declare that it shows something else: the model's streams have it.
RECORDED_ONLY: Final = {EventKind.INT1}
# Ports that no breakpoint of the model's addresses watches, for the same reason.
PORTS: Final = (0x3F8, 0x60, 0xCF8)
SELECTORS: Final = {
    **dict.fromkeys((EventKind.IN, EventKind.OUT, EventKind.INS, EventKind.OUTS), PORTS),
    EventKind.WRMSR: (0x6E0, 0x830, 0x10, 0x48, 0xC000_0100, 0x1D9, 0xFFFF_FFFF),
    EventKind.RDMSR: (0x6E0, 0x830, 0x10, 0x49, 0x176, 0xC000_0102, 0x1D9),
    EventKind.MMIO: (0xFEE0_0000, 0xFEE0_0FFF, 0xFEE0_1000, 0xFEDF_FFFF, 0),
    EventKind.EXIT: (0, 1, 12, 29, 30, 32, 48, 52, 0x7B, 0x7C, 0x400, 2047, 2048, 0x8000_0021, 0xFFFF_FFFF),
}


class _Decorator:
    """The choices of one seed."""

    def __init__(self, seed: int, *, computed: bool, all_retire: bool) -> None:
        """Start with the kinds that may be added."""
        self._all_retire = all_retire
        self._generator = np.random.default_rng(seed)
        self._kinds = [
            kind
            for kind in EventKind
            if kind not in OWN_STREAM
            and kind not in HOST_KINDS
            and not (computed and kind in RECORDED_ONLY)
        ]  # fmt: skip
        self._kinds.append(EventKind.ADVANCE)

    def below(self, limit: int) -> int:
        """Return a number from 0 to ``limit`` - 1."""
        return int(self._generator.integers(limit))

    def marked(self, row: Row) -> Row:
        """Return a guest event with other marks."""
        marks = row.marks
        if self.below(5) == 0:
            marks |= self.below(4) << 6
        is_write = row.kind == EventKind.MOV_TO_DR
        if is_write and self.below(8) == 0:
            marks |= Mark.VALUE_UNKNOWN
        if row.kind in MOV_DR and not marks & Mark.RETIRED and self.below(8) == 0:
            marks |= 0 if self._all_retire else Mark.NOT_RETIRED
        return row._replace(marks=marks)

    def added(self, vcpu: int) -> Row:
        """Return one event of any kind for ``vcpu``."""
        kind = self._kinds[self.below(len(self._kinds))]
        selectors = SELECTORS.get(kind, (0, 1, 0x3F8))
        marks = 0
        if kind != EventKind.ADVANCE:
            marks = self.below(4) << 6 | (0, 0, Mark.IF_FAULT, Mark.IF_OK)[self.below(4)]
        return Row(
            kind,
            arg=self.below(9 if kind == EventKind.MOV_SS else 16),
            marks=marks,
            vcpu=vcpu,
            gap_cycles=self.below(100),
            selector=selectors[self.below(len(selectors))],
            value=self.below(1 << 40),
        )

    def rows(self, events: EventColumns) -> Iterator[Row]:
        """Return the events of a stream, changed and with others between them."""
        for at in range(len(events)):
            row = Row(*(int(getattr(events, name)[at]) for name in events.__slots__))
            if row.kind > LAST_GUEST_KIND:
                yield row
                continue
            yield self.marked(row)
            while self.below(3) == 0:
                yield self.added(row.vcpu)


def decorated(events: EventColumns, seed: int, *, computed: bool, all_retire: bool = False) -> EventColumns:
    """Return ``events`` with more kinds and marks; the same seed makes the same changes."""
    return stream(_Decorator(seed, computed=computed, all_retire=all_retire).rows(events))


GROUPS: Final = ("computed", "recorded", "everything")


def mix_of(group: str, vendor: int) -> Mix:
    """Return breakpoints that are computed or recorded, or all that streams have, on a vendor."""
    if group == "everything":
        return Mix.everything(VENDOR_WORDS[vendor])
    return Mix(computed=group == "computed", debug_control=group == "recorded")


def any_stream(seed: int, events: int, mix: Mix) -> EventColumns:
    """Return a random stream, with events of every kind between its own unless it has nested guests."""
    plain = random_stream(seed, events, mix)
    return plain if mix.nested else decorated(plain, seed, computed=mix.computed)
