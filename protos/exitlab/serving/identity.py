"""Who a caller is: the name that a verified client certificate gives him.

gRPC tells the names of a certificate by kind, and only of one that it verified. A name is kept with
its kind, so that a common name, which anybody may have, never passes for a URI.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from exitlab.serving.refusals import PermissionDenied

NOBODY: Final = ""  # a caller without a certificate: loopback, unix socket, TLS without a client CA
MAX_NAME_BYTES: Final = 2048  # as many as a SPIFFE ID may have
_CERTIFICATE: Final = "x509_pem_cert"
_KINDS: Final = {"peer_uri": "uri", "peer_dns": "dns", "peer_email": "email", "x509_common_name": "cn"}


class Caller(Protocol):
    """What is asked of gRPC's context of a call."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what gRPC knows of the other side."""


def owner_of(context: Caller) -> str:
    """Return a caller's identity, e.g. ``uri:spiffe://lab/guest``; NOBODY if none was asked for.

    It is the first name of the first kind that the certificate has: URI, DNS, e-mail, common name.

    Raises: PermissionDenied, if a certificate has no name that can be told apart from others.
    """
    known = context.auth_context()
    if _CERTIFICATE not in known:
        return NOBODY
    for key, kind in _KINDS.items():
        for name in known.get(key, ()):
            text = _readable(name)
            if text:
                return f"{kind}:{text}"
    message = "the client certificate has no usable name: no URI, DNS name, e-mail address or common name"
    raise PermissionDenied("NO_IDENTITY", message)


def _readable(name: bytes) -> str:
    """Return a name as text; none if two different ones could look alike in a log or in storage."""
    try:
        text = name.decode() if len(name) <= MAX_NAME_BYTES else ""
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""
