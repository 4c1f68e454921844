"""What a SOURCE on the command line stands for.

The name of a workload, of ours or of an installed package; a class of one's own, as ``./file.py:Class`` or
``module:Class``; or the file of a recorded trace. A name of ours is never a file or somebody else's.
"""

import csv
import io
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import exists, isfile  # those of Path raise for a name that is too long
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitlab.plugins import is_plugin
from guest_svc.errors import BadInput
from guest_svc.workloads import CAPTURE_PREFIX, UnknownWorkload, unknown_workload
from guest_svc.workloads.base import unknown

if TYPE_CHECKING:
    from guest_svc.workloads.base import Workload, WorkloadSource

CYCLES_PER_INSTRUCTION = "cpi"


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """A source as it is asked for."""

    source: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    events: int | None = None
    cycles_per_instruction: str | None = None
    must_be_recorded: bool = False
    vendor: str | None = None


def open_source(choice: SourceChoice, found: "WorkloadSource | None" = None) -> "Workload":
    """Return a source's events, ready to stream; ``found`` is what it stands for, where that is known.

    Raises:
        BadInput: There is no such source, or it does not take what it is given.

    """
    if found is None:
        found = load_source(choice.source, must_be_recorded=choice.must_be_recorded, vendor=choice.vendor)()
    if choice.must_be_recorded and not found.is_recorded:
        raise BadInput(f"{choice.source}: a generated workload, not a recorded trace; use run or compare")
    parameters = dict(choice.parameters)
    if choice.cycles_per_instruction is not None:
        if CYCLES_PER_INSTRUCTION not in {parameter.name for parameter in found.parameters}:
            raise BadInput(
                f"{choice.source}: --cpi is for captures, which count instructions; this one has a clock"
            )
        if CYCLES_PER_INSTRUCTION in parameters:
            raise BadInput(
                f"--cpi {choice.cycles_per_instruction}: -p {CYCLES_PER_INSTRUCTION}="
                f"{parameters[CYCLES_PER_INSTRUCTION]} is given too; say it once"
            )
        parameters[CYCLES_PER_INSTRUCTION] = choice.cycles_per_instruction
    if choice.seed is not None and found.is_recorded:
        raise BadInput(f"{choice.source}: --seed is for generated workloads; this one is recorded")
    made = found.make(parameters, choice.seed or 0, choice.events)
    if made.total_events == 0:
        skipped = ", ".join(f"{count:,} {kind}" for kind, count in made.skipped.items())
        raise BadInput(f"{choice.source}: none of its {made.records:,} records is an event: {skipped}")
    return made


def find_source(source: str, *, must_be_recorded: bool = False) -> "WorkloadSource":
    """Return what a source stands for; a trace is not read yet.

    Raises:
        BadInput: It stands for nothing, or for a plug-in that cannot be used.

    """
    return load_source(source, must_be_recorded=must_be_recorded)()


def load_source(
    source: str, *, must_be_recorded: bool = False, vendor: str | None = None
) -> "Callable[[], WorkloadSource]":
    """Load what a source stands for; what a plug-in declares is checked when the result is called.

    ``vendor`` is what is asked for, should it be a trace that has exits of one.

    Raises:
        BadInput: It stands for nothing, or for a plug-in that cannot be loaded.

    """
    # numpy is imported here, while an embedded hypervisor is already starting.
    from guest_svc.workloads import find_workload, workload_names  # noqa: PLC0415

    names = workload_names()
    shipped = f"capture:{source}"
    if must_be_recorded and shipped in names:
        return partial(find_workload, shipped)
    if source in names or source.startswith(CAPTURE_PREFIX):
        return partial(find_workload, source)
    if is_plugin(source) and not isfile(source):
        from guest_svc.plugins import load_named  # noqa: PLC0415

        return load_named(source)
    if _is_path(source):
        if source.endswith(".py") and not must_be_recorded:
            raise BadInput(f"{source}: say which class, after a colon: {source}:CLASS")
        return partial(_trace, source, vendor)
    try:
        return _load_named(source)
    except UnknownWorkload as error:
        if not must_be_recorded:
            raise
        captures = [name.removeprefix(CAPTURE_PREFIX) for name in names if name.startswith(CAPTURE_PREFIX)]
        raise BadInput(unknown("file and no shipped trace", source, captures)) from error


def find_named(name: str) -> "WorkloadSource":
    """Return the workload that is listed by a name; never a file, whatever there is beside us.

    Raises:
        UnknownWorkload: There is none.
        BadInput: It is an installed package's, and cannot be used.

    """
    return _load_named(name)()


def _load_named(name: str) -> "Callable[[], WorkloadSource]":
    from guest_svc.plugins import load_installed, plugin_names  # noqa: PLC0415
    from guest_svc.workloads import find_workload, workload_names  # noqa: PLC0415

    if name in workload_names():
        return partial(find_workload, name)
    found = load_installed(name)
    if found is None:
        raise unknown_workload(name, (*workload_names(), *plugin_names()))
    return found


def _trace(source: str, vendor: str | None) -> "WorkloadSource":
    _check_file(source)
    return _trace_source(Path(source), vendor)


def _trace_source(path: Path, vendor: str | None) -> "WorkloadSource":
    """Return the trace that a file holds: columns of a capture, or else text, by its first bytes."""
    from guest_svc.traces.captures import CaptureSource  # noqa: PLC0415
    from guest_svc.traces.exits.trace import TextTraceSource  # noqa: PLC0415
    from guest_svc.traces.text.files import is_capture  # noqa: PLC0415

    return CaptureSource(path) if is_capture(path) else TextTraceSource(path, vendor=vendor)


def _is_path(source: str) -> bool:
    """Return whether a source is written as a path; a bare name that is a file is one too."""
    return "/" in source or "\\" in source or source.endswith(".npz") or source == "." or exists(source)


def _check_file(source: str) -> None:
    """Refuse a path that is no file which could be read."""
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        raise BadInput(f"{source}: no such file") from None
    except OSError as error:
        raise BadInput(f"{source}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise BadInput(f"{source}: {'a folder' if stat.S_ISDIR(mode) else 'neither a file nor a pipe'}")


def list_workloads() -> tuple[list[dict[str, Any]], list[str]]:
    """Return every workload with its parameters, as ``workloads --output json`` lists them.

    What is wrong with installed ones that cannot be used is returned beside.
    """
    from guest_svc.plugins import installed  # noqa: PLC0415  (imports numpy)
    from guest_svc.workloads import find_workload, workload_names  # noqa: PLC0415

    offered = installed()
    ours = [_listed(find_workload(name), name) for name in workload_names()]
    theirs = [_listed(found, name, found.author.plugin.origin) for name, found in offered.sources.items()]
    return ours + theirs, list(offered.warnings)


def _listed(found: "WorkloadSource", name: str, package: str | None = None) -> dict[str, Any]:
    parameters = [
        {
            "name": parameter.name,
            "type": parameter.type_name,
            "default": parameter.default,
            "unit": parameter.unit,
            "range": parameter.range_text,
            "summary": parameter.summary,
        }
        for parameter in found.parameters
    ]
    return {
        "name": name,
        "summary": found.summary,
        "is_recorded": found.is_recorded,
        "documentation": found.documentation,
        "api_version": found.api_version,
        "package": package,
        "parameters": parameters,
    }


def list_text(workloads: Sequence[Mapping[str, Any]]) -> str:
    """Return the workloads for people."""
    lines = []
    for workload in workloads:
        package = f" [{workload['package']}]" if workload["package"] else ""
        lines.append(f"{workload['name']}: {workload['summary']}{package}")
        lines += [
            f"  {parameter['name']}={parameter['default']} ({parameter['unit']}): {parameter['summary']}"
            for parameter in workload["parameters"]
        ]
    return "\n".join(lines) + "\n"


def list_csv(workloads: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each parameter of each workload, and one for a workload without any."""
    out = io.StringIO()
    fields = ("name", "type", "default", "unit", "range", "summary")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("workload", "is_recorded", *fields))
    for workload in workloads:
        for parameter in workload["parameters"] or [dict.fromkeys(fields, "")]:
            place = (workload["name"], int(workload["is_recorded"]))
            writer.writerow((*place, *(parameter[field] for field in fields)))
    return out.getvalue()
