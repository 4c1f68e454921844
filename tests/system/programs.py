"""Both programs as users run them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 120.0


def guest(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a guest's command and return what it said."""
    return _ran("guest_svc", arguments, code)


def hypervisor(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a hypervisor's command and return what it said."""
    return _ran("hypervisor_svc", arguments, code)


def _ran(program: str, arguments: tuple[str, ...], code: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", program, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == code, ran.stderr
    return ran


@contextmanager
def serving(folder: Path, address: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Serve sessions that are kept in ``folder`` until the block is left; then drain."""
    command = [sys.executable, "-m", "hypervisor_svc", "serve", "--listen", address]
    command += ["--state-dir", str(folder / "state"), "--log-level", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("listening on ")
            yield server
        finally:
            server.terminate()
            server.wait(SECONDS)
