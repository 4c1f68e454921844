"""What the proxy's own tests need."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.echo import EchoServer, Start
from tests.faults.proxy import FaultProxy
from tests.faults.toxics import Clock


@pytest.fixture(params=["tcp", "unix"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts an echo server with a proxy before it."""
    with ExitStack() as stack:

        def started(clock: Clock | None = None, seed: int = 0) -> tuple[EchoServer, FaultProxy]:
            is_unix = request.param == "unix"
            server = stack.enter_context(EchoServer(f"unix:{tmp_path}/s" if is_unix else "127.0.0.1:0"))
            listen = f"unix:{tmp_path}/p" if is_unix else "127.0.0.1:0"
            proxy = stack.enter_context(FaultProxy(server.address, listen, seed=seed, clock=clock))
            return server, proxy

        yield started
