"""A process that goes with the one that started it, however that ends: by the end of a pipe.

Its parent holds one end of the pipe and never writes. Nothing is imported at the top that a help text does
not need.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable


class Lifeline:
    """The pipe, as a parent has it: inherited with ``pass_fds``, inside a ``with``."""

    def __init__(self) -> None:
        """Make the pipe."""
        self.child_end, self._our_end = os.pipe()

    def __enter__(self) -> int:
        """Return the descriptor that the child is to inherit."""
        return self.child_end

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the child's end here, as it has its own; and ours, should it not have been started."""
        os.close(self.child_end)
        if kind is not None:
            self.cut()

    def cut(self) -> None:
        """Let the child go; to say so again changes nothing."""
        descriptor, self._our_end = self._our_end, -1
        if descriptor >= 0:
            os.close(descriptor)


def leave_with_parent(
    pipe: int, *, last: Callable[[], None] | None = None, has_own_group: bool = False
) -> None:
    """End this process at once when a pipe that it has inherited ends; ``last`` is done before.

    A thread waits, so that it works whatever the rest is busy with. A process that ``has_own_group`` takes
    with it what it has started in there.

    Raises:
        OSError: There is no such descriptor.

    """
    import threading  # noqa: PLC0415  (a help text needs none)

    os.fstat(pipe)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        if last is not None:
            last()
        if has_own_group and os.getpgrp() == os.getpid():
            import signal  # noqa: PLC0415

            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
