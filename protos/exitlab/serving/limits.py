"""A server's limits as a dataclass of whole numbers, each with a flag of its own."""

from __future__ import annotations

import argparse
from dataclasses import field, fields

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Limits = TypeVar("Limits")


def limit(default: int, largest: int, summary: str) -> Any:
    """Return a field of a dataclass of limits, which is 1 to ``largest``."""
    return field(default=default, metadata={"largest": largest, "summary": summary})


def limit_flags(limits: Any) -> list[tuple[str, int, int, str]]:
    """Return name, default, largest value and summary of each limit of a dataclass."""
    return [
        (each.name, int(each.default), each.metadata["largest"], each.metadata["summary"])
        for each in fields(limits)
        if isinstance(each.default, int)
    ]


def add_limits(parser: argparse.ArgumentParser, limits: type[object]) -> None:
    """Add a flag for each limit of a dataclass."""
    group = parser.add_argument_group("limits")
    for name, default, largest, summary in limit_flags(limits):
        flag = f"--{name.replace('_', '-')}"
        help_text = f"{summary} (default {default:,})"
        group.add_argument(flag, metavar="N", type=_whole(largest), default=default, help=help_text)


def chosen_limits(limits: type[Limits], options: argparse.Namespace) -> Limits:
    """Return the limits that the flags say."""
    return limits(**{name: getattr(options, name) for name, *_ in limit_flags(limits)})


def _whole(largest: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {largest:,}")
        return int(text)

    return whole
