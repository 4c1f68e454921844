"""A private hypervisor: a subprocess on a unix socket that dies with its parent.

The child watches an inherited pipe whose other end only the parent holds, so however the parent
ends, the child sees the end of the pipe and goes too. Nothing heavy is imported here: the child
starts first and loads its compiler while the guest loads numpy and grpc.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import IO, Any, Self

from exitlab.command_line import tell
from exitlab.lifeline import Lifeline
from guest_svc.errors import CouldNotFinish, NotConnected
from guest_svc.progress import notice

_LISTENING = "listening on"
_LONGEST_SOCKET_PATH = 90  # sun_path holds 108 bytes on Linux, 104 on the BSDs
_COMPILING = "compiling the engine"
_STOP_SECONDS = 5.0
_UNSAID = frozenset({"event", "level", "timestamp", "peer", "session"})  # of a line of the log
_SHOWN_LINES = 8  # of a log's end: the innermost frames and the error


_tell = partial(tell, "guest-svc")


class EmbeddedHypervisor:
    """A hypervisor of our own; ``address`` blocks until it listens."""

    def __init__(self, *options: str, warn: Callable[[str], None] = _tell) -> None:
        """Start the subprocess with more ``options`` of ``serve``, and return at once.

        ``warn`` is told what it warns of.
        """
        self._warn = warn
        self._lifeline = Lifeline()
        self._folder: str | None = None
        listen = "127.0.0.1:0"
        if hasattr(socket, "AF_UNIX"):
            self._folder = _short_folder()
            listen = f"unix:{self._folder}/h"
        self._listen = listen
        self._address: str | None = None
        self._last_lines: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._drainer: threading.Thread | None = None
        try:
            with self._lifeline as pipe:
                self._process = subprocess.Popen(
                    [*_command(listen, pipe, self._folder), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(pipe,),
                    start_new_session=True,  # Ctrl-C is the parent's to handle; the pipe tells the child
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                )
        except BaseException:
            self._remove_folder()
            raise

    @property
    def is_running(self) -> bool:
        """Whether the subprocess has not ended."""
        return self._process.poll() is None

    @property
    def address(self) -> str:
        """The address to connect to, once the hypervisor listens there.

        Raises:
            NotConnected: the subprocess ended before it listened.

        """
        if self._address is None:
            with notice("starting a hypervisor ..."):
                self._address = self._wait_until_listening()
        return self._address

    def _wait_until_listening(self) -> str:
        lines = self._process.stdout
        assert lines is not None
        for line in lines:
            if _COMPILING in line:  # the one thing that takes long; else nobody knows what is waited for
                print(line.rstrip(), file=sys.stderr, flush=True)
                continue
            self._last_lines.append(line.rstrip())
            if _LISTENING in line:
                self._last_lines.clear()
                self._drainer = threading.Thread(target=self._drain, args=(lines,), daemon=True)
                self._drainer.start()
                return listening_address(line, self._listen)
        status = self._process.wait()
        # Its own word comes first; a hint where to look, or a traceback, may follow.
        words = [line for line in self._last_lines if line.startswith("hypervisor-svc: ")]
        said = "".join(f": {line}" for line in (words or list(self._last_lines)[-1:])[:1])
        raise NotConnected(f"the embedded hypervisor ended with status {status} before it listened{said}")

    def _drain(self, lines: IO[str]) -> None:
        """Read the hypervisor's log so that its pipe never fills: pass on warnings, keep errors."""
        for line in lines:
            record = _log_record(line)
            if record is None:  # no line of its log: what else it says is that it breaks down
                self._last_lines.append(line.rstrip())
            elif record["level"] == "warning":
                self._warn(f"the hypervisor warns: {_words(record)}")
            elif record["level"] in {"error", "critical"}:
                trace = str(record.pop("exception", "")).splitlines()
                self._last_lines.extend([_words(record), *trace[1 - _SHOWN_LINES :]])

    def __enter__(self) -> Self:
        """Return the hypervisor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the subprocess and remove its folder; tell its log's end if it broke down."""
        self.close()
        # Nobody else can look into this log.
        if (
            isinstance(error, CouldNotFinish | NotConnected)
            and self._drainer is not None
            and self._last_lines
        ):
            tell("guest-svc", "the hypervisor's log ends with:")
            with contextlib.suppress(OSError):  # nobody reads it, which changes nothing
                print(*(f"  {line}" for line in self._last_lines), sep="\n", file=sys.stderr)

    def close(self) -> None:
        """Stop the subprocess and remove its folder; a second time changes nothing."""
        self._lifeline.cut()
        if self._drainer is not None:
            self._drainer.join(_STOP_SECONDS)  # its log's end comes at once; for its status, one has to ask
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._drainer is not None:
            self._drainer.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def listening_address(line: str, asked: str) -> str:
    """Return the address that a server's ``listening on`` line names, or ``asked`` if it is fixed."""
    if asked.startswith("unix:"):
        return asked
    found = re.search(r"127\.0\.0\.1:\d+", line)
    if found is None:
        raise NotConnected(f"the embedded hypervisor listens, but does not say where: {line.strip()}")
    return found.group()


def _log_record(line: str) -> dict[str, Any] | None:
    """Return a line of the hypervisor's log; None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "level" in record else None


def _words(record: dict[str, Any]) -> str:
    """Return a line of the log for whoever knows when it came, and from whose session."""
    rest = {key: value for key, value in record.items() if key not in _UNSAID}
    return ", ".join([str(record.get("event", "")), *(f"{key}: {value}" for key, value in rest.items())])


def _command(listen: str, pipe: int, folder: str | None) -> list[str]:
    program = [sys.executable, "-m", "hypervisor_svc", "serve"]
    # The folder is ours to remove, and the child's if we are killed.
    own_folder = [] if folder is None else ["--own-folder", folder]
    return [*program, "--listen", listen, "--log-format", "json", "--parent-pipe", str(pipe), *own_folder]


def _short_folder() -> str:
    """Return a new folder that only we can enter, with a path short enough for a socket's address."""
    folder = tempfile.mkdtemp(prefix="exitlab-")  # mode 0700
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_PATH:
        return folder
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="exitlab-", dir="/tmp")
