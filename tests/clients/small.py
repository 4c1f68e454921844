"""The small session that every client runs: what it sends, and what comes of it when our guest sends it.

It has every column, values above 2^53, three vCPUs on two physical CPUs, three lanes, and all outcomes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final
from zlib import crc32

from google.protobuf import json_format

from exitlab.events import EventColumns
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.own_policies import NO_OWN
from guest_svc.stream import EventStream
from tests.contract.wire import plain_request
from tests.model.streams import Mix, random_stream

COUNT: Final = 300
BATCHES: Final = (1, 40, 9, 100, 70, 80)  # events in each
POLICIES: Final = ("kvm-6.14", "swap-each-entry", "hyperplatform")
VMX: Final = policy_pb2.VENDOR_VMX
_MIX: Final = Mix()
_SEED: Final = 3


@dataclass(frozen=True)
class Story:
    """What a client was told of the reference: how many outcomes, and digests of stories and story values."""

    events: int = 0
    stories: int = 0
    values: int = 0

    def after(self, part: outcome_pb2.OutcomePart) -> "Story":
        """Return the story with another part of it; parts of lanes are left out."""
        if part.lane != len(POLICIES):
            return self
        values = b"".join(value.to_bytes(8, "little") for value in part.story_values)
        events = self.events + part.event_count
        return Story(events, crc32(part.stories, self.stories), crc32(values, self.values))


Ran = tuple[bytes, Story]  # the report's bytes, and the story


@cache
def small_events() -> EventColumns:
    """Return the events."""
    return random_stream(_SEED, COUNT, _MIX)


def small_config() -> hypervisor_pb2.SessionConfig:
    """Return what the session runs."""
    return hypervisor_pb2.SessionConfig(
        lanes=[NO_OWN.lane(policy, VMX) for policy in POLICIES],
        columns=[int(column) for column in small_events().declared],  # type: ignore[misc]  # stubs want their own enum
        vcpus=_MIX.vcpus,
        physical_cpus=_MIX.physical_cpus,
        initial_physical_cpus=_MIX.initial_physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=VMX,
        outcome_level=outcome_pb2.OUTCOME_LEVEL_FULL,
        label="a small session",
    )


def batches(sizes: Sequence[int] = BATCHES) -> Iterator[EventColumns]:
    """Go through the events in batches."""
    start = 0
    for size in sizes:
        yield small_events().rows(start, start + size)
        start += size


def config_line() -> str:
    """Return the config as a line of JSON."""
    return json.dumps(json_format.MessageToDict(small_config(), preserving_proto_field_name=True)) + "\n"


def batch_lines() -> list[str]:
    """Return each batch as a line of JSON: a list of events in plain form."""
    lines = []
    for batch in batches():
        request = json_format.MessageToDict(plain_request(batch, 0), preserving_proto_field_name=True)
        lines.append(json.dumps(request["events"]["events"]) + "\n")
    return lines


def run_by_guest(address: str) -> Ran:
    """Return the report's bytes and the story when the guest of this project runs the session."""
    told = [Story()]
    with Hypervisor(address) as hypervisor:
        session = hypervisor.create_session(small_config())
        columns = small_events().declared
        with EventStream(
            hypervisor, session, columns, lambda part: told.append(told[-1].after(part))
        ) as stream:
            for batch in batches():
                stream.send(batch)
            stream.finish()
        return hypervisor.priced(session.session_id, ()).report, told[-1]
