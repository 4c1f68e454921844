"""What holds of every policy after every event, looked up in the records of vCPUs and physical CPUs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from exitlab.debugreg import DR7_RESET
from exitlab.events import EventColumns
from hypervisor_svc.arch import reference as ref
from hypervisor_svc.engine import Engine, records
from hypervisor_svc.engine.records import Words
from tests.engine.build import (
    SUMMARY,
    VENDOR_WORDS,
    VENDORS,
    engine_for,
    policies_on,
)
from tests.engine.decorate import decorated
from tests.model.second_model import Event, events_of
from tests.model.streams import DEFAULT_MIX, Mix, random_stream

NOT_RESIDENT: Final = 4
# Write the guest's DR7 to the processor, where it stays while the host runs: their files say so.
HOST_RUNS_ON_GUEST_DR7: Final = ("hyperplatform", "xen-pv")


def steps(engine: Engine, events: EventColumns) -> Iterator[Event]:
    """Feed a stream event by event, and yield each once it is applied."""
    for at, event in enumerate(events_of(events)):
        engine.feed(events.rows(at, at + 1), SUMMARY)
        yield event


def some_steps(vendor: int, *policies: str, mix: Mix = DEFAULT_MIX) -> Iterator[tuple[Event, Engine]]:
    """Yield each step of a few random streams, plain and, if nobody nests, decorated."""
    for seed in range(9 if mix.nested else 3):
        streams = [random_stream(seed, 200, mix)]
        if not mix.nested:
            streams.append(decorated(streams[0], seed, computed=mix.computed, all_retire=True))
        for events in streams:
            engine = engine_for(mix, *policies, vendor=vendor)
            for event in steps(engine, events):
                yield event, engine


def vcpus(engine: Engine) -> Iterator[tuple[str, Words, Words]]:
    """Return each lane's policy with the records of its vCPUs and physical CPUs."""
    for lane in engine.lanes:
        yield lane.message.name, lane.state.vcpus, lane.state.physical_cpus


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_vcpu_on_a_physical_cpu(vendor: int) -> None:
    """A vCPU below the top rung is the one resident on its CPU; out of the guest, its DR7 matches nothing."""
    for _, engine in some_steps(vendor, *policies_on(vendor)):
        for name, rows, cpus in vcpus(engine):
            for number, row in enumerate(rows):
                is_resident = row[records.RUNG] < NOT_RESIDENT
                assert is_resident == (row[records.RESIDENT_ON] != 0)
                if is_resident:
                    cpu = cpus[int(row[records.RESIDENT_ON]) - 1]
                    assert cpu[records.RESIDENT] == number + 1
                    masked = (DR7_RESET, int(cpu[records.HOST_DR7]))
                    is_masked = row[records.RUNG] == 0 or cpu[records.HARDWARE_DR7] in masked
                    assert is_masked or name in HOST_RUNS_ON_GUEST_DR7, name
            residents = [int(cpu[records.RESIDENT]) for cpu in cpus if cpu[records.RESIDENT]]
            assert len(set(residents)) == len(residents)


MIXES: Final = {
    "computed": Mix(),
    "recorded": Mix(computed=False),
    "nothing from outside": Mix(outside=False),
    "everything on vmx": Mix.everything("vmx"),
    "everything on svm": Mix.everything("svm"),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_truth_beside_the_beliefs(vendor: int, mix: Mix) -> None:
    """The registers that a lane compares with are the reference's, until it refuses a change of them."""
    if mix.nested and mix.vendors != (VENDOR_WORDS[vendor],):
        mix = replace(mix, nested=False)  # nested guests are left at other events
    compared: set[str] = set()
    for _, engine in some_steps(vendor, *policies_on(vendor), mix=mix):
        (one,) = engine.references.values()
        for lane in engine.lanes:
            if lane.state.counts[records.REFUSED]:
                continue
            compared.add(lane.message.name)
            for row, truth in zip(lane.state.vcpus, one.state, strict=True):
                ours = row[records.TRUE : records.TRUE_DR7 + 1].tolist()
                theirs = truth[: ref.DR7 + 1].tolist()
                undefined = int(truth[ref.UNDEFINED])
                ours[4], theirs[4] = ours[4] & ~undefined, theirs[4] & ~undefined
                assert ours == theirs, lane.message.name
                assert row[records.HAS_DE] == truth[ref.HAS_DE]
    assert compared == set(policies_on(vendor))


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_is_owed_before_an_entry(vendor: int) -> None:
    """A vCPU in the guest owes nothing; out of it, what it has done since is charged to its last exit."""
    for _, engine in some_steps(vendor, *policies_on(vendor)):
        for name, rows, _ in vcpus(engine):
            for row in rows:
                owes = int(row[records.PENDING_KEY]) != 0
                assert owes == (row[records.RUNG] != 0), name


@pytest.mark.parametrize("vendor", VENDORS)
def test_swap_never_intercepts(vendor: int) -> None:
    """P1: the intercept stays off, no MOV DR exits, and after each exit the shadow is the guest's."""
    for _, engine in some_steps(vendor, "swap-each-entry"):
        for _, rows, _ in vcpus(engine):
            for row in rows:
                assert row[records.ARMED] == 0
                assert row[records.TRAPPED] == 0
                if row[records.RUNG] > 0 and not row[records.TRUE_UNDEFINED]:
                    shadow = row[records.SHADOW : records.SHADOW + 4].tolist()
                    assert shadow == row[records.TRUE : records.TRUE + 4].tolist()
