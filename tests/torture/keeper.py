"""A hypervisor that is started again whenever it has ended, each time with another plan."""

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exitlab.command_line import NOT_FINISHED
from tests.torture.served import ARRIVALS, LISTENING, Plan
from tests.torture.sites import DRAIN, FILL, FULL, KILL
from tests.torture.zygote import Zygote

RANDOM_MOMENT: Final = "at a random moment"
SECONDS: Final = 60.0  # nothing here takes this long unless it hangs
_NOTHING: Final = Plan()
_STRIKE: Final = "strike"  # end it now
_STOP: Final = "stop"


class Keeper:
    """Keeps a server alive: one process after the other, on one address and one state directory.

    Once the plans are used up, nothing more happens to it. ``struck`` counts what has happened where.
    """

    def __init__(self, zygote: Zygote, folder: Path, plans: Iterable[Plan] = ()) -> None:
        """Prepare a server in a folder."""
        self.address = f"unix:{folder}/s"
        self.state = folder / "state"
        self.log = folder / "log"
        self.struck: Counter[str] = Counter()
        self.arrivals: Counter[str] = Counter()  # at each site, of a server that was stopped in order
        self.troubles: list[str] = []
        self._zygote = zygote
        self._plans = deque(plans)
        self._plan = _NOTHING
        self._listening = threading.Event()
        self._timer: threading.Timer | None = None
        self._path = folder / "notes"
        os.mkfifo(self._path)
        self._notes = os.open(self._path, os.O_RDWR)  # for both: it then never ends
        self._lines = os.fdopen(os.dup(self._notes), "rb", buffering=0)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Start the first server, and wait until it listens."""
        self._start()
        self._thread.start()
        assert self._listening.wait(SECONDS), "the server does not listen"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the last server in order; after an error, at once.

        Raises: AssertionError, if a server has not ended as it should.
        """
        if kind is not None:
            self.strike(signal.SIGKILL)
        self._say(_STOP)
        self._thread.join(SECONDS)
        self._lines.close()
        os.close(self._notes)
        assert kind is not None or not self.troubles, "; ".join(self.troubles)

    def strike(self, number: int = signal.SIGKILL) -> None:
        """End the server that runs now; another one follows."""
        self._say(f"{_STRIKE}\t{int(number)}")

    def restart(self) -> None:
        """Kill the server that runs now, and wait until the next one listens."""
        self._listening.clear()
        self.strike()
        assert self._listening.wait(SECONDS), "the server does not listen again"

    def _say(self, line: str) -> None:
        os.write(self._notes, f"{line}\n".encode())

    def _start(self) -> None:
        self._is_up = False
        self._plan = self._plans.popleft() if self._plans else _NOTHING
        plan = {name: value for name, value in asdict(self._plan).items() if name != "after_seconds"}
        paths = {"address": self.address, "folder": str(self.state), "notes": str(self._path)}
        # A log in a file would fail like any other once the disk is full.
        log = Path(os.devnull) if self._plan.action == FILL else self.log
        self._process = self._zygote.start("serve", log, **paths, **plan)

    def _watch(self) -> None:
        """Start a server for each that has ended: the thread."""
        is_stopping = False
        # One that does not listen yet would not stop in order.
        while not (is_stopping and self._is_up):
            line = self._lines.readline()
            said, *words = line.decode().rstrip("\n").split("\t")
            if said == LISTENING:
                self._is_up = True
                self._listening.set()
                if self._plan.after_seconds >= 0:
                    self._timer = threading.Timer(self._plan.after_seconds, self.strike)
                    self._timer.start()
            elif said in {KILL, DRAIN}:
                self.struck[words[0]] += 1
                self._follow(-signal.SIGKILL if said == KILL else 0)
            elif said == FULL and self._plan.full_signal:
                self.struck["disk full"] += 1
                number, self._plan = self._plan.full_signal, _NOTHING
                self._end(number, is_full=True)
            elif said == _STRIKE:
                self.struck[RANDOM_MOMENT] += 1
                self._end(int(words[0]))
            elif said == _STOP:
                is_stopping = True
        self._stop()

    def _end(self, number: int, *, is_full: bool = False) -> None:
        os.kill(self._process, number)
        if number == signal.SIGKILL:
            self._follow(-number)
        else:
            self._follow(0, *((NOT_FINISHED,) if is_full else ()))  # a drain that could not store all says so

    def _follow(self, *expected: int) -> None:
        """Wait for the end of a server and start the next."""
        self._wait(*expected)
        self._start()

    def _wait(self, *expected: int) -> None:
        self._check(self._zygote.wait(self._process), *expected)

    def _check(self, found: int, *expected: int) -> None:
        if found not in expected:
            self.troubles.append(f"a server ended with {found}, expected {expected}; see {self.log}")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        os.kill(self._process, signal.SIGTERM)
        found, expected = self._zygote.wait(self._process), 0
        self._say("")  # so that a read of what is left comes to an end
        for line in iter(self._lines.readline, b"\n"):
            said, *words = line.decode().rstrip("\n").split("\t")
            if said == ARRIVALS:
                self.arrivals.update({site: int(n) for site, n in (word.split("=") for word in words)})
            elif said == KILL:  # it came by its site no sooner than in this drain
                self.struck[words[0]] += 1
                expected = -signal.SIGKILL
        self._check(found, expected)
