"""Items that are made ahead: in order, a bounded number, and none for nobody."""

import threading
from collections.abc import Generator
from typing import cast

import pytest

from guest_svc.traces.ahead import Ahead


def test_items_come_in_order_and_an_error_after_them() -> None:
    """What the generator raises is raised where the next item is waited for, once."""

    def source() -> Generator[int]:
        yield from range(100)
        raise ValueError("the end")

    ahead = Ahead(source(), 3)
    assert [next(ahead) for _ in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="the end"):
        next(ahead)
    assert list(ahead) == []


def test_an_error_of_closing_the_generator_ends_it() -> None:
    """It is raised where the next item is waited for, which would else be waited for without an end."""

    class Source:
        def __iter__(self) -> "Source":
            return self

        def __next__(self) -> int:
            raise StopIteration

        def close(self) -> None:
            raise OSError("cannot be closed")

    ahead: Ahead[int] = Ahead(cast("Generator[int]", Source()), 3)
    found: list[BaseException] = []

    def take() -> None:
        try:
            next(ahead)
        except OSError as error:
            found.append(error)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    taker.join(30)
    assert [str(error) for error in found] == ["cannot be closed"]


def test_no_more_are_made_than_are_kept() -> None:
    """With room for three, the fifth is not begun before one is taken."""
    made: list[int] = []
    has_made = [threading.Event() for _ in range(8)]

    def source() -> Generator[int]:
        for number in range(8):
            made.append(number)
            has_made[number].set()
            yield number

    ahead = Ahead(source(), 3)
    assert has_made[3].wait(30)  # three are kept, and one waits for room
    assert made == [0, 1, 2, 3]
    assert next(ahead) == 0
    assert has_made[4].wait(30)
    assert list(ahead) == [1, 2, 3, 4, 5, 6, 7]


def test_a_generator_that_nobody_wants_is_closed() -> None:
    """Its file is closed when the last reference is gone, also while it waits for room."""
    is_closed = threading.Event()

    def source() -> Generator[int]:
        try:
            while True:
                yield 1
        finally:
            is_closed.set()

    ahead = Ahead(source(), 2)
    assert next(ahead) == 1
    del ahead
    assert is_closed.wait(30)
