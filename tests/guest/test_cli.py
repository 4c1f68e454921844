"""The guest's commands: what they print, how they end, and what they leave behind."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import guest_svc
from exitlab import command_line
from exitlab.v1 import hypervisor_pb2, report_pb2
from guest_svc import cli, embedded, options
from guest_svc.cli import main, parse_assignments
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.errors import BadInput
from guest_svc.hypervisor import Hypervisor
from guest_svc.starting import command_stack
from guest_svc.vectors import SHIPPED

SCHEMA = json.loads(Path(guest_svc.__file__).with_name("schema").joinpath("compare.json").read_text("utf-8"))
COMMAND = [sys.executable, "-m", "guest_svc"]
FIGURES = [report_pb2.LaneFigures(prices="seed-2014")]
PRICED = hypervisor_pb2.GetReportResponse
# As users have it: what is printed is flushed late.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
SMALL = ["context-switch", "-p", "switches=200"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a hypervisor of our own."""
    with EmbeddedHypervisor() as hypervisor:
        yield hypervisor.address


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns its exit code, output and errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--hypervisor", address])
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def document_of(run: Any, *arguments: str) -> dict[str, Any]:
    """Return the JSON object of a command, which must print nothing else and fit the schema."""
    code, out, err = run(*arguments, "--output", "json")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    jsonschema.validate(document, SCHEMA)
    return document


def lanes_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a document's lanes by policy."""
    return {lane["policy"]: lane for lane in document["lanes"]}


def test_the_seeds_claims_hold_at_the_listed_prices(run: Any) -> None:
    """Trapping all costs 38 to 42 % against ignoring MOV DR, trapping lazily at most 7 %."""
    lanes = lanes_of(document_of(run, "compare", "context-switch", "-p", "switches=2000"))
    assert list(lanes) == ["kvm-3.14", "kvm-6.14", "swap-each-entry", "ignore"]
    exits = {policy: lane["exits"]["DR_ACCESS"] for policy, lane in lanes.items()}
    assert exits == {"kvm-3.14": 26_000, "kvm-6.14": 2_000, "swap-each-entry": 0, "ignore": 0}
    assert 0.38 <= lanes["kvm-3.14"]["throughput_loss_against_ignore"] <= 0.42
    assert 0 < lanes["kvm-6.14"]["throughput_loss_against_ignore"] <= 0.07
    assert 20_000 < lanes["kvm-6.14"]["rates"]["dr_access_per_wall_second"] < 100_000
    for lane in lanes.values():
        cost = lane["cost"]
        assert lane["overhead_cycles"] == cost["exits"] + cost["synchronization"] + cost["standing"]
        assert sum(lane["exits"].values()) == sum(lane["exits_by_class"].values())


def test_the_claims_hold_over_their_ranges_and_wider_ones_are_marked(run: Any) -> None:
    """Losses at other prices come from the hypervisor; inside the stated ranges every claim holds."""
    points = document_of(run, "compare", "context-switch", "-p", "switches=2000", "--ranges")["ranges"]
    claimed = [point for point in points if point["holds"] is not None]
    assert {point["policy"] for point in claimed} == {"kvm-3.14", "kvm-6.14"}
    inside = [point for point in claimed if point["is_inside_stated_ranges"]]
    assert {(point["dr_write"], point["dr_read"]) for point in inside} == {
        (60, 40),
        (60, 50),
        (80, 40),
        (80, 50),
    }
    assert all(point["holds"] for point in inside)
    dearest = [point for point in claimed if (point["dr_write"], point["dr_read"]) == (150, 130)]
    assert [point["holds"] for point in dearest if point["policy"] == "kvm-6.14"] == [False]


def test_ignoring_is_wrong_where_two_vcpus_share_a_cpu(run: Any) -> None:
    """The first event that shows another's register is named, and the check can fail on it."""
    shared = ["context-switch", "-p", "switches=400", "-p", "vcpus=2", "-p", "physical_cpus=1"]
    code, out, _ = run("compare", *shared, "--output", "json", "--fail-on-divergence")
    assert code == command_line.CHECK_FAILED
    lanes = lanes_of(json.loads(out))
    story = lanes["ignore"]["story"]
    assert (story["verdict"], story["same_as_reference"]) == ("diverged", False)
    assert story["first_divergence"]["vcpu"] == 1
    assert lanes["kvm-6.14"]["story"]["same_as_reference"]
    assert run("compare", *shared, "--policy", "kvm-6.14", "--fail-on-divergence")[0] == 0


def test_a_recorded_guest_reads_what_it_read(run: Any) -> None:
    """All DR6 values that a debugger's trace recorded are those of the architecture."""
    document = document_of(run, "replay", "capture:debugger-6.1", "--policy", "kvm-6.14")
    assert (document["records"], document["seed"]) == (1_084_466, None)
    assert document["events"] + sum(document["skipped"].values()) == document["records"]
    reference = document["reference"]
    assert (reference["recorded_reads"], reference["disagreements"]) == (19_500, 0)
    assert reference["agreements_without_payloads"] == 0
    (lane,) = document["lanes"]
    assert (lane["mov_dr"]["executed"], lane["exits"]["DR_ACCESS"]) == (111_012, 19_553)
    assert lane["guest_cycles"] == 400_092_611


def test_cycles_per_instruction_scale_a_trace(run: Any) -> None:
    """One instruction is one cycle unless said otherwise."""
    document = document_of(run, "replay", "capture:idle-shell", "--policy", "kvm-6.14", "--cpi", "2")
    assert document["lanes"][0]["guest_cycles"] == 2 * 562_690_097
    assert document["parameters"]["cpi"] == 2


def test_policies_are_chosen_by_group_and_each_once(run: Any) -> None:
    """``all`` and ``correct`` stand for what exists on the vendor."""
    everything = lanes_of(document_of(run, "compare", *SMALL, "--policy", "all"))
    correct = document_of(run, "compare", *SMALL, "--policy", "kvm-6.14", "--policy", "correct")
    policies = [lane["policy"] for lane in correct["lanes"]]
    assert policies[0] == "kvm-6.14"
    assert len(set(policies)) == len(policies)
    assert set(policies) == {name for name, lane in everything.items() if lane["claims_correct"]}
    svm = document_of(run, "compare", *SMALL, "--policy", "all", "--vendor", "svm")
    assert {lane["vendor"] for lane in svm["lanes"]} == {"svm"}


def test_run_is_one_lane_of_the_default_policy(run: Any) -> None:
    """``run`` needs a source only."""
    document = document_of(run, "run", "idle", "-p", "ticks=100", "--seed", "3")
    assert [lane["policy"] for lane in document["lanes"]] == ["kvm-6.14"]
    assert (document["workload"], document["seed"], document["parameters"]["ticks"]) == ("idle", 3, 100)
    assert document["events"] == document["records"]


def test_two_price_lists_price_the_same_run(run: Any) -> None:
    """Each lane is billed at each list; counts do not change."""
    prices = ["--prices", "seed-2014", "--prices", "server-2024"]
    lanes = document_of(run, "run", *SMALL, *prices)["lanes"]
    assert [lane["prices"] for lane in lanes] == ["seed-2014", "server-2024"]
    assert lanes[0]["exits"] == lanes[1]["exits"]
    assert lanes[0]["overhead_cycles"] != lanes[1]["overhead_cycles"]


def test_events_cut_a_source(run: Any) -> None:
    """A source gives exactly as many events as are asked for."""
    assert document_of(run, "run", "io", "--events", "1000")["events"] == 1000


def test_text_is_for_people(run: Any) -> None:
    """A row a lane, correct ones first, and sentences; nothing on standard error when it is no terminal."""
    code, out, err = run("compare", *SMALL, "--detail")
    assert (code, err) == (0, "")
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("kvm-", "swap", "ignore "))]
    assert rows[:4] == ["swap-each-entry", "kvm-6.14", "kvm-3.14", "ignore"]
    assert "p99.9" in out
    assert "kvm-3.14: 2,600 of 2,600 MOV DR exit" in out


def test_csv_is_for_tables(run: Any) -> None:
    """Every row is a lane's metric with its value."""
    _, out, _ = run("run", *SMALL, "--output", "csv")
    values = {(row["policy"], row["metric"]): row["value"] for row in csv.DictReader(io.StringIO(out))}
    assert values["kvm-6.14", "exits.DR_ACCESS"] == "200"


@pytest.mark.parametrize("output", ["text", "json", "csv"])
def test_workloads_are_listed_with_their_parameters(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Generated workloads and shipped traces are named, in every output."""
    assert main(["workloads", "--output", output]) == 0
    out = capsys.readouterr().out
    for name in (
        "context-switch",
        "debugger",
        "idle",
        "io",
        "capture:debugger-6.1",
        "tasks_with_breakpoints",
    ):
        assert name in out
    if output == "json":
        listed = {workload["name"]: workload for workload in json.loads(out)["workloads"]}
        assert listed["capture:debugger-6.1"]["is_recorded"]
        assert listed["idle"]["parameters"][0]["default"] == 50_000


def test_conform_counts_and_fails_by_its_exit_code(run: Any, tmp_path: Path) -> None:
    """An undeclared mismatch ends with 1, and both what was expected and what came are printed."""
    row = {"id": "t", "mode": "long", "cpl": 0, "cr4_de": 0, "steps": [{"op": "mov_from_dr", "n": 7}]}
    expect = {"db": [0, 0, 0, 0], "dr6": "0xffff0ff0", "dr7": "0x400", "ev": [], "reads": {"0": "0x400"}}
    out_of_reach = {"id": "far", "out": "not modelled"}
    path = tmp_path / "vectors.json"
    for read, failed in (("0x400", 0), ("0x401", 1)):
        vectors = [row | {"expect": expect | {"reads": {"0": read}}}, out_of_reach]
        path.write_text(json.dumps(vectors), encoding="utf-8")
        arguments = ["conform", str(path), "--policy", "kvm-6.14"]
        code, out, _ = run(*arguments, "--output", "json")
        document = json.loads(out)
        assert (code, document["failed"], document["passed"]) == (failed, 2 * failed, 2 - 2 * failed)
        assert (document["out"], document["out_ids"]) == (1, ["far"])
        vendors = [(case["policy"], case["vendor"], case["ok"]) for case in document["cases"]]
        assert vendors == [("kvm-6.14", "vmx", not failed), ("kvm-6.14", "svm", not failed)]
        twice = [*arguments[:2], *arguments[1:], "--vendor", "svm"]
        code, out, _ = run(*twice)
        assert (code, out.count("FAILED t under kvm-6.14 on svm")) == (failed, 2 * failed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "context-swich"], "no workload 'context-swich'; did you mean context-switch?"),
        (["compare", "idle", "-p", "tick=1"], "idle: no parameter 'tick'; did you mean ticks"),
        (["compare", "idle", "-p", "ticks"], "-p ticks: expected key=value"),
        (["compare", "idle", "-p", "ticks=1", "-p", "ticks=2"], "-p ticks=2: ticks is there twice"),
        (["compare", "idle", "-p", "ticks=many"], "idle: ticks=many: expected int"),
        (["compare", "idle", "--events", "0"], "idle: events 0: expected at least 1"),
        (["compare", "idle", "--prices", "seed-2015"], "no price list 'seed-2015'; did you mean seed-2014"),
        (["compare", "idle", "--policy", "kvm-6.15"], "kvm-6.14"),
        (["compare", "idle", "--ranges", "--policy", "kvm-6.14"], "--ranges states losses against ignore"),
        (["run", "idle", "--cpi", "2"], "idle: --cpi is for captures"),
        (
            ["replay", "capture:idle-shell", "--cpi", "0"],
            "cpi=0: expected 0.001 to 1000.0",
        ),
        (
            ["replay", "capture:idle-shell", "--cpi", "nan"],
            "cpi=nan: expected float, 0.001 to",
        ),
        (
            ["replay", "capture:idle-shell", "--cpi", "inf"],
            "cpi=inf: expected float, 0.001 to",
        ),
        (
            ["replay", "capture:idle-shell", "--seed", "1"],
            "--seed is for generated workloads",
        ),
        (
            ["run", "capture:idle-shell", "--seed", "0"],
            "--seed is for generated workloads",
        ),
        (["run", "idle", "--policy", "all"], "run takes one policy; compare takes several"),
        (["run", "idle", "--policy", "ignore", "--policy", "kvm-6.14"], "run takes one policy"),
        (["replay", "idle"], "idle: a generated workload, not a recorded trace"),
        (["replay", "none.npz"], "none.npz: no such file"),
        (["replay", "/"], "/: a folder"),
        (["replay", os.devnull], f"{os.devnull}: neither a file nor a pipe"),
        (["compare", "x" * 5000], "no workload 'xxx"),
        (["compare", "/" + "x" * 5000], "xxx: File name too long"),
        (["compare", "x" * 5000 + ".npz"], "xxx.npz: File name too long"),
        (["conform", "x" * 5000], "xxx: File name too long"),
        (["compare", "idle", "--policy", "\udcff"], "no policy is named '\\\\udcff'"),
        (["replay", "idle-shel"], "no file and no shipped trace 'idle-shel'; did you mean idle-shell?"),
        (["replay", "capture:debuger-6.1"], "did you mean capture:debugger-6.1"),
        (["conform", os.devnull], f"{os.devnull}: not a vector file: it is empty"),
        (["replay", __file__], f"{__file__}: line 1: neither perf script nor"),
        (["conform", "none.json"], "none.json: No such file or directory"),
        (["conform", str(SHIPPED[0]), "none.json"], "none.json: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_2(run: Any, arguments: list[str], said: str) -> None:
    """What cannot be run is told on standard error, with the near matches; nothing is printed."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("guest-svc: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_foreign_file_is_no_trace(run: Any, tmp_path: Path) -> None:
    """A file that is something else is refused by its name."""
    path = tmp_path / "foreign.npz"
    path.write_bytes(b"not a trace")
    code, out, err = run("replay", str(path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err


def test_a_file_may_have_any_name(run: Any, tmp_path: Path) -> None:
    """A name that is in no encoding, or longer than a session's label, is run and printed escaped."""
    shipped = Path(guest_svc.__file__).with_name("captures") / "idle-shell.npz"
    for name, shown in (("\udcff.npz", "\\udcff.npz"), ("\udcff" * 250 + ".npz", "\\udcff\\udcff")):
        path = tmp_path / name
        path.symlink_to(shipped)
        code, out, err = run("replay", str(path), "--events", "10")
        assert (code, err) == (0, "")
        assert out.startswith(shown)


@pytest.mark.parametrize(
    ("arguments", "method", "answer", "said"),
    [
        (["run", "idle", "--events", "10"], "finish_session", report_pb2.Report(), "report cannot be used"),
        (["run", "idle", "--events", "10"], "priced", PRICED(), "figures cannot be used"),
        (["compare", "idle", "--events", "10"], "priced", PRICED(figures=FIGURES), "figures cannot be used"),
        (["run", "idle"], "price_lists", {"seed-2014": report_pb2.PriceList()}, "seed-2014 has no clock"),
        (["conform"], "finish_session", report_pb2.Report(), "report cannot be used"),
    ],
)
def test_a_hypervisor_whose_answers_cannot_be_used_is_one_line_and_3(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], method: str, answer: object, said: str
) -> None:
    """A hypervisor that does not keep the contract is no bug of ours."""
    monkeypatch.setattr(Hypervisor, method, lambda *_: answer)
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (command_line.NOT_FINISHED, "", 1)
    assert err.startswith("guest-svc: the hypervisor's ")
    assert said in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["prices"], ["compare"], ["compare", "idle", "--output", "xml"], ["run", "x", "--seed", "y"]],
)
def test_misused_options_are_one_line_and_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The parser's refusals are as short as all others."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == command_line.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


def test_a_hypervisor_that_is_not_there_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address with nobody behind it is told at once."""
    address = f"unix:{tmp_path}/nobody"
    assert main(["run", "idle", "--hypervisor", address]) == command_line.BAD_INPUT
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert address in told.err


def test_the_environment_names_a_hypervisor(address: str) -> None:
    """With EXITLAB_HYPERVISOR set nothing private is started."""
    environment = os.environ | {options.HYPERVISOR_VARIABLE: "unix:/nobody"}
    arguments = [*COMMAND, "run", "idle", "-p", "ticks=10"]
    failed = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "no hypervisor answers at unix:/nobody" in failed.stderr
    ran = subprocess.run(
        arguments, env=environment | {options.HYPERVISOR_VARIABLE: address}, capture_output=True, check=True
    )
    assert b"kvm-6.14" in ran.stdout


def test_a_bug_of_ours_is_70_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected exception is told in a line, and as a whole if that is asked for."""

    def break_down(assignments: object) -> None:
        raise ZeroDivisionError(f"by\n{assignments}")

    monkeypatch.setattr(cli, "parse_assignments", break_down)
    assert main(["run", "idle"]) == command_line.OUR_BUG
    assert capsys.readouterr().err.splitlines() == [
        "guest-svc: a bug of ours: ZeroDivisionError: by []",
        "guest-svc: set EXITLAB_TRACEBACK=1 to see where",
    ]
    monkeypatch.setenv(command_line.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        main(["run", "idle"])


DIVERGES = ["-p", "switches=400", "-p", "vcpus=2", "-p", "physical_cpus=1", "--fail-on-divergence"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["workloads"], 0, ""),
        (["--help"], 0, ""),
        (["run", "--help"], 0, ""),
        (["--version"], 0, ""),
        (["compare", "context-switch", *DIVERGES], 1, "guest-svc: diverged: ignore\n"),
    ],
)
def test_a_reader_that_has_had_enough_changes_nothing(
    address: str, arguments: list[str], code: int, said: str
) -> None:
    """A closed pipe ends the output, in silence; the exit code is the one that it would have been."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=BUFFERED | {options.HYPERVISOR_VARIABLE: address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (code, said)


def test_a_refusal_that_nobody_reads_is_still_one() -> None:
    """With standard error closed at the other end, bad input ends with 2 all the same."""
    arguments = [*COMMAND, "run", "nope", "--hypervisor", "unix:/nobody"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == command_line.BAD_INPUT


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(address: str, closed: str) -> None:
    """A command that is started without its standard streams runs, and opens nothing in their place."""
    command = [*COMMAND, "run", "idle", "-p", "ticks=10", "--hypervisor", address]
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    assert bool(ran.stdout) == (" >&-" not in f" {closed}")


def test_the_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--version`` names the program and the version that is installed, if any is."""
    assert version_line(capsys) == f"guest-svc {metadata.version('exitlab')}\n"
    monkeypatch.setattr(command_line, "PACKAGE", "exitlab-which-nobody-installed")
    assert version_line(capsys) == "guest-svc of an unknown version: it runs without being installed\n"


def version_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what ``--version`` prints."""
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert not raised.value.code
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


# Tells that the stream is under way; it would go on for long.
LONG_RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests may ignore them
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from exitlab.command_line import write_output
from guest_svc import cli, options, embedded, run
from guest_svc.stream import EventStream
send = EventStream.send
def send_and_tell(stream, events):
    send(stream, events)
    write_output(f"sent {folder[0]}\\n")
EventStream.send = send_and_tell
folder = []
make = embedded._short_folder
embedded._short_folder = lambda: folder.append(make()) or folder[0]
start = embedded.subprocess.Popen
def start_and_share(command, pass_fds, **settings):
    return start(command, pass_fds=(*pass_fds, int(sys.argv[1])), **settings)
embedded.subprocess.Popen = start_and_share
sys.exit(cli.main(["compare", "context-switch", "-p", "switches=5000000"]))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGHUP, 128 + signal.SIGHUP),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_signal_stops_the_private_hypervisor_too(number: signal.Signals, code: int) -> None:
    """A command that is stopped says so by its exit code, and leaves no folder behind however it ends."""
    until_both_ended, shared = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN, str(shared)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(shared,),
    )
    os.close(shared)
    assert process.stdout is not None
    word, folder = process.stdout.readline().split()
    assert word == "sent"
    assert Path(folder).is_dir()
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (code, "")
    assert os.read(until_both_ended, 1) == b""
    os.close(until_both_ended)
    assert not Path(folder).exists()


def test_a_hangup_that_is_ignored_stays_so() -> None:
    """A command under nohup outlives its terminal."""
    ignored = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        command_stack()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not ignored[signal.SIGTERM]
    finally:
        for number, handler in ignored.items():
            signal.signal(number, handler)


def test_without_an_address_a_private_hypervisor_is_started_and_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing has to be set up: the command brings its own hypervisor."""
    monkeypatch.delenv(options.HYPERVISOR_VARIABLE, raising=False)
    started: list[EmbeddedHypervisor] = []

    class Watched(EmbeddedHypervisor):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(embedded, "EmbeddedHypervisor", Watched)
    assert main(["run", "idle", "-p", "ticks=10", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["workload"] == "idle"
    (hypervisor,) = started
    assert hypervisor._process.returncode is not None


@pytest.mark.parametrize(
    ("texts", "parameters"),
    [([], {}), (["a=1", "b=x=y", "c="], {"a": "1", "b": "x=y", "c": ""})],
)
def test_assignments_are_split_at_the_first_sign(texts: list[str], parameters: dict[str, str]) -> None:
    """A value may hold anything, an equals sign too."""
    assert parse_assignments(texts) == parameters


@pytest.mark.parametrize("text", ["=1", "a", ""])
def test_assignments_need_a_key_and_a_sign(text: str) -> None:
    """What is no assignment is refused as it was written."""
    with pytest.raises(BadInput, match=f"-p {text}: expected key=value"):
        parse_assignments([text])


def test_help_imports_nothing_heavy() -> None:
    """A help text starts without grpc, numpy, protobuf, the compiler, or what only a version needs."""
    heavy = {"grpc", "numpy", "google.protobuf", "numba", "typing", "importlib.metadata"}
    code = "import sys; from guest_svc import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print(sorted(set(sys.modules) & {heavy}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
