"""Vector files: short sequences of debug-register instructions and what real processors answer.

A vector is a JSON object: ``mode`` (long or real), ``cpl``, ``cr4_de``, optional ``rtm``, optional
``init`` (registers set from outside), optional ``on_bd`` (what the guest's handler does after a
general-detect fault: skip or retry), ``steps`` and ``expect``. An address may be ``{"step": k}``,
the instruction of step k, or ``{"data": offset}``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exitlab.debugreg import DR6_RESET, DR7_RESET
from guest_svc.errors import BadInput

SHIPPED: Final = Path(__file__).with_name("debugreg.json")

MOV_OPS: Final = frozenset({"mov_to_dr", "mov_from_dr"})
PLAIN_OPS: Final = frozenset({"nop", "cpuid", "out", "ud2", "store", "load"})
# What the model does not have yet: TF, RF, the shadow of MOV SS, INT1 and INT n.
MISSING_OPS: Final = frozenset(
    {"popf_tf", "popf_clr", "mov_ss", "pop_ss", "sti", "int1", "int3", "intn", "iret"}
)
_ALL_OPS: Final = MOV_OPS | PLAIN_OPS | MISSING_OPS
_WHERES: Final = frozenset({"pre", "insn", "post", "end"})
_SIZES: Final = frozenset({1, 2, 4, 8})
_LARGEST: Final = 2**64 - 1
_LARGEST_FILE_BYTES: Final = 1 << 26
_STEP_DIGITS: Final = 10  # no vector has that many steps; Python refuses to read far longer numbers
_EXCEPTION_FIELDS: Final = 6


@dataclass(frozen=True, slots=True)
class Symbol:
    """An address that the layout decides: a step's instruction, or an offset into the data."""

    kind: str
    number: int


Operand = int | Symbol


@dataclass(frozen=True, slots=True)
class Registers:
    """DR0 to DR3, DR6 and DR7."""

    db: tuple[Operand, ...] = (0, 0, 0, 0)
    dr6: int = DR6_RESET
    dr7: int = DR7_RESET


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an operation with its register, operand, offset or size where it has one."""

    op: str
    register: int = 0
    operand: Operand = 0
    offset: int = 0
    size_bytes: int = 4


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception: vector, error code, where the saved RIP points, and DR6 and DR7 after."""

    vector: int
    error_code: int | None
    step: int
    where: str
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a guest sees of a vector: reads by step (``None`` where it faulted), exceptions, registers."""

    reads: dict[int, int | None]
    raised: tuple[Raised, ...]
    registers: Registers


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector."""

    name: str
    is_real_mode: bool
    cpl: int
    has_de: bool
    has_rtm: bool
    retries_general_detect: bool
    init: Registers | None
    steps: tuple[Step, ...]
    expect: Seen

    @property
    def is_out(self) -> bool:
        """Whether the vector needs what the model does not have."""
        return any(step.op in MISSING_OPS for step in self.steps)


def read_vectors(path: Path) -> list[Vector]:
    """Return the vectors of a file.

    Raises:
        BadInput: It is no vector file; the message names the row and the field.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)  # what may be a device has no size to ask for
        if len(data) > _LARGEST_FILE_BYTES:
            raise BadInput(f"{path}: not a vector file: larger than {_LARGEST_FILE_BYTES:,} bytes")
        rows = json.loads(data.decode())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not a vector file: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{path}: not a vector file: expected a list of vectors")
    return [_Row(path, number, row).vector() for number, row in enumerate(rows)]


class _Row:
    """One row of a vector file on its way to a Vector; it names itself in every refusal."""

    def __init__(self, path: Path, number: int, row: object) -> None:
        self._place = f"{path}: row {number}"
        self._row = self._object(row, "")
        if isinstance(self._row.get("id"), str):
            self._place += f" ({self._row['id']})"
        self._step_count = 0

    def vector(self) -> Vector:
        row = self._row
        name = row.get("id")
        if not isinstance(name, str):
            raise self._bad("id", "expected a name", name)
        steps = self._list(row.get("steps"), "steps")
        self._step_count = len(steps)
        init = row.get("init")
        return Vector(
            name=name,
            is_real_mode=self._choice(row.get("mode"), "mode", ("long", "real")) == "real",
            cpl=self._choice(row.get("cpl", 0), "cpl", (0, 3)),
            has_de=bool(self._choice(row.get("cr4_de", 0), "cr4_de", (0, 1))),
            has_rtm=bool(self._choice(row.get("rtm", 0), "rtm", (0, 1))),
            retries_general_detect=self._choice(row.get("on_bd", "skip"), "on_bd", ("skip", "retry"))
            == "retry",
            init=None if init is None else self._registers(self._object(init, "init"), "init"),
            steps=tuple(self._step(step, f"steps[{k}]") for k, step in enumerate(steps)),
            expect=self._expect(self._object(row.get("expect"), "expect")),
        )

    def _step(self, value: object, field: str) -> Step:
        step = self._object(value, field)
        op = step.get("op")
        if not isinstance(op, str) or op not in _ALL_OPS:
            raise self._bad(f"{field}.op", f"expected one of {', '.join(sorted(_ALL_OPS))}", op)
        if op in MOV_OPS:
            register = self._choice(step.get("n"), f"{field}.n", tuple(range(8)))
            operand = self._operand(step.get("v"), f"{field}.v") if op == "mov_to_dr" else 0
            return Step(op, register=register, operand=operand)
        if op in {"store", "load"}:
            size = self._choice(step.get("size", 4), f"{field}.size", tuple(sorted(_SIZES)))
            return Step(op, offset=self._number(step.get("off"), f"{field}.off"), size_bytes=size)
        return Step(op)

    def _expect(self, expect: dict[str, Any]) -> Seen:
        reads: dict[int, int | None] = {}
        for key, value in self._object(expect.get("reads", {}), "expect.reads").items():
            field = f"expect.reads.{key}"
            step = self._step_number(int(key) if key.isdecimal() and len(key) < _STEP_DIGITS else key, field)
            reads[step] = None if value is None else self._number(value, field)
        raised = self._list(expect.get("ev", []), "expect.ev")
        return Seen(
            reads=reads,
            raised=tuple(self._raised(event, f"expect.ev[{k}]") for k, event in enumerate(raised)),
            registers=self._registers(expect, "expect"),
        )

    def _raised(self, value: object, field: str) -> Raised:
        event = self._list(value, field)
        if len(event) != _EXCEPTION_FIELDS or event[0] != "exc":
            raise self._bad(field, 'expected ["exc", vector, error code, [step, where], DR6, DR7]', value)
        place = self._list(event[3], f"{field}[3]")
        if len(place) != len(("step", "where")):
            raise self._bad(f"{field}[3]", "expected [step, where]", place)
        return Raised(
            vector=self._number(event[1], f"{field}[1]"),
            error_code=None if event[2] is None else self._number(event[2], f"{field}[2]"),
            step=self._number(place[0], f"{field}[3][0]"),
            where=self._choice(place[1], f"{field}[3][1]", tuple(sorted(_WHERES))),
            dr6=self._number(event[4], f"{field}[4]"),
            dr7=self._number(event[5], f"{field}[5]"),
        )

    def _registers(self, value: dict[str, Any], field: str) -> Registers:
        db = self._list(value.get("db", [0, 0, 0, 0]), f"{field}.db")
        if len(db) != len(Registers().db):
            raise self._bad(f"{field}.db", "expected four registers", db)
        return Registers(
            db=tuple(self._operand(slot, f"{field}.db[{k}]") for k, slot in enumerate(db)),
            dr6=self._number(value.get("dr6", DR6_RESET), f"{field}.dr6"),
            dr7=self._number(value.get("dr7", DR7_RESET), f"{field}.dr7"),
        )

    def _operand(self, value: object, field: str) -> Operand:
        if not isinstance(value, dict):
            return self._number(value, field)
        if list(value) == ["step"]:
            return Symbol("step", self._step_number(value["step"], f"{field}.step"))
        if list(value) == ["data"]:
            return Symbol("data", self._number(value["data"], f"{field}.data"))
        raise self._bad(field, 'expected a number, {"step": k} or {"data": offset}', value)

    def _step_number(self, value: object, field: str) -> int:
        if not isinstance(value, int) or not 0 <= value < self._step_count:
            raise self._bad(field, f"expected a step, 0 to {self._step_count - 1}", value)
        return value

    def _number(self, value: object, field: str) -> int:
        """Return a number that is written as one or as a string such as ``0x400``."""
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= _LARGEST:
            raise self._bad(field, "expected a number of at most 64 bits", value)
        return number

    def _choice(self, value: Any, field: str, choices: tuple[Any, ...]) -> Any:
        if value not in choices:
            raise self._bad(field, f"expected one of {', '.join(map(str, choices))}", value)
        return value

    def _object(self, value: object, field: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._bad(field or "the row", "expected an object", value)
        return value

    def _list(self, value: object, field: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._bad(field, "expected a list", value)
        return value

    def _bad(self, field: str, expected: str, got: object) -> BadInput:
        return BadInput(f"{self._place}, field {field}: {expected}, got {json.dumps(got)}")
