"""The command ``conform`` as users have it: what it tells, what it refuses, how it exits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import guest_svc
from exitlab.command_line import BAD_INPUT, CHECK_FAILED
from exitlab.v1 import policy_pb2
from guest_svc import conform
from guest_svc.cli import main
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor
from guest_svc.vectors import SHIPPED, read_vectors
from guest_svc.vectors.reading import BILL_COUNTS
from tests.guest.vector_rows import FRESH, NOP, read_dr, vector_row, write_dr

SCHEMA = json.loads(Path(guest_svc.__file__).with_name("schema").joinpath("conform.json").read_text("utf-8"))
VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of a hypervisor of our own."""
    with EmbeddedHypervisor() as hypervisor:
        yield hypervisor.address


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs ``conform`` and returns its exit code, output and errors."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main(["conform", *map(str, arguments), "--hypervisor", address])
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


@pytest.mark.parametrize("path", SHIPPED[1:], ids=lambda path: path.stem)
def test_what_scripts_read_is_what_the_schema_says(address: str, path: Path) -> None:
    """Every kind of case fits, and the schema itself is one."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    with Hypervisor(address) as hypervisor:
        lanes = [("kvm-6.8", VMX), ("kvm-3.15", SVM), ("ignore", SVM)]
        document = conform.run_vectors(hypervisor, read_vectors(path), lanes).document()
    jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)


def test_a_policy_with_a_known_bug_is_not_taken_for_clean(run: Any) -> None:
    """KVM 6.8 runs as the files say, and is told to claim to be wrong, with the vectors that show it."""
    code, out, _ = run(SHIPPED[3], "--policy", "kvm-6.8", "--vendor", "vmx")
    lines = out.splitlines()
    assert (code, lines[0].endswith(" 0 refused, 2 known bugs shown")) == (0, True)
    assert lines[1:3] == [
        "  kvm-6.8 claims to be wrong",
        "  kvm-6.8 shows known bugs: D4 on vmx; CVE-2025-21839/vmx on vmx",
    ]


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    """Write a vector file."""
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


SESSION = vector_row(
    {"op": "host_debugger", "control": ["enable", "use_hw_bp"], "db": [{"step": 1}, 0, 0, 0], "dr7": "0x402"},
    NOP,
    {"op": "host_debugger", "control": 0},
    write_dr(0, 1),
    id="session",
    expect=FRESH | {"db": [1, 0, 0, 0]},
)


def test_a_debuggers_session_shows_its_cost(run: Any, tmp_path: Path) -> None:
    """A vector without a bill is given one: what came can be written into the file, and then holds."""
    path = write(tmp_path, "session.json", SESSION)
    lane = ("--policy", "kvm-6.14", "--vendor", "vmx")
    code, out, _ = run(path, *lane, "--output", "json")
    (case,) = json.loads(out)["cases"]
    assert (code, case["result"], case["file"]) == (0, "passed", str(path))
    assert {name: count for name, count in case["bill"].items() if name not in BILL_COUNTS} == {
        "DR_ACCESS": 1,
        "EXCEPTION_NMI": 1,
    }
    assert case["debug_exits"] == [[1, "0xffff0ff1", "0x402", 1]]
    told = [exits[:3] for exits in case["debug_exits"]]
    write(
        tmp_path, "session.json", SESSION | {"bill": {lane[1]: case["bill"]}, "debug_exits": {lane[1]: told}}
    )
    code, out, _ = run(path, *lane, "--detail")
    assert code == 0
    assert "  kvm-6.14  vmx  passed  1 DR_ACCESS, 1 EXCEPTION_NMI" in out
    assert "  kvm-6.14 on vmx tells the debugger: exception 1, DR6 0xffff0ff1, DR7 0x402\n" in out


@pytest.mark.parametrize(
    ("arguments", "change", "said"),
    [
        (
            ["--vendor", "svm", "--policy", "xen-pv", "--policy", "xen"],
            {},
            "policy 'xen-pv' exists on vmx only",
        ),
        (
            [],
            {"bill": {"kvm-6.4": {}}},
            "row 0 (t), field bill.kvm-6.4: no policy 'kvm-6.4'; did you mean kvm-",
        ),
        (
            [],
            {"differs": {"kvm-6.15": {}}},
            "row 0 (t), field differs.kvm-6.15: no policy 'kvm-6.15'; did you",
        ),
        ([], {"bananas": 1}, "row 0 (t), field bananas: no such field"),
    ],
)
def test_checks_that_would_vanish_end_with_2(
    run: Any, tmp_path: Path, arguments: list[str], change: dict[str, Any], said: str
) -> None:
    """Neither a lane that is asked for nor a field is passed over."""
    code, out, err = run(write(tmp_path, "vectors.json", vector_row(NOP) | change), *arguments)
    assert (code, out, err.count("\n")) == (BAD_INPUT, "", 1)
    assert said in err


def test_files_that_share_an_id_are_told_apart(run: Any, tmp_path: Path) -> None:
    """Each file's vector counts, also where one is given twice, and a failure names its file."""
    good = vector_row(read_dr(7), expect={"reads": {"0": "0x400"}})
    wrong = vector_row(read_dr(7), expect={"reads": {"0": "0x401"}})
    paths = [write(tmp_path, "good.json", good), write(tmp_path, "wrong.json", wrong)]
    code, out, _ = run(*paths, paths[0], "--policy", "kvm-6.14", "--vendor", "vmx")
    assert code == CHECK_FAILED
    assert out.startswith("3 vectors under 1 lanes: 2 passed, 1 failed, ")
    assert f"FAILED t under kvm-6.14 on vmx ({paths[1]})" in out


def test_an_empty_expectation_still_checks(run: Any, tmp_path: Path) -> None:
    """Without any field nothing is raised and the registers end as after reset."""
    for steps, code in (([read_dr(7)], 0), ([write_dr(0, 1)], CHECK_FAILED), ([{"op": "ud2"}], CHECK_FAILED)):
        path = write(tmp_path, "vectors.json", vector_row(*steps, expect={}))
        assert run(path, "--policy", "kvm-6.14")[0] == code
