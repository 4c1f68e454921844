"""A session that is committed with a clock and a disk that the tests turn."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from hypervisor_svc.commits import Commits
from hypervisor_svc.journal import Checkpoint
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.registry import Ending, Held, Registry
from hypervisor_svc.session import Session
from tests.durable.journaled import FakeJournal
from tests.hypervisor.test_server import SECONDS, create_request
from tests.hypervisor.test_session import FakeEngine, Sender, opened, some_config


class Clock:
    """Tells the time that a test says it is."""

    def __init__(self) -> None:
        """Begin somewhere, long before what a machine's clock tells."""
        self.seconds = -1e6

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


class Disk(FakeJournal):
    """A store whose work takes as long as it is told, by the clock, and waits while it is told to."""

    def __init__(self, clock: Clock) -> None:
        """Take no time."""
        super().__init__()
        self.takes_seconds = 0.0
        self.is_reached = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._clock = clock

    def save_checkpoint(self, session_id: str, checkpoint: Checkpoint, age_seconds: float) -> None:
        """Keep a checkpoint, in its time."""
        self.is_reached.set()
        assert self.go_on.wait(SECONDS)
        self._clock.seconds += self.takes_seconds
        super().save_checkpoint(session_id, checkpoint, age_seconds)


class Watcher:
    """A stream that notes what it is told."""

    epoch = 1

    def __init__(self) -> None:
        """Be told nothing yet."""
        self.told: list[Ending | str] = []

    def end(self, why: Ending) -> None:
        """Note an end."""
        self.told.append(why)

    def tell_committed(self) -> None:
        """Note a commit."""
        self.told.append("committed")


class Bench:
    """Commits with one session that is streaming."""

    def __init__(self, max_uncommitted_events: int = 10) -> None:
        """Make the session; needs a running event loop."""
        self.clock = Clock()
        self.disk = Disk(self.clock)
        self.limits = ServerLimits(max_uncommitted_events=max_uncommitted_events)
        self.commits = Commits(self.disk, self.limits, self.in_thread, self.clock)
        self.thread_seconds = 0.0  # until there is one
        self.stream = Watcher()
        self.sender = Sender()
        self.held = self.hold()
        self.held.stream = self.stream

    def hold(self, age_seconds: float = 0.0) -> Held:
        """Return another session, as the registry holds it."""
        session = Session("id", some_config(), FakeEngine, self.limits, self.disk)
        opened(session)
        registry = Registry(self.limits, self.clock)
        return registry.adopt(session, 1, "", create_request("r"), age_seconds)

    async def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do engine work, once there is a thread for it."""
        self.clock.seconds += self.thread_seconds
        return work(*args)

    def apply(self, events: int) -> None:
        """Apply more events to the session."""
        if events:
            self.held.session.apply(1, self.sender.block(*range(events)))

    async def look(self, held: Held | None = None) -> bool:
        """Look whether the session is due, and wait for what begins."""
        held = held or self.held
        self.commits.look(held)
        if held.committing is None:
            return False
        await held.committing
        return True

    async def reached(self) -> None:
        """Wait until a save has begun."""
        assert await asyncio.to_thread(self.disk.is_reached.wait, SECONDS)
        self.disk.is_reached.clear()

    @property
    def saved(self) -> list[int]:
        """The events of the checkpoints that were saved."""
        return [checkpoint.applied_events for checkpoint in self.disk.checkpoints]
