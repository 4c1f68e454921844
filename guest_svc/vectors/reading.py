"""Reading vector files; ``docs/vectors.md`` describes them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from exitlab.exit_reasons import HANDLER_NAMES
from exitlab.words import printable
from guest_svc.errors import BadInput
from guest_svc.vectors.fields import (
    FOR_PEOPLE,
    LARGEST_32,
    MISSING,
    Fields,
    Object,
    RepeatedField,
    json_object,
    unknown_field,
)
from guest_svc.vectors.model import (
    INSTRUCTIONS,
    LaneName,
    NamedLanes,
    Operand,
    Raised,
    Registers,
    Seen,
    Step,
    Symbol,
    Vector,
)
from guest_svc.vectors.steps import LAST_CPU, read_step

VENDORS: Final = ("vmx", "svm")
SIGNAL: Final = "SIGNAL"  # in a bill, a heavy exit that has no reason
# What a bill may state beside exits.
BILL_COUNTS: Final = ("windows", "dr_reads", "dr_writes", "vmreads", "vmwrites", "latent_hazards", "leaks")
ROW_FIELDS: Final = frozenset(
    {"id", "mode", "cpl", "cr4_de", "rtm", "bus_lock", "init", "on_bd", "cpus", "vendor", "steps", "expect"}
    | {"differs", "bill", "debug_exits", "out"}
)
REGISTER_FIELDS: Final = frozenset({"db", "dr6", "dr7"})
EXPECT_FIELDS: Final = REGISTER_FIELDS | {"ev", "reads", "registers", "vcpus"}
_FILE_FIELDS: Final = frozenset({"source", "vectors"})
_WHERES: Final = ("end", "handler", "insn", "post", "pre")
_EXCEPTION_FIELDS: Final = 6
_LARGEST_FILE_BYTES: Final = 1 << 26
_NUMBER_DIGITS: Final = 10  # no vector has that many steps; Python refuses to read far longer numbers
_Value = TypeVar("_Value")


def read_vectors(path: Path) -> list[Vector]:
    """Return the vectors of a file.

    Raises:
        BadInput: It is no vector file; the message names the row and the field.

    """
    rows = _rows(path)
    vectors: dict[str, Vector] = {}
    for number, row in enumerate(rows):
        vector = _Row(path, number, row).vector()
        if vector.name in vectors:
            said = f"expected a name of its own, but row {vectors[vector.name].row} has it too"
            raise Fields(path, number, vector.name).bad("id", said)
        vectors[vector.name] = vector
    return list(vectors.values())


def _rows(path: Path) -> list[object]:
    """Return the rows of a file, not yet read."""
    name = printable(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)  # what may be a device has no size to ask for
        if len(data) > _LARGEST_FILE_BYTES:
            raise BadInput(f"{name}: not a vector file: larger than {_LARGEST_FILE_BYTES:,} bytes")
        if not data:
            raise BadInput(f"{name}: not a vector file: it is empty")
        content = json.loads(data.decode(), object_pairs_hook=json_object)
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name}: not a vector file: {error}") from None
    rows = content
    if isinstance(content, dict):
        rows = content.get("vectors")
        if not isinstance(content.get("source"), str):
            raise BadInput(f"{name}: not a vector file: an object of vectors names its source")
        if isinstance(content, RepeatedField):
            raise BadInput(f"{name}: field {printable(content.name)}: expected it once, got it twice")
        unknown = unknown_field(content, _FILE_FIELDS | FOR_PEOPLE)
        if unknown is not None:
            raise BadInput(f"{name}: field {printable(unknown)}: no such field; expected source, vectors")
    if not isinstance(rows, list) or not rows:
        raise BadInput(
            f"{name}: not a vector file: expected a list of vectors, or an object that has one as vectors"
        )
    return rows


class _Row:
    """One row of a vector file on its way to a Vector."""

    def __init__(self, path: Path, number: int, row: object) -> None:
        self._path, self._number = path, number
        self._fields = Fields(path, number, row.get("id") if isinstance(row, dict) else None)
        self._row = self._fields.record(row, "")
        self._are_instructions: list[bool] = []
        self._named_lanes: list[NamedLanes] = []
        self._vcpus = 1

    def vector(self) -> Vector:
        """Return the row as a vector."""
        row, fields = self._row, self._fields
        name = row.get("id", MISSING)
        if not isinstance(name, str) or not name.strip():
            raise fields.bad("id", "expected a name", name)
        fields.only(row, "", ROW_FIELDS, also=FOR_PEOPLE)
        if "out" in row:
            return Vector(name, out=fields.text(row["out"], "out"), path=self._path, row=self._number)
        steps = fields.array(row.get("steps", MISSING), "steps")
        self._are_instructions = [
            isinstance(step, dict) and step.get("op") in tuple(INSTRUCTIONS) for step in steps
        ]
        is_real_mode = fields.choice(row.get("mode", MISSING), "mode", ("long", "real")) == "real"
        cpl = fields.choice(row.get("cpl", 0), "cpl", (0, 3))
        cpus = self._physical_cpus()
        self._vcpus = len(cpus)
        init, vendor = row.get("init"), row.get("vendor")
        expect = fields.record(row.get("expect", MISSING), "expect")
        return Vector(
            name=name,
            is_real_mode=is_real_mode,
            has_de=fields.flag(row.get("cr4_de", 0), "cr4_de"),
            has_rtm=fields.flag(row.get("rtm", 0), "rtm"),
            has_bus_lock=fields.flag(row.get("bus_lock", 0), "bus_lock"),
            retries_general_detect=fields.choice(row.get("on_bd", "skip"), "on_bd", ("skip", "retry"))
            == "retry",
            init=None if init is None else self._registers(init, "init"),
            steps=tuple(
                read_step(fields, step, f"steps[{k}]", Step("", cpl=cpl), len(cpus), self._operand)
                for k, step in enumerate(steps)
            ),
            expect=self._seen(expect, "expect"),
            vendor=None if vendor is None else fields.choice(vendor, "vendor", VENDORS),
            physical_cpus=cpus,
            differs=self._by_lane("differs", lambda value, field: self._differs(expect, value, field)),
            bills=self._by_lane("bill", self._bill),
            debug_exits=self._by_lane("debug_exits", self._debug_exits),
            named_lanes=tuple(self._named_lanes),
            path=self._path,
            row=self._number,
        )

    def _physical_cpus(self) -> tuple[int, ...]:
        cpus = self._fields.array(self._row.get("cpus", [0]), "cpus")
        if not cpus:
            raise self._fields.bad("cpus", "expected a physical CPU for each vCPU", cpus)
        numbers = tuple(range(LAST_CPU + 1))
        return tuple(self._fields.choice(cpu, f"cpus[{k}]", numbers) for k, cpu in enumerate(cpus))

    def _by_lane(self, name: str, read: Callable[[Any, str], _Value]) -> dict[LaneName, _Value]:
        """Return what a field says of lanes: its keys are policies, each with or without a vendor."""
        found: dict[LaneName, _Value] = {}
        for key, value in self._fields.record(self._row.get(name, {}), name).items():
            field = f"{name}.{key}"
            answer = read(value, field)
            for lane in (lane for named in key.split(",") for lane in self._lanes(named.strip(), key, field)):
                if lane in found:
                    raise self._fields.bad(field, "expected each lane once", "/".join(lane))
                found[lane] = answer
        return found

    def _lanes(self, named: str, key: str, field: str) -> list[LaneName]:
        policy, slash, vendor = named.partition("/")
        if not policy or (slash and vendor not in VENDORS):
            raise self._fields.bad(field, "expected policies, each with /vmx, /svm or neither", key)
        only = self._row.get("vendor")
        if slash and only not in (None, vendor):
            raise self._fields.bad(field, f"expected lanes of {only}, the row's vendor", named)
        self._named_lanes.append(NamedLanes(field, policy, vendor if slash else None))
        return [(policy, vendor)] if slash else [(policy, known) for known in VENDORS]

    def _differs(self, expect: Object, value: object, field: str) -> Seen:
        return self._seen(expect | self._fields.record(value, field), field)

    def _bill(self, value: object, field: str) -> dict[str, int]:
        bill = self._fields.record(value, field)
        for name in bill:
            if name not in HANDLER_NAMES and name not in (SIGNAL, *BILL_COUNTS):
                raise self._fields.bad(field, f"expected exit reasons or {', '.join(BILL_COUNTS)}", name)
        return {name: self._fields.number(count, f"{field}.{name}") for name, count in bill.items()}

    def _debug_exits(self, value: object, field: str) -> tuple[tuple[int, int, int], ...]:
        exits = []
        for k, content in enumerate(self._fields.array(value, field)):
            place = f"{field}[{k}]"
            told = self._fields.array(content, place)
            if len(told) != len(("exception", "dr6", "dr7")):
                raise self._fields.bad(place, "expected [exception, DR6, DR7]", told)
            vector, dr6, dr7 = (
                self._fields.number(part, f"{place}[{at}]", LARGEST_32) for at, part in enumerate(told)
            )
            exits.append((vector, dr6, dr7))
        return tuple(exits)

    def _seen(self, expect: Object, field: str) -> Seen:
        fields = self._fields
        fields.only(expect, field, EXPECT_FIELDS)
        steps, vcpus = (len(self._are_instructions) - 1, "step"), (self._vcpus - 1, "vCPU")
        reads: dict[int, int | None] = {}
        for number, value, place in self._numbered(expect, field, "reads", 0, *steps):
            reads[number] = None if value is None else fields.number(value, place)
        digests: dict[int, Registers | int] = {}
        for number, value, place in self._numbered(expect, field, "registers", 0, *steps):
            digests[number] = self._registers(value, place)
        others: dict[int, Registers] = {}
        for number, value, place in self._numbered(expect, field, "vcpus", 1, *vcpus):
            others[number] = self._registers(value, place)
        raised = fields.array(expect.get("ev", []), f"{field}.ev")
        return Seen(
            reads=reads,
            raised=tuple(self._raised(event, f"{field}.ev[{k}]") for k, event in enumerate(raised)),
            registers=fields.registers(expect, field, self._operand),
            digests=digests,
            others=others,
        )

    def _numbered(
        self, expect: Object, field: str, name: str, first: int, last: int, what: str
    ) -> Iterator[tuple[int, Any, str]]:
        """Yield number, value and place of what ``expect`` says of steps or vCPUs, each once."""
        found: set[int] = set()
        for key, value in self._fields.record(expect.get(name, {}), f"{field}.{name}").items():
            place = f"{field}.{name}.{key}"
            number = int(key) if key.isdecimal() and len(key) < _NUMBER_DIGITS else -1
            if not first <= number <= last:
                raise self._fields.bad(place, f"expected a {what}, {first} to {last}", key)
            if number in found:
                raise self._fields.bad(place, f"expected each {what} once", key)
            found.add(number)
            yield number, value, place

    def _raised(self, value: object, field: str) -> Raised:
        fields = self._fields
        event = fields.array(value, field)
        if len(event) != _EXCEPTION_FIELDS or event[0] not in ("exc", "vmexit"):
            expected = 'expected ["exc" or "vmexit", vector, error code, [step, where], DR6, DR7]'
            raise fields.bad(field, expected, value)
        place = fields.array(event[3], f"{field}[3]")
        if len(place) != len(("step", "where")):
            raise fields.bad(f"{field}[3]", "expected [step, where]", place)
        is_exception = event[0] == "exc"
        for at in () if is_exception else (1, 2):
            if event[at] is not None:
                raise fields.bad(f"{field}[{at}]", "expected null, for an exit has none", event[at])
        return Raised(
            kind=event[0],
            vector=fields.number(event[1], f"{field}[1]") if is_exception else None,
            error_code=None if event[2] is None else fields.number(event[2], f"{field}[2]"),
            step=self._place(place[0], f"{field}[3][0]"),
            where=fields.choice(place[1], f"{field}[3][1]", _WHERES),
            dr6=fields.number(event[4], f"{field}[4]"),
            dr7=fields.number(event[5], f"{field}[5]"),
        )

    def _registers(self, value: object, field: str) -> Registers:
        registers = self._fields.record(value, field)
        self._fields.only(registers, field, REGISTER_FIELDS)
        return self._fields.registers(registers, field, self._operand)

    def _operand(self, value: object, field: str) -> Operand:
        if not isinstance(value, dict):
            return self._fields.number(value, field)
        value = self._fields.record(value, field)
        if list(value) == ["step"]:
            step = self._step_number(value["step"], f"{field}.step")
            if not self._are_instructions[step]:
                raise self._fields.bad(f"{field}.step", "expected a step that is an instruction", step)
            return Symbol("step", step)
        if list(value) == ["data"]:
            return Symbol("data", self._fields.number(value["data"], f"{field}.data"))
        raise self._fields.bad(field, 'expected a number, {"step": k} or {"data": offset}', value)

    def _step_number(self, value: object, field: str) -> int:
        return self._place(value, field, len(self._are_instructions) - 1)

    def _place(self, value: object, field: str, last: int | None = None) -> int:
        """Return the number of a step; one past the last is the end."""
        last = len(self._are_instructions) if last is None else last
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
            raise self._fields.bad(field, f"expected a step, 0 to {last}", value)
        return value
