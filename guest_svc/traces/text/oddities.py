"""Lines that are no record: headers, the recorder's word that events were lost, call chains, damage."""

import re
from enum import Enum
from typing import Final

_LOST: Final = re.compile(
    rb"\[(\d+) EVENTS DROPPED\]|\[LOST (\d+) EVENTS\]|\bLOST (\d+) events\b|\blost (\d+)\b|\[LOST EVENTS\]"
)
_HEADER: Final = re.compile(
    rb"#.*|cpus=\d+|version = .*|CPU \d+ is empty|\s*|[\w .-]*:?\s*\d+ entries.*|trace-cmd.*|file .*:"
    rb"|Processed \d+ events.*"
)
_CALL_CHAIN: Final = re.compile(
    rb"\s+(?:=> .*|[0-9a-f]{4,16} .*)|<(?:stack trace|user stack trace) ?.*|=> .*"
)
_FOREIGN: Final = {
    "arm64": re.compile(rb"\bkvm_(?:exit|entry): .*\b(?:PC: ?0x|HSR_EC|ESR_EC|TRAP: )|\bkvm_guest_fault:"),
    "s390": re.compile(rb"\bkvm_s390_\w+:"),
    "riscv": re.compile(rb"\bkvm_(?:exit|entry): .*\b(?:SEPC|SCAUSE|PC)\b ?: ?0x"),
    "powerpc": re.compile(rb"\bkvm_(?:hv|book3s|booke)_\w+:|\bkvm_(?:exit|guest_enter): .*\b(?:pc|msr)=0x"),
    "loongarch": re.compile(rb"\bkvm_(?:exit|exit_\w+|enter|reenter): .*\bPC: ?0x"),
    "mips": re.compile(rb"\bkvm_(?:exit|enter|reenter): .*\bPC: ?0x"),
}
_OTHER_CLOCK: Final = re.compile(rb"\[\d+\] +(?:\S{4,8} +)?(\d+): +(?:kvm:)?kvm_\w+:")


class Oddity(Enum):
    """What a line without a record is."""

    HEADER = "header"
    LOST = "lost"
    CALL_CHAIN = "call chain"
    MALFORMED = "malformed"


def read_oddity(line: bytes) -> tuple[Oddity, int | None]:
    """Return what a line is, and of a LOST one how many events, or nothing if it does not say."""
    lost = _LOST.search(line)
    if lost:
        number = next((group for group in lost.groups() if group), None)
        return Oddity.LOST, int(number[:15]) if number else None
    if _HEADER.fullmatch(line):
        return Oddity.HEADER, None
    if _CALL_CHAIN.fullmatch(line):
        return Oddity.CALL_CHAIN, None
    return Oddity.MALFORMED, None


def foreign_architecture(line: bytes) -> str | None:
    """Return the architecture other than x86 of which a line's record is."""
    return next((name for name, pattern in _FOREIGN.items() if pattern.search(line)), None)


def has_other_clock(line: bytes) -> bool:
    """Return whether a record's time is a plain number: of a clock that counts no seconds."""
    return bool(_OTHER_CLOCK.search(line))
