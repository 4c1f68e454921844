"""Reading the steps of a vector: which fields each operation takes, and what stands for one left out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from exitlab.events import DebuggerControl, NestedControl
from guest_svc.vectors.fields import LARGEST_32, MISSING, Fields, Object
from guest_svc.vectors.model import ALL_OPS, Operand, Registers, Step

LAST_CPU: Final = 15
_DIAGNOSTIC_PORT: Final = 0x80
_TIMER_VECTOR: Final = 0x20
_REGISTER_FIELDS: Final = ("db", "dr6", "dr7")
COMMON_FIELDS: Final = ("op", "vcpu", "cpl", "class", "pre")
# What an operation has beside these; one that is not here has nothing.
OWN_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "mov_to_dr": ("n", "v"),
    "mov_from_dr": ("n",),
    **dict.fromkeys(("store", "load", "mov_ss", "pop_ss"), ("off", "size")),
    **dict.fromkeys(("in", "out"), ("port", "size")),
    **dict.fromkeys(("intn", "interrupt"), ("vector",)),
    **dict.fromkeys(("rdmsr", "wrmsr"), ("msr", "v")),
    "iret": ("tf",),
    "cr4_de": ("v",),
    "vmexit_to_l1": ("reason",),
    "ept_violation": ("v",),
    "run_on": ("cpu",),
    "set_debugregs": _REGISTER_FIELDS,
    "host_debugger": ("control", "db", "dr7"),
    "host_breakpoints": ("cpu", "db", "dr7"),
    "vmrun": ("controls", "debugctl", "dr6", "dr7"),
}
_CLASSES: Final = {"fast": 1, "light": 2, "heavy": 3}
_DEBUGGER_NAMES: Final = {control.name.lower(): int(control) for control in DebuggerControl if control.name}
_NESTED_NAMES: Final = {control.name.lower(): int(control) for control in NestedControl if control.name}


def read_step(
    fields: Fields,
    value: object,
    field: str,
    base: Step,
    vcpus: int,
    operand: Callable[[object, str], Operand],
) -> Step:
    """Return a step; ``base`` has what stands for what is left out, ``operand`` reads a number or address."""
    return _StepReader(fields, fields.record(value, field), field, operand).step(base, vcpus)


@dataclass(frozen=True, slots=True)
class _StepReader:
    """One step on its way out of its JSON object."""

    fields: Fields
    row: Object
    field: str
    operand: Callable[[object, str], Operand]

    def step(self, base: Step, vcpus: int) -> Step:
        """Return the step."""
        op = self.row.get("op", MISSING)
        if not isinstance(op, str) or op not in ALL_OPS:
            raise self.fields.bad(f"{self.field}.op", f"expected one of {', '.join(sorted(ALL_OPS))}", op)
        self.fields.only(self.row, self.field, (*COMMON_FIELDS, *OWN_FIELDS.get(op, ())), f"field of {op}")
        exit_class = self.row.get("class")
        common = replace(
            base,
            op=op,
            vcpu=self._choice("vcpu", 0, tuple(range(vcpus))),
            cpl=self._choice("cpl", base.cpl, (0, 3)),
            exit_class=0 if exit_class is None else _CLASSES[self._class(exit_class)],
            has_set_up=self._flag("pre", 1),
        )
        return self._with_own_fields(common)

    def _with_own_fields(self, step: Step) -> Step:
        """Return a step with the fields that only its operation has."""
        match step.op:
            case "mov_to_dr" | "mov_from_dr":
                operand = self._operand("v") if step.op == "mov_to_dr" else 0
                return replace(step, register=self._choice("n", MISSING, tuple(range(8))), operand=operand)
            case "store" | "load":
                size_bytes = self._choice("size", 4, (1, 2, 4, 8))
                return replace(step, offset=self._number("off"), size_bytes=size_bytes)
            case "mov_ss" | "pop_ss":
                offset = self._number("off") if "off" in self.row else None
                return replace(step, offset=offset, size_bytes=self._choice("size", 2, (2, 4, 8)))
            case "in" | "out":
                port = self._number("port", _DIAGNOSTIC_PORT, 0xFFFF)
                return replace(step, selector=port, size_bytes=self._choice("size", 1, (1, 2, 4)))
            case "intn" | "interrupt":
                vector = self._number("vector", MISSING if step.op == "intn" else _TIMER_VECTOR, 0xFF)
                return replace(step, selector=vector)
            case "rdmsr" | "wrmsr":
                msr = self._number("msr", MISSING, LARGEST_32)
                return replace(step, selector=msr, operand=self._number("v", 0))
            case "iret" if "tf" in self.row:
                return replace(step, trap_flag=self._flag("tf"))
            case "cr4_de":
                return replace(step, operand=int(self._flag("v")))
            case "vmexit_to_l1":
                return replace(step, selector=self._number("reason", MISSING, LARGEST_32))
            case _:
                return self._with_host_fields(step)

    def _with_host_fields(self, step: Step) -> Step:
        """Return a step with what comes from outside, or goes to a nested guest."""
        match step.op:
            case "set_debugregs":
                return replace(step, registers=self._registers())
            case "host_debugger":
                control = self._bits("control", _DEBUGGER_NAMES)
                return replace(step, selector=control, registers=self._registers())
            case "host_breakpoints":
                return replace(step, selector=self._number("cpu", 0, LAST_CPU), registers=self._registers())
            case "ept_violation":
                return replace(step, operand=self._number("v", 0))
            case "run_on":
                return replace(step, selector=self._number("cpu", MISSING, LAST_CPU))
            case "vmrun":
                controls = self._bits("controls", _NESTED_NAMES)
                debugctl = self._number("debugctl", 0)
                registers = replace(self._registers(), db=(debugctl, 0, 0, 0))  # it is staged like DR0
                return replace(step, operand=controls, registers=registers)
            case _:
                return step

    def _choice(self, name: str, default: object, choices: tuple[object, ...]) -> int:
        value: int = self.fields.choice(self.row.get(name, default), f"{self.field}.{name}", choices)
        return value

    def _class(self, value: object) -> str:
        name: str = self.fields.choice(value, f"{self.field}.class", tuple(_CLASSES))
        return name

    def _flag(self, name: str, default: object = MISSING) -> bool:
        return self.fields.flag(self.row.get(name, default), f"{self.field}.{name}")

    def _number(self, name: str, default: object = MISSING, largest: int = 2**64 - 1) -> int:
        return self.fields.number(self.row.get(name, default), f"{self.field}.{name}", largest)

    def _operand(self, name: str) -> Operand:
        return self.operand(self.row.get(name, MISSING), f"{self.field}.{name}")

    def _bits(self, name: str, names: dict[str, int]) -> int:
        return self.fields.bits(self.row.get(name, MISSING), f"{self.field}.{name}", names)

    def _registers(self) -> Registers:
        return self.fields.registers(self.row, self.field, self.operand)
