"""A recorded trace's file as a source of events: what is alike whatever the file holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from guest_svc.workloads.base import API_VERSION, Parameter


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A trace's file, not read yet; it is named after its file unless it has a name."""

    path: Path
    name: str = ""
    summary: str = "a recorded trace"
    documentation: str = ""

    parameters: ClassVar[tuple[Parameter, ...]]
    is_recorded: ClassVar[bool] = True
    api_version: ClassVar[int] = API_VERSION

    def __post_init__(self) -> None:
        """Name it."""
        if not self.name:
            object.__setattr__(self, "name", self.path.name)
