"""The fault proxy carries connections, cuts them, and goes down and up again, over a plain echo server."""

from dataclasses import dataclass

import pytest

from tests.faults.echo import DATA, EchoServer, Heard, ManualClock, Start, connect, echoed, read_exactly
from tests.faults.proxy import FaultProxy
from tests.faults.sockets import UNIX, reset_at_close
from tests.faults.toxics import STREAMS, Chunk, Latency, LimitData, Send, Slicer, Stream, Stub, Timeout, Toxic

SLOW, SLICED = Latency(latency=10), Slicer(average_size=3)


def test_data_and_their_end_pass_unchanged(start: Start) -> None:
    """Without toxics, both ends see what the other sent, and the proxy counts it."""
    server, proxy = start()
    assert echoed(proxy.address, DATA) == DATA
    assert echoed(proxy.address, b"again") == b"again"
    proxy.wait_until(lambda: not any(each.is_open for each in proxy.connections))
    assert [server.end_of(0), server.end_of(1)] == [Heard(DATA, "closed"), Heard(b"again", "closed")]
    assert [each.upstream.passed for each in proxy.connections] == [len(DATA), 5]
    for stream in STREAMS:
        assert proxy.received(stream) == proxy.passed(stream) == len(DATA) + 5


@pytest.mark.parametrize("stream", STREAMS)
def test_a_fault_may_be_for_some_connections_only(start: Start, stream: Stream) -> None:
    """The first connection is cut; whoever comes again goes on."""
    _, proxy = start()
    fault = proxy.add(LimitData(bytes=2), stream, only=[0])
    first = echoed(proxy.address, b"12345")
    assert len(first) <= 2
    assert echoed(proxy.address, b"12345") == b"12345"
    assert fault.cuts == [0]


@pytest.mark.parametrize(("toxics", "chunks"), [((SLOW, SLICED), [1, 1]), ((SLICED, SLOW), [1, 2])])
def test_toxics_follow_each_other_as_added(
    start: Start, toxics: tuple[Toxic, ...], chunks: list[int]
) -> None:
    """Each gets what the one before it has let through."""
    _, proxy = start(ManualClock(jumps=True))
    faults = [proxy.add(toxic, "upstream") for toxic in toxics]
    assert echoed(proxy.address, b"123456") == b"123456"
    assert [fault.chunks for fault in faults] == chunks


def test_down_cuts_and_refuses_until_up(start: Start) -> None:
    """Open connections end, new ones are refused, and the address stays for when it is up again."""
    server, proxy = start()
    with connect(proxy.address) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        assert proxy.down() == 1
        assert client.recv(1) == b""
        assert server.end_of(0).ended == "closed"
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    proxy.up()
    assert echoed(proxy.address, b"again") == b"again"
    assert len(proxy.connections) == 2


def test_down_while_data_are_held(start: Start) -> None:
    """A connection that stands still is cut too, and what it held is lost."""
    server, proxy = start()
    fault = proxy.add(Timeout(timeout=0), "upstream")
    with connect(proxy.address) as client:
        client.sendall(b"held")
        proxy.wait_until(lambda: fault.pauses == 1)
        assert proxy.down() == 1
        assert client.recv(1) == b""
    assert server.end_of(0) == Heard(b"", "closed")
    assert proxy.passed("upstream") == 0


def test_a_server_that_is_not_there_is_an_end(start: Start) -> None:
    """The client's connection is ended and counted; with the server's new address, the next one goes on."""
    server, proxy = start()
    there = server.address
    proxy.upstream = proxy.address + "0" if proxy.address.startswith(UNIX) else "127.0.0.1:1"
    with connect(proxy.address) as client:
        assert client.recv(1) == b""
    assert (proxy.unreached, len(server.heard)) == (1, 0)
    proxy.upstream = there
    assert echoed(proxy.address, b"x") == b"x"


@pytest.mark.parametrize("start", ["tcp"], indirect=True)  # a unix socket knows no reset
def test_a_reset_of_one_end_is_one_of_the_other(start: Start) -> None:
    """The proxy does not make an end in order of it."""
    server, proxy = start()
    with connect(proxy.address) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        reset_at_close(client)
    assert server.end_of(0).ended == "reset"


@dataclass(frozen=True)
class Mistaken(Toxic):
    """Fails."""

    async def pass_on(self, chunk: Chunk, send: Send, stub: Stub) -> None:
        """Raise what no toxic should."""
        del chunk, send, stub
        raise RuntimeError("mine")


def test_a_mistake_of_the_proxy_fails_the_test() -> None:
    """It is not taken for a fault that was asked for."""

    def meet_it(proxy: FaultProxy) -> None:
        with proxy:
            proxy.add(Mistaken(), "upstream")
            assert echoed(proxy.address, b"x") == b""

    with EchoServer("127.0.0.1:0") as server, pytest.raises(ExceptionGroup) as raised:
        meet_it(FaultProxy(server.address))
    assert raised.group_contains(RuntimeError, match="mine")
