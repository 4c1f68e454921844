"""The life of the server's process: bind, serve, drain, stop.

The end of a stream proves nothing, and stopping a gRPC server does not drain a stream that stays
open. So a drain is a message: on SIGTERM or SIGINT the health turns to NOT_SERVING, new sessions and
streams are refused, every open stream is told ``Draining`` after the block in hand, and only then
does the server stop. A second signal stops it at once.
"""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from exitlab.command_line import NOT_FINISHED
from exitlab.pem import CERT_FLAG, KEY_FLAG
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc.errors import CannotServe, InvalidRequest, LimitReached
from hypervisor_svc.limits import MAX_UNARY_BYTES, ServerLimits
from hypervisor_svc.logs import log
from hypervisor_svc.parts import Parts
from hypervisor_svc.server import HypervisorServicer
from hypervisor_svc.store import Store
from hypervisor_svc.tls import INSECURE_FLAG, TlsFiles, server_credentials

SERVICE_NAME: Final = hypervisor_pb2.DESCRIPTOR.services_by_name["HypervisorService"].full_name
UNIX: Final = "unix:"
LARGEST_PORT: Final = 65_535
LONGEST_SOCKET_PATH: Final = 107  # bytes of sun_path on Linux, without the closing zero
MIN_PING_INTERVAL_MS: Final = 10_000  # what a client's keepalive may use; gRPC's default is 5 minutes
KEEPALIVE_MS: Final = 30_000
CLOSING_SECONDS: Final = 0.5  # for the last answers to get out
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
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=options.limits.max_streams + UNARY_CALLS,
            options=[
                # Without this, a second server silently shares the port of the first.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", options.limits.max_message_bytes),
                # A peer that vanished without a word keeps nothing for long.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ],
        )
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
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = HypervisorServer(options, parts)
    on_listening(await server.start())
    await signals.get()
    draining = asyncio.create_task(server.drain())
    second = asyncio.create_task(signals.get())
    await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        second.cancel()
        return 0 if await draining else NOT_FINISHED
    await server.stop()
    return 128 + second.result()


def bind(
    server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None, *, is_insecure: bool
) -> str:
    """Bind ``host:port`` or ``unix:path``, with TLS if there are credentials; return the address as bound.

    Raises: CannotServe.
    """
    if listen.startswith(UNIX):
        path = listen.removeprefix(UNIX)
        _check_socket_path(path)
        _added(server, listen, credentials, lambda: _socket_trouble(path))
        return listen
    host, port = _numeric(listen)
    # What is checked is what is bound: one numeric address, not a name that may have several.
    if credentials is None and not is_insecure and not ipaddress.ip_address(host).is_loopback:
        way_out = f"{CERT_FLAG} and {KEY_FLAG} serve it with TLS, {INSECURE_FLAG} allows it as it is"
        raise CannotServe(f"will not listen on {listen}: anybody who reaches it could use it; {way_out}")
    shown = f"[{host}]" if ":" in host else host
    chosen = _added(server, f"{shown}:{port}", credentials, lambda: _port_trouble(host, port))
    return f"{shown}:{chosen}"


def _added(
    server: grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None,
    trouble: Callable[[], str],
) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:  # which does not say why
        raise CannotServe(f"cannot listen on {address}: {trouble()}") from error


def _numeric(listen: str) -> tuple[str, int]:
    """Return the numeric host and the port of ``listen``."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > LARGEST_PORT:
        raise CannotServe(f"cannot listen on {listen!r}: expected HOST:PORT or unix:PATH")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise CannotServe(f"cannot listen on {listen}: {error.strerror}") from error
    except UnicodeError as error:  # of what no host can be called
        raise CannotServe(f"cannot listen on {listen}: no such host") from error
    return str(found[0][4][0]), int(port)


def _check_socket_path(path: str) -> None:
    """Refuse a path that gRPC would take from a living server, or fail on without a reason."""
    size = len(os.fsencode(path))
    if not 0 < size <= LONGEST_SOCKET_PATH:
        message = f"the path has {size} bytes, expected 1 to {LONGEST_SOCKET_PATH}"
        raise CannotServe(f"cannot listen on unix:{path}: {message}")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(path)
        raise CannotServe(f"cannot listen on unix:{path}: the socket is in use")


def _socket_trouble(path: str) -> str:
    if os.path.lexists(path):
        return "the path exists and is no socket of ours"
    return "the folder does not exist or cannot be written"


def _port_trouble(host: str, port: int) -> str:
    """Try the address once more, to learn why it did not do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return "gRPC does not say why"


def _or_refusal(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a parser that makes a refusal of what nobody could mean: gRPC alone would say UNKNOWN.

    What this version does not know is dropped, as nobody would count its bytes.
    """

    def parsed(data: bytes) -> Any:
        if len(data) > MAX_UNARY_BYTES:
            message = f"the request has {len(data):,} bytes, but only a block of events may have so many"
            return LimitReached("REQUEST_TOO_LARGE", message, max_bytes=MAX_UNARY_BYTES)
        try:
            request = parse(data)
        except DecodeError:
            return InvalidRequest("NOT_A_MESSAGE", "the bytes are no message of this method")
        request.DiscardUnknownFields()
        return request

    return parsed


class _Registrar:
    """A server to hand to generated code: it registers the methods with parsers of our own.

    StreamEvents has none: a block is decoded in the engine's thread, by the codec, and not twice. The
    others hand a refusal to the servicer for what is no message, so that its status says so.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Leave out the handlers as generated; the changed ones are added below."""

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        """Add the service with its changed methods."""
        methods = {
            name: handler._replace(request_deserializer=_or_refusal(handler.request_deserializer))
            for name, handler in methods.items()
        }
        stream_events: Any = grpc.stream_stream_rpc_method_handler(methods["StreamEvents"].stream_stream)
        methods["StreamEvents"] = stream_events
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        self._server.add_registered_method_handlers(service, methods)


def add_to_server(servicer: HypervisorServicer, server: grpc.aio.Server) -> None:
    """Add the service to a server."""
    # Both stand in for types that they only resemble: StreamEvents carries bytes.
    add: Any = hypervisor_pb2_grpc.add_HypervisorServiceServicer_to_server
    add(servicer, _Registrar(server))
