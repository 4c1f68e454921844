"""Runs belong to who started them, over TLS with client certificates; and TLS to the hypervisor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from exitlab.serving.tls import TlsFiles
from exitlab.v1 import guest_pb2
from guest_svc.service.life import CHANNELZ_NAME, SERVICE_NAME
from guest_svc.service.limits import ServiceLimits
from guest_svc.tls import Tls
from hypervisor_svc.drain import ServeOptions
from hypervisor_svc.limits import ServerLimits
from tests.hypervisor.test_ownership import AskedServer
from tests.hypervisor.test_server import RunningServer, refusal_of
from tests.service.served import FOR_EVER, SECONDS, Client, RunningService, lanes, serving, some_config
from tests.tls import Authority, client_credentials

Code = grpc.StatusCode


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[str]:
    """Return the address of a hypervisor with a small engine."""
    server = RunningServer(f"unix:{tmp_path}/h")
    yield server.address
    server.close()


class Place:
    """A service with TLS, and an authority that issues what names are asked for."""

    def __init__(self, service: RunningService, authority: Authority) -> None:
        """Hold both."""
        self.service = service
        self._authority = authority

    @contextmanager
    def client(self, name: str | None) -> Iterator[Client]:
        """Connect with a new certificate of this name."""
        pair = None if name is None else self._authority.issue(name)
        credentials = client_credentials(self._authority.file, pair)
        with grpc.secure_channel(self.service.address, credentials) as channel:
            yield Client(channel)


@contextmanager
def place(folder: Path, hypervisor: str, *, asks: bool = True) -> Iterator[Place]:
    """Serve with TLS; ``asks`` says whether for certificates."""
    authority = Authority(folder / "tls")
    tls = TlsFiles(*authority.issue("127.0.0.1"), authority.file if asks else None)
    limits = ServiceLimits(max_runs=1, max_all_runs=2)
    with serving(hypervisor, tls=tls, limits=limits) as service:
        yield Place(service, authority)


ENDLESS = some_config(lanes=lanes("known"), prices=[], events=FOR_EVER)


def test_a_run_is_its_owners_alone(tmp_path: Path, hypervisor: str) -> None:
    """To another he can neither watch, stop nor list it, and his request ids and limits are his own."""
    with (
        place(tmp_path, hypervisor) as here,
        here.client("a@lab.example") as one,
        here.client("b@lab.example") as two,
        here.client("a@lab.example") as one_again,
    ):
        started = one.start("same", ENDLESS)
        refusal = (Code.NOT_FOUND, "RUN_NOT_FOUND", "run_id")
        assert refusal_of(lambda: two.stop(started.run_id)) == refusal
        assert refusal_of(lambda: next(two.watch(started.run_id))) == refusal
        assert list(two.list().runs) == []
        other = two.start("same", ENDLESS)
        assert other.run_id != started.run_id
        assert refusal_of(lambda: one.start("more", ENDLESS))[1] == "TOO_MANY_RUNS"
        assert refusal_of(lambda: two.start("more", ENDLESS))[1] == "TOO_MANY_RUNS"
        (listed,) = one_again.list().runs  # with another certificate of the same name
        assert (listed.run_id, listed.session_id) == (started.run_id, started.session_id)
        assert one_again.stop(started.run_id).state == guest_pb2.RUN_STATE_STOPPED
        assert two.list().runs[0].state == guest_pb2.RUN_STATE_RUNNING


def test_who_has_no_certificate_does_not_get_in(tmp_path: Path, hypervisor: str) -> None:
    """With a client CA, a connection without a certificate of it fails."""
    with place(tmp_path, hypervisor) as here, here.client(None) as client, pytest.raises(grpc.RpcError) as no:
        client.list()
    assert no.value.code() == Code.UNAVAILABLE


@pytest.mark.parametrize("asks", [True, False])
def test_connections_are_shown_where_nobody_is_kept_apart(
    tmp_path: Path, hypervisor: str, asks: bool
) -> None:
    """Channelz tells of everybody's, so it is left out where runs belong to identities."""
    with place(tmp_path, hypervisor, asks=asks) as here, here.client("a@lab.example") as client:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = stub.ServerReflectionInfo(asked, timeout=SECONDS)
    names = {each.name for each in answer.list_services_response.service}
    assert SERVICE_NAME in names
    assert (CHANNELZ_NAME in names) is not asks


def test_runs_reach_a_hypervisor_over_tls(tmp_path: Path) -> None:
    """With the service's certificate, which is then the sessions' owner; without it, it is told how to."""
    authority = Authority(tmp_path / "tls")
    tls = TlsFiles(*authority.issue("127.0.0.1"), authority.file)
    server = AskedServer(ServeOptions("127.0.0.1:0", ServerLimits(), tls=tls))
    try:
        ours = Tls(authority.file, *authority.issue("guest@lab.example"), flag="--hypervisor-tls")
        with (
            serving(server.address, hypervisor_tls=ours) as service,
            grpc.insecure_channel(service.address) as channel,
        ):
            client = Client(channel)
            started = client.start("a", ENDLESS)
            assert client.stop(started.run_id).state == guest_pb2.RUN_STATE_STOPPED
        with serving(server.address) as service, grpc.insecure_channel(service.address) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                Client(channel).start("a", ENDLESS)
            assert refused.value.code() == Code.UNAVAILABLE
    finally:
        server.close()
