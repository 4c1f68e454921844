"""The guest's errors, with the exit code beside each leaf.

::

    GuestError
    ├── BadInput         2   what was asked for cannot be run
    │   └── WorkloadError    a source of events cannot be made as asked; more of them: workloads/base.py
    │       └── TraceError   a recorded trace cannot be read
    ├── NotConnected     2   there is no hypervisor to connect to, or it takes no session now
    └── CouldNotFinish   3   the run started and could not finish
        ├── GaveUp           the hypervisor was gone for too long; its session may be there all the same
        └── SessionIsBehind  the hypervisor has fewer events than were applied; those kept are sent again
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from typing import ClassVar


class GuestError(Exception):
    """A run that went wrong, told in one line; its class says how the command exits."""

    exit_code: ClassVar[int] = 3
    #: What the hypervisor's refusal says, where it is one: its words, gRPC's status, its reason, its field.
    words: str = ""
    status: str = ""
    reason: str = ""
    field: str = ""


class BadInput(GuestError):
    """What was asked for is refused, before anything of it counts."""

    exit_code = 2


class WorkloadError(BadInput):
    """A source of events that cannot be made as asked."""


class TraceError(WorkloadError):
    """A recorded trace is damaged, foreign or contradicts itself."""


class NotConnected(GuestError):
    """Nothing answers where the hypervisor should be, or what does takes no session now."""

    exit_code = 2


class CouldNotFinish(GuestError):
    """A run that had started was cut short."""

    exit_code = 3


class GaveUp(CouldNotFinish):
    """What another attempt might have mended went on for longer than was to be waited."""


class SessionIsBehind(CouldNotFinish):
    """A hypervisor that has crashed is back at its last checkpoint."""
