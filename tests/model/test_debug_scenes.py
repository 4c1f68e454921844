"""What the groups of a mix that are off by default reach: steps, held hits, a debugger, nested guests."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlab.events import FETCH_END, DebuggerControl, EventColumns, EventKind, Mark, Mode

from .second_model import MOV_DR, VENDORS, Event, SecondModel, Story, Told, events_of
from .streams import Mix, mixes, random_stream, streams

EVERYTHING: Final = Mix.everything()
READS: Final = (EventKind.MOV_FROM_DR, EventKind.RDMSR)  # of a register that shows


def _tell(columns: EventColumns, mix: Mix, vendor: str) -> list[Told]:
    """Return the second model's story of a stream."""
    return SecondModel(mix.vcpus, vendor).tell(events_of(columns))


def _walk(vendor: str, seeds: int, mix: Mix = EVERYTHING) -> Iterator[tuple[SecondModel, Event, Told]]:
    """Yield each event of some streams with the model after it and what it told."""
    for seed in range(seeds):
        model = SecondModel(mix.vcpus, vendor)
        for event in events_of(random_stream(seed, 400, mix)):
            yield model, event, model.take(event)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_trap_flag_ends_instructions_only(vendor: str) -> None:
    """What reads a register never has TF; its end does, and follows it directly."""
    before: dict[int, Event] = {}
    ends = 0
    for _, event, _ in _walk(vendor, 40):
        assert not (event.kind in READS and event.modes & Mode.TF)
        if event.kind == EventKind.FETCH and event.arg == FETCH_END:
            assert before[event.vcpu].kind in READS
            ends += 1
        before[event.vcpu] = event
    assert ends > 100


@pytest.mark.parametrize("vendor", VENDORS)
def test_steps_and_held_hits_come_in_every_way(vendor: str) -> None:
    """Steps come alone and with hits; held hits come as traps, as faults, with steps and are lost."""
    seen: Counter[str] = Counter()
    held: dict[tuple[int, int], bool] = {}
    for model, event, told in _walk(vendor, 200):
        key = (id(model), event.vcpu)
        causes = told.value & 0x400F
        if told.story == Story.DB_TRAP and event.modes & Mode.TF:
            seen["step"] += causes == 0x4000
            seen["step and hit"] += causes > 0x4000
        if held.pop(key, False) and told.story != Story.NOTHING:
            way = Story(told.story).name
            seen[f"held, then {way} at {EventKind(event.kind).name}"] += 1
            seen[f"held, then {way}"] += 1
        held[key] = bool(model.guests[event.vcpu].held.certain)
    for way in ("step", "step and hit", "held, then DB_TRAP", "held, then DB_FAULT", "held, then BP"):
        assert seen[way] >= 10, way
    for kind in ("INT1", "INTN", "MOV_SS", "READ", "FETCH"):
        assert seen[f"held, then DB_TRAP at {kind}"] >= 1, kind
    assert seen["held, then READ"] + seen["held, then GP"] + seen["held, then UD"] >= 10


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_debugger_meets_whatever_a_guest_does(vendor: str) -> None:
    """Every control bit is set and not, with and without a nested guest, and hides what it can hide."""
    controls: Counter[DebuggerControl] = Counter()
    under: Counter[EventKind] = Counter()
    nested = injected = refused = 0
    for model, event, told in _walk(vendor, 100):
        processor = model.guests[event.vcpu].processor
        if event.kind == EventKind.HOST_DEBUGGER:
            controls.update(bit for bit in DebuggerControl if event.selector & bit)
            injected += told.story in (Story.DB_FAULT, Story.BP)
        elif processor.debugger.takes_debug_exceptions:
            under[EventKind(event.kind)] += 1
            nested += processor.nested is not None
            is_read = event.kind == EventKind.MOV_FROM_DR and told.story == Story.NOTHING
            refused += is_read and not event.marks & Mark.RETIRED
    guests_own = {kind for kind in EVERYTHING.kinds if kind <= EventKind.EXCEPTION}
    assert guests_own <= set(under)
    assert min(controls[bit] for bit in DebuggerControl) >= 50
    assert min(nested, injected, refused) >= 20


@pytest.mark.parametrize("vendor", VENDORS)
def test_nested_guests_are_left_in_every_way(vendor: str) -> None:
    """All 16 sets of controls occur; MOV DR, debug exceptions, VMRUN and L1 itself leave."""
    controls: set[int] = set()
    left: Counter[EventKind] = Counter()
    inside: Counter[EventKind] = Counter()
    for model, event, told in _walk(vendor, 200):
        if event.kind == EventKind.VMRUN:
            controls.add(event.value)
        if told.story == Story.VMEXIT:
            left[EventKind(event.kind)] += 1
        elif model.guests[event.vcpu].processor.nested is not None:
            inside[EventKind(event.kind)] += 1
    assert controls == set(range(16))
    for kind in (*MOV_DR, EventKind.VMRUN, EventKind.VMEXIT_TO_L1, EventKind.READ, EventKind.FETCH):
        assert left[kind] >= 3, kind.name
    assert {kind for kind in EVERYTHING.kinds if kind <= EventKind.EXCEPTION} <= set(inside)


HOSTS_OWN: Final = (
    *(EventKind.HOST_DEBUGGER, EventKind.SET_DEBUGREGS, EventKind.GET_DEBUGREGS, EventKind.RESET),
    *(EventKind.INIT, EventKind.HOST_BREAKPOINTS, EventKind.SCHED_OUT, EventKind.SCHED_IN),
)


def test_a_host_takes_over_in_the_middle_of_an_access() -> None:
    """After a MOV DR that did not retire comes whatever a host does, or the guest's next access."""
    after: Counter[EventKind] = Counter()
    for seed in range(250):
        last: dict[int, Event] = {}
        for event in events_of(random_stream(seed, 400, EVERYTHING)):
            before = last.get(event.vcpu)
            if event.kind == EventKind.STAGE:
                continue
            if before and before.kind in MOV_DR and before.marks & Mark.NOT_RETIRED:
                after[EventKind(event.kind)] += 1
            last[event.vcpu] = event
    for kind in (*HOSTS_OWN, *MOV_DR):
        assert after[kind] >= 3, kind.name


def test_the_vendors_differ_where_they_should() -> None:
    """One stream tells the vendors apart by INT1, code breakpoints in a shadow, and MOV DR."""
    differing: Counter[EventKind] = Counter()
    for seed in range(100):
        columns = random_stream(seed, 400, EVERYTHING)
        told = [_tell(columns, EVERYTHING, vendor) for vendor in VENDORS]
        for event, one, other in zip(events_of(columns), *told, strict=True):
            if one.story != other.story:
                differing[EventKind(event.kind)] += 1
    for kind in (EventKind.INT1, EventKind.FETCH, *MOV_DR):
        assert differing[kind] >= 10, kind.name


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_stream_for_one_vendor_has_a_meaning_there(vendor: str) -> None:
    """A mix for one vendor alone makes nested guests too."""
    mix = Mix.everything(vendor)
    assert sum(told.story == Story.VMEXIT for _, _, told in _walk(vendor, 20, mix)) >= 20


@given(st.data(), st.sampled_from(VENDORS))
@settings(max_examples=60, deadline=None)
def test_a_shrunk_stream_has_a_meaning(data: st.DataObject, vendor: str) -> None:
    """With any events and groups left out, the model takes every event that is left."""
    mix = data.draw(mixes(EVERYTHING))
    columns = data.draw(streams(mix))
    assert len(_tell(columns, mix, vendor)) == len(columns)
