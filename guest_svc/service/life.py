"""The guest as a server: what it serves beside its service, and how it drains.

On SIGTERM or SIGINT the health turns to NOT_SERVING and new runs are refused. Those that run are stopped;
their sessions stay at the hypervisor, suspended. Watchers are told, and only then does the server stop. A
second signal stops it at once.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exitlab.serving.binding import bind, is_for_this_machine
from exitlab.serving.life import CLOSING_SECONDS, grpc_server, serve_until_signals
from exitlab.serving.logs import log
from exitlab.serving.parsing import Registrar
from exitlab.serving.refusals import CannotServe, Unavailable
from exitlab.serving.tls import TlsFiles, server_credentials
from exitlab.v1 import guest_pb2, guest_pb2_grpc
from guest_svc.service.hypervisors import Hypervisors
from guest_svc.service.limits import ServiceLimits
from guest_svc.service.private import PrivateHypervisor
from guest_svc.service.process import ChildProcess
from guest_svc.service.runs import Runs
from guest_svc.service.servicer import GuestServicer
from guest_svc.tls import Tls

SERVICE_NAME: Final = guest_pb2.DESCRIPTOR.services_by_name["GuestService"].full_name
CHANNELZ_NAME: Final = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
MAX_MESSAGE_BYTES: Final = 4 << 20
UNARY_CALLS: Final = 256  # at once, beside the watchers


@dataclass(frozen=True)
class ServeOptions:
    """What ``serve`` was asked for; the hypervisor is an address, or a private one that was started."""

    listen: str
    limits: ServiceLimits
    hypervisor: str | PrivateHypervisor
    hypervisor_tls: Tls | None = None
    retry_seconds: float = 0.0
    is_any_hypervisor: bool = False
    is_insecure: bool = False
    grace_seconds: float = 10.0
    tls: TlsFiles | None = None


class GuestServer:
    """A server with the guest's service, health, reflection and channelz."""

    def __init__(self, options: ServeOptions) -> None:
        """Prepare to serve; needs a running event loop.

        Raises:
            CannotServe: it cannot listen where it is to.

        """
        self._options = options
        limits = options.limits
        may_be_any = options.is_any_hypervisor or is_for_this_machine(options.listen)
        self._hypervisors = Hypervisors(
            options.hypervisor, options.hypervisor_tls, options.retry_seconds, may_be_any=may_be_any
        )
        self.runs = Runs(limits, self._launch)
        self._servicer = GuestServicer(self.runs)
        calls = limits.max_watchers * limits.max_all_runs + UNARY_CALLS
        self._server = grpc_server(calls, MAX_MESSAGE_BYTES)
        self._health = health.aio.HealthServicer()
        add: Any = guest_pb2_grpc.add_GuestServiceServicer_to_server  # both only resemble its types
        add(self._servicer, Registrar(self._server))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        # It tells of everybody's connections, so not where callers are kept apart.
        if options.tls is None or options.tls.client_ca_file is None:
            channelz.add_channelz_servicer(self._server)
            names.append(CHANNELZ_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def _launch(self, config: guest_pb2.RunConfig) -> ChildProcess:
        job = await self._hypervisors.job(config)
        try:
            return await ChildProcess.start(job)
        except OSError as error:
            raise Unavailable("NO_PROCESS", f"no process for the run: {error.strerror}") from error

    async def start(self) -> str:
        """Bind, wait for a private hypervisor, serve, and return the address.

        Raises: CannotServe.
        """
        tls, is_insecure = self._options.tls, self._options.is_insecure
        credentials = None if tls is None else server_credentials(tls)
        address = bind(self._server, self._options.listen, credentials, is_insecure=is_insecure)
        try:
            await self._hypervisors.ready()
        except Unavailable as error:
            raise CannotServe(error.message) from error
        await self._server.start()
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        own = self._options.hypervisor
        log.info("serving", address=address, hypervisor=own if isinstance(own, str) else "private")
        return address

    async def drain(self) -> bool:
        """Stop all runs, tell who watches, and stop; tell whether the runs ended within their time."""
        log.info("draining", grace_seconds=self._options.grace_seconds)
        await self._health.enter_graceful_shutdown()
        half, is_in_order = self._options.grace_seconds / 2, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(half):
                await self.runs.stop_all()
                is_in_order = True
        if not is_in_order:
            self.runs.kill_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(half):
                await self._servicer.calls.none.wait()
        # Not the whole grace: whoever watches the health never leaves by himself.
        await self._server.stop(min(self._options.grace_seconds, CLOSING_SECONDS))
        await self._hypervisors.close()
        log.info("stopped")
        return is_in_order

    async def stop(self) -> None:
        """Stop at once."""
        self.runs.kill_all()
        await self._server.stop(0)


async def serve(options: ServeOptions, on_listening: Callable[[str], None]) -> int:
    """Serve until a signal and return the exit code: 0 once drained, 3 if not in order, 128 + a second.

    Raises: CannotServe.
    """
    return await serve_until_signals(lambda: GuestServer(options), on_listening)
