"""A client that has no stubs: its messages are made from descriptors, wherever those come from.

It goes step by step: it waits for each block's acknowledgement, and takes its outcomes meanwhile. Half-way it
ends its stream and opens another. Events go as columns, or in plain form.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from queue import SimpleQueue
from typing import Any, Final
from uuid import uuid4
from zlib import crc32

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

PACKAGE: Final = "exitlab.v1"
SERVICE: Final = f"{PACKAGE}.HypervisorService"
# Of each column: field of EventBlock, field of Event, and how struct writes it.
COLUMNS: Final = {
    "COLUMN_KINDS": ("kinds", "kind", "B"),
    "COLUMN_ARGS": ("args", "arg", "B"),
    "COLUMN_MODES": ("modes", "modes", "B"),
    "COLUMN_MARKS": ("marks", "marks", "B"),
    "COLUMN_VCPUS": ("vcpus", "vcpu", "B"),
    "COLUMN_GAP_CYCLES": ("gap_cycles", "gap_cycles", "I"),
    "COLUMN_SELECTORS": ("selectors", "selector", "I"),
    "COLUMN_VALUES": ("values", "value", "Q"),
    "COLUMN_RIPS": ("rips", "rip", "Q"),
}


class DescribedService:
    """The hypervisor's service as a pool of descriptors has it."""

    def __init__(self, channel: grpc.Channel, pool: DescriptorPool) -> None:
        """Look the service up."""
        self._channel = channel
        self._pool = pool
        self._methods: Mapping[str, MethodDescriptor] = pool.FindServiceByName(SERVICE).methods_by_name

    def message(self, name: str, **fields: Any) -> Any:
        """Return a message of the contract."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))(
            **fields
        )

    def number(self, enum: str, name: str) -> int:
        """Return the number of an enum's value."""
        return int(self._pool.FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_name[name].number)

    def call(self, name: str, request: Any) -> Any:
        """Make a call: of a message, or of an iterator of messages where they are streamed."""
        method = self._methods[name]
        answer = message_factory.GetMessageClass(method.output_type)
        kind = self._channel.stream_stream if method.client_streaming else self._channel.unary_unary
        call: Any = kind(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request)


class DescribedSession:
    """A session of such a service; config and events are given in protobuf's JSON form."""

    def __init__(self, service: DescribedService, config_line: str, *, is_plain: bool = False) -> None:
        """Create it."""
        self._is_plain = is_plain
        self._service = service
        config = json_format.ParseDict(json.loads(config_line), service.message("SessionConfig"))
        request = service.message("CreateSessionRequest", request_id=uuid4().hex, config=config)
        self._session_id = service.call("CreateSession", request).session_id
        self._columns = [COLUMNS[name] for name in json.loads(config_line)["columns"]]
        self._crcs = [0] * len(self._columns)
        self._next_event = 0
        self._received = 0
        self.parts: list[Any] = []  # the outcomes

    def run(self, batch_lines: list[str]) -> bytes:
        """Send all batches over two streams, and return the report's bytes."""
        half = len(batch_lines) // 2
        self._stream(batch_lines[:half])
        self._stream(batch_lines[half:])
        request = self._service.message(
            "FinishSessionRequest",
            session_id=self._session_id,
            event_count=self._next_event,
            column_crcs=self._crcs,
        )
        return bytes(self._service.call("FinishSession", request).report)

    def _stream(self, batch_lines: list[str]) -> None:
        requests: SimpleQueue[Any] = SimpleQueue()
        answers = self._service.call("StreamEvents", iter(requests.get, None))
        opening = self._service.message("Open", session_id=self._session_id, received_events=self._received)
        self._put(requests, open=opening)
        opened = next(answers).opened
        assert (opened.next_event, list(opened.column_crcs)) == (self._next_event, self._crcs)
        for line in batch_lines:
            first_event, block = self._next_event, self._block(json.loads(line))
            if self._is_plain:
                plain = {"first_event": first_event, "events": json.loads(line)}
                events = json_format.ParseDict(plain, self._service.message("EventList"))
                self._put(requests, events=events)
            else:
                self._put(requests, block=block)
            self._take_until_applied(answers)
            confirm = self._service.message("ConfirmOutcomes", received_events=self._received)
            self._put(requests, confirm=confirm)
        requests.put(None)
        assert not list(answers)

    def _put(self, requests: "SimpleQueue[Any]", **message: Any) -> None:
        requests.put(self._service.message("StreamEventsRequest", **message))

    def _take_until_applied(self, answers: Iterator[Any]) -> None:
        for answer in answers:
            which = answer.WhichOneof("message")
            if which == "outcomes":
                self.parts.append(answer.outcomes)
                self._received = answer.outcomes.first_event + answer.outcomes.event_count
            elif answer.acknowledgement.applied_events == self._next_event:
                return

    def _block(self, events: list[dict[str, Any]]) -> Any:
        block = self._service.message("EventBlock", first_event=self._next_event, event_count=len(events))
        for place, (name, field, code) in enumerate(self._columns):
            values = [self._value(event, field) for event in events]
            data = struct.pack(f"<{len(values)}{code}", *values)
            self._crcs[place] = crc32(data, self._crcs[place])
            if isinstance(getattr(block, name), bytes):
                setattr(block, name, data)
            else:
                getattr(block, name).extend(values)
        block.column_crcs.extend(self._crcs)
        self._next_event += len(events)
        return block

    def _value(self, event: dict[str, Any], field: str) -> int:
        return (
            self._service.number("EventKind", event["kind"]) if field == "kind" else int(event.get(field, 0))
        )
