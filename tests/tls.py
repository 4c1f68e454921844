"""Certificates for tests, made when they run: none is kept, and none expires in the repository."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

BEGIN, END, LONG_AGO = (datetime(year, 1, 1, tzinfo=UTC) for year in (2000, 3000, 2001))
Key = CertificateIssuerPrivateKeyTypes
Pair = tuple[str, str]  # the files of a certificate and of its key


class Authority:
    """A certificate authority that writes what it issues into a folder."""

    def __init__(self, folder: Path) -> None:
        """Make it, and its folder."""
        folder.mkdir()
        self._folder = folder
        self._ca = trustme.CA()
        self._issued = 0
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, is_expired: bool = False) -> Pair:
        """Issue a certificate for hosts or e-mail addresses, a server's or a client's."""
        leaf = self._ca.issue_cert(*names, not_after=LONG_AGO if is_expired else None)
        chain = b"".join(each.bytes() for each in leaf.cert_chain_pems)
        return self._written(chain, leaf.private_key_pem.bytes())

    def issue_as(
        self, names: Sequence[x509.GeneralName], common_name: str | None = None, key: Key | None = None
    ) -> Pair:
        """Issue a certificate with names and a key of any kind, which need not make sense."""
        issuer, issuer_key = self._signer()
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        builder = (
            x509.CertificateBuilder(issuer, x509.Name(subject), key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(BEGIN)
            .not_valid_after(END)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        certificate = builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return self._written(certificate, key_pem(key))

    def revocations(self) -> bytes:
        """Return a list of revoked certificates in PEM: it has none, and is no certificate."""
        issuer, key = self._signer()
        builder = x509.CertificateRevocationListBuilder(issuer, BEGIN, END)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _signer(self) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # trustme's default
        return x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject, key

    def _written(self, certificate: bytes, key: bytes) -> Pair:
        self._issued += 1
        files = (self._folder / f"{self._issued}.crt", self._folder / f"{self._issued}.key")
        for file, data in zip(files, (certificate, key), strict=True):
            file.write_bytes(data)
            file.chmod(0o600)
        return str(files[0]), str(files[1])


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    """Return a private key in PEM, encrypted if there is a password."""
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def client_credentials(ca_file: str, pair: Pair | None = None) -> grpc.ChannelCredentials:
    """Return the credentials of a client that trusts an authority, and shows a certificate if it has one."""
    chain, key = (None, None) if pair is None else (Path(file).read_bytes() for file in pair)
    return grpc.ssl_channel_credentials(Path(ca_file).read_bytes(), key, chain)
