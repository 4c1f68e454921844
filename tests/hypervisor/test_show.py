"""Policy tables in words, side by side, and as a drawing."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitlab.v1 import policy_pb2
from hypervisor_svc import policies
from hypervisor_svc.engine import vocabulary
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine.vocabulary import INPUT_SIZES, Action, Input, Moment
from hypervisor_svc.show import diff, fields
from hypervisor_svc.show.conditions import Space, Term, cubes
from hypervisor_svc.show.dot import dot_text
from hypervisor_svc.show.moments import Answer, joint_space, moment_answers
from hypervisor_svc.show.output import shown
from hypervisor_svc.show.text import heading as heading_of
from hypervisor_svc.show.text import policy_text

VENDORS = (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM)
ACTIONS = tuple(action.name for action in Action)
Row = tuple[Sequence[str], str | None]  # actions and the next memory
Rows = Callable[[Mapping[str, int]], Row]


def every_table() -> Iterator[policy_pb2.PolicyTable]:
    """Return the tables of all policies on all their vendors."""
    for name in policies.policy_names():
        for vendor in policies.policy_vendors(name):
            yield policies.policy_table(name, vendor, policy_pb2.CpuFeatures())


TABLES = list(every_table())
PAIRS = [
    *((a, b) for a, b in itertools.pairwise(TABLES)),
    *((b, a) for a in TABLES if a.name == policies.DEFAULT_POLICY for b in TABLES if b.vendor == a.vendor),
]


def rows(
    moment: str, inputs: Mapping[str, int], answer: Rows, memories: Sequence[str] = ("A",)
) -> policy_pb2.MomentTable:
    """Return the rows of a moment from a function of the values of its inputs."""
    found = policy_pb2.MomentTable(
        moment=policy_pb2.Moment.Value(f"MOMENT_{moment}"), inputs=inputs, sizes=inputs.values()
    )
    next_memory = bytearray()
    for state in itertools.product(*map(range, inputs.values())):
        actions, memory = answer(dict(zip(inputs, state, strict=True)))
        found.actions.append(sum(1 << ACTIONS.index(action) for action in actions))
        next_memory.append(KEEP_MEMORY if memory is None else memories.index(memory))
    found.next_memory = bytes(next_memory)
    return found


def a_table(*moments: policy_pb2.MomentTable, **fields: Any) -> policy_pb2.PolicyTable:
    """Return a table with one memory, A, unless the fields say otherwise."""
    said = {"name": "a", "vendor": policy_pb2.VENDOR_VMX, "memories": ["A"], **fields}
    return policy_pb2.PolicyTable(actions=ACTIONS, moments=moments, **said)


def section(text: str, moment: str) -> list[str]:
    """Return the rows of a moment in a text, each with single spaces."""
    (found,) = re.findall(rf"^{moment}\n((?:  .*\n)+)", text, re.MULTILINE)
    return [" ".join(line.split()) for line in found.splitlines()]


sizes_and_labels = st.lists(st.integers(1, 4), max_size=4).flatmap(
    lambda sizes: st.tuples(
        st.just(sizes),
        st.lists(
            st.sampled_from([None, "x", "y"]),
            min_size=len(list(_states(sizes))),
            max_size=len(list(_states(sizes))),
        ),
    )
)


def _states(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, sizes))


@given(sizes_and_labels)
def test_conditions_say_what_the_rows_say(given_case: tuple[list[int], list[str | None]]) -> None:
    """Each state is in cubes of its own label alone; no cube can be wider, and none is needless."""
    sizes, labels = given_case
    by_state = dict(zip(_states(sizes), labels, strict=True))
    found = cubes(sizes, labels)
    held = [(set(itertools.product(*cube)), label) for cube, label in found]
    for state, label in by_state.items():
        assert {said for states, said in held if state in states} == ({label} - {None})
    for cube, label in found:
        for i, size in enumerate(sizes):
            for value in set(range(size)) - set(cube[i]):
                wider = itertools.product(*cube[:i], (value,), *cube[i + 1 :])
                assert any(by_state[state] != label for state in wider)
    for k, (states, label) in enumerate(held):
        others = [more for j, (more, said) in enumerate(held) if j != k and said == label]
        assert not states <= set().union(*others)


def test_conditions_are_as_few_as_can_be_with_three_inputs() -> None:
    """For every function of three yes-or-no inputs there are as many conditions as in the best cover."""
    states = list(_states((2, 2, 2)))
    literals = list(itertools.product(*[((0,), (1,), (0, 1))] * 3))
    for wanted in itertools.product((None, "x"), repeat=len(states)):
        on = {state for state, label in zip(states, wanted, strict=True) if label}
        possible = [held for cube in literals if (held := set(itertools.product(*cube))) <= on]
        best = next(
            count
            for count in range(len(on) + 1)
            if any(set().union(*chosen) == on for chosen in itertools.combinations(possible, count))
        )
        assert len(cubes((2, 2, 2), wanted)) == best


@pytest.mark.parametrize(
    ("values", "others", "said"),
    [
        (["yes"], ["no"], "moved"),
        (["no"], ["yes"], "moved=no"),
        (["OPEN"], ["CLOSED"], "moved=OPEN"),
        (["a", "b"], ["c"], "moved!=c"),
        (["a"], ["b", "c"], "moved=a"),
        (["a", "b"], ["c", "d"], "moved=a/b"),
    ],
)
def test_a_condition_is_said_in_the_fewest_words(values: list[str], others: list[str], said: str) -> None:
    """Yes stands alone, and all values but one are said by that one."""
    assert str(Term("moved", tuple(values), tuple(others))) == said


def test_inputs_on_which_nothing_depends_are_not_said() -> None:
    """Of 48 states, two conditions are left, on the two inputs that matter."""

    def answer(sees: Mapping[str, int]) -> Row:
        if sees["memory"] == 1:
            return ["ZERO_DR7", "LOAD_DR0_3"], None
        return (
            (["ZERO_DR7"], None)
            if sees["breakpoints_enabled"] and not sees["host_breakpoints"]
            else ([], None)
        )

    inputs = {"memory": 2, "breakpoints_enabled": 2, "debugger": 3, "host_breakpoints": 2, "moved": 2}
    table = a_table(rows("ENTER_LOOP", inputs, answer), memories=["CLOSED", "OPEN"])
    assert section(policy_text(table), "ENTER_LOOP") == [
        "memory=CLOSED, breakpoints_enabled, host_breakpoints=no ZERO_DR7",
        "memory=OPEN ZERO_DR7 LOAD_DR0_3",
        "otherwise nothing",
    ]


def test_actions_are_said_in_the_order_in_which_they_are_taken() -> None:
    """A table may number its actions as it likes; the change of memory comes last."""
    table = policy_pb2.PolicyTable(
        name="a",
        vendor=policy_pb2.VENDOR_VMX,
        memories=["A", "B"],
        actions=["REEXECUTE", "DISARM", "ZERO_DR7"],
        moments=[
            policy_pb2.MomentTable(moment=policy_pb2.MOMENT_DR_TRAPPED, actions=[0b111], next_memory=b"\1")
        ],
    )
    assert section(policy_text(table), "DR_TRAPPED") == ["always ZERO_DR7 DISARM REEXECUTE memory:=B"]


def test_every_value_of_an_input_has_a_name() -> None:
    """An input with more than yes and no goes by the words of the vocabulary, none by numbers."""
    for wanted, size in INPUT_SIZES.items():
        if wanted is not Input.MEMORY:
            answers = moment_answers(
                a_table(rows("DR_TRAPPED", {wanted.name.lower(): size}, lambda _: (["INJECT"], None))),
                policy_pb2.MOMENT_DR_TRAPPED,
            )
            (names,) = joint_space([answers], ["A"]).values
            assert len(names) == size
            assert not any(name.isdecimal() for name in names), wanted


def test_a_value_that_an_author_did_not_know_is_answered_as_his_last() -> None:
    """A table that knows two of four controls does at the others what it does at the second."""
    short = a_table(
        rows("CONTROL_CHANGED", {"control": 2}, lambda sees: (["RECOMPUTE"][: sees["control"]], None))
    )
    names = [control.name for control in vocabulary.Control]
    assert section(policy_text(short), "CONTROL_CHANGED") == [
        f"control!={names[0]} RECOMPUTE",
        "otherwise nothing",
    ]
    whole = a_table(
        rows("CONTROL_CHANGED", {"control": 4}, lambda sees: (["RECOMPUTE"] if sees["control"] else [], None))
    )
    assert "No difference." in diff.diff_text(short, whole)


def test_different_inputs_are_compared_in_all_their_states() -> None:
    """Where one table looks at an input and the other does not, only the states that matter are shown."""
    one = a_table(rows("LEAVE_LOOP", {"moved": 2}, lambda sees: (["DR7_OFF"] if sees["moved"] else [], None)))
    other = a_table(
        rows(
            "LEAVE_LOOP",
            {"host_breakpoints": 2},
            lambda sees: (["DR7_OFF"][: sees["host_breakpoints"]], None),
        )
    )
    assert section(diff.diff_text(one, other), "LEAVE_LOOP") == [
        "host_breakpoints=no, moved -DR7_OFF",
        "host_breakpoints, moved=no +DR7_OFF",
    ]


def test_what_both_do_is_said_beside_what_changes() -> None:
    """Unmarked words are done by both; in brackets, in some states of the condition only."""

    def answer(more: str) -> Rows:
        def answers(sees: Mapping[str, int]) -> Row:
            return ["ARM", *(["HOST_RESTORE"] if sees["host_breakpoints"] else []), more], None

        return answers

    one, other = (
        a_table(rows("LEAVE_LOOP", {"host_breakpoints": 2}, answer(more)))
        for more in ("RESET_DR6", "EFFECTIVE")
    )
    text = diff.diff_text(one, other)
    assert section(text, "LEAVE_LOOP") == ["always -RESET_DR6 ARM +EFFECTIVE (HOST_RESTORE)"]
    assert "(WORD): both do it, in some of these states only" in text
    assert "(WORD)" not in diff.diff_text(a_table(), one)


def _remembering(memories: Sequence[str], answers: Mapping[str, Row], moment: str = "ENTER_LOOP") -> Any:
    found = rows(moment, {"memory": len(memories)}, lambda sees: answers[memories[sees["memory"]]], memories)
    return a_table(found, memories=memories)


def test_memories_are_compared_by_name() -> None:
    """Where a memory stands in its table makes no difference."""
    answers: dict[str, Row] = {"A": ([], "B"), "B": (["ZERO_DR7"], "C"), "C": (["DR7_OFF"], None)}
    text = diff.diff_text(_remembering("ABC", answers), _remembering("ACB", answers))
    assert "ENTER_LOOP" in text.rpartition("Alike: ")[2]
    assert "A (initial), B, C -> A (initial), C, B" in text


def test_setting_a_memory_that_is_there_is_keeping_it() -> None:
    """Two answers that lead to the same memory are alike, however that is said."""
    kept: dict[str, Row] = {"A": (["ZERO_DR7"], None), "B": (["ZERO_DR7"], None)}
    said: dict[str, Row] = {"A": (["ZERO_DR7"], "A"), "B": (["ZERO_DR7"], "A")}
    text = diff.diff_text(_remembering("AB", kept), _remembering("AB", said))
    assert section(text, "ENTER_LOOP") == ["memory=B ZERO_DR7 +memory:=A"]


def test_a_memory_that_one_has_alone_is_shown_as_such() -> None:
    """What is done in it is all new, or all gone, and the line says who lacks the memory."""
    one = _remembering("AB", {"A": ([], None), "B": (["DR7_ON"], None)})
    more: dict[str, Row] = {"C": (["DR7_OFF"], "A"), "D": ([], None)}
    other = _remembering("ABCD", {"A": ([], None), "B": (["DR7_ON"], None), **more})
    one.name, other.name = "one", "other"
    assert section(diff.diff_text(one, other), "ENTER_LOOP") == [
        "memory=C +DR7_OFF +memory:=A [no such memory in one]",
        "memory=D +nothing [no such memory in one]",
    ]
    assert section(diff.diff_text(other, one), "ENTER_LOOP") == [
        "memory=C -DR7_OFF -memory:=A [no such memory in one]",
        "memory=D -nothing [no such memory in one]",
    ]
    (moment,) = diff.diff_object(one, other)["moments"]
    assert moment["differences"] == [
        {"when": {"memory": ["C"]}, "first": None, "second": {"actions": ["DR7_OFF"], "next_memory": "A"}},
        {"when": {"memory": ["D"]}, "first": None, "second": {"actions": [], "next_memory": None}},
    ]


@pytest.mark.parametrize(
    ("memories", "lacking"), [(["NOTHING"], []), (["X", "Y"], ["memory=X/Y -DR7_ON [no such memory in a]"])]
)
def test_who_does_not_look_at_memory_answers_in_every_one(memories: list[str], lacking: list[str]) -> None:
    """A table that remembers nothing, or does the same in all memories, is compared in the other's."""
    same = a_table(rows("ENTER_LOOP", {}, lambda _: (["DR7_ON"], None)), memories=memories)
    other = _remembering("AB", {"A": (["DR7_ON"], None), "B": (["DR7_OFF"], None)})
    assert section(diff.diff_text(same, other), "ENTER_LOOP") == [*lacking, "memory=B -DR7_ON +DR7_OFF"]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.name}-{table.vendor}")
def test_a_policy_does_not_differ_from_itself(table: policy_pb2.PolicyTable) -> None:
    """A table compared with itself has no difference, as text and as JSON."""
    heading = heading_of(table)
    assert diff.diff_text(table, table) == f"--- {heading}\n+++ {heading}\n\nNo difference.\n"
    found = diff.diff_object(table, table)
    assert (found["constants"], found["moments"]) == ({}, [])


def _engine_answers(
    table: policy_pb2.PolicyTable,
) -> Callable[[Moment, Mapping[Input, int]], tuple[int, str | None]]:
    """Return what the engine's form of a table answers: actions as bits, and the next memory's name."""
    made = make_table(table)

    def answer(moment: Moment, state: Mapping[Input, int]) -> tuple[int, str | None]:
        memory = table.memories[state.get(Input.MEMORY, 0)]
        base = int(made.bases[moment])
        if base == 2**64 - 1:
            return 0, memory
        place = base + sum(int(made.strides[moment, wanted]) * value for wanted, value in state.items())
        following = int(made.next_memories[place])
        return int(made.cells[place]), memory if following == KEEP_MEMORY else table.memories[following]

    return answer


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda table: f"{table.name}-{table.vendor}")
def test_a_difference_is_where_the_engine_sees_one(
    first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable
) -> None:
    """In each state of memories that both have, the difference for scripts has what the engine would do."""
    found = {moment["moment"]: moment["differences"] for moment in diff.diff_object(first, second)["moments"]}
    sides = [_engine_answers(table) for table in (first, second)]
    shared = [name for name in first.memories if name in second.memories]
    for moment in Moment:
        spaces = [moment_answers(table, moment + 1) for table in (first, second)]
        space = joint_space(spaces, shared)
        inputs = [Input[name.upper()] for name in space.inputs]
        for state in _states(space.sizes) if shared else ():
            names = {name: space.values[i][state[i]] for i, name in enumerate(space.inputs)}
            values = dict(zip(inputs, state, strict=True))
            answers = []
            for table, side in zip((first, second), sides, strict=True):
                memory = names.get("memory", shared[0])
                answers.append(side(moment, {**values, Input.MEMORY: list(table.memories).index(memory)}))
            said = [
                difference
                for difference in found.get(moment.name, [])
                if all(names.get(name, shared[0]) in allowed for name, allowed in difference["when"].items())
            ]
            assert bool(said) == (answers[0] != answers[1]), (moment.name, names)
            for difference, (side_name, answer) in itertools.product(
                said, zip(("first", "second"), answers, strict=True)
            ):
                actions = sum(1 << Action[word] for word in difference[side_name]["actions"])
                following = difference[side_name]["next_memory"] or names.get("memory", shared[0])
                assert (actions, following) == answer


def _other_value(field: Any, table: policy_pb2.PolicyTable) -> None:
    """Give a field of a table another value, whatever its type."""
    value = getattr(table, field.name)
    if field.message_type is not None:
        message = value.add() if hasattr(value, "add") else value
        for inner in message.DESCRIPTOR.fields:
            if inner.message_type is None and not inner.has_default_value:
                setattr(message, inner.name, "X" if inner.cpp_type == inner.CPPTYPE_STRING else 1)
    elif hasattr(value, "append"):
        value.append("X" if field.cpp_type == field.CPPTYPE_STRING else 1)
    else:
        changed = {str: f"{value}X", bool: not value}.get(type(value))
        setattr(table, field.name, value ^ 1 if changed is None else changed)


@pytest.mark.parametrize(
    "name",
    [
        field.name
        for field in policy_pb2.PolicyTable.DESCRIPTOR.fields
        if field.name not in (*fields.HEADING, *fields.ANSWERS)
    ],
)
def test_every_field_of_the_contract_is_shown_and_compared(name: str) -> None:
    """Whatever field a table has, the text tells it, and both differences name it when it changes."""
    first = policies.policy_table("kvm-6.14", policy_pb2.VENDOR_VMX, policy_pb2.CpuFeatures())
    second = policy_pb2.PolicyTable()
    second.CopyFrom(first)
    _other_value(first.DESCRIPTOR.fields_by_name[name], second)
    assert getattr(first, name) != getattr(second, name)
    assert re.search(rf"^{name} ", policy_text(second), re.MULTILINE)
    assert [changed for changed, _ in fields.changes(first, second)] == [name]
    found = diff.diff_object(first, second)
    assert found["constants"].keys() == {name}
    assert found["constants"][name]["first"] != found["constants"][name]["second"]
    assert found["moments"] == [] or name == "memories"  # a new memory has answers of its own


def _cost(action: str, **operations: int) -> policy_pb2.ActionCost:
    return policy_pb2.ActionCost(action=action, operations=policy_pb2.OperationCounts(**operations))


def _deviation(rule: str, source: str = "s") -> policy_pb2.DeclaredDeviation:
    return policy_pb2.DeclaredDeviation(rule=rule, text="t", source=source)


_FAST = policy_pb2.ClassRule(
    reason=32, sub_reason=policy_pb2.SUB_REASON_TSC_DEADLINE, exit_class=policy_pb2.EXIT_CLASS_FAST
)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"claims_correct": True}, {}, ["yes -> no"]),
        (
            {"check_order": ["GP", "GD", "UD"]},
            {"check_order": ["UD", "GP", "GD"]},
            ["GP, GD, UD -> UD, GP, GD"],
        ),
        (
            {"intercepted_exceptions": 1 << 1},
            {"intercepted_exceptions": 1 << 6 | 1 << 9},
            ["-#DB, +#UD, +vector 9"],
        ),
        (
            {"emulated_dr7_writable": 0x23FF},
            {"emulated_dr7_writable": 0x2BFE},
            ["0x23ff -> 0x2bfe (-bit 0, +bit 11)"],
        ),
        ({}, {"unintercepted_accesses": 1 << 7 | 1 << 8}, ["+read DR7, +write DR0"]),
        ({"quirks": ["FULL_OPERAND", "DB_KEEPS_GD"]}, {"quirks": ["DB_KEEPS_GD"]}, ["-FULL_OPERAND"]),
        ({}, {"classes": [_FAST]}, ["+MSR_WRITE TSC_DEADLINE: fast"]),
        (
            {"trap_operations": policy_pb2.OperationCounts(vmreads=2, vmwrites=1)},
            {},
            ["2 vmreads + 1 vmwrites -> none"],
        ),
        ({"costs": [_cost("ARM", vmreads=1)]}, {"costs": [_cost("ARM")]}, ["-ARM 1 vmreads, +ARM none"]),
        ({"memories": ["A", "B"]}, {"memories": ["B", "A"]}, ["-A (initial), -B, +B (initial), +A"]),
        ({"memories": ["A", "B"]}, {"memories": ["A", "B", "C"]}, ["+C"]),
        ({"cluster_gap_cycles": 100}, {"cluster_gap_cycles": 5}, ["100 -> 5"]),
        ({"deviations": [_deviation("X"), _deviation("Y")]}, {"deviations": [_deviation("Y")]}, ["-X: t"]),
        (
            {"deviations": [_deviation("X"), _deviation("Y")]},
            {"deviations": [_deviation("X", "other")]},
            ["-X: t [s]", "-Y: t", "+X: t [other]"],
        ),
    ],
)
def test_a_changed_constant_says_what_goes_and_what_comes(
    before: dict[str, Any], after: dict[str, Any], said: list[str]
) -> None:
    """Members of lists and masks go and come by themselves; single values and orders are said whole."""
    assert [text for _, text in fields.changes(a_table(**before), a_table(**after))] == said


def test_two_vendors_of_a_policy_are_compared() -> None:
    """Exit reasons go by each vendor's names, and the line on default costs is there only then."""
    vmx, svm = (policies.policy_table("kvm-6.14", vendor, policy_pb2.CpuFeatures()) for vendor in VENDORS)
    text = diff.diff_text(vmx, svm)
    assert text.startswith(f"--- kvm-6.14 on vmx: {vmx.summary}\n+++ kvm-6.14 on svm: {svm.summary}\n")
    assert "takes its vendor's default, which is another." in text
    assert "-MSR_WRITE TSC_DEADLINE: fast" in text
    assert "+msr TSC_DEADLINE: fast" in text
    assert "vendor's default" not in diff.diff_text(vmx, vmx)


def test_what_changed_in_kvm_from_3_15_can_be_read_off() -> None:
    """The missed breakpoint's mend is there: the belief is computed again when the window closes."""
    first, second = (
        policies.policy_table(name, policy_pb2.VENDOR_VMX, policy_pb2.CpuFeatures())
        for name in ("kvm-3.15", "kvm-6.14")
    )
    text = diff.diff_text(first, second)
    (closing,) = [line for line in section(text, "LEAVE_LOOP") if "SAVE_DR7" in line]
    assert closing.startswith("memory=OPEN ")
    assert "+RESET_DR6 ARM +EFFECTIVE -EFFECTIVE_RAW +RECOMPUTE" in closing
    assert any(line.endswith("ZERO_DR7 LOAD_DR0_3 -LOAD_DR6") for line in section(text, "ENTER_LOOP"))
    assert re.search(r"^claims_correct +no -> yes$", text, re.MULTILINE)
    assert len(text.splitlines()) <= 50  # a screen


def test_the_page_shows_what_is_printed() -> None:
    """Every line of the example in docs/policies.md is in the difference that it is said to be from."""
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n\$ hypervisor-svc policy (\S+) --diff (\S+)\n(.*?)^```", page, re.M | re.S)
    tables = [
        policies.policy_table(name, policy_pb2.VENDOR_VMX, policy_pb2.CpuFeatures()) for name in block[:2]
    ]
    printed = [" ".join(line.split()) for line in diff.diff_text(*tables).splitlines()]
    lines = [" ".join(line.split()) for line in block[2].splitlines() if line.strip() not in {"", "..."}]
    assert lines
    assert [line for line in lines if line not in printed] == []


Graph = tuple[dict[str, dict[str, str]], list[tuple[str, str, dict[str, str]]]]  # nodes, edges
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([A-Za-z_]\w*)|(->|[{}\[\]=;,]))', re.DOTALL)


class _Parser:
    """A parser of the part of Graphviz's language that drawings use; it refuses everything else."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        place = 0
        while text[place:].strip():
            found = _TOKEN.match(text, place)
            assert found is not None, f"no token at {text[place : place + 40]!r}"
            self.tokens.append(found.group(0).strip())
            place = found.end()

    def take(self, expected: str = "") -> str:
        token = self.tokens.pop(0)
        assert not expected or token == expected, (token, expected)
        return token

    def word(self) -> str:
        """Return an identifier, without its quotes and the escapes of quotes."""
        token = self.take()
        assert re.match(r'["A-Za-z_]', token), token
        return re.sub(r"\\([\"\\])", r"\1", token[1:-1]) if token[0] == '"' else token

    def attributes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.tokens[0] == "[":
            self.take("[")
            while True:
                name = self.word()
                self.take("=")
                found[name] = self.word()
                if self.take() == "]":
                    break
        return found

    def graph(self) -> Graph:
        self.take("digraph")
        self.word()
        self.take("{")
        nodes: dict[str, dict[str, str]] = {}
        edges = []
        while self.tokens[0] != "}":
            name = self.word()
            if self.tokens[0] == "->":
                self.take("->")
                edges.append((name, self.word(), self.attributes()))
            elif name in {"graph", "node", "edge"}:
                assert self.attributes()
            else:
                nodes[name] = self.attributes()
            self.take(";")
        self.take("}")
        assert not self.tokens
        assert {end for source, target, _ in edges for end in (source, target)} <= nodes.keys()
        return nodes, edges


def drawn(
    *tables: policy_pb2.PolicyTable,
) -> tuple[dict[str, list[str]], dict[tuple[str, str, str], list[str]]]:
    """Return each node's lines by its first, and each edge's by its ends' first lines and its colour."""
    nodes, edges = _Parser(dot_text(*tables)).graph()
    labels = {
        name: node.get("label", "start").removesuffix("\\l").split("\\l") for name, node in nodes.items()
    }
    by_ends = {
        (labels[source][0], labels[target][0], edge.get("color", "")): edge.get("label", "").split("\\l")[:-1]
        for source, target, edge in edges
    }
    assert len(by_ends) == len(edges)
    return {lines[0]: lines[1:] for lines in labels.values()}, by_ends


def test_a_drawing_is_the_machine_over_the_memories() -> None:
    """Nodes say whether MOV DR is intercepted and what leaves the memory; edges say what changes it."""
    table = policies.policy_table("kvm-6.14", policy_pb2.VENDOR_VMX, policy_pb2.CpuFeatures())
    nodes, edges = drawn(table)
    assert nodes.keys() == {"start", "CLOSED", "OPEN"}
    assert nodes["CLOSED"][0] == "MOV DR intercepted"
    assert nodes["OPEN"][0] == "MOV DR runs free"
    assert edges.keys() == {("start", "CLOSED", ""), ("CLOSED", "OPEN", ""), ("OPEN", "CLOSED", "")}
    opening = edges["CLOSED", "OPEN", ""]
    assert opening[0].startswith("DR_TRAPPED: ")
    assert opening[1] == "    DISARM REEXECUTE"
    assert any(line.startswith("LEAVE_LOOP: ") for line in edges["OPEN", "CLOSED", ""])
    assert any(line.startswith("DR_TRAPPED: ") for line in nodes["CLOSED"])
    assert not any(line.startswith("DR_TRAPPED: ") for line in nodes["OPEN"])  # nothing traps there


@pytest.mark.parametrize(
    ("initially", "actions", "following", "said"),
    [
        (True, [], "B", ["MOV DR intercepted", "MOV DR intercepted"]),
        (False, [], "B", ["MOV DR runs free", "MOV DR runs free"]),
        (False, ["ARM"], "B", ["MOV DR runs free", "MOV DR intercepted"]),
        (True, ["DISARM"], "B", ["MOV DR intercepted", "MOV DR runs free"]),
        (True, ["DISARM"], None, ["MOV DR intercepted or free", "never reached"]),
    ],
)
def test_a_drawing_says_where_mov_dr_is_intercepted(
    initially: bool, actions: list[str], following: str | None, said: list[str]
) -> None:
    """It follows the intercept from memory to memory, and says so where it cannot be known."""
    table = _remembering("AB", {"A": (actions, following), "B": ([], None)})
    table.initially_armed = initially
    nodes, _ = drawn(table)
    assert [nodes["A"][0], nodes["B"][0]] == said


def test_nothing_traps_where_mov_dr_runs_free() -> None:
    """What a trap would do is not taken to happen in a memory in which none can."""
    answers: dict[str, Row] = {"A": (["DISARM", "REEXECUTE"], "B"), "B": (["INJECT"], None)}
    nodes, edges = drawn(_remembering("AB", answers, "DR_TRAPPED"))
    assert nodes == {"start": [], "A": ["MOV DR runs free"], "B": ["never reached"]}
    assert edges.keys() == {("start", "A", "")}


def test_a_drawing_marks_no_other_way_of_saying_the_same() -> None:
    """To set the memory that is there is to keep it, so nothing of it is drawn."""
    kept = _remembering("AB", {"A": ([], None), "B": (["DR7_ON"], "A")})
    said = _remembering("AB", {"A": ([], "A"), "B": (["DR7_ON"], "A")})
    nodes, edges = drawn(kept, said)
    assert nodes["A"] == ["MOV DR runs free"]
    assert edges["B", "A", ""] == ["ENTER_LOOP: always", "    DR7_ON"]


def test_a_drawing_of_two_marks_what_one_has_alone() -> None:
    """Common edges are plain, others are of one colour and dashed or bold, their lines marked."""
    one = _remembering("AB", {"A": (["ZERO_DR7"], "B"), "B": (["DR7_ON"], None)})
    other = _remembering("AC", {"A": (["ZERO_DR7"], "C"), "C": (["DR7_OFF"], "A")})
    nodes, edges = drawn(one, other)
    assert nodes.keys() == {"start", "A", "- B", "+ C"}
    assert edges == {
        ("start", "A", ""): [],
        ("A", "- B", "red"): ["- ENTER_LOOP: always", "    ZERO_DR7"],
        ("A", "+ C", "darkgreen"): ["+ ENTER_LOOP: always", "    ZERO_DR7"],
        ("+ C", "A", "darkgreen"): ["+ ENTER_LOOP: always", "    DR7_OFF"],
    }
    assert nodes["- B"] == ["MOV DR runs free", "- ENTER_LOOP: always", "    DR7_ON"]
    changed = _remembering("AB", {"A": (["ZERO_DR7", "LOAD_DR6"], "B"), "B": (["DR7_ON"], None)})
    _, edges = drawn(one, changed)
    assert edges["A", "B", ""] == ["ENTER_LOOP: always", "    ZERO_DR7 +LOAD_DR6"]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda table: f"{table.name}-{table.vendor}")
def test_every_drawing_is_one(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> None:
    """The text parses for all pairs, and nothing is marked unless the two differ."""
    nodes, edges = drawn(first, second)
    assert {node.removeprefix("- ").removeprefix("+ ") for node in nodes} == {
        "start",
        *first.memories,
        *second.memories,
    }
    lines = itertools.chain(*nodes.values(), *edges.values(), nodes)
    if any(word.startswith(("-", "+")) for line in lines for word in line.split()):
        differs = bool(diff.diff_object(first, second)["moments"])
        assert differs or first.memories != second.memories or first.initially_armed != second.initially_armed
    assert all(colour in {"", "red", "darkgreen"} for _, _, colour in edges)


def test_names_are_quoted_in_a_drawing() -> None:
    """Quotes and backslashes in names come back as they were."""
    name = 'say "when\\" now'
    table = _remembering([name, "B"], {name: ([], "B"), "B": ([], name)})
    nodes, edges = drawn(table)
    assert {name, "B"} <= nodes.keys()
    assert (name, "B", "") in edges


@pytest.mark.parametrize("output", ["text", "json", "dot"])
def test_large_tables_are_told_in_few_rows(output: str) -> None:
    """Of a moment with thousands of states, the two conditions that matter are said."""
    left_out = {
        Input.MEMORY,
        Input.SHADOW_HAS_GD,
        Input.DEBUG_CONTROLS_AT_RESET,
        Input.WOULD_ENABLE,
        Input.CONTROL,
    }
    asked = [wanted for wanted in Input if wanted not in left_out]
    inputs = {"memory": 8, **{wanted.name.lower(): INPUT_SIZES[wanted] for wanted in asked}}

    def answer(more: str) -> Rows:
        return lambda sees: (["INJECT", *([more] if sees["check"] == 2 and sees["moved"] else [])], None)

    one, other = (
        a_table(rows("DR_TRAPPED", inputs, answer(more)), memories="ABCDEFGH")
        for more in ("DR7_ON", "DR7_OFF")
    )
    assert len(one.moments[0].actions) == 9216
    text = shown(one, other, output)
    if output == "text":
        assert section(text, "DR_TRAPPED") == ["moved, check=GP INJECT -DR7_ON +DR7_OFF"]
    elif output == "json":
        ((difference,),) = (moment["differences"] for moment in json.loads(text)["moments"])
        assert difference["when"] == {"moved": ["yes"], "check": ["GP"]}
    else:
        assert text.count("INJECT") == 0  # never armed, so nothing traps


def test_a_space_knows_where_its_states_are() -> None:
    """The places of a cube are those of its states in the order of all, the last input fastest."""
    space = Space(("a", "b"), (("x", "y"), ("p", "q", "r")))
    assert list(space.places(((1,), (0, 2)))) == [3, 5]
    assert space.condition(((1,), (0, 2))) == "a=y, b!=q"
    assert space.condition(((0, 1), (0, 1, 2))) == "always"
    assert Answer(("ARM",), "B").words() == ("ARM", "memory:=B")
