"""Cases in which the guest or its connection fails: cuts, bad lines, acknowledgements lost, guests killed."""

import signal
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import pytest

from exitlab.events import Column
from exitlab.v1 import hypervisor_pb2
from guest_svc.errors import CouldNotFinish
from guest_svc.hypervisor import Hypervisor
from guest_svc.stream import EventStream
from guest_svc.window import WINDOW_BLOCKS
from tests.faults.cutting import FIRST, run_cut, run_spoiled
from tests.faults.guest import LONG, LOOPS, POLICIES, SHORT, VCPUS, run_session
from tests.faults.mute import MuteChannel, muted
from tests.faults.toxics import (
    STREAMS,
    Bandwidth,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
)
from tests.torture.keeper import Keeper
from tests.torture.served import Plan
from tests.torture.sites import COMMITTED, KILL
from tests.torture.yard import Yard

_COMMAND_EVENTS: Final = 300
_METHODS: Final = ("send", "get", "get", "finish_session", "priced")  # of the guest, killed after one
_CONFIRMED: Final = 8  # messages that a closed loop gets until the server must have a confirmation of its
_ROOM: Final = 2 * sum(SHORT)
_LIVES: Final = 3  # of a guest; the last is not killed


def cut(yard: Yard, number: int) -> Counter[str]:
    """Cut a session at one place of its bytes."""
    loop, stream, place = yard.places()[number]
    spoiled = run_cut(yard.steady.address, f"unix:{yard.folder()}/p", stream, loop, place)
    yard.check(spoiled.ran, loop, SHORT)
    if not spoiled.is_cut:
        return Counter({"place not reached": 1})
    if spoiled.had_to_begin_again:
        return Counter({f"{loop} loop, {stream}, in the very first call": 1})
    return Counter({f"{loop} loop, {stream}": 1})


def spoiled_line(yard: Yard, number: int) -> Counter[str]:
    """Take one toxic after the other, its numbers by chance."""
    chance = Random(number)
    toxics: tuple[Toxic, ...] = (
        Latency(latency=chance.uniform(0, 10), jitter=10),
        Bandwidth(rate=chance.uniform(50, 500)),
        SlowClose(delay=chance.uniform(0, 50)),
        Timeout(timeout=chance.uniform(1, 50)),
        ResetPeer(timeout=chance.uniform(0, 50)),
        Slicer(chance.randint(1, 50), size_variation=chance.randint(0, 20), delay=chance.uniform(0, 100)),
        LimitData(bytes=chance.randint(500, 4000)),
    )
    toxic, number = toxics[number % len(toxics)], number // len(toxics)
    stream, loop = STREAMS[number % 2], LOOPS[number // 2 % 2]
    listen = f"unix:{yard.folder()}/p"
    only = range(chance.randint(1, 3)) if isinstance(toxic, LimitData) else FIRST
    spoiled = run_spoiled(yard.steady.address, listen, toxic, stream, loop, only)
    yard.check(spoiled.ran, loop, SHORT)
    return Counter({type(toxic).__name__: 1})


def unacknowledged(yard: Yard, number: int) -> Counter[str]:
    """Show the guest no acknowledgement, and cut each stream after some; every other server is killed too."""
    chance, loop = Random(number), LOOPS[number % 2]
    swallowed = chance.randint(1, WINDOW_BLOCKS) if loop == "open" else 1
    mute: list[MuteChannel] = []

    def on_hypervisor(hypervisor: Hypervisor) -> None:
        mute.append(muted(hypervisor, swallowed, sum(LONG)))

    # More than a guest has in flight: it would wait for an acknowledgement that makes room.
    kill = Plan(action=KILL, site=COMMITTED, arrival=chance.randint(1, 4), max_uncommitted_events=_ROOM)
    quiet = Plan(max_uncommitted_events=_ROOM)
    with yard.keeper([kill, quiet] if number // 2 % 2 else [quiet]) as keeper:
        yard.check(run_session(keeper.address, loop, LONG, greets=True, on_hypervisor=on_hypervisor), loop)
    return Counter({"acknowledgements": mute[0].lost}) + keeper.struck


def killed_guest(yard: Yard, number: int) -> Counter[str]:
    """Kill a guest's command, and have another go on with ``--resume``, on a server that cuts otherwise."""
    chance = Random(number)
    seen: Counter[str] = Counter()
    blocks = [chance.randint(5, 40) for _ in range(_LIVES)]
    plans = [Plan(max_block_events=size) for size in blocks]
    with yard.keeper(plans) as keeper:
        session_file = keeper.state / "id"
        for life in range(_LIVES):
            resume = session_file.read_text().strip() if session_file.exists() else ""
            method = chance.choice(_METHODS) if life < _LIVES - 1 else ""
            most = 2 * _COMMAND_EVENTS // blocks[life] if method in {"send", "get"} else 1
            arguments = _command(keeper, session_file, resume)
            arrival = chance.randint(1, max(1, most))
            ended = _lived(yard, keeper, "command", arguments=arguments, method=method, arrival=arrival)
            if ended != -signal.SIGKILL:
                assert ended == 0, f"the guest ended with {ended}; see {keeper.log}"
                break
            seen["before the session's id is known" if not session_file.exists() else f"after {method}"] += 1
            if chance.randint(0, 1):
                keeper.restart()
                seen["with the server"] += 1
        found = _report(keeper, session_file.read_text().strip())
    assert found == _command_report(yard), "another report"
    return seen


def _lived(yard: Yard, keeper: Keeper, work: str, **arguments: object) -> int:
    """Have a guest live, and return how it ended."""
    return yard.zygote.wait(yard.zygote.start(work, keeper.log, **arguments))


def _command(keeper: Keeper, session_file: Path, resume: str) -> list[str]:
    policies = [word for policy in POLICIES for word in ("--policy", policy)]
    arguments = ["compare", "context-switch", "-p", f"vcpus={VCPUS}", "--events", str(_COMMAND_EVENTS)]
    arguments += [*policies, "--hypervisor", keeper.address, "--output", "json"]
    return [*arguments, "--resume", resume] if resume else [*arguments, "--session-file", str(session_file)]


def _report(keeper: Keeper, session_id: str) -> bytes:
    with Hypervisor(keeper.address, retry_seconds=10) as hypervisor:
        hypervisor.session(session_id)
        return hypervisor.priced(session_id, ()).report


_command_reports: dict[Yard, bytes] = {}


def _command_report(yard: Yard) -> bytes:
    """Return the report of a command that is left alone."""
    if yard not in _command_reports:
        with yard.keeper() as keeper:
            session_file = keeper.state / "id"
            assert _lived(yard, keeper, "command", arguments=_command(keeper, session_file, "")) == 0
            _command_reports[yard] = _report(keeper, session_file.read_text().strip())
    return _command_reports[yard]


def killed_closed_loop(yard: Yard, number: int) -> Counter[str]:
    """Kill a guest that acts on outcomes: what it has confirmed is gone, it is told so, and begins anew."""
    chance = Random(number)
    with yard.keeper() as keeper:
        session_file = keeper.state / "id"
        arrival = chance.randint(_CONFIRMED, 4 * len(LONG))
        arguments = {"address": keeper.address, "session_file": str(session_file)}
        assert _lived(yard, keeper, "closed loop", **arguments, method="get", arrival=arrival) != 0
        told = _told_on_resume(keeper, session_file.read_text())
        yard.check(run_session(keeper.address, "closed", LONG), "closed")
    return Counter({told: 1})


def _told_on_resume(keeper: Keeper, session_id: str) -> str:
    """Return what the next guest is told that wants to go on with a closed loop's session."""
    with Hypervisor(keeper.address) as hypervisor:
        found = hypervisor.session(session_id)
        session = hypervisor_pb2.CreateSessionResponse(session_id=session_id, limits=found.limits)
        columns = [Column(column) for column in found.config.columns]
        stream = EventStream(hypervisor, session, columns, lambda _: None, is_resumed=True)
        with pytest.raises(CouldNotFinish, match="start a new session"), stream:
            pass
    return "told to start a new session"
