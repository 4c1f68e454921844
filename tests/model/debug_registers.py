"""The second model's six registers: their masks, what an exception does to them, what matches.

Source: Intel SDM volume 3, chapter "Debug, Branch Profile, TSC, and Intel Resource Director
Technology"; volume 2, "MOV - Move to/from Debug Registers"; AMD APM volume 2, "Software-Debug Resources".
"""

from typing import Final, NamedTuple

from exitlab.events import EventKind

from .vocabulary import PORT_ACCESSES, Registers

DR6_AT_RESET: Final = 0xFFFF_0FF0
DR7_AT_RESET: Final = 0x0000_0400
B0_TO_B3: Final = 0x000F
BUS_LOCK: Final = 1 << 11
BD: Final = 1 << 13
BS: Final = 1 << 14
BD_BS_BT: Final = 0xE000
RTM: Final = 1 << 16
GENERAL_DETECT: Final = 1 << 13
DR7_SETTABLE: Final = 0xFFFF_2BFF  # all of bits 31:0 but 10 (always one), 12, 14 and 15 (always zero)
DR7_ALWAYS_ONE: Final = 1 << 10
ADDRESS_SPACE: Final = 1 << 64

# R/W of a slot -> the accesses that it breaks on.
BREAKS_ON: Final[dict[int, frozenset[EventKind]]] = {
    0b00: frozenset({EventKind.FETCH}),
    0b01: frozenset({EventKind.WRITE}),
    0b10: PORT_ACCESSES,
    0b11: frozenset({EventKind.READ, EventKind.WRITE}),
}
BYTES_OF_LEN: Final = {0b00: 1, 0b01: 2, 0b10: 8, 0b11: 4}
SAME_AS: Final = {4: 6, 5: 7}  # with CR4.DE = 0


class Causes(NamedTuple):
    """The causes of a debug exception as bits of DR6: those that are set, and those that may be."""

    certain: int = 0
    possible: int = 0

    def joined(self, other: "Causes") -> "Causes":
        """Return the causes of both in one exception."""
        certain = self.certain | other.certain
        return Causes(certain, (self.possible | other.possible) & ~certain)


NO_CAUSE: Final = Causes()
SINGLE_STEP: Final = Causes(BS)


def _bytes_at(address: int, length: int) -> set[int]:
    """Return the addresses of ``length`` bytes from ``address`` on, around the end of the address space."""
    return {(address + offset) % ADDRESS_SPACE for offset in range(length)}


class DebugRegisters:
    """DR0 to DR3, DR6 and DR7 of one processor, and CR4.DE."""

    def __init__(self, rtm: bool, bus_lock: bool) -> None:
        """Start as after power-up."""
        self._settable_dr6 = B0_TO_B3 | BD_BS_BT | (RTM if rtm else 0) | (BUS_LOCK if bus_lock else 0)
        self.reset()

    def reset(self) -> None:
        """Become what RESET and INIT leave."""
        self.db = {0: 0, 1: 0, 2: 0, 3: 0}
        self.dr6 = DR6_AT_RESET
        self.dr7 = DR7_AT_RESET
        self.undefined_dr6 = 0
        self.has_de = False

    def set(self, number: int, value: int) -> None:
        """Put ``value`` into DR0 to DR3, DR6 or DR7; fixed bits stay what they are."""
        if number == 6:
            self.dr6 = (DR6_AT_RESET & ~self._settable_dr6) | (value & self._settable_dr6)
            self.undefined_dr6 = 0
        elif number == 7:
            self.dr7 = (value & DR7_SETTABLE) | DR7_ALWAYS_ONE
        else:
            self.db[number] = value

    def get(self, number: int) -> int:
        """Return DR0 to DR3, DR6 or DR7."""
        return {**self.db, 6: self.dr6, 7: self.dr7}[number]

    def all_six(self) -> Registers:
        """Return the registers as MOVs would read them now."""
        db = (self.db[0], self.db[1], self.db[2], self.db[3])
        return Registers(db, self.dr6, self.dr7, self.undefined_dr6)

    def note(self, causes: Causes) -> None:
        """Do what a debug exception does: B0 to B3 are set anew, the rest of DR6 collects, GD goes off.

        The manual says that the RTM bit is set unless a transactional region raised the exception.
        """
        self.dr6 = (self.dr6 & ~B0_TO_B3) | RTM | causes.certain | causes.possible
        self.undefined_dr6 = (self.undefined_dr6 & ~B0_TO_B3) | causes.possible
        self.clear_general_detect()

    def note_unknown_cause(self) -> None:
        """Do what a debug exception does of which nobody knows the cause."""
        self.undefined_dr6 |= B0_TO_B3 | BD_BS_BT
        self.dr6 |= RTM
        self.clear_general_detect()

    def clear_general_detect(self) -> None:
        """Turn GD off."""
        self.dr7 &= ~GENERAL_DETECT

    def matches(self, kind: int, first: int, length: int) -> Causes:
        """Return what an access or fetch hits: enabled slots for certain, others may show."""
        certain = possible = 0
        for slot in self.db:
            if self._slot_matches(slot, kind, first, length):
                is_enabled = self.dr7 >> (2 * slot) & 0b11
                certain |= 1 << slot if is_enabled else 0
                possible |= 0 if is_enabled else 1 << slot
        return Causes(certain, possible)

    def _slot_matches(self, slot: int, kind: int, first: int, length: int) -> bool:
        """Return whether the address and kind of ``slot`` fit the access, enabled or not."""
        read_write = self.dr7 >> (16 + 4 * slot) & 0b11
        watched_bytes = BYTES_OF_LEN[self.dr7 >> (18 + 4 * slot) & 0b11]
        if kind not in BREAKS_ON[read_write] or (kind in PORT_ACCESSES and not self.has_de):
            return False
        if kind == EventKind.FETCH:
            return watched_bytes == 1 and self.db[slot] == first
        watched = _bytes_at(self.db[slot] - self.db[slot] % watched_bytes, watched_bytes)
        return not watched.isdisjoint(_bytes_at(first, length))
