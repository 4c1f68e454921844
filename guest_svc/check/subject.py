"""The workload that is checked, and the ways to run it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from exitlab.events import COLUMN_NAMES, EventColumns
from exitlab.lifeline import Lifeline
from guest_svc.check.musts import Broken
from guest_svc.check.stand import Stand, lanes
from guest_svc.check.tapped import Tapped
from guest_svc.sessions import QUIET, Streamed, Talk, stream_workload
from guest_svc.workloads.base import BLOCK_EVENTS, Workload, WorkloadSource

EVENTS: Final = 20_000  # of a run, unless said otherwise
ASKING_EVENTS: Final = 200  # of one whose every answer takes a way to the hypervisor and back
# Other than any that Python would choose for itself, so that the order of sets of texts is another too.
_HASH_SEED: Final = "3735928559"
LEAST_SECONDS: Final = 60.0  # for a run in another process
SLOWER: Final = 20.0  # than here it may be


@dataclass(slots=True)
class Subject:
    """A workload as it is named, what it is run with, and where."""

    text: str
    find: Callable[[], WorkloadSource]
    stand: Stand
    parameters: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    events_asked: int | None = None  # in a run of a check; None for a number that fits it
    _source: WorkloadSource | None = None
    _recorded: EventColumns | None = None
    _seconds: float = 0.0  # that the recorded run took

    @property
    def source(self) -> WorkloadSource:
        """The workload, found once."""
        if self._source is None:
            self._source = self.find()
        return self._source

    @property
    def events(self) -> int:
        """How many events a run has at most."""
        if self.events_asked is not None:
            return self.events_asked
        return ASKING_EVENTS if self.make(events=1).reads_outcomes else EVENTS

    def make(
        self,
        *,
        events: int | None = None,
        seed: int | None = None,
        parameters: dict[str, str] | None = None,
    ) -> Workload:
        """Return the workload ready to run, with something changed."""
        return self.source.make(
            {**self.parameters, **(parameters or {})},
            self.seed if seed is None else seed,
            self.events if events is None else events,
        )

    def recorded(self) -> EventColumns:
        """Return the events of a run, which is run once."""
        if self._recorded is None:
            began = time.monotonic()
            self._recorded = self.record(self.make())
            self._seconds = time.monotonic() - began
        return self._recorded

    def record(self, workload: Workload, block_events: int = BLOCK_EVENTS) -> EventColumns:
        """Return the events of a run: one that acts on outcomes has it at the stand's hypervisor."""
        return self.record_tapped(Tapped(workload), block_events)

    def record_tapped(self, tapped: Tapped, block_events: int = BLOCK_EVENTS) -> EventColumns:
        """Return the events of a run that is looked at."""
        if tapped.reads_outcomes:
            self.run(tapped, block_events=block_events)
        else:
            with closing(tapped.blocks(block_events)) as blocks:
                for _ in blocks:
                    pass
        return tapped.taken

    def run(
        self, workload: Workload, talk: Talk = QUIET, resume: str = "", block_events: int = BLOCK_EVENTS
    ) -> Streamed:
        """Run a workload in a session to its end."""
        return stream_workload(self.stand.hypervisor, workload, lanes(), talk, resume, block_events)

    def run_watched(self, workload: Workload) -> Streamed:
        """Run a workload in a session through the stand's relay."""
        return stream_workload(self.stand.watched_hypervisor, workload, lanes(), QUIET)

    def elsewhere(self) -> EventColumns:
        """Return the events of a run in another process.

        Raises:
            Broken: It fails there.

        """
        with tempfile.TemporaryDirectory(prefix="exitlab-") as folder:
            path = Path(folder) / "events.npz"
            asked: dict[str, Any] = {
                "text": self.text,
                "parameters": self.parameters,
                "seed": self.seed,
                "events": self.events,
                "hypervisor": self.stand.hypervisor.address,
                "path": str(path),
            }
            status, errors = _run_elsewhere(asked, max(LEAST_SECONDS, self._seconds * SLOWER))
            if status or not path.exists():
                said = (errors.strip() or "no word").splitlines()[-1]
                raise Broken(f"in another process it ends with {status}: {said}")
            with np.load(path) as columns:
                return EventColumns(**columns)


def _run_elsewhere(asked: dict[str, Any], seconds: float) -> tuple[int, str]:
    """Run ``elsewhere``, which goes with us; return its status, and what it has written on standard error.

    Raises:
        Broken: It has not ended after so many seconds.

    """
    lifeline = Lifeline()
    with lifeline as pipe:
        process = subprocess.Popen(
            [sys.executable, "-m", "guest_svc.check.elsewhere", json.dumps({**asked, "pipe": pipe})],
            env={**os.environ, "PYTHONHASHSEED": _HASH_SEED},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(pipe,),
            start_new_session=True,  # all that it starts is one group
            text=True,
            errors="replace",
        )
    with process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Broken(f"in another process it has not ended after {seconds:,.0f} seconds") from None
        finally:
            lifeline.cut()
            with suppress(ProcessLookupError):  # should it not listen
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


def compare(expected: EventColumns, got: EventColumns, what: str) -> None:
    """Refuse events that are not byte for byte those that are expected.

    Raises:
        Broken: Naming the first event that differs.

    """
    count = min(len(expected), len(got))
    first, name = count, ""
    for column in COLUMN_NAMES:
        ours, theirs = getattr(expected, column), getattr(got, column)
        if (ours is None) != (theirs is None):
            raise Broken(f"{what}: only one of two runs has the column {column}", 0)
        if ours is None:
            continue
        unlike = np.flatnonzero(ours[:first] != theirs[:first])
        if len(unlike):
            first, name = int(unlike[0]), column
    if name:
        ours, theirs = getattr(expected, name)[first], getattr(got, name)[first]
        raise Broken(f"{what}: event {first:,} has {name} {theirs}, before it was {ours}", first)
    if len(expected) != len(got):
        raise Broken(f"{what}: {len(got):,} events, before it were {len(expected):,}", count)
