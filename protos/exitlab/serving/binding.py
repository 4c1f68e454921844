"""Where a server listens: a unix socket, this machine's own addresses, or with TLS any other."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Final

import grpc

from exitlab.pem import CERT_FLAG, KEY_FLAG
from exitlab.serving.refusals import CannotServe
from exitlab.serving.tls import INSECURE_FLAG

UNIX: Final = "unix:"
LARGEST_PORT: Final = 65_535
LONGEST_SOCKET_PATH: Final = 107  # bytes of sun_path on Linux, without the closing zero


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


def is_for_this_machine(listen: str) -> bool:
    """Tell whether only this machine reaches an address to listen on.

    Raises: CannotServe, if it is none.
    """
    return listen.startswith(UNIX) or ipaddress.ip_address(_numeric(listen)[0]).is_loopback


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
