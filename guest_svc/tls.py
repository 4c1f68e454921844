"""How a guest makes sure of its hypervisor over TLS, and what it shows of itself."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from exitlab.pem import BadPem, read_certificates, read_pair
from guest_svc.connection import TLS_FLAG
from guest_svc.errors import BadInput

_NOT_TRUSTED: Final = "CERTIFICATE_VERIFY_FAILED: "
# In the words of old and of new releases of gRPC.
_OTHER_NAME: Final = ("Hostname Verification Check failed", "is not in peer certificate")
_UNTIMELY: Final = ("expired", "not yet valid")
_NO_TLS: Final = "WRONG_VERSION_NUMBER"
_CLOSED: Final = ("Socket closed", "Connection reset")


@dataclass(frozen=True)
class Tls:
    """The PEM files of a connection, and the name that the hypervisor's certificate must have.

    Without ``ca_file`` the system's authorities are trusted; without ``server_name`` the certificate must be
    for the host of the address.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    #: What the flags that gave these begin with, for errors.
    flag: str = TLS_FLAG

    def channel(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Return a channel to ``target``; nothing is sent yet.

        Raises: BadInput, if a file cannot be used.
        """
        name = [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]
        return grpc.secure_channel(target, self.credentials(), [*options, *name])

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel is made with.

        Raises: BadInput, if a file cannot be used.
        """
        flag = self.flag
        try:
            roots = _system_roots() if self.ca_file is None else read_certificates(f"{flag}-ca", self.ca_file)
            key = chain = None
            if self.cert_file is not None and self.key_file is not None:
                key, chain = read_pair(self.cert_file, self.key_file, f"{flag}-cert", f"{flag}-key")
        except BadPem as error:
            raise BadInput(str(error)) from None
        return grpc.ssl_channel_credentials(roots, key, chain)


def tls_trouble(message: str, address: str, tls: Tls | None) -> str:
    """Return what a connection that failed with gRPC's ``message`` says of TLS; nothing if nothing.

    A hypervisor that misses a guest's certificate or does not trust it only closes the connection, and so
    does one with TLS that is talked to without. There, what is said is what may be wrong.
    """
    who = f"the hypervisor at {address}"
    flag = TLS_FLAG if tls is None else tls.flag
    if _NOT_TRUSTED in message:
        why = message.partition(_NOT_TRUSTED)[2].removesuffix(": OK")
        is_untimely = any(words in why for words in _UNTIMELY)
        hint = "" if is_untimely else f" ({flag}-ca FILE says whom to trust)"
        return f"the certificate of {who} is not trusted: {why}{hint}"
    if any(words in message for words in _OTHER_NAME):
        return f"the certificate of {who} is for another name ({flag}-server-name NAME says which to expect)"
    if _NO_TLS in message:
        return f"{who} does not speak TLS: serve with --tls-cert and --tls-key, or leave TLS out here"
    if not any(words in message for words in _CLOSED):
        return ""
    if tls is None:
        return f"{who} closed the connection; if it wants TLS, say {flag} or {flag}-ca FILE"
    if tls.cert_file is None:
        return f"{who} closed the connection; it may want a certificate: {flag}-cert FILE {flag}-key FILE"
    return f"{who} closed the connection; it may not trust {tls.cert_file}, or that has expired"


def _system_roots() -> bytes | None:
    """Return the authorities that the system trusts; gRPC's own list if there are none."""
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None
