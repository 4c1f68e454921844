"""The hypervisor as a server: what it serves beside its service, and how it drains.

On SIGTERM or SIGINT the health turns to NOT_SERVING, new sessions and streams are refused, every open
stream is told ``Draining`` after the block in hand, and only then does the server stop. A second signal
stops it at once.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exitlab.serving.binding import bind
from exitlab.serving.life import CLOSING_SECONDS, grpc_server, serve_until_signals
from exitlab.serving.logs import log
from exitlab.serving.parsing import Registrar
from exitlab.serving.tls import TlsFiles, server_credentials
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.store import Store

SERVICE_NAME: Final = hypervisor_pb2.DESCRIPTOR.services_by_name["HypervisorService"].full_name
UNARY_CALLS: Final = 256  # at once, beside the streams


@dataclass(frozen=True)
class ServeOptions:
    """What ``serve`` was asked for."""

    listen: str
    limits: ServerLimits
    is_insecure: bool = False
    grace_seconds: float = 10.0
    state_dir: Path | None = None
    tls: TlsFiles | None = None


class HypervisorServer:
    """A server with the hypervisor's service, health and reflection."""

    def __init__(self, options: ServeOptions, parts: Parts) -> None:
        """Prepare to serve; needs a running event loop.

        Raises:
            CannotServe: the state directory cannot be used.

        """
        self._options = options
        self._store = None if options.state_dir is None else Store(options.state_dir)
        limits = options.limits
        self._server = grpc_server(limits.max_streams + UNARY_CALLS, limits.max_message_bytes)
        self._servicer = HypervisorServicer(parts, options.limits, self._store)
        self._health = health.aio.HealthServicer()
        add_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> str:
        """Bind, serve, and return the address.

        Raises: CannotServe.
        """
        tls, is_insecure = self._options.tls, self._options.is_insecure
        credentials = None if tls is None else server_credentials(tls)
        address = bind(self._server, self._options.listen, credentials, is_insecure=is_insecure)
        await self._server.start()
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", address=address, incarnation=self._servicer.incarnation)
        return address

    async def drain(self) -> bool:
        """Tell everybody, wait until the open calls are answered, and stop; tell whether all is stored."""
        log.info("draining", grace_seconds=self._options.grace_seconds)
        await self._health.enter_graceful_shutdown()
        self._servicer.drain()
        # A call that is stuck shall not keep what others have from being stored.
        half, is_stored = self._options.grace_seconds / 2, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(half):
                await self._servicer.calls.none.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(half):
                is_stored = await self._servicer.commit_all()
        # Not the whole grace: whoever watches the health never leaves by himself.
        await self._server.stop(min(self._options.grace_seconds, CLOSING_SECONDS))
        if self._store is not None:
            self._store.close()
        log.info("stopped", is_stored=is_stored)
        return is_stored

    async def stop(self) -> None:
        """Stop at once."""
        await self._server.stop(0)
        if self._store is not None:
            self._store.close()


async def serve(options: ServeOptions, parts: Parts, on_listening: Callable[[str], None]) -> int:
    """Serve until a signal and return the exit code: 0 once drained, 3 if not all is stored, 128 + a second.

    Raises: CannotServe.
    """
    return await serve_until_signals(lambda: HypervisorServer(options, parts), on_listening)


def add_to_server(servicer: HypervisorServicer, server: grpc.aio.Server) -> None:
    """Add the service to a server.

    StreamEvents gets bytes: a block is decoded in the engine's thread, by the codec, and not twice.
    """
    # Both stand in for types that they only resemble.
    add: Any = hypervisor_pb2_grpc.add_HypervisorServiceServicer_to_server
    add(servicer, Registrar(server, raw=frozenset({"StreamEvents"})))
