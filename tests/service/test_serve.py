"""The command ``guest-svc serve``: how it starts, drains and ends."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exitlab.v1 import guest_pb2, hypervisor_pb2
from guest_svc import embedded
from guest_svc.cli import main
from guest_svc.hypervisor import Hypervisor
from guest_svc.options import HYPERVISOR_VARIABLE
from guest_svc.service.life import SERVICE_NAME
from tests.hypervisor.test_server import PARTS, RunningServer, refusal_of
from tests.service.served import FOR_EVER, SECONDS, Client, lanes, some_config
from tests.tls import Authority

COMMAND = (sys.executable, "-m", "guest_svc", "serve")
ENDLESS = some_config(lanes=lanes("known"), prices=[], events=FOR_EVER)


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[str]:
    """Return the address of a hypervisor with a small engine."""
    server = RunningServer(f"unix:{tmp_path}/h", parts=PARTS)
    yield server.address
    server.close()


@contextmanager
def served(
    *arguments: str, listen: str = "127.0.0.1:0"
) -> Iterator[tuple["subprocess.Popen[str]", Client, str]]:
    """Serve in a process of its own; yield it, a client, and the address."""
    command = [*COMMAND, "--listen", listen, "--log-format", "json", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("listening on "), server.communicate(timeout=SECONDS)
            address = line.removeprefix("listening on ").strip()
            with grpc.insecure_channel(address) as channel:
                yield server, Client(channel), address
        finally:
            server.kill()


def events_of(log: str) -> list[str]:
    """Return what the lines of a log are about."""
    return [json.loads(line)["event"] for line in log.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_runs_and_tells_their_watchers(hypervisor: str, number: signal.Signals) -> None:
    """A drain: the run is STOPPED, its session suspended, and the exit code 0."""
    with served("--hypervisor", hypervisor) as (server, client, _):
        started = client.start("a", ENDLESS)
        watching = client.watch(started.run_id, 3_600_000)
        assert next(watching).status.state == guest_pb2.RUN_STATE_RUNNING
        server.send_signal(number)
        (last,) = list(watching)
        assert last.status.state == guest_pb2.RUN_STATE_STOPPED
        out, log = server.communicate(timeout=SECONDS)
    assert (server.returncode, out) == (0, "")
    assert events_of(log) == ["serving", "run began", "draining", "run stopped", "stopped"]
    assert started.run_id not in log
    assert started.session_id not in log
    with Hypervisor(hypervisor) as connection:
        status = connection.session(started.session_id).status
    assert status.state == hypervisor_pb2.SESSION_STATE_SUSPENDED


def test_a_second_signal_ends_it_at_once(hypervisor: str) -> None:
    """Whatever a drain still waits for, here a process that cannot be stopped for a while."""
    with served("--hypervisor", hypervisor, "--grace", "3600") as (server, client, _):
        started = client.start("a", ENDLESS)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGSTOP)
        health: Any = health_pb2_grpc.HealthStub(client.channel)
        watching = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=SECONDS)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        server.send_signal(signal.SIGTERM)
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert refusal_of(lambda: client.start("b", ENDLESS))[1] == "DRAINING"
        assert client.start("a", ENDLESS).run_id == started.run_id
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=SECONDS)
    assert server.returncode == 128 + signal.SIGTERM
    assert "stopped" not in events_of(log)


def test_its_runs_end_with_it_however_it_ends(hypervisor: str) -> None:
    """A service that is killed leaves no process behind: their pipes close, and their output ends."""
    with served("--hypervisor", hypervisor) as (server, client, _):
        client.start("a", ENDLESS)
        (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        ending = os.pidfd_open(int(child))
        server.kill()
        poll = select.poll()
        poll.register(ending)
        assert poll.poll(SECONDS * 1000)
        os.close(ending)


def test_a_service_with_a_private_hypervisor(tmp_path: Path) -> None:
    """On a unix socket, with nothing but an address: a real run, and an end that leaves nothing behind."""
    with served(listen=f"unix:{tmp_path}/s") as (server, client, address):
        assert address == f"unix:{tmp_path}/s"
        last = client.end(client.start("a", some_config()).run_id)
        assert last.status.state == guest_pb2.RUN_STATE_FINISHED
        server.terminate()
        _, log = server.communicate(timeout=SECONDS)
    assert server.returncode == 0
    assert json.loads(log.splitlines()[0])["hypervisor"] == "private"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "nowhere"), "cannot listen on 'nowhere': expected HOST:PORT or unix:PATH"),
        (("--listen", "unix:/nowhere/s"), "cannot listen on unix:/nowhere/s: the folder does not exist"),
        (("--listen", "0.0.0.0:0"), "will not listen on 0.0.0.0:0: anybody who reaches it could use it"),
        (("--tls-cert", "x"), "--tls-cert: needs --tls-key"),
        (("--insecure", "--tls-client-ca", "x"), "--insecure: not together with --tls-client-ca"),
        (("--tls-cert", "/nowhere", "--tls-key", "/nowhere"), "--tls-cert /nowhere: No such file"),
        (("--hypervisor", "x"), "--hypervisor x: expected host:port or unix:PATH"),
        (("--hypervisor-tls-cert", "x"), "--hypervisor-tls-cert: needs --hypervisor-tls-key"),
        (("--hypervisor-tls-ca", "/nowhere"), "--hypervisor-tls-ca /nowhere: No such file or directory"),
        (
            ("--max-runs", "0"),
            "guest-svc serve: argument --max-runs: '0' is not a whole number from 1",
        ),
        (
            ("--grace", "-1"),
            "guest-svc serve: argument --grace: '-1' is not a number of seconds from 0",
        ),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    given = ["serve", "--listen", "127.0.0.1:0", "--hypervisor", "127.0.0.1:1", *arguments]
    try:
        code = main(given)
    except SystemExit as refused:  # of the parser
        code = int(refused.code or 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.removeprefix("guest-svc: ").startswith(said)


def test_a_hypervisor_that_does_not_start_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A service whose runs would all be refused does not begin, and leaves nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)
    assert main(["serve", "--listen", "127.0.0.1:0"]) == 2
    said = "guest-svc: the embedded hypervisor ended with status 3 before it listened\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_all_can_read_is_warned_of(hypervisor: str, tmp_path: Path) -> None:
    """As the hypervisor does."""
    cert, key = Authority(tmp_path / "tls").issue("127.0.0.1")
    os.chmod(key, 0o644)
    with served("--hypervisor", hypervisor, "--tls-cert", cert, "--tls-key", key) as (server, _, _):
        server.terminate()
        _, log = server.communicate(timeout=SECONDS)
    assert events_of(log)[0] == "everybody on this machine can read the TLS key"
