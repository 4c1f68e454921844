"""What the server shows of itself, and whose clients it lets in."""

from dataclasses import dataclass
from typing import Final

import grpc

from exitlab.pem import CERT_FLAG, KEY_FLAG, BadPem, is_readable_by_all, read_certificates, read_pair
from exitlab.serving.logs import log
from exitlab.serving.refusals import CannotServe

CLIENT_CA_FLAG: Final = "--tls-client-ca"
INSECURE_FLAG: Final = "--insecure"


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of a server: chain, key, and the authorities whose clients alone it lets in, if any."""

    cert_file: str
    key_file: str
    client_ca_file: str | None = None


def chosen_files(
    cert_file: str | None, key_file: str | None, client_ca_file: str | None, *, is_insecure: bool
) -> TlsFiles | None:
    """Return the files of the flags as given, None if none is.

    Raises: CannotServe.
    """
    files = {CERT_FLAG: cert_file, KEY_FLAG: key_file, CLIENT_CA_FLAG: client_ca_file}
    given = [flag for flag, file in files.items() if file is not None]
    if given and is_insecure:
        raise CannotServe(f"{INSECURE_FLAG}: not together with {given[0]}")
    if cert_file is not None and key_file is not None:
        return TlsFiles(cert_file, key_file, client_ca_file)
    if given:
        missing = " and ".join(flag for flag in (CERT_FLAG, KEY_FLAG) if flag not in given)
        raise CannotServe(f"{given[0]}: needs {missing}")
    return None


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return what gRPC serves with; with a client CA, nobody gets in without a certificate of it.

    Raises: CannotServe.
    """
    try:
        pair = read_pair(files.cert_file, files.key_file)
        client_ca = None
        if files.client_ca_file is not None:
            client_ca = read_certificates(CLIENT_CA_FLAG, files.client_ca_file)
        if is_readable_by_all(files.key_file):
            log.warning("everybody on this machine can read the TLS key", file=files.key_file)
    except BadPem as error:
        raise CannotServe(str(error)) from None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
