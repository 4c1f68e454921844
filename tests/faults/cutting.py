"""A session whose connection is spoiled: what comes of it, and whether the fault has happened."""

from collections.abc import Container
from dataclasses import dataclass

from guest_svc.errors import NotConnected
from tests.faults.guest import SHORT, Loop, Ran, run_session
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import LimitData, Stream, Toxic

FIRST: Container[int] = (0,)  # only the first connection: whoever comes again goes on


@dataclass(frozen=True)
class Spoiled:
    """What came of a session over a bad connection."""

    ran: Ran
    is_cut: bool
    had_to_begin_again: bool  # its very first call was cut, which the guest says and leaves to its caller


def run_spoiled(
    upstream: str,
    listen: str,
    toxic: Toxic,
    stream: Stream,
    loop: Loop,
    only: Container[int] | None = FIRST,
) -> Spoiled:
    """Run a session with a toxic on its connections."""
    with FaultProxy(upstream, listen) as proxy:
        fault = proxy.add(toxic, stream, only=only)
        had_to_begin_again = False
        try:
            ran = run_session(proxy.address, loop)
        except NotConnected:
            had_to_begin_again = True
            ran = run_session(proxy.address, loop)
        assert fault.chunks > 0, "nothing met the toxic"
        return Spoiled(ran, bool(fault.cuts), had_to_begin_again)


def run_cut(upstream: str, listen: str, stream: Stream, loop: Loop, place: int) -> Spoiled:
    """Run a session, its first connection cut after so many bytes of a direction."""
    return run_spoiled(upstream, listen, LimitData(bytes=place), stream, loop)


def session_bytes(upstream: str, listen: str, stream: Stream, loop: Loop) -> int:
    """Return how many bytes of a direction a session takes, and so at how many places it can be cut."""
    with FaultProxy(upstream, listen) as proxy:
        run_session(proxy.address, loop, SHORT)
        assert len(proxy.connections) == 1
        return proxy.passed(stream)
