"""States: records of vCPUs with their values taken out.

A state is what the policy remembers and believes, the rung, and of every copy of a debug register
whether it equals the guest's truth: a row of bytes, one a ``Part``. Two records of one state are answered
alike by the oracle loop: it moves registers and compares them with the truth, and looks at a value itself
only where a feature of it stands in the state (what a DR7 enables) or in the event's symbol.
"""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitlab.debugreg import DR6_RESET, DR7_ENABLES, DR7_GD, DR7_RESET
from hypervisor_svc.engine import records
from hypervisor_svc.engine.records import Words

Codes = NDArray[np.uint8]  # (states, len(Part))


class Part(IntEnum):
    """The bytes of a state."""

    RUNG = 0
    ARMED = 1
    MEMORY = 2
    BELIEF = 3
    WINDOW = 4
    CONTROLS_ARE_OFF = 5
    HAS_DE = 6
    IS_LOADED_HERE = 7  # this physical CPU is the one of the last load
    IS_RESIDENT = 8
    TRUE_DR7 = 9  # what the guest's own DR7 enables
    SHADOW = 10  # DR0-3
    EFFECTIVE = 11
    SAVED = 12
    HARDWARE = 13
    SHADOW_DR6 = 14
    FIELD_DR6 = 15
    SAVED_DR6 = 16
    HARDWARE_DR6 = 17
    SHADOW_DR7 = 18
    EFFECTIVE_DR7 = 19
    FIELD_DR7 = 20
    SAVED_DR7 = 21
    HARDWARE_DR7 = 22
    OWNER = 23  # of the hardware's DR0-3 and DR6
    SAVED_OWNER = 28


PARTS: Final = Part.SAVED_OWNER + 5

# What a copy is: the truth, the value after reset (DR6), or anything else. Of a DR7 that is not the
# truth it is said what the loop looks at: whether it enables something, has GD, is 0x400.
TRUTH: Final = 8
RESET: Final = 1
OTHER: Final = 0
_ENABLES: Final = 1
_GD: Final = 2
_IS_RESET: Final = 4

_AS_THEY_ARE: Final = {
    Part.RUNG: records.RUNG,
    Part.ARMED: records.ARMED,
    Part.MEMORY: records.MEMORY,
    Part.BELIEF: records.BELIEF,
    Part.WINDOW: records.WINDOW,
    Part.CONTROLS_ARE_OFF: records.CONTROLS_ARE_OFF,
    Part.HAS_DE: records.HAS_DE,
}
# A record in which one of these is not zero has no state.
_ZERO: Final = [
    *(records.DEBUGGER, records.TRUE_UNDEFINED, *range(records.DECLARED, records.DECLARED + 6)),
    *(records.STALE_SLOTS, records.CLUSTER, records.SHADOW_OF_SS, records.HELD, records.CONTROL),
    *(records.NESTED, records.EXTRA, records.SURVIVED, records.FIELD_DEBUGCTL, records.DECLARED_DEBUGCTL),
    records.DUE_RULE,
]
_ADDRESSES: Final = {
    Part.SHADOW: records.SHADOW,
    Part.EFFECTIVE: records.EFFECTIVE,
    Part.SAVED: records.SAVED,
}
_DR6: Final = {
    Part.SHADOW_DR6: records.SHADOW_DR6,
    Part.FIELD_DR6: records.FIELD_DR6,
    Part.SAVED_DR6: records.SAVED + 4,
}
_DR7: Final = {
    Part.SHADOW_DR7: records.SHADOW_DR7,
    Part.EFFECTIVE_DR7: records.EFFECTIVE_DR7,
    Part.FIELD_DR7: records.FIELD_DR7,
    Part.SAVED_DR7: records.SAVED + 5,
}
_COPIES: Final = [
    *(base + k for base in _ADDRESSES.values() for k in range(4)),
    *_DR6.values(),
    *_DR7.values(),
]
_OWNER_SHIFTS: Final = np.arange(5, dtype=np.uint64) * np.uint64(12)
_OWNER_MASK: Final = np.uint64(0xFFF)


class Poison(NamedTuple):
    """What stands in copies that are neither the truth nor a constant, so that their use is noticed."""

    addresses: Words  # DR0 to DR3
    dr6: int
    dr7: Words  # by what it enables and has

    @property
    def values(self) -> list[int]:
        """All of them, in a fixed order."""
        return [*self.addresses.tolist(), self.dr6, *self.dr7[:_IS_RESET].tolist()]


POISON: Final = Poison(
    np.array([0xBAD0_1000, 0xBAD0_2000, 0xBAD0_3000, 0xBAD0_4000], np.uint64),
    0xFFFF_AFF5,
    np.array([0x600, 0x4AA, 0x2600, 0x24AA, DR7_RESET], np.uint64),
)
MISSED: Final = 0x99  # what an access that hits nothing of the guest's touches when it is asked about
OTHER_POISON: Final = Poison(
    np.full(4, MISSED, np.uint64),
    0xFFFF_8FF9,
    np.array([0x1000_0600, 0x1000_04AA, 0x1000_2600, 0x1000_24AA, DR7_RESET], np.uint64),
)
# A truth to learn with: no two registers alike, and none like poison. Where a DR7 enables something it
# enables all, so that whichever slot is stale, or somebody else's, is noticed.
TELLING: Final = np.array([0x1000, 0x2000, 0x3000, 0x4000, 0xFFFF_4FF2], np.uint64)
TELLING_DR7: Final = np.array([0x500, 0x4FF, 0x2500, 0x24FF, DR7_RESET], np.uint64)


def _features(dr7: Words) -> Words:
    enables = (dr7 & np.uint64(DR7_ENABLES)) != 0
    has_gd = (dr7 & np.uint64(DR7_GD)) != 0
    found: Words = enables * np.uint64(_ENABLES) + has_gd * np.uint64(_GD)
    found += (dr7 == DR7_RESET) * np.uint64(_IS_RESET)
    return found


def states_of(vcpus: Words, cpus: Words, numbers: Words) -> tuple[Codes, NDArray[np.bool_]]:
    """Return the states of vCPUs, and which have one; row k of ``cpus`` is the one that vCPU k is at home on.

    ``numbers`` are the vCPUs' own.
    """
    codes: Codes = np.zeros((len(vcpus), PARTS), np.uint8)
    truth = vcpus[:, records.TRUE : records.TRUE + 6]
    home = vcpus[:, records.HOME] + np.uint64(1)
    own = numbers + np.uint64(1)
    resident = vcpus[:, records.RESIDENT_ON] != 0
    has_one = (vcpus[:, _ZERO] == 0).all(axis=1) & (
        cpus[:, [records.HOST_ACTIVE, records.HARDWARE_DEBUGCTL]] == 0
    ).all(axis=1)
    has_one &= cpus[:, records.HOST_DR7] == DR7_RESET
    has_one &= np.where(resident, vcpus[:, records.RESIDENT_ON] == home, True)
    has_one &= cpus[:, records.RESIDENT] == np.where(resident, own, np.uint64(0))
    for part, word in _AS_THEY_ARE.items():
        codes[:, part] = vcpus[:, word]
    codes[:, Part.IS_LOADED_HERE] = vcpus[:, records.LAST_LOAD] == home
    codes[:, Part.IS_RESIDENT] = resident
    codes[:, Part.TRUE_DR7] = _features(truth[:, 5])
    for part, base in _ADDRESSES.items():
        codes[:, part] = (vcpus[:, base : base + 4] == truth[:, :4]).all(axis=1) * TRUTH
    codes[:, Part.HARDWARE] = (cpus[:, :4] == truth[:, :4]).all(axis=1) * TRUTH
    dr6 = [(part, vcpus[:, word]) for part, word in _DR6.items()]
    for part, copy in (*dr6, (Part.HARDWARE_DR6, cpus[:, records.HARDWARE_DR6])):
        codes[:, part] = np.where(copy == truth[:, 4], TRUTH, (copy == DR6_RESET) * RESET)
    dr7 = [(part, vcpus[:, word]) for part, word in _DR7.items()]
    for part, copy in (*dr7, (Part.HARDWARE_DR7, cpus[:, records.HARDWARE_DR7])):
        codes[:, part] = np.where(copy == truth[:, 5], TRUTH, _features(copy))
    saved = vcpus[:, records.SAVED_OWNERS, None] >> _OWNER_SHIFTS & _OWNER_MASK
    for part, owners in (
        (Part.OWNER, cpus[:, records.OWNER : records.OWNER + 5]),
        (Part.SAVED_OWNER, saved),
    ):
        is_own, is_hosts = owners == own[:, None], owners == records.OWNER_HOST
        codes[:, part : part + 5] = is_own + 2 * is_hosts
        has_one &= (is_own | is_hosts | (owners == records.OWNER_NOBODY)).all(axis=1)
    return codes, has_one


def put_states(codes: Codes, vcpus: Words, cpus: Words, numbers: Words, poison: Poison = POISON) -> None:
    """Write states into records in which the truth stands; other copies become poison."""
    truth = vcpus[:, records.TRUE : records.TRUE + 6].copy()
    home = vcpus[:, records.HOME] + np.uint64(1)
    own = numbers + np.uint64(1)
    vcpus[:, _ZERO] = 0
    for part, word in _AS_THEY_ARE.items():
        vcpus[:, word] = codes[:, part]
    vcpus[:, records.LAST_LOAD] = codes[:, Part.IS_LOADED_HERE] * home
    vcpus[:, records.RESIDENT_ON] = codes[:, Part.IS_RESIDENT] * home
    cpus[:, records.RESIDENT] = codes[:, Part.IS_RESIDENT] * own
    for part, base in _ADDRESSES.items():
        is_true = codes[:, part, None] == TRUTH
        vcpus[:, base : base + 4] = np.where(is_true, truth[:, :4], poison.addresses)
    cpus[:, :4] = np.where(codes[:, Part.HARDWARE, None] == TRUTH, truth[:, :4], poison.addresses)
    for part, word in _DR6.items():
        vcpus[:, word] = _dr6(codes[:, part], truth[:, 4], poison.dr6)
    cpus[:, records.HARDWARE_DR6] = _dr6(codes[:, Part.HARDWARE_DR6], truth[:, 4], poison.dr6)
    for part, word in _DR7.items():
        vcpus[:, word] = _dr7(codes[:, part], truth[:, 5], poison.dr7)
    cpus[:, records.HARDWARE_DR7] = _dr7(codes[:, Part.HARDWARE_DR7], truth[:, 5], poison.dr7)
    for part in (Part.OWNER, Part.SAVED_OWNER):
        kinds = codes[:, part : part + 5]
        owners = (kinds == 1) * own[:, None] + (kinds == 2) * np.uint64(records.OWNER_HOST)
        if part == Part.OWNER:
            cpus[:, records.OWNER : records.OWNER + 5] = owners
        else:
            vcpus[:, records.SAVED_OWNERS] = (owners << _OWNER_SHIFTS).sum(axis=1, dtype=np.uint64)


def _dr6(copies: Codes, truth: Words, poison: int) -> Words:
    other = np.where(copies == RESET, np.uint64(DR6_RESET), np.uint64(poison))
    chosen: Words = np.where(copies == TRUTH, truth, other)
    return chosen


def _dr7(copies: Codes, truth: Words, poison: Words) -> Words:
    other = poison[np.minimum(copies, len(poison) - 1)]
    chosen: Words = np.where(copies == TRUTH, truth, other)
    return chosen


def are_all_true(codes: Codes) -> NDArray[np.bool_]:
    """Tell of each state whether every copy is the truth or a constant."""
    addresses = codes[:, Part.SHADOW : Part.SHADOW_DR6] == TRUTH
    dr6 = codes[:, Part.SHADOW_DR6 : Part.SHADOW_DR7] != OTHER
    dr7 = codes[:, Part.SHADOW_DR7 : Part.OWNER]
    is_known = (dr7 == TRUTH) | (dr7 == _IS_RESET)
    found: NDArray[np.bool_] = addresses.all(axis=1) & dr6.all(axis=1) & is_known.all(axis=1)
    return found


def with_de(codes: Codes) -> Codes:
    """Return the same states of a guest that has CR4.DE."""
    found = codes.copy()
    found[:, Part.HAS_DE] = 1
    return found


def with_gd(codes: Codes) -> Codes:
    """Return the same states of a guest whose DR7 has general detect."""
    found = codes.copy()
    found[:, Part.TRUE_DR7] = (found[:, Part.TRUE_DR7] | _GD) & ~np.uint8(_IS_RESET)
    return found


def may_match_stale(codes: Codes, addresses: Part, dr7: Part) -> NDArray[np.bool_]:
    """Tell of each state whether a breakpoint may match in copies that are not the truth."""
    is_true = codes[:, dr7] == TRUTH
    enables = np.where(is_true, codes[:, Part.TRUE_DR7], codes[:, dr7]) & _ENABLES
    found: NDArray[np.bool_] = (enables != 0) & ~(is_true & (codes[:, addresses] == TRUTH))
    return found


def are_alike(vcpus: Words, others: Words) -> bool:
    """Tell whether records of vCPUs say the same, of which the first hold ``POISON``, the others another.

    Copies of which their states say only that they are not the truth may differ in any way.
    """
    same = vcpus == others
    same[:, _COPIES] = True
    for one, other in zip(POISON.values, OTHER_POISON.values, strict=True):
        same |= (vcpus == one) & (others == other)
    return bool(same.all())
