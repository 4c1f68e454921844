"""Policies as tables in files, as any language can write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from exitlab.plugins import PluginError
from exitlab.v1 import policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc.cli import main
from hypervisor_svc.policies import table_files
from hypervisor_svc.policies.find import FEATURES, find
from hypervisor_svc.show.json_text import as_object

VMX: Final = policy_pb2.VENDOR_VMX
Table = dict[str, Any]


def table_of(name: str = "swap-each-entry") -> Table:
    """Return the JSON object of one of ours under another name."""
    return as_object(shipped.policy_table(name, VMX, policy_pb2.CpuFeatures())) | {"name": "mine"}


def moment(table: Table, name: str) -> Table:
    """Return the rows of a moment."""
    (rows,) = (one for one in table["moments"] if one["moment"] == f"MOMENT_{name}")
    found: Table = rows
    return found


def write(path: Path, table: object) -> str:
    """Write a table's file and return its name."""
    path.write_text(json.dumps(table), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped.policy_names())
def test_a_table_that_was_printed_is_read_as_it_was(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ``policy --output json`` prints, under another name, is the same table on every CPU."""
    assert main(["policy", name, "--output", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = find(write(tmp_path / "t.json", {**printed, "name": "mine"}))
    expected = shipped.policy_table(name, VMX, policy_pb2.CpuFeatures())
    expected.name = "mine"
    assert (found.name, found.vendors) == ("mine", (VMX,))
    assert [found.table(VMX, features) for features in FEATURES] == [expected] * 4


def without_last_cell(table: Table) -> None:
    """Leave a cell out."""
    moment(table, "DR_TRAPPED")["actions"].pop()


def without_next(table: Table) -> None:
    """Leave every next memory out."""
    moment(table, "DB_EXIT").pop("next_memory")


def unknown_action(table: Table) -> None:
    """Misspell an action."""
    table["actions"][2] = "SAVE_DR03"


def unknown_field(table: Table) -> None:
    """Misspell a field."""
    table["memorys"] = table.pop("memories")


def unknown_vendor(table: Table) -> None:
    """Name a vendor as the options do."""
    table["vendor"] = "vmx"


PRINTABLE: Final = "expected at most 1,000 printable characters"
# What is done to a good table, and what is told of it after its file.
SPOILT: Final[tuple[tuple[Callable[[Table], object], str], ...]] = (
    (without_last_cell, ": mine: DR_TRAPPED has 23 sets of actions for 24 states; the first without one is "
     "DR_TRAPPED (check=GD, is_write, register_class=CONTROL)"),
    (without_next, ": mine: DB_EXIT has 0 next memories for 1 states; the first without one is DB_EXIT"),
    (unknown_action, ": mine: SAVE_DR03 is no action"),
    (unknown_field, ': no PolicyTable: Message type "exitlab.v1.PolicyTable" has no field named "memorys"'),
    (unknown_vendor, ": no PolicyTable: Failed to parse vendor field: Invalid enum value vmx for enum type"),
    (lambda table: table.pop("vendor"), ": mine: vendor 0 is unknown"),
    (lambda table: table.pop("name"), ": the table is named '', expected 1 to 256 printable characters"),
    (lambda table: table.update(name="n" * 300), ": the table is named a text of 300 characters, expected 1"),
    (lambda table: table.update(summary="r\x1b[1m"), f": mine: its summary is 'r\\x1b[1m', {PRINTABLE}"),
    (lambda table: table.update(source="one\ntwo"), f": mine: its source is 'one\\ntwo', {PRINTABLE}"),
    (lambda table: table.update(summary="s" * 1_001), ": mine: its summary is a text of 1,001 characters"),
    (lambda table: table["memories"].__setitem__(0, "\x07"), ": mine: the name of a memory is '\\x07'"),
    (lambda table: table["deviations"][0].update(text="\x9b"), ": mine: its deviation '"),
    (lambda table: table.update(name="xen"), ": the table has the name of a policy that ExitLab comes with"),
    (lambda table: table.update(name="\ud800"), ": no JSON: 'utf-8' codec can't encode"),
)  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_mistake_names_field_or_cell(spoil: Callable[[Table], object], said: str, tmp_path: Path) -> None:
    """A table that no session would take is refused with the file and what of it is wrong or missing."""
    table = table_of("kvm-3.14")
    spoil(table)
    path = write(tmp_path / "t.json", table)
    with pytest.raises(PluginError) as refused:
        find(path)
    assert str(refused.value).startswith(f"{path}{said}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ":1: no JSON: Expecting value, column 1"),
        (b'{\n  "name": \n}', ":3: no JSON: Expecting value, column 1"),
        (b'{"name": "a", "name": "b"}', ": no PolicyTable: the field 'name' is there twice"),
        (
            b'{"moments": [{"next_memory": "", "nextMemory": ""}]}',
            ": no PolicyTable: the field 'nextMemory' is",
        ),
        (b"[]", ": expected the JSON object of a PolicyTable, got list"),
        (b"\xff\xfe\xff", ": no JSON: "),
        (b"[" * 100_000, ": no JSON: maximum recursion depth exceeded"),
        (b" " * (table_files.MOST_BYTES + 1), ": more than 16 MiB; no policy's table is so large"),
    ],
)
def test_what_is_no_table_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    """Other files, cut ones and endless ones are told apart, with the line where there is one."""
    path = tmp_path / "t.json"
    path.write_bytes(data)
    with pytest.raises(PluginError) as refused:
        find(str(path))
    assert str(refused.value).startswith(f"{path}{said}")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    """It is told as the system tells it."""
    (tmp_path / "t.json").mkdir()
    with pytest.raises(PluginError, match=r"t\.json: Is a directory"):
        find(str(tmp_path / "t.json"))
