"""Texts that somebody else wrote, made fit for a line of ours.

Nothing is imported: a help text needs this too.
"""


def printable(text: str) -> str:
    """Return a text for a terminal: what is no character to see, such as an escape code, is escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def shortened(text: str, most: int) -> str:
    """Return a text for a terminal, cut after ``most`` characters of it."""
    return printable(text) if len(text) <= most else f"{printable(text[:most])} ..."


def as_written(value: object, most: int = 60) -> str:
    """Return a value as its author would write it, if it is short and a text or a number; else its type."""
    is_huge = isinstance(value, int) and value.bit_length() > 8 * most  # Python would not write all of them
    if value is None or (isinstance(value, (int, float, str)) and not is_huge):
        written = repr(value[: most + 1] if isinstance(value, str) else value)
        if len(written) <= most:
            return written
    if isinstance(value, str):
        return f"a text of {len(value):,} characters"
    return f"of type {type(value).__name__}"


def listed(names: list[str], most: int = 12) -> str:
    """Return names with commas between; of many, the first and how many there are besides."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"
