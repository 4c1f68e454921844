"""A policy of one's own, tabulated by ``hypervisor-svc policy`` in a process of its own.

A word of ``--policy`` is one's own policy if it is written as a class (``./file.py:Class``, ``module:Class``)
or as a file with a table (``table.json``), or if a package here has an entry point of that name and the
hypervisor has no policy of it.

The guest imports neither the policy nor what it needs: what comes back are lanes of the contract, a line
of JSON each. Nothing heavy is imported here, so that the process runs while the guest loads numpy and grpc.
"""

from __future__ import annotations

import subprocess
import sys

from exitlab.lifeline import Lifeline
from exitlab.plugins import POLICIES, entry_points, is_brought
from guest_svc.errors import BadInput

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack
    from types import TracebackType
    from typing import Self

_PROGRAM = "hypervisor-svc: "


def start(words: Iterable[str], stack: ExitStack) -> list[Tabulation]:
    """Start to tabulate those of the words that may name a policy of one's own, each once."""
    packaged = entry_points(POLICIES)
    own = dict.fromkeys(word for word in words if is_brought(word) or word in packaged)
    return [stack.enter_context(Tabulation(word)) for word in own]


class Tabulation:
    """A policy that is being tabulated, until the ``with`` is left."""

    def __init__(self, word: str) -> None:
        """Start the process and return at once; ``word`` is the policy as ``--policy`` names it."""
        self.word = word
        self._lifeline = Lifeline()  # an author's class may never end, and we may be killed
        command = [sys.executable, "-m", "hypervisor_svc", "policy", "--output", "lanes"]
        with self._lifeline as pipe:
            self._process = subprocess.Popen(
                [*command, "--parent-pipe", str(pipe), "--", word],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(pipe,),
                text=True,
                encoding="utf-8",
                errors="replace",
            )

    def __enter__(self) -> Self:
        """Return the tabulation."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process, should it still run."""
        self._process.kill()
        self._process.communicate()
        self._lifeline.cut()

    def lines(self) -> list[str]:
        """Wait for the process and return the lanes; what the author's code printed goes to standard error.

        Raises:
            BadInput: the policy cannot be tabulated; the message is the one that ``hypervisor-svc`` gives.

        """
        printed, told = self._process.communicate()
        status = self._process.returncode
        refusals = [line for line in told.splitlines() if line.startswith(_PROGRAM)] if status else []
        for line in told.splitlines():
            if line not in refusals:
                print(line, file=sys.stderr)
        if status or not printed:
            why = f"its process ended with status {status}" if status else "its process ended without a table"
            why = refusals[-1] if refusals else why
            raise BadInput(f"--policy {self.word}: {why.removeprefix(_PROGRAM)}")
        return printed.splitlines()
