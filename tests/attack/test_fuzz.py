"""A small part of ``python -m tests.attack fuzz``, with the same server for all."""

from collections.abc import Iterator

import pytest

from tests.attack.fuzz import fuzz_raw, fuzz_requests, fuzz_streams
from tests.attack.raw import byte_by_byte, open_and_drop
from tests.attack.served import Served
from tests.attack.target import FLAGS, Target, check_small_growth


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return a server with its real engine; the bystander's report is compared at the end."""
    with Served(tmp_path_factory.mktemp("fuzz"), *FLAGS) as served:
        target = Target(served)
        yield target
        target.close()


def test_wild_requests(target: Target) -> None:
    """Any request is answered, or refused with a reason, whatever its fields and its bytes."""
    fuzz_requests(target, 150, 1)


def test_wild_streams(target: Target) -> None:
    """Right, wrong and wild messages in any order: what is refused changes nothing."""
    fuzz_streams(target, 25, 1)


def test_raw_bytes(target: Target) -> None:
    """Bytes that are no conversation, of every kind, change nothing and cost little."""
    fuzz_raw(target, 24, 1)


def test_connections_that_come_to_nothing(target: Target) -> None:
    """Two thousand connections opened and dropped leave nothing behind."""
    open_and_drop(target.served.address, 100)
    files = target.served.open_files()
    with check_small_growth(target.served):
        open_and_drop(target.served.address, 2000)
    # The server closes its ends in its own time: it is asked other things meanwhile.
    for _ in range(5000):
        target.check_bystander()
        if target.served.open_files() <= files + 10:
            return
    pytest.fail(f"{target.served.open_files()} files are open, and were {files}")


def test_calls_that_come_byte_by_byte(target: Target) -> None:
    """A hundred connections that send a byte at a time hold nobody up."""
    with check_small_growth(target.served), byte_by_byte(target.served.address, 100) as send_next:
        for number in range(60):
            send_next()
            if number % 20 == 0:
                target.check_bystander()
