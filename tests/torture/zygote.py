"""A process that has imported the engine and forks servers and guests: each start takes milliseconds.

It imports gRPC, but never uses it: only what is forked does. It takes one request a line on its standard
input, and answers each with one line.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_END_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


class Zygote:
    """The near end of such a process; may be used by several threads."""

    def __init__(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "tests.torture.zygote"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and with it all that it has forked."""
        self._process.communicate()

    def start(self, work: str, log: Path, **arguments: Any) -> int:
        """Fork a process that does some work, its output in a file, and return its id."""
        return self._ask(work=work, log=str(log), arguments=arguments)

    def wait(self, process: int) -> int:
        """Wait until a process has ended, and return its exit code, or its signal as a negative number."""
        return self._ask(wait=process)

    def _ask(self, **request: Any) -> int:
        with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


def main() -> None:
    """Fork what is asked for until the input ends."""
    from tests.torture import served

    works: dict[str, Callable[..., None]] = {
        "serve": served.serve,
        "command": served.run_command,
        "closed loop": served.run_closed_loop,
    }
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _become(request["log"])
                try:
                    works[request["work"]](**request["arguments"])
                except BaseException:
                    traceback.print_exc()
                os._exit(70)  # both leave by themselves
        print(answer, flush=True)


def _become(log: str) -> None:
    """Have a forked process end with the zygote, and its output go to a file."""
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        opened = os.open(log if number else os.devnull, flags | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    main()
