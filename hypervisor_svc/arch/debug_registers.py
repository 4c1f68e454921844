"""Rules of the debug registers as functions of numbers.

Order of a MOV DR's checks, the same natively on both vendors: #UD (DR4 or DR5 with CR4.DE) before
#GP (CPL above 0) before #DB (DR7.GD) before #GP (bits 63:32 of a value for DR6 or DR7). Were GD
first, no policy that lets accesses run could be correct: it would answer differently with the
intercept on and off.

All numbers are ``uint64``; a fault is a value.

Source: Intel SDM volume 3, "Debug Registers" and "Debug Exceptions"; AMD APM volume 2, "Debug
Registers"; measured answers of KVM, QEMU and Bochs (the shipped vectors).
"""

from typing import Final

import numpy as np

from exitlab import debugreg
from hypervisor_svc.arch.compiled import compiled

U64 = np.uint64
ZERO: Final = U64(0)
ONE: Final = U64(1)

# What the first failing check raises.
FAULT_NONE: Final = U64(0)
FAULT_UD: Final = U64(1)
FAULT_GP: Final = U64(2)
FAULT_GD: Final = U64(3)

LOW_32: Final = U64(0xFFFF_FFFF)
DR6_RESET: Final = U64(debugreg.DR6_RESET)
DR6_TRAP_BITS: Final = U64(debugreg.DR6_TRAP_BITS)
DR6_CAUSES: Final = U64(debugreg.DR6_CAUSES)
DR6_BD: Final = U64(debugreg.DR6_BD)
DR6_BS: Final = U64(debugreg.DR6_BS)
DR6_RTM: Final = U64(debugreg.DR6_RTM)
DR7_RESET: Final = U64(debugreg.DR7_RESET)
DR7_FIXED: Final = U64(debugreg.DR7_FIXED)
DR7_WRITABLE: Final = U64(debugreg.DR7_WRITABLE)
DR7_ENABLES: Final = U64(debugreg.DR7_ENABLES)
DR7_GD: Final = U64(debugreg.DR7_GD)

# What a breakpoint is matched against.
ACCESS_FETCH: Final = U64(0)
ACCESS_READ: Final = U64(1)
ACCESS_WRITE: Final = U64(2)
ACCESS_IO: Final = U64(3)

_TWO: Final = U64(2)
_THREE: Final = U64(3)
_FOUR: Final = U64(4)
_FIVE: Final = U64(5)
_SEVEN: Final = U64(7)
_EIGHT: Final = U64(8)
_NINE: Final = U64(9)
_ELEVEN: Final = U64(11)
_SIXTEEN: Final = U64(16)


@compiled()
def first_fault(is_undefined, is_unprivileged, is_detected):  # type: ignore[no-untyped-def]  # numba infers
    """Return which check of a MOV DR fails first: #UD before #GP before #DB of general detect."""
    if is_undefined:
        return FAULT_UD
    if is_unprivileged:
        return FAULT_GP
    if is_detected:
        return FAULT_GD
    return FAULT_NONE


@compiled()
def canonical_dr6(value, writable):  # type: ignore[no-untyped-def]  # numba infers
    """Return DR6 after a write of ``value`` on a CPU on which the bits ``writable`` can be set."""
    return (value & writable) | (DR6_RESET & ~writable)


@compiled()
def canonical_dr7(value):  # type: ignore[no-untyped-def]  # numba infers
    """Return DR7 after a write of ``value``."""
    return (value & DR7_WRITABLE) | DR7_FIXED


@compiled()
def dr6_after_db(dr6, cause):  # type: ignore[no-untyped-def]  # numba infers
    """Return DR6 after a debug exception: B0 to B3 replaced, all other causes sticky.

    The RTM bit is set, since no exception here comes from within a transactional region; the
    bus-lock bit stays as it is.
    """
    return (dr6 & ~DR6_TRAP_BITS) | DR6_RTM | cause


@compiled()
def _slot_matches(access, address, length, slot_address, condition):  # type: ignore[no-untyped-def]  # numba infers
    kind = condition & _THREE
    size_code = condition >> _TWO
    if access == ACCESS_FETCH:
        return kind == ZERO and size_code == ZERO and slot_address == address
    if (kind == _TWO) != (access == ACCESS_IO):
        return False
    if kind == ZERO or (kind == ONE and access == ACCESS_READ):
        return False
    size = ONE << size_code
    if size_code == _TWO:
        size = _EIGHT
    elif size_code == _THREE:
        size = _FOUR
    base = slot_address & ~(size - ONE)
    # Distances modulo 2^64, so that ranges may wrap.
    return (base - address) < length or (address - base) < size


@compiled()
def matching_slots(access, address, length, db0, db1, db2, db3, dr7):  # type: ignore[no-untyped-def]  # numba infers
    """Return which breakpoints match an access: enabled ones in bits 0-3, all that match in bits 4-7.

    ``access`` is ACCESS_FETCH, ACCESS_READ, ACCESS_WRITE or ACCESS_IO (of ports) and ``length`` in bytes.
    An instruction breakpoint with a length never matches; R/W = 10 matches ports only.
    """
    hits = ZERO
    if _slot_matches(access, address, length, db0, (dr7 >> _SIXTEEN) & U64(15)):
        hits |= U64(0x10) | (ONE if (dr7 & U64(0x03)) != ZERO else ZERO)
    if _slot_matches(access, address, length, db1, (dr7 >> U64(20)) & U64(15)):
        hits |= U64(0x20) | (_TWO if (dr7 & U64(0x0C)) != ZERO else ZERO)
    if _slot_matches(access, address, length, db2, (dr7 >> U64(24)) & U64(15)):
        hits |= U64(0x40) | (_FOUR if (dr7 & U64(0x30)) != ZERO else ZERO)
    if _slot_matches(access, address, length, db3, (dr7 >> U64(28)) & U64(15)):
        hits |= U64(0x80) | (_EIGHT if (dr7 & U64(0xC0)) != ZERO else ZERO)
    return hits


@compiled()
def registers_digest(db0, db1, db2, db3, dr6, dr7):  # type: ignore[no-untyped-def]  # numba infers
    """Return 64 bits that stand for the six registers."""
    odd = U64(0x9E37_79B9_7F4A_7C15)
    total = db0 + db1 * _THREE + db2 * _FIVE + db3 * _SEVEN + dr6 * _NINE + dr7 * _ELEVEN
    return total * odd


@compiled()
def mixed(event, vcpu, story, value):  # type: ignore[no-untyped-def]  # numba infers
    """Return 64 bits that stand for what one event showed; a story's digest is their sum."""
    x = event * U64(0x9E37_79B9_7F4A_7C15) + (vcpu << U64(8)) + story
    x = (x ^ (x >> U64(30))) * U64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ value ^ (x >> U64(27))) * U64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> U64(31))
