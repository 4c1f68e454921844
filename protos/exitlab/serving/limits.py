"""A server's limits as a dataclass of whole numbers, each with a flag of its own."""

import argparse
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, Final, NamedTuple, TypeVar

Limits = TypeVar("Limits")
# Of a request that is no block: 64 lanes' tables have a third of that; parsed it may take 35 times as much.
MAX_UNARY_BYTES: Final = 1 << 20


class LimitFlag(NamedTuple):
    """A limit as a flag of ``serve``."""

    name: str
    default: int
    least: int
    largest: int
    summary: str


def limit(default: int, largest: int, summary: str, least: int = 1) -> Any:
    """Return a field of a dataclass of limits, which is ``least`` to ``largest``."""
    return field(default=default, metadata={"least": least, "largest": largest, "summary": summary})


def limit_flags(limits: Any) -> list[LimitFlag]:
    """Return the flags of all limits of a dataclass."""
    return [
        LimitFlag(each.name, int(each.default), **each.metadata)
        for each in fields(limits)
        if isinstance(each.default, int)
    ]


def add_limits(parser: argparse.ArgumentParser, limits: type[object]) -> None:
    """Add a flag for each limit of a dataclass."""
    group = parser.add_argument_group("limits")
    for each in limit_flags(limits):
        flag = f"--{each.name.replace('_', '-')}"
        help_text = f"{each.summary} (default {each.default:,})"
        whole = _whole(each.least, each.largest)
        group.add_argument(flag, metavar="N", type=whole, default=each.default, help=help_text)


def chosen_limits(limits: type[Limits], options: argparse.Namespace) -> Limits:
    """Return the limits that the flags say."""
    return limits(**{each.name: getattr(options, each.name) for each in limit_flags(limits)})


def _whole(least: int, largest: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least:,} to {largest:,}")
        return int(text)

    return whole
