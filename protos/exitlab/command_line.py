"""What the commands of both services promise: exit codes, refusals of one line, no traceback.

Nothing is imported at the top that a help text does not need.

Standard output is for ``write_output`` alone: what anybody else prints while a command runs, such as the
author of a plug-in, goes to standard error.

Exit codes: 0 ran; 1 a check failed; 2 bad input, or nothing to connect to or listen on; 3 started and
could not finish; 70 a bug of ours; 128 + n ended by signal n (130 interrupted, 143 terminated).
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from exitlab.words import printable

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, TextIO

CHECK_FAILED = 1
BAD_INPUT = 2
NOT_FINISHED = 3
OUR_BUG = 70
INTERRUPTED = 130
PACKAGE = "exitlab"
TRACEBACK_VARIABLE = "EXITLAB_TRACEBACK"
_DEFAULT_COLUMNS = 80
_OUTPUT, _ERRORS = 1, 2
_kept: TextIO | None = None  # standard output, while a command runs


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

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit; a help text that nobody reads to its end is no error, one that cannot be written is."""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
        except OSError as error:
            drop_output()
            status, message = NOT_FINISHED, f"{self.prog}: {error}\n"
        super().exit(status, message)


class ShowVersion(argparse.Action):
    """The option ``--version``: prints the program's name and its package's version."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **{**settings, "help": "print the version and exit"})

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> None:
        """Print one line and exit."""
        from importlib import metadata  # noqa: PLC0415  (slow, and only this option needs it)

        try:
            version = metadata.version(PACKAGE)
        except metadata.PackageNotFoundError:
            version = "of an unknown version: it runs without being installed"
        parser._print_message(f"{parser.prog} {version}\n", sys.stdout)  # as argparse's own does
        parser.exit()


def seconds(most: int) -> Callable[[str], float]:
    """Return what reads an option's number of seconds, at most so many."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = -1.0
        if not 0 <= found <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {most:,}")
        return found

    return read


def tell(program: str, message: object) -> None:
    """Print one line on standard error; a reader that is gone changes nothing of how the command exits."""
    try:  # noqa: SIM105  (contextlib costs a help text more time than these lines)
        print(f"{program}: {printable(' '.join(str(message).split()))}", file=sys.stderr)
    except OSError:
        pass


def write_output(text: str) -> None:
    """Write to standard output; a reader that has had enough ends the output, not the command."""
    output = _kept or sys.stdout
    try:
        output.write(text)
        output.flush()
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """Let what is left of standard output go nowhere; Python would complain when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), (_kept or sys.stdout).fileno())


def keep_descriptor() -> int:
    """Return a descriptor of standard output for us alone: its number is standard error's from now on.

    No process that is started inherits it.
    """
    kept = os.dup(_OUTPUT)
    os.dup2(_ERRORS, _OUTPUT)
    return kept


class _KeptOutput:
    """Standard output for ``write_output`` alone, until the ``with`` is left."""

    def __enter__(self) -> None:
        """Keep it; where it is not the process's own, as in a test, only its name in Python."""
        global _kept  # noqa: PLW0603  (as standard output itself, there is one)
        self._before = _kept = sys.stdout
        try:
            self._is_descriptor = sys.stdout.fileno() == _OUTPUT
        except (OSError, ValueError):  # it is no file
            self._is_descriptor = False
        if self._is_descriptor:
            sys.stdout.flush()
            encoding = sys.stdout.encoding
            _kept = open(keep_descriptor(), "w", encoding=encoding, errors="backslashreplace")
        sys.stdout = sys.stderr

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        global _kept
        kept, _kept = _kept, None
        sys.stdout = self._before
        if self._is_descriptor and kept is not None:
            os.dup2(kept.fileno(), _OUTPUT)
            kept.close()


def leave(code: int) -> NoReturn:
    """End a server's process at once: Python would wait for its threads, however long they take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # nobody reads it any more
    os._exit(code)


def _open_standard_streams() -> None:
    """Open what was closed: else the next files and sockets take the numbers of the standard streams."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open to the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be in no encoding


def run_command(
    program: str, command: Callable[[argparse.Namespace], int], options: argparse.Namespace
) -> int:
    """Run a command and return its exit code; what it did not foresee is told as a bug of ours."""
    _open_standard_streams()
    try:
        with _KeptOutput():
            code = command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return 0  # whoever read our output has had enough
    except OSError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        tell(program, error)
        drop_output()
        return NOT_FINISHED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        tell(program, f"a bug of ours: {type(error).__name__}: {error}")
        tell(program, f"set {TRACEBACK_VARIABLE}=1 to see where")
        return OUR_BUG
    return code
