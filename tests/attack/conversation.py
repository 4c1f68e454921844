"""One session of a hostile guest, and what has to be left of it after everything that it says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import grpc
import numpy as np
from hypothesis import strategies as st

from exitlab.blocks import ColumnCrcs, encode_block
from exitlab.v1 import events_pb2, hypervisor_pb2
from tests.attack.guest import Stream, message_bytes
from tests.attack.target import Surprise, Target, checked
from tests.attack.wild import near

RIGHT: Final = ("block", "confirm")
WRONG: Final = (
    *(
        "replay",
        "gap",
        "digest",
        "kind",
        "event",
        "columns",
        "confirm too many",
        "empty",
        "open",
        "no message",
    ),
    *("unknown", "epoch", "received too many"),
)
_REASONS: Final = {
    "replay": "ALREADY_APPLIED",
    "gap": "GAP",
    "digest": "DIGEST_MISMATCH",
    "kind": "BAD_BLOCK",
    "event": "BAD_EVENT",
    "columns": "BAD_BLOCK",
    "confirm too many": "RECEIVED_TOO_MANY",
    "empty": "EMPTY_MESSAGE",
    "open": "ALREADY_OPEN",
    "no message": "BAD_BLOCK",
}
_OPENINGS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "unknown": ({"session_id": "guess"}, "SESSION_NOT_FOUND"),
    "epoch": ({"expected_epoch": 1 << 40}, "EPOCH_MISMATCH"),
    "received too many": ({"received_events": 1 << 40}, "RECEIVED_TOO_MANY"),
}
_KIND: Final = events_pb2.EVENT_KIND_MOV_TO_DR
_SENTINEL: Final = message_bytes(open=hypervisor_pb2.Open())  # is always refused, so every stream ends


@st.composite
def wild_messages(draw: st.DrawFn, target: Target) -> bytes:
    """Draw the bytes of a message that is near one of each kind."""
    pb, block = hypervisor_pb2, hypervisor_pb2.StreamEventsRequest()
    block.ParseFromString(encode_block(target.blocks[0].rows(0, 3), 0, ColumnCrcs(target.source.columns)))
    plain = events_pb2.EventList(events=[events_pb2.Event(kind=_KIND, arg=7), events_pb2.Event(kind=_KIND)])
    near_to = draw(
        st.sampled_from(
            [
                block,
                pb.StreamEventsRequest(events=plain),
                pb.StreamEventsRequest(confirm=pb.ConfirmOutcomes(received_events=3)),
                pb.StreamEventsRequest(open=pb.Open(session_id=target.texts[0])),
            ]
        )
    )
    return draw(near(near_to, target.texts))


class Conversation:
    """A session, and where it should stand."""

    def __init__(self, target: Target) -> None:
        """Create the session; nothing is sent yet."""
        self._target = target
        self._session_id = target.guest.create(target.source.config)
        self._crcs, self._at, self._blocks = ColumnCrcs(target.source.columns), 0, 0
        self._is_known = True  # what it holds is the source's first blocks

    def say(self, moves: list[Any]) -> None:
        """Send messages on a stream of their own; the first that is refused ends it."""
        fields, expected = self._opening(moves)
        stream = Stream(self._target.guest)
        stream.put(message_bytes(open=hypervisor_pb2.Open(**fields)))
        for move in [] if expected else moves:
            if isinstance(move, bytes):
                self._say_wildly(stream, move)
                return
            expected = self._put(stream, move)
            if expected:
                break
        self._end(stream, expected or "ALREADY_OPEN")

    def _opening(self, moves: list[Any]) -> tuple[dict[str, Any], str]:
        fields: dict[str, Any] = {"session_id": self._session_id, "received_events": self._at}
        for move in moves:
            if move in _OPENINGS:
                changes, reason = _OPENINGS[move]
                return fields | changes, reason
        return fields, ""

    def _put(self, stream: Stream, move: str) -> str:
        """Send a message, right or wrong; return the reason that it is to be refused with, or nothing."""
        blocks = self._target.blocks
        if move == "block" and self._is_known and self._blocks < len(blocks):
            stream.put(encode_block(blocks[self._blocks], self._at, self._crcs))
            self._at += len(blocks[self._blocks])
            self._blocks += 1
        elif move == "confirm":
            stream.put(message_bytes(confirm=hypervisor_pb2.ConfirmOutcomes(received_events=self._at)))
        elif move in _REASONS and (move != "replay" or self._at):
            stream.put(self._wrong(move))
            return _REASONS[move]
        return ""

    def _wrong(self, move: str) -> bytes:
        pb, crcs = hypervisor_pb2, ColumnCrcs(self._target.source.columns, self._crcs.values)
        others: dict[str, bytes] = {
            "confirm too many": message_bytes(confirm=pb.ConfirmOutcomes(received_events=self._at + 1)),
            "empty": b"",
            "open": _SENTINEL,
            "no message": b"\xff\xff",
        }
        if move in others:
            return others[move]
        events = self._target.blocks[0].rows(0, 2)
        if move == "event":
            events = replace(events, args=np.full(2, 255, np.uint8))
        request = pb.StreamEventsRequest.FromString(encode_block(events, self._at, crcs))
        block = request.block
        edits: dict[str, Callable[[], object]] = {
            "replay": lambda: setattr(block, "first_event", self._at - 1),
            "gap": lambda: setattr(block, "first_event", self._at + 1),
            "digest": lambda: block.column_crcs.__setitem__(0, block.column_crcs[0] ^ 1),
            "kind": lambda: block.kinds.__setitem__(1, 99),  # type: ignore[call-overload]  # no kind, on purpose
            "columns": lambda: block.rips.extend([1, 2]),
        }
        edits.get(move, lambda: None)()
        return request.SerializeToString()

    def _say_wildly(self, stream: Stream, data: bytes) -> None:
        """Send anything after what was sent; it is refused and changes nothing, or it is a valid message."""
        stream.put(encode_block(self._target.blocks[0].rows(0, 0), self._at, self._crcs))
        while stream.applied() < self._at:
            pass
        before = self._status()
        stream.put(data)
        reason = self._end(stream)
        after = self._status()
        before.state = after.state
        if after != before:
            if reason != "ALREADY_OPEN" or after.applied_events <= before.applied_events:
                raise Surprise(f"{data!r} was refused ({reason}), and has changed the session")
            self._is_known = False
        self._at, self._crcs = after.applied_events, ColumnCrcs(self._crcs.declared, after.column_crcs)

    def _end(self, stream: Stream, expected: str = "") -> str:
        """Send what is always refused, read to the end, and return the reason."""
        stream.put(_SENTINEL)
        try:
            for _ in stream.call:
                pass
        except grpc.RpcError as error:
            stream.cut()
            reason = checked(error)
            if expected not in ("", reason):
                raise Surprise(f"refused with {reason}, expected {expected}") from None
            return reason
        raise Surprise("a stream was not refused that should have been")

    def _status(self) -> hypervisor_pb2.SessionStatus:
        return self._target.guest.status(self._session_id)

    def finish(self) -> None:
        """Finish: all that was applied, and nothing else, is in the digests and in the report."""
        status = self._status()
        if (status.applied_events, tuple(status.column_crcs)) != (self._at, self._crcs.values):
            raise Surprise(f"{status.applied_events} events are applied, expected {self._at}")
        report = self._target.guest.finish(self._session_id, self._crcs, self._at)
        if self._is_known and (status.state_digest, report) != self._target.alone(self._blocks):
            raise Surprise("the state or the report is not that of the same events alone")
