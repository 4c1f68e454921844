"""What a hostile client may say: every request wildly, and streams in any order.

A server answers with a status of a known set, tells why in its details, logs no fault of its own, and leaves
every session as it was where it refuses. A bystander's session is looked at all the time, and ends in the
report that it has without any of this.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.attack.conversation import RIGHT, WRONG, Conversation, wild_messages
from tests.attack.raw import KINDS, send_raw
from tests.attack.target import Target, check_small_growth
from tests.attack.wild import near


def fuzz_requests(target: Target, examples: int, number: int) -> None:
    """Send wild requests of every method."""
    requests = target.valid_requests()
    wild = {method: near(requests[method], target.texts) for method in requests}
    strategy = st.sampled_from(sorted(wild)).flatmap(lambda method: st.tuples(st.just(method), wild[method]))

    def one(said: tuple[str, bytes]) -> None:
        target.say(*said)

    _run(one, strategy, examples, number)
    target.check_bystander()


def fuzz_streams(target: Target, examples: int, number: int) -> None:
    """Send streams of right and wrong messages in any order, and wild ones."""

    def one(streams: list[list[Any]]) -> None:
        conversation = Conversation(target)
        for said in streams:
            conversation.say(said)
        conversation.finish()

    move = st.sampled_from([*RIGHT * 3, *WRONG]) | wild_messages(target)
    _run(one, st.lists(st.lists(move, max_size=6), min_size=1, max_size=4), examples, number)
    target.check_bystander()


def fuzz_raw(target: Target, examples: int, number: int) -> None:
    """Send raw bytes of every kind, on connections of their own."""
    with check_small_growth(target.served):
        for example in range(examples):
            send_raw(target.served.address, KINDS[example % len(KINDS)](number * 1_000_003 + example))
            target.check_bystander()


def _run(one: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int, number: int) -> None:
    """Try examples of a strategy; the first that surprises is told."""
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    chosen = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=health)

    def tried(wild: Any) -> None:
        one(wild)

    seed(number)(chosen(given(strategy)(tried)))()
