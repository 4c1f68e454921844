"""Work that runs ahead of whoever needs its results, in a thread and a bounded distance.

A trace is read while the hypervisor is still starting, and while it is busy with the blocks before.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class _Shared(Generic[T]):
    """What both threads see; all of it is guarded by ``changed``."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.items: deque[T] = deque()
        self.is_wanted = True
        self.is_over = False
        self.error: BaseException | None = None


class Ahead(Iterator[T]):
    """A generator's items in order, made ahead; the generator is closed when nobody wants more."""

    def __init__(self, source: Generator[T], most: int) -> None:
        """Start; at most ``most`` items are kept."""
        self._shared: _Shared[T] = _Shared()
        threading.Thread(target=_fill, args=(self._shared, source, most), daemon=True).start()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            BaseException: What the generator raised, once all before it is taken.

        """
        shared = self._shared
        with shared.changed:
            shared.changed.wait_for(lambda: shared.items or shared.is_over)
            if shared.items:
                shared.changed.notify_all()
                return shared.items.popleft()
            error, shared.error = shared.error, None
        if error is not None:
            raise error
        raise StopIteration

    def __del__(self) -> None:
        """Want no more."""
        with self._shared.changed:
            self._shared.is_wanted = False
            self._shared.changed.notify_all()


def _fill(shared: _Shared[T], source: Generator[T], most: int) -> None:
    """Take a generator's items as long as there is room, until nobody wants more."""
    error: BaseException | None = None
    try:
        with closing(source):
            for item in source:
                with shared.changed:
                    shared.changed.wait_for(lambda: len(shared.items) < most or not shared.is_wanted)
                    if not shared.is_wanted:
                        break
                    shared.items.append(item)
                    shared.changed.notify_all()
    except BaseException as raised:
        error = raised
    with shared.changed:
        shared.error = error
        shared.is_over = True
        shared.changed.notify_all()
