"""Where the cases happen: processes, folders, and what comes of sessions that are left alone."""

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import guest_svc.retry
from hypervisor_svc.store import FILE_NAME
from tests.faults.cutting import session_bytes
from tests.faults.guest import LONG, LOOPS, SHORT, Loop, Ran, run_session
from tests.faults.toxics import STREAMS, Stream
from tests.torture.keeper import Keeper
from tests.torture.served import Plan
from tests.torture.zygote import Zygote

FIRST_WAIT_SECONDS: Final = 0.002  # of a guest that comes again: what happens is looked at, not when


class Yard:
    """All that cases share; a case changes nothing of it."""

    def __init__(self) -> None:
        """Prepare; nothing runs before it is entered."""
        self.arrivals: dict[Loop, Counter[str]] = {}  # at each site, in a session that is left alone
        self._whole: dict[tuple[Loop, Sequence[int]], Ran] = {}
        self._places: list[tuple[Loop, Stream, int]] = []
        self._folders = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start what forks servers, and one server that lives as long."""
        with ExitStack() as stack:
            waits = guest_svc.retry.FIRST_WAIT_SECONDS
            stack.callback(setattr, guest_svc.retry, "FIRST_WAIT_SECONDS", waits)
            guest_svc.retry.FIRST_WAIT_SECONDS = FIRST_WAIT_SECONDS
            self._root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.zygote = stack.enter_context(Zygote())
            self.steady = stack.enter_context(self.keeper())
            for loop in LOOPS:
                with self.keeper() as keeper:
                    self._whole[loop, LONG] = run_session(keeper.address, loop, LONG, greets=True)
                self.arrivals[loop] = keeper.arrivals
                self._whole[loop, SHORT] = run_session(self.steady.address, loop, SHORT)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of it."""
        self._stack.__exit__(kind, error, trace)

    def folder(self) -> Path:
        """Return a new folder; its path is short, as sockets want it."""
        self._folders += 1
        folder = self._root / str(self._folders)
        folder.mkdir()
        return folder

    def keeper(self, plans: Iterable[Plan] = ()) -> Keeper:
        """Return a server of its own, with its own state."""
        return Keeper(self.zygote, self.folder(), plans)

    def check(self, ran: Ran, loop: Loop, sizes: Sequence[int] = LONG) -> None:
        """Compare what came of a session with what comes of it when it is left alone.

        Raises: AssertionError.
        """
        whole = self._whole[loop, sizes]
        assert ran.told.parts == whole.told.parts, "other outcomes, or lost or double ones"
        assert ran.told == whole.told, "other decisions"
        assert ran.report == whole.report, "another report"

    def places(self) -> list[tuple[Loop, Stream, int]]:
        """Return every place at which the short sessions can be cut."""
        if not self._places:
            for loop in LOOPS:
                for stream in STREAMS:
                    listen = f"unix:{self.folder()}/p"
                    size = session_bytes(self.steady.address, listen, stream, loop)
                    self._places += [(loop, stream, place) for place in range(size)]
        return self._places


def stored_reports(keeper: Keeper) -> list[bytes | None]:
    """Return the report of each session that a server's state has; None of one that has not ended."""
    select = "SELECT report FROM sessions LEFT JOIN endings USING (id)"
    with closing(sqlite3.connect(keeper.state / FILE_NAME)) as database:
        return [report for (report,) in database.execute(select)]
