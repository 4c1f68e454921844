"""A run as the service holds it."""

import asyncio
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from exitlab.v1 import guest_pb2
from guest_svc.service.process import RunProcess

RUNNING: Final = guest_pb2.RUN_STATE_RUNNING
FINISHED: Final = guest_pb2.RUN_STATE_FINISHED
FAILED: Final = guest_pb2.RUN_STATE_FAILED
STOPPED: Final = guest_pb2.RUN_STATE_STOPPED
_BESIDE_BYTES: Final = 4096  # what an ended run takes beside its result, about


class Key(NamedTuple):
    """What a start is known by."""

    owner: str
    request_id: str


@dataclass(eq=False)
class Run:
    """A run as the service holds it."""

    key: Key
    request_digest: bytes
    status: guest_pb2.RunStatus
    begun: "asyncio.Future[None]"  # an error if it was refused
    number: int = 0  # counts those that have begun from 1, for lists
    report: bytes = b""
    figures: tuple[bytes, ...] = ()  # serialized, as few ask for them
    process: RunProcess | None = None
    is_stopping: bool = False
    watchers: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def kept_bytes(self) -> int:
        """How much is kept of it."""
        return _BESIDE_BYTES + len(self.report) + sum(map(len, self.figures))

    def response(self) -> guest_pb2.WatchRunResponse:
        """Return where it stands, and its result once it is finished."""
        response = guest_pb2.WatchRunResponse(status=self.status, report=self.report)
        for figures in self.figures:
            response.figures.add().MergeFromString(figures)
        return response

    def finish(self, done: guest_pb2.WatchRunResponse) -> None:
        """Take its result."""
        self.move(done.status)
        self.report = done.report
        self.figures = tuple(figures.SerializeToString() for figures in done.figures)

    def move(self, told: guest_pb2.RunStatus) -> None:
        """Bring it to where its process says that it is."""
        self.status.sent_events = told.sent_events
        self.status.applied_events = told.applied_events
        self.status.reconnects = told.reconnects

    def stop(self) -> None:
        """Ask its process to stop, now or as soon as there is one."""
        self.is_stopping = True
        if self.process is not None:
            self.process.stop()
