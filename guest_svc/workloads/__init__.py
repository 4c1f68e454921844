"""The workloads by name. Names cost no import; a workload is imported when it is asked for.

``capture:<name>`` stands for a recorded trace that is shipped with the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Final

from guest_svc.errors import TraceError, WorkloadError
from guest_svc.workloads.base import (
    BadParameter,
    Parameter,
    UnknownParameter,
    UnknownWorkload,
    Workload,
    WorkloadSource,
    unknown,
)

__all__ = [
    "BadParameter",
    "Parameter",
    "TraceError",
    "UnknownParameter",
    "UnknownWorkload",
    "Workload",
    "WorkloadError",
    "WorkloadSource",
    "find_workload",
    "unknown_workload",
    "workload_names",
]

CAPTURE_PREFIX: Final = "capture:"

# Name: (module, class).
_GENERATED: Final = {
    "context-switch": ("guest_svc.workloads.context_switch", "ContextSwitch"),
    "debugger": ("guest_svc.workloads.debugger", "Debugger"),
    "idle": ("guest_svc.workloads.idle", "Idle"),
    "io": ("guest_svc.workloads.device_io", "DeviceIo"),
}


def workload_names() -> tuple[str, ...]:
    """Return every name that ``find_workload`` knows, the generated ones first."""
    from guest_svc.captures import capture_names  # noqa: PLC0415  (only when names are asked for)

    return (*_GENERATED, *(CAPTURE_PREFIX + name for name in capture_names()))


def find_workload(name: str) -> WorkloadSource:
    """Return the workload called ``name``.

    Raises:
        UnknownWorkload: There is none; the message names the near matches.

    """
    if name in _GENERATED:
        module, class_name = _GENERATED[name]
        source: WorkloadSource = getattr(import_module(module), class_name)
        return source
    known = workload_names()
    if name not in known:
        raise unknown_workload(name, known)
    from guest_svc.captures import shipped_capture  # noqa: PLC0415  (imports numpy)

    return shipped_capture(name.removeprefix(CAPTURE_PREFIX))


def unknown_workload(name: str, known: Iterable[str]) -> UnknownWorkload:
    """Return what is said of a name that is none of those ``known``."""
    return UnknownWorkload(unknown("workload", name, known))
