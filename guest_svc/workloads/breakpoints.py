"""Breakpoints as guests set them: values of DR7 and of the addresses.

Source: Intel SDM volume 3, section "Debug Registers": R/W and LEN of slot n lie in bits 16 + 4n of
DR7; an address must be aligned to the length that is watched.
"""

from dataclasses import dataclass
from typing import Final

from exitlab.debugreg import DR7_FIXED

DR_SLOTS: Final = 4
DR7_OFF: Final = DR7_FIXED  # no slot enabled

ON_EXECUTE: Final = 0b00  # R/W: instruction execution
ON_WRITE: Final = 0b01  # R/W: data writes
ON_ACCESS: Final = 0b11  # R/W: data reads and writes

LENGTH_CODES: Final = {1: 0b00, 2: 0b01, 8: 0b10, 4: 0b11}  # LEN by bytes watched


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """What one slot watches; an instruction breakpoint has length 1."""

    address: int
    condition: int
    length_bytes: int = 1

    def dr7_bits(self, slot: int) -> int:
        """Return the bits of DR7 that enable it in ``slot``, locally as Linux does not but ptrace may."""
        return (1 << (2 * slot)) | (
            (self.condition | (LENGTH_CODES[self.length_bytes] << 2)) << (16 + 4 * slot)
        )


def dr7_of(breakpoints: dict[int, Breakpoint]) -> int:
    """Return the value of DR7 that enables ``breakpoints``, by slot, and nothing else."""
    value = DR7_OFF
    for slot, breakpoint_ in breakpoints.items():
        value |= breakpoint_.dr7_bits(slot)
    return value
