"""Where a session's id is noted, so that it can be resumed should its guest end early."""

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from guest_svc.errors import BadInput


class SessionNote:
    """Tells a session's id to the file that was asked for, else to people at a terminal, else to nobody."""

    def __init__(self, file: str | None, tell: Callable[[str], None], *, is_resumed: bool = False) -> None:
        """Note ids in ``file``, if there is one; whoever resumes a session need not be told its id."""
        self._file = Path(file) if file else None
        self._tell = tell
        self._is_resumed = is_resumed
        self._session_id = ""

    def take(self, session_id: str) -> None:
        """Note the id of the session that is run.

        Raises:
            BadInput: the file cannot be written.

        """
        self._session_id = session_id
        if self._file is not None:
            try:
                _write(self._file, f"{session_id}\n")
            except OSError as error:
                raise BadInput(f"--session-file {self._file}: {error.strerror}") from error
        elif sys.stderr.isatty() and not self._is_resumed:
            self._tell(f"should this guest end early, --resume={session_id} goes on")

    @property
    def way_on(self) -> str:
        """How to go on with a run that was given up; empty where nobody knows the id."""
        if not self._session_id:
            return ""
        if self._file is not None:
            known = f"--resume with the id in {self._file}"
        elif self._is_resumed:
            known = "--resume"
        elif sys.stderr.isatty():
            known = f"--resume={self._session_id}"
        else:
            return ""
        return f"; {known} goes on if the hypervisor has the session still"


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, as an id gives access; what is no file stays as it is."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(opened, "w", encoding="ascii") as file:
        if stat.S_ISREG(os.fstat(opened).st_mode):
            os.fchmod(opened, 0o600)
            file.truncate(0)
        file.write(text)
