"""What several tests of the guest need."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from guest_svc.hypervisor import Hypervisor
from guest_svc.vectors import Vector
from tests.guest.keeper import Keeper
from tests.guest.vector_rows import read_back, vector_row


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Return a function that reads a vector from a file of its own."""

    def read(*steps: dict[str, Any], **fields: Any) -> Vector:
        return read_back(tmp_path, vector_row(*steps, **fields))[0]

    return read


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Keeper], Hypervisor]]:
    """Serve a keeper on a unix socket and connect to it."""
    started: list[Any] = []

    def start(keeper: Keeper) -> Hypervisor:
        server = grpc.server(ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((keeper.handlers(),))
        address = f"unix:{tmp_path}/h{len(started)}"
        server.add_insecure_port(address)
        server.start()
        hypervisor = Hypervisor(address)
        started.append((server, hypervisor))
        return hypervisor

    yield start
    for server, hypervisor in started:
        hypervisor.channel.close()
        server.stop(None).wait()
