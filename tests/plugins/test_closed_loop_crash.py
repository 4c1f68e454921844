"""A guest that acts on what it saw, and a hypervisor that is killed under it and comes back."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from guest_svc.check.tapped import Tapped
from guest_svc.hypervisor import Hypervisor
from guest_svc.sessions import QUIET, stream_workload
from tests.plugins.test_closed_loop import asking, lanes, seen
from tests.system.programs import serving


@pytest.mark.parametrize("killed_at", [1, 2, 7, 40])
def test_a_crash_loses_and_doubles_no_answer(killed_at: int, tmp_path: Path) -> None:
    """The hypervisor goes on from its last checkpoint; the guest does the same, and asks nothing twice."""
    address = f"unix:{tmp_path}/h"
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, address))
        hypervisor = stack.enter_context(Hypervisor(address, retry_seconds=60.0))
        whole = Tapped(asking())
        report = stream_workload(hypervisor, whole, lanes("kvm-6.14"), QUIET).report
        expected = seen()
        pulls = 0

        def crash(_: int) -> None:
            nonlocal pulls
            pulls += 1
            if pulls == killed_at:
                server.kill()
                server.wait()
                stack.enter_context(serving(tmp_path, address))

        killed = Tapped(asking(), crash)
        streamed = stream_workload(hypervisor, killed, lanes("kvm-6.14"), QUIET)
    assert streamed.reconnects >= 1
    assert seen() == expected
    assert killed.answers == whole.answers
    assert streamed.report == report
