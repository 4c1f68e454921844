"""Who may in: the server's certificate and flags, and the identity of its callers."""

import asyncio
import ipaddress
import json
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from structlog.testing import capture_logs

from exitlab.serving.binding import bind
from exitlab.serving.identity import MAX_NAME_BYTES, NOBODY, owner_of
from exitlab.serving.refusals import CannotServe, PermissionDenied
from exitlab.serving.tls import TlsFiles, server_credentials
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc.cli import main
from tests.hypervisor.test_hypervisor_cli import serving
from tests.tls import Authority, Key, Pair, client_credentials, key_pem

SECONDS = 20.0
METHOD = "/test/Who"
URI, DNS, EMAIL = x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name
IP = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))
OTHER_KIND = ": gRPC uses keys of RSA, P-256 and P-384 only"
FOLDER = x509.DirectoryName(x509.Name([]))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority that server and clients trust."""
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "strange")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    """Return the server's certificate and key."""
    return authority.issue("localhost", "127.0.0.1")


async def _who(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answer a caller with who he is."""
    try:
        return owner_of(context).encode()
    except PermissionDenied as refused:
        await context.abort(grpc.StatusCode[refused.code], refused.reason)


def ask(
    tls: TlsFiles | None,
    client: grpc.ChannelCredentials | None,
    listen: str = "127.0.0.1:0",
    *,
    is_insecure: bool = False,
) -> str:
    """Serve, ask who one is, and return the answer, or the code and the details of the refusal."""

    async def conversation() -> str:
        server = grpc.aio.server()
        methods: Any = {"Who": grpc.unary_unary_rpc_method_handler(_who)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
        credentials = None if tls is None else server_credentials(tls)
        address = bind(server, listen, credentials, is_insecure=is_insecure).replace("0.0.0.0", "127.0.0.1")
        await server.start()
        name = [("grpc.ssl_target_name_override", "localhost")]
        channel = (
            grpc.aio.insecure_channel(address)
            if client is None
            else grpc.aio.secure_channel(address, client, name)
        )
        call: Any = channel.unary_unary(METHOD)
        try:
            return str(await call(b"", timeout=SECONDS), "utf-8")
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        finally:
            await channel.close()
            await server.stop(0)

    return asyncio.run(conversation())


@pytest.mark.parametrize(
    ("names", "common_name", "owner"),
    [
        ([URI("spiffe://lab/a")], None, "uri:spiffe://lab/a"),
        ([DNS("a.example"), EMAIL("a@b.example"), URI("spiffe://lab/a")], "carl", "uri:spiffe://lab/a"),
        ([URI("https://b.example"), URI("spiffe://lab/a")], "carl", "uri:https://b.example"),
        ([EMAIL("a@b.example"), DNS("b.example"), DNS("a.example")], "carl", "dns:b.example"),
        ([EMAIL("a@b.example"), IP], "carl", "email:a@b.example"),
        ([IP, FOLDER], "carl", "cn:carl"),
        ([], "carl", "cn:carl"),
        ([], "çarl ☃", "cn:çarl ☃"),
        ([], "uri:spiffe://lab/a", "cn:uri:spiffe://lab/a"),
        ([URI("a\nb"), DNS("a.example")], None, "dns:a.example"),
        ([IP], None, "PERMISSION_DENIED: NO_IDENTITY"),
        ([FOLDER], None, "PERMISSION_DENIED: NO_IDENTITY"),
        ([], None, "PERMISSION_DENIED: NO_IDENTITY"),
        ([], "a\nb", "PERMISSION_DENIED: NO_IDENTITY"),
        ([], "a\u202eb", "PERMISSION_DENIED: NO_IDENTITY"),
    ],
)
def test_an_identity_is_a_name_with_its_kind(
    authority: Authority, server: Pair, names: list[x509.GeneralName], common_name: str | None, owner: str
) -> None:
    """The first URI counts, else DNS name, e-mail address, common name; without one nobody is let in."""
    client = client_credentials(authority.file, authority.issue_as(names, common_name))
    assert ask(TlsFiles(*server, authority.file), client) == owner


class Known:
    """A caller of whom gRPC knows what a test says."""

    def __init__(self, known: Mapping[str, Iterable[bytes]]) -> None:
        """Keep what is known."""
        self._known = known

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return it."""
        return self._known


@pytest.mark.parametrize("name", [b"\xff", b"a\x00", b"", b"x" * (MAX_NAME_BYTES + 1)])
def test_a_name_that_cannot_be_kept_is_none(name: bytes) -> None:
    """Bytes that are no text, and names without end, are no identity; the longest name is one."""
    longest = "x" * MAX_NAME_BYTES
    known = {"x509_pem_cert": [b"..."], "peer_uri": [name]}
    with pytest.raises(PermissionDenied) as refused:
        owner_of(Known(known))
    assert (refused.value.code, refused.value.reason) == ("PERMISSION_DENIED", "NO_IDENTITY")
    assert owner_of(Known({**known, "peer_dns": [longest.encode()]})) == f"dns:{longest}"


def test_a_name_without_a_verified_certificate_is_nobodys() -> None:
    """Names alone prove nothing."""
    assert owner_of(Known({"peer_uri": [b"spiffe://lab/a"]})) == NOBODY


def test_where_no_certificate_is_asked_for_everybody_is_nobody(
    authority: Authority, server: Pair, tmp_path: Path
) -> None:
    """Loopback, unix sockets and TLS without a client CA know no identities, whatever a client has."""
    client = client_credentials(authority.file, authority.issue("a.example"))
    for listen in ("127.0.0.1:0", f"unix:{tmp_path}/s"):
        assert ask(None, None, listen) == NOBODY
        assert ask(TlsFiles(*server), client, listen) == NOBODY


def test_a_certificate_counts_on_a_unix_socket_too(
    authority: Authority, server: Pair, tmp_path: Path
) -> None:
    """TLS that is asked for is there on every kind of address."""
    client = client_credentials(authority.file, authority.issue("a.example"))
    assert ask(TlsFiles(*server, authority.file), client, f"unix:{tmp_path}/s") == "dns:a.example"


def test_only_certificates_of_the_client_ca_are_let_in(
    authority: Authority, stranger: Authority, server: Pair
) -> None:
    """No certificate, one of another authority, and one that has expired do not reach the service."""
    foreign, expired = stranger.issue("a.example"), authority.issue("a.example", is_expired=True)
    tls = TlsFiles(*server, authority.file)
    for pair in (None, foreign, expired):
        assert ask(tls, client_credentials(authority.file, pair)).startswith("UNAVAILABLE: ")
    assert ask(tls, client_credentials(authority.file, authority.issue("a.example"))) == "dns:a.example"


def test_a_client_trusts_its_own_authority_only(
    authority: Authority, stranger: Authority, server: Pair
) -> None:
    """The server proves who it is to whoever trusts its authority, and to nobody else."""
    assert ask(TlsFiles(*server), client_credentials(authority.file)) == NOBODY
    assert "CERTIFICATE_VERIFY_FAILED" in ask(TlsFiles(*server), client_credentials(stranger.file))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["RSA", "P-256", "P-384"],
)
def test_keys_that_both_sides_can_use(authority: Authority, key: Key) -> None:
    """What is not refused works, at a server and at a client; a text before the certificate does no harm."""
    pair = authority.issue_as([DNS("localhost")], key=key)
    Path(pair[0]).write_bytes(b"Certificate:\n    Data: \xff\n" + Path(pair[0]).read_bytes())
    assert ask(TlsFiles(*pair, authority.file), client_credentials(authority.file, pair)) == "dns:localhost"


def test_plain_and_tls_do_not_talk(authority: Authority, server: Pair) -> None:
    """A server with TLS answers nobody without, and one without answers nobody with."""
    assert ask(TlsFiles(*server), None).startswith("UNAVAILABLE: ")
    assert "WRONG_VERSION_NUMBER" in ask(None, client_credentials(authority.file))


def test_other_addresses_need_tls_or_a_word(authority: Authority, server: Pair) -> None:
    """An address that others reach is served with TLS, or if that is not wanted, but never by mistake."""
    with pytest.raises(CannotServe) as refused:
        ask(None, None, "0.0.0.0:0")
    assert str(refused.value) == (
        "will not listen on 0.0.0.0:0: anybody who reaches it could use it; "
        "--tls-cert and --tls-key serve it with TLS, --insecure allows it as it is"
    )
    assert ask(TlsFiles(*server), client_credentials(authority.file), "0.0.0.0:0") == NOBODY
    assert ask(None, None, "0.0.0.0:0", is_insecure=True) == NOBODY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, authority: Authority, server: Pair) -> Path:
    """Return a folder with files that can be used, and such that cannot."""
    folder = tmp_path_factory.mktemp("files")
    crt, key = (Path(file).read_bytes() for file in server)
    first, second, *_, last = key.splitlines()
    weak_key = rsa.generate_private_key(65537, 1024)
    unused: dict[str, Key] = {
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }
    files = {
        "crt": crt,
        "key": key,
        "other-key": Path(authority.issue("b.example")[1]).read_bytes(),
        "rsa-key": key_pem(rsa.generate_private_key(65537, 2048)),
        "locked-key": key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"),
        "weak-crt": Path(authority.issue_as([DNS("a.example")], key=weak_key)[0]).read_bytes(),
        "weak-key": key_pem(weak_key),
        "broken-crt": crt.replace(b"M", b"N"),
        "broken-key": b"\n".join([first, second[::-1], last]),
        "revoked": authority.revocations(),
        "empty": b"",
        "text": b"not PEM",
    }
    for name, unused_key in unused.items():
        files[f"{name}-key"] = key_pem(unused_key)
        files[f"{name}-crt"] = Path(authority.issue_as([DNS("a.example")], key=unused_key)[0]).read_bytes()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "said"),
    [
        ("none", "key", None, "--tls-cert {0}/none: No such file or directory"),
        ("crt", "none", None, "--tls-key {0}/none: No such file or directory"),
        ("crt", "key", "none", "--tls-client-ca {0}/none: No such file or directory"),
        ("crt", "key", "x" * 300, "--tls-client-ca {0}/" + "x" * 300 + ": File name too long"),
        (".", "key", None, "--tls-cert {0}/.: not a regular file"),
        ("crt", ".", None, "--tls-key {0}/.: not a regular file"),
        ("text", "key", None, "--tls-cert {0}/text: holds no certificate in PEM"),
        ("empty", "key", None, "--tls-cert {0}/empty: holds no certificate in PEM"),
        ("key", "key", None, "--tls-cert {0}/key: holds no certificate in PEM"),
        ("broken-crt", "key", None, "--tls-cert {0}/broken-crt: holds no certificate in PEM"),
        ("crt", "text", None, "--tls-key {0}/text: holds no private key in PEM"),
        ("crt", "crt", None, "--tls-key {0}/crt: holds no private key in PEM"),
        ("crt", "broken-key", None, "--tls-key {0}/broken-key: holds no private key in PEM"),
        ("crt", "other-key", None, "--tls-key {0}/other-key: not the key of the certificate in {0}/crt"),
        ("crt", "rsa-key", None, "--tls-key {0}/rsa-key: not the key of the certificate in {0}/crt"),
        ("crt", "locked-key", None, "--tls-key {0}/locked-key: encrypted, and no password is asked for"),
        ("weak-crt", "weak-key", None, "--tls-cert {0}/weak-crt: too weak, OpenSSL says EE_KEY_TOO_SMALL"),
        ("p521-crt", "p521-key", None, "--tls-cert {0}/p521-crt" + OTHER_KIND),
        ("ed25519-crt", "ed25519-key", None, "--tls-cert {0}/ed25519-crt" + OTHER_KIND),
        ("crt", "key", "text", "--tls-client-ca {0}/text: holds no certificate in PEM"),
        ("crt", "key", "empty", "--tls-client-ca {0}/empty: holds no certificate in PEM"),
        ("crt", "key", "revoked", "--tls-client-ca {0}/revoked: holds no certificate in PEM"),
    ],
)
def test_files_that_cannot_be_used(
    folder: Path, cert: str, key: str, client_ca: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is told in one line with its flag and its name, before anything listens."""
    socket = folder / "socket"
    files = ["--tls-cert", f"{folder}/{cert}", "--tls-key", f"{folder}/{key}"]
    files += [] if client_ca is None else ["--tls-client-ca", f"{folder}/{client_ca}"]
    assert main(["serve", "--listen", f"unix:{socket}", *files]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"hypervisor-svc: {said.format(folder)}\n")
    assert not socket.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-cert", "c"], "--tls-cert: needs --tls-key"),
        (["--tls-key", "k"], "--tls-key: needs --tls-cert"),
        (["--tls-client-ca", "a"], "--tls-client-ca: needs --tls-cert and --tls-key"),
        (["--tls-client-ca", ""], "--tls-client-ca: needs --tls-cert and --tls-key"),
        (["--tls-cert", "c", "--tls-client-ca", "a"], "--tls-cert: needs --tls-key"),
        (["--tls-key", "k", "--tls-client-ca", "a"], "--tls-key: needs --tls-cert"),
        (["--tls-cert", "c", "--tls-key", "k", "--insecure"], "--insecure: not together with --tls-cert"),
        (["--tls-client-ca", "a", "--insecure"], "--insecure: not together with --tls-client-ca"),
        (["--tls-cert", "", "--tls-key", ""], "--tls-cert : No such file or directory"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of TLS is none, and is never taken for it."""
    assert main(["serve", "--listen", "127.0.0.1:0", *flags]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"hypervisor-svc: {said}\n")


@pytest.mark.parametrize(
    ("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o604, 1), (0o644, 1)], ids=lambda value: f"{value:o}"
)
def test_a_key_that_everybody_can_read_is_warned_about(
    authority: Authority, mode: int, warnings: int
) -> None:
    """It is the operator's to decide, so the server starts; a group's key is common."""
    pair = authority.issue("localhost")
    Path(pair[1]).chmod(mode)
    with capture_logs() as lines:
        server_credentials(TlsFiles(*pair))
    assert [(line["log_level"], line["file"]) for line in lines] == [("warning", pair[1])] * warnings


def test_logs_have_nothing_of_keys_and_certificates(authority: Authority, stranger: Authority) -> None:
    """A server that logs all it can, of callers let in and refused, says where it listens and no secret."""
    server, client = authority.issue("127.0.0.1"), authority.issue("a.example")
    Path(server[1]).chmod(0o644)  # which it warns about
    flags = ("--tls-cert", server[0], "--tls-key", server[1], "--tls-client-ca", authority.file)
    with serving("127.0.0.1:0", *flags, "--log-level", "debug", "--log-format", "json") as (process, address):
        for pair in (None, stranger.issue("a.example"), client):
            with grpc.secure_channel(address, client_credentials(authority.file, pair)) as channel:
                stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
                request = hypervisor_pb2.GetSessionRequest(session_id="none")
                with pytest.raises(grpc.RpcError) as refused:
                    stub.GetSession(request, timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        process.send_signal(signal.SIGTERM)
        out, logged = process.communicate(timeout=SECONDS)
    assert out == ""
    said = [json.loads(line)["event"] for line in logged.splitlines()]
    assert {"serving", "refused", "stopped"} < set(said)
    assert any("can read the TLS key" in event for event in said)
    for file in (*server, *client, authority.file):
        for line in Path(file).read_text().splitlines():
            assert line not in logged
