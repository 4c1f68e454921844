"""What a failed call means to the guest: one line, with what the server's details say."""

import errno
import os
from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from guest_svc.errors import BadInput, CouldNotFinish, GuestError, NotConnected, SessionIsBehind
from guest_svc.tls import Tls, tls_trouble

_NOT_THERE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED}
)
_BUGS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
# What another attempt may mend: said by the hypervisor, or by whatever lies between.
_PASSING: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
_PASSING_REASONS: Final = frozenset({"TOO_MANY_STREAMS"})  # one of them may be this guest's own, cut
_BUSY: Final = "Concurrent RPC limit exceeded"  # what gRPC says for a hypervisor with too many calls
_CUT: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})  # if no hypervisor said it
_OUR_DOMAIN: Final = "exitlab"
# What another run is not kept from by what has ended this one.
_START_AGAIN: Final = frozenset({"SESSION_NOT_FOUND", "STATE_DAMAGED", "ENGINE_CHANGED"})
# The session's own, whatever the guest was doing.
_CANNOT_GO_ON: Final = frozenset({"STATE_DAMAGED", "ENGINE_CHANGED", "ENGINE_FAILED", "POLICY_FAILED"})
_MEANINGS: Final = {
    "FENCED": "another guest has taken the session over",
    "ENGINE_CHANGED": "it has other rules now than those that the session began under",
}
_NO_GRPC: Final = "Received http2 header with status: "  # gRPC's words for an HTTP server, whatever the code
_NO_CONNECTION: Final = "failed to connect to all addresses"
_WHY_NO_CONNECTION: Final = tuple(
    map(os.strerror, (errno.ECONNREFUSED, errno.ENOENT, errno.EHOSTUNREACH, errno.ENETUNREACH))
)
_MOST_CHARACTERS: Final = 120  # of gRPC's own words


def first_error(
    error: grpc.RpcError, address: str, tls: Tls | None = None, *, has_begun: bool = False
) -> GuestError:
    """Return what it means that a call before a session's events failed.

    A hypervisor that is not there shows here; if a session ``has_begun`` before, it was there and is gone.
    """
    if has_begun:
        return guest_error(error, f"the hypervisor at {address} does not go on")
    status, message = _status(error)
    if status in _NOT_THERE and reason_of(error):
        return NotConnected(f"the hypervisor at {address} begins no session now: {message}{_details(error)}")
    if status in _NOT_THERE or message.startswith(_NO_GRPC):
        trouble = tls_trouble(message, address, tls)
        return NotConnected(trouble or f"no hypervisor answers at {address}: {_said(error)}")
    if status is grpc.StatusCode.CANCELLED:  # this side cancels no such call
        return NotConnected(f"the hypervisor at {address} is stopping: it cancelled the call")
    if status in _BUGS:
        return guest_error(error, "the hypervisor failed")
    return BadInput(f"{message}{_details(error)}")


def guest_error(error: grpc.RpcError, doing: str) -> GuestError:
    """Return what a failed call means to the guest, with the server's details in the line."""
    status = _status(error)[0]
    text = f"{_said(error)}{_details(error)}"
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return BadInput(text)
    code = "" if reason_of(error) else f" ({status.name})"  # a reason says more
    return CouldNotFinish(f"{doing}: {text}{code}")


def session_error(error: grpc.RpcError, doing: str) -> GuestError:
    """Return what it means that a call or a stream of a session failed."""
    reason = reason_of(error)
    if reason == "EVENT_COUNT_MISMATCH":
        return SessionIsBehind(f"{doing}: {_status(error)[1]}")
    if reason in _CANNOT_GO_ON:
        doing = "the hypervisor cannot go on with the session"
    if reason in _START_AGAIN or reason in _MEANINGS:
        advice = "; start the run again" if reason in _START_AGAIN else ""
        return CouldNotFinish(f"{doing}: {_MEANINGS.get(reason, _said(error))}{advice} [reason {reason}]")
    return guest_error(error, doing)


def with_refusal(told: GuestError, error: grpc.RpcError) -> GuestError:
    """Return an error with what a hypervisor's refusal says, if it is one."""
    told.reason = reason_of(error)
    if told.reason:
        told.status, told.words = _status(error)[0].name, _status(error)[1]
        fields = [each.field for found in _told(error) for each in getattr(found, "field_violations", ())]
        told.field = "".join(map(str, fields[:1]))
    return told


def may_pass(error: grpc.RpcError) -> bool:
    """Tell whether another attempt makes sense: the other end was not there, or the way to it was cut."""
    (status, message), reason = _status(error), reason_of(error)
    if reason:
        return status in _PASSING or reason in _PASSING_REASONS
    return status in _PASSING or status in _CUT or message == _BUSY


def is_fenced(error: grpc.RpcError) -> bool:
    """Tell whether a newer stream has the session."""
    return reason_of(error) == "FENCED"


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason that a hypervisor gave; empty if none did."""
    infos = [told for told in _told(error) if isinstance(told, error_details_pb2.ErrorInfo)]
    return "".join(str(info.reason) for info in infos[:1] if info.domain == _OUR_DOMAIN)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return an error's code and its message on one line."""
    if not isinstance(error, grpc.Call):
        return grpc.StatusCode.UNKNOWN, str(error)
    return error.code(), " ".join((error.details() or "no reason given").split())


def _said(error: grpc.RpcError) -> str:
    """Return an error's message; of gRPC's own words, which may be many, what tells most."""
    message = _status(error)[1]
    if reason_of(error) or len(message) <= _MOST_CHARACTERS:
        return message
    why = [words for words in _WHY_NO_CONNECTION if words in message]
    if message.startswith(_NO_CONNECTION) and why:
        return f"no connection: {why[0]}"
    half = _MOST_CHARACTERS // 2
    return f"{message[:half]} ... {message[-half:]}"


def _details(error: grpc.RpcError) -> str:
    """Return the fields and reasons of an error's google.rpc details, in brackets."""
    parts: list[str] = []
    for told in _told(error):
        if isinstance(told, error_details_pb2.ErrorInfo):
            parts.append(f"reason {told.reason}")
        else:
            parts += [f"field {violation.field}" for violation in told.field_violations]
    return f" [{', '.join(parts)}]" if parts else ""


def _told(error: grpc.RpcError) -> list[Any]:
    """Return the BadRequests and ErrorInfos of an error's google.rpc details.

    There are none if they are another error's, or cannot be read: the message says what there is.
    """
    found: list[Any] = []
    try:
        status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
        details: Iterable[Any] = status.details if status is not None else ()
        for detail in details:
            for told in (error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()):
                if detail.Unpack(told):
                    found.append(told)
    except (ValueError, DecodeError):
        return []
    return found
