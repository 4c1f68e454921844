"""How requests are read: what is no message of a method is a refusal, which says so.

gRPC alone would answer UNKNOWN. The handler gets the refusal in place of the request (``answers``).
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from exitlab.serving.limits import MAX_UNARY_BYTES
from exitlab.serving.refusals import InvalidRequest, LimitReached


def _or_refusal(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a parser that makes a refusal of what nobody could mean.

    What this version does not know is dropped, as nobody would count its bytes.
    """

    def parsed(data: bytes) -> Any:
        if len(data) > MAX_UNARY_BYTES:
            message = f"the request has {len(data):,} bytes, expected at most {MAX_UNARY_BYTES:,}"
            return LimitReached("REQUEST_TOO_LARGE", message, max_bytes=MAX_UNARY_BYTES)
        try:
            request = parse(data)
        except DecodeError:
            return InvalidRequest("NOT_A_MESSAGE", "the bytes are no message of this method")
        request.DiscardUnknownFields()
        return request

    return parsed


class Registrar:
    """A server to hand to generated code: it registers the methods with parsers of our own.

    ``raw`` names methods that have none: they get bytes, and read them themselves.
    """

    def __init__(self, server: grpc.aio.Server, raw: frozenset[str] = frozenset()) -> None:
        """Stand in for a server."""
        self._server = server
        self._raw = raw

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Leave out the handlers as generated; the changed ones are added below."""

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        """Add the service with its changed methods."""
        changed: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(handler.stream_stream)
            if name in self._raw
            else handler._replace(request_deserializer=_or_refusal(handler.request_deserializer))
            for name, handler in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, changed),))
        self._server.add_registered_method_handlers(service, changed)
