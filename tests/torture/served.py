"""What a process does that was forked from the zygote: it is a hypervisor, or a guest."""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import guest_svc.cli
import guest_svc.sessions
import hypervisor_svc.server
import hypervisor_svc.stream
from exitlab.serving import logs
from guest_svc.attempt import Attempt
from guest_svc.hypervisor import Hypervisor
from hypervisor_svc import drain
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from tests.faults.guest import LONG, run_session
from tests.torture.sites import Sites, let_the_clock_jump

PARTS: Final = Parts.installed()  # made before a fork, as it takes a second
RETRY_AFTER_MS: Final = 20  # for a second, of which a test would see nothing
LISTENING: Final = "listening"
ARRIVALS: Final = "arrivals"
GUEST_SITES: Final[dict[str, type]] = {
    "send": Attempt,
    "get": Attempt,
    "finish_session": Hypervisor,
    "priced": Hypervisor,
}


@dataclass(frozen=True)
class Plan:
    """What is to happen to a server, and how it is set up; plain data, for JSON."""

    action: str = ""  # of ``sites``; empty: nothing
    site: str = ""
    arrival: int = 1
    after_seconds: float = -1.0  # when it is killed from outside; never, if negative
    full_signal: int = 0  # that ends it once it finds the disk full
    clock_seed: int = -1  # of a clock that jumps; negative: it does not
    max_uncommitted_events: int = 60  # a guest cuts blocks of more than half of it
    max_block_events: int = 64


def serve(address: str, folder: str, notes: str, **plan: Any) -> None:
    """Be a hypervisor on an address, with its state in a folder, until a signal."""
    planned = Plan(**plan)
    sites = Sites(os.open(notes, os.O_WRONLY), planned.action, planned.site, planned.arrival)
    sites.install()
    if planned.clock_seed >= 0:
        let_the_clock_jump(planned.clock_seed)
    for module in (hypervisor_svc.stream, hypervisor_svc.server):
        module.RETRY_AFTER_MS = RETRY_AFTER_MS  # type: ignore[attr-defined]  # of either
    logs.configure("console", "info")
    limits = ServerLimits(
        max_uncommitted_events=planned.max_uncommitted_events,
        max_block_events=planned.max_block_events,
        max_sessions=10_000,
        max_all_sessions=10_000,
    )
    options = drain.ServeOptions(address, limits, state_dir=Path(folder))
    code = asyncio.run(drain.serve(options, PARTS, lambda _: sites.note(LISTENING)))
    counts = [f"{site}={count}" for site, count in sites.arrivals.items()]
    sites.note(ARRIVALS, *counts)
    os._exit(code)  # as the command does: threads of the engine are not waited for


def run_command(arguments: list[str], method: str = "", arrival: int = 1) -> None:
    """Be a guest's command, killed when it has come by a method so often."""
    _kill_at(method, arrival)
    os._exit(guest_svc.cli.main(arguments))


def run_closed_loop(address: str, session_file: str, method: str, arrival: int) -> None:
    """Be a guest that acts on outcomes, killed when it has come by a method so often."""

    def told(session_id: str) -> None:
        Path(session_file).write_text(session_id)

    _kill_at(method, arrival)
    run_session(address, "closed", LONG, on_session=told)
    os._exit(0)


def _kill_at(method: str, arrival: int) -> None:
    if not method:
        return
    owner, left = GUEST_SITES[method], arrival
    original: Any = getattr(owner, method)

    def counted(*args: Any) -> Any:
        nonlocal left
        result = original(*args)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, counted)
