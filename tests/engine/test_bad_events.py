"""Bad events are refused whole, by name and place, and nothing has changed."""

from typing import Any, Final

import pytest

from exitlab.events import EventKind, Mark, Mode
from hypervisor_svc.engine import BadEvents
from hypervisor_svc.engine.validation import MAX_REASONS
from tests.engine.build import (
    FULL,
    IF_FAULT,
    IF_OK,
    NOT_RETIRED,
    RETIRED,
    VENDORS,
    Row,
    cpuid,
    engine_of,
    event,
    get_dr,
    policies_on,
    set_dr,
    stream,
)

GOOD: Final = [set_dr(0, 5), cpuid(), get_dr(0)]
COMPUTED: Final = {"computed": True}
RECORDED: Final = {"computed": False}
BOTH: Final = (COMPUTED, RECORDED)


def kind(number: int) -> Row:
    """Return an event whose kind is any number."""
    return Row(number)


# Bad event, the sessions that refuse it, the column that is named, what else the message says.
REFUSALS: Final[tuple[tuple[Row, tuple[dict[str, bool], ...], str, tuple[str, ...]], ...]] = (
    *((kind(number), BOTH, "kinds", (f"kind {number}", "57")) for number in (0, 58, 63, 64, 127, 128, 255)),
    (cpuid(vcpu=2), BOTH, "vcpus", ("vCPU 2", "2")),
    (cpuid(vcpu=255), BOTH, "vcpus", ("vCPU 255", "2")),
    (get_dr(8), BOTH, "args", ("MOV_FROM_DR", "8", "7")),
    (set_dr(255, 0), BOTH, "args", ("MOV_TO_DR", "255", "7")),
    (event(EventKind.STAGE, arg=6), BOTH, "args", ("STAGE", "6", "5")),
    (event(EventKind.STATE, arg=1), BOTH, "args", ("STATE", "1")),
    (event(EventKind.SCHED_IN, selector=3), BOTH, "selectors", ("SCHED_IN", "physical CPU 3", "3")),
    (event(EventKind.HOST_BREAKPOINTS, selector=0xFFFF_FFFF), BOTH, "selectors", ("HOST_BREAKPOINTS",)),
    (event(EventKind.FETCH, arg=2), BOTH, "args", ("FETCH of 2", "0 to 1")),
    (event(EventKind.MOV_SS, arg=9), BOTH, "args", ("MOV_SS of 9", "0 to 8")),
    (get_dr(0, modes=int(Mode.TF)), (COMPUTED,), "modes", ("TF", "MOV_FROM_DR", "FETCH of arg 1")),
    (event(EventKind.EXCEPTION, selector=1), (COMPUTED,), "kinds", ("recorded #DB",)),
    (cpuid(marks=IF_FAULT | IF_OK), BOTH, "marks", ("IF_FAULT", "IF_OK")),
    (event(EventKind.SCHED_OUT, marks=IF_FAULT), BOTH, "marks", ("SCHED_OUT",)),
    (event(EventKind.ADVANCE, marks=IF_OK), BOTH, "marks", ("ADVANCE",)),
    # What contradicts itself would otherwise be decided in silence.
    (get_dr(0, marks=RETIRED | NOT_RETIRED), BOTH, "marks", ("retired",)),
    (event(EventKind.READ, value=0x40), BOTH, "args", ("READ", "0 bytes")),
    (event(EventKind.WRITE, value=0x40), BOTH, "args", ("WRITE", "0 bytes")),
    (event(EventKind.EXCEPTION, selector=32), BOTH, "selectors", ("vector 32", "31")),
    (event(EventKind.EXCEPTION, selector=0x101), BOTH, "selectors", ("vector 257", "31")),
)  # fmt: skip
CASES: Final = [
    pytest.param(row, session, field, words, id=f"{field} {' '.join(words)} {session['computed']}")
    for row, sessions, field, words in REFUSALS
    for session in sessions
]


@pytest.mark.parametrize(("bad", "session", "field", "words"), CASES)
def test_refusals(bad: Row, session: dict[str, Any], field: str, words: tuple[str, ...]) -> None:
    """The message names column, event of the session and value; state, digest and offsets stay."""
    engine = engine_of("kvm-6.14", "kvm-3.14", "ignore", vcpus=2, physical_cpus=3, initial=(0, 1), **session)
    engine.feed(stream(GOOD), FULL)
    before = (engine.state_digest(), engine.applied_events, engine.report())
    for block, at in (([bad], 3), ([*GOOD, bad], 6), ([bad, *GOOD], 3), ([*GOOD, bad, *GOOD, bad], 6)):
        with pytest.raises(BadEvents) as refused:
            engine.feed(stream(block), FULL)
        assert (refused.value.field, refused.value.event) == (f"block.{field}", at)
        message = str(refused.value)
        assert message.startswith(f"event {at}: ")
        assert [word for word in words if word not in message] == []
        assert (engine.state_digest(), engine.applied_events, engine.report()) == before


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_refusal_leaves_no_trace(vendor: int) -> None:
    """A stream with refused blocks between its blocks ends as if they had never come."""
    names = policies_on(vendor)
    spoiled, clean = engine_of(*names, vendor=vendor), engine_of(*names, vendor=vendor)
    for _ in range(3):
        with pytest.raises(BadEvents):
            spoiled.feed(stream(GOOD, kind(0)), FULL)
        assert spoiled.feed(stream(GOOD), FULL) == clean.feed(stream(GOOD), FULL)
    assert spoiled.report() == clean.report()
    assert spoiled.state_digest() == clean.state_digest()


def exit_of(reason: int) -> Row:
    """Return a recorded exit."""
    return event(EventKind.EXIT, selector=reason)


def test_too_many_reasons() -> None:
    """A session records so many different exit reasons; the first one too many is named."""
    engine = engine_of("kvm-6.14", computed=False)
    half = MAX_REASONS // 2
    engine.feed(stream([exit_of(reason) for reason in range(half)]), FULL)
    before = engine.state_digest()
    block = [exit_of(reason) for reason in range(MAX_REASONS)] + [exit_of(0), exit_of(MAX_REASONS)]
    with pytest.raises(BadEvents) as refused:
        engine.feed(stream(block), FULL)
    assert refused.value.field == "block.selectors"
    assert refused.value.event == half + len(block) - 1
    assert str(MAX_REASONS) in str(refused.value)
    assert engine.state_digest() == before
    # The refused reasons do not count.
    engine.feed(stream([exit_of(reason) for reason in range(5000, 5000 + half)]), FULL)
    with pytest.raises(BadEvents):
        engine.feed(stream(exit_of(1_000_000)), FULL)
    engine.feed(stream(exit_of(5000), exit_of(0)), FULL)


def test_what_looks_bad_and_is_not() -> None:
    """The largest register, slot, CPU and kind, unused bits of columns, and recorded kinds are taken."""
    engine = engine_of("kvm-6.14", vcpus=2, physical_cpus=3, initial=(0, 1), computed=False)
    engine.feed(
        stream(
            get_dr(7),
            event(EventKind.STAGE, arg=5),
            event(EventKind.SCHED_IN, selector=2),
            event(EventKind.HOST_BREAKPOINTS, selector=2),
            event(EventKind.ADVANCE, gap_cycles=0xFFFF_FFFF),
            cpuid(vcpu=1, modes=0xFF, marks=int(Mark.CLASS)),
            *(event(one) for one in (EventKind.INT1, EventKind.POPF, EventKind.MOV_SS, EventKind.STI)),
            event(EventKind.EXCEPTION, selector=31),
            event(EventKind.READ, arg=255),
        ),
        FULL,
    )
    assert engine.applied_events == 12
