"""An author's generator as blocks: cut, gathered, answered, and refused where it is wrong."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from exitlab.events import COLUMN_DTYPES, EventColumns, EventKind
from exitlab.plugins import Plugin
from guest_svc.api import BadParameter, Generated, Parameter, Workload, events, repeated
from guest_svc.authored import AuthoredSource, authored_source
from guest_svc.errors import BadInput
from guest_svc.outcomes import Outcomes
from guest_svc.workloads.base import Workload as Source

CPUID = EventKind.CPUID


class Mine(Workload):
    """A workload that yields parts of given sizes; selectors count the events."""

    api_version = 1
    name = "mine"
    summary = "of a test"
    sizes: ClassVar[tuple[int, ...]] = (3, 0, 1, 20_000, 2)
    ended: ClassVar[list[str]] = []

    def generate(self) -> Generated:
        """Yield the parts from one buffer, which is used again."""
        buffer, count = np.zeros(max(self.sizes), np.uint32), 0
        try:
            for size in self.sizes:
                buffer[:size] = np.arange(count, count + size)
                count += size
                yield events(kinds=[CPUID] * size, selectors=buffer[:size])
        finally:
            self.ended.append("ended")


def source(made: type[Workload]) -> AuthoredSource:
    """Return a class of this file as a source."""
    return authored_source(Plugin(made, "this file", Path(__file__)))


def selectors(workload: Source, block_events: int) -> list[int]:
    """Return the selectors of all blocks, checking their form."""
    found: list[int] = []
    for block in workload.blocks(block_events):
        assert 0 < len(block) <= block_events
        assert block.declared == workload.columns
        for column in block.declared:
            array = block.column(column)
            assert array is not None
            assert (array.dtype, array.shape) == (COLUMN_DTYPES[column], (len(block),))
        assert block.selectors is not None
        found += block.selectors.tolist()
    return found


@pytest.mark.parametrize("block_events", [1, 7, 8_192, 65_536])
def test_parts_of_any_size_become_blocks(block_events: int) -> None:
    """Nothing is lost, doubled or overwritten, whatever the author does with his arrays."""
    workload = source(Mine).make({})
    assert workload.total_events is None
    assert selectors(workload, block_events) == list(range(20_006))
    assert workload.total_events == workload.records == 20_006


def test_small_parts_go_together() -> None:
    """A thousand yields of a few events are few blocks."""

    class Small(Mine):
        sizes = (3,) * 5_000

    assert len(list(source(Small).make({}).blocks())) == 2


@pytest.mark.parametrize("asked", [1, 3, 4, 10_000, 20_006, 10**6])
def test_a_run_is_cut_after_the_events_that_are_asked_for(asked: int) -> None:
    """What is yielded beyond is not taken, and the generator is closed."""
    Mine.ended.clear()
    workload = source(Mine).make({}, events=asked)
    assert selectors(workload, 1_000) == list(range(min(asked, 20_006)))
    assert workload.total_events == min(asked, 20_006)
    assert Mine.ended == ["ended"]


def test_time_alone_is_no_event() -> None:
    """ADVANCE is sent and not counted, neither in the end nor for --events."""

    class Slow(Mine):
        def generate(self) -> Generated:
            yield repeated(events(kinds=[EventKind.ADVANCE, CPUID]), 10)

    workload = source(Slow).make({}, events=4)
    assert len(selectors(workload, 100)) == 8
    assert workload.total_events == 4


def test_leaving_a_run_ends_its_generator() -> None:
    """What the author opened is closed at once."""
    Mine.ended.clear()
    blocks = source(Mine).make({}).blocks(2)
    next(blocks)
    blocks.close()
    assert Mine.ended == ["ended"]


class Closed(Mine):
    """Yields a part, and keeps what it is answered."""

    reads_outcomes = True
    answers: ClassVar[list[list[int]]] = []

    def generate(self) -> Generated:
        """Yield parts of several sizes."""
        count = 0
        for size in self.sizes:
            outcomes = yield events(kinds=[CPUID] * size, selectors=np.arange(count, count + size))
            self.answers.append(outcomes.values.tolist())
            count += size


@pytest.mark.parametrize("block_events", [1, 7, 65_536])
def test_each_part_is_answered_whole(block_events: int) -> None:
    """Though a part goes out in several blocks, its author gets one answer of just these events."""

    class Asking(Closed):
        sizes = (3, 0, 20, 1)
        answers: ClassVar[list[list[int]]] = []

    blocks = source(Asking).make({}).blocks(block_events)
    block: EventColumns | None = next(blocks)
    while block is not None:
        assert block.selectors is not None
        values = block.selectors.astype(np.uint64)
        answer = Outcomes(np.ones(len(block), np.uint8), values, np.zeros(len(block), np.uint32))
        try:
            block = blocks.send(answer)
        except StopIteration:
            block = None
    assert Asking.answers == [[0, 1, 2], [], list(range(3, 23)), [23]]


def test_each_run_is_a_new_object() -> None:
    """What a run leaves in its object is not there in the next."""

    class Counting(Mine):
        runs = 0

        def generate(self) -> Generated:
            self.runs += 1
            yield events(kinds=CPUID, selectors=self.runs, values=self.random.integers(0, 1 << 60))

    workload = source(Counting).make({}, seed=5)
    first, second = (next(workload.blocks()) for _ in range(2))
    assert first.selectors is not None
    assert second.selectors is not None
    assert first.values is not None
    assert second.values is not None
    assert (first.selectors[0], second.selectors[0]) == (1, 1)
    assert first.values[0] == second.values[0]


def test_what_depends_on_parameters_is_prepared() -> None:
    """A session is created with what prepare has set."""

    class Prepared(Mine):
        parameters = (Parameter("threads", 2, "vCPUs", "how many", 1, 8),)

        def prepare(self) -> None:
            self.vcpus = self["threads"]
            self.physical_cpus = 3
            self.columns = ["vcpus"]

    workload = source(Prepared).make({"threads": "5"})
    assert (workload.vcpus, workload.physical_cpus) == (5, 3)
    assert workload.initial_physical_cpus == (0, 1, 2, 0, 1)
    assert [column.name for column in workload.columns] == ["KINDS", "VCPUS"]
    assert workload.parameters_used == {"threads": 5}


_KINDS = np.array([7, 7], np.uint8)
_SHAPES = r"args of uint8 of shape \(3,\), expected uint8 of shape \(2,\)"


WRONG: list[tuple[dict[str, Any], Any, str]] = [
    ({}, [1, 2], r"at event 2 it yields list, expected what events\(\) returns"),
    ({}, None, "at event 2 it yields NoneType"),
    ({}, EventColumns(kinds=_KINDS, args=np.zeros(3, np.uint8)), f"at event 2 it yields {_SHAPES}"),
    ({}, EventColumns(kinds=np.zeros(1, np.int64)), "at event 2 it yields kinds of int64"),
    ({}, EventColumns(kinds=[7]), "at event 2 it yields kinds of list"),  # type: ignore[arg-type]
    ({}, events(kinds=[7, 58]), "event 3: kinds 58, expected 1 to 57"),
    ({}, events(kinds=[7, 0]), "event 3: kinds 0, expected 1 to 57"),
    ({"vcpus": 2}, events(kinds=[7, 7, 7], vcpus=[0, 1, 2]), "event 4: vcpus 2, expected 0 to 1"),
    (
        {"columns": ("args",)},
        events(kinds=7, rips=1),
        "at event 2 it yields rips, which its columns do",
    ),
]


@pytest.mark.parametrize(("facts", "part", "said"), WRONG)
def test_a_wrong_yield_is_told_with_its_event_and_its_place(
    facts: dict[str, Any], part: Any, said: str
) -> None:
    """Event, column, what was expected, and the line of the yield."""

    def generate(_: Workload) -> Generated:
        yield events(kinds=[CPUID] * 2)
        yield part

    made = type("Wrong", (Mine,), {"generate": generate, **facts})
    with pytest.raises(
        BadInput, match=rf"^workload mine \(this file\): {said}.*test_authored\.py, line \d+\)$"
    ):
        list(source(made).make({}).blocks())


def _raises(error: BaseException) -> Generated:
    yield events(kinds=[CPUID] * 2)
    raise error


def _ignores_close() -> Generated:
    try:
        yield events(kinds=CPUID)
    except GeneratorExit:
        yield events(kinds=CPUID)


BREAKING: list[tuple[Any, int | None, str]] = [
    (
        lambda _: _raises(KeyError("lost")),
        None,
        r"at event 2: KeyError: 'lost' \(.*authored\.py, line \d+\)$",
    ),
    (lambda _: _raises(GeneratorExit()), None, r"at event 2: GeneratorExit \(.*authored\.py, line \d+\)$"),
    (lambda _: _raises(ValueError("\x1b[1m\x07")), None, r"at event 2: ValueError: \\x1b\[1m\\x07 \("),
    (lambda _: _ignores_close(), 1, "at event 1, when it was to end: RuntimeError: generator ignored"),
    (lambda _: [events(kinds=CPUID)], None, "generate returned list, expected a generator"),
    (lambda _: 1 // 0, None, r"generate: ZeroDivisionError: .*test_authored\.py, line \d+\)$"),
    (lambda _: iter(()), None, "generate returned tuple_iterator, expected a generator"),
    (lambda _: (part for part in list[EventColumns]()), None, "it ended without an event$"),
]


@pytest.mark.parametrize(("generate", "asked", "said"), BREAKING)
def test_a_generator_that_breaks_is_told_as_its_authors(generate: Any, asked: int | None, said: str) -> None:
    """His exception's type, message and place, and the event at which it came."""
    made = type("Breaking", (Mine,), {"generate": generate})
    with pytest.raises(BadInput, match=rf"^workload mine \(this file\): {said}"):
        list(source(made).make({}, events=asked).blocks())


FACTS: list[tuple[dict[str, Any], str]] = [
    ({"vcpus": 0}, "vcpus: 0, expected a whole number from 1 to 256"),
    ({"vcpus": 257}, "vcpus: 257, "),
    ({"vcpus": True}, "vcpus: True, "),
    ({"vcpus": "2"}, "vcpus: '2', "),
    ({"physical_cpus": 0}, "physical_cpus: 0, "),
    ({"vcpus": 2, "initial_physical_cpus": [0]}, "initial_physical_cpus: 1 of them, expected 2"),
    ({"initial_physical_cpus": [1]}, "initial_physical_cpus: 1, expected a whole number from 0 to 0"),
    ({"initial_physical_cpus": 3}, "initial_physical_cpus: 3, expected one a vCPU"),
    (
        {"initial_physical_cpus": iter([0])},
        "initial_physical_cpus: of type list_iterator, expected one",
    ),
    ({"vcpus": object()}, "vcpus: of type object, expected a whole number"),
    ({"computed_breakpoints": "no"}, "computed_breakpoints: 'no', expected True or False"),
    ({"columns": 5}, "columns: 5, expected a tuple of names"),
    ({"columns": (5,)}, "columns: 5 is none, expected some of kinds, args, "),
    ({"__init__": lambda *_: None}, "its __init__ does not call that of Workload; write prepare instead"),
    ({"clock_hertz": 2.5e9}, "clock_hertz: 2500000000.0, "),
    ({"columns": ("args", "reps")}, "columns: 'reps' is none, expected some of kinds, args, "),
]


@pytest.mark.parametrize(("facts", "said"), FACTS)
def test_facts_that_no_session_can_have_are_refused(facts: dict[str, Any], said: str) -> None:
    """They are looked at before anything runs."""
    with pytest.raises(BadInput, match=rf"^workload mine \(this file\): {said}"):
        source(type("Odd", (Mine,), facts)).make({})


def test_an_author_may_refuse_parameters_that_do_not_go_together() -> None:
    """His words are the message."""

    class Refusing(Mine):
        def prepare(self) -> None:
            raise BadParameter("ups=1 needs downs=1")

    with pytest.raises(BadParameter, match=r"^mine: ups=1 needs downs=1$"):
        source(Refusing).make({})
