"""Outcomes as a guest receives them, from parts as a hypervisor sends them."""

import numpy as np
import pytest

from exitlab.stories import EXCEPTIONS, Story
from exitlab.v1 import outcome_pb2
from guest_svc.errors import CouldNotFinish
from guest_svc.outcomes import ArrivingOutcomes, Outcomes

LANES = 3


def part(first: int, stories: list[Story], lane: int = LANES, **more: list[int]) -> outcome_pb2.OutcomePart:
    """Return a part of an answer."""
    values = more.pop("values", [first + row for row in range(len(stories))])
    return outcome_pb2.OutcomePart(
        first_event=first,
        event_count=len(stories),
        lane=lane,
        stories=bytes(stories),
        story_values=values,
        **more,  # type: ignore[arg-type]
    )


def test_parts_become_one_answer() -> None:
    """Parts are joined in order, and each is handed on once."""
    arriving = ArrivingOutcomes(LANES)
    arriving.take(part(5, [Story.READ, Story.NOTHING]))
    arriving.take(part(7, [Story.DB_TRAP], values=[0x400_FFFF_4FF1], undefined_dr6=[0x2]))
    outcomes = arriving.of(3)
    assert [outcomes.story(row) for row in range(3)] == [Story.READ, Story.NOTHING, Story.DB_TRAP]
    assert (outcomes.value(0), outcomes.undefined_dr6.tolist()) == (5, [0, 0, 2])
    assert outcomes.is_read.tolist() == [True, False, False]
    assert outcomes.is_exception.tolist() == [False, False, True]
    assert [hex(number) for number in outcomes.dr6] == ["0x0", "0x0", "0xffff4ff1"]
    assert [hex(number) for number in outcomes.dr7] == ["0x0", "0x0", "0x400"]
    arriving.take(part(8, [Story.NOT_TAKEN]))
    assert arriving.of(1).is_taken.tolist() == [False]
    assert len(arriving.of(0)) == 0


def test_every_story_is_an_exception_or_none() -> None:
    """Those whose value is DR6 and DR7 are the exceptions that a handler takes."""
    stories = np.array(list(Story), np.uint8)
    outcomes = Outcomes(stories, np.zeros(len(stories), np.uint64), np.zeros(len(stories), np.uint32))
    assert {story for story, is_one in zip(Story, outcomes.is_exception, strict=True) if is_one} == EXCEPTIONS
    names = {"DB_FAULT", "DB_TRAP", "UD", "GP", "GP_SKIPPED", "BP"}
    assert {story.name for story in EXCEPTIONS} == names


def test_rows_and_joined_are_each_others_opposite() -> None:
    """However outcomes are cut, joined they are the same."""
    stories = np.arange(10, dtype=np.uint8) % 3
    whole = Outcomes(stories, np.arange(10, dtype=np.uint64), np.zeros(10, np.uint32))
    again = Outcomes.joined([whole.rows(0, 4), whole.rows(4, 4), whole.rows(4, 10)])
    assert again.stories.tolist() == stories.tolist()
    assert again.values.tolist() == list(range(10))


BAD = [
    ([part(0, [Story.READ], lane=0)], 1, "outcomes that nobody asked for: lane 0"),
    ([part(0, [Story.READ], values=[])], 1, "1 stories and 0 values of 1 events"),
    ([part(0, [Story.READ]), part(2, [Story.READ])], 2, "from event 2 on, expected those from 1 on"),
    ([part(0, [Story.READ])], 2, "outcomes of 1 events, expected 2"),
]


@pytest.mark.parametrize(("parts", "events", "said"), BAD)
def test_an_answer_that_is_none_is_refused(
    parts: list[outcome_pb2.OutcomePart], events: int, said: str
) -> None:
    """A guest never acts on what another event showed."""

    def ask() -> None:
        arriving = ArrivingOutcomes(LANES)
        for each in parts:
            arriving.take(each)
        arriving.of(events)

    with pytest.raises(CouldNotFinish, match=said):
        ask()
