"""What one record's text says, in plain Python: lines of no listed format, and short texts that come again.

Here keys are looked for wherever they stand, so a line that somebody has trimmed is read as far as it goes.
"""

import re
from typing import Final

from guest_svc.traces.text.reasons import Reason, reason_of_number, reason_of_text
from guest_svc.traces.text.table import LARGEST_VCPU, Event, Flag

Fields = dict[str, int]

_EXIT_EVENTS: Final = (Event.EXIT, Event.NESTED_VMEXIT, Event.NESTED_VMEXIT_INJECT)
_KEY: Final = re.compile(
    r"(?:^|(?<=[ >]))(vcpu|vcpu_id|rip|guest_rip|info1|info2|ext_inf1|ext_inf2|intr_info|ext_int|error_code"
    r"|ext_int_err|isa|exit_reason)(?: |: |=)(0x[0-9a-f]{1,16}|\d{1,20})(?=[ ,\[]|$)"
)
_OLD_INFO: Final = re.compile(r" info ([0-9a-f]{1,16}) ([0-9a-f]{1,16})$")
_REASON: Final = re.compile(
    r"\breason:? (.+?)(?= (?:rip:?|info|info1|ext_inf1:|ext_inf2:|intr_info|error_code|ext_int:) |$)"
)
_COLUMNS: Final = {
    "vcpu_id": "vcpu",
    "guest_rip": "rip",
    "ext_inf1": "info1",
    "ext_inf2": "info2",
    "ext_int": "intr_info",
    "ext_int_err": "error_code",
    "exit_reason": "code",
}
_UNUSED: Final = ("info2", "error_code")  # read as part of a line that has to make sense
_EXCEPTION_NAMES: Final = {
    "#DE": 0, "#DB": 1, "#BP": 3, "#OF": 4, "#BR": 5, "#UD": 6, "#NM": 7, "#DF": 8, "#TS": 10, "#NP": 11,
    "#SS": 12, "#GP": 13, "#PF": 14, "#MF": 16, "#AC": 17, "#MC": 18, "#XF": 19, "#XM": 19,
}  # fmt: skip
_EXCEPTION: Final = re.compile(r"(#[A-Z]{2}|0x[0-9a-f]{1,2})(?: \(0x([0-9a-f]{1,8})\))?(?: \[reinjected\])?")
_RAW_EXCEPTION: Final = re.compile(
    r"(?:\[FAILED TO PARSE\] )?exception=(\d{1,3}) has_error=(\d+)(?: error_code=(?:0x)?([0-9a-f]{1,8}))?.*"
)
_VIRQ: Final = re.compile(r"(?:irq (\d{1,3})|(?:IRQ|Soft/INTn) 0x([0-9a-f]{1,2}))(?: \[reinjected\])?")
_RAW_VIRQ: Final = re.compile(r"(?:irq=(\d{1,3})|vector=(?:0x)?([0-9a-f]{1,2}))(?: .*)?")
_USERSPACE: Final = re.compile(r"reason [\w ?-]+ \((-?\d{1,9})\)")
_RAW_USERSPACE: Final = re.compile(r"reason=(\d{1,9}) errno=-?\d{1,9}")


def read_exit(text: str) -> Fields | None:
    """Return what an exit's or entry's text says, or nothing if it is none."""
    fields: Fields = {}
    for key, number in _KEY.findall(text):
        value = int(number, 0) if number.startswith("0x") else int(number)
        fields.setdefault(_COLUMNS.get(key, key), value)
    old = _OLD_INFO.search(text)
    if old:
        fields["info1"], fields["info2"] = int(old[1], 16), int(old[2], 16)
    found, isa = None, fields.pop("isa", 0)
    if "code" in fields:
        found = reason_of_number(isa, fields.pop("code"))
    else:
        name = _REASON.search(text)
        found = reason_of_text(name[1]) if name else None
        if name and found is None:
            return None
    if any(value >= 1 << 64 for value in fields.values()) or fields.get("vcpu", 0) > LARGEST_VCPU:
        return None
    for key in _UNUSED:
        fields.pop(key, None)
    return fields | _reason_fields(found) if found else fields


def _reason_fields(reason: Reason) -> Fields:
    flags = Flag.FAILED_ENTRY if reason.is_failed_entry else Flag(0)
    return {"vendor": reason.vendor, "reason": reason.code, "flags": int(flags)}


def read_payload(event: Event, text: str) -> Fields | None:
    """Return what a record's text says by column, or nothing if it cannot be read."""
    if event in _EXIT_EVENTS:
        fields = read_exit(text)
        return fields if fields and "reason" in fields else None
    if event is Event.ENTRY:
        fields = read_exit(text)
        return fields if fields and "vcpu" in fields and "reason" not in fields else None
    number = read_short(event, text.encode())
    return None if number < 0 else short_fields(event, number)


_VALUE_SHIFT: Final = 32
_HAS_VALUE: Final = 1 << 31


def read_short(event: Event, text: bytes) -> int:
    """Return what a short text says as one number, for ``short_fields``; -1 if it cannot be read."""
    said = text.decode("ascii", "replace")
    if event is Event.INJ_EXCEPTION:
        return _read_exception(said)
    if event is Event.INJ_VIRQ:
        found = _VIRQ.fullmatch(said) or _RAW_VIRQ.fullmatch(said)
        return -1 if found is None else int(found[1]) if found[1] else int(found[2], 16)
    if event is Event.USERSPACE_EXIT:
        found = _USERSPACE.fullmatch(said) or _RAW_USERSPACE.fullmatch(said)
        return -1 if found is None else max(0, int(found[1]))
    return -1


def _read_exception(said: str) -> int:
    found = _EXCEPTION.fullmatch(said)
    if found:
        name, error = found[1], found[2]
        vector = int(name, 16) if name.startswith("0x") else _EXCEPTION_NAMES.get(name, -1)
    else:
        raw = _RAW_EXCEPTION.fullmatch(said)
        if raw is None:
            return -1
        vector, error = int(raw[1]), raw[3] if int(raw[2]) else None
    if not 0 <= vector < 256:
        return -1
    return vector if error is None else vector | _HAS_VALUE | int(error, 16) << _VALUE_SHIFT


def short_fields(event: Event, number: int) -> Fields:
    """Return the columns of what ``read_short`` has read."""
    if event is Event.INJ_EXCEPTION and number & _HAS_VALUE:
        return {"number": number & ~_HAS_VALUE & (1 << _VALUE_SHIFT) - 1, "value": number >> _VALUE_SHIFT}
    return {"number": number}


def unnamed_reason(text: str) -> str:
    """Return the name of an exit's reason that is in no table; empty if there is none such."""
    name = _REASON.search(text)
    return name[1][:64] if name and reason_of_text(name[1]) is None else ""
