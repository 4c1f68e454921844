"""What a failed call means to the guest: one line, with what the server's details say."""

from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from guest_svc.errors import BadInput, CouldNotFinish, GuestError, NotConnected

_NOT_THERE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED}
)
_BUGS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


def first_error(error: grpc.RpcError, address: str, *, has_begun: bool = False) -> GuestError:
    """Return what it means that a call before a session's events failed.

    A hypervisor that is not there shows here; if a session ``has_begun`` before, it was there and is gone.
    """
    if has_begun:
        return guest_error(error, f"the hypervisor at {address} does not go on")
    status, message = _status(error)
    if status in _NOT_THERE:
        return NotConnected(f"no hypervisor answers at {address}: {message}")
    if status is grpc.StatusCode.CANCELLED:  # this side cancels no such call
        return NotConnected(f"the hypervisor at {address} is stopping: it cancelled the call")
    if status in _BUGS:
        return guest_error(error, "the hypervisor failed")
    return BadInput(f"{message}{_details(error)}")


def guest_error(error: grpc.RpcError, doing: str) -> GuestError:
    """Return what a failed call means to the guest, with the server's details in the line."""
    status, message = _status(error)
    text = f"{message}{_details(error)}"
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return BadInput(text)
    return CouldNotFinish(f"{doing}: {text} ({status.name})")


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return an error's code and its message on one line."""
    if not isinstance(error, grpc.Call):
        return grpc.StatusCode.UNKNOWN, str(error)
    return error.code(), " ".join((error.details() or "no reason given").split())


def _details(error: grpc.RpcError) -> str:
    """Return the fields and reasons of an error's google.rpc details, in brackets."""
    parts: list[str] = []
    try:
        status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
        details: Iterable[Any] = status.details if status is not None else ()
        for detail in details:
            bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
            if detail.Unpack(bad_request):
                parts += [f"field {violation.field}" for violation in bad_request.field_violations]
            elif detail.Unpack(info):
                parts.append(f"reason {info.reason}")
    except (ValueError, DecodeError):  # details of another error, or none: the message says what there is
        return ""
    return f" [{', '.join(parts)}]" if parts else ""
