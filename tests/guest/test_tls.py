"""The guest's end of TLS: whom it trusts, what it shows, and what it says when that does not do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from guest_svc import options
from guest_svc.cli import main
from guest_svc.tls import Tls, tls_trouble
from tests.hypervisor.test_hypervisor_cli import serving
from tests.tls import Authority, Pair

COMMAND = [sys.executable, "-m", "guest_svc"]
RUN = ["run", "idle", "-p", "ticks=10"]


@dataclass
class Lab:
    """Hypervisors that differ in whom they let in, and the certificates that do or do not do."""

    ours: Authority
    strange: Authority
    client: Pair
    foreign: Pair
    expired: Pair
    addresses: dict[str, str]

    def text(self, text: str) -> str:
        """Return a text with the names in braces replaced by files and addresses."""
        pairs = {"client": self.client, "foreign": self.foreign, "expired": self.expired}
        files = {
            f"{name}.{i}": file
            for name, pair in pairs.items()
            for i, file in zip(("crt", "key"), pair, strict=True)
        }
        files |= {"ours": self.ours.file, "strange": self.strange.file, **self.addresses}
        for name, value in files.items():
            text = text.replace("{" + name + "}", value)
        return text


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Run hypervisors without TLS, with TLS, with client certificates, and under another name."""
    folder = tmp_path_factory.mktemp("tls")
    ours, strange = Authority(folder / "ours"), Authority(folder / "strange")
    server, other, old = (
        ours.issue("127.0.0.1"),
        ours.issue("lab.example"),
        ours.issue("127.0.0.1", is_expired=True),
    )

    def tls(pair: Pair, *more: str) -> tuple[str, ...]:
        return ("127.0.0.1:0", "--tls-cert", pair[0], "--tls-key", pair[1], *more)

    servers = {
        "plain": ("127.0.0.1:0",),
        "tls": tls(server),
        "mutual": tls(server, "--tls-client-ca", ours.file),
        "named": tls(other),
        "old": tls(old),
    }
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(*flags))[1] for name, flags in servers.items()}
        client, expired = ours.issue("guest.example"), ours.issue("guest.example", is_expired=True)
        yield Lab(ours, strange, client, strange.issue("guest.example"), expired, addresses)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no hypervisor be named but by a test."""
    monkeypatch.delenv(options.HYPERVISOR_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "flags",
    [
        "{tls} --tls-ca {ours}",
        "{tls} --tls --tls-ca {ours}",
        "{tls} --tls-ca {ours} --tls-cert {client.crt} --tls-key {client.key}",
        "{mutual} --tls-ca {ours} --tls-cert {client.crt} --tls-key {client.key}",
        "{named} --tls-ca {ours} --tls-server-name lab.example",
    ],
)
def test_a_run_over_tls(lab: Lab, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A guest that trusts the hypervisor, and is let in, runs as over any connection."""
    assert main([*RUN, "--hypervisor", *lab.text(flags).split()]) == 0
    told = capsys.readouterr()
    assert ("kvm-6.14" in told.out, told.err) == (True, "")


@pytest.mark.parametrize(("ca", "code"), [("{ours}", 0), ("{strange}", 2)])
def test_the_systems_authorities_are_those_of_openssl(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, ca: str, code: int
) -> None:
    """With --tls alone, whom the system trusts is trusted, and nobody else."""
    monkeypatch.setenv("SSL_CERT_FILE", lab.text(ca))
    assert main([*RUN, "--hypervisor", lab.text("{tls}"), "--tls"]) == code


CLOSED = "the hypervisor at {0} closed the connection; "
NOT_TRUSTED = "the certificate of the hypervisor at {0} is not trusted: "
UNKNOWN_AUTHORITY = "unable to get local issuer certificate (--tls-ca FILE says whom to trust)"
OTHER_NAME = (
    "the certificate of the hypervisor at {0} is for another name "
    "(--tls-server-name NAME says which to expect)"
)


@pytest.mark.parametrize(
    ("address", "flags", "said"),
    [
        ("{tls}", "--tls-ca {strange}", NOT_TRUSTED + UNKNOWN_AUTHORITY),
        ("{tls}", "--tls-server-name 127.0.0.1", NOT_TRUSTED + UNKNOWN_AUTHORITY),
        ("{old}", "--tls-ca {ours}", NOT_TRUSTED + "certificate has expired"),
        ("{named}", "--tls-ca {ours}", OTHER_NAME),
        ("{tls}", "--tls-ca {ours} --tls-server-name b.example", OTHER_NAME),
        (
            "{plain}",
            "--tls-ca {ours}",
            "the hypervisor at {0} does not speak TLS: "
            "serve with --tls-cert and --tls-key, or leave TLS out here",
        ),
        ("{tls}", "", CLOSED + "if it wants TLS, say --tls or --tls-ca FILE"),
        ("{mutual}", "", CLOSED + "if it wants TLS, say --tls or --tls-ca FILE"),
        ("{mutual}", "--tls-ca {ours}", CLOSED + "it may want a certificate: --tls-cert FILE --tls-key FILE"),
        (
            "{mutual}",
            "--tls-ca {ours} --tls-cert {foreign.crt} --tls-key {foreign.key}",
            CLOSED + "it may not trust {foreign.crt}, or that has expired",
        ),
        (
            "{mutual}",
            "--tls-ca {ours} --tls-cert {expired.crt} --tls-key {expired.key}",
            CLOSED + "it may not trust {expired.crt}, or that has expired",
        ),
    ],
)
def test_a_connection_that_does_not_do_is_one_line_and_2(
    lab: Lab, address: str, flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong, or may be, is told with the flag that mends it; nothing is printed."""
    where = lab.text(address)
    assert main([*RUN, "--hypervisor", where, *lab.text(flags).split()]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"guest-svc: {lab.text(said).replace('{0}', where)}\n")


def test_grpc_has_no_lines_of_its_own(lab: Lab) -> None:
    """A handshake that fails is one line in a process of its own too, where gRPC would write others."""
    arguments = [*COMMAND, *RUN, "--hypervisor", *lab.text("{tls} --tls-ca {strange}").split()]
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith("guest-svc: the certificate of the hypervisor at ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tls", "--tls: needs --hypervisor; a private one is reached by nobody else"),
        ("--tls-ca x", "--tls-ca: needs --hypervisor; a private one is reached by nobody else"),
        (
            "--tls-server-name x",
            "--tls-server-name: needs --hypervisor; a private one is reached by nobody else",
        ),
        ("--hypervisor h:1 --tls-cert x", "--tls-cert: needs --tls-key"),
        ("--hypervisor h:1 --tls-key x", "--tls-key: needs --tls-cert"),
        ("--hypervisor h:1 --tls-server-name=", "--tls-server-name: expected a name"),
        ("--hypervisor h:1 --tls-ca none", "--tls-ca none: No such file or directory"),
        ("--hypervisor h:1 --tls-ca=", "--tls-ca : No such file or directory"),
        ("--hypervisor h:1 --tls-ca {client.key}", "--tls-ca {client.key}: holds no certificate in PEM"),
        (
            "--hypervisor h:1 --tls-cert {client.crt} --tls-key {foreign.key}",
            "--tls-key {foreign.key}: not the key of the certificate in {client.crt}",
        ),
    ],
)
@pytest.mark.parametrize("command", [RUN, ["conform"], ["demo"]], ids=lambda command: command[0])
def test_options_that_cannot_be_used_are_one_line_and_2(
    lab: Lab, command: list[str], flags: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the command, TLS is whole, with files that do, or there is no connection at all."""
    assert main([*command, *lab.text(flags).split()]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"guest-svc: {lab.text(said)}\n")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Peer name foo.example is not in peer certificate", "is for another name"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "is for another name"),
        (
            "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed certificate: OK",
            "not trusted: self signed",
        ),
        ("OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "is not yet valid"),
        ("OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid", "does not speak TLS"),
        ("recvmsg:Connection reset by peer", "closed the connection; it may want a certificate"),
        ("Failed to connect to remote host: Connection refused", ""),
        ("", ""),
    ],
)
def test_grpcs_words_of_all_releases(message: str, said: str) -> None:
    """What is no trouble with TLS is left to others to tell."""
    trouble = tls_trouble(message, "h:1", Tls())
    assert said in trouble
    assert bool(trouble) == bool(said)
