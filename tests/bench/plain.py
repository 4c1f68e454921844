"""The oracle loop as plain Python, in a process without the compiler that runs a job when asked."""

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from tests.bench.cases import CASES, case
from tests.bench.loop import compiled, make_jobs, results, run_seconds


class PlainLoop:
    """A process with the same jobs as this one, where the loop is not compiled."""

    def __init__(self, events: int) -> None:
        """Start it; its streams are of so many events."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.plain", str(events)],
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it end."""
        self._process.communicate()

    def results(self, job: int) -> dict[str, str]:
        """Return what a job yields there."""
        found: dict[str, str] = self._ask("results", job)
        return found

    def run_seconds(self, job: int) -> float:
        """Return the processor time of one run of a job there."""
        return float(self._ask("seconds", job))

    def _ask(self, what: str, job: int) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, job, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Answer each line of standard input with a line of JSON."""
    jobs = make_jobs([case(name, int(sys.argv[1])) for name in CASES])
    for line in sys.stdin:
        what, number = line.split()
        answer = results if what == "results" else run_seconds
        print(json.dumps(answer(jobs[int(number)], compiled)), flush=True)


if __name__ == "__main__":
    main()
