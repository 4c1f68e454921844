"""The hypervisor's commands, as a user types them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.events import Column, EventColumns, EventKind
from exitlab.v1 import events_pb2, hypervisor_pb2, hypervisor_pb2_grpc, outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc import policies, pricing
from hypervisor_svc.cli import main
from hypervisor_svc.show.json_text import as_json

SECONDS = 60.0  # a cold start may compile the engine
PROGRAM = (sys.executable, "-m", "hypervisor_svc")
# Its engine never gets done with a block.
BUSY_PROGRAM = (
    *(sys.executable, "-c"),
    """
import threading
from exitlab.command_line import write_output
from hypervisor_svc import cli
from hypervisor_svc.engine import Engine

def feed(*_):
    write_output("busy\\n")
    threading.Event().wait()

Engine.feed = feed
raise SystemExit(cli.main())
""",
)


@contextmanager
def serving(
    *arguments: str, program: Sequence[str] = PROGRAM, pass_fds: Sequence[int] = ()
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a server; yield its process and its address."""
    command = [*program, "serve", "--listen", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, pass_fds=pass_fds) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("listening on "), server.communicate(timeout=SECONDS)
            yield server, line.removeprefix("listening on ").strip()
        finally:
            server.kill()


def some_config(
    lanes: Sequence[policy_pb2.Lane], columns: Sequence[Column], level: int = 0
) -> hypervisor_pb2.SessionConfig:
    """Return the config of a session of one vCPU."""
    return hypervisor_pb2.SessionConfig(
        lanes=lanes,
        columns=[events_pb2.Column.ValueType(column) for column in columns],
        vcpus=1,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_RECORDED,
        leading_vendor=policy_pb2.VENDOR_VMX,
        outcome_level=outcome_pb2.OutcomeLevel.ValueType(level),
    )


def whole_session(address: str) -> report_pb2.Report:
    """Run a small session on a server and return its report."""
    columns = EventColumns(
        kinds=np.full(4, EventKind.MOV_TO_DR, np.uint8),
        args=np.array([0, 1, 2, 7], np.uint8),
        values=np.array([0x1000, 0x2000, 0x3000, 0x401], np.uint64),
    )
    lanes = [
        policy_pb2.Lane(policy_name=name, vendor=policy_pb2.VENDOR_VMX) for name in policies.policy_names()
    ]
    config = some_config(lanes, columns.declared)
    crcs = ColumnCrcs(columns.declared)
    with grpc.insecure_channel(address) as channel:
        stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
        request = hypervisor_pb2.CreateSessionRequest(request_id="r", config=config)
        session_id = stub.CreateSession(request, timeout=SECONDS).session_id
        opening = hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id=session_id))
        block = hypervisor_pb2.StreamEventsRequest.FromString(encode_block(columns, 0, crcs))
        responses = stub.StreamEvents(iter([opening, block]), timeout=SECONDS)
        assert [r.WhichOneof("message") for r in responses] == ["opened", "acknowledgement"]
        finish = hypervisor_pb2.FinishSessionRequest(
            session_id=session_id, event_count=4, column_crcs=crcs.values
        )
        return report_pb2.Report.FromString(stub.FinishSession(finish, timeout=SECONDS).report)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that succeeds and says nothing on standard error, and return its output."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_a_served_session_with_every_policy(tmp_path: Path) -> None:
    """The server with its real engine runs all policies at once, and the first access tells them apart."""
    with serving(f"unix:{tmp_path}/s") as (_, address):
        assert address == f"unix:{tmp_path}/s"
        report = whole_session(address)
    trapped = {lane.policy: lane.vcpus[0].mov_dr_trapped for lane in report.lanes}
    assert (trapped["kvm-3.14"], trapped["kvm-6.14"], trapped["ignore"]) == (4, 1, 0)
    assert list(report.columns) == [1, 2, 8]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(number: signal.Signals) -> None:
    """One signal ends an idle server in order, with its log in JSON on standard error."""
    with serving("127.0.0.1:0", "--log-format", "json") as (server, address):
        assert not address.endswith(":0")
        server.send_signal(number)
        output, errors = server.communicate(timeout=SECONDS)
    assert (server.returncode, output) == (0, "")
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["serving", "draining", "stopped"]


def test_a_log_shows_no_whole_session_id() -> None:
    """Lines carry peer and session, but of the session only what gives nobody access to it."""
    with serving("127.0.0.1:0", "--log-format", "json") as (server, address):
        whole_session(address)
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=SECONDS)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in lines if "session" in line] == [
        "created",
        "opened",
        "stream ended",
        "finished",
    ]
    assert {len(line["session"]) for line in lines if "session" in line} == {8}
    assert all("127.0.0.1" in line["peer"] for line in lines if "session" in line)


def test_a_second_signal_stops_at_once() -> None:
    """A drain that waits for a client that reads nothing is cut short by a second signal."""
    lanes = [policy_pb2.Lane(policy_name="kvm-6.14", vendor=policy_pb2.VENDOR_VMX)] * 16
    config = some_config(lanes, [Column.KINDS], outcome_pb2.OUTCOME_LEVEL_FULL)
    columns = EventColumns(kinds=np.full(65_536, EventKind.CPUID, np.uint8))
    block = encode_block(columns, 0, ColumnCrcs(columns.declared))  # answered by some 11 MB
    with (
        serving("127.0.0.1:0", "--grace", "3600") as (server, address),
        grpc.insecure_channel(address) as channel,
    ):
        stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
        request = hypervisor_pb2.CreateSessionRequest(request_id="r", config=config)
        session_id = stub.CreateSession(request, timeout=SECONDS).session_id
        opening = hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id=session_id))
        requests = iter([opening, hypervisor_pb2.StreamEventsRequest.FromString(block)])
        unread = stub.StreamEvents(requests, timeout=SECONDS)
        get = hypervisor_pb2.GetSessionRequest(session_id=session_id)
        while not stub.GetSession(get, timeout=SECONDS).status.applied_events:
            pass
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        assert any("draining" in line for line in iter(server.stderr.readline, ""))
        server.send_signal(signal.SIGINT)
        assert server.wait(SECONDS) == 128 + signal.SIGINT
        unread.cancel()


@pytest.mark.parametrize(
    ("signals", "grace", "code"),
    [([signal.SIGTERM], "0", 0), ([signal.SIGINT], "0", 0), ([signal.SIGTERM, signal.SIGINT], "3600", 130)],
)
def test_the_grace_is_the_end_even_of_an_engine_at_work(
    tmp_path: Path, signals: list[signal.Signals], grace: str, code: int
) -> None:
    """However long a block still takes, the process ends after the grace, with its last line logged."""
    options = ("--grace", grace, "--log-format", "json")
    with (
        serving(f"unix:{tmp_path}/s", *options, program=BUSY_PROGRAM) as (server, address),
        grpc.insecure_channel(address) as channel,
    ):
        stub = hypervisor_pb2_grpc.HypervisorServiceStub(channel)
        lanes = [policy_pb2.Lane(policy_name="ignore", vendor=policy_pb2.VENDOR_VMX)]
        request = hypervisor_pb2.CreateSessionRequest(
            request_id="r", config=some_config(lanes, [Column.KINDS])
        )
        session_id = stub.CreateSession(request, timeout=SECONDS).session_id
        opening = hypervisor_pb2.StreamEventsRequest(open=hypervisor_pb2.Open(session_id=session_id))
        events = EventColumns(kinds=np.full(1, EventKind.CPUID, np.uint8))
        block = hypervisor_pb2.StreamEventsRequest.FromString(
            encode_block(events, 0, ColumnCrcs(events.declared))
        )
        stream = stub.StreamEvents(iter([opening, block]), timeout=SECONDS)
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline() == "busy\n"
        logged: list[str] = []
        for number in signals:
            server.send_signal(number)
            if number is not signals[-1]:
                logged.extend(iter(lambda: json.loads(server.stderr.readline())["event"], "draining"))  # type: ignore[union-attr]  # seen to be there
        assert server.wait(SECONDS) == code
        logged.extend(json.loads(line)["event"] for line in server.stderr)
        stream.cancel()
    assert code or logged[-2:] == ["draining", "stopped"]


def test_a_server_goes_with_its_parent() -> None:
    """When the other end of --parent-pipe is closed, the server is gone."""
    child_end, our_end = os.pipe()
    with serving("127.0.0.1:0", "--parent-pipe", str(child_end), pass_fds=[child_end]) as (server, _):
        os.close(child_end)
        os.close(our_end)
        assert server.wait(SECONDS) == 0


@pytest.mark.parametrize("has_more", [False, True])
def test_a_server_that_outlives_its_parent_clears_up(tmp_path: Path, has_more: bool) -> None:
    """The folder goes with the socket, unless there is something else in it."""
    folder = tmp_path / "own"
    folder.mkdir()
    if has_more:
        (folder / "more").touch()
    child_end, our_end = os.pipe()
    options = ("--parent-pipe", str(child_end), "--own-folder", str(folder))
    with serving(f"unix:{folder}/h", *options, pass_fds=[child_end]) as (server, _):
        assert (folder / "h").is_socket()
        os.close(child_end)
        os.close(our_end)
        assert server.wait(SECONDS) == 0
    assert [path.name for path in tmp_path.rglob("*")] == (["own", "more"] if has_more else [])


def test_a_log_that_nobody_reads_fails_no_call() -> None:
    """Calls are answered, and the server drains, after the reader of its standard error has gone."""
    with serving("127.0.0.1:0") as (server, address):
        assert server.stderr is not None
        server.stderr.close()
        assert whole_session(address).events == 4
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0


def test_a_port_in_use_is_one_line_and_exit_2() -> None:
    """The second server on a port says so and leaves."""
    with serving("127.0.0.1:0") as (_, address):
        second = subprocess.run(
            [*PROGRAM, "serve", "--listen", address],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    expected = f"hypervisor-svc: cannot listen on {address}: Address already in use\n"
    assert (second.returncode, second.stdout, second.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["policy"], "required: NAME"),
        (["policy", "kvm-6.14", "--vendor", "arm"], "invalid choice: 'arm'"),
        (["policy", "kvm-6.14", "--output", "csv"], "invalid choice: 'csv'"),
        (["policies", "--output", "dot"], "invalid choice: 'dot'"),
        (["serve", "--max-lanes", "65"], "'65' is not a whole number from 1 to 64"),
        (
            ["serve", "--max-message-bytes", "600"],
            "'600' is not a whole number from 1,048,576",
        ),
        (["serve", "--max-lanes", "0"], "'0' is not a whole number from 1 to 64"),
        (["serve", "--grace", "nan"], "'nan' is not a number of seconds"),
        (["serve", "--log-format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Arguments that make no sense are refused in one line on standard error."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    captured = capsys.readouterr()
    assert (left.value.code, captured.out) == (2, "")
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["policy", "kvm-6.41"], "kvm-6.14"),
        (["policy", "kvm-6.14-skip-debug-controls", "--vendor", "svm"], "vmx only"),
        (["policy", "kvm-6.14", "--diff", "kvm-6.41"], "near: kvm-6.14"),
        (["policy", "kvm-6.14", "--diff", "kvm-6.14@arm"], "no vendor is named 'arm'; there are vmx, svm"),
        (["policy", "kvm-6.14", "--diff", "kvm-6.14@"], "no vendor is named ''"),
        (["policy", "kvm-6.14", "--diff", "kvm-6.14-skip-debug-controls@svm"], "vmx only"),
        (["policy", "ignore", "--vendor", "svm", "--diff", "kvm-6.14-skip-debug-controls"], "vmx only"),
        (["serve", "--parent-pipe", "987"], "--parent-pipe 987: Bad file descriptor"),
        (["serve", "--own-folder", "/no/such/folder"], "--own-folder: needs --parent-pipe"),
        (["serve", "--state-dir", ""], "--state-dir: expected a folder"),
        (["reports", "--state-dir", ""], "--state-dir: expected a folder"),
        (["serve", "--listen", "0.0.0.0:0"], "--insecure allows it"),
        (["serve", "--listen", "x" * 70 + ":0"], "x:0: no such host"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """What cannot be shown or served is refused in one line, with the near matches of a name."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is the package's."""
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    captured = capsys.readouterr()
    expected = f"hypervisor-svc {metadata.version('exitlab')}\n"
    assert (left.value.code, captured.out, captured.err) == (0, expected, "")


def test_numbers_are_numbers_in_json() -> None:
    """Numbers of 64 bits are no strings, however deep they are, and the text still is the message's."""
    largest = 2**64 - 1
    message = report_pb2.Report(
        events=largest,
        events_by_kind=[1, 2],
        lanes=[
            report_pb2.LaneReport(patterns=[report_pb2.PatternCount(count=largest)]),
            report_pb2.LaneReport(first_divergence=report_pb2.Finding(event=5)),
        ],
    )
    text = as_json(message)
    found = json.loads(text)
    assert found["events"] == found["lanes"][0]["patterns"][0]["count"] == largest
    assert found["events_by_kind"] == [1, 2]
    assert found["lanes"][1]["first_divergence"]["event"] == 5
    assert json_format.Parse(text, report_pb2.Report()) == message


def test_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list names every policy once, marks the default, and is the contract's message as JSON."""
    lines = run(capsys, "policies").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(policies.policy_names())
    assert [line.split()[0] for line in lines if "(default)" in line] == [policies.DEFAULT_POLICY]
    parsed = json_format.Parse(
        run(capsys, "policies", "--output", "json"), hypervisor_pb2.ListPoliciesResponse()
    )
    assert list(parsed.policies) == policies.policy_summaries()


@pytest.mark.parametrize("name", policies.policy_names())
def test_a_policy_as_json_is_its_table(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """What is printed parses into the very table, so it can travel into a lane."""
    output = run(capsys, "policy", name, "--output", "json")
    assert all(type(cell) is int for moment in json.loads(output)["moments"] for cell in moment["actions"])
    parsed = json_format.Parse(output, policy_pb2.PolicyTable())
    assert parsed == policies.policy_table(name, policy_pb2.VENDOR_VMX, policy_pb2.CpuFeatures())


def test_a_policy_as_text_says_what_it_does_where(capsys: pytest.CaptureFixture[str]) -> None:
    """The heart of today's KVM can be read off its table."""
    lines = [line.split() for line in run(capsys, "policy", "kvm-6.14").splitlines()]
    trapped = lines.index(["DR_TRAPPED"])
    assert ["debugger=NONE,", "check=NONE", "DISARM", "REEXECUTE", "memory:=OPEN"] in lines[trapped:]
    for word in ("source", "memories", "OPEN", "#DB,"):
        assert any(word in line for line in lines)


DIFFERENCE = ("policy", "kvm-3.15", "--diff", "kvm-6.14")


def test_a_difference_in_every_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Text, JSON and a drawing have both names, in the order in which they were given."""
    text = run(capsys, *DIFFERENCE).splitlines()
    assert text[0].startswith("--- kvm-3.15 on vmx: ")
    assert text[1].startswith("+++ kvm-6.14 on vmx: ")
    found = json.loads(run(capsys, *DIFFERENCE, "--output", "json"))
    assert (found["first"]["name"], found["second"]["name"]) == ("kvm-3.15", "kvm-6.14")
    assert found["constants"]["claims_correct"] == {"first": False, "second": True}
    assert run(capsys, *DIFFERENCE, "--output", "dot").startswith('digraph "kvm-3.15 to kvm-6.14" {\n')


def test_a_policy_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """A policy alone is a graph of its own name."""
    assert run(capsys, "policy", "ignore", "--output", "dot").startswith('digraph "ignore" {\n')


@pytest.mark.parametrize(
    ("arguments", "vendors"),
    [
        (["kvm-6.14", "--diff", "kvm-6.14@svm"], ("vmx", "svm")),
        (["kvm-6.14", "--vendor", "svm", "--diff", "kvm-3.15"], ("svm", "svm")),
        (["kvm-6.14", "--vendor", "svm", "--diff", "kvm-3.15@vmx"], ("svm", "vmx")),
        (["svm-only", "--diff", "kvm-6.14"], ("svm", "svm")),
    ],
)
def test_vendors_of_a_difference(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    vendors: tuple[str, str],
) -> None:
    """The other side's vendor is the first's unless it is given; a policy of one vendor needs none."""
    svm = policy_pb2.VENDOR_SVM
    monkeypatch.setitem(policies._MAKERS, "svm-only", ((svm,), policies._MAKERS["ignore"][1]))
    found = json.loads(run(capsys, "policy", *arguments, "--output", "json"))
    assert (found["first"]["vendor"], found["second"]["vendor"]) == vendors


def test_prices_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    """Each price has its cycles, range and source on its line, and assumptions are marked."""
    text = run(capsys, "prices")
    for prices in pricing.price_lists().values():
        section = text[text.index(f"{prices.name}: ") :].splitlines()
        for price in prices.prices:
            line = next(line for line in section if line.startswith(f"{price.name} "))
            span = f"{price.low_cycles:,} to {price.high_cycles:,}"
            assert f"{price.cycles:,}" in line
            assert span in line
            assert line.endswith(price.source.strip())
            assert (" assumed " in line.split(span)[1][:40]) == price.is_assumption
    output = run(capsys, "prices", "--output", "json")
    assert json.loads(output)["price_lists"][0]["clock_hertz"] == 3_000_000_000
    parsed = json_format.Parse(output, hypervisor_pb2.ListPricesResponse())
    assert list(parsed.price_lists) == list(pricing.price_lists().values())


def test_a_reader_that_stops_early_is_no_error() -> None:
    """Output into a closed pipe ends the command in silence."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "hypervisor_svc", "prices"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=SECONDS, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
