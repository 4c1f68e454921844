"""What a run's process is told, and what it says: frames of a kind and a payload.

::

    to it      JOB       what to run, where; after it the pipe stays open as long as the service lives
    from it    BEGUN     RunStatus: all is checked, and the hypervisor has created the session
               POSITION  RunStatus: how far it is
               CUT       text: its stream was cut, and it goes on trying
               DONE      WatchRunResponse: the report, and the figures
               FAILED    Failure: it was refused, or could not finish
"""

import json
import struct
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Final, Self

from exitlab.v1 import guest_pb2

HEADER: Final = struct.Struct("<BQ")  # kind, bytes of the payload
LARGEST_PAYLOAD: Final = 64 << 20  # bytes; a report of 64 lanes has less than one MiB


class Kind(IntEnum):
    """What a frame says."""

    JOB = 1
    BEGUN = 2
    POSITION = 3
    CUT = 4
    DONE = 5
    FAILED = 6


@dataclass(frozen=True, slots=True)
class Job:
    """A run, and how its hypervisor is reached."""

    config: guest_pb2.RunConfig
    hypervisor: str
    tls: dict[str, str | None] | None = None  # the fields of guest_svc.tls.Tls
    retry_seconds: float = 0.0

    def encode(self) -> bytes:
        """Return it as a payload."""
        config = b64encode(self.config.SerializeToString()).decode()
        rest = {"hypervisor": self.hypervisor, "tls": self.tls, "retry_seconds": self.retry_seconds}
        return json.dumps({"config": config, **rest}).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Return what ``encode`` was given."""
        told: dict[str, Any] = json.loads(payload)
        config = guest_pb2.RunConfig.FromString(b64decode(told.pop("config")))
        return cls(config, **told)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run was refused before it began, or ended: gRPC's code, a reason, a field, as in a refusal."""

    code: str
    reason: str
    message: str
    field: str = ""

    def encode(self) -> bytes:
        """Return it as a payload."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Return what ``encode`` was given."""
        return cls(**json.loads(payload))


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    """Return a frame."""
    return HEADER.pack(kind, len(payload)) + payload
