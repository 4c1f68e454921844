"""Fields of a JSON row, checked one by one; every refusal names the file, the row and the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from exitlab.debugreg import DR6_RESET, DR7_RESET
from guest_svc.errors import BadInput
from guest_svc.vectors.model import Operand, Registers

LARGEST: Final = 2**64 - 1
LARGEST_32: Final = 2**32 - 1
_SHOWN: Final = 80  # characters of a value in a refusal

Object = dict[str, Any]


class Fields:
    """Checks the fields of one row."""

    def __init__(self, path: Path, number: int) -> None:
        """Name the row ``number`` of the file at ``path``."""
        self._place = f"{path}: row {number}"

    def is_named(self, name: object) -> None:
        """Take a row's name up into what refusals say."""
        if isinstance(name, str):
            self._place += f" ({name})"

    def number(self, value: object, field: str, largest: int = LARGEST) -> int:
        """Return a number that is written as one or as a string such as ``0x400``."""
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= largest:
            raise self.bad(field, f"expected a number of at most {largest.bit_length()} bits", value)
        return number

    def choice(self, value: Any, field: str, choices: tuple[Any, ...]) -> Any:
        """Return a value that is one of ``choices``."""
        if value not in choices:
            raise self.bad(field, f"expected one of {', '.join(map(str, choices))}", value)
        return value

    def flag(self, value: object, field: str) -> bool:
        """Return a claim that is written as 0 or 1."""
        return bool(self.choice(value, field, (0, 1)))

    def text(self, value: object, field: str) -> str:
        """Return a text that is not empty."""
        if not isinstance(value, str) or not value:
            raise self.bad(field, "expected a text", value)
        return value

    def record(self, value: object, field: str) -> Object:
        """Return a JSON object."""
        if not isinstance(value, dict):
            raise self.bad(field or "the row", "expected an object", value)
        return value

    def array(self, value: object, field: str) -> list[Any]:
        """Return a JSON array."""
        if not isinstance(value, list):
            raise self.bad(field, "expected a list", value)
        return value

    def registers(self, value: Object, field: str, operand: Callable[[object, str], Operand]) -> Registers:
        """Return six registers, those left out as after reset; ``operand`` reads a number or an address."""
        db = self.array(value.get("db", [0, 0, 0, 0]), f"{field}.db")
        if len(db) != len(Registers().db):
            raise self.bad(f"{field}.db", "expected four registers", db)
        return Registers(
            db=tuple(operand(slot, f"{field}.db[{k}]") for k, slot in enumerate(db)),
            dr6=self.number(value.get("dr6", DR6_RESET), f"{field}.dr6"),
            dr7=self.number(value.get("dr7", DR7_RESET), f"{field}.dr7"),
        )

    def bits(self, value: object, field: str, names: dict[str, int]) -> int:
        """Return bits that are written as a number or as a list of names."""
        if not isinstance(value, list):
            return self.number(value, field, LARGEST_32)
        bits = 0
        for k, name in enumerate(value):
            self.choice(name, f"{field}[{k}]", tuple(names))
            bits |= names[name]
        return bits

    def bad(self, field: str, expected: str, got: object) -> BadInput:
        """Return the refusal of a field."""
        text = json.dumps(got)
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        return BadInput(f"{self._place}, field {field}: {expected}, got {shown}")
