"""Every policy on many random streams of everything, run once for all tests that look at the results.

Beside them run the versions of KVM that have a known bug, with the one fact put right that makes it.

A policy that refuses a change of the guest's state cannot be compared from there on. So some streams
leave such changes out: together they let each policy go to the end of many.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np

from exitlab.v1 import policy_pb2, report_pb2
from hypervisor_svc.engine.records import Words
from hypervisor_svc.policies.base import tabulate
from tests.engine.build import SUMMARY, VENDOR_WORDS, engine_for, policies_on
from tests.engine.repairs import REPAIRS, repaired
from tests.model.streams import Mix, random_stream

STREAMS: Final = 560  # on each vendor
EVENTS: Final = 500


@dataclass(frozen=True, slots=True)
class Run:
    """One stream, and what each policy made of it."""

    seed: int
    mix: Mix
    lanes: tuple[report_pb2.LaneReport, ...]


@dataclass(frozen=True, slots=True)
class Runs:
    """All streams on one vendor, and how often each cell of a policy's table was taken on them."""

    runs: tuple[Run, ...]
    visits: dict[str, Words]


def mix_of_seed(seed: int, vendor: int) -> Mix:
    """Return everything, or a part of it that some policies need, on CPUs of all features by turns."""
    everything = Mix.everything(VENDOR_WORDS[vendor])
    guests_own = ("steps", "software_interrupts", "mov_ss", "io_breakpoints", "exits", "handlers")
    variants = (
        everything,
        everything.switched(False, *guests_own),
        replace(everything, nested=False),
        replace(everything, nested=False, debugger=False),
        replace(everything, nested=False, debugger=False, outside=False, reading=False),
        replace(everything, nested=False, debugger=False, host=False),
        replace(everything, computed=False),
    )
    turn = seed // len(variants)
    return replace(variants[seed % len(variants)], rtm=bool(turn & 1), bus_lock=bool(turn & 2))


@cache
def _mended(vendor: int, rtm: bool, bus_lock: bool) -> tuple[policy_pb2.PolicyTable, ...]:
    wrong = [name.removeprefix("kvm-") for name in policies_on(vendor, correct=False)]
    mix = Mix(rtm=rtm, bus_lock=bus_lock)
    return tuple(tabulate(repaired(version, vendor, mix)) for version in wrong if version in REPAIRS)


def _run(seed: int, vendor: int, visits: dict[str, Words]) -> Run:
    mix = mix_of_seed(seed, vendor)
    engine = engine_for(mix, *policies_on(vendor), *_mended(vendor, mix.rtm, mix.bus_lock), vendor=vendor)
    for lane in engine.lanes:
        lane.count_visits()
    engine.feed(random_stream(seed, EVENTS, mix), SUMMARY)
    for lane in engine.lanes:
        name = lane.message.name
        visits[name] = visits.get(name, np.zeros_like(lane.visits)) + lane.visits
    return Run(seed, mix, tuple(engine.report().lanes))


@cache
def runs_on(vendor: int) -> Runs:
    """Run all streams on a vendor."""
    visits: dict[str, Words] = {}
    runs = tuple(_run(seed, vendor, visits) for seed in range(STREAMS))
    return Runs(runs, visits)


def lanes_of(vendor: int, policy: str) -> Iterator[tuple[Run, report_pb2.LaneReport]]:
    """Yield what a policy made of each stream."""
    for run in runs_on(vendor).runs:
        for lane in run.lanes:
            if lane.policy == policy:
                yield run, lane
