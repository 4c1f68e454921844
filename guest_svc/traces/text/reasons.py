"""The number of an exit reason from what a trace prints: a name of the kernel or the plug-in, or a number.

The kernel prints a code without a name in hex (``0x4c``), libtraceevent's plug-in as ``UNKNOWN (76)``. A
number by itself names no vendor.

Source of the plug-in's names: libtraceevent 1.8.4, ``plugins/plugin_kvm.c``. Its VMX names are the
kernel's, except 7; its SVM names are ``EXIT_`` and the kernel's in capitals, except those here.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exitlab.exit_reasons import (
    SVM_ERR,
    SVM_EXCEPTION_BASE,
    SVM_EXIT_REASONS,
    VENDOR_SVM,
    VENDOR_VMX,
    VMX_BASIC_REASON,
    VMX_EXIT_REASONS,
    VMX_FLAG_FAILED_VMENTRY,
)
from guest_svc.traces.text.table import UNKNOWN, UNKNOWN_VENDOR

_OLD_VMX_NAMES: Final = {
    "PENDING_INTERRUPT": 7,  # up to 4.19 at least, and still in the plug-in
    "PCOMMIT": 65,  # an instruction that came with 4.4 and went with 4.8
}
_PLUGIN_SVM_NAMES: Final = {
    "EXIT_INTR": 0x60,
    "EXIT_IDTR_READ": 0x66,
    "EXIT_GDTR_READ": 0x67,
    "EXIT_LDTR_READ": 0x68,
    "EXIT_TR_READ": 0x69,
    "EXIT_IDTR_WRITE": 0x6A,
    "EXIT_GDTR_WRITE": 0x6B,
    "EXIT_LDTR_WRITE": 0x6C,
    "EXIT_TR_WRITE": 0x6D,
    "EXIT_IOIO": 0x7B,
    "EXIT_VMMCALL": 0x81,
    "EXIT_MWAIT_COND": 0x8C,
    "EXIT_ERR": SVM_ERR,
}
_EXCEPTION_SUFFIX: Final = " excp"


def _svm_names() -> dict[str, int]:
    names = {name: code for code, name in SVM_EXIT_REASONS.items()}
    for name, code in tuple(names.items()):
        if SVM_EXCEPTION_BASE <= code < SVM_EXCEPTION_BASE + 32:
            names[f"EXIT_EXCP_{name.removesuffix(_EXCEPTION_SUFFIX)}"] = code
        else:
            names.setdefault(f"EXIT_{name.upper()}", code)
    return names | _PLUGIN_SVM_NAMES


_CODES: Final = {
    **{name: (VENDOR_SVM, code) for name, code in _svm_names().items()},
    **{name: (VENDOR_VMX, code) for name, code in _OLD_VMX_NAMES.items()},
    **{name: (VENDOR_VMX, code) for code, name in VMX_EXIT_REASONS.items()},
}
_NUMBER: Final = re.compile(r"0x([0-9a-f]{1,16})|UNKNOWN \((-?\d{1,20})\)")
_FAILED: Final = " FAILED_VMENTRY"
_OTHER_FLAGS: Final = re.compile(r" 0x[0-9a-f]{1,8}$")  # printed after the names of those that have one
_CODE_BITS: Final = 32
LARGEST_CODE: Final = (1 << _CODE_BITS) - 1


@dataclass(frozen=True, slots=True)
class Reason:
    """An exit reason: its vendor (0 unknown), its number without flags, and whether the entry had failed."""

    vendor: int
    code: int
    is_failed_entry: bool = False


def reason_of_text(text: str) -> Reason | None:
    """Return the reason that a trace prints so, or nothing for a name that no table has."""
    name, is_failed = text, False
    if name not in _CODES:
        name = _OTHER_FLAGS.sub("", name)
        is_failed = name.endswith(_FAILED)
        name = name.removesuffix(_FAILED)
    if name in _CODES:
        vendor, code = _CODES[name]
        return None if is_failed and vendor == VENDOR_SVM else Reason(vendor, code, is_failed)
    number = _NUMBER.fullmatch(name)
    if number is None:
        return None
    code = int(number[1], 16) if number[1] else int(number[2])
    if is_failed:
        return Reason(VENDOR_VMX, code & VMX_BASIC_REASON, is_failed_entry=True)
    return reason_of_number(UNKNOWN_VENDOR, code)


def reason_of_number(vendor: int, code: int) -> Reason | None:
    """Return the reason of a number with flags in a vendor's numbering, or in one that is not known."""
    if code in (-1, 2**64 - 1):
        code = SVM_ERR
    if not 0 <= code <= LARGEST_CODE:
        return None
    basic, is_failed = code & VMX_BASIC_REASON, bool(code & VMX_FLAG_FAILED_VMENTRY)
    if vendor == UNKNOWN_VENDOR and is_failed and basic in VMX_EXIT_REASONS and code not in SVM_EXIT_REASONS:
        vendor = VENDOR_VMX
    if vendor == VENDOR_VMX:
        return Reason(vendor, basic, is_failed)
    return Reason(vendor, code)


def pack(reason: Reason | None) -> int:
    """Return a reason as one number; -1 for none."""
    if reason is None:
        return UNKNOWN
    return reason.vendor << _CODE_BITS + 1 | reason.is_failed_entry << _CODE_BITS | reason.code


def unpack(packed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the vendor, the number and whether the entry had failed of packed reasons."""
    return packed >> _CODE_BITS + 1, packed & LARGEST_CODE, packed >> _CODE_BITS & 1 != 0
