"""Bits of the debug registers, named as in the manuals.

Masks that follow from others are defined from them. Values are plain integers; compiled code casts
them at its own border.

Source: Intel SDM volume 3, chapter "Debug, Branch Profile, TSC, and Intel Resource Director
Technology", section "Debug Registers"; AMD APM volume 2, section "Debug Registers". Writable and
fixed bits as measured on real processors and emulators.
"""

from typing import Final

# DR6, debug status.
DR6_B0: Final = 0x1  # breakpoint condition 0 detected
DR6_B1: Final = 0x2  # breakpoint condition 1 detected
DR6_B2: Final = 0x4  # breakpoint condition 2 detected
DR6_B3: Final = 0x8  # breakpoint condition 3 detected
DR6_BUS_LOCK: Final = 0x800  # bus lock detected (active low)
DR6_BD: Final = 0x2000  # debug register access detected
DR6_BS: Final = 0x4000  # single step
DR6_BT: Final = 0x8000  # task switch
DR6_RTM: Final = 0x1_0000  # inside a transactional region (active low)

DR6_TRAP_BITS: Final = DR6_B0 | DR6_B1 | DR6_B2 | DR6_B3
DR6_CAUSES: Final = DR6_TRAP_BITS | DR6_BD | DR6_BS | DR6_BT  # active high: what a #DB may report
DR6_RESET: Final = 0xFFFF_0FF0  # value after reset; every active-low and reserved one bit set
DR6_WRITABLE: Final = DR6_CAUSES  # without RTM and without bus-lock detection

# DR7, debug control.
DR7_ENABLES: Final = 0xFF  # L0 G0 L1 G1 L2 G2 L3 G3: local and global enable of each slot
DR7_LE: Final = 0x100  # exact breakpoints, local (no effect on modern processors)
DR7_GE: Final = 0x200  # exact breakpoints, global
DR7_FIXED: Final = 0x400  # always one
DR7_RTM: Final = 0x800  # transactional debugging; writable even where the guest has no RTM
DR7_GD: Final = 0x2000  # general detect: the next MOV DR faults
DR7_CONDITIONS: Final = 0xFFFF_0000  # R/W and LEN of each slot
DR7_RESET: Final = DR7_FIXED
DR7_WRITABLE: Final = DR7_ENABLES | DR7_LE | DR7_GE | DR7_RTM | DR7_GD | DR7_CONDITIONS

# IA32_DEBUGCTL; the other bits are not kept here.
MSR_DEBUGCTL: Final = 0x1D9
DEBUGCTL_LBR: Final = 0x1  # last branches are recorded
DEBUGCTL_BTF: Final = 0x2  # the trap flag steps over branches
DEBUGCTL_BITS: Final = DEBUGCTL_LBR | DEBUGCTL_BTF

CR4_DE: Final = 0x8  # debugging extensions: DR4 and DR5 are invalid, I/O breakpoints exist

VECTOR_DB: Final = 1  # debug exception
VECTOR_UD: Final = 6  # invalid opcode
VECTOR_GP: Final = 13  # general protection
VECTOR_AC: Final = 17  # alignment check
VECTOR_MC: Final = 18  # machine check


def dr7_slot_enables(slot: int) -> int:
    """Return the mask of L and G of breakpoint ``slot`` (0 to 3)."""
    return 0b11 << (2 * slot)


def dr6_writable(*, rtm: bool, bus_lock_detect: bool) -> int:
    """Return the bits of DR6 that a guest can write on a CPU with these features."""
    bits = DR6_WRITABLE
    if rtm:
        bits |= DR6_RTM
    if bus_lock_detect:
        bits |= DR6_BUS_LOCK
    return bits
