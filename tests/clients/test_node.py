"""A client in Node that knows the contract only: whole sessions, over cuts, drains and crashes."""

import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Final

import grpc
import pytest

from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc, report_pb2
from hypervisor_svc.parts import Parts
from tests.clients.conftest import LIMITS
from tests.clients.node_program import HERE, NODE, NodeClient, node_environment
from tests.clients.small import BATCHES, COUNT, Ran, Story, batch_lines, config_line, small_events
from tests.contract.vectors import VECTORS, read_vectors
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import LimitData
from tests.hypervisor.test_server import RunningServer
from tests.torture.zygote import Zygote

# Where the first connections are cut: after so many bytes from the client, after so many to it, and so on.
CUTS: Final = (300, 300, 1500, 1500, 1500, 3000)


def ran(client: NodeClient) -> Ran:
    """Return what a client has said of its session at its end."""
    report = client.finish()
    return report, Story(**{name: client.finding[name] for name in asdict(Story())})


def test_the_session_is_worth_running(by_guest: Ran) -> None:
    """All events are answered, many values are above 2^53, and one lane tells another story."""
    report, story = report_pb2.Report.FromString(by_guest[0]), by_guest[1]
    assert story.events == COUNT == sum(BATCHES) >= report.events > 0
    values = small_events().values
    assert values is not None
    assert (values > 2**53).sum() > 20
    assert len({each.story_digest for each in report.lanes}) > 1


@pytest.mark.parametrize("options", [(), ("--reflection",)], ids=["from proto files", "by reflection"])
def test_a_session_gives_the_same_bytes(
    server: RunningServer, by_guest: Ran, options: tuple[str, ...]
) -> None:
    """The report is the guest's, byte for byte, and so is the story; with no proto file too."""
    with NodeClient(server.address, *options) as client:
        client.give(config_line(), *batch_lines())
        assert ran(client) == by_guest
    assert client.finding["reconnects"] == 0


def test_cuts_change_nothing(server: RunningServer, by_guest: Ran, tmp_path: Path) -> None:
    """Connection after connection is cut, in either direction; the client goes on by itself."""
    with FaultProxy(server.address, f"unix:{tmp_path}/p") as proxy:
        faults = [
            proxy.add(LimitData(bytes=place), ("upstream", "downstream")[number % 2], only=[number])
            for number, place in enumerate(CUTS)
        ]
        with NodeClient(proxy.address) as client:
            client.give(config_line(), *batch_lines())
            assert ran(client) == by_guest
        assert [fault.cuts for fault in faults] == [[number] for number in range(len(CUTS))]
    assert client.finding["reconnects"] > 1


def test_a_drain_and_a_crash_change_nothing(by_guest: Ran, tmp_path: Path) -> None:
    """A server is drained, started again, killed, and started again, under a source that goes on."""
    address, lines = f"unix:{tmp_path}/s", batch_lines()
    paths = {"folder": str(tmp_path / "state"), "notes": str(tmp_path / "notes")}
    Path(paths["notes"]).touch()
    told, reached = [], [0]
    with Zygote() as zygote, NodeClient(address) as client:
        client.give(config_line())
        for number, how in enumerate((signal.SIGTERM, signal.SIGKILL, None)):
            server = zygote.start("serve", tmp_path / "log", address=address, **paths)
            told.append(int(client.read_until(r"opened at event (\d+)")[1]))
            client.give(*lines[2 * number : 2 * number + 2])
            reached.append(reached[-1] + sum(BATCHES[2 * number : 2 * number + 2]))
            client.read_until(f"applied {reached[-1]},")
            if how is not None:
                os.kill(server, how)
                zygote.wait(server)
        assert ran(client) == by_guest
    assert told[:2] == [0, reached[1]]  # a drain commits all that is applied
    assert reached[1] <= told[2] <= reached[2]  # after a crash it is what was committed
    assert client.finding["reconnects"] >= 2


def test_a_session_that_is_gone_is_told(tmp_path: Path) -> None:
    """A server that kept nothing is no place to go on: the client stops, and says why."""
    address = f"unix:{tmp_path}/s"
    first = RunningServer(address, LIMITS, Parts.installed())
    with NodeClient(address) as client:
        client.give(config_line(), batch_lines()[0])
        client.read_until("applied 1,")
        first.close()
        second = RunningServer(address, LIMITS, Parts.installed())
        assert client.finish(code=3) == b""
        second.close()
    assert client.told[-1].endswith("[reason SESSION_NOT_FOUND]")


def test_a_session_that_another_takes_over_is_told(server: RunningServer) -> None:
    """Who opens the session has it; the client does not take it back."""
    with NodeClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        client.give(config_line(), batch_lines()[0])
        session_id = client.read_until(r"session (\S+)")[1]
        client.read_until("applied 1,")
        opening = hypervisor_pb2.Open(session_id=session_id, received_events=1)
        request = hypervisor_pb2.StreamEventsRequest(open=opening)
        stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
        next(stub.StreamEvents(iter([request])))
        assert client.finish(code=3) == b""
    assert client.told[-1].endswith("[reason FENCED]")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "the first line is the SessionConfig, as JSON: "),
        ([config_line(), "nothing\n"], "each line is a list of events, as JSON: "),
    ],
)
def test_an_input_that_is_none_is_told(server: RunningServer, lines: list[str], said: str) -> None:
    """What cannot be read ends the client with one line."""
    with NodeClient(server.address) as client:
        client.give(*lines)
        assert client.finish(code=3) == b""
    assert client.told[-1].startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ('{"kind": "EVENT_KIND_MOV_DR"}', "no event kind is called EVENT_KIND_MOV_DR"),
        ('{"kind": "EVENT_KIND_WRMSR", "value": 9007199254740993}', "9007199254740992 is no exact integer"),
        ('{"kind": "EVENT_KIND_CPUID", "arg": 256}', "event 0: arg 256 has more than 1 bytes"),
        ('{"kind": "EVENT_KIND_MOV_TO_DR", "arg": 9}', "[reason BAD_EVENT]"),
    ],
)
def test_an_event_that_is_none_is_told(server: RunningServer, event: str, said: str) -> None:
    """What proto-loader would send as something else is not sent, and what is refused is told."""
    with NodeClient(server.address) as client:
        client.give(config_line(), f"[{event}]\n")
        assert client.finish(code=3) == b""
    assert client.told[-1].startswith("error: ")
    assert said in client.told[-1]


# What protobuf for Node makes of forms that nobody here writes: of a message that comes twice it keeps the
# last instead of merging, of a choice that is made twice it keeps both, and zeros that were sent are there.
NOT_AS_PROTOBUF: Final = {"the block twice, merged", "an Open, then a block", "zeros that are written"}


def test_node_reads_and_writes_the_wire_vectors() -> None:
    """The bytes of tests/contract/vectors.json mean the same in Node, and are written alike."""
    command = [str(NODE), str(HERE / "vectors.js"), str(VECTORS)]
    done = subprocess.run(command, env=node_environment(), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"] == len(read_vectors())
    assert {differing["what"] for differing in found["differing"]} == NOT_AS_PROTOBUF, found["differing"]
