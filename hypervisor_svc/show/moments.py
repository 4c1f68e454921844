"""The answers of policy tables at a moment, state by state.

Tables that are looked at together may depend on different inputs, so their answers are given for the
states of all inputs that one of them depends on; a table gives the same answer whatever the inputs are
that it does not know. Memories go by name. A table with one memory remembers nothing, so it answers
in every memory of the other; so does one whose answers at this moment are the same in all its memories.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import vocabulary
from hypervisor_svc.engine.records import KEEP_MEMORY
from hypervisor_svc.show.conditions import YES_NO, Space, depends_on, strides

MEMORY: Final = "memory"
MOMENTS: Final[tuple[int, ...]] = tuple(number for number in policy_pb2.Moment.values() if number)
"""All moments, in the order of the ladder."""

_ACTION_ORDER: Final = {action.name: place for place, action in enumerate(vocabulary.Action)}
_INPUT_ORDER: Final = {wanted.name.lower(): wanted for wanted in vocabulary.Input}


@dataclass(frozen=True, slots=True)
class Answer:
    """Micro-actions in the order in which they are taken, and the next memory; None keeps it."""

    actions: tuple[str, ...] = ()
    next_memory: str | None = None

    def words(self) -> tuple[str, ...]:
        """Return the actions, and the change of memory as if it were one more."""
        return self.actions if self.next_memory is None else (*self.actions, f"{MEMORY}:={self.next_memory}")

    def leads_to(self, memory: str | None) -> str | None:
        """Return the memory that follows on ``memory``."""
        return memory if self.next_memory is None else self.next_memory

    def in_memory(self, memory: str) -> "Answer":
        """Return the answer as it is said in ``memory``: to set what is there is to keep it."""
        return Answer(self.actions) if self.next_memory == memory else self


NOTHING: Final = Answer()


def word_order(word: str) -> tuple[int, str]:
    """Return what sorts words into the order in which they are done."""
    return _ACTION_ORDER.get(word, len(_ACTION_ORDER)), word


def moment_name(number: int) -> str:
    """Return a moment's name."""
    return policy_pb2.Moment.Name(policy_pb2.Moment.ValueType(number)).removeprefix("MOMENT_")


def vendor_name(table: policy_pb2.PolicyTable) -> str:
    """Return the name of a table's vendor."""
    return policy_pb2.Vendor.Name(table.vendor).removeprefix("VENDOR_").lower()


@dataclass(frozen=True, slots=True)
class MomentAnswers:
    """A table's answers at one moment, in row-major order of the inputs that they depend on."""

    memories: tuple[str, ...]
    inputs: tuple[str, ...]
    sizes: tuple[int, ...]
    answers: tuple[Answer, ...]
    tells_memories: bool

    @property
    def does_something(self) -> bool:
        """Whether there is an answer but nothing."""
        return any(answer != NOTHING for answer in self.answers)

    def over(self, space: Space) -> list[Answer | None]:
        """Return the answer in each state of a space; None in a memory that the table does not have."""
        places: list[Sequence[int | None]] = []
        known = dict(zip(self.inputs, zip(self.sizes, strides(self.sizes), strict=True), strict=True))
        for name, values in zip(space.inputs, space.values, strict=True):
            size, stride = known.get(name, (1, 0))
            if name == MEMORY:
                places.append(self._memory_places(values, size, stride))
            else:
                # A value that the table's author did not know is answered as the last one that he did.
                places.append([min(value, size - 1) * stride for value in range(len(values))])
        return [
            None if None in parts else self.answers[sum(part for part in parts if part is not None)]
            for parts in itertools.product(*places)
        ]

    def _memory_places(self, names: Sequence[str], size: int, stride: int) -> list[int | None]:
        """Return, by the name of a memory, where its rows begin."""
        if not self.tells_memories:
            return [0] * len(names)
        own = self.memories
        return [min(own.index(name), size - 1) * stride if name in own else None for name in names]


def moment_answers(table: policy_pb2.PolicyTable, number: int) -> MomentAnswers:
    """Return a table's answers at a moment: one, nothing, where it has no rows."""
    memories = tuple(table.memories)
    rows = next((rows for rows in table.moments if rows.moment == number), None)
    if rows is None:
        return MomentAnswers(memories, (), (), (NOTHING,), tells_memories=False)
    cells = list(zip(rows.actions, rows.next_memory, strict=True))
    by_cell = {cell: _answer(table.actions, memories, *cell) for cell in set(cells)}
    found = tuple(by_cell[cell] for cell in cells)
    inputs, sizes = tuple(rows.inputs), tuple(rows.sizes)
    tells_memories = MEMORY in inputs and depends_on(inputs.index(MEMORY), sizes, found)
    return MomentAnswers(memories, inputs, sizes, found, tells_memories)


def joint_space(tables: Sequence[MomentAnswers], memories: Sequence[str]) -> Space:
    """Return the states that one of the tables tells apart at a moment, with ``memories`` to choose from.

    The memory comes first, if a table tells memories apart or changes its own.
    """
    sizes: dict[str, int] = {}
    for table in tables:
        for name, size in zip(table.inputs, table.sizes, strict=True):
            sizes[name] = max(size, sizes.get(name, 0))
    sizes.pop(MEMORY, None)
    inputs = sorted(sizes, key=lambda name: _INPUT_ORDER.get(name, len(_INPUT_ORDER)))
    values = [_value_names(name, sizes[name]) for name in inputs]
    is_about_memory = any(
        table.tells_memories or any(answer.next_memory for answer in table.answers) for table in tables
    )
    if memories and is_about_memory:
        inputs.insert(0, MEMORY)
        values.insert(0, tuple(memories))
    return Space(tuple(inputs), tuple(values))


def memory_by_state(space: Space) -> list[str | None]:
    """Return the memory of each state of a joint space, None where no table tells memories apart."""
    count = math.prod(space.sizes)
    if MEMORY not in space.inputs:
        return [None] * count
    names = space.values[0]
    return [name for name in names for _ in range(count // len(names))]


def _answer(words: Sequence[str], memories: Sequence[str], actions: int, memory: int) -> Answer:
    done = sorted((word for bit, word in enumerate(words) if actions >> bit & 1), key=word_order)
    keeps = memory == KEEP_MEMORY or len(memories) == 1
    return Answer(tuple(done), None if keeps else memories[memory])


def _value_names(name: str, size: int) -> tuple[str, ...]:
    """Return the names of an input's values: those of the vocabulary's enumeration of that name."""
    kind = getattr(vocabulary, name.title().replace("_", ""), None)
    names: tuple[str, ...] = YES_NO if size <= len(YES_NO) else ()
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        names = tuple(value.name for value in kind)
    return names + tuple(map(str, range(len(names), size)))
