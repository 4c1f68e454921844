"""Policies drawn as state machines over their memories, for Graphviz.

A node is a memory, with whether MOV DR is intercepted in it where the table lets that be known, and with
what happens there that leaves it. An edge is what changes the memory: moment, condition, actions. At
``DR_TRAPPED`` nothing is drawn in memories in which MOV DR is never intercepted, since nothing traps there.

Two policies are drawn into one picture: what both have is plain, what one has alone carries ``-`` or ``+``
and, where it is a whole node or edge, is dashed red or bold green. Conditions are found on the two
together, so that a line is marked only where the answers do differ, not where they are said differently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from exitlab.v1 import policy_pb2
from hypervisor_svc.show.conditions import Space, cubes
from hypervisor_svc.show.diff import change, marked_words
from hypervisor_svc.show.moments import MOMENTS, NOTHING, Answer, joint_space, moment_answers, moment_name
from hypervisor_svc.show.text import heading

_TRAPPED: Final = policy_pb2.MOMENT_DR_TRAPPED
_BOTH: Final = ""
_MARKS: Final = ("-", "+")
_STYLES: Final = {_BOTH: "", "-": "color=red, style=dashed", "+": "color=darkgreen, style=bold"}
_INTERCEPT_WORDS: Final = {
    frozenset({True}): "MOV DR intercepted",
    frozenset({False}): "MOV DR runs free",
    frozenset({True, False}): "MOV DR intercepted or free",
    frozenset[bool](): "never reached",
}


@dataclass(slots=True)
class _Drawing:
    """Lines by node, and by edge: from, to and the mark of the table that alone has it."""

    nodes: dict[str, list[str]] = field(default_factory=dict)
    edges: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)


class _Side:
    """A table, with what it answers in each memory."""

    def __init__(self, table: policy_pb2.PolicyTable) -> None:
        self.memories = tuple(table.memories)
        self.moments = {number: moment_answers(table, number) for number in MOMENTS}
        self.intercepts = self._intercepts(table.initially_armed)

    def _intercepts(self, initially: bool) -> dict[str, frozenset[bool]]:
        """Return for each memory whether MOV DR can be intercepted in it, and whether it can be free.

        Every answer of a memory is taken to be possible there, so this may be more than what happens.
        """
        possible = {memory: self._answers_in(memory) for memory in self.memories}
        reached = {(self.memories[0], initially)}
        waiting = list(reached)
        while waiting:
            memory, is_armed = waiting.pop()
            for number, answer in possible[memory]:
                if number == _TRAPPED and not is_armed:
                    continue
                armed = (is_armed or "ARM" in answer.actions) and "DISARM" not in answer.actions
                following = (answer.leads_to(memory) or memory, armed)
                if following not in reached:
                    reached.add(following)
                    waiting.append(following)
        return {
            memory: frozenset(armed for known, armed in reached if known == memory)
            for memory in self.memories
        }

    def _answers_in(self, memory: str) -> set[tuple[int, Answer]]:
        return {
            (number, answer)
            for number, found in self.moments.items()
            for answer in found.over(joint_space([found], [memory]))
            if answer is not None
        }

    def answers_in(self, memory: str, number: int, space: Space) -> list[Answer]:
        """Return the answers in a memory: nothing if it is not there, or the moment does not come in it."""
        found = self.moments[number].over(space)
        comes_up = memory in self.memories and (number != _TRAPPED or True in self.intercepts[memory])
        return [NOTHING if answer is None or not comes_up else answer.in_memory(memory) for answer in found]


def dot_text(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable | None = None) -> str:
    """Return a policy, or what two policies have and what one has alone, as text for Graphviz."""
    tables = (first,) if second is None else (first, second)
    sides = [_Side(table) for table in tables]
    drawing = _drawn(sides)
    names = {memory: f"m{place}" for place, memory in enumerate(drawing.nodes)}
    title = heading(first) if second is None else f"- {heading(first)}\n+ {heading(second)}"
    graph = first.name if second is None else f"{first.name} to {second.name}"
    lines = [
        f"digraph {_quoted(graph)} {{",
        f"  graph [label={_quoted(title)}, labelloc=t, labeljust=l, fontname=Courier];",
        "  node [shape=box, fontname=Courier];",
        "  edge [fontname=Courier];",
        "  start [shape=point];",
    ]
    for memory, does in drawing.nodes.items():
        owner = _owner([memory in table.memories for table in tables])
        label = "\n".join([f"{owner} {memory}".strip(), *_intercept_lines(memory, sides), *does])
        lines.append(f"  {names[memory]}{_attributes(label, owner)};")
    for memory in dict.fromkeys(table.memories[0] for table in tables):
        owner = _owner([memory == table.memories[0] for table in tables])
        lines.append(f"  start -> {names[memory]}{_attributes('', owner)};")
    for (source, target, owner), does in drawing.edges.items():
        label = "\n".join(does)
        lines.append(f"  {names[source]} -> {names[target]}{_attributes(label, owner)};")
    return "\n".join([*lines, "}"]) + "\n"


def _drawn(sides: Sequence[_Side]) -> _Drawing:
    drawing = _Drawing({memory: [] for side in sides for memory in side.memories})
    for memory, does in drawing.nodes.items():
        for number in MOMENTS:
            for condition, pair in _pairs_in(sides, memory, number):
                for target, owner, text in _steps(pair, memory):
                    key = (memory, target, owner)
                    lines = does if target == memory else drawing.edges.setdefault(key, [])
                    mark = f"{owner} " if owner else ""
                    lines += [f"{mark}{moment_name(number)}: {condition}", *([f"    {text}"] if text else [])]
    return drawing


def _pairs_in(
    sides: Sequence[_Side], memory: str, number: int
) -> Iterator[tuple[str, tuple[Answer, Answer]]]:
    """Return, by condition, both tables' answers in a memory where one of them does something.

    A table alone is both.
    """
    space = joint_space([side.moments[number] for side in sides], [memory])
    found = [side.answers_in(memory, number, space) for side in sides]
    pairs = zip(found[0], found[-1], strict=True)
    for cube, pair in cubes(space.sizes, [None if pair == (NOTHING, NOTHING) else pair for pair in pairs]):
        yield space.condition(cube), pair


def _steps(pair: tuple[Answer, Answer], memory: str) -> Iterator[tuple[str, str, str]]:
    """Return where answers lead, the mark of the table that alone leads there, and the actions."""
    first, second = pair
    targets = [answer.leads_to(memory) or memory for answer in pair]
    changed = change((Answer(first.actions), Answer(second.actions)), memory)
    if targets[0] == targets[1] and changed is None:
        yield targets[0], _BOTH, " ".join(first.actions)
    elif targets[0] == targets[1] and changed is not None and NOTHING not in pair:
        yield targets[0], _BOTH, marked_words([(Answer(first.actions), Answer(second.actions))], changed)
    else:
        for answer, target, mark in zip(pair, targets, _MARKS, strict=True):
            if answer != NOTHING:
                yield target, mark, " ".join(answer.actions)


def _owner(has: Sequence[bool]) -> str:
    """Return the mark of the table that alone has something; none if all have it."""
    return _BOTH if all(has) else _MARKS[has.index(True)]


def _intercept_lines(memory: str, sides: Sequence[_Side]) -> list[str]:
    """Return whether MOV DR is intercepted in a memory, by each table if they do not agree."""
    said = [_INTERCEPT_WORDS[side.intercepts[memory]] if memory in side.memories else "" for side in sides]
    words = [word for word in said if word]
    if len(set(words)) == 1:
        return words[:1]
    return [f"{mark} {word}" for mark, word in zip(_MARKS, said, strict=True) if word]


def _attributes(label: str, owner: str) -> str:
    """Return the attributes of a node or an edge; none if it needs none."""
    said = [f"label={_quoted(label)}"] if label else []
    said += [_STYLES[owner]] if owner else []
    return f" [{', '.join(said)}]" if said else ""


def _quoted(text: str) -> str:
    """Return a text as a quoted string of Graphviz, its lines set to the left."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    lines = plain.split("\n")
    return f'"{plain}"' if len(lines) == 1 else '"' + "".join(f"{line}\\l" for line in lines) + '"'
