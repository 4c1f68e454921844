"""What a policy table says beside its answers, field by field.

The fields are those that the contract has, under its own names: a new one shows up by itself, as what
its type says (bit masks are fixed-width numbers there). Words are given only where a plain value would not
tell much. What is empty, zero or unset is not shown; a yes or no always is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from exitlab.exit_reasons import reason_name
from exitlab.v1 import policy_pb2
from hypervisor_svc.show.conditions import YES_NO

HEADING: Final = ("name", "vendor", "summary")
ANSWERS: Final = ("actions", "moments")
"""The fields that are the answers; ``actions`` only numbers their bits."""

EXCEPTIONS: Final = {1: "#DB", 3: "#BP", 6: "#UD", 13: "#GP", 17: "#AC", 18: "#MC"}
_NONE: Final = "none"


def constants(table: policy_pb2.PolicyTable) -> list[tuple[str, str]]:
    """Return the names and texts of the constants that say something."""
    rows = []
    for field in _constant_fields(table):
        words = _words(table, field)
        # A declared deviation is a sentence with its source: a line each.
        joined = words if field.name == "deviations" else [", ".join(words)]
        rows += [(field.name, text) for text in joined if text]
    return rows


def changed_fields(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> list[str]:
    """Return the names of the constants in which two tables differ."""
    names = [field.name for field in _constant_fields(first)]
    return [name for name in names if getattr(first, name) != getattr(second, name)]


def alike_fields(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> list[str]:
    """Return the names of the constants that say the same in two tables, and say something."""
    changed = changed_fields(first, second)
    return list(dict.fromkeys(name for name, _ in constants(first) if name not in changed))


def changes(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> Iterator[tuple[str, str]]:
    """Return the names of the constants in which two tables differ, with what goes and what comes.

    Several lines may have one name.
    """
    for name in changed_fields(first, second):
        field = first.DESCRIPTOR.fields_by_name[name]
        before, after = _words(first, field), _words(second, field)
        is_reordered = Counter(before) == Counter(after)
        if is_reordered or not (_is_repeated(field) or name in _WORDS):
            bits = _changed_bits(getattr(first, name), getattr(second, name)) if _is_mask(field) else ""
            yield name, f"{', '.join(before) or _NONE} -> {', '.join(after) or _NONE}{bits}"
            continue
        if name == "deviations":
            yield from ((name, text) for text in _changed_deviations(first, second))
            continue
        gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
        yield name, ", ".join([f"-{word}" for word in gone] + [f"+{word}" for word in new])


def _changed_deviations(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> Iterator[str]:
    """Return the deviations that go and come; with their sources if these are all that differs."""
    for sign, here, there in (("-", first, second), ("+", second, first)):
        others = [(rule.rule, rule.text) for rule in there.deviations]
        for rule in here.deviations:
            if rule not in there.deviations:
                source = f" [{rule.source}]" if (rule.rule, rule.text) in others else ""
                yield f"{sign}{rule.rule}: {rule.text}{source}"


def _constant_fields(table: policy_pb2.PolicyTable) -> list[Any]:
    return [field for field in table.DESCRIPTOR.fields if field.name not in (*HEADING, *ANSWERS)]


def _is_repeated(field: Any) -> bool:
    return bool(field.default_value == [])  # older releases of protobuf cannot say it


def _is_mask(field: Any) -> bool:
    return field.type in (FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_FIXED64)


def _words(table: policy_pb2.PolicyTable, field: Any) -> list[str]:
    """Return what a field says, one text for each of its elements; none if it says nothing."""
    value: Any = getattr(table, field.name)
    if field.name in _WORDS:
        return _WORDS[field.name](value)
    if field.name == "classes":
        return [_class_rule(rule, table.vendor) for rule in value]
    if field.name == "deviations":
        return [f"{rule.rule}: {rule.text} [{rule.source}]" for rule in value]
    return _plain(value, field)


def _plain(value: Any, field: Any) -> list[str]:
    """Return a field's elements by their type alone."""
    if _is_repeated(field):
        return [_element(one, field) for one in value]
    says_something = isinstance(value, bool) or field.message_type is not None or value
    return [word for word in [_element(value, field)] if word] if says_something else []


def _element(value: Any, field: Any) -> str:
    if isinstance(value, bool):
        return YES_NO[value]
    if isinstance(value, policy_pb2.OperationCounts):
        return " + ".join(f"{count} {counted.name}" for counted, count in value.ListFields())
    if isinstance(value, policy_pb2.ActionCost):
        return f"{value.action} {_element(value.operations, None) or _NONE}"
    if isinstance(value, Message):
        parts = [(inner.name, _plain(getattr(value, inner.name), inner)) for inner in value.DESCRIPTOR.fields]
        return " ".join(f"{name}={'/'.join(words)}" for name, words in parts if words)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else str(known.name)
    return f"{value:#x}" if _is_mask(field) else str(value)


def _changed_bits(before: int, after: int) -> str:
    """Return the bits that a mask loses and gains."""
    said = [
        f"{sign}bit {bit}"
        for sign, changed in (("-", before & ~after), ("+", after & ~before))
        for bit in range(changed.bit_length())
        if changed >> bit & 1
    ]
    return f" ({', '.join(said)})"


def _memories(names: Iterable[str]) -> list[str]:
    return [f"{name} (initial)" if place == 0 else name for place, name in enumerate(names)]


def _exceptions(mask: int) -> list[str]:
    return [EXCEPTIONS.get(n, f"vector {n}") for n in range(32) if mask >> n & 1]


def _accesses(mask: int) -> list[str]:
    """Return the accesses of the contract's mask: bits 0 to 7 reads, 8 to 15 writes."""
    accesses = [f"{word} DR{register}" for word in ("read", "write") for register in range(8)]
    known = [access for bit, access in enumerate(accesses) if mask >> bit & 1]
    return known + [f"bit {bit}" for bit in range(len(accesses), mask.bit_length()) if mask >> bit & 1]


_WORDS: Final[dict[str, Callable[[Any], list[str]]]] = {
    "memories": _memories,
    "intercepted_exceptions": _exceptions,
    "unintercepted_accesses": _accesses,
}


def _class_rule(rule: policy_pb2.ClassRule, vendor: int) -> str:
    words = [reason_name(vendor, rule.reason)]
    if rule.sub_reason:
        words.append(policy_pb2.SubReason.Name(rule.sub_reason).removeprefix("SUB_REASON_"))
    exit_class = policy_pb2.ExitClass.Name(rule.exit_class).removeprefix("EXIT_CLASS_").lower()
    return f"{' '.join(words)}: {exit_class}"
