"""What it costs to keep sessions in a state directory."""

import time
from functools import partial
from typing import Final

from exitlab.v1 import hypervisor_pb2
from guest_svc.hypervisor import Hypervisor
from hypervisor_svc.journal import Checkpoint, Start
from hypervisor_svc.store import Store
from tests.bench.cases import SUMMARY, SWITCHES, case, engine
from tests.bench.lanes import distinct_lanes
from tests.bench.measure import Samples, alternate, check_same, say
from tests.bench.pair import BLOCK_EVENTS, address, found, server, stream
from tests.bench.plan import Plan
from tests.bench.table import Row

TOPIC: Final = f"sessions in a state directory, {SWITCHES}"
LANES: Final = (1, 16)  # of the streams
CHECKPOINT_LANES: Final = (16, 64)
_REPEATS: Final = 8  # of the stream, which then takes long enough for several checkpoints


def rows(plan: Plan) -> list[Row]:
    """Return what a state directory costs a stream, and what a checkpoint is."""
    say("a state directory")
    return [*_stream_rows(plan), *(_checkpoint_row(plan, lanes) for lanes in CHECKPOINT_LANES)]


def _stream_rows(plan: Plan) -> list[Row]:
    whole = case(SWITCHES, plan.stream_events)
    blocks = [*whole.blocks(BLOCK_EVENTS)] * _REPEATS
    kept, plain = ["--state-dir", str(plan.folder / "state")], list[str]()
    with (
        server(plan.folder, "kept", flags=kept),
        server(plan.folder, "plain", flags=plain),
        Hypervisor(address(plan.folder, "kept")) as with_state,
        Hypervisor(address(plan.folder, "plain")) as without,
    ):
        found_rows = []
        for lanes in LANES:
            config = whole.config(distinct_lanes(lanes))

            def seconds(hypervisor: Hypervisor, config: hypervisor_pb2.SessionConfig = config) -> float:
                return stream(hypervisor, config, blocks)[0]

            truth = found(stream(without, config, blocks)[1])
            check_same("a state directory", truth, found(stream(with_state, config, blocks)[1]))
            variants = {"with": partial(seconds, with_state), "without": partial(seconds, without)}
            samples = alternate(variants, plan.rounds)
            numbers = {
                f"{name}, events/s": len(whole.events) * _REPEATS / samples.median(name) for name in variants
            }
            what = f"{lanes} lane{'s' * (lanes > 1)}, rate of the same without"
            found_rows.append(Row(TOPIC, what, samples.speed("with", "without"), numbers=numbers))
    return found_rows


def _checkpoint_row(plan: Plan, lanes: int) -> Row:
    """Return the time of a checkpoint: to make it, and to store it."""
    whole = case(SWITCHES, plan.stream_events // 4)
    config = whole.config(distinct_lanes(lanes))
    one = engine(config)
    store = Store(plan.folder / f"checkpoints-{lanes}")
    request = hypervisor_pb2.CreateSessionRequest(request_id="bench", config=config)
    store.create(Start("bench", 1, "", request, config, ""))
    blocks = [*whole.blocks(BLOCK_EVENTS)]
    made: list[float] = []
    stored: list[float] = []
    size = 0
    for block in blocks:
        one.feed(block, int(SUMMARY))
        start = time.perf_counter()
        state = one.snapshot()
        made.append(time.perf_counter() - start)
        crcs = (0,) * len(config.columns)
        start = time.perf_counter()
        store.save_checkpoint("bench", Checkpoint(len(whole.events), 0, crcs, state, ()), 0.0)
        stored.append(time.perf_counter() - start)
        size = len(state)
    store.close()
    samples = Samples({"made": made, "stored": stored})
    numbers = {
        "to make, ms": samples.median("made") * 1e3,
        "to store, ms": samples.median("stored") * 1e3,
        "bytes": float(size),
    }
    both = numbers["to make, ms"] + numbers["to store, ms"]
    return Row(TOPIC, f"a checkpoint of {lanes} lanes", both, "ms", numbers=numbers)
