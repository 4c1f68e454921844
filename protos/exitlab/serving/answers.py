"""How a call is answered: refusals become statuses with google.rpc details, and lines in the log."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from exitlab.serving.logs import bound, log
from exitlab.serving.refusals import OurFault, Refused
from exitlab.words import printable

ERROR_DOMAIN: Final = "exitlab"
MAX_TEXT_BYTES: Final = 600  # of a refusal: gRPC drops a status with all its details if they pass 8 KiB

Context = Any  # grpc.aio.ServicerContext; its generic stub cannot say "bytes on one method"
Result = TypeVar("Result")
Method = Callable[[Any, Any, Context], Awaitable[Result]]


def to_status(refusal: Refused) -> grpc.Status:
    """Return what a client gets of a refusal: code, message, ErrorInfo and, with a field, BadRequest."""
    place = {key: str(value) for key, value in refusal.place.items()}
    said = _shortened(printable(refusal.message))
    status = status_pb2.Status(code=grpc.StatusCode[refusal.code].value[0], message=said)
    if "event" in place:
        status.message = f"event {place['event']}: {said}"
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=ERROR_DOMAIN, metadata=place)
    status.details.add().Pack(info)
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.field, description=said, reason=refusal.reason
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return rpc_status.to_status(status)


def _shortened(text: str) -> str:
    """Return a text without its middle if it is long: it may hold what a client sent."""
    data, gap = text.encode(), " ... "
    if len(data) <= MAX_TEXT_BYTES:
        return text
    half = (MAX_TEXT_BYTES - len(gap)) // 2
    return data[:half].decode(errors="ignore") + gap + data[-half:].decode(errors="ignore")


def answers(method: Method[Result]) -> Method[Result]:
    """Wrap a handler: its lines are logged with peer and session, its refusals become statuses."""

    @wraps(method)
    async def handler(self: Any, request: Any, context: Context) -> Result:
        ids = {name: getattr(request, f"{name}_id", "") for name in ("session", "run")}
        with self.calls, bound(peer=context.peer(), **ids):
            try:
                if isinstance(request, Refused):  # see ``parsing``
                    raise request
                return await method(self, request, context)
            except OurFault as fault:
                log.exception("fault", method=method.__name__)
                refusal: Refused = fault
            except Refused as refused:
                log.info("refused", method=method.__name__, code=refused.code, reason=refused.reason)
                refusal = refused
            except (grpc.aio.BaseError, grpc.RpcError):
                raise  # the connection's, not ours
            except Exception:
                log.exception("fault", method=method.__name__)
                refusal = OurFault("INTERNAL_ERROR", "a fault of the service; its log says more")
            await context.abort_with_status(to_status(refusal))
            raise AssertionError("abort returned")

    return handler
