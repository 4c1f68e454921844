"""A stretch of a block: the symbols of consecutive events, read once for all lanes of a reference."""

import numpy as np
from numpy.typing import NDArray

from hypervisor_svc.engine import symbols
from hypervisor_svc.engine.profile import Profile
from hypervisor_svc.engine.records import Words
from hypervisor_svc.engine.symbols import digest_of, read_symbols
from hypervisor_svc.engine.truth import Truth
from hypervisor_svc.engine.validation import Block

Steps = NDArray[np.uint16]  # the number of each event's step


class Stretch:
    """Reads symbols, and keeps those that were read last; it knows all words met so far."""

    def __init__(self, vcpus: int, *, is_computed: bool) -> None:
        """Know one word, which is nothing but a need for the guest."""
        self._is_computed = is_computed
        self._numbers = np.zeros(symbols.WORDS, np.uint8)
        self._words = np.zeros(symbols.MAX_SYMBOLS + 1, np.uint32)
        self._words[0] = symbols.QUIET_WORD
        self._reason_numbers = np.zeros(symbols.KNOWN_CODES, np.uint16)
        self._reasons = np.zeros(symbols.MAX_REASONS, np.uint32)
        self._known = np.zeros(symbols.STRETCH_FIELDS, np.uint64)
        self._known[symbols.KNOWN_WORDS] = 1
        self._per_vcpu = np.zeros((vcpus, symbols.VCPU_COLUMNS), np.uint64)
        self._per_vcpu[:, symbols.OWES] = 1
        self._places = np.zeros(vcpus, np.int64)
        self.symbols = np.zeros(0, np.uint8)
        self.accesses_before = np.zeros(0, np.uint32)  # MOV DRs of the same vCPU in the stretch
        self.events = np.zeros(0, np.uint32)  # which event of the block a symbol is of

    @property
    def begins(self) -> Words:
        """Where each vCPU's symbols begin."""
        found: Words = self._places.astype(np.uint64)
        return found

    @property
    def ends(self) -> Words:
        """Where each vCPU's symbols end."""
        found: Words = self.begins + self._per_vcpu[:, symbols.SYMBOLS]
        return found

    @property
    def accesses(self) -> Words:
        """Each vCPU's MOV DRs that do what they say."""
        return self._per_vcpu[:, symbols.ACCESSES]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another word."""
        return int(self._known[symbols.KNOWN_WORDS]) == symbols.MAX_SYMBOLS

    def words(self) -> tuple[list[int], list[int]]:
        """Return the word of every symbol, and the recorded reason that it is of or 0."""
        words = self._words[: int(self._known[symbols.KNOWN_WORDS])].tolist()
        is_recorded = [symbols.is_recorded_exit(word) for word in words]
        reasons = [
            int(self._reasons[symbols.recorded_reason(word)]) if recorded else 0
            for word, recorded in zip(words, is_recorded, strict=True)
        ]
        return words, reasons

    def break_off(self) -> None:
        """Begin anew after events that have no symbols: an entry may wait for the next."""
        self._per_vcpu[:, symbols.OWES] = 1

    def read(self, block: Block, truth: Truth, at: int, profile: Profile) -> int:
        """Read the symbols from event ``at`` on; return the first event that has none, or the block's end."""
        count = len(block.kinds)
        if len(self.symbols) < count:
            self.symbols = np.zeros(count, np.uint8)
            self.accesses_before = np.zeros(count, np.uint32)
            self.events = np.zeros(count, np.uint32)
        if len(self._places) > 1:
            self._places[1:] = np.cumsum(np.bincount(block.vcpus[at:], minlength=len(self._places)))[:-1]
        self._per_vcpu[:, : symbols.OWES] = 0
        with np.errstate(over="ignore"):
            read_symbols(
                *(block.kinds, block.args, block.modes, block.marks, block.vcpus, block.selectors),
                *(block.values, np.uint64(at), np.uint64(count)),
                *(self._is_computed, truth.stories, truth.values, truth.undefined),
                *(profile.groups, profile.passed_msrs),
                *(self._numbers, self._words, self._reason_numbers, self._reasons),
                *(self._places, self._per_vcpu),
                *(self.symbols, self.accesses_before, self.events, self._known),
            )
        return int(self._known[symbols.TAKEN])


def added_digest(block: Block, truth: Truth, first_event: int) -> np.uint64:
    """Return what events, in which nothing is undefined, add to the digest of a lane that is right."""
    with np.errstate(over="ignore"):
        return np.uint64(digest_of(truth.stories, truth.values, block.vcpus, np.uint64(first_event)))
