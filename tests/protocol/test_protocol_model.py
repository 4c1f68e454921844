"""The protocol loses and doubles nothing on any path, and each of its rules is needed for that."""

from typing import Final

import pytest

from tests.protocol.cases import CRASHES, SETUPS, WEAKENED, Weakened
from tests.protocol.explore import explore
from tests.protocol.promises import NO_DEAD_END, NO_LOOP, PROMISES
from tests.protocol.records import Setup, Weakening

EPOCH: Final = next(row for row in WEAKENED if row.weakenings == (Weakening.EPOCH_NOT_DURABLE,))


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_every_path(setup: Setup) -> None:
    """No state breaks a promise, and once faults end every path comes to its end."""
    found = explore(setup)
    assert found.violation is None, f"{found.states:,} states\n{found.violation}"
    assert found.states > 5_000, "the setup leaves next to nothing to happen"


@pytest.mark.parametrize("row", WEAKENED, ids=lambda row: row.what_happens)
def test_without_a_rule(row: Weakened) -> None:
    """Without a rule a promise is broken, and the path to it is told."""
    found = explore(row.weakened_setup)
    assert found.violation is not None, f"{found.states:,} states, and nothing breaks"
    assert found.violation.promise == row.breaks, found.violation


def test_every_rule_is_left_out_once() -> None:
    """Each weakening that the model has is in the table."""
    assert {weakening for row in WEAKENED for weakening in row.weakenings} == set(Weakening)


def test_every_promise_can_break() -> None:
    """Each promise is broken by some row: none holds whatever happens."""
    assert {row.breaks for row in WEAKENED} == {*PROMISES, NO_DEAD_END, NO_LOOP}


def test_the_path_is_a_shortest_one_in_words() -> None:
    """An epoch that is not durable goes back after one stream and one crash."""
    assert EPOCH.setup == CRASHES
    assert str(explore(EPOCH.weakened_setup).violation).splitlines() == [
        "broken: the epoch never goes back, and no two streams have one",
        "  1. the guest sends Open (received_events 0)",
        "  2. the server takes Open (received_events 0) and answers "
        "Opened (next_event 0, committed_events 0, digest ''), epoch 1",
        "  3. the server crashes",
        "  4. the server starts from what is durable",
    ]
