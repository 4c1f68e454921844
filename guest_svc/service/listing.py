"""The workloads, as ``guest-svc workloads`` lists them in a process of its own.

Listing imports every workload, also those of other packages; none of their code runs in the service.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any, Final

from exitlab.lifeline import Lifeline
from exitlab.serving.logs import log
from exitlab.serving.refusals import OurFault, TimedOut
from exitlab.v1 import guest_pb2

SECONDS: Final = 30.0
SHOWN_BYTES: Final = 500  # of what is no list
_COMMAND: Final = (sys.executable, "-m", "guest_svc", "workloads", "--output", "json")


class Listing:
    """What is installed now; those who ask at the same time share an answer."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self._asking: asyncio.Task[list[guest_pb2.Workload]] | None = None

    async def workloads(self) -> list[guest_pb2.Workload]:
        """Return the workloads with their parameters.

        Raises: TimedOut, OurFault.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(_ask())
        return await asyncio.shield(self._asking)


async def _ask() -> list[guest_pb2.Workload]:
    pipe = asyncio.subprocess.PIPE
    lifeline = Lifeline()
    with lifeline as descriptor:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            *("--parent-pipe", str(descriptor)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(SECONDS):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise TimedOut("LISTING_TIMED_OUT", f"no list of workloads within {SECONDS:g} seconds") from error
    finally:
        lifeline.cut()
        with contextlib.suppress(ProcessLookupError):  # should it not listen; and what it has started
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    for line in errors.decode(errors="backslashreplace").splitlines():
        log.warning("listing the workloads", said=line)
    if not process.returncode:
        with contextlib.suppress(ValueError):  # a package may yet have written as its process ended
            return [_workload(listed) for listed in json.loads(output)["workloads"]]
        log.error("listing the workloads", said=output[:SHOWN_BYTES].decode(errors="backslashreplace"))
    raise OurFault("NO_LISTING", "the workloads cannot be listed; the service's log says more")


def _workload(listed: dict[str, Any]) -> guest_pb2.Workload:
    return guest_pb2.Workload(
        name=listed["name"],
        summary=listed["summary"],
        parameters=[_parameter(each) for each in listed["parameters"]],
        is_recorded=listed["is_recorded"],
        documentation=listed["documentation"],
        api_version=listed["api_version"],
    )


def _parameter(listed: dict[str, Any]) -> guest_pb2.WorkloadParameter:
    """Return a parameter; its unit and its range are for people, with its meaning."""
    facts = ", ".join(filter(None, (listed["unit"], listed["range"])))
    return guest_pb2.WorkloadParameter(
        name=listed["name"],
        type=listed["type"],
        default_value=str(listed["default"]),
        summary=f"{listed['summary']} ({facts})" if facts else listed["summary"],
    )
