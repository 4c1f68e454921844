"""What all clients meet: a server, and what comes of the small session when our guest runs it."""

from collections.abc import Iterator
from typing import Final

import pytest

from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from tests.clients.small import Ran, run_by_guest
from tests.hypervisor.test_server import RunningServer

LIMITS: Final = ServerLimits(max_block_events=100, max_window_events=150)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve on a unix socket."""
    server = RunningServer(f"unix:{tmp_path_factory.mktemp('clients')}/s", LIMITS, Parts.installed())
    yield server
    server.close()


@pytest.fixture(scope="session")
def by_guest(server: RunningServer) -> Ran:
    """Return what comes of the session when the guest of this project runs it."""
    return run_by_guest(server.address)
