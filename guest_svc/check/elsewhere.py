"""One run of a workload in a process of its own, for ``check-workload``: writes its events into a file."""

import json
import sys
from typing import Any

import numpy as np

from exitlab.command_line import BAD_INPUT, tell
from exitlab.lifeline import leave_with_parent
from guest_svc.check.stand import lanes
from guest_svc.check.tapped import Tapped
from guest_svc.errors import GuestError
from guest_svc.hypervisor import Hypervisor
from guest_svc.sessions import QUIET, stream_workload
from guest_svc.sources import find_source


def main(asked: dict[str, Any]) -> int:
    """Run what is asked for, and return an exit code."""
    leave_with_parent(asked["pipe"], has_own_group=True)
    try:
        source = find_source(asked["text"])
        tapped = Tapped(source.make(asked["parameters"], asked["seed"], asked["events"]))
        if tapped.reads_outcomes:
            with Hypervisor(asked["hypervisor"]) as hypervisor:
                stream_workload(hypervisor, tapped, lanes(), QUIET)
        else:
            for _ in tapped.blocks():
                pass
    except GuestError as error:
        tell("check-workload", error)
        return BAD_INPUT
    taken = tapped.taken
    columns: dict[str, Any] = {name: getattr(taken, name) for name in taken.__slots__}
    np.savez(asked["path"], **{name: array for name, array in columns.items() if array is not None})
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
