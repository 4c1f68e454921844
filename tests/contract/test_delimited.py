"""Fields that are put around content by hand are what protobuf writes."""

import pytest

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
