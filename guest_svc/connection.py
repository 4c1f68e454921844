"""How a command's hypervisor is reached: its address, and the options of TLS.

Nothing is imported at the top that a help text does not need.
"""

from __future__ import annotations

import os

from exitlab.words import shortened
from guest_svc.errors import BadInput

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    import argparse

    from guest_svc.tls import Tls

TLS_FLAG = "--tls"  # and those that begin with it
_SHOWN = 100  # characters of what is no address
_MORE = ("-ca", "-cert", "-key", "-server-name")


def add_tls_options(parser: argparse.ArgumentParser, flag: str = TLS_FLAG) -> None:
    """Add the options of TLS to a command that takes ``--hypervisor``; they begin with ``flag``."""
    title = "TLS" if flag == TLS_FLAG else "TLS to the hypervisor"
    add = parser.add_argument_group(title, "Each of these connects to --hypervisor with TLS.").add_argument
    add(flag, action="store_true", help="trust the authorities that this system trusts")
    add(f"{flag}-ca", metavar="FILE", help="trust these authorities instead, in PEM")
    add(f"{flag}-cert", metavar="FILE", help="our own certificate and its chain, in PEM")
    add(f"{flag}-key", metavar="FILE", help="our private key, in PEM")
    help_text = "the name in its certificate (default: the address's host)"
    add(f"{flag}-server-name", metavar="NAME", help=help_text)


def checked_address(text: str, said_by: str = "--hypervisor ") -> str:
    """Return an address that could be connected to; ``said_by`` begins what is said of another.

    Raises:
        BadInput: It is neither host:port nor unix:PATH.

    """
    host, _, port = text.rpartition(":")
    is_unix = text.startswith("unix:") and len(text) > len("unix:")
    if not is_unix and not (host and host != "unix" and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise BadInput(f"{said_by}{shortened(text, _SHOWN)}: expected host:port or unix:PATH")
    return text


def chosen_tls(options: argparse.Namespace, flag: str = TLS_FLAG) -> Tls | None:
    """Return what the options that begin with ``flag`` say of TLS, None if they say nothing.

    Raises:
        BadInput: They do not go together, or there is no address to use TLS with.

    """
    said = {name: getattr(options, name[2:].replace("-", "_")) for name in (flag, *(flag + m for m in _MORE))}
    flags = [name for name, value in said.items() if value not in {None, False}]
    if not flags:
        return None
    if not options.hypervisor:
        raise BadInput(f"{flags[0]}: needs --hypervisor; a private one is reached by nobody else")
    for one, other in (("-cert", "-key"), ("-key", "-cert")):
        if flag + one in flags and flag + other not in flags:
            raise BadInput(f"{flag}{one}: needs {flag}{other}")
    if said[f"{flag}-server-name"] == "":
        raise BadInput(f"{flag}-server-name: expected a name")
    # gRPC would print a line of its own about a handshake that fails, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from guest_svc.tls import Tls  # noqa: PLC0415  (imports grpc)

    ca_file, cert_file, key_file, server_name = (said[flag + more] for more in _MORE)
    return Tls(ca_file, cert_file, key_file, server_name, flag)
