"""What is explored: setups that must hold, and weakened ones with the promise that each breaks."""

import dataclasses
from typing import Final, NamedTuple

from tests.protocol.promises import NO_DEAD_END, NO_LOOP
from tests.protocol.records import Faults, Setup, Source, Weakening

# Blocks of unequal sizes; a later life of the guest may cut the same events otherwise, or have others.
_FOUR: Final = Source("abcd", (1, 3, 4))
_THREE: Final = Source("abc", (1, 3))
_THREE_CUT_OTHERWISE: Final = Source("abc", (2, 3))
_OTHER_THREE: Final = Source("axy", (1, 3))
_ONE: Final = Source("a", (1,))

CUT_AND_CRASH: Final = Setup("a cut and a crash", _FOUR, Faults(cuts=1, crashes=1), window=2)
ONE_EVENT: Final = Setup("one event, a cut and a crash", _ONE, Faults(cuts=1, crashes=1), window=1)
CRASHES: Final = Setup("a cut and two crashes", _THREE, Faults(cuts=1, crashes=2), window=2)
CLOSED_LOOP: Final = dataclasses.replace(CRASHES, name="the same, closed loop", is_closed_loop=True)
CUTS: Final = Setup("three cuts", _THREE, Faults(cuts=3), window=2)
LANES: Final = Setup("two lanes, a cut and a crash", _THREE, Faults(cuts=1, crashes=1), window=2, lanes=2)
DRAIN: Final = Setup("a drain, a cut and a crash", _THREE, Faults(cuts=1, crashes=1, drains=1), window=2)
KILLED: Final = Setup(
    "a killed guest that cuts otherwise, and a crash",
    _THREE,
    Faults(crashes=1, kills=1),
    window=2,
    later_source=_THREE_CUT_OTHERWISE,
)
KILLED_AND_CUT: Final = Setup(
    "a killed guest, a cut and a crash", _ONE, Faults(cuts=1, crashes=1, kills=1), window=1
)
KILLED_CLOSED_LOOP: Final = Setup(
    "a killed guest, closed loop", _THREE, Faults(cuts=1, crashes=1, kills=1), window=2, is_closed_loop=True
)
OTHER_STREAM: Final = Setup(
    "a killed guest that comes back with another stream, and a crash",
    _THREE,
    Faults(crashes=1, kills=1),
    window=2,
    later_source=_OTHER_THREE,
)
SECOND: Final = Setup("a second guest", _THREE, Faults(second_guests=1), window=2)
SECOND_OTHERWISE: Final = dataclasses.replace(
    SECOND, name="a second guest that cuts otherwise", later_source=_THREE_CUT_OTHERWISE
)
SECOND_AND_CUT: Final = Setup("a second guest and a cut", _ONE, Faults(cuts=1, second_guests=1), window=1)

SETUPS: Final = (
    CUT_AND_CRASH,
    CRASHES,
    CLOSED_LOOP,
    CUTS,
    LANES,
    DRAIN,
    KILLED,
    KILLED_AND_CUT,
    KILLED_CLOSED_LOOP,
    OTHER_STREAM,
    SECOND,
    SECOND_OTHERWISE,
    SECOND_AND_CUT,
)


class Weakened(NamedTuple):
    """Rules left out of a setup, and what breaks then."""

    setup: Setup
    breaks: str
    weakenings: tuple[Weakening, ...]

    @property
    def weakened_setup(self) -> Setup:
        """The setup without the rules."""
        return dataclasses.replace(self.setup, weakenings=frozenset(self.weakenings))

    @property
    def what_happens(self) -> str:
        """What happens without the rules, in words."""
        return ", and ".join(weakening.value for weakening in self.weakenings)


_EVENTS: Final = "every event is applied once, in its place"
_COMMITTED: Final = "what is told to be committed is durable"
_KEEPS: Final = "a guest keeps every block that is not durable"
_BOUNDED: Final = "what either side keeps is bounded by the window"
_OUTCOMES: Final = "a guest is given the outcomes of its own events, once each and in order"
_LIVES: Final = "no outcome is lost between two lives of a guest"
_ALL: Final = "whoever has the report has had every outcome"
_EPOCH: Final = "the epoch never goes back, and no two streams have one"
_WHOLE: Final = "a report tells of all events that were sent, and of no other"
_STAYS: Final = "a report stays as it was once answered"
_REASON: Final = "a guest stops only if another took its session"

WEAKENED: Final = (
    Weakened(CRASHES, _REASON, (Weakening.KEPT_NOT_IN_CHECKPOINT,)),
    Weakened(CRASHES, _COMMITTED, (Weakening.COMMITTED_AT_APPLY,)),
    Weakened(CRASHES, _EPOCH, (Weakening.EPOCH_NOT_DURABLE,)),
    Weakened(SECOND, _REASON, (Weakening.OLDER_STREAM_NOT_FENCED,)),
    Weakened(SECOND, _EVENTS, (Weakening.OLDER_STREAM_NOT_FENCED, Weakening.OVERLAP_ACCEPTED)),
    Weakened(CRASHES, _REASON, (Weakening.RULES_CHANGE_UNNOTICED,)),
    Weakened(CRASHES, _STAYS, (Weakening.ANSWERED_BEFORE_STORED,)),
    Weakened(CRASHES, _WHOLE, (Weakening.FINISHED_WHILE_BEHIND,)),
    Weakened(CRASHES, _WHOLE, (Weakening.END_IS_FINISH,)),
    Weakened(KILLED, _LIVES, (Weakening.NO_ACKNOWLEDGEMENT_AFTER_REPEATED,)),
    Weakened(KILLED_AND_CUT, _REASON, (Weakening.OPEN_CONFIRMS,)),
    Weakened(KILLED_AND_CUT, _REASON, (Weakening.CONFIRMED_FOR_ANYBODY,)),
    Weakened(CRASHES, _REASON, (Weakening.RECEIVED_ABOVE_APPLIED_REFUSED,)),
    Weakened(CRASHES, _BOUNDED, (Weakening.CONFIRMATION_CUT,)),
    Weakened(CRASHES, _KEEPS, (Weakening.DROPS_AT_APPLIED,)),
    Weakened(KILLED, _KEEPS, (Weakening.RESUMED_KEEPS_FROM_NEXT_EVENT,)),
    Weakened(CRASHES, _BOUNDED, (Weakening.SENDS_UNCONFIRMED,)),
    Weakened(CRASHES, _REASON, (Weakening.EVERY_FENCE_IS_ANOTHERS,)),
    Weakened(SECOND_AND_CUT, NO_DEAD_END, (Weakening.MISSING_UNNOTICED,)),
    Weakened(
        ONE_EVENT,
        _ALL,
        (Weakening.KEPT_NOT_IN_CHECKPOINT, Weakening.MISSING_UNNOTICED, Weakening.FINISHES_AT_APPLIED),
    ),
    Weakened(CRASHES, NO_LOOP, (Weakening.ASKS_AGAIN,)),
    Weakened(CRASHES, _OUTCOMES, (Weakening.DELIVERS_REPEATED,)),
    Weakened(LANES, _OUTCOMES, (Weakening.FORGETS_BELOW_COMMITTED,)),
    Weakened(KILLED, _REASON, (Weakening.COMPARES_WHOLE_PARTS,)),
    Weakened(OTHER_STREAM, _OUTCOMES, (Weakening.OPENED_UNCHECKED,)),
)
