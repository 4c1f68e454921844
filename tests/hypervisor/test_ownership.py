"""Sessions belong to who created them, over TLS with client certificates: to others they do not exist."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from exitlab.blocks import ColumnCrcs
from exitlab.serving.tls import TlsFiles
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc
from hypervisor_svc.drain import ServeOptions
from hypervisor_svc.limits import ServerLimits
from tests.hypervisor.test_server import SECONDS, Client, Code, RunningServer, Stream, refusal_of
from tests.hypervisor.test_session import COLUMNS
from tests.tls import Authority, Pair, client_credentials

pb = hypervisor_pb2
LIMITS = ServerLimits(max_block_events=64, max_sessions=2, max_all_sessions=5)
GUESS = "x" * 32  # as long as an id


class AskedServer(RunningServer):
    """A server in this process with any options."""

    def __init__(self, asked: ServeOptions) -> None:
        """Start it."""
        self._asked = asked
        super().__init__(asked.listen, asked.limits)

    async def _live(self) -> None:
        self._options = self._asked
        await super()._live()


class TlsClient(Client):
    """A guest that shows a certificate, or none."""

    def __init__(self, server: RunningServer, authority: Authority, pair: Pair | None) -> None:
        """Connect, with no other's connection shared."""
        credentials = client_credentials(authority.file, pair)
        self.channel = grpc.secure_channel(server.address, credentials)
        self.stub = hypervisor_pb2_grpc.HypervisorServiceStub(self.channel)


class Place:
    """A server with TLS, and an authority that issues what names are asked for."""

    def __init__(self, folder: Path, *, asks: bool = True, state_dir: Path | None = None) -> None:
        """Start it; ``asks`` says whether for certificates."""
        self.authority = Authority(folder / "tls")
        tls = TlsFiles(*self.authority.issue("127.0.0.1"), self.authority.file if asks else None)
        self._options = ServeOptions("127.0.0.1:0", LIMITS, tls=tls, state_dir=state_dir)
        self._clients: list[TlsClient] = []
        self.server = AskedServer(self._options)

    def client(self, name: str | None) -> TlsClient:
        """Return a client with a new certificate of this name."""
        pair = None if name is None else self.authority.issue(name)
        self._clients.append(TlsClient(self.server, self.authority, pair))
        return self._clients[-1]

    def restart(self) -> None:
        """Drain the server and start another in its place."""
        self.server.start_drain().result(SECONDS)
        self.server.close()
        self.server = AskedServer(replace(self._options))

    def close(self) -> None:
        """End everything."""
        for client in self._clients:
            client.channel.close()
        self.server.close()


@contextmanager
def a_place(folder: Path, **options: Any) -> Iterator[Place]:
    """Yield a place and close it."""
    place = Place(folder, **options)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Return a server that asks for certificates."""
    with a_place(tmp_path) as place:
        yield place


def said_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, bytes]:
    """Make a call that is refused, and return all that its caller is told."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    trailing = dict(error.trailing_metadata())
    return error.code(), error.details(), trailing["grpc-status-details-bin"]


def attempts(client: Client, session_id: str) -> dict[str, Callable[[], object]]:
    """Return every way to use a session."""
    stub = client.stub
    price = pb.PriceChoice(name="seed-2014")
    finish = pb.FinishSessionRequest(session_id=session_id, event_count=2, column_crcs=[1, 2])
    get = pb.GetReportRequest(session_id=session_id, prices=[price])
    return {
        "read": partial(stub.GetSession, pb.GetSessionRequest(session_id=session_id), timeout=SECONDS),
        "finish": partial(stub.FinishSession, finish, timeout=SECONDS),
        "price": partial(stub.GetReport, get, timeout=SECONDS),
        "watch": lambda: next(
            stub.WatchReport(pb.WatchReportRequest(session_id=session_id), timeout=SECONDS)
        ),
        "append": lambda: Stream(client, session_id).get(),
        "append, by its epoch": lambda: Stream(client, session_id, expected_epoch=1).get(),
    }


@pytest.mark.parametrize("is_finished", [False, True], ids=["streaming", "finished"])
def test_what_is_anothers_does_not_exist(place: Place, is_finished: bool) -> None:
    """Whatever is tried with another's id is answered as for an id that never was, and changes nothing."""
    owner, other = place.client("a.example"), place.client("b.example")
    session_id = owner.create("mine")
    stream = Stream(owner, session_id)
    stream.opened()
    stream.put_block(1, 2)
    assert stream.applied() == 2
    if is_finished:
        finish = pb.FinishSessionRequest(session_id=session_id, event_count=2, column_crcs=stream.crcs.values)
        owner.stub.FinishSession(finish, timeout=SECONDS)
    before = owner.status(session_id)
    foreign, unknown = attempts(other, session_id), attempts(other, GUESS)
    for name, attempt in foreign.items():
        told = said_of(attempt)
        assert told == said_of(unknown[name]), name
        assert told[0] is Code.NOT_FOUND
        assert owner.status(session_id) == before
    if not is_finished:
        stream.put_block(3)  # nobody has fenced it
        assert stream.applied() == 3


def test_everybody_lists_his_own(place: Place) -> None:
    """A list has the caller's sessions, with their ids, and nobody else's, whatever the page."""
    clients = [place.client(name) for name in ("a.example", "b.example", "c.example")]
    ids = [[client.create(f"{number}") for number in range(2)] for client in clients[:2]]
    for client, own in zip(clients, [*ids, []], strict=True):
        for token in ("", "0"):
            request = pb.ListSessionsRequest(page_token=token)
            listed = client.stub.ListSessions(request, timeout=SECONDS)
            assert [session.session_id for session in listed.sessions] == own
    one = clients[1].stub.ListSessions(pb.ListSessionsRequest(page_size=1), timeout=SECONDS)
    rest = pb.ListSessionsRequest(page_token=one.next_page_token)
    found = [*one.sessions, *clients[1].stub.ListSessions(rest, timeout=SECONDS).sessions]
    assert [session.session_id for session in found] == ids[1]


def test_request_ids_are_everybodys_own(place: Place) -> None:
    """One request id of two callers makes two sessions; neither learns of the other's config."""
    one, two = place.client("a.example"), place.client("b.example")
    first, second = one.create("r", label="one"), two.create("r", label="two")
    assert first != second
    assert (one.create("r", label="one"), two.create("r", label="two")) == (first, second)
    reused = refusal_of(lambda: two.create("r", label="one"))
    assert reused == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id")


def test_nobody_uses_up_what_others_may_have(place: Place) -> None:
    """A caller at his limit keeps nobody else from creating, up to what all may have together."""
    one, two, three = (place.client(name) for name in ("a.example", "b.example", "c.example"))
    ids = {client: [client.create("1"), client.create("2")] for client in (one, two)}
    too_many = (Code.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS", "")
    assert refusal_of(lambda: one.create("3")) == refusal_of(lambda: two.create("3")) == too_many
    assert three.create("1")
    with pytest.raises(grpc.RpcError, match="5 sessions of all callers are not finished"):
        three.create("2")
    before = [two.status(each) for each in ids[two]]
    finish = pb.FinishSessionRequest(session_id=ids[one][0], column_crcs=ColumnCrcs(COLUMNS).values)
    one.stub.FinishSession(finish, timeout=SECONDS)
    assert three.create("2")
    assert [two.status(each) for each in ids[two]] == before


def test_who_has_a_new_certificate_is_the_same(place: Place) -> None:
    """A session is its owner's by name: a renewed certificate finds it."""
    session_id = place.client("a.example").create("mine")
    assert place.client("a.example").status(session_id).session_id == session_id
    assert place.client("a.example").create("mine") == session_id


def test_a_session_stays_its_owners_after_a_restart(tmp_path: Path) -> None:
    """What is stored has its owner: the next server knows whose it is, and whose request id."""
    with a_place(tmp_path, state_dir=tmp_path / "state") as place:
        session_id = place.client("a.example").create("mine")
        place.restart()
        owner, other = place.client("a.example"), place.client("b.example")
        assert owner.create("mine") == session_id != other.create("mine")
        for name, attempt in attempts(other, session_id).items():
            assert said_of(attempt)[0] is Code.NOT_FOUND, name
        assert owner.status(session_id).session_id == session_id


def test_who_is_nobody_is_told_no_ids(tmp_path: Path) -> None:
    """Where no certificate is asked for, lists are without ids, and an id is all that it takes."""
    with a_place(tmp_path, asks=False) as place:
        one, two = place.client("a.example"), place.client(None)
        session_id = one.create("r", label="listed")
        listed = two.stub.ListSessions(pb.ListSessionsRequest(), timeout=SECONDS).sessions
        assert [(session.session_id, session.label) for session in listed] == [("", "listed")]
        assert two.status(session_id).session_id == session_id
