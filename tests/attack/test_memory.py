"""What takes much memory for few bytes, and what nobody reads: it costs the server little."""

from collections.abc import Iterator

import grpc
import pytest

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.v1 import hypervisor_pb2
from tests.attack.guest import FULL, Guest, Source, Stream, message_bytes
from tests.attack.raw import many_calls
from tests.attack.served import Served
from tests.attack.target import FLAGS, Target, check_small_growth, checked
from tests.contract.wire import length_delimited


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return a server with its real engine; the bystander's report is compared at the end."""
    with Served(tmp_path_factory.mktemp("memory"), *FLAGS) as served:
        target = Target(served)
        yield target
        target.close()


def test_plain_events_that_are_none(target: Target) -> None:
    """A message with hundreds of thousands of empty events is refused, and is gone at once."""
    many = length_delimited(3, b"\x12\x00" * 200_000)
    streams = []
    with check_small_growth(target.served):
        for _ in range(16):
            stream = Stream(target.guest, target.guest.create(target.source.config))
            stream.put(many)
            streams.append(stream)
        for stream in streams:
            with pytest.raises(grpc.RpcError) as refused:
                stream.applied()
            assert checked(refused.value) == "BLOCK_TOO_LARGE"


def test_outcomes_sent_again_that_nobody_reads(target: Target) -> None:
    """A stream that is opened again and again, by who reads nothing, holds its outcomes once."""
    source = Source(0, 160_000, 8, FULL)
    guest = Guest(target.served.address)
    session_id, crcs, at = guest.create(source.config), ColumnCrcs(source.columns), 0
    stream = Stream(guest, session_id)
    for block in source.blocks(4096):
        stream.put(encode_block(block, at, crcs))
        at += len(block)
        while stream.applied() < at:
            pass
    guests = [Guest(target.served.address) for _ in range(30)]
    streams = [Stream(mute) for mute in guests]
    opening = message_bytes(open=hypervisor_pb2.Open(session_id=session_id))
    with check_small_growth(target.served):
        for number, mute in enumerate(streams):
            mute.put(opening)
            while guest.status(session_id).epoch < number + 2:
                pass
    for each in (guest, *guests):
        each.close()


def test_two_thousand_calls(target: Target) -> None:
    """Two thousand streams that say nothing are held, up to the limit of streams, and hold up nobody."""
    with check_small_growth(target.served), many_calls(target.served.address, 20, 100):
        for _ in range(20):
            target.check_bystander()
