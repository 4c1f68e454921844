"""Whether a source is that of a resumed session: what it makes anew is compared with what is there."""

from typing import Final

from exitlab.v1 import hypervisor_pb2
from guest_svc.errors import BadInput

_NOT_THIS: Final = "--resume: this source is not the session's"


class Proof:
    """That a source's events are those of the session, up to where the session stood."""

    def __init__(self, *, is_resumed: bool) -> None:
        """Have nothing to prove of a session that is not resumed: what is made here is what it has."""
        self.is_done = not is_resumed
        self._there = hypervisor_pb2.Opened()

    @property
    def next_event(self) -> int:
        """Where the session stood."""
        return self._there.next_event

    @property
    def committed_events(self) -> int:
        """What of it was committed."""
        return self._there.committed_events

    def stands_at(self, opened: hypervisor_pb2.Opened) -> None:
        """Take note of where the session stands, which the source has not reached yet."""
        self._there = opened

    def compare(self, event: int, crcs: tuple[int, ...]) -> None:
        """Compare all events below with the session's, once the source is where that stood.

        Raises: BadInput.
        """
        if not self.is_done and event == self._there.next_event:
            if crcs != tuple(self._there.column_crcs):
                raise BadInput(f"{_NOT_THIS}: its first {event:,} events differ")
            self.is_done = True

    def check_end(self, event: int, crcs: tuple[int, ...]) -> None:
        """Refuse a source that ends before the session's events do.

        Raises: BadInput.
        """
        self.compare(event, crcs)
        if not self.is_done:
            there = f"the session has {self._there.next_event:,}"
            raise BadInput(f"{_NOT_THIS}: it ends after {event:,} events, and {there}")
