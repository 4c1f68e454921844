"""A small guest that does as it is told, right or wrong, and the streams that it has to send."""

import uuid
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Final

import grpc

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from guest_svc.workloads import find_workload
from tests.attack.served import LARGE, SECONDS, Stub

POLICIES: Final = ("kvm-6.14", "ignore", "xen", "kvm-3.14", "acrn", "haxm", "bhyve", "virtualbox")
WORKLOADS: Final = ("context-switch", "debugger", "io", "idle")
SERVICE: Final = hypervisor_pb2.DESCRIPTOR.services_by_name["HypervisorService"]
STREAM: Final = f"/{SERVICE.full_name}/StreamEvents"
FULL: Final = outcome_pb2.OUTCOME_LEVEL_FULL


class Source:
    """A stream of events that can be made again, and the config of its session."""

    def __init__(self, number: int, events: int, lanes: int = 8, level: int = 0) -> None:
        """Choose a workload and a seed by ``number``."""
        self.workload = find_workload(WORKLOADS[number % len(WORKLOADS)]).make({}, number, events)
        made = self.workload
        self.columns = made.columns
        self.config = hypervisor_pb2.SessionConfig(
            lanes=[
                policy_pb2.Lane(policy_name=name, vendor=policy_pb2.VENDOR_VMX) for name in POLICIES[:lanes]
            ],
            columns=[int(column) for column in made.columns],  # type: ignore[misc]  # stubs want their own enum
            vcpus=made.vcpus,
            physical_cpus=made.physical_cpus,
            initial_physical_cpus=made.initial_physical_cpus,
            breakpoints=2 if made.computed_breakpoints else 1,  # type: ignore[arg-type]  # numbers are allowed
            leading_vendor=policy_pb2.VENDOR_VMX,
            outcome_level=level,  # type: ignore[arg-type]  # numbers are allowed
        )

    def blocks(self, block_events: int) -> Iterator[EventColumns]:
        """Return the events from the first, in blocks."""
        return self.workload.blocks(block_events)


class Guest:
    """A connection of its own, and the calls that a guest makes."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Connect, with no other's connection shared."""
        options = [*LARGE, ("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, credentials, options)
        self.stub = Stub(self.channel)

    def create(self, config: hypervisor_pb2.SessionConfig) -> str:
        """Create a session and return its id."""
        request = hypervisor_pb2.CreateSessionRequest(request_id=uuid.uuid4().hex, config=config)
        return str(self.stub.CreateSession(request, timeout=SECONDS).session_id)

    def status(self, session_id: str) -> hypervisor_pb2.SessionStatus:
        """Return where a session stands."""
        request = hypervisor_pb2.GetSessionRequest(session_id=session_id)
        return self.stub.GetSession(request, timeout=SECONDS).status

    def finish(self, session_id: str, crcs: ColumnCrcs, events: int) -> bytes:
        """End a session and return its report's bytes."""
        request = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=events, column_crcs=crcs.values
        )
        return self.stub.FinishSession(request, timeout=SECONDS).report

    def close(self) -> None:
        """Leave without a word."""
        self.channel.close()


class Stream:
    """One stream, in bytes."""

    def __init__(self, guest: Guest, session_id: str | None = None, **opening: int) -> None:
        """Begin it, with an Open if a session is named."""
        self._sent: SimpleQueue[bytes | None] = SimpleQueue()
        raw: Any = guest.channel.stream_stream(
            STREAM, response_deserializer=hypervisor_pb2.StreamEventsResponse.FromString
        )
        self.call: Any = raw(iter(self._sent.get, None), timeout=SECONDS)
        if session_id is not None:
            self.put(message_bytes(open=hypervisor_pb2.Open(session_id=session_id, **opening)))

    def put(self, data: bytes) -> None:
        """Send bytes."""
        self._sent.put(data)

    def get(self) -> hypervisor_pb2.StreamEventsResponse:
        """Return the next answer; the status of a refusal comes as an error."""
        answer: hypervisor_pb2.StreamEventsResponse = next(self.call)
        return answer

    def applied(self) -> int:
        """Wait for the next acknowledgement and return what it says is applied."""
        while not (answer := self.get()).HasField("acknowledgement"):
            pass
        return answer.acknowledgement.applied_events

    def half_close(self) -> None:
        """Say that nothing more will be sent, and wait until the server has ended the stream too."""
        self._sent.put(None)
        for _ in self.call:
            pass

    def cut(self) -> None:
        """Go away."""
        self.call.cancel()
        self._sent.put(None)


def message_bytes(**message: Any) -> bytes:
    """Return a serialized StreamEventsRequest."""
    return hypervisor_pb2.StreamEventsRequest(**message).SerializeToString()


def whole_run(guest: Guest, source: Source, block_events: int) -> bytes:
    """Run a source in a session of its own, and return its report's bytes."""
    session_id, crcs, at = guest.create(source.config), ColumnCrcs(source.columns), 0
    stream = Stream(guest, session_id)
    for block in source.blocks(block_events):
        stream.put(encode_block(block, at, crcs))
        at += len(block)
        while stream.applied() < at:
            pass
    report = guest.finish(session_id, crcs, at)
    stream.cut()
    return report
