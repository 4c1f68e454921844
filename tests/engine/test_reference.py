"""The reference tells what the second model tells: two that share no code."""

import copy
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exitlab.events import EventColumns, EventKind, Mark, Mode
from hypervisor_svc.arch.reference import DEBUGCTL, DEBUGCTL_UNKNOWN
from hypervisor_svc.engine import ReferenceKey
from hypervisor_svc.engine.truth import Reference, Truth
from hypervisor_svc.engine.validation import complete
from tests.engine.build import (
    IF_FAULT,
    IF_OK,
    NOT_RETIRED,
    REFERENCE,
    SVM,
    UNKNOWN,
    VENDOR_OF,
    VENDOR_WORDS,
    VENDORS,
    VMX,
    Row,
    cpuid,
    engine_for,
    event,
    fetch,
    get_dr,
    outcomes,
    run,
    set_debugregs,
    set_dr,
    staged,
    stream,
)
from tests.engine.decorate import decorated
from tests.model import debug_control
from tests.model.second_model import EXCEPTIONS, Event, Registers, SecondModel, Story, Told, events_of
from tests.model.streams import Mix, mixes, random_stream, streams

MIXES: Final = {
    "computed": Mix(),
    "recorded": Mix(computed=False, debug_control=True),
    "rtm": Mix(rtm=True),
    "bus lock": Mix(bus_lock=True),
    "rtm and bus lock, recorded": Mix(rtm=True, bus_lock=True, computed=False),
    "one vCPU": Mix(vcpus=1, cpus=1, scheduling=False, kicks=False),
    "slots not staged": Mix(partial_stage=True),
}
_EVERYTHING: Final[dict[int, Mix]] = {vendor: Mix.everything(VENDOR_WORDS[vendor]) for vendor in VENDORS}
_ON_EACH: Final = [
    *((name, mix, vendor) for name, mix in MIXES.items() for vendor in VENDORS),
    *(("everything", mix, vendor) for vendor, mix in _EVERYTHING.items()),
    *(
        ("everything rtm", replace(mix, rtm=True, bus_lock=True), vendor)
        for vendor, mix in _EVERYTHING.items()
    ),
]
CASES: Final = [
    pytest.param(mix, vendor, id=f"{name} {VENDOR_WORDS[vendor]}") for name, mix, vendor in _ON_EACH
]
SHOWING: Final = (
    *(Story.READ, Story.DB_FAULT, Story.DB_TRAP, Story.UD, Story.GP),
    *(Story.REGISTERS, Story.BP, Story.VMEXIT),
)


def reference_of(mix: Mix, vendor: int) -> Reference:
    """Return a fresh reference on a CPU as in ``mix``."""
    key = ReferenceKey(VENDOR_OF[vendor], mix.rtm, mix.bus_lock)
    return Reference(key, mix.vcpus, is_computed=mix.computed)


def second_model(mix: Mix, vendor: int = VMX) -> SecondModel:
    """Return a fresh second model on a CPU as in ``mix``."""
    return SecondModel(mix.vcpus, VENDOR_WORDS[vendor], mix.rtm, mix.bus_lock, mix.computed)


def differences(truth: Truth, told: list[Told]) -> list[int]:
    """Return the events of which the two tell different stories."""
    different = []
    for at, (story, value, undefined) in enumerate(
        zip(truth.stories.tolist(), truth.values.tolist(), truth.undefined.tolist(), strict=True)
    ):
        theirs = told[at]
        if story != theirs.story:
            different.append(at)
        elif story in SHOWING:
            same_bits = ((value ^ theirs.value) & ~theirs.undefined_dr6) == 0
            if not same_bits or undefined != theirs.undefined_dr6:
                different.append(at)
    return different


def registers_of(one: Reference, vcpu: int) -> Registers:
    """Return the registers that the reference holds for a vCPU."""
    row = [int(word) for word in one.state[vcpu, :7]]
    return Registers((row[0], row[1], row[2], row[3]), row[4], row[5], row[6])


def check(events: EventColumns, mix: Mix, vendor: int) -> None:
    """Hold the reference against the second model: every event, and the registers at the end."""
    one, model = reference_of(mix, vendor), second_model(mix, vendor)
    told = model.tell(events_of(events))
    truth = one.run(complete(events), 0, leading=None)
    assert differences(truth, told) == []
    for vcpu in range(mix.vcpus):
        ours, theirs = registers_of(one, vcpu), model.registers(vcpu)
        known = ~theirs.undefined_dr6
        assert ours._replace(dr6=ours.dr6 & known) == theirs._replace(dr6=theirs.dr6 & known)
        debugctl = debug_control.DebugControl(*one.state[vcpu, [DEBUGCTL, DEBUGCTL_UNKNOWN]].tolist())
        assert debugctl == model.guests[vcpu].processor.debugctl


@pytest.mark.parametrize(("mix", "vendor"), CASES)
def test_seeded_streams(mix: Mix, vendor: int) -> None:
    """On long seeded streams of every mix, each event's story and the final registers are the model's."""
    for seed in range(3):
        check(random_stream(seed, 1500, mix), mix, vendor)


@pytest.mark.parametrize(("mix", "vendor"), CASES)
def test_every_kind_and_mark(mix: Mix, vendor: int) -> None:
    """With events of every kind, unknown operands and MOVs that did not retire, the story is the model's."""
    mix = replace(mix, nested=False)
    for seed in range(2):
        check(decorated(random_stream(seed, 700, mix), seed, computed=mix.computed), mix, vendor)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), vendor=st.sampled_from(VENDORS), computed=st.booleans(), whole=st.booleans())
def test_shrinking_streams(data: st.DataObject, vendor: int, computed: bool, whole: bool) -> None:
    """On streams that shrink when they fail, with any groups of events left out, nothing differs."""
    base = _EVERYTHING[vendor] if whole else Mix()
    features = replace(
        base, computed=computed, rtm=data.draw(st.booleans()), bus_lock=data.draw(st.booleans())
    )
    mix = replace(data.draw(mixes(features)), rtm=features.rtm, bus_lock=features.bus_lock)
    check(data.draw(streams(mix)), mix, vendor)


def test_outcomes_are_the_reference() -> None:
    """The level REFERENCE returns the leading reference's story under the number of lanes."""
    mix = Mix.everything("vmx")
    events = random_stream(11, 500, mix)
    told = second_model(mix).tell(events_of(events))
    ours = outcomes(engine_for(mix, "kvm-6.14").feed(events, REFERENCE), lane=1)
    assert ours.stories == [int(one.story) for one in told]
    shown = [value if story in SHOWING else 0 for story, value in zip(ours.stories, ours.values, strict=True)]
    assert ours.values == shown
    assert [v & ~t.undefined_dr6 for v, t in zip(ours.values, told, strict=True)] == [
        t.value & ~t.undefined_dr6 for t in told
    ]


def _recorded(model: SecondModel, events: EventColumns) -> tuple[int, list[int], int]:
    """Return the recorded reads, the events of those that the model reads otherwise, contradictions."""
    reads, disagreeing, contradictions = 0, [], 0
    for at, one in enumerate(events_of(events)):
        if one.marks & Mark.RETIRED:
            guest = copy.deepcopy(model.guests[one.vcpu])
            attempt = guest.take(one._replace(marks=one.marks & ~Mark.RETIRED))
            contradictions += attempt.story in EXCEPTIONS
        told = model.take(one)
        if one.marks & Mark.VALUE_EXPECTED and told.story == Story.READ:
            reads += 1
            wide = 0xFFFF_FFFF if one.modes & Mode.OPERAND_32 else ~0
            if one.kind == EventKind.RDMSR:
                wide = debug_control.KEPT
            if (told.value ^ one.value) & ~told.undefined_dr6 & wide:
                disagreeing.append(at)
    return reads, disagreeing, contradictions


@pytest.mark.parametrize("vendor", VENDORS)
def test_recorded_values_check_the_reference(vendor: int) -> None:
    """Recorded reads are counted, those that disagree too, and the first of them is named."""
    mix = Mix(computed=False)
    events = random_stream(3, 4000, mix)
    reads, disagreeing, contradictions = _recorded(second_model(mix, vendor), events)
    engine = engine_for(mix, vendor=vendor)
    engine.feed(events, REFERENCE)
    found = engine.report().references[0]
    assert reads > 100
    assert len(disagreeing) > 10
    assert contradictions > 3
    assert (found.recorded_reads, found.disagreements) == (reads, len(disagreeing))
    assert found.contradictions == contradictions
    assert found.first_disagreement.event == disagreeing[0]


PAYLOAD: Final = 0xFFFF_4FF1


@pytest.mark.parametrize(
    ("events", "disagreements", "without_payloads"),
    [
        # Without the payload every DR6 read after a recorded #DB is wrong.
        ([event(EventKind.EXCEPTION, selector=1, value=PAYLOAD), "read"], 0, 0),
        # A value that is not known leaves undefined bits, which agree with anything.
        ([event(EventKind.EXCEPTION, selector=1, marks=UNKNOWN), "read"], 0, 0),
        # A write in between makes the read independent of the payload.
        ([event(EventKind.EXCEPTION, selector=1, value=PAYLOAD), set_dr(6, PAYLOAD), "read"], 0, 1),
        (["read"], 1, 0),
    ],
)
def test_payloads_of_recorded_exceptions(
    events: list[Row | str], disagreements: int, without_payloads: int
) -> None:
    """A recorded #DB's payload is what later reads show; what they were without is counted beside."""
    read = get_dr(6, marks=int(Mark.VALUE_EXPECTED))._replace(value=PAYLOAD)
    rows = [read if isinstance(one, str) else one for one in events]
    found = run(stream(rows), computed=False).references[0]
    assert (found.recorded_reads, found.recorded_dr6_reads) == (1, 1)
    assert (found.disagreements, found.agreements_without_payloads) == (disagreements, without_payloads)


SHOWS: Final = (
    # A MOV DR that did not retire shows nothing, changes nothing, and did not fault.
    ([set_dr(0, 5, marks=NOT_RETIRED), get_dr(0)], [(0, 0), (1, 0)]),
    ([set_dr(7, 0x2400), get_dr(0, marks=NOT_RETIRED), get_dr(0, marks=IF_FAULT)], [(0, 0), (0, 0), (7, 0)]),
    # One whose operand is not known leaves the register as it is, whatever the value column holds.
    ([set_dr(0, 5), set_dr(0, 9, marks=UNKNOWN), get_dr(0)], [(0, 0), (0, 0), (1, 5)]),
    (
        [set_dr(0, 1 << 40), set_dr(0, 0, marks=UNKNOWN, modes=int(Mode.OPERAND_32)), get_dr(0)],
        [(0, 0), (0, 0), (1, 1 << 40)],
    ),
    ([set_dr(7, 1 << 32, marks=UNKNOWN), get_dr(7)], [(0, 0), (1, 0x400)]),
    # What is staged waits for the next host control; a reset is none.
    ([*staged(db0=5), event(EventKind.RESET), event(EventKind.SET_DEBUGREGS), get_dr(0)], [(1, 5)]),
    # A condition refers to the last unconditional attempt of the same vCPU.
    ([get_dr(0, modes=3), cpuid(marks=IF_FAULT), cpuid(marks=IF_OK)], [(0, 0), (7, 0)]),
    ([fetch(0x40), cpuid(marks=IF_FAULT), cpuid(marks=IF_OK)], [(7, 0), (0, 0)]),
    # The host sets what a write would have set.
    ([*set_debugregs(db0=7, dr6=0, dr7=0xFFFF_DFFF), get_dr(6), get_dr(7)], [
        (1, 0xFFFF_0FF0), (1, 0xFFFF_0FFF),
    ]),
)  # fmt: skip


@pytest.mark.parametrize("vendor", [VMX, SVM])
@pytest.mark.parametrize(("rows", "ends"), SHOWS)
def test_small_streams(rows: list[Row], ends: list[tuple[int, int]], vendor: int) -> None:
    """What random streams do not hold: each ends with the stories and values in the table."""
    events = stream(rows)
    one = reference_of(Mix(vcpus=1), vendor)
    truth = one.run(complete(events), 0, leading=None)
    shown = np.where(np.isin(truth.stories, SHOWING), truth.values, 0)
    told = list(zip(truth.stories.tolist(), shown.tolist(), strict=True))
    assert told[len(told) - len(ends) :] == ends


def test_second_model_takes_the_same_events() -> None:
    """The second model reads events from columns as they are; a wrong reading would compare nothing."""
    rows = [set_dr(3, 9, vcpu=1, modes=3), cpuid(marks=IF_OK)]
    assert list(events_of(stream(rows))) == [
        Event(1, 3, 3, 0, 1, 0, 9),
        Event(int(EventKind.CPUID), marks=IF_OK),
    ]
