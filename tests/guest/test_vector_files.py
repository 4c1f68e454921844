"""Vector files: what a row can say, and how one that cannot be meant is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from exitlab.events import DebuggerControl, NestedControl
from guest_svc.errors import BadInput
from guest_svc.vectors import SHIPPED, Raised, Registers, Seen, Step, Symbol, read_vectors, reading
from guest_svc.vectors.model import ALL_OPS
from guest_svc.vectors.reading import BILL_COUNTS
from tests.guest.vector_rows import FRESH, NOP, read_back, read_dr, vector_row, write_dr

VMEXIT = ["vmexit", None, None, [1, "insn"], 0, "0x408"]


@pytest.mark.parametrize(
    ("name", "rows", "out"),
    [
        ("debugreg.json", 131, []),
        (
            "kvm_unit_tests.json",
            45,
            [
                *("K1", "K13", "K17/prefixes", "K19/prefixes", "K23", "K26"),
                *("K27/wbinvd-movss", "K27/rtm", "K28", "K29"),
            ],
        ),
        ("selftest.json", 12, []),
        ("windows.json", 18, []),
    ],
)
def test_shipped_files_are_whole(name: str, rows: int, out: list[str]) -> None:
    """Every file in the package is read, each row once, and what is out of reach is known by name."""
    (path,) = (path for path in SHIPPED if path.name == name)
    vectors = read_vectors(path)
    assert len({vector.name for vector in vectors}) == len(vectors) == rows
    assert [vector.name for vector in vectors if vector.out is not None] == out


def test_shipped_rows_cover_the_lists() -> None:
    """K1 to K30, S1 to S6 and D1 to D13 are all there, and each of the project's files names its source."""
    ours = [path for path in SHIPPED if path.name != "debugreg.json"]
    assert all(json.loads(path.read_text(encoding="utf-8"))["source"] for path in ours)
    named = {vector.name.split("/")[0].split(".")[0] for path in ours for vector in read_vectors(path)}
    lists = {"K": 30, "S": 6, "D": 13}
    assert {f"{letter}{k}" for letter, last in lists.items() for k in range(1, last + 1)} <= named


@pytest.mark.parametrize(
    ("step", "read"),
    [
        (write_dr(3, {"step": 0}), Step("mov_to_dr", register=3, operand=Symbol("step", 0))),
        ({"op": "load", "off": 8}, Step("load", offset=8)),
        ({"op": "mov_ss"}, Step("mov_ss", size_bytes=2)),
        ({"op": "mov_ss", "off": 8, "size": 4}, Step("mov_ss", offset=8)),
        ({"op": "out"}, Step("out", selector=0x80, size_bytes=1)),
        ({"op": "in", "port": "0x3fd", "size": 2}, Step("in", selector=0x3FD, size_bytes=2)),
        ({"op": "intn", "vector": 1}, Step("intn", selector=1)),
        ({"op": "interrupt", "class": "heavy"}, Step("interrupt", selector=0x20, exit_class=3)),
        ({"op": "wrmsr", "msr": "0x6e0", "v": 7}, Step("wrmsr", selector=0x6E0, operand=7)),
        ({"op": "iret"}, Step("iret")),
        ({"op": "iret", "tf": 1}, Step("iret", trap_flag=True)),
        ({"op": "popf_clr", "pre": 0, "cpl": 3}, Step("popf_clr", has_set_up=False, cpl=3)),
        ({"op": "cr4_de", "v": 1}, Step("cr4_de", operand=1)),
        ({"op": "run_on", "cpu": 2, "vcpu": 1}, Step("run_on", selector=2, vcpu=1)),
        ({"op": "vmexit_to_l1", "reason": 18}, Step("vmexit_to_l1", selector=18)),
        (
            {"op": "set_debugregs", "db": [1, 2, 3, 4], "dr6": 5, "dr7": 6},
            Step("set_debugregs", registers=Registers((1, 2, 3, 4), 5, 6)),
        ),
        (
            {"op": "host_debugger", "control": ["enable", "use_hw_bp"], "dr7": "0x402"},
            Step(
                "host_debugger",
                selector=int(DebuggerControl.ENABLE | DebuggerControl.USE_HW_BP),
                registers=Registers(dr7=0x402),
            ),
        ),
        (
            {"op": "host_breakpoints", "cpu": 1, "db": [1, 0, 0, 0]},
            Step("host_breakpoints", selector=1, registers=Registers((1, 0, 0, 0))),
        ),
        (
            {"op": "vmrun", "controls": ["intercepts_mov_dr", "saves_debug_controls"]},
            Step(
                "vmrun",
                operand=int(NestedControl.INTERCEPTS_MOV_DR | NestedControl.SAVES_DEBUG_CONTROLS),
                registers=Registers(),
            ),
        ),
        (
            {"op": "vmrun", "controls": 8, "debugctl": 3},
            Step("vmrun", operand=8, registers=Registers((3, 0, 0, 0))),
        ),
    ],
)
def test_each_operation_takes_its_fields(tmp_path: Path, step: dict[str, Any], read: Step) -> None:
    """What is left out has its stated default."""
    (vector,) = read_back(tmp_path, vector_row(NOP, step, cpus=[0, 0]))
    assert vector.steps == (Step("nop"), read)


def test_lanes_can_be_told_apart(tmp_path: Path) -> None:
    """Under named lanes a guest may see something else, exits are counted, and a debugger is told."""
    (vector,) = read_back(
        tmp_path,
        vector_row(
            NOP,
            {"op": "get_debugregs"},
            expect=FRESH | {"ev": [VMEXIT], "registers": {"1": {"dr7": 3}}, "vcpus": {"1": {"dr6": 1}}},
            cpus=[0, 0],
            bus_lock=1,
            differs={"a, b/svm": {"dr6": 7}},
            bill={"a/vmx": {"DR_ACCESS": 2, "windows": 1}},
            debug_exits={"b": [[3, 0, 0], [1, "0xffff2ff0", "0x400"]]},
        ),
    )
    assert vector.expect == Seen(
        reads={},
        raised=(Raised(None, None, 1, "insn", 0, 0x408, kind="vmexit"),),
        registers=Registers(),
        digests={1: Registers(dr7=3)},
        others={1: Registers(dr6=1)},
    )
    assert (vector.vendor, vector.has_bus_lock, vector.physical_cpus) == (None, True, (0, 0))
    lanes = [("a", "vmx"), ("a", "svm"), ("b", "vmx"), ("b", "svm")]
    assert [vector.expected(lane).registers.dr6 == 7 for lane in lanes] == [True, True, False, True]
    assert vector.expected(("a", "vmx")).raised == vector.expect.raised
    assert vector.bills == {("a", "vmx"): {"DR_ACCESS": 2, "windows": 1}}
    assert vector.debug_exits == dict.fromkeys(
        [("b", "vmx"), ("b", "svm")], ((3, 0, 0), (1, 0xFFFF2FF0, 0x400))
    )


def test_a_row_that_is_out_needs_its_reason_only(tmp_path: Path) -> None:
    """What cannot be modelled need not be written down as steps."""
    (vector,) = read_back(tmp_path, {"id": "K1", "out": "split locks are not modelled"})
    assert (vector.name, vector.out, vector.steps) == ("K1", "split locks are not modelled", ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 3}, "field id: expected a name, got 3"),
        ({"out": ""}, 'field out: expected a text, got ""'),
        ({"mode": "protected"}, 'field mode: expected one of long, real, got "protected"'),
        ({"cpl": 1}, "field cpl: expected one of 0, 3, got 1"),
        ({"rtm": 2}, "field rtm: expected one of 0, 1, got 2"),
        ({"on_bd": "stop"}, 'field on_bd: expected one of skip, retry, got "stop"'),
        ({"vendor": "via"}, 'field vendor: expected one of vmx, svm, got "via"'),
        ({"cpus": []}, "field cpus: expected a physical CPU for each vCPU, got []"),
        ({"cpus": [16]}, "field cpus[0]: expected one of 0, 1, 2, 3, "),
        ({"steps": None}, "field steps: expected a list, got null"),
        ({"steps": [3]}, "field steps[0]: expected an object, got 3"),
        ({"steps": [{"op": ["nop"]}]}, "field steps[0].op: expected one of cpuid, cr4_de, "),
        ({"steps": [{"op": "fly"}]}, "field steps[0].op: expected one of cpuid, cr4_de, "),
        ({"steps": [NOP, read_dr(8)]}, "field steps[1].n: expected one of 0, 1, 2, 3, 4, 5, 6, 7, got 8"),
        ({"steps": [write_dr(0, "x")]}, 'field steps[0].v: expected a number of at most 64 bits, got "x"'),
        (
            {"steps": [write_dr(0, 2**64)]},
            f"field steps[0].v: expected a number of at most 64 bits, got {2**64}",
        ),
        ({"steps": [write_dr(0, {"step": 1})]}, "field steps[0].v.step: expected a step, 0 to 0, got 1"),
        (
            {"steps": [write_dr(0, {"step": 1}), {"op": "reset"}]},
            "field steps[0].v.step: expected a step that is an instruction, got 1",
        ),
        ({"steps": [write_dr(0, {"code": 1})]}, 'field steps[0].v: expected a number, {"step": k} or '),
        (
            {"steps": [{"op": "store", "off": 0, "size": 3}]},
            "field steps[0].size: expected one of 1, 2, 4, 8, got 3",
        ),
        ({"steps": [{"op": "store"}]}, "field steps[0].off: expected a number of at most 64 bits, but "),
        ({"steps": [{"op": "intn", "vector": 256}]}, "field steps[0].vector: expected a number of at most 8"),
        ({"steps": [NOP | {"vcpu": 1}]}, "field steps[0].vcpu: expected one of 0, got 1"),
        ({"steps": [NOP | {"class": "slow"}]}, "field steps[0].class: expected one of fast, light, heavy, "),
        (
            {"steps": [{"op": "host_debugger", "control": ["enable", "fly"]}]},
            "field steps[0].control[1]: expected one of enable, singlestep, ",
        ),
        ({"steps": [{"op": "vmrun"}]}, "field steps[0].controls: expected a number of at most 32 bits, but "),
        ({"init": {"db": [0, 0, 0]}}, "field init.db: expected four registers, got [0, 0, 0]"),
        ({"init": {"dr7": True}}, "field init.dr7: expected a number of at most 64 bits, got true"),
        ({"expect": FRESH | {"reads": {"x": 0}}}, 'field expect.reads.x: expected a step, 0 to 0, got "x"'),
        (
            {"expect": FRESH | {"reads": {"9" * 5000: 0}}},
            f'field expect.reads.{"9" * 5000}: expected a step, 0 to 0, got "999',
        ),
        (
            {"expect": FRESH | {"vcpus": {"1": {}}}},
            'field expect.vcpus.1: expected a vCPU, 1 to 0, got "1"',
        ),
        (
            {"expect": FRESH | {"ev": [["exc", 1]]}},
            'field expect.ev[0]: expected ["exc" or "vmexit", vector, error code, ',
        ),
        (
            {"expect": FRESH | {"ev": [["exc", 1, None, [0, "there"], 0, 0]]}},
            'field expect.ev[0][3][1]: expected one of end, handler, insn, post, pre, got "there"',
        ),
        (
            {"expect": FRESH | {"ev": [["exc", 1, None, [2, "end"], 0, 0]]}},
            "field expect.ev[0][3][0]: expected a step, 0 to 1, got 2",
        ),
        ({"bill": {"a": {"FLIGHT": 1}}}, "field bill.a: expected exit reasons or windows, dr_reads, "),
        ({"bill": {"a/via": {}}}, "field bill.a/via: expected policies, each with /vmx, /svm or neither, "),
        ({"bill": {"a, a/vmx": {}}}, 'field bill.a, a/vmx: expected each lane once, got "a/vmx"'),
        ({"debug_exits": {"a": [[1, 2]]}}, "field debug_exits.a[0]: expected [exception, DR6, DR7], got "),
        ({"differs": {"a": {"dr6": -1}}}, "field differs.a.dr6: expected a number of at most 64 bits"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """What is wrong with a vector is told in one line with where it is; nothing of the file is run."""
    with pytest.raises(BadInput) as raised:
        read_back(tmp_path, vector_row(NOP), vector_row(NOP) | change)
    name = "" if "id" in change else " (t)"
    assert str(raised.value).startswith(f"{tmp_path / 'vectors.json'}: row 1{name}, {said}")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not a vector file: "),
        (b"\xff\xfe", "not a vector file: "),
        (b"[" * 100_000, "not a vector file: "),
        (b"3", "not a vector file: expected a list of vectors"),
        (b'{"source": "x"}', "not a vector file: expected a list of vectors"),
        (b'{"vectors": []}', "not a vector file: an object of vectors names its source"),
        (b"[]", "not a vector file: expected a list of vectors"),
        (b"[3]", "row 0, field the row: expected an object, got 3"),
        (b" " * 1_001, "not a vector file: larger than 1,000 bytes"),
    ],
)
def test_foreign_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    """A file that holds something else is not taken for vectors, nor read without an end."""
    if content.isspace():
        monkeypatch.setattr(reading, "_LARGEST_FILE_BYTES", 1_000)
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_vectors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A vector file that is not there is bad input."""
    with pytest.raises(BadInput, match=r"none\.json: No such file or directory"):
        read_vectors(tmp_path / "none.json")


PAGE = (Path(__file__).parents[2] / "docs" / "vectors.md").read_text(encoding="utf-8")


def test_the_page_tells_every_operation_and_count() -> None:
    """What the page does not name nobody can use."""
    names = {*ALL_OPS, *BILL_COUNTS, *(path.name for path in SHIPPED)}
    names |= {str(control.name).lower() for kind in (DebuggerControl, NestedControl) for control in kind}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


def test_the_pages_example_is_a_vector(tmp_path: Path) -> None:
    """The file that the page shows is one."""
    (example,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "example.json"
    path.write_text(example, encoding="utf-8")
    assert [vector.name for vector in read_vectors(path)] == ["watchpoint"]
