"""Many sessions at once: what they reach together.

The guests are coroutines that send blocks encoded before, so that the hypervisor is what is measured.
"""

import asyncio
import os
import time
import uuid
from functools import partial
from typing import Any, Final

import grpc

from exitlab.blocks import ColumnCrcs
from exitlab.v1 import hypervisor_pb2, hypervisor_pb2_grpc, report_pb2
from guest_svc.window import WINDOW_BLOCKS
from tests.bench.cases import SWITCHES, Case, case, lane
from tests.bench.measure import alternate, say
from tests.bench.pair import address, check_report, loop_report, server
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row
from tests.bench.transport import encoded

TOPIC: Final = f"sessions at once, all events together, summary, kvm-6.14, {SWITCHES}"
COUNTS: Final = (1, 2, 8, 64)
GOALS: Final = {2: ("1", Goal(1.8)), 8: ("2", None), 64: ("2", Goal(0.8))}  # in whose rate, and the goal
_METHOD: Final = "/exitlab.v1.HypervisorService/StreamEvents"
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection each, as separate guests have
    ("grpc.max_send_message_length", -1),
]


class Guest:
    """One session of a stream."""

    def __init__(self, target: str, config: hypervisor_pb2.SessionConfig) -> None:
        """Connect."""
        self._channel = grpc.aio.insecure_channel(target, _OPTIONS)
        self._stub: Any = hypervisor_pb2_grpc.HypervisorServiceStub(self._channel)
        self._config = config
        self._call: Any = None
        self._session_id = ""

    async def open(self) -> None:
        """Create the session and open its stream."""
        request = hypervisor_pb2.CreateSessionRequest(request_id=uuid.uuid4().hex, config=self._config)
        self._session_id = (await self._stub.CreateSession(request)).session_id
        method: Any = self._channel.stream_stream(
            _METHOD, response_deserializer=hypervisor_pb2.StreamEventsResponse.FromString
        )
        self._call = method()
        opening = hypervisor_pb2.Open(session_id=self._session_id)
        await self._call.write(hypervisor_pb2.StreamEventsRequest(open=opening).SerializeToString())
        await self._call.read()

    async def send(self, messages: list[bytes]) -> None:
        """Send all blocks within the window and wait until they are applied."""
        for number, message in enumerate(messages):
            if number >= WINDOW_BLOCKS:
                await self._call.read()
            await self._call.write(message)
        for _ in range(min(WINDOW_BLOCKS, len(messages))):
            await self._call.read()

    async def finish(self, count: int, crcs: tuple[int, ...]) -> report_pb2.Report:
        """End the session and return its report."""
        request = hypervisor_pb2.FinishSessionRequest(
            session_id=self._session_id, event_count=count, column_crcs=crcs
        )
        response = await self._stub.FinishSession(request)
        await self._channel.close()
        return report_pb2.Report.FromString(response.report)


async def run_guests(
    target: str, config: hypervisor_pb2.SessionConfig, messages: list[bytes], whole: Case, count: int
) -> tuple[float, list[report_pb2.Report]]:
    """Run so many sessions at once; return seconds from the first block to the last, and the reports."""
    guests = [Guest(target, config) for _ in range(count)]
    for guest in guests:
        await guest.open()
    start = time.perf_counter()
    await asyncio.gather(*(guest.send(messages) for guest in guests))
    seconds = time.perf_counter() - start
    crcs = ColumnCrcs(whole.events.declared)
    crcs.update(whole.events)
    return seconds, [await guest.finish(len(whole.events), crcs.values) for guest in guests]


def rows(plan: Plan) -> list[Row]:
    """Return what 2, 8 and 64 sessions reach together."""
    say("1, 2, 8 and 64 sessions")
    total = plan.stream_events
    wholes = {count: case(SWITCHES, max(total // count, plan.session_events)) for count in COUNTS}
    messages = {count: encoded(whole) for count, whole in wholes.items()}
    config = wholes[1].config([lane("kvm-6.14")])
    target = address(plan.folder, "many")

    def run(count: int) -> tuple[float, list[report_pb2.Report]]:
        return asyncio.run(run_guests(target, config, messages[count], wholes[count], count))

    def seconds_of(count: int) -> float:
        return run(count)[0]

    with server(plan.folder, "many") as process:
        for count, whole in wholes.items():
            truth = loop_report(whole, config)
            for report in run(count)[1]:
                check_report(f"{count} sessions", truth, report)
        samples = alternate({str(count): partial(seconds_of, count) for count in COUNTS}, plan.rounds).scaled(
            {str(count): float(count * len(whole.events)) for count, whole in wholes.items()}
        )
        parts = {}
        for count, whole in wholes.items():
            cpu, ours = process.cpu_seconds(), time.process_time()
            seconds = {"wall": seconds_of(count)}
            seconds["guests' CPU"] = time.process_time() - ours
            seconds["hypervisor's CPU"] = process.cpu_seconds() - cpu
            events = count * len(whole.events)
            parts[count] = {f"{name} ns/event": taken / events * 1e9 for name, taken in seconds.items()}
    found = [Row(TOPIC, "1 session, events a second", 1 / samples.median("1"), "events/s", numbers=parts[1])]
    for count, (other, goal) in GOALS.items():
        numbers = {"events/s": 1 / samples.median(str(count)), **parts[count]}
        ratio = samples.speed(str(count), other)
        limit = "" if goal is None or goal.is_met(ratio) else _limit(parts, count)
        what = f"{count} sessions, rate of {'one' if other == '1' else 'two'}"
        found.append(Row(TOPIC, what, ratio, goal=goal, numbers=numbers, limit=limit))
    return found


def _limit(parts: dict[int, dict[str, float]], count: int) -> str:
    both = parts[count]["guests' CPU ns/event"] + parts[count]["hypervisor's CPU ns/event"]
    one, told = parts[1]["wall ns/event"], ", ".join(f"{name} {n:.1f}" for name, n in parts[count].items())
    cpus = os.cpu_count() or 1
    return (
        f"of {count} sessions: {told}; guests and hypervisor share {cpus} processors, on which {both:.1f} ns"
        f" of processor time an event allow {one * cpus / both:.2f} times one session's {one:.1f} ns at the"
        " most"
    )
