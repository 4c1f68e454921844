"""Price lists: read from the TOML files beside this module, or checked as they arrive as data.

A list has every component of ``COMPONENTS``, a handler for MOV DR exits (native and emulated), one
for all other exits, and any number of handlers of single exit reasons. Each price says where it
comes from; an assumption also has a range.
"""

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Final

from exitlab.exit_reasons import DR_ACCESS, HANDLER_NAMES
from exitlab.v1 import report_pb2

HANDLER: Final = "handler."
HANDLER_DEFAULT: Final = HANDLER + "default"
HANDLER_DR_ACCESS: Final = HANDLER + DR_ACCESS
HANDLER_DR_ACCESS_EMULATED: Final = HANDLER_DR_ACCESS + "_emulated"

COMPONENTS: Final = (
    "exit_transition",  # one exit and the entry after it, in hardware
    "dr_write",
    "dr_read",
    "vmread",
    "vmwrite",
    "msr_access",
    "clustered_access",  # a MOV DR that is emulated together with an earlier one, without an exit
    "debug_controls_skip",  # taken off for an entry that did not load the debug controls
    "userspace_exit",  # added to a heavy exit
    HANDLER_DEFAULT,
    HANDLER_DR_ACCESS,
    HANDLER_DR_ACCESS_EMULATED,
)
PRICE_NAMES: Final = frozenset(COMPONENTS) | {HANDLER + name for name in HANDLER_NAMES}

# Bounds a price so that the cycles of 10^12 operations still fit the report's 64 bits.
MAX_CYCLES: Final = 10_000_000

_SUFFIX: Final = ".toml"
_NUMBERS: Final = {"cycles": "cycles", "low": "low_cycles", "high": "high_cycles"}  # file: contract


class BadPrices(ValueError):
    """A price list is wrong: which list, which key of it, and what was expected there."""

    def __init__(self, where: str, key: str, problem: str) -> None:
        """Name the list (a file, or the list's own name) and the key."""
        super().__init__(f"price list {where}: {key}: {problem}")
        self.where = where
        self.key = key


class UnknownPrices(LookupError):
    """No price list has this name; ``near`` holds the names like it."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        """Find the names that are near among those known."""
        self.name = name
        self.near = _near(name, known)
        hint = f"did you mean {' or '.join(self.near)}?" if self.near else f"there are: {', '.join(known)}"
        super().__init__(f"unknown price list {name!r}; {hint}")


def price_lists() -> dict[str, report_pb2.PriceList]:
    """Return every price list that comes with the package, by name and in the order of names."""
    return {name: price_list(name) for name in _names()}


def price_list(name: str) -> report_pb2.PriceList:
    """Return one price list of the package.

    Raises:
        UnknownPrices: There is none of this name.
        BadPrices: Its file is wrong.

    """
    if name not in (known := _names()):
        raise UnknownPrices(name, known)
    return parse(name, resources.files(__package__).joinpath(name + _SUFFIX).read_text("utf-8"))


def parse(name: str, text: str) -> report_pb2.PriceList:
    """Return the price list in a TOML text; errors name ``name``'s file.

    Raises:
        BadPrices: The text is no TOML, or something in it is missing, unknown or out of range.

    """
    where = name + _SUFFIX
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadPrices(where, "file", f"is not TOML: {error}") from None
    prices = report_pb2.PriceList(
        name=name,
        summary=_text(where, "summary", table.pop("summary", None)),
        clock_hertz=_number(where, "clock_hertz", table.pop("clock_hertz", None)),
    )
    handlers = _table(where, "handler", table.pop("handler", None))
    for key, entry in {**table, **{HANDLER + reason: entry for reason, entry in handlers.items()}}.items():
        prices.prices.append(_price(where, key, entry))
    _check(where, prices)
    return prices


def validate(prices: report_pb2.PriceList) -> None:
    """Check a price list that arrived as data.

    Raises:
        BadPrices: Something in it is missing, unknown, there twice or out of range.

    """
    _check(prices.name or "(no name)", prices)


def _check(where: str, prices: report_pb2.PriceList) -> None:
    if not prices.name:
        raise BadPrices(where, "name", "is missing")
    if not prices.clock_hertz:
        raise BadPrices(where, "clock_hertz", "is missing or 0")
    by_name: dict[str, report_pb2.Price] = {}
    for price in prices.prices:
        if price.name in by_name:
            raise BadPrices(where, price.name, "is there twice")
        by_name[price.name] = price
        _check_price(where, price)
    for name in COMPONENTS:
        if name not in by_name:
            raise BadPrices(where, name, "is missing")
    # A skipped load is part of the transition, so what it saves cannot exceed it.
    saved, transition = by_name["debug_controls_skip"].cycles, by_name["exit_transition"].cycles
    if saved > transition:
        problem = f"saves {saved} cycles, more than exit_transition's {transition}"
        raise BadPrices(where, "debug_controls_skip", problem)


def _check_price(where: str, price: report_pb2.Price) -> None:
    key = price.name or "(no name)"
    if price.name not in PRICE_NAMES:
        near = _near(price.name, sorted(PRICE_NAMES))
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadPrices(where, key, f"is no price{hint}")
    if not price.source.strip():
        raise BadPrices(where, f"{key}.source", "is missing")
    if price.low_cycles > price.cycles:
        raise BadPrices(where, f"{key}.low", f"{price.low_cycles} is above cycles, {price.cycles}")
    if price.high_cycles < price.cycles:
        raise BadPrices(where, f"{key}.high", f"{price.high_cycles} is below cycles, {price.cycles}")
    if price.high_cycles > MAX_CYCLES:
        raise BadPrices(where, f"{key}.high", f"{price.high_cycles} is above the limit, {MAX_CYCLES}")
    if price.is_assumption and price.low_cycles == price.high_cycles:
        raise BadPrices(where, f"{key}.low", "is high: an assumption needs a range")


def _price(where: str, key: str, entry: object) -> report_pb2.Price:
    fields = _table(where, key, entry)
    price = report_pb2.Price(name=key, source=_text(where, f"{key}.source", fields.pop("source", None)))
    for file_field, field in _NUMBERS.items():
        setattr(price, field, _number(where, f"{key}.{file_field}", fields.pop(file_field, None)))
    assumption = fields.pop("assumption", None)
    if not isinstance(assumption, bool):
        raise BadPrices(where, f"{key}.assumption", f"expected true or false, got {_got(assumption)}")
    price.is_assumption = assumption
    for unknown in fields:
        raise BadPrices(where, f"{key}.{unknown}", "is no field of a price")
    return price


def _table(where: str, key: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise BadPrices(where, key, f"expected a table, got {_got(value)}")
    return dict(value)


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadPrices(where, key, f"expected a text, got {_got(value)}")
    return value


def _number(where: str, key: str, value: object) -> int:
    # bool is an int to Python, and no number of cycles; above 64 bits nothing can carry it.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise BadPrices(where, key, f"expected an integer from 0, got {_got(value)}")
    return value


def _got(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _names() -> tuple[str, ...]:
    files = resources.files(__package__).iterdir()
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX)))


def _near(name: str, known: "list[str] | tuple[str, ...]") -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
