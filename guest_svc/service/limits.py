"""The service's limits."""

from dataclasses import dataclass

from exitlab.serving.limits import limit


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service allows. A run takes a process while it runs, and its result once it has ended."""

    max_runs: int = limit(8, 1 << 10, "largest number of runs at once of one owner")
    max_all_runs: int = limit(16, 1 << 10, "largest number of runs at once of all owners")
    max_ended_runs: int = limit(256, 1 << 16, "largest number of ended runs of one owner kept")
    max_kept_bytes: int = limit(256 << 20, 1 << 40, "largest size of all ended runs kept, in bytes")
    max_watchers: int = limit(16, 1 << 10, "largest number of watchers of a run")
    start_seconds: int = limit(60, 3_600, "seconds in which a run has to begin")
