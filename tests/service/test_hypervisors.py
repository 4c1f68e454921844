"""Runs whose hypervisor is slow, goes away, comes back, or is another than the service's."""

import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from exitlab.v1 import guest_pb2, report_pb2
from guest_svc.service.private import PrivateHypervisor
from tests.hypervisor.test_server import PARTS, RunningServer, refusal_of
from tests.hypervisor.test_session import FakeEngine
from tests.service.served import FOR_EVER, SECONDS, Client, RunningService, lanes, serving, some_config
from tests.system import programs

LONG = 3_000_000  # events: longer than it takes to see that they have begun


@contextmanager
def client_of(hypervisor: str | PrivateHypervisor, retry_seconds: float = SECONDS) -> Iterator[Client]:
    """Serve and return a client."""
    with (
        serving(hypervisor, retry_seconds=retry_seconds) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        yield Client(channel)


def has_begun(status: guest_pb2.RunStatus) -> bool:
    """Tell whether events were applied."""
    return status.applied_events > 0


def wait_for_cut(client: Client, run_id: str, logs: list[MutableMapping[str, Any]]) -> None:
    """Wait until a run tells that it has lost its hypervisor."""
    for _ in client.watch(run_id):
        if any(line["event"] == "cut" for line in logs):
            return
    raise AssertionError("it ended before")


def test_a_run_goes_on_with_a_hypervisor_that_comes_back(tmp_path: Path) -> None:
    """Killed in the middle and started again, it has the run's report as if nothing had happened."""
    address = f"unix:{tmp_path}/h"
    with client_of(address) as client:
        with programs.serving(tmp_path, address) as server:
            started = client.start("a", some_config(events=LONG))
            client.until(started.run_id, has_begun)
            server.kill()
            server.wait(SECONDS)
        with programs.serving(tmp_path, address):
            last = client.end(started.run_id)
            whole = client.end(client.start("b", some_config(events=LONG)).run_id)
    assert last.status.state == whole.status.state == guest_pb2.RUN_STATE_FINISHED
    assert (last.status.reconnects, whole.status.reconnects) == (1, 0)
    assert (last.report, last.figures) == (whole.report, whole.figures)


def test_a_run_is_stopped_while_it_waits(tmp_path: Path) -> None:
    """A hypervisor that is away, and a run that looks for it: STOPPED, and not when it gives up."""
    address = f"unix:{tmp_path}/h"
    with client_of(address, retry_seconds=3_600) as client, capture_logs() as logs:
        with programs.serving(tmp_path, address) as server:
            started = client.start("a", some_config(events=FOR_EVER))
            client.until(started.run_id, has_begun)
            server.kill()
        wait_for_cut(client, started.run_id, logs)
        assert client.stop(started.run_id).state == guest_pb2.RUN_STATE_STOPPED


def test_a_run_fails_that_finds_its_hypervisor_no_more(tmp_path: Path) -> None:
    """It says so in its note, and the service goes on."""
    address = f"unix:{tmp_path}/h"
    with client_of(address, retry_seconds=0) as client:
        with programs.serving(tmp_path, address) as server:
            started = client.start("a", some_config(events=FOR_EVER))
            client.until(started.run_id, has_begun)
            server.kill()
        last = client.end(started.run_id)
        assert last.status.state == guest_pb2.RUN_STATE_FAILED
        assert "the stream broke at event" in last.status.note
        assert refusal_of(lambda: client.start("b", some_config()))[1] == "NO_HYPERVISOR"


def test_a_hypervisor_that_forgets_the_session(tmp_path: Path) -> None:
    """Without a state directory it does not know the run's session any more: FAILED, with its reason."""
    address = f"unix:{tmp_path}/h"
    first = RunningServer(address, parts=replace(PARTS, make_engine=lambda _config: FakeEngine()))
    config = some_config(lanes=lanes("known"), prices=[], events=FOR_EVER)
    with client_of(address) as client:
        started = client.start("a", config)
        client.until(started.run_id, has_begun)
        first.close()
        second = RunningServer(address)
        last = client.end(started.run_id)
        second.close()
    assert last.status.state == guest_pb2.RUN_STATE_FAILED
    assert "SESSION_NOT_FOUND" in last.status.note


class SlowEngine(FakeEngine):
    """Its report waits until it may go."""

    reached = threading.Event()
    go_on = threading.Event()

    def report(self) -> report_pb2.Report:
        """Wait."""
        self.reached.set()
        assert self.go_on.wait(SECONDS)
        return super().report()


def test_a_run_is_stopped_while_it_finishes(tmp_path: Path) -> None:
    """All is sent, and the hypervisor takes its time for the report: the run is STOPPED all the same."""
    parts = replace(PARTS, make_engine=lambda _config: SlowEngine())
    server = RunningServer(f"unix:{tmp_path}/h", parts=parts)
    try:
        with client_of(server.address) as client:
            started = client.start("a", some_config(lanes=lanes("known"), prices=[]))
            assert SlowEngine.reached.wait(SECONDS)
            stopped = client.stop(started.run_id)
            assert (stopped.state, stopped.applied_events) == (guest_pb2.RUN_STATE_STOPPED, 20_000)
    finally:
        SlowEngine.go_on.set()
        server.close()


def test_a_caller_that_gives_up_finds_his_run_again(tmp_path: Path) -> None:
    """A hypervisor takes long to create the session, the caller's patience ends; the run is there later."""
    may_create = threading.Event()

    def slow(*asked: object) -> object:
        assert may_create.wait(SECONDS)
        return PARTS.policy_table(*asked)  # type: ignore[arg-type]  # as it is called

    server = RunningServer(f"unix:{tmp_path}/h", parts=replace(PARTS, policy_table=slow))  # type: ignore[arg-type]  # as above
    config = some_config(lanes=lanes("known"), prices=[])
    try:
        with client_of(server.address) as client:
            request = guest_pb2.StartRunRequest(request_id="a", config=config)
            waiting = client.stub.StartRun.future(request)
            repeat = client.stub.StartRun.future(request)
            waiting.cancel()
            may_create.set()
            started = repeat.result(SECONDS).status
            assert [status.run_id for status in client.list().runs] == [started.run_id]
            client.stop(started.run_id)
    finally:
        server.close()


def test_a_private_hypervisor_that_ends_is_started_again() -> None:
    """It takes its runs with it; the next run has another."""
    private = PrivateHypervisor()
    with client_of(private) as client:
        started = client.start("a", some_config(events=FOR_EVER))
        client.until(started.run_id, has_begun)
        process = private._embedded._process
        process.kill()
        assert client.end(started.run_id).status.state == guest_pb2.RUN_STATE_FAILED
        process.wait(SECONDS)
        last = client.end(client.start("b", some_config()).run_id)
        assert last.status.state == guest_pb2.RUN_STATE_FINISHED


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"listen": "127.0.0.1:0"}, True),
        ({"listen": "0.0.0.0:0", "is_insecure": True}, False),
        ({"listen": "0.0.0.0:0", "is_insecure": True, "is_any_hypervisor": True}, True),
    ],
)
def test_who_may_choose_a_hypervisor(tmp_path: Path, options: dict[str, Any], allowed: bool) -> None:
    """Whoever is on this machine could go there himself; others have the service's own, unless allowed."""
    own, other = RunningServer(f"unix:{tmp_path}/own"), RunningServer(f"unix:{tmp_path}/other")

    def start(service: RunningService, name: str, address: str) -> guest_pb2.RunStatus:
        port = service.address.rpartition(":")[2]
        config = some_config(lanes=lanes("known"), prices=[], hypervisor_address=address)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return Client(channel).start(name, config)

    try:
        with serving(own.address, **options) as service:
            for name in ("", own.address):
                start(service, f"own {name}", name)
            if allowed:
                start(service, "other", other.address)
            else:
                refusal = refusal_of(lambda: start(service, "other", other.address))
                assert refusal[0] == grpc.StatusCode.PERMISSION_DENIED
                assert refusal[1:] == ("HYPERVISOR_NOT_ALLOWED", "config.hypervisor_address")
    finally:
        own.close()
        other.close()
