"""Each toxic does what it says, over a plain echo server."""

import asyncio
import socket

import pytest

from tests.faults.echo import DATA, ManualClock, Start, connect, echoed, read_exactly
from tests.faults.toxics import (
    STREAMS,
    Bandwidth,
    Chunk,
    Fault,
    Latency,
    LimitData,
    Link,
    ResetPeer,
    Slicer,
    SlowClose,
    Stream,
    Stub,
    Timeout,
    Toxic,
)


@pytest.mark.parametrize("stream", STREAMS)
def test_latency_delays_all_data(start: Start, stream: Stream) -> None:
    """Each chunk waits its own time from when it came, so that two do not wait one after the other."""
    clock = ManualClock()
    _, proxy = start(clock)
    fault = proxy.add(Latency(latency=100), stream)
    with connect(proxy.address) as client:
        client.sendall(b"a")
        proxy.wait_until(lambda: fault.pauses == 1)
        clock.advance(0.0625)
        client.sendall(b"b")
        proxy.wait_until(lambda: proxy.received(stream) == 2)
        assert proxy.passed(stream) == 0
        clock.advance(0.0625)
        assert read_exactly(client, 1) == b"a"
        proxy.wait_until(lambda: fault.pauses == 2)
        clock.advance(0.0625)
        assert read_exactly(client, 1) == b"b"
    assert clock.deadlines == pytest.approx([0.1, 0.1625])
    assert fault.chunks == 2


def delays_with_jitter(start: Start, seed: int) -> list[float]:
    """Return how long each of some bytes was delayed, by 100 ms plus or minus 50."""
    clock = ManualClock(jumps=True)
    _, proxy = start(clock, seed)
    proxy.add(Latency(latency=100, jitter=50), "upstream")
    with connect(proxy.address) as client:
        for _ in range(20):
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
    return [end - begin for begin, end in zip([0.0, *clock.deadlines], clock.deadlines, strict=False)]


@pytest.mark.parametrize("start", ["tcp"], indirect=True)
def test_jitter_is_drawn_from_the_seed(start: Start) -> None:
    """Delays lie around the latency; the same seed gives the same ones, and another others."""
    one, same, other = (delays_with_jitter(start, seed) for seed in (7, 7, 8))
    assert len(one) == 20
    assert all(0.05 <= delay <= 0.15 for delay in one)
    assert max(one) - min(one) > 0.05
    assert one == same != other


def test_bandwidth_takes_its_time_for_every_byte(start: Start) -> None:
    """At 1 kB/s, 250 bytes go in three pieces, the last after a quarter of a second."""
    clock = ManualClock(jumps=True)
    _, proxy = start(clock)
    fault = proxy.add(Bandwidth(rate=1), "downstream")
    assert echoed(proxy.address, DATA[:250]) == DATA[:250]
    assert clock.deadlines == pytest.approx([0.1, 0.2, 0.25])
    assert fault.paused_seconds == pytest.approx(0.25)


@pytest.mark.parametrize("stream", STREAMS)
def test_slow_close_delays_the_end_only(start: Start, stream: Stream) -> None:
    """The data are through at once, the end when its delay is over."""
    clock = ManualClock()
    server, proxy = start(clock)
    fault = proxy.add(SlowClose(delay=1000), stream)
    with connect(proxy.address) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        assert fault.pauses == 0
        client.shutdown(socket.SHUT_WR)
        proxy.wait_until(lambda: fault.pauses == 1)
        assert proxy.connections[0].is_open
        assert server.heard[0].ended == "" or stream == "downstream"
        clock.advance(1)
        assert client.recv(1) == b""
    assert fault.paused_seconds == 1


@pytest.mark.parametrize("stream", STREAMS)
def test_a_timeout_of_zero_holds_data_until_it_is_removed(start: Start, stream: Stream) -> None:
    """Nothing passes, the connection stays, and what was held goes on afterwards."""
    _, proxy = start()
    fault = proxy.add(Timeout(timeout=0), stream)
    with connect(proxy.address) as client:
        client.sendall(b"held")
        proxy.wait_until(lambda: fault.pauses == 1)
        assert (proxy.received(stream), proxy.passed(stream)) == (4, 0)
        proxy.remove(fault)
        assert read_exactly(client, 4) == b"held"
        client.sendall(b"free")
        assert read_exactly(client, 4) == b"free"
    assert (fault.chunks, fault.cuts) == (1, [])


@pytest.mark.parametrize("stream", STREAMS)
def test_a_timeout_ends_the_connection(start: Start, stream: Stream) -> None:
    """What was held is lost, and both ends see the end when the time is over."""
    clock = ManualClock()
    server, proxy = start(clock)
    fault = proxy.add(Timeout(timeout=100), stream)
    with connect(proxy.address) as client:
        client.sendall(b"lost")
        proxy.wait_until(lambda: fault.pauses == 1)
        assert fault.cuts == []
        clock.advance(0.1)
        assert client.recv(1) == b""
        assert server.end_of(0).ended == "closed"
    assert (proxy.passed(stream), fault.cuts) == (0, [0])


@pytest.mark.parametrize("start", ["tcp"], indirect=True)  # a unix socket knows no reset
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("timeout", [0, 100])
def test_reset_peer_resets_both_ends(start: Start, stream: Stream, timeout: int) -> None:
    """Neither end sees an end in order."""
    clock = ManualClock()
    server, proxy = start(clock)
    fault = proxy.add(ResetPeer(timeout=timeout), stream)
    with connect(proxy.address) as client:
        client.sendall(b"lost")
        if timeout:
            proxy.wait_until(lambda: fault.pauses == 1)
            assert fault.cuts == []
            clock.advance(0.1)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert server.end_of(0).ended == "reset"
    assert (proxy.passed(stream), fault.cuts) == (0, [0])


def slices(seed: int) -> list[bytes]:
    """Return the slices of a thousand bytes, of 10 plus or minus 3."""
    sent: list[bytes] = []
    clock = ManualClock(jumps=True)

    async def keep(chunk: Chunk) -> None:
        sent.append(chunk.data)

    async def run() -> None:
        toxic = Slicer(average_size=10, size_variation=3, delay=1000)
        fault = Fault(toxic, "upstream", None, 0, seed, clock, lambda: None)
        await Stub(fault, Link(0, "upstream")).pass_on(keep, Chunk(DATA[:1000], 0.0))

    asyncio.run(run())
    assert clock.deadlines == pytest.approx([0.001 * (place + 1) for place in range(len(sent))])
    return sent


def test_slices_are_of_the_sizes_that_were_asked_for() -> None:
    """Every size within the variation occurs, the order stays, and the seed decides."""
    sent = slices(1)
    assert b"".join(sent) == DATA[:1000]
    assert {len(each) for each in sent[:-1]} == set(range(7, 14))
    assert sent == slices(1) != slices(2)


@pytest.mark.parametrize("stream", STREAMS)
def test_sliced_data_arrive_whole(start: Start, stream: Stream) -> None:
    """Whoever reads gets all, in order, after a pause for each slice."""
    _, proxy = start(ManualClock(jumps=True))
    fault = proxy.add(Slicer(average_size=100, delay=10), stream)
    assert echoed(proxy.address, DATA[:5000]) == DATA[:5000]
    assert fault.pauses >= 50


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("toxics_before", [(), (Slicer(average_size=3),)])
def test_limit_data_cuts_at_every_byte(
    start: Start, stream: Stream, toxics_before: tuple[Toxic, ...]
) -> None:
    """Exactly as many bytes arrive as were allowed, and a limit that is not reached does nothing."""
    server, proxy = start()
    data = DATA[100:120]
    for toxic in toxics_before:
        proxy.add(toxic, stream)
    for limit in range(len(data) + 2):
        fault = proxy.add(LimitData(bytes=limit), stream)
        answer = echoed(proxy.address, data)
        number = len(proxy.connections) - 1
        connection = proxy.connections[number]
        proxy.wait_until(lambda ended=connection: not ended.is_open)  # type: ignore[misc]  # bound now
        heard = server.end_of(number)
        is_upstream = stream == "upstream"
        arrived = heard.data if is_upstream else answer
        assert arrived == data[:limit]
        assert (connection.upstream if is_upstream else connection.downstream).passed == len(arrived)
        assert fault.cuts == ([number] if limit <= len(data) else [])
        proxy.remove(fault)
