"""One stream end to end, against one event a message and against a raw socket."""

import time
from typing import Final

from exitlab.blocks import ColumnCrcs, DecodedBlock, decode_request, encode_block
from exitlab.v1 import hypervisor_pb2
from guest_svc.hypervisor import Hypervisor
from guest_svc.workloads import find_workload
from tests.bench import bare_grpc, raw
from tests.bench.cases import SWITCHES, Case, case, engine, lane
from tests.bench.measure import Samples, alternate, say
from tests.bench.pair import (
    BLOCK_EVENTS,
    Process,
    address,
    check_report,
    loop_report,
    pair,
    stream,
    stream_singly,
)
from tests.bench.plan import Plan
from tests.bench.table import Goal, Row

TOPIC: Final = f"one stream, two processes, unix socket, summary, kvm-6.14, {SWITCHES}"
SINGLE_GOAL: Final = Goal(2500)
ENGINE_GOAL: Final = Goal(0.4)
BARE_GOAL: Final = Goal(0.25)


def encoded(events: Case) -> list[bytes]:
    """Return a stream's blocks as they go over the wire."""
    crcs = ColumnCrcs(events.events.declared)
    blocks = events.blocks(BLOCK_EVENTS)
    return [encode_block(block, number * BLOCK_EVENTS, crcs) for number, block in enumerate(blocks)]


def rows(plan: Plan) -> list[Row]:
    """Return the stream's rate, and what it is a multiple or a share of."""
    say("one stream, one event a message, raw sockets")
    whole = case(SWITCHES, plan.stream_events)
    single = whole.first(plan.single_events)
    config = whole.config([lane("kvm-6.14")])
    messages = encoded(whole)
    dropping, feeding, bare = plan.folder / "dropping", plan.folder / "feeding", address(plan.folder, "bare")
    with (
        pair(plan.folder, "one") as (process, hypervisor),
        raw.receiver(dropping),
        raw.receiver(feeding, config),
        bare_grpc.receiver(bare),
    ):
        truth, single_truth = loop_report(whole, config), loop_report(single, config)
        blocks = whole.blocks(BLOCK_EVENTS)
        check_report("one stream", truth, stream(hypervisor, config, blocks)[1])
        check_report("one event a message", single_truth, stream_singly(hypervisor, config, single)[1])
        check_report("the raw socket with the engine", truth, raw.send(feeding, messages)[1])
        generator = find_workload(SWITCHES).make({}, 0, plan.stream_events)
        samples = alternate(
            {
                "stream": lambda: stream(hypervisor, config, blocks)[0],
                "generated": lambda: stream(hypervisor, config, generator.blocks())[0],
                "single": lambda: stream_singly(hypervisor, config, single)[0],
                "raw": lambda: raw.send(dropping, messages)[0],
                "raw engine": lambda: raw.send(feeding, messages)[0],
                "bare gRPC": lambda: bare_grpc.send(bare, messages),
            },
            plan.rounds,
        )
        parts = _parts(whole, config, messages, hypervisor, process)
    events = dict.fromkeys(samples.seconds, float(len(whole.events))) | {"single": len(single.events)}
    return _as_rows(samples.scaled(events), parts)


def _parts(
    whole: Case,
    config: hypervisor_pb2.SessionConfig,
    messages: list[bytes],
    hypervisor: Hypervisor,
    process: Process,
) -> dict[str, float]:
    """Return nanoseconds an event of each part of the path, alone, and of each side's processor time."""
    blocks = whole.blocks(BLOCK_EVENTS)
    columns = whole.events.declared
    crcs, one = ColumnCrcs(columns), engine(config)
    decoded = [block for data in messages if isinstance(block := decode_request(data, columns), DecodedBlock)]

    def encode() -> None:
        running = ColumnCrcs(columns)
        for number, block in enumerate(blocks):
            encode_block(block, number * BLOCK_EVENTS, running)

    def digest() -> None:
        for block in blocks:
            crcs.update(block)

    def decode() -> None:
        for data in messages:
            decode_request(data, columns)

    def feed() -> None:
        for block in decoded:
            one.feed(block.events, int(config.outcome_level))

    seconds: dict[str, float] = {}
    for work in (encode, digest, decode, feed):
        start = time.perf_counter()
        work()
        seconds[work.__name__] = time.perf_counter() - start
    ours, theirs = time.process_time(), process.cpu_seconds()
    seconds["wall"] = stream(hypervisor, config, blocks)[0]
    seconds["guest's CPU"] = time.process_time() - ours
    seconds["hypervisor's CPU"] = process.cpu_seconds() - theirs
    return {f"{name} ns/event": taken / len(whole.events) * 1e9 for name, taken in seconds.items()}


def _as_rows(samples: Samples, parts: dict[str, float]) -> list[Row]:
    rates = {f"{name} events/s": 1 / samples.median(name) for name in samples.seconds}
    made = Row(
        TOPIC, "events a second, blocks made before", rates["stream events/s"], "events/s", numbers=parts
    )
    meanwhile = "events a second, blocks made by the workload meanwhile"
    found = [made, Row(TOPIC, meanwhile, rates["generated events/s"], "events/s")]
    for what, other, goal in (
        ("speed of one event a message", "single", SINGLE_GOAL),
        ("speed of a raw socket with this engine (decode, feed)", "raw engine", ENGINE_GOAL),
        ("speed of a raw socket with no work", "raw", BARE_GOAL),
    ):
        speed = samples.speed("stream", other)
        limit = "" if goal.is_met(speed) else _limit(parts, rates, other)
        found.append(Row(TOPIC, what, speed, goal=goal, numbers=rates, limit=limit))
    bare = samples.speed("bare gRPC", "raw")
    found.append(Row(TOPIC, "gRPC with no work: speed of a raw socket with no work", bare, numbers=rates))
    return found


def _limit(parts: dict[str, float], rates: dict[str, float], other: str) -> str:
    guest, host = parts["guest's CPU ns/event"], parts["hypervisor's CPU ns/event"]
    side, most = ("guest", guest) if guest > host else ("hypervisor", host)
    alone = ", ".join(f"{name.removesuffix(' ns/event')} {parts[name]:.1f}" for name in parts)
    bound, bare = (rate / rates[f"{other} events/s"] for rate in (1e9 / most, rates["bare gRPC events/s"]))
    return (
        f"the {side} uses {most:.1f} ns of processor time an event, so {bound:,.2f} is the most; gRPC that"
        f" drops the same messages reaches {bare:,.2f}; ns/event of each part alone: {alone}"
    )
