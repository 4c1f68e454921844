"""What is different between two policy tables, or between one policy on two vendors.

Compared are the constants, field by field, and at each moment the answers in every state of the inputs
that either table depends on (``show_moments`` says what a table answers in states that it does not tell
apart). Two answers differ if they take other actions or lead to another memory.

As text, differences are grouped by what goes and what comes: a condition holds all states whose answers
change so, whatever else they do. For scripts, they are grouped by the two whole answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exitlab.v1 import policy_pb2
from hypervisor_svc.show.conditions import Space, cubes
from hypervisor_svc.show.fields import alike_fields, changed_fields, changes
from hypervisor_svc.show.json_text import as_object
from hypervisor_svc.show.moments import (
    MOMENTS,
    Answer,
    joint_space,
    memory_by_state,
    moment_answers,
    moment_name,
    vendor_name,
    word_order,
)
from hypervisor_svc.show.text import aligned, heading

Pair = tuple[Answer | None, Answer | None]  # None: the table has no such memory

_LEGEND = "(WORD): both do it, in some of these states only"


@dataclass(frozen=True, slots=True)
class Change:
    """What goes and what comes between two answers; ``lacking`` is the place of a table without a state."""

    gone: frozenset[str]
    new: frozenset[str]
    lacking: int | None = None


@dataclass(frozen=True, slots=True)
class MomentPair:
    """The answers of two tables at a moment, state by state, with what changes; None where nothing does."""

    name: str
    space: Space
    pairs: Sequence[Pair]
    changes: Sequence[Change | None]

    @property
    def differs(self) -> bool:
        """Whether an answer differs."""
        return any(change is not None for change in self.changes)


def moment_pairs(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> Iterator[MomentPair]:
    """Return both tables' answers at each moment at which one of them does something."""
    tables = (first, second)
    memories = dict.fromkeys(name for table in tables if len(table.memories) > 1 for name in table.memories)
    for number in MOMENTS:
        found = [moment_answers(table, number) for table in tables]
        if any(table.does_something for table in found):
            space = joint_space(found, list(memories))
            pairs = list(zip(found[0].over(space), found[1].over(space), strict=True))
            known = {state: change(*state) for state in set(zip(pairs, memory_by_state(space), strict=True))}
            changed = [known[state] for state in zip(pairs, memory_by_state(space), strict=True)]
            yield MomentPair(moment_name(number), space, pairs, changed)


def change(pair: Pair, memory: str | None) -> Change | None:
    """Return what changes from one answer to the other in a state with that memory; None if nothing does."""
    first, second = pair
    if first is None or second is None:
        words = [frozenset(answer.words()) if answer is not None else frozenset() for answer in pair]
        return Change(words[0], words[1], lacking=0 if first is None else 1)
    if first.actions == second.actions and first.leads_to(memory) == second.leads_to(memory):
        return None  # setting a memory that is there keeps it
    before, after = frozenset(first.words()), frozenset(second.words())
    return Change(before - after, after - before)


def diff_text(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> str:
    """Return for people what is different: ``-`` is what the first alone says or does, ``+`` the second."""
    moments = list(moment_pairs(first, second))
    constants = list(changes(first, second))
    lines = [f"--- {heading(first)}", f"+++ {heading(second)}"]
    if constants:
        lines += ["", *aligned(constants)]
    if first.vendor != second.vendor:
        lines += ["", "An action without a cost of its own takes its vendor's default, which is another."]
    rows = {moment.name: _rows(moment, (first.name, second.name)) for moment in moments if moment.differs}
    for name, changed in rows.items():
        lines += ["", name, *aligned(changed, indent="  ")]
    if any(word.startswith("(") for changed in rows.values() for _, text in changed for word in text.split()):
        lines += ["", _LEGEND]
    alike = [*alike_fields(first, second), *(moment.name for moment in moments if not moment.differs)]
    lines += ["", f"Alike: {', '.join(alike)}" if constants or rows else "No difference."]
    return "\n".join(lines) + "\n"


def marked_words(pairs: Sequence[Pair], what: Change) -> str:
    """Return what both answers do in the order in which it is done, marked where only one does it."""
    gone, new = what.gone, what.new
    both = [_common(pair) for pair in pairs]
    always = frozenset.intersection(*both)
    marks = {word: "" if word in always else "()" for word in frozenset().union(*both)}
    marks |= dict.fromkeys(gone, "-") | dict.fromkeys(new, "+")
    return " ".join(
        f"({word})" if marks[word] == "()" else marks[word] + word for word in sorted(marks, key=word_order)
    )


def diff_object(first: policy_pb2.PolicyTable, second: policy_pb2.PolicyTable) -> dict[str, Any]:
    """Return for scripts what is different: both values of each constant, both answers in each state.

    ``when`` gives the values that inputs may have; one that it does not mention may have any. A state may be
    in several of them, then with the same answers.
    """
    objects = [as_object(table) for table in (first, second)]
    sides = ("first", "second")
    return {
        **{
            side: {"name": table.name, "vendor": vendor_name(table), "summary": table.summary}
            for side, table in zip(sides, (first, second), strict=True)
        },
        "constants": {
            name: {side: one.get(name) for side, one in zip(sides, objects, strict=True)}
            for name in changed_fields(first, second)
        },
        "moments": [
            {"moment": moment.name, "differences": _differences(moment)}
            for moment in moment_pairs(first, second)
            if moment.differs
        ],
    }


def _common(pair: Pair) -> frozenset[str]:
    first, second = pair
    if first is None or second is None:
        return frozenset()
    return frozenset(first.words()) & frozenset(second.words())


def _rows(moment: MomentPair, names: tuple[str, str]) -> list[tuple[str, str]]:
    rows = []
    for cube, what in cubes(moment.space.sizes, moment.changes):
        text = marked_words([moment.pairs[place] for place in moment.space.places(cube)], what)
        if what.lacking is not None:
            sign = "+-"[what.lacking]
            text = f"{text or f'{sign}nothing'}  [no such memory in {names[what.lacking]}]"
        rows.append((moment.space.condition(cube), text))
    return rows


def _differences(moment: MomentPair) -> list[dict[str, Any]]:
    labels = [
        pair if what is not None else None for pair, what in zip(moment.pairs, moment.changes, strict=True)
    ]
    return [
        {
            "when": {term.name: list(term.values) for term in moment.space.terms(cube)},
            "first": _answer_object(pair[0]),
            "second": _answer_object(pair[1]),
        }
        for cube, pair in cubes(moment.space.sizes, labels)
    ]


def _answer_object(answer: Answer | None) -> dict[str, Any] | None:
    return None if answer is None else {"actions": list(answer.actions), "next_memory": answer.next_memory}
