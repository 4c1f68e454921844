"""Clients of v1 as it is frozen, and of contracts that know less or more, run a session with the server."""

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from tests.clients.described import DescribedService, DescribedSession
from tests.clients.small import Ran, Story, batch_lines, config_line
from tests.hypervisor.test_server import RunningServer

from .frozen import frozen_files, pool_of

Files = list[FileDescriptorProto]
# Fields that v1 might have come without: whoever does not know them still runs a session.
UNNEEDED: Final = {
    "SessionConfig": {"vm_profile", "vcpu_machines"},
    "Limits": {"max_physical_cpus", "max_streams", "max_session_seconds", "max_state_bytes", "max_reports"},
    "CreateSessionResponse": {"limits", "replica_address", "engine_fingerprint", "server_incarnation"},
    "Open": {"expected_epoch"},
    "Opened": {"committed_events", "epoch", "limits", "server_incarnation"},
    "Acknowledgement": {"committed_events"},
    "OutcomePart": {"decisions", "new_decisions", "undefined_dr6"},
    "StreamEventsRequest": {"events"},
    "StreamEventsResponse": {"draining"},
}
# Messages that a later version might send more in.
GROWING: Final = (
    *("CreateSessionRequest", "SessionConfig", "FinishSessionRequest"),
    *("StreamEventsRequest", "Open", "EventBlock", "ConfirmOutcomes"),
)
LATER: Final = "later"


def as_frozen(files: Files) -> Files:
    """Return v1 as it is frozen."""
    return files


def knowing_less(files: Files) -> Files:
    """Return v1 without some fields."""
    for message in (message for file in files for message in file.message_type):
        kept = [field for field in message.field if field.name not in UNNEEDED.get(message.name, ())]
        del message.field[:]
        message.field.extend(kept)
    return files


def knowing_more(files: Files) -> Files:
    """Return v1 with a field more in some messages."""
    for message in (message for file in files for message in file.message_type):
        if message.name in GROWING:
            text, optional = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.LABEL_OPTIONAL
            message.field.add(name=LATER, number=1000, type=text, label=optional)
    return files


class TalkativeService(DescribedService):
    """A service whose client says in every message all that it knows."""

    def message(self, name: str, **fields: Any) -> Any:
        """Return a message, with the later field where it has one."""
        message = super().message(name, **fields)
        if LATER in message.DESCRIPTOR.fields_by_name:
            setattr(message, LATER, "not known to v1")
        return message


@pytest.mark.parametrize("known", [as_frozen, knowing_less, knowing_more])
def test_the_session_of_another_version_gives_the_same_bytes(
    server: RunningServer, by_guest: Ran, known: Callable[[Files], Files]
) -> None:
    """Whatever else a client's version knows, or does not, its report and its story are those of today."""
    with grpc.insecure_channel(server.address) as channel:
        service = TalkativeService(channel, pool_of(known(frozen_files())))
        session = DescribedSession(service, config_line())
        assert session.run(batch_lines()) == by_guest[0]
    assert reduce(Story.after, session.parts, Story()) == by_guest[1]


def test_the_versions_are_others() -> None:
    """The one lacks fields that are there, the other has some that are not."""

    def fields(files: Files) -> set[tuple[str, str]]:
        messages = [message for file in files for message in file.message_type]
        return {(message.name, field.name) for message in messages for field in message.field}

    v1 = fields(frozen_files())
    lacking = {(message, name) for message, names in UNNEEDED.items() for name in names}
    assert v1 - fields(knowing_less(frozen_files())) == lacking
    assert fields(knowing_more(frozen_files())) - v1 == {(message, LATER) for message in GROWING}
