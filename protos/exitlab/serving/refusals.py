"""What the services refuse, as types.

The tree, with the gRPC status code that the service ends make of each leaf::

    ServiceError
    ├── CannotServe                 the server does not start: one line, exit code 2
    └── Refused                     a request breaks a rule; nothing of it counted
        ├── InvalidRequest          INVALID_ARGUMENT
        ├── NotFound                NOT_FOUND
        ├── AlreadyExists           ALREADY_EXISTS
        ├── OutOfRange              OUT_OF_RANGE
        ├── WrongState              FAILED_PRECONDITION
        ├── Aborted                 ABORTED
        ├── PermissionDenied        PERMISSION_DENIED
        ├── DataLoss                DATA_LOSS
        ├── LimitReached            RESOURCE_EXHAUSTED
        ├── Unavailable             UNAVAILABLE
        ├── TimedOut                DEADLINE_EXCEEDED
        └── OurFault                INTERNAL
"""

from typing import ClassVar, Final

RETRY_AFTER_MS: Final = 1000  # of what may pass: a drain, a full disk


class ServiceError(Exception):
    """Anything that a service says no to."""


class CannotServe(ServiceError):
    """The server cannot start as asked, e.g. because its port is in use."""


class Refused(ServiceError):
    """A request that is refused whole.

    ``reason`` is an UPPER_SNAKE word for programs, the message is for people. ``field`` is the path
    of the offending field in the request, empty if there is none. ``place`` says where it happened
    in numbers, e.g. ``event=17``.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, reason: str, message: str, *, field: str = "", **place: int) -> None:
        """Keep what is wrong, and where."""
        self.reason = reason
        self.message = message
        self.field = field
        self.place = place
        super().__init__(f"{field}: {message}" if field else message)


class InvalidRequest(Refused):
    """The request is wrong whatever the state."""

    code = "INVALID_ARGUMENT"


class NotFound(Refused):
    """What the request names does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(Refused):
    """What the request brings is already there."""

    code = "ALREADY_EXISTS"


class OutOfRange(Refused):
    """The request refers to events that are not there yet."""

    code = "OUT_OF_RANGE"


class WrongState(Refused):
    """The state of what the request names does not allow it."""

    code = "FAILED_PRECONDITION"


class Aborted(Refused):
    """Somebody else has what the request is about."""

    code = "ABORTED"


class PermissionDenied(Refused):
    """The caller may not do this, whatever the request."""

    code = "PERMISSION_DENIED"


class DataLoss(Refused):
    """What arrived is not what was sent."""

    code = "DATA_LOSS"


class LimitReached(Refused):
    """The request is fine, but a limit of the server is reached."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(Refused):
    """The server does not take this now; another attempt makes sense."""

    code = "UNAVAILABLE"


class TimedOut(Refused):
    """The peer was silent for longer than the server waits."""

    code = "DEADLINE_EXCEEDED"


class OurFault(Refused):
    """The service broke a promise of its own."""

    code = "INTERNAL"
