"""Certificates and keys in PEM files, checked before gRPC gets them: it would not say what is wrong.

Both services read them alike. What is read is never part of a message.
"""

import base64
import os
import re
import ssl
import stat
from pathlib import Path
from typing import Final

CERT_FLAG: Final = "--tls-cert"
KEY_FLAG: Final = "--tls-key"
# OpenSSL's reasons; one of them is what it says if the key is of another kind than the certificate.
_OTHER_KEY: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
# How a certificate names the kind of its key, in DER: RSA, P-256, P-384. With most other kinds gRPC would
# start, and then fail in every handshake.
_USED_KEYS: Final = tuple(
    bytes.fromhex(der)
    for der in (
        "06092a864886f70d010101",
        "06072a8648ce3d020106082a8648ce3d030107",
        "06072a8648ce3d020106052b81040022",
    )
)
_FIRST: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----(.*?)-----END", re.DOTALL)
_WEAK: Final = frozenset({"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"})


class BadPem(Exception):
    """A file that cannot be used; the message is one line that names the flag and the file."""


def read_pair(
    cert_file: str, key_file: str, cert_flag: str = CERT_FLAG, key_flag: str = KEY_FLAG
) -> tuple[bytes, bytes]:
    """Return a private key and the chain of its certificate, given as these flags: gRPC's order.

    Raises: BadPem.
    """
    chain = read_certificates(cert_flag, cert_file)
    key = _read(key_flag, key_file)

    def no_password() -> str:  # without it, OpenSSL would ask on the terminal
        raise BadPem(f"{key_flag} {key_file}: encrypted, and no password is asked for")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, no_password)
    except ssl.SSLError as error:
        if error.reason in _OTHER_KEY:
            raise BadPem(f"{key_flag} {key_file}: not the key of the certificate in {cert_file}") from None
        if error.reason in _WEAK:
            raise BadPem(f"{cert_flag} {cert_file}: too weak, OpenSSL says {error.reason}") from None
        raise BadPem(f"{key_flag} {key_file}: holds no private key in PEM") from None
    first = _FIRST.search(chain)
    if first is None or not any(der in base64.b64decode(first[1]) for der in _USED_KEYS):
        raise BadPem(f"{cert_flag} {cert_file}: gRPC uses keys of RSA, P-256 and P-384 only")
    return key, chain


def read_certificates(flag: str, file: str) -> bytes:
    """Return a file of certificates, given as ``flag``.

    Raises: BadPem.
    """
    data = _read(flag, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(file)
        count = context.cert_store_stats()["x509"]
    except ssl.SSLError:
        count = 0
    if not count:  # a list of revoked ones loads too, and is none
        raise BadPem(f"{flag} {file}: holds no certificate in PEM")
    return data


def is_readable_by_all(file: str) -> bool:
    """Whether everybody on this machine can read a file."""
    return bool(os.stat(file).st_mode & stat.S_IROTH)


def _read(flag: str, file: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # it is read twice, which a pipe cannot be
            raise BadPem(f"{flag} {file}: not a regular file")
        return Path(file).read_bytes()
    except OSError as error:
        raise BadPem(f"{flag} {file}: {error.strerror}") from None
