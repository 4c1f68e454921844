"""What the commands of both services promise: exit codes, refusals of one line, no traceback.

Nothing is imported at the top that a help text does not need.

Exit codes: 0 ran; 1 a check failed; 2 bad input, or nothing to connect to or listen on; 3 started and
could not finish; 70 a bug of ours; 130 and 143 interrupted or terminated.
"""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CHECK_FAILED = 1
BAD_INPUT = 2
NOT_FINISHED = 3
OUR_BUG = 70
INTERRUPTED = 130
TERMINATED = 143
TRACEBACK_VARIABLE = "EXITLAB_TRACEBACK"
_DEFAULT_COLUMNS = 80


class _Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal; argparse would import shutil, and with it every compressor."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = _DEFAULT_COLUMNS
        super().__init__(prog, width=columns - 2)


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with BAD_INPUT."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def _drop_output() -> None:
    """Let what is left of standard output go nowhere; Python would complain when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(
    program: str, command: Callable[[argparse.Namespace], int], options: argparse.Namespace
) -> int:
    """Run a command and return its exit code; what it did not foresee is told as a bug of ours."""
    try:
        code = command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 0  # whoever read our output has had enough
    except OSError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        print(f"{program}: {error}", file=sys.stderr)
        _drop_output()
        return NOT_FINISHED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        told = " ".join(str(error).split())
        print(f"{program}: a bug of ours: {type(error).__name__}: {told}", file=sys.stderr)
        print(f"{program}: set {TRACEBACK_VARIABLE}=1 to see where", file=sys.stderr)
        return OUR_BUG
    return code
