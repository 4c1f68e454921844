"""A client with no proto file and no stubs: what it knows, the server has told it by reflection."""

import subprocess
import sys
from functools import reduce

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.clients.described import SERVICE, DescribedService, DescribedSession
from tests.clients.small import Ran, Story, batch_lines, config_line
from tests.hypervisor.test_server import RunningServer


@pytest.mark.parametrize("is_plain", [False, True], ids=["columns", "plain events"])
def test_a_session_by_reflection_gives_the_same_bytes(
    server: RunningServer, by_guest: Ran, is_plain: bool
) -> None:
    """The services are listed; messages made of what is told of them run a whole session in either form."""
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        service = DescribedService(channel, DescriptorPool(database))
        session = DescribedSession(service, config_line(), is_plain=is_plain)
        assert session.run(batch_lines()) == by_guest[0]
    assert reduce(Story.after, session.parts, Story()) == by_guest[1]


def test_the_client_has_no_stubs() -> None:
    """What makes the messages imports nothing of the contract."""
    code = "import sys, tests.clients.described; print([name for name in sys.modules if 'exitlab' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
