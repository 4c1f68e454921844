"""The server's limits."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

from exitlab.v1 import hypervisor_pb2

# Of a request that is no block: 64 lanes' tables have a third of that; parsed it may take 35 times as much.
MAX_UNARY_BYTES: Final = 1 << 20


def _limit(default: int, largest: int, summary: str, least: int = 1) -> Any:
    return field(default=default, metadata={"least": least, "largest": largest, "summary": summary})


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server allows, field by field as in the contract's Limits.

    A stream holds at most four messages that came, and the outcomes of two blocks: 13 bytes for each
    event and lane. ``max_streams`` of them are all that unread answers can take of the memory.
    """

    max_message_bytes: int = _limit(4 << 20, 1 << 30, "largest message in bytes", least=MAX_UNARY_BYTES)
    max_block_events: int = _limit(65_536, 1 << 20, "largest number of events in a block")
    max_window_events: int = _limit(262_144, 1 << 32, "largest number of events sent and not applied")
    max_uncommitted_events: int = _limit(1 << 22, 1 << 40, "largest number of events not committed")
    max_lanes: int = _limit(64, 64, "largest number of lanes of a session")
    max_vcpus: int = _limit(256, 256, "largest number of vCPUs, and of physical CPUs, of a session")
    max_sessions: int = _limit(256, 1 << 16, "largest number of unfinished sessions of one owner")
    max_all_sessions: int = _limit(1024, 1 << 16, "largest number of unfinished sessions of all owners")
    max_streams: int = _limit(512, 1 << 20, "largest number of streams at once")
    idle_seconds: int = _limit(3600, 1 << 31, "seconds after which a session without a stream is dropped")
    max_session_seconds: int = _limit(604_800, 1 << 31, "largest age of a session in seconds")
    max_state_bytes: int = _limit(256 << 20, 900 << 20, "largest state of a session in bytes")
    max_reports: int = _limit(
        256, 1 << 16, "largest number of ended sessions of one owner, with their reports, kept"
    )

    def to_proto(self) -> hypervisor_pb2.Limits:
        """Return the limits as the contract's message."""
        return hypervisor_pb2.Limits(**asdict(self))


class LimitFlag(NamedTuple):
    """A limit as a flag of ``serve``."""

    name: str
    default: int
    least: int
    largest: int
    summary: str


def limit_flags() -> list[LimitFlag]:
    """Return the flags of all limits."""
    return [
        LimitFlag(limit.name, int(limit.default), **limit.metadata)
        for limit in fields(ServerLimits)
        if isinstance(limit.default, int)
    ]
