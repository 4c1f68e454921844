"""Random streams reach what their mix names, keep to it, and have a meaning for the second model."""

from collections import Counter
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitlab.events import (
    COLUMN_DTYPES,
    Column,
    EventColumns,
    EventKind,
    Mark,
)

from .debug_registers import DR6_AT_RESET, GENERAL_DETECT
from .second_model import MOV_DR, VENDORS, SecondModel, Story, Told, events_of
from .streams import Mix, mixes, random_stream, streams
from .vocabulary import PORT_ACCESSES

PLAIN: Final = Mix()
RECORDED: Final = Mix(computed=False, debug_control=True)
EVERYTHING: Final = Mix.everything()
MIXES: Final = {"plain": PLAIN, "recorded": RECORDED, "everything": EVERYTHING}
OWN: Final = frozenset({Story.REGISTERS, Story.BP, Story.VMEXIT})  # stories of the groups off by default
STORIES: Final = {
    "plain": frozenset(Story) - OWN,
    "recorded": frozenset(Story) - OWN - {Story.DB_TRAP},
    "everything": frozenset(Story),
}


def _tell(columns: EventColumns, mix: Mix, vendor: str = "vmx") -> list[Told]:
    """Return the second model's story of a stream."""
    return SecondModel(mix.vcpus, vendor, computed=mix.computed).tell(events_of(columns))


def _count(mix: Mix) -> tuple[Counter[int], Counter[int], int]:
    """Return how often kinds, stories and undefined bits occur over 200 seeds."""
    kinds: Counter[int] = Counter()
    stories: Counter[int] = Counter()
    undefined = 0
    for seed in range(200):
        columns = random_stream(seed, 200, mix)
        told = _tell(columns, mix)
        kinds.update(columns.kinds.tolist())
        stories.update(each.story for each in told)
        undefined += sum(each.undefined_dr6 != 0 for each in told)
    return kinds, stories, undefined


@pytest.mark.parametrize("name", MIXES)
def test_every_kind_and_story_occurs_over_200_seeds(name: str) -> None:
    """A mix makes just the kinds that it names, and every story that they can tell."""
    mix = MIXES[name]
    kinds, stories, undefined = _count(mix)
    assert set(kinds) == mix.kinds
    assert set(stories) == STORIES[name]
    assert min(kinds.values()) >= 25
    assert min(stories.values()) >= 100
    assert undefined >= 100


def _slot_types_that_hit(mix: Mix) -> set[tuple[int, int, int]]:
    """Return (R/W, LEN, event kind) of enabled slots that hit over 60 seeds."""
    types = set()
    for seed in range(60):
        model = SecondModel(mix.vcpus)
        for event in events_of(random_stream(seed, 400, mix)):
            dr7 = model.registers(event.vcpu).dr7
            told = model.take(event)
            if told.story in (Story.DB_FAULT, Story.DB_TRAP) and event.kind not in MOV_DR:
                hits = [slot for slot in range(4) if told.value >> slot & 1 and dr7 >> (2 * slot) & 3]
                fields = [dr7 >> (16 + 4 * slot) for slot in hits]
                types |= {(bits & 3, bits >> 2 & 3, event.kind) for bits in fields}
    return types


def test_every_type_and_length_of_breakpoint_hits() -> None:
    """Over 60 seeds execution, writes, reads and ports hit with every LEN that they can have."""
    data = {(0b01, length, EventKind.WRITE) for length in range(4)}
    data |= {(0b11, length, kind) for length in range(4) for kind in (EventKind.READ, EventKind.WRITE)}
    memory = data | {(0b00, 0b00, EventKind.FETCH)}
    assert _slot_types_that_hit(PLAIN) == memory
    ports = {(0b10, length, kind) for length in range(4) for kind in PORT_ACCESSES}
    assert _slot_types_that_hit(replace(PLAIN, io_breakpoints=True)) == memory | ports


def test_the_same_seed_gives_the_same_stream() -> None:
    """A stream is its seed; another seed is another stream."""
    first, again, other = random_stream(7, 300), random_stream(7, 300), random_stream(8, 300)
    assert list(events_of(first)) == list(events_of(again))
    assert list(events_of(first)) != list(events_of(other))


@given(st.data(), st.sampled_from([PLAIN, RECORDED, replace(EVERYTHING, kicks=False)]))
@settings(max_examples=60, deadline=None)
def test_a_stream_keeps_to_its_mix(data: st.DataObject, base: Mix) -> None:
    """Columns are of one length and their own types, and only the mix's kinds and CPUs occur."""
    mix = data.draw(mixes(base))
    columns = data.draw(streams(mix))
    for column in Column:
        array = columns.column(column)
        assert array is not None
        assert (len(array), array.dtype) == (len(columns), COLUMN_DTYPES[column])
    assert {EventKind(kind) for kind in columns.kinds.tolist()} <= mix.kinds
    assert _cpus_in_use(columns, mix) <= set(range(mix.physical_cpus))


@given(streams(EVERYTHING), st.sampled_from(VENDORS))
@settings(max_examples=60, deadline=None)
def test_registers_keep_their_fixed_bits(columns: EventColumns, vendor: str) -> None:
    """DR6 and DR7 read their fixed bits at all times, and no #DB but that of INT1 leaves GD set."""
    model = SecondModel(EVERYTHING.vcpus, vendor)
    for event in events_of(columns):
        told = model.take(event)
        registers = model.registers(event.vcpu)
        assert registers.dr6 & ~0xE00F == DR6_AT_RESET
        assert registers.dr7 & ~0xFFFF_2BFF == 0x400
        is_plain = told.story in (Story.DB_FAULT, Story.DB_TRAP) and event.kind != EventKind.INT1
        assert not (is_plain and registers.dr7 & GENERAL_DETECT)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_vcpus_and_the_host_do_not_show_in_a_vcpus_story(mix: Mix) -> None:
    """A vCPU's story is the same when other vCPUs, scheduling and host breakpoints are taken out."""
    mix = replace(mix, outside=False, debugger=False, nested=False)  # nobody else uses what is staged
    unseen = {EventKind.SCHED_IN, EventKind.SCHED_OUT, EventKind.EXTERNAL_INTERRUPT, EventKind.STAGE}
    unseen |= {EventKind.HOST_BREAKPOINTS}
    for seed in range(20):
        events = list(events_of(random_stream(seed, 200, mix)))
        told = SecondModel(mix.vcpus, computed=mix.computed).tell(events)
        for vcpu in range(mix.vcpus):
            own = [at for at, event in enumerate(events) if event.vcpu == vcpu and event.kind not in unseen]
            alone = SecondModel(mix.vcpus, computed=mix.computed).tell(events[at] for at in own)
            assert alone == [told[at] for at in own]


def _cpus_in_use(columns: EventColumns, mix: Mix) -> set[int]:
    """Return the physical CPUs that guests ran on, failing where one runs that is scheduled out."""
    where: dict[int, int | None] = dict(enumerate(mix.initial_physical_cpus))
    used = set()
    for event in events_of(columns):
        if event.kind == EventKind.SCHED_IN:
            where[event.vcpu] = event.selector
        elif event.kind == EventKind.SCHED_OUT:
            where[event.vcpu] = None
        elif event.kind <= EventKind.VMEXIT_TO_L1:
            cpu = where[event.vcpu]
            assert cpu is not None
            used.add(cpu)
    return used


@pytest.mark.parametrize("seed", range(10))
def test_a_guest_runs_only_where_it_was_put(seed: int) -> None:
    """No guest event follows SCHED_OUT without SCHED_IN, and CPUs are those of the mix."""
    unshared = Mix(scheduling=False, kicks=False)
    for mix in (*MIXES.values(), Mix(kicks=False), Mix(scheduling=False), unshared):
        assert _cpus_in_use(random_stream(seed, 400, mix), mix) <= set(range(mix.physical_cpus))


def test_recorded_reads_carry_the_value_mostly() -> None:
    """Of the reads that are marked expected and happen, most carry what the model reads, some do not."""
    right = wrong = 0
    for seed in range(20):
        columns = random_stream(seed, 200, RECORDED)
        for event, told in zip(events_of(columns), _tell(columns, RECORDED), strict=True):
            if event.marks & Mark.VALUE_EXPECTED and told.story == Story.READ:
                right += event.value == told.value
                wrong += event.value != told.value
    assert right > 4 * wrong > 0


def test_a_group_that_is_off_leaves_no_trace() -> None:
    """Marks and modes of groups that are left out do not occur."""
    for base in (PLAIN, EVERYTHING):
        mix = replace(base, handlers=False, retired=False, class_override=False, debug_extensions=False)
        mix = replace(mix, user_mode=False, operand_32=False, resume_flag=False, steps=False, mov_ss=False)
        mix = replace(mix, not_retired=False, debug_control=False)
        for seed in range(10):
            events = events_of(random_stream(seed, 200, mix))
            assert not any(event.marks or event.modes for event in events)
