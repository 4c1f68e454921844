"""The guest's service over a real socket, with runs in processes of their own."""

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from exitlab.v1 import guest_pb2, hypervisor_pb2, policy_pb2, report_pb2
from guest_svc import sources
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor
from guest_svc.service.life import CHANNELZ_NAME, SERVICE_NAME
from guest_svc.service.limits import ServiceLimits
from tests.hypervisor.test_server import refusal_of
from tests.service.served import FOR_EVER, SECONDS, VMX, Client, RunningService, lanes, serving, some_config

Code = grpc.StatusCode
BAD = "INVALID_ARGUMENT"
Parameter = guest_pb2.ParameterValue
NO_TABLE = policy_pb2.Lane(vendor=VMX, policy_table=policy_pb2.PolicyTable(name="x", vendor=VMX))


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[str]:
    """Return the address of a hypervisor that all tests of this file use."""
    with EmbeddedHypervisor() as embedded:
        yield embedded.address


@pytest.fixture(scope="module")
def service(hypervisor: str) -> Iterator[RunningService]:
    """Return a service that all tests of this file may use."""
    with serving(hypervisor) as service:
        yield service


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    """Return a client of it."""
    with grpc.insecure_channel(service.address) as channel:
        yield Client(channel)


def test_workloads_are_listed_with_their_parameters(client: Client) -> None:
    """Every workload that the command lists, with documentation, version and what is said of parameters."""
    answer = client.stub.ListWorkloads(guest_pb2.ListWorkloadsRequest(), timeout=SECONDS)
    listed = {workload.name: workload for workload in answer.workloads}
    assert list(listed) == [each["name"] for each in sources.list_workloads()[0]]
    for each in sources.list_workloads()[0]:
        workload = listed[each["name"]]
        assert (workload.summary, workload.is_recorded) == (each["summary"], each["is_recorded"])
        assert (workload.documentation, workload.api_version) == (each["documentation"], 1)
        assert len(workload.documentation) > len(workload.summary)
        assert [p.name for p in workload.parameters] == [p["name"] for p in each["parameters"]]
    ticks = listed["idle"].parameters[0]
    expected = guest_pb2.WorkloadParameter(
        name="ticks",
        type="int",
        default_value="50000",
        summary="length of the run (ticks, 1 to 1000000000000)",
    )
    assert ticks == expected


def test_a_run_ends_with_the_hypervisors_report(client: Client, hypervisor: str) -> None:
    """Byte for byte what the hypervisor has stored, and the figures of each list and lane."""
    started = client.start("whole", some_config(prices=["seed-2014", "server-2024"]))
    assert (started.state, started.workload) == (guest_pb2.RUN_STATE_RUNNING, "context-switch")
    last = client.end(started.run_id)
    assert last.status == guest_pb2.RunStatus(
        run_id=started.run_id,
        state=guest_pb2.RUN_STATE_FINISHED,
        sent_events=20_000,
        applied_events=20_000,
        workload="context-switch",
        session_id=started.session_id,
    )
    with Hypervisor(hypervisor) as connection:
        choices = [hypervisor_pb2.PriceChoice(name=name) for name in ("seed-2014", "server-2024")]
        stored = connection.priced(started.session_id, choices)
    assert (last.report, list(last.figures)) == (stored.report, list(stored.figures))
    assert [(each.prices, each.lane) for each in last.figures] == [
        *(("seed-2014", 0), ("seed-2014", 1)),
        *(("server-2024", 0), ("server-2024", 1)),
    ]


def test_a_run_is_what_was_asked_for(client: Client) -> None:
    """Seed, parameters, events and lanes count, a table as well as a name; the same gives the same report."""
    operations = [Parameter(name="operations", value="900")]
    reports = []
    for number, seed in enumerate((3, 3, 4)):
        asked = some_config(workload="io", seed=seed, parameters=operations, events=0, prices=[])
        last = client.end(client.start(f"same {number}", asked).run_id)
        assert last.status.state == guest_pb2.RUN_STATE_FINISHED
        assert not last.figures  # no price list was named
        reports.append(last.report)
    assert reports[0] == reports[1] != reports[2]


def test_a_policy_may_come_as_a_table(client: Client, hypervisor: str) -> None:
    """A lane with the table of a policy is told under the table's name, and has that policy's report."""
    with Hypervisor(hypervisor) as connection:
        table = connection.policy_table("kvm-6.14", VMX)
    named = client.end(client.start("name", some_config()).run_id)
    tabled = [policy_pb2.Lane(policy_table=table, vendor=VMX), *lanes("ignore")]
    last = client.end(client.start("table", some_config(lanes=tabled)).run_id)
    assert (last.status.state, last.report) == (guest_pb2.RUN_STATE_FINISHED, named.report)


def test_a_recorded_trace_runs(client: Client) -> None:
    """A shipped capture, cut short."""
    last = client.end(client.start("capture", some_config(workload="capture:idle-shell", events=500)).run_id)
    assert last.status.state == guest_pb2.RUN_STATE_FINISHED
    assert report_pb2.Report.FromString(last.report).events >= 500


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"workload": ""}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        ({"workload": "./mine.py:Mine"}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        ({"workload": "os:system"}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        ({"workload": "/etc/passwd"}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        ({"workload": "capture:../x"}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        ({"workload": "x" * 101}, (Code.INVALID_ARGUMENT, "NOT_A_NAME", "config.workload")),
        (
            {"workload": "capture:idle-shell", "seed": 1},
            (Code.INVALID_ARGUMENT, "SEED_NOT_TAKEN", "config.seed"),
        ),
        ({"workload": "mine"}, (Code.NOT_FOUND, "UNKNOWN_WORKLOAD", "config.workload")),
        ({"lanes": []}, (Code.INVALID_ARGUMENT, "LANE_COUNT", "config.lanes")),
        ({"lanes": lanes("ignore") * 65}, (Code.INVALID_ARGUMENT, "LANE_COUNT", "config.lanes")),
        (
            {"lanes": lanes("ignore", "mine")},
            (Code.INVALID_ARGUMENT, "UNKNOWN_POLICY", "config.lanes[1].policy_name"),
        ),
        (
            {"lanes": [policy_pb2.Lane(policy_name="ignore")]},
            (Code.INVALID_ARGUMENT, "CHOICE_MISSING", "config.lanes[0].vendor"),
        ),
        (
            {"lanes": [policy_pb2.Lane(vendor=VMX)]},
            (Code.INVALID_ARGUMENT, "POLICY_MISSING", "config.lanes[0]"),
        ),
        (
            {"lanes": [*lanes("ignore"), NO_TABLE]},
            (Code.INVALID_ARGUMENT, "BAD_POLICY_TABLE", "config.lanes[1].policy_table"),
        ),
        ({"prices": ["seed-2014"] * 65}, (Code.INVALID_ARGUMENT, "PRICE_COUNT", "config.prices")),
        ({"prices": ["seed-2014", "x"]}, (Code.INVALID_ARGUMENT, "UNKNOWN_PRICES", "config.prices[1]")),
        (
            {"parameters": [Parameter(name="switches", value="1")] * 2},
            (Code.INVALID_ARGUMENT, "PARAMETER_TWICE", "config.parameters[1].name"),
        ),
        (
            {"parameters": [Parameter(name="switches", value="many")]},
            (Code.INVALID_ARGUMENT, "BAD_PARAMETER", "config.parameters[0].value"),
        ),
        (
            {"parameters": [Parameter(name=f"p{n}", value="1") for n in range(257)]},
            (Code.INVALID_ARGUMENT, "PARAMETER_COUNT", "config.parameters"),
        ),
        (
            {"hypervisor_address": "a" * 300 + ":1"},
            (Code.INVALID_ARGUMENT, "BAD_ADDRESS", "config.hypervisor_address"),
        ),
        ({"hypervisor_address": "x"}, (Code.INVALID_ARGUMENT, "BAD_ADDRESS", "config.hypervisor_address")),
        (
            {"hypervisor_address": "dns:///localhost:1"},
            (Code.INVALID_ARGUMENT, "BAD_ADDRESS", "config.hypervisor_address"),
        ),
        (
            {"hypervisor_address": "unix:/nowhere"},
            (Code.UNAVAILABLE, "NO_HYPERVISOR", "config.hypervisor_address"),
        ),
    ],
)
def test_what_cannot_run_is_refused_before_it_begins(
    client: Client, changes: dict[str, Any], refusal: tuple[Code, str, str]
) -> None:
    """Each with its code, its reason and its field; and there is no run of it."""
    before = client.list()
    assert refusal_of(lambda: client.start("refused", some_config(**changes))) == refusal
    assert client.list() == before


@pytest.mark.parametrize("request_id", ["", "x" * 257])
def test_a_request_id_has_a_length(client: Client, request_id: str) -> None:
    """None, or too long a one, is refused."""
    refusal = (Code.INVALID_ARGUMENT, "BAD_REQUEST_ID", "request_id")
    assert refusal_of(lambda: client.start(request_id, some_config())) == refusal


def test_what_is_no_message_is_refused(client: Client) -> None:
    """Bytes that are no request of a method, and requests that are too large, are told as such."""
    call: Any = client.channel.unary_unary(f"/{SERVICE_NAME}/StartRun")
    for data, refusal in (
        (b"\xff", (Code.INVALID_ARGUMENT, "NOT_A_MESSAGE", "")),
        (bytes(1 << 21), (Code.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", "")),
    ):
        assert refusal_of(lambda data=data: call(data, timeout=SECONDS)) == refusal  # type: ignore[misc]  # its default


def test_a_request_id_returns_the_run_that_it_started(client: Client) -> None:
    """Also after its end; with another config it is refused."""
    started = client.start("twice", some_config())
    assert client.start("twice", some_config()).run_id == started.run_id
    client.end(started.run_id)
    assert client.start("twice", some_config()).state == guest_pb2.RUN_STATE_FINISHED
    refusal = (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id")
    assert refusal_of(lambda: client.start("twice", some_config(seed=1))) == refusal


def test_a_watcher_sees_a_run_move_to_its_end(client: Client) -> None:
    """What it is told never goes back; a result comes with the end only, and again to who watches later."""
    started = client.start("watched", some_config(events=3_000_000))
    told = list(client.watch(started.run_id))
    assert len(told) > 2
    for one, next_one in pairwise(told):
        assert one.status.state == guest_pb2.RUN_STATE_RUNNING
        assert not one.report
        assert one.status.applied_events <= next_one.status.applied_events
        assert one.status.applied_events <= one.status.sent_events <= next_one.status.sent_events
    assert told[-1].status.state == guest_pb2.RUN_STATE_FINISHED
    assert list(client.watch(started.run_id)) == [told[-1]]


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (lambda client: list(client.watch("x")), ("NOT_FOUND", "RUN_NOT_FOUND", "run_id")),
        (lambda client: list(client.watch("x", 9)), (BAD, "INTERVAL_TOO_SHORT", "interval_ms")),
        (lambda client: client.stop(""), ("NOT_FOUND", "RUN_NOT_FOUND", "run_id")),
        (lambda client: client.list(page_token="x"), (BAD, "BAD_PAGE_TOKEN", "page_token")),
        (lambda client: client.list(page_token="1" * 21), (BAD, "BAD_PAGE_TOKEN", "page_token")),
    ],
)
def test_calls_about_nothing(client: Client, call: Any, refusal: tuple[str, str, str]) -> None:
    """A run that is none, an interval that is too short, a token of no page."""
    code, *rest = refusal_of(lambda: call(client))
    assert (code.name, *rest) == refusal


def test_runs_are_listed_by_pages(client: Client) -> None:
    """Newest first, each once, and without the sessions: who has no identity gets no access by a list."""
    started = [client.start(f"page {number}", some_config()).run_id for number in range(5)]
    for run_id in started:
        client.end(run_id)
    first = client.list(page_size=2)
    second = client.list(page_size=2, page_token=first.next_page_token)
    assert [status.run_id for status in (*first.runs, *second.runs)] == started[:0:-1]
    assert all(status.session_id == "" and status.workload for status in first.runs)
    everything = client.list()
    assert (everything.next_page_token, everything.runs[:2]) == ("", list(first.runs))
    oldest = client.list(page_size=len(everything.runs) - 1)
    rest = client.list(page_token=oldest.next_page_token)
    assert (len(rest.runs), rest.next_page_token) == (1, "")


def test_a_run_that_is_stuck_holds_no_other(client: Client, service: RunningService) -> None:
    """A process that does nothing at all: another run ends, and it is ended by force when it is stopped."""
    stuck = client.start("stuck", some_config(events=FOR_EVER))
    os.kill(service.pid(stuck.run_id), signal.SIGSTOP)
    other = client.start("beside", some_config())
    assert client.end(other.run_id).status.state == guest_pb2.RUN_STATE_FINISHED
    assert client.stop(stuck.run_id).state == guest_pb2.RUN_STATE_STOPPED


def test_a_run_whose_process_is_killed_has_failed(client: Client, service: RunningService) -> None:
    """As by a system that is out of memory: the note says how it ended."""
    started = client.start("killed", some_config(events=FOR_EVER))
    os.kill(service.pid(started.run_id), signal.SIGKILL)
    last = client.end(started.run_id)
    assert last.status.state == guest_pb2.RUN_STATE_FAILED
    assert "signal 9" in last.status.note


def test_stopping_a_run_leaves_its_session(client: Client, hypervisor: str) -> None:
    """It is suspended, with what was applied of it; a second stop changes nothing."""
    started = client.start("stopped", some_config(events=FOR_EVER))
    client.until(started.run_id, lambda status: status.applied_events > 0)
    stopped = client.stop(started.run_id)
    assert stopped.state == guest_pb2.RUN_STATE_STOPPED
    assert client.stop(started.run_id) == stopped == client.end(started.run_id).status
    with Hypervisor(hypervisor) as connection:
        status = connection.session(started.session_id).status
    assert status.state == hypervisor_pb2.SESSION_STATE_SUSPENDED
    assert status.applied_events >= stopped.applied_events > 0


def test_several_run_at_once_up_to_a_limit(hypervisor: str) -> None:
    """All of them move; one more is refused until one has ended."""
    limits = ServiceLimits(max_runs=3, max_watchers=1)
    with serving(hypervisor, limits=limits) as service, grpc.insecure_channel(service.address) as channel:
        client = Client(channel)
        started = [client.start(str(number), some_config(events=FOR_EVER)) for number in range(3)]
        for status in started:
            client.until(status.run_id, lambda status: status.applied_events > 0)
        refusal = (Code.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS", "")
        assert refusal_of(lambda: client.start("more", some_config())) == refusal
        client.stop(started[1].run_id)
        more = client.start("more", some_config())
        assert client.end(more.run_id).status.state == guest_pb2.RUN_STATE_FINISHED
        watching = client.watch(started[0].run_id)
        next(watching)
        refusal = (Code.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS", "")
        assert refusal_of(lambda: next(client.watch(started[0].run_id))) == refusal
        watching.cancel()


def test_health_reflection_and_channelz(client: Client) -> None:
    """All three stand beside the service."""
    health: Any = health_pb2_grpc.HealthStub(client.channel)
    asked = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    assert health.Check(asked, timeout=SECONDS).status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    (answer,) = reflection.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=SECONDS
    )
    names = {each.name for each in answer.list_services_response.service}
    assert {SERVICE_NAME, CHANNELZ_NAME, "grpc.health.v1.Health"} <= names
    channelz = channelz_pb2_grpc.ChannelzStub(client.channel)
    servers = channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=SECONDS).server
    assert sum(server.data.calls_started for server in servers) > 0
