"""How a command's hypervisor is reached: its address, and the options of TLS.

Nothing is imported at the top that a help text does not need.
"""

from __future__ import annotations

import os

from guest_svc.errors import BadInput

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    import argparse

    from guest_svc.tls import Tls

_TLS_FIELDS = ("tls_ca", "tls_cert", "tls_key", "tls_server_name")


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of TLS to a command that takes ``--hypervisor``."""
    add = parser.add_argument_group("TLS", "Each of these connects to --hypervisor with TLS.").add_argument
    add("--tls", action="store_true", help="trust the authorities that this system trusts")
    add("--tls-ca", metavar="FILE", help="trust these authorities instead, in PEM")
    add("--tls-cert", metavar="FILE", help="our own certificate and its chain, in PEM")
    add("--tls-key", metavar="FILE", help="our private key, in PEM")
    add("--tls-server-name", metavar="NAME", help="the name in its certificate (default: the address's host)")


def checked_address(text: str, said_by: str = "--hypervisor ") -> str:
    """Return an address that could be connected to; ``said_by`` begins what is said of another.

    Raises:
        BadInput: It is neither host:port nor unix:PATH.

    """
    host, _, port = text.rpartition(":")
    is_unix = text.startswith("unix:") and len(text) > len("unix:")
    if not is_unix and not (host and host != "unix" and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise BadInput(f"{said_by}{text}: expected host:port or unix:PATH")
    return text


def chosen_tls(options: argparse.Namespace) -> Tls | None:
    """Return what the options say of TLS, None if they say nothing.

    Raises:
        BadInput: They do not go together, or there is no address to use TLS with.

    """
    given = [name for name in ("tls", *_TLS_FIELDS) if getattr(options, name) not in {None, False}]
    flags = [f"--{name.replace('_', '-')}" for name in given]
    if not given:
        return None
    if not options.hypervisor:
        raise BadInput(f"{flags[0]}: needs --hypervisor; a private one is reached by nobody else")
    for flag, other in (("--tls-cert", "--tls-key"), ("--tls-key", "--tls-cert")):
        if flag in flags and other not in flags:
            raise BadInput(f"{flag}: needs {other}")
    if options.tls_server_name == "":
        raise BadInput("--tls-server-name: expected a name")
    # gRPC would print a line of its own about a handshake that fails, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from guest_svc.tls import Tls  # noqa: PLC0415  (imports grpc)

    return Tls(*(getattr(options, name) for name in _TLS_FIELDS))
