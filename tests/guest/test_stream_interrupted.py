"""A stream that a signal interrupts: it ends, wherever its caller was."""

import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from exitlab.blocks import DecodedBlock
from exitlab.v1 import outcome_pb2
from guest_svc import arrivals, attempt, attempts, kept, resumed, window
from guest_svc import stream as stream_module
from guest_svc.attempt import READER
from guest_svc.hypervisor import Hypervisor
from guest_svc.stream import EventStream
from tests.guest.keeper import COLUMNS, Keeper, Limits, Response, Serve, create, events

FILES = {module.__file__ for module in (arrivals, attempt, attempts, kept, resumed, stream_module, window)}


class Interrupted(BaseException):
    """What a signal's handler raises."""


def interrupt(place: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a trace function that raises at a place: a line, call or return of a stream or of what it calls.

    The stream's own code counts, and the threads' module where the stream calls it: a handler runs
    where the interpreter next looks, which is also on the way back from a call. How that module starts
    a thread does not: it is not for us to mend.

    """
    left = place

    def trace(frame: FrameType, _event: str, _value: Any) -> Any:
        nonlocal left
        caller = frame.f_back
        is_called = frame.f_code.co_filename == threading.__file__ and frame.f_code.co_name != "start"
        asked = caller if is_called else frame
        if asked is None or asked.f_code.co_filename not in FILES:
            return None
        left -= 1
        if not left:
            raise Interrupted
        return trace

    return trace


def test_an_interruption_anywhere_ends_the_stream(serve: Serve) -> None:
    """No interruption leaves the reader with a lock that nobody gives back, or the caller waiting for it."""
    address = serve(Keeper(limits=Limits(max_block_events=10))).address
    place, is_interrupted = 0, True
    while is_interrupted:
        place += 1
        with Hypervisor(address) as hypervisor:
            stream = EventStream(hypervisor, create(hypervisor), COLUMNS)
            sys.settrace(interrupt(place))
            try:
                with stream:
                    stream.send(events(30))
                    stream.wait_until_applied()
            except Interrupted:
                pass
            else:
                is_interrupted = False
            finally:
                sys.settrace(None)
        for reader in [thread for thread in threading.enumerate() if thread.name == READER]:
            reader.join(10)
            assert not reader.is_alive()
    assert place > 100  # it was interrupted in earnest


@pytest.mark.parametrize("again", [EventStream.wait_until_applied, lambda stream: stream.send(events(1))])
def test_a_stream_that_was_interrupted_is_over(serve: Serve, again: Callable[[EventStream], None]) -> None:
    """What arrived may be lost, so that nothing more can be said of it: it raises the same again."""

    def part(_keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        yield Response(outcomes=outcome_pb2.OutcomePart(event_count=len(block.events), is_last_part=True))

    def interrupted(_part: outcome_pb2.OutcomePart) -> None:
        raise Interrupted

    hypervisor = serve(Keeper(answer=part))
    with EventStream(hypervisor, create(hypervisor), COLUMNS, interrupted) as stream:
        stream.send(events(1))
        with pytest.raises(Interrupted):
            stream.wait_until_applied()
        with pytest.raises(Interrupted):
            again(stream)
