"""Policies that a guest brings along: they run as the shipped ones do, and what is wrong is told at once."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

import guest_svc
from exitlab.command_line import BAD_INPUT, CHECK_FAILED
from exitlab.v1 import hypervisor_pb2, policy_pb2
from guest_svc import own_policies
from guest_svc.cli import main
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.errors import BadInput
from guest_svc.hypervisor import Hypervisor
from guest_svc.tabulation import Tabulation
from hypervisor_svc import policies as shipped
from hypervisor_svc.policies.base import SVM, VMX
from tests.hypervisor.plug_in_sources import GOOD, MISTAKES, changed

SCHEMAS: Final = Path(guest_svc.__file__).with_name("schema")
SMALL: Final = ("compare", "context-switch", "-p", "switches=200")
LATE: Final = (*SMALL, "-p", "vcpus=2", "-p", "physical_cpus=1", "-p", "late_fetches=1")
FORGETFUL: Final = changed("Action.RECOMPUTE, ", "")
MINE: Final = "./mine.py:Mine"
FOLDER: Final = Path(shipped.__file__).parent


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a hypervisor of our own."""
    with EmbeddedHypervisor() as hypervisor:
        yield hypervisor.address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with one policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns its exit code, output and errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--hypervisor", address])
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def document_of(run: Any, *arguments: str) -> dict[str, Any]:
    """Return the JSON object of a command, which fits its schema."""
    code, out, err = run(*arguments, "--output", "json")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    name = "conform.json" if arguments[0] == "conform" else "compare.json"
    jsonschema.validate(document, json.loads((SCHEMAS / name).read_text("utf-8")))
    return document


def lanes_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a document's lanes by policy."""
    return {lane["policy"]: lane for lane in document["lanes"]}


def copy_of(module: str, name: str, made: str) -> str:
    """Return the source of a policy of ours as somebody else's, derived under another name."""
    source = (FOLDER / f"{module}.py").read_text(encoding="utf-8")
    return f"{source}\n\nclass Mine({name}):\n    api_version = 1\n    vendors = (1, 2)\n{made}"


INIT: Final = """
    def __init__(self, vendor, *, dr6_writable):
        super().__init__({}vendor, dr6_writable=dr6_writable)
        self.name = "mine"
"""
NAMED: Final = '    name = "mine"\n'
COPIES: Final = {
    "kvm-6.14": copy_of("kvm", "Kvm", INIT.format("ERA_6_14, ")),
    "kvm-3.15": copy_of("kvm", "Kvm", INIT.format("ERA_3_15, ")),
    "virtualbox": copy_of("virtualbox", "VirtualBox", NAMED),
    "swap-each-entry": copy_of("swap_each_entry", "SwapEachEntry", NAMED),
    "trap-and-cluster": copy_of("trap_and_cluster", "TrapAndCluster", NAMED),
}


@pytest.mark.parametrize("vendor", ["vmx", "svm"])
@pytest.mark.parametrize(("name", "source"), COPIES.items(), ids=COPIES)
def test_a_copy_of_ours_is_told_the_same(name: str, source: str, vendor: str, folder: Path, run: Any) -> None:
    """The source of a shipped policy, brought along, has the lane of the shipped one but for its name."""
    (folder / "mine.py").write_text(source, encoding="utf-8")
    document = document_of(run, *LATE, "--policy", MINE, "--policy", name, "--vendor", vendor)
    mine, ours = document["lanes"]
    assert (mine.pop("policy"), ours.pop("policy")) == ("mine", name)
    assert mine == ours
    first, second = document["lane_runs"]
    assert (first.pop("policy"), second.pop("policy")) == ("mine", name)
    assert first == second


@pytest.mark.parametrize("name", ["kvm-6.14", "virtualbox"])
def test_a_copy_of_ours_conforms_alike(name: str, folder: Path, run: Any) -> None:
    """So it is for vectors, whatever the CPU of each has; what a file expects of it by name it alone has."""
    (folder / "mine.py").write_text(COPIES[name], encoding="utf-8")
    code, out, err = run("conform", "--policy", MINE, "--policy", name, "--output", "json")
    assert (code, err) == (0, "")
    of: dict[str, list[dict[str, Any]]] = {"mine": [], name: []}
    for case in json.loads(out)["cases"]:
        seen = {key: case[key] for key in ("file", "id", "vendor", "declared", "refused", "bill")}
        got = {key: value for key, value in case["got"].items() if key not in {"bill", "debug_exits"}}
        of[case["policy"]].append(seen | got)
    assert len(of[name]) > 300
    assert of["mine"] == of[name]


@pytest.mark.usefixtures("folder")
def test_it_is_run_by_machine(run: Any) -> None:
    """A table from elsewhere runs as fast as ours: nearly all events take a step of its machine."""
    document = document_of(run, "compare", "context-switch", "--policy", MINE, "--policy", "kvm-6.14")
    events = [ran["machine_events"] for ran in document["lane_runs"]]
    assert events[0] == events[1] > 0.9 * document["events"]


def test_own_names_and_groups_mix(folder: Path, run: Any) -> None:
    """--policy may be repeated: each policy is there once, by its own name, in the order asked for."""
    (folder / "other.py").write_text(changed('"mine"', '"other"', FORGETFUL), encoding="utf-8")
    words = ("./other.py:Mine", "ignore", MINE, "correct", "mine.py:Mine", "mine:Mine")
    arguments = [part for word in words for part in ("--policy", word)]
    document = document_of(run, *LATE, *arguments)
    names = list(lanes_of(document))
    assert names[:3] == ["other", "ignore", "mine"]
    assert len(names) == len(set(names)) == len(document["lanes"])
    assert {"kvm-6.14", "xen"} <= set(names)
    verdicts = {name: lane["story"]["verdict"] for name, lane in lanes_of(document).items()}
    assert (verdicts["mine"], verdicts["other"]) == ("same", "diverged")
    code, out, err = run(*LATE, *arguments[:2], "--output", "csv", "--fail-on-divergence")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err) == (CHECK_FAILED, "guest-svc: diverged: other\n")
    assert {row["policy"] for row in rows} == {"", "other"}


@pytest.mark.usefixtures("folder")
def test_run_takes_one_too(run: Any) -> None:
    """People read the policy's name, and not the path."""
    code, out, err = run("run", *SMALL[1:], "--policy", MINE)
    assert (code, err, "mine.py" in out) == (0, "", False)
    assert "\nmine    same " in out


def test_vectors_find_the_mistake(folder: Path, run: Any) -> None:
    """Conform checks a policy that is brought along, on the vendors that it has, and a file may name it."""
    (folder / "mine.py").write_text(FORGETFUL, encoding="utf-8")
    code, out, err = run("conform", "--policy", MINE)
    assert (code, err) == (CHECK_FAILED, "")
    assert "FAILED D11 under mine on vmx (windows.json)" in out
    assert run("conform", "--policy", MINE, "--vendor", "svm")[2].endswith(
        "policy 'mine' exists on vmx only\n"
    )
    row = {"id": "t", "mode": "long", "cpl": 0, "cr4_de": 0, "steps": [{"op": "nop"}], "expect": {}}
    (folder / "v.json").write_text(json.dumps([row | {"bill": {"mine": {"windows": 0}}}]), encoding="utf-8")
    assert len(document_of(run, "conform", "v.json", "--policy", MINE)["cases"]) == 1
    code, out, err = run("conform", "v.json", "--policy", "xen")
    assert (code, out, err.count("\n")) == (BAD_INPUT, "", 1)
    assert "field bill.mine: no policy 'mine'" in err


def test_a_table_of_any_language_runs(folder: Path, run: Any) -> None:
    """What hypervisor-svc prints as JSON, or somebody writes so, is a lane as the class is."""
    table = subprocess.run(
        [sys.executable, "-m", "hypervisor_svc", "policy", MINE, "--output", "json"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (folder / "table.json").write_text(table.replace('"mine"', '"written"'), encoding="utf-8")
    mine, written = document_of(run, *LATE, "--policy", MINE, "--policy", "table.json")["lanes"]
    assert (mine.pop("policy"), written.pop("policy")) == ("mine", "written")
    assert mine == written
    broken = json.loads(table)
    broken["moments"][0]["actions"].pop()
    (folder / "table.json").write_text(json.dumps(broken), encoding="utf-8")
    code, out, err = run(*SMALL, "--policy", "table.json")
    assert (code, out) == (BAD_INPUT, "")
    assert err == (
        "guest-svc: --policy table.json: table.json: mine: ENTER_LOOP has 3 sets of actions for 4 states; "
        "the first without one is ENTER_LOOP (memory=OPEN, breakpoints_enabled)\n"
    )


# Arguments, and what is said of them.
REFUSED: Final = {
    "nowhere": (["--policy=./nix.py:Mine"], "--policy ./nix.py:Mine: nix.py: no such file"),
    "no class": (["--policy=./mine.py"], "--policy ./mine.py: expected ./file.py:Class or module:Class"),
    "like an option": (["--policy=-mine:Mine"], "--policy -mine:Mine: expected ./file.py:Class or module"),
    "unknown name": (["--policy=mime"], "no policy is named 'mime'; near: "),
    "other vendor": ([f"--policy={MINE}", "--vendor=svm"], "policy 'mine' exists on vmx only"),
    "one name": (
        [f"--policy={MINE}", "--policy=./wrong.py:Mine"],
        "--policy: ./mine.py:Mine and ./wrong.py:Mine are both called 'mine'; give one another name",
    ),
    "mistake": (
        [f"--policy={MINE}", "--policy=./bad.py:Mine"],
        "MOV DR without an answer (bad.py, line 13)",
    ),
    "ends its process": (["--policy=./ends.py:Mine"], "its process ended with status 9"),
    "ends it in silence": (
        ["--policy=./quiet.py:Mine"],
        "--policy ./quiet.py:Mine: its process ended without a table\n",
    ),
}


@pytest.mark.parametrize("command", [SMALL, ("conform",)], ids=["compare", "conform"])
@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_in_a_line(
    command: tuple[str, ...], arguments: list[str], said: str, folder: Path, run: Any
) -> None:
    """One message, no traceback, and exit code 2."""
    (folder / "wrong.py").write_text(FORGETFUL, encoding="utf-8")
    (folder / "bad.py").write_text(MISTAKES["unanswered"][0], encoding="utf-8")
    for name, status in (("ends.py", 9), ("quiet.py", 0)):
        (folder / name).write_text(f"import os\nos._exit({status})\n", encoding="utf-8")
    code, out, err = run(*command, *arguments)
    assert (code, out, err.count("\n")) == (BAD_INPUT, "", 1)
    assert err.startswith("guest-svc: ")
    assert said in err


def test_what_is_no_lane_is_refused() -> None:
    """Whatever the process has printed instead, the policy is named."""

    class Wild(Tabulation):
        def __init__(self) -> None:
            self.word = "./wild.py:Mine"

        def lines(self) -> list[str]:
            return ["\x1b[1mhello"]

    with pytest.raises(BadInput, match=r"^--policy \./wild\.py:Mine: its process printed what is no lane: "):
        own_policies.collect(["./wild.py:Mine"], [Wild()])


def test_what_the_author_prints_is_passed_on(folder: Path, run: Any) -> None:
    """It goes to standard error, before the one message where there is one."""
    (folder / "mine.py").write_text(f"print('so far')\n{GOOD}", encoding="utf-8")
    code, out, err = run(*SMALL, "--policy", MINE, "--output", "json")
    assert (code, err, len(json.loads(out)["lanes"])) == (0, "so far\n", 1)
    (folder / "mine.py").write_text("print('so far')\n1 / 0\n", encoding="utf-8")
    code, out, err = run(*SMALL, "--policy", MINE)
    said = "importing it: ZeroDivisionError: division by zero (mine.py, line 2)"
    assert (code, out, err) == (BAD_INPUT, "", f"so far\nguest-svc: --policy {MINE}: {said}\n")


def test_a_packages_policy_runs_by_its_name(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is found by name; the hypervisor's own of that name comes first, and that is told."""
    info = folder / "lazies-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lazies\nVersion: 1.2\n", encoding="utf-8")
    lines = "[exitlab.policies]\nmine = mine:Mine\nignore = mine:Mine\n"
    (info / "entry_points.txt").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    assert list(lanes_of(document_of(run, *SMALL, "--policy", "mine"))) == ["mine"]
    code, out, err = run(*SMALL, "--policy", "ignore", "--policy", "mine", "--output", "json")
    told = "guest-svc: the hypervisor has a policy 'ignore', which is run; a package's is left out\n"
    assert (code, err) == (0, told)
    lanes = lanes_of(json.loads(out))
    assert (list(lanes), lanes["ignore"]["mov_dr"]["trapped"]) == (["ignore", "mine"], 0)


def test_a_name_of_a_newer_hypervisors_is_refused(folder: Path) -> None:
    """The hypervisor may have policies that this package does not know."""

    class Newer(Hypervisor):
        def policies(self) -> list[hypervisor_pb2.PolicySummary]:
            return [hypervisor_pb2.PolicySummary(name="mine")]

    table = policy_pb2.PolicyTable(name="mine", vendor=VMX)
    own = own_policies.OwnPolicies({"mine": {(VMX, False, False): table}})
    newer = Newer(f"unix:{folder}/none")
    with pytest.raises(BadInput, match="--policy mine:Mine: the hypervisor has a policy called 'mine'; give"):
        own_policies.without_clashes(own, ["mine:Mine"], ["mine"], newer)
    assert own_policies.without_clashes(own, ["mine"], ["mine"], newer).tables == {}
    assert own_policies.NO_OWN.lane("mine", SVM).WhichOneof("policy") == "policy_name"


def test_no_compiler_is_needed_to_bring_one(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the guest is installed a class still becomes a table: numba belongs to the engine."""
    (folder / "numba.py").write_text(
        "raise ModuleNotFoundError(\"no numba\", name='numba')\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    assert list(lanes_of(document_of(run, *SMALL, "--policy", MINE))) == ["mine"]


def test_a_session_goes_on_with_the_same_policy_only(folder: Path, run: Any) -> None:
    """--resume compares tables: a class that has changed since is another run."""
    code, _, err = run(*SMALL, "--policy", MINE, "--session-file", "id")
    assert (code, err) == (0, "")
    resumed = ("--policy", MINE, "--resume", (folder / "id").read_text("utf-8").strip())
    assert run(*SMALL, *resumed)[0] == 0
    (folder / "mine.py").write_text(FORGETFUL, encoding="utf-8")
    code, out, err = run(*SMALL, *resumed)
    assert (code, out) == (BAD_INPUT, "")
    assert err == "guest-svc: --resume: the session was created for another run; lanes differ\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGINT, 130)]
)
def test_a_class_that_never_ends_goes_with_its_guest(folder: Path, number: int, code: int) -> None:
    """However the guest ends, the process that tabulates is gone too: the pipe that it holds ends."""
    os.mkfifo(folder / "alive")
    source = "alive = open('alive', 'w')\nalive.write('here')\nalive.flush()\nwhile True: pass\n"
    (folder / "mine.py").write_text(source, encoding="utf-8")
    # What runs the tests may ignore SIGINT, as shells have it of what runs in the background.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from guest_svc.__main__ import run; sys.exit(run())"
    command = [sys.executable, "-c", program, "run", "idle", "--policy", MINE]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as guest, (folder / "alive").open() as alive:
        try:
            assert alive.read(4) == "here"
            guest.send_signal(number)
            assert guest.wait(60) == code
            assert alive.read() == ""  # nobody holds it any more
        finally:
            guest.kill()
