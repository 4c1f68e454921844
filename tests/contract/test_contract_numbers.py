"""The hand-written numbers of exitlab.events are the contract's, and reports hold counts only."""

import re
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from exitlab.blocks import EVENT_FIELDS
from exitlab.events import (
    COLUMN_DTYPES,
    COLUMN_NAMES,
    MAX_VCPUS,
    STAGE_DR6,
    STAGE_DR7,
    STATE_CR4_DE,
    Column,
    EventKind,
    Mark,
    Mode,
)
from exitlab.stories import EXCEPTIONS, FAULTS, Story
from exitlab.v1 import events_pb2, outcome_pb2, report_pb2
from hypervisor_svc.engine.vocabulary import Action, Deviation, Input, Quirk

PROTO_TEXT = (Path(events_pb2.__file__).parent / "events.proto").read_text()
ITEM_BYTES = {FieldDescriptor.TYPE_FIXED32: 4, FieldDescriptor.TYPE_FIXED64: 8}
VOLATILE_WORDS = {"id", "ids", "time", "times", "timestamp", "ns", "us", "ms", "seconds", "label"} | {
    *("epoch", "incarnation", "reconnects", "blocks", "address", "peer")
}
# The words of the contract's comments on the two bit fields.
MODE_WORDS = {
    "CPL": Mode.CPL,
    "TF": Mode.TF,
    "RF": Mode.RF,
    "interrupt shadow": Mode.INTERRUPT_SHADOW,
    "operand of 32 bits": Mode.OPERAND_32,
}
MARK_WORDS = {
    "value unknown": Mark.VALUE_UNKNOWN,
    "value expected": Mark.VALUE_EXPECTED,
    "known to have retired": Mark.RETIRED,
    "not retired": Mark.NOT_RETIRED,
    "only if the last unconditional event of this vCPU faulted": Mark.IF_FAULT,
    "only if it did not": Mark.IF_OK,
    "class override": Mark.CLASS,
}

PROTOS = Path(__file__).parents[2] / "protos"


def comment_above(field: str) -> str:
    """Return the comment on a field of Event as one line."""
    comment: list[str] = []
    for line in PROTO_TEXT[PROTO_TEXT.index("message Event {") :].splitlines():
        if re.search(rf"\b{field} = \d+;", line):
            return " ".join(comment)
        comment = [*comment, line.strip().removeprefix("// ")] if "//" in line else []
    raise LookupError(field)


def fields_below(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Yield every field of a message and of the messages in it."""
    seen, waiting = {message.full_name}, [message]
    while waiting:
        for field in waiting.pop().fields:
            yield field
            if field.message_type is not None and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                waiting.append(field.message_type)


@pytest.mark.parametrize(
    ("here", "contract", "prefix"),
    [(EventKind, events_pb2.EventKind, "EVENT_KIND_"), (Column, events_pb2.Column, "COLUMN_")],
)
def test_the_enums_are_the_contracts(here: type[IntEnum], contract: EnumTypeWrapper, prefix: str) -> None:
    """Names and numbers are equal, and the number 0 alone has no name here."""
    numbers = {prefix + member.name: member.value for member in here}
    assert {**numbers, f"{prefix}UNSPECIFIED": 0} == dict(contract.items())


@pytest.mark.parametrize(
    ("field", "here", "words"), [("modes", Mode, MODE_WORDS), ("marks", Mark, MARK_WORDS)]
)
def test_the_bits_are_the_contracts(field: str, here: type[IntFlag], words: dict[str, IntFlag]) -> None:
    """Each bit that a comment of the contract gives has its name here, and there is no other."""
    text = comment_above(field).split(": ", 1)[1].split("(")[0]
    found = re.findall(r"(\d)(?:-(\d))? ([^,.]+?)\s*(?:[,.]|$)", text)
    bits = {word: sum(1 << bit for bit in range(int(low), int(high or low) + 1)) for low, high, word in found}
    assert bits == {word: flag.value for word, flag in words.items()}
    assert sum(bits.values()) == sum(flag.value for flag in here.__members__.values())


def test_kinds_take_one_byte_on_the_wire() -> None:
    """Kinds are contiguous from 1 and below 128, where a varint has two bytes."""
    assert [kind.value for kind in EventKind] == list(range(1, len(EventKind) + 1))
    assert max(EventKind) < 128


def test_columns_are_fields_of_a_block_and_of_an_event() -> None:
    """A column's name and size are its field's in EventBlock; it has one field in Event."""
    block = events_pb2.EventBlock.DESCRIPTOR.fields_by_name
    sizes = {name: ITEM_BYTES.get(block[name].type, 1) for name in COLUMN_NAMES}
    assert sizes == {COLUMN_NAMES[column - 1]: dtype.itemsize for column, dtype in COLUMN_DTYPES.items()}
    names = [field.name for field in block.values()]
    assert names == ["first_event", "event_count", *COLUMN_NAMES, "column_crcs"]
    event = [field.name for field in events_pb2.Event.DESCRIPTOR.fields]
    assert event == ["kind", *(EVENT_FIELDS[column] for column in list(Column)[1:])]


def test_the_numbers_in_comments_are_those_of_exitlab_events() -> None:
    """STAGE's slots, STATE's argument and the number of vCPUs stand in the contract as here."""
    assert f"slot (0-3 DR0-3, {STAGE_DR6} DR6, {STAGE_DR7} DR7)" in PROTO_TEXT
    assert f"arg = what ({STATE_CR4_DE}: CR4.DE)" in PROTO_TEXT
    assert comment_above("vcpu") == f"The vCPU; 0 to {MAX_VCPUS - 1}."


@pytest.mark.parametrize("contract", [outcome_pb2.Story, report_pb2.LeakKind])
def test_what_is_kept_as_a_byte_fits_one(contract: EnumTypeWrapper) -> None:
    """No story and no kind of leak has a number above 255."""
    assert len(contract.values()) > 1
    assert all(0 <= number <= 255 for number in contract.values())


def test_a_report_is_a_function_of_its_events() -> None:
    """A report holds no map, no fraction, no id, no time, and nothing about how a stream was cut."""
    fields = list(fields_below(report_pb2.Report.DESCRIPTOR))
    assert {"dr_writes", "story_digest", "window_sizes", "dr6"} <= {field.name for field in fields}
    maps = [f.full_name for f in fields if f.message_type and f.message_type.GetOptions().map_entry]
    fractions = [f.full_name for f in fields if f.cpp_type in (f.CPPTYPE_DOUBLE, f.CPPTYPE_FLOAT)]
    volatile = [f.full_name for f in fields if VOLATILE_WORDS & set(f.name.split("_"))]
    assert (maps, fractions, volatile) == ([], [], [])


def test_figures_hold_integers() -> None:
    """Figures and prices hold no map and no fraction either."""
    messages = (report_pb2.LaneFigures.DESCRIPTOR, report_pb2.PriceList.DESCRIPTOR)
    fields = [field for message in messages for field in fields_below(message)]
    assert len(fields) > 25
    assert all(f.cpp_type not in (f.CPPTYPE_DOUBLE, f.CPPTYPE_FLOAT) for f in fields)
    assert not any(f.message_type and f.message_type.GetOptions().map_entry for f in fields)


def test_the_contract_lists_the_words_of_policy_tables() -> None:
    """A client without our code finds every action, quirk and deviation in the comments, in order."""
    text = (PROTOS / "exitlab" / "v1" / "policy.proto").read_text(encoding="utf-8")
    flat = " ".join(text.replace("//", " ").split())
    for words in (Action, Quirk, Deviation, Input):
        names = [word.name or "" for word in words]
        if words is Input:
            names = [name.lower() for name in names]
        assert ", ".join(names) in flat


def test_stories_are_the_contracts() -> None:
    """What an event can show has the same name and number for a guest as on the wire."""
    theirs = {name.removeprefix("STORY_"): number for name, number in outcome_pb2.Story.items()}
    theirs["NOTHING"] = theirs.pop("UNSPECIFIED")
    assert {story.name: story.value for story in Story} == theirs
    assert FAULTS < EXCEPTIONS
