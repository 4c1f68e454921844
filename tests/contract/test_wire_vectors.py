"""Bytes on the wire mean what they meant, and what v1 does not know is kept."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from exitlab.v1 import events_pb2, guest_pb2, hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2

from .frozen import frozen_files, pool_of
from .vectors import Row, lacking_rows, message_class, message_types, read_vectors, says

ROWS = read_vectors()
MODULES = (events_pb2, outcome_pb2, policy_pb2, report_pb2, hypervisor_pb2, guest_pb2)
CLASSES: dict[str, type[Message]] = {
    described.full_name: message_class(described)
    for module in MODULES
    for described in module.DESCRIPTOR.message_types_by_name.values()
}


def numbers_in(value: Any) -> list[int]:
    """Return the numbers that a JSON form holds as text."""
    if isinstance(value, dict):
        return numbers_in(list(value.values()))
    if isinstance(value, list):
        return [number for part in value for number in numbers_in(part)]
    return [int(value)] if isinstance(value, str) and value.isdecimal() else []


@pytest.mark.parametrize("row", ROWS, ids=[row["what"] for row in ROWS])
def test_a_vector_is_read_and_written(row: Row) -> None:
    """Bytes give the message, the message gives the bytes, and so does its JSON form."""
    message = CLASSES[row["message"]].FromString(bytes.fromhex(row["hex"]))
    assert says(message) == row["json"]
    written = row.get("written", row["hex"])
    assert message.SerializeToString(deterministic=True).hex() == written
    made = json_format.ParseDict(row["json"], CLASSES[row["message"]]())
    assert made.SerializeToString(deterministic=True).hex() == row.get("plain", row["hex"])


@pytest.mark.parametrize("row", ROWS, ids=[row["what"] for row in ROWS])
def test_a_vector_is_read_by_an_older_client(row: Row) -> None:
    """A client frozen at v1 reads the same, and gives the same back."""
    types = pool_of(frozen_files())
    message = message_class(types.FindMessageTypeByName(row["message"])).FromString(bytes.fromhex(row["hex"]))
    assert says(message) == row["json"]
    assert message.SerializeToString(deterministic=True).hex() == row.get("written", row["hex"])


def test_every_field_of_every_message_has_a_vector() -> None:
    """What is on the wire is in the vectors: a field that is added needs one."""
    files = frozen_files()
    types = list(message_types(pool_of(files), [file.name for file in files]))
    lacking = [row["what"] for row in lacking_rows(types, ROWS)]
    assert not lacking, f"no vectors of {lacking}; `make contract` adds them"
    assert {row["message"] for row in ROWS} == {described.full_name for described in types} == CLASSES.keys()


def test_the_vectors_are_telling() -> None:
    """They hold numbers above 2^53, what v1 does not know, and forms that Python never writes."""
    assert len([row for row in ROWS if max(numbers_in(row["json"]), default=0) > 2**53]) > 20
    unknown = [row for row in ROWS if "written" not in row and "plain" in row]
    assert len(unknown) >= 4
    assert len([row for row in ROWS if "written" in row]) >= 10
    assert len({row["what"] for row in ROWS}) == len(ROWS)
