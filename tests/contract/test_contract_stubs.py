"""The committed stubs are those that the proto files give, and the proto files keep their style."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .frozen import PROTOS, buf

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path("exitlab/v1")


def stub_bytes(folder: Path) -> dict[str, bytes]:
    """Return each stub's bytes by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}


def test_the_stubs_are_current(tmp_path: Path) -> None:
    """Generating again gives the committed stubs, byte for byte, and no other files."""
    generate = [sys.executable, str(PROTOS / "generate.py")]
    tools = ROOT / "build" / "stub-tools"  # kept, so that only the first run installs
    subprocess.run([*generate, "--into", str(tmp_path), "--tools", str(tools)], check=True)
    made = stub_bytes(tmp_path / STUBS)
    assert made == stub_bytes(PROTOS / STUBS)
    assert {"events_pb2.py", "events_pb2.pyi", "hypervisor_pb2_grpc.py", "guest_pb2_grpc.pyi"} <= made.keys()
    assert "events_pb2_grpc.py" not in made


def test_the_generator_is_the_one_that_the_project_names() -> None:
    """The versions in generate.py include those of the project's dependency group."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["generate"]
    source = (PROTOS / "generate.py").read_text()
    assert group
    assert [tool for tool in group if f'"{tool}"' not in source] == []


def test_the_proto_files_keep_the_style() -> None:
    """``buf lint`` finds nothing."""
    result = buf("lint")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("pattern", "replacement", "finding"),
    [
        ("  // MOV to a debug register;.*\n", "", '"EVENT_KIND_MOV_TO_DR" should have a non-empty comment'),
        ("EVENT_KIND_CLTS", "CLTS", '"CLTS" should be prefixed with "EVENT_KIND_"'),
    ],
)
def test_the_linter_is_set_up(tmp_path: Path, pattern: str, replacement: str, finding: str) -> None:
    """A missing comment and a name against the standard are found."""
    shutil.copytree(PROTOS, tmp_path / "protos", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    events = tmp_path / "protos" / STUBS / "events.proto"
    events.write_text(re.sub(pattern, replacement, events.read_text()))
    assert finding in buf("lint", protos=tmp_path / "protos").stdout.decode()
