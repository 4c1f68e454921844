"""Crashes of a server between the blocks of a session of the installed engine."""

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from exitlab.blocks import ColumnCrcs, DecodedBlock
from exitlab.events import Column
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc.config import resolved
from hypervisor_svc.journal import Start
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.parts import Parts
from hypervisor_svc.session import Session
from hypervisor_svc.store import Store
from tests.durable.journaled import FULL
from tests.durable.stored import loaded
from tests.hypervisor.test_session import SVM, VMX, some_config
from tests.model.streams import Mix, random_stream

EVENTS = 60
MIX = Mix()
# One of the lanes is not correct.
LANES = [("kvm-6.14", VMX), ("ignore", VMX), ("kvm-6.14", SVM)]
Told = dict[tuple[int, int], tuple[list[int], list[int], list[bytes]]]


def real_start(parts: Parts) -> Start:
    """Return a session of the installed engine, on two physical CPUs."""
    config = some_config(
        lanes=[policy_pb2.Lane(policy_name=name, vendor=vendor) for name, vendor in LANES],
        columns=list(Column),
        vcpus=MIX.vcpus,
        physical_cpus=MIX.physical_cpus,
        initial_physical_cpus=MIX.initial_physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        outcome_level=FULL,
    )
    request = hypervisor_pb2.CreateSessionRequest(request_id="r", config=config)
    runs = resolved(config, parts.policy_table)
    return Start("id", 1, "", request, runs, parts.engine_fingerprint)


class RealGuest:
    """A guest of the installed engine that keeps what it is told, by lane and first event."""

    def __init__(self, folder: Path) -> None:
        """Create the session in a state directory."""
        self.parts = Parts.installed()
        self.start = real_start(self.parts)
        self.events = random_stream(11, EVENTS, MIX)
        self.told: Told = {}
        self.repeats = 0
        self._decisions: dict[tuple[int, int], bytes] = {}
        self._folder = folder
        self.store = Store(folder)
        self.store.create(self.start)
        self.session = self._restored()

    def _restored(self) -> Session:
        (stored,) = loaded(self.store)
        make_engine = partial(self.parts.make_engine, stored.start.resolved)
        return Session.restored(stored, make_engine, ServerLimits(), self.store)

    def crash(self) -> None:
        """Have the session as the next server would."""
        self.store.close()
        self.store = Store(self._folder)
        self.session = self._restored()

    def open(self) -> int:
        """Open the session as one that has all it was told, in order, and return the next event."""
        received = max((first for _, first in self.told), default=0)  # not the last block's
        self._decisions.clear()
        opened, again = self.session.open(hypervisor_pb2.Open(received_events=received))
        crcs = ColumnCrcs(list(Column))
        crcs.update(self.events.rows(0, opened.next_event))
        assert crcs.values == tuple(opened.column_crcs)
        self._take(again)
        return opened.next_event

    def send(self, first: int, stop: int) -> None:
        """Send events as one block."""
        block = DecodedBlock(first, self.events.rows(first, stop), None)
        self._take(self.session.apply(self.session.epoch, block))

    def _take(self, responses: Iterable[bytes]) -> None:
        """Keep what is new, and compare what comes again."""
        for data in responses:
            part = hypervisor_pb2.StreamEventsResponse.FromString(data).outcomes
            for new in part.new_decisions:
                self._decisions[part.lane, new.number] = new.SerializeToString(deterministic=True)
            numbers = np.frombuffer(part.decisions, "<u2").tolist()
            decisions = [self._decisions[part.lane, number] for number in numbers]
            told = ([*part.stories], [*part.story_values], decisions)
            key = (part.lane, part.first_event)
            self.repeats += key in self.told
            assert self.told.setdefault(key, told) == told

    def commit(self) -> None:
        """Store a checkpoint, if there is anything new."""
        made = self.session.checkpoint()
        if made is not None:
            self.store.save_checkpoint("id", made, 0.0)
            self.session.committed(made.applied_events)

    def finish(self) -> bytes:
        """Finish and return the report."""
        crcs = ColumnCrcs(list(Column))
        crcs.update(self.events)
        return self.session.finish(EVENTS, crcs.values)


CUTS = [0, 7, 15, 16, 30, 38, 45, 53, EVENTS]


@pytest.mark.parametrize("commits", [(), (15,), (7, 30, 53), tuple(CUTS[1:-1])])
def test_a_server_that_crashes_after_every_block_changes_nothing(
    tmp_path: Path, commits: tuple[int, ...]
) -> None:
    """Report and outcomes are those of a session that nothing happened to, wherever it was committed."""
    whole = RealGuest(tmp_path / "whole")
    whole.open()
    for first, stop in pairwise(CUTS):
        whole.send(first, stop)
    expected = whole.finish()
    whole.store.close()
    guest = RealGuest(tmp_path / "crashing")
    for reached in CUTS[1:]:
        next_event = guest.open()
        assert next_event == max((cut for cut in commits if cut < reached), default=0)
        for first, stop in pairwise(cut for cut in CUTS if next_event <= cut <= reached):
            guest.send(first, stop)
            if stop in commits:
                guest.commit()
        guest.crash()
    assert guest.open() == max(commits, default=0)
    for first, stop in pairwise(cut for cut in CUTS if cut >= max(commits, default=0)):
        guest.send(first, stop)
    assert guest.finish() == expected
    assert guest.told == whole.told
    assert guest.repeats
    guest.crash()
    assert guest.finish() == expected
    guest.store.close()
