"""Where workloads are tried: a private hypervisor with a small window, seen through a relay."""

from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from exitlab.v1 import policy_pb2
from guest_svc.check.relay import Relay, Watched
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor

WINDOW_EVENTS: Final = 2_048
BLOCK_EVENTS: Final = 512
POLICY: Final = "kvm-6.14"
PRICES: Final = "seed-2014"
_LIMITS: Final = ("--max-window-events", str(WINDOW_EVENTS), "--max-block-events", str(BLOCK_EVENTS))
_RETRY_SECONDS: Final = 30.0  # after a cut; the hypervisor is there at once


class Stand:
    """A hypervisor, the relay before it, and a guest's connection to either."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the hypervisor and connect to it."""
        try:
            embedded = self._stack.enter_context(EmbeddedHypervisor(*_LIMITS))
            self._relay = self._stack.enter_context(Relay(embedded.address))
            self.hypervisor = self._stack.enter_context(Hypervisor(embedded.address))
            self.watched_hypervisor = self._stack.enter_context(
                Hypervisor(self._relay.address, retry_seconds=_RETRY_SECONDS)
            )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all."""
        self._stack.__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        """Where guests find the hypervisor."""
        return self._relay.address

    def watch(self, *, window: int = 0, cut_at: int | None = None, is_shut: bool = False) -> Watched:
        """Watch the streams that begin from now on; see ``Watched`` for what is done to them."""
        return self._relay.watch(Watched(window=window, cut_at=cut_at, is_shut=is_shut))


def lanes() -> list[policy_pb2.Lane]:
    """Return the lanes that everything is tried under."""
    return [policy_pb2.Lane(policy_name=POLICY, vendor=policy_pb2.VENDOR_VMX)]
