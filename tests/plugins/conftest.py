"""Plug-ins in files, in modules, and as installed packages."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_svc.check.stand import Stand
from guest_svc.options import HYPERVISOR_VARIABLE

HEAD = """
from guest_svc.api import *
from guest_svc.api import Workload

class {name}(Workload):
    '''Says hello.'''

    api_version = 1
    name = "{name_in_lists}"
    summary = "of a test"
"""


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in an empty folder, with a private hypervisor; leave no module and no path behind."""
    monkeypatch.delenv(HYPERVISOR_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a workload into a file, and returns how it is named."""

    def written(body: str, name: str = "Mine", file: str = "mine.py") -> str:
        lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        text = HEAD.format(name=name, name_in_lists=name.lower()) + lines
        (tmp_path / file).write_text(text, encoding="utf-8")
        return f"./{file}:{name}"

    return written


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a package which offers workloads, as pip would leave it."""
    site = tmp_path / "installed"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(package: str, entries: dict[str, str], **files: str) -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[exitlab.workloads]\n{lines}")
        for name, text in files.items():
            (site / f"{name}.py").write_text(text)

    return installed


@pytest.fixture(scope="package")
def stand() -> Iterator[Stand]:
    """Run one hypervisor and its relay for all tests."""
    with Stand() as started:
        yield started
