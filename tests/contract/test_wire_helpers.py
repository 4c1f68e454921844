"""What is written or reckoned without protobuf and the standard library is what they make of it."""

import zlib

import numpy as np
import pytest

from exitlab.blocks import ColumnCrcs
from exitlab.events import Column, EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2
from exitlab.wire import delimited


@pytest.mark.parametrize("count", [1, 2, 15, 16, 127, 128, 2047, 2048, 300_000])
def test_a_field_is_what_protobuf_writes(count: int) -> None:
    """A packed column and a message in a response, of lengths around those where a varint grows."""
    part = outcome_pb2.OutcomePart(story_values=[7] * count)
    column = delimited(outcome_pb2.OutcomePart.STORY_VALUES_FIELD_NUMBER, (7).to_bytes(8, "little") * count)
    assert part.SerializeToString() == column
    response = hypervisor_pb2.StreamEventsResponse(outcomes=part)
    number = hypervisor_pb2.StreamEventsResponse.OUTCOMES_FIELD_NUMBER
    assert response.SerializeToString() == delimited(number, column)


def test_digests_are_the_standard_librarys() -> None:
    """A column's running digest is the CRC-32 that every language has, over its little-endian bytes."""
    crcs = ColumnCrcs((Column.KINDS, Column.VALUES))
    whole = EventColumns(
        kinds=np.arange(1, 40, dtype=np.uint8), values=np.arange(39, dtype=np.uint64) << np.uint64(40)
    )
    crcs.update(whole.rows(0, 7))
    crcs.update(whole.rows(7, 39))
    values = whole.values
    assert values is not None
    assert crcs.values == (zlib.crc32(whole.kinds.tobytes()), zlib.crc32(values.astype("<u8").tobytes()))
