"""Policy tables in words, for people.

A table has a row for every state, up to some hundred a moment. Rows that do the same are merged:
where an answer does not depend on an input, the input shows as ``any``.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from exitlab.exit_reasons import reason_name
from exitlab.v1 import policy_pb2
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.vocabulary import Check, Control, Debugger, RegisterClass

YES_NO: Final = ("no", "yes")
VALUE_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "debugger": tuple(value.name for value in Debugger),
    "check": tuple(value.name for value in Check),
    "register_class": tuple(value.name for value in RegisterClass),
    "control": tuple(value.name for value in Control),
}
EXCEPTIONS: Final = {1: "#DB", 3: "#BP", 6: "#UD", 13: "#GP", 17: "#AC", 18: "#MC"}
OPERATION_WORDS: Final = ("dr_reads", "dr_writes", "vmreads", "vmwrites", "msr_accesses")

Answer = tuple[int, int]  # micro-actions as bits, next memory
Row = tuple[frozenset[int], ...]  # the values of each input that a row of the printed table stands for


def constants(table: policy_pb2.PolicyTable) -> list[tuple[str, str]]:
    """Return what a policy has beside its moments, as names and texts."""
    exceptions = [EXCEPTIONS.get(n, str(n)) for n in range(32) if table.intercepted_exceptions >> n & 1]
    classes = [_class_rule(rule, table.vendor) for rule in table.classes]
    costs = [f"{cost.action} {_operations(cost.operations)}" for cost in table.costs]
    cluster = f"{table.cluster_gap_cycles} cycles, {table.cluster_accesses or 'any number of'} accesses"
    lines = [
        ("source", table.source),
        ("claims to be correct", YES_NO[table.claims_correct]),
        ("memory", ", ".join(table.memories) + f" (initially {table.memories[0]})"),
        ("MOV DR intercepted at first", YES_NO[table.initially_armed]),
        ("order of checks", ", ".join(table.check_order)),
        ("intercepted exceptions", ", ".join(exceptions) or "none"),
        ("exits that are not light", ", ".join(classes) or "as the VM profile says"),
        ("operations of a MOV DR exit", _operations(table.trap_operations)),
        ("own costs of actions", ", ".join(costs)),
        ("emulated DR6", f"writable {table.emulated_dr6_writable:#x}, fixed {table.emulated_dr6_fixed:#x}"),
        ("emulated DR7", f"writable {table.emulated_dr7_writable:#x}"),
        ("quirks", ", ".join(table.quirks)),
        ("clusters of accesses", cluster if table.cluster_gap_cycles else ""),
        ("never intercepted", _accesses(table.unintercepted_accesses)),
        ("refuses SET_DEBUGREGS", "yes" if table.refuses_set_debugregs else ""),
    ]
    lines += [(f"declares {rule.rule}", f"{rule.text} [{rule.source}]") for rule in table.deviations]
    return [line for line in lines if line[1]]


def moments(table: policy_pb2.PolicyTable) -> Iterator[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Return name, header and merged rows of each moment at which the policy acts."""
    for moment in table.moments:
        names = [
            _value_names(table, name, size) for name, size in zip(moment.inputs, moment.sizes, strict=True)
        ]
        rows: list[Sequence[str]] = [
            (
                *(_values(row[i], names[i]) for i in range(len(names))),
                " ".join(word for bit, word in enumerate(table.actions) if actions >> bit & 1) or "-",
                "keep" if memory == KEEP_MEMORY else table.memories[memory],
            )
            for row, (actions, memory) in merged(moment)
        ]
        yield _moment_name(moment.moment), (*moment.inputs, "actions", "next memory"), rows


def idle_moments(table: policy_pb2.PolicyTable) -> list[str]:
    """Return the names of the moments at which the policy does nothing."""
    acts = {moment.moment for moment in table.moments}
    return [_moment_name(number) for number in policy_pb2.Moment.values() if number and number not in acts]


def merged(moment: policy_pb2.MomentTable) -> list[tuple[Row, Answer]]:
    """Return the rows of a moment, merged wherever they differ in one input and answer the same.

    Every state of the moment is in exactly one of the rows.
    """
    states = itertools.product(*(range(size) for size in moment.sizes))
    answers = zip(moment.actions, moment.next_memory, strict=True)
    rows: list[tuple[Row, Answer]] = [
        (tuple(frozenset({value}) for value in state), answer)
        for state, answer in zip(states, answers, strict=True)
    ]
    for _ in moment.sizes:  # merging by one input can make room for another
        for i in range(len(moment.sizes)):
            groups: dict[tuple[Row, Row, Answer], frozenset[int]] = {}
            for row, answer in rows:
                key = (row[:i], row[i + 1 :], answer)
                groups[key] = groups.get(key, frozenset()) | row[i]
            rows = [((*before, values, *after), answer) for (before, after, answer), values in groups.items()]
    return rows


def _moment_name(number: int) -> str:
    return policy_pb2.Moment.Name(policy_pb2.Moment.ValueType(number)).removeprefix("MOMENT_")


def _value_names(table: policy_pb2.PolicyTable, name: str, size: int) -> Sequence[str]:
    if name == "memory":
        return list(table.memories)
    return VALUE_NAMES.get(name, YES_NO if size == len(YES_NO) else [str(value) for value in range(size)])


def _values(values: frozenset[int], names: Sequence[str]) -> str:
    if len(values) == len(names):
        return "any"
    return "/".join(names[value] for value in sorted(values))


def _accesses(mask: int) -> str:
    """Return the accesses of the contract's mask: bits 0 to 7 reads, 8 to 15 writes."""
    accesses = [f"{word} DR{register}" for word in ("read", "write") for register in range(8)]
    return ", ".join(access for bit, access in enumerate(accesses) if mask >> bit & 1)


def _operations(counts: policy_pb2.OperationCounts) -> str:
    said = [f"{getattr(counts, word)} {word}" for word in OPERATION_WORDS if getattr(counts, word)]
    return " + ".join(said) or "none"


def _class_rule(rule: policy_pb2.ClassRule, vendor: int) -> str:
    words = [reason_name(vendor, rule.reason)]
    if rule.sub_reason:
        words.append(policy_pb2.SubReason.Name(rule.sub_reason).removeprefix("SUB_REASON_"))
    return (
        f"{' '.join(words)}: {policy_pb2.ExitClass.Name(rule.exit_class).removeprefix('EXIT_CLASS_').lower()}"
    )
