"""Compiled code and plain Python are the same engine."""

import os
import subprocess
import sys

from hypervisor_svc.arch.compiled import IS_PLAIN
from tests.engine.plain_run import lines


def test_compiled_equals_plain() -> None:
    """Without compilation the same streams give the same report bytes, outcomes and state."""
    env = {**os.environ, "NUMBA_DISABLE_JIT": "0" if IS_PLAIN else "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.engine.plain_run"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == ("compiled" if IS_PLAIN else "plain")
    assert others == list(lines())
