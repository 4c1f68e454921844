"""Fields of a JSON row, checked one by one; every refusal names the file, the row and the field."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

from exitlab.debugreg import DR6_RESET, DR7_RESET
from exitlab.words import printable
from guest_svc.errors import BadInput
from guest_svc.vectors.model import Operand, Registers

LARGEST: Final = 2**64 - 1
LARGEST_32: Final = 2**32 - 1
MISSING: Final = object()  # stands for a field that is not there
# What may stand in a file or a row for people; and how the names begin that may stand in every object.
FOR_PEOPLE: Final = frozenset(
    {"against", "author", "date", "description", "disputed", "license", "tags", "title", "version", "why"}
    | {"witnesses"}
)
_FOR_PEOPLE_EVERYWHERE: Final = ("_", "comment", "note", "source")
_SHOWN: Final = 80  # characters of a value in a refusal

Object = dict[str, Any]


class RepeatedField(Object):
    """A JSON object one of whose fields is there twice."""

    name = ""


def json_object(pairs: list[tuple[str, Any]]) -> Object:
    """Return a JSON object of its fields; one that has a field twice can be told from others."""
    found: Object = {}
    for name, value in pairs:
        if name in found and not isinstance(found, RepeatedField):
            found = RepeatedField(found)
            found.name = name
        found[name] = value
    return found


def unknown_field(names: Iterable[str], known: Collection[str]) -> str | None:
    """Return the first name that is neither ``known`` nor for people."""
    unknown = (name for name in names if name not in known and not name.startswith(_FOR_PEOPLE_EVERYWHERE))
    return next(unknown, None)


class Fields:
    """Checks the fields of one row."""

    def __init__(self, path: Path, number: int, name: object) -> None:
        """Name the row ``number`` of the file at ``path``, and the name that it gives itself, if any."""
        self._place = f"{path}: row {number}" + (f" ({name})" if isinstance(name, str) and name else "")

    def only(
        self,
        record: Object,
        field: str,
        known: Collection[str],
        what: str = "field",
        also: Collection[str] = (),
    ) -> None:
        """Refuse an object with a field that nobody reads: a misspelt one would check nothing.

        Fields ``also`` are for people and not told.
        """
        unknown = unknown_field(record, {*known, *also})
        if unknown is not None:
            place = f"{field}.{unknown}" if field else unknown
            raise self.bad(place, f"no such {what}; expected {', '.join(sorted(known))}")

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
        """Return a value that is one of ``choices``, and of its type: ``true`` is no 1."""
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise self.bad(field, f"expected one of {', '.join(map(str, choices))}", value)
        return value

    def flag(self, value: object, field: str) -> bool:
        """Return a claim that is written as 0 or 1, or as false or true."""
        return bool(self.choice(int(value) if isinstance(value, bool) else value, field, (0, 1)))

    def text(self, value: object, field: str) -> str:
        """Return a text that is not empty."""
        if not isinstance(value, str) or not value.strip():
            raise self.bad(field, "expected a text", value)
        return value

    def record(self, value: object, field: str) -> Object:
        """Return a JSON object, which has each field once."""
        if not isinstance(value, dict):
            raise self.bad(field or "the row", "expected an object", value)
        if isinstance(value, RepeatedField):
            raise self.bad(f"{field}.{value.name}" if field else value.name, "expected it once, got it twice")
        return value

    def array(self, value: object, field: str) -> list[Any]:
        """Return a JSON array."""
        if not isinstance(value, list):
            raise self.bad(field, "expected a list", value)
        return value

    def registers(self, value: Object, field: str, operand: Callable[[object, str], Operand]) -> Registers:
        """Return six registers, those left out as after reset; ``operand`` reads a number or an address.

        ``value`` may have other fields.
        """
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

    def bad(self, field: str, expected: str, *got: object) -> BadInput:
        """Return the refusal of a field, with what came in its place if that says more."""
        shown = "".join(
            ", but it is missing" if value is MISSING else f", got {_shown(value)}" for value in got
        )
        return BadInput(printable(f"{self._place}, field {field}: {expected}{shown}"))


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
