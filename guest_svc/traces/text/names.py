"""Names of events: which are read, which are only counted, and which are another architecture's."""

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guest_svc.traces.text.chunks import Chunk
from guest_svc.traces.text.heads import TIME
from guest_svc.traces.text.lexicon import Lexicon
from guest_svc.traces.text.table import EVENT_NAMES, Event
from guest_svc.traces.text.tally import MOST_NAMES, OTHER_NAMES, Tally
from guest_svc.traces.text.words import Counts

# perf prints a sampled event's period before its name, and a tracepoint's subsystem with it.
_NAME: Final = re.compile(rb"(?:\d+ +)?(?:[\w-]+:)?([\w.+/-]{1,64}):?")
_BARE: Final = re.compile(rb" *(?:[\w-]+:)?([A-Za-z_][\w.-]{0,63}):? *$")
_FOREIGN: Final = ("kvm_s390_", "kvm_hv_", "kvm_book3s_", "kvm_booke_")


class Names:
    """The names that a trace has shown so far, numbered."""

    def __init__(self) -> None:
        """Know no name yet."""
        self._numbers: dict[str, int] = {}
        self._events = np.zeros(0, np.uint8)
        self._lexicon = Lexicon(self._read)

    def values(self, chunk: Chunk, starts: Counts, lengths: Counts) -> NDArray[np.int64]:
        """Return the number of each name; -1 for what is none."""
        return self._lexicon.values(chunk, starts, lengths)

    def events(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return which event each number is; ``OTHER`` for what is only counted, and for no name."""
        found: NDArray[np.uint8] = np.append(self._events, np.uint8(Event.OTHER))[numbers]
        return found

    def is_foreign(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of them are names that another architecture's kernel gives."""
        is_foreign = [name.startswith(_FOREIGN) for name in self._numbers]
        found: NDArray[np.bool_] = np.append(np.array(is_foreign, np.bool_), np.False_)[numbers]
        return found

    def count(self, numbers: NDArray[np.int64], tally: Tally) -> None:
        """Count records by name."""
        counts = np.bincount(numbers[numbers >= 0], minlength=len(self._numbers)).tolist()
        for name, count in zip(self._numbers, counts, strict=True):
            if count:
                tally.add_records(name, count)

    def count_bare(self, line: bytes, tally: Tally) -> bool:
        """Count a record that has a name and no text; return whether it is one that is not read."""
        time = TIME.search(line)
        name = _BARE.match(line, time.end()) if time else None
        if name is None or name[1].decode() in EVENT_NAMES:
            return False
        tally.add_records(name[1].decode(), 1)
        return True

    def _read(self, text: bytes) -> int:
        found = _NAME.fullmatch(text)
        if found is None:
            return -1
        name = found[1].decode("ascii", "replace")
        if name not in self._numbers:
            if len(self._numbers) >= MOST_NAMES and name not in EVENT_NAMES:
                name = OTHER_NAMES
            if name not in self._numbers:
                self._numbers[name] = len(self._numbers)
                self._events = np.append(self._events, np.uint8(EVENT_NAMES.get(name, Event.OTHER)))
        return self._numbers[name]
