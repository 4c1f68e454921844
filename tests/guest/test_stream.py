"""The guest's end of the wire, against a hypervisor that only keeps what it was sent."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from exitlab.blocks import ColumnCrcs, DecodedBlock
from exitlab.v1 import hypervisor_pb2, outcome_pb2, report_pb2
from guest_svc import attempt, embedded
from guest_svc import hypervisor as hypervisor_module
from guest_svc.errors import BadInput, CouldNotFinish, NotConnected
from guest_svc.hypervisor import Hypervisor
from guest_svc.stream import EventStream
from guest_svc.window import WINDOW_BLOCKS
from tests.guest.keeper import COLUMNS, Keeper, Limits, Response, Serve, applied, create, events, send_five


def test_all_events_arrive_once_in_order_with_running_digests(serve: Serve) -> None:
    """Blocks follow each other without gaps, and their digests are those of the whole stream."""
    keeper = Keeper()
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        for start, count in ((0, 250), (250, 1), (251, 99)):
            stream.send(events(count, start))
        stream.wait_until_applied()
        assert (stream.next_event, stream.applied_events, stream.committed_events) == (350, 350, 350)
        assert stream.epoch == 3
        crcs = stream.crcs
    assert [block.first_event for block in keeper.blocks] == [0, 100, 200, 250, 251]
    whole = np.concatenate([block.events.values for block in keeper.blocks])
    np.testing.assert_array_equal(whole, np.arange(350))
    expected = ColumnCrcs(COLUMNS)
    expected.update(events(350))
    assert crcs == expected.values == keeper.blocks[-1].column_crcs


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        (Limits(max_block_events=64), 64),
        (Limits(max_window_events=50, max_block_events=64), 50),
        (Limits(max_message_bytes=512 + 9 * 30), 30),
        (Limits(), 120),
    ],
)
def test_blocks_are_as_large_as_the_hypervisor_takes(serve: Serve, limits: Limits, largest: int) -> None:
    """Events are cut by whichever limit is the tightest, and sent whole where there is none."""
    keeper = Keeper(limits=limits)
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        stream.send(events(120))
        stream.wait_until_applied()
    assert max(len(block.events) for block in keeper.blocks) == largest
    assert sum(len(block.events) for block in keeper.blocks) == 120


@pytest.mark.parametrize(
    ("limits", "blocks"),
    [
        (Limits(max_block_events=10), WINDOW_BLOCKS),
        (Limits(max_block_events=10, max_window_events=25), 2),
        (Limits(max_block_events=10, max_uncommitted_events=10), 1),
    ],
)
def test_no_more_is_in_flight_than_the_window_allows(serve: Serve, limits: Limits, blocks: int) -> None:
    """Sending waits while the flow-control window is full, in blocks, events or what is uncommitted."""
    most = []

    def watch(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        # What was sent and not yet answered is at most what the sender has counted by now.
        most.append((sender.next_event - block.first_event) // 10)
        yield from applied(keeper, block)

    keeper = Keeper(limits=limits, answer=watch)
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as sender:
        for start in range(0, 400, 10):
            sender.send(events(10, start))
        sender.wait_until_applied()
    assert sum(len(block.events) for block in keeper.blocks) == 400
    assert max(most) <= blocks


def test_a_full_window_is_used(serve: Serve) -> None:
    """The sender does not wait for an answer to each block: four are under way at once."""
    keeper = Keeper(limits=Limits(max_block_events=10))
    keeper.may_answer.clear()
    hypervisor = serve(keeper)
    with EventStream(hypervisor, create(hypervisor), COLUMNS) as stream:
        for start in range(0, 10 * WINDOW_BLOCKS, 10):
            stream.send(events(10, start))
        assert keeper.has_filled.wait(60)
        keeper.may_answer.set()
        stream.wait_until_applied()
    assert stream.applied_events == 10 * WINDOW_BLOCKS


def test_outcomes_are_handed_over_and_confirmed(serve: Serve) -> None:
    """A block counts as answered when the last part of its outcomes is there; the hypervisor is told."""

    def in_parts(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        for lane in (0, 1):
            yield Response(
                outcomes=outcome_pb2.OutcomePart(
                    first_event=block.first_event,
                    event_count=len(block.events),
                    lane=lane,
                    is_last_part=lane == 1,
                )
            )
        yield from applied(keeper, block)

    keeper = Keeper(answer=in_parts)
    hypervisor = serve(keeper)
    parts: list[outcome_pb2.OutcomePart] = []
    with EventStream(hypervisor, create(hypervisor), COLUMNS, parts.append) as stream:
        for start in (0, 5):
            stream.send(events(5, start))
            stream.wait_until_applied()
            assert stream.received_events == start + 5
    assert [(part.first_event, part.lane) for part in parts] == [(0, 0), (0, 1), (5, 0), (5, 1)]
    assert keeper.has_ended.wait(60)
    assert keeper.confirmed == [5, 10]


def test_finishing_states_count_and_digests(serve: Serve) -> None:
    """The end of a stream proves nothing: the guest says how much there was."""
    keeper = Keeper()
    hypervisor = serve(keeper)
    assert hypervisor.finish_session("s1", 350, (1, 2)) == report_pb2.Report(events=350)
    assert [(each.event_count, tuple(each.column_crcs)) for each in keeper.finished] == [(350, (1, 2))]


def refuse_block(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
    """End the stream by an error that names a field."""
    del keeper, block
    raise AssertionError("a hypervisor with a bug")
    yield


def drain(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
    """Announce the end."""
    del keeper
    yield Response(draining=hypervisor_pb2.Draining(applied_events=block.first_event))


@pytest.mark.parametrize(
    ("answer", "said"),
    [(refuse_block, "the stream broke at event 0"), (drain, "the hypervisor is stopping at event 0")],
)
def test_a_stream_that_is_cut_could_not_finish(serve: Serve, answer: Any, said: str) -> None:
    """A run that started and broke says where, in one line."""
    hypervisor = serve(Keeper(answer=answer))
    with pytest.raises(CouldNotFinish, match=said) as raised:
        send_five(hypervisor)
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


def say(*messages: Response | bytes) -> Callable[[Keeper, DecodedBlock], Iterator[Response | bytes]]:
    """Return an answer of fixed messages, after which the stream breaks."""

    def answer(keeper: Keeper, block: DecodedBlock) -> Iterator[Response | bytes]:
        del keeper, block
        yield from messages
        raise AssertionError("nothing more to say")

    return answer


def acknowledge(applied_events: int) -> Response:
    """Return an acknowledgement."""
    return Response(acknowledgement=hypervisor_pb2.Acknowledgement(applied_events=applied_events))


def told(events: int) -> Response:
    """Return the outcomes of a first block."""
    return Response(outcomes=outcome_pb2.OutcomePart(event_count=events, is_last_part=True))


@pytest.mark.parametrize(
    ("keeper", "said"),
    [
        (
            Keeper(opened=hypervisor_pb2.Opened(next_event=5), answer=say()),
            "the hypervisor goes on at event 5, this stream at 0",
        ),
        (Keeper(answer=say(acknowledge(6))), "acknowledged event 6: expected 0, .* to 5, which were sent"),
        (Keeper(answer=say(told(3), acknowledge(3), acknowledge(2))), "acknowledged event 2: expected 3, "),
        (
            Keeper(answer=say(Response(outcomes=outcome_pb2.OutcomePart(first_event=1, event_count=2)))),
            "sent outcomes from event 1 on: those from event 0 on have not come",
        ),
        (Keeper(answer=say(told(2), acknowledge(3))), "event 3, but outcomes from event 2 on have not come"),
        (
            Keeper(answer=say(Response(outcomes=outcome_pb2.OutcomePart(event_count=6)))),
            "outcomes up to event 6: expected 0, .* to 5, which were sent",
        ),
        (Keeper(answer=say(b"\xff\xff")), "the stream broke at event 0: .*deserializing"),
    ],
)
def test_a_hypervisor_that_breaks_the_contract_is_told(serve: Serve, keeper: Keeper, said: str) -> None:
    """What cannot be true of the stream ends the run by one line that says what it is."""
    with pytest.raises(CouldNotFinish, match=said) as raised:
        send_five(serve(keeper), on_outcomes=lambda _: None)
    assert "\n" not in str(raised.value)


def test_the_first_reason_stands(serve: Serve) -> None:
    """A hypervisor that announces its end and then breaks the stream has said why it did."""
    drained = Response(draining=hypervisor_pb2.Draining(applied_events=0))

    def look_late(stream: EventStream) -> None:
        assert stream._attempts._attempt is not None
        stream._attempts._attempt._reader.join()  # both have arrived
        stream.wait_until_applied()

    with pytest.raises(CouldNotFinish, match="the hypervisor is stopping at event 0"):
        send_five(serve(Keeper(answer=say(drained))), and_then=look_late)


def test_a_stream_that_the_hypervisor_never_ends_is_left(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all is applied, a hypervisor that stopped running does not keep the guest."""
    monkeypatch.setattr(attempt, "_CLOSING_SECONDS", 0)
    keeper = Keeper()
    keeper.may_end.clear()
    send_five(serve(keeper))
    assert not keeper.has_ended.is_set()
    keeper.may_end.set()


def test_closing_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A channel that does not close, as one to a stopped process may not, does not keep the guest."""
    monkeypatch.setattr(hypervisor_module, "_CLOSING_SECONDS", 0)
    has_left, was_left = threading.Event(), SimpleQueue[bool]()
    hypervisor = Hypervisor(f"unix:{tmp_path}/nobody")
    close = hypervisor.channel.close
    monkeypatch.setattr(hypervisor.channel, "close", lambda: was_left.put(has_left.wait(10)))
    with hypervisor:
        pass
    has_left.set()
    assert was_left.get()
    close()


def test_an_error_of_the_caller_closes_the_stream(serve: Serve) -> None:
    """A source that fails ends its stream, and its own error is what is told."""
    hypervisor = serve(Keeper())

    def fail(stream: EventStream) -> None:
        raise ZeroDivisionError(stream.next_event)

    with pytest.raises(ZeroDivisionError, match="5"):
        send_five(hypervisor, and_then=fail)


def test_an_error_in_taking_outcomes_reaches_the_caller(serve: Serve) -> None:
    """What goes wrong in taking what arrived is raised where the stream is used."""

    def part(keeper: Keeper, block: DecodedBlock) -> Iterator[Response]:
        del keeper
        yield Response(outcomes=outcome_pb2.OutcomePart(event_count=len(block.events), is_last_part=True))

    def refuse(part: outcome_pb2.OutcomePart) -> None:
        raise CouldNotFinish(f"part of lane {part.lane}")

    hypervisor = serve(Keeper(answer=part))
    with pytest.raises(CouldNotFinish, match="part of lane 0"):
        send_five(hypervisor, on_outcomes=refuse)


def test_refusals_carry_the_servers_field_and_reason(serve: Serve) -> None:
    """One line says what is wrong, the field and the reason; the command then exits with 2."""
    hypervisor = serve(Keeper())
    with pytest.raises(BadInput) as raised:
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="refuse"))
    expected = "no policy kvm-3.13 [reason UNKNOWN_POLICY, field config.lanes[0].policy_name]"
    assert (str(raised.value), raised.value.exit_code) == (expected, 2)


def test_details_that_nobody_can_read_are_left_out(serve: Serve) -> None:
    """An error whose details are no details is told by its message alone."""
    hypervisor = serve(Keeper())
    with pytest.raises(BadInput, match=r"^no$"):
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="refuse with garbage"))


def test_a_report_that_is_no_message_is_told(serve: Serve) -> None:
    """Bytes that are no report could not finish the run."""
    hypervisor = serve(Keeper(report=b"\xff"))
    with pytest.raises(CouldNotFinish, match="the hypervisor's report cannot be read"):
        hypervisor.finish_session("s1", 5, ())


def test_a_hypervisor_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing to connect to is told by its address, at once."""
    address = f"unix:{tmp_path}/nobody"
    with Hypervisor(address) as hypervisor, pytest.raises(NotConnected) as raised:
        hypervisor.price_lists()
    assert str(raised.value).startswith(f"no hypervisor answers at {address}: ")
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (2, False)


def test_a_hypervisor_that_stops_at_the_first_call_is_named(serve: Serve) -> None:
    """A call that the other side cancels says that it is stopping, not that the call was wrong."""
    hypervisor = serve(Keeper())
    said = f"^the hypervisor at {hypervisor.address} is stopping: it cancelled the call$"
    with pytest.raises(NotConnected, match=said):
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="stop"))


def test_a_hypervisor_that_takes_no_session_now_is_there(serve: Serve) -> None:
    """Where a first call is refused for now, nobody says that no hypervisor answers."""
    hypervisor = serve(Keeper())
    said = f"^the hypervisor at {hypervisor.address} begins no session now: the disk is full .reason NOT"
    with pytest.raises(NotConnected, match=said):
        hypervisor.create_session(hypervisor_pb2.SessionConfig(label="full"))


SERVER_THAT = """
import os, sys
listen, pipe = sys.argv[sys.argv.index("--listen") + 1], int(sys.argv[sys.argv.index("--parent-pipe") + 1])
print("compiling the engine", flush=True)
{then}
"""
LISTENS = 'print("listening on 127.0.0.1:4711", flush=True); os.read(pipe, 1)'
FAILS = 'sys.exit("hypervisor-svc: no engine\\nhypervisor-svc: look elsewhere")'


def test_an_embedded_hypervisor_ends_with_its_parents_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subprocess gets a private folder, is waited for, and is gone with its folder at the end."""
    child = SERVER_THAT.format(then=LISTENS)
    real = embedded._command
    monkeypatch.setattr(embedded, "_command", lambda *given: [sys.executable, "-c", child, *real(*given)[3:]])
    with embedded.EmbeddedHypervisor() as hypervisor:
        address = hypervisor.address
        assert address.startswith("unix:")
        folder = Path(address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert hypervisor._process.returncode == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (FAILS, "status 1 before it listened: hypervisor-svc: no engine"),
        ('sys.exit("killed")', "status 1 before it listened: killed"),
        ("sys.exit(7)", "status 7 before it listened"),
    ],
)
def test_an_embedded_hypervisor_that_ends_says_why(
    monkeypatch: pytest.MonkeyPatch, then: str, said: str
) -> None:
    """A subprocess that never listens is told by its own word, as nothing to connect to."""
    child = SERVER_THAT.format(then=then)
    real = embedded._command
    monkeypatch.setattr(embedded, "_command", lambda *given: [sys.executable, "-c", child, *real(*given)[3:]])
    with (
        embedded.EmbeddedHypervisor() as hypervisor,
        pytest.raises(NotConnected, match=f"ended with {said}$"),
    ):
        hypervisor.address  # noqa: B018  (asking waits)


@pytest.mark.parametrize(
    ("line", "asked", "address"),
    [
        ("listening on unix:/tmp/x/h\n", "unix:/tmp/x/h", "unix:/tmp/x/h"),
        ('{"event": "listening on 127.0.0.1:4711"}\n', "127.0.0.1:0", "127.0.0.1:4711"),
        ("2026 [info] listening on 127.0.0.1:80 x=1\n", "127.0.0.1:0", "127.0.0.1:80"),
    ],
)
def test_the_listening_line_tells_the_port(line: str, asked: str, address: str) -> None:
    """Where there are no unix sockets, the system picks a port and the hypervisor names it."""
    assert embedded.listening_address(line, asked) == address


def test_a_listening_line_without_a_port_is_refused() -> None:
    """A hypervisor that does not say where it listens cannot be connected to."""
    with pytest.raises(NotConnected, match="does not say where: listening on something"):
        embedded.listening_address("listening on something\n", "127.0.0.1:0")
