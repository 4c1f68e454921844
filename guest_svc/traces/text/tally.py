"""What was found in a trace beside its records: nothing that was read is left out of the count."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

MOST_NAMES: Final = 1000
OTHER_NAMES: Final = "(other names)"


@dataclass(slots=True)
class Kind:
    """Lines of one kind: how many, and where the first is."""

    count: int = 0
    first_line: int | None = None

    def add(self, line: int, count: int = 1) -> None:
        """Count lines, of which ``line`` is the first."""
        if self.first_line is None:
            self.first_line = line
        self.count += count

    def document(self) -> dict[str, Any]:
        """Return it as scripts read it."""
        return {"lines": self.count, "first_line": self.first_line}


@dataclass(slots=True)
class Tally:
    """What a reader has come by so far.

    Attributes:
        lines: Lines read, whatever they are: records, headers, call_chains, lost notes, malformed, too
            long, and the last one if the text ended within it.
        records: Records of events, by name.
        lost_events: Events that the recorder says it has lost, where it says how many.
        lost_notes: Lines that say so.
        header_lines: Comments and headers; blank lines too.
        call_chain_lines: Lines of call chains.
        malformed: Lines that are nothing known here, or a known event that cannot be read.
        negative_times: Of these, records of a time below zero.
        too_long: Lines longer than any record's.
        cut_lines: 1 if the text ended within a line: it is not used.
        unnamed_reasons: Exits whose reason has a name that no table has; they are malformed too.
        damage: What broke the reading off, or nothing.

    """

    lines: int = 0
    records: Counter[str] = field(default_factory=Counter)
    lost_events: int = 0
    lost_notes: int = 0
    header_lines: int = 0
    call_chain_lines: int = 0
    malformed: Kind = field(default_factory=Kind)
    negative_times: int = 0
    too_long: Kind = field(default_factory=Kind)
    cut_lines: int = 0
    unnamed_reasons: Counter[str] = field(default_factory=Counter)
    damage: str = ""

    def add_records(self, name: str, count: int) -> None:
        """Count records of an event."""
        if name not in self.records and len(self.records) >= MOST_NAMES:
            name = OTHER_NAMES
        self.records[name] += count

    def add_unnamed_reason(self, name: str) -> None:
        """Count an exit whose reason's name is in no table."""
        if name not in self.unnamed_reasons and len(self.unnamed_reasons) >= MOST_NAMES:
            name = OTHER_NAMES
        self.unnamed_reasons[name] += 1
