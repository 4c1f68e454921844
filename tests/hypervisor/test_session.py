"""A session's rules, without I/O."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from exitlab.blocks import ColumnCrcs, DecodedBlock
from exitlab.events import Column, EventColumns, EventKind
from exitlab.serving.refusals import (
    Aborted,
    AlreadyExists,
    DataLoss,
    InvalidRequest,
    OurFault,
    OutOfRange,
    Refused,
    WrongState,
)
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from hypervisor_svc.config import check_config
from hypervisor_svc.engine import BadEvents, BadSnapshot, EngineError, PolicyFailed
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.policies import NoSuchVendor, UnknownPolicy
from hypervisor_svc.policies.base import PolicyError
from hypervisor_svc.session import FAILED, FINISHED, STREAMING, SUSPENDED, Session

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM
COLUMNS = (Column.KINDS, Column.ARGS)
BAD_ARG = 255


class FakeEngine:
    """Counts events, and refuses an arg of 255."""

    def __init__(self) -> None:
        """Start at event 0."""
        self.applied_events = 0
        self.levels: list[int] = []
        self.failure: Exception | None = None
        self.report_failure: Exception | None = None
        self.streams = 0

    def start_stream(self) -> None:
        """Count the streams."""
        self.streams += 1

    def feed(self, events: EventColumns, level: int) -> list[outcome_pb2.OutcomePart]:
        """Count the events, and answer them above SUMMARY."""
        if self.failure is not None:
            raise self.failure
        assert events.args is not None
        bad = np.flatnonzero(events.args == BAD_ARG)
        if len(bad):
            raise BadEvents("block.args", self.applied_events + int(bad[0]), "no such register")
        first, self.applied_events = self.applied_events, self.applied_events + len(events)
        self.levels.append(level)
        if level <= outcome_pb2.OUTCOME_LEVEL_SUMMARY:
            return []
        return [outcome_pb2.OutcomePart(first_event=first, event_count=len(events), is_last_part=True)]

    def report(self) -> report_pb2.Report:
        """Return how many events there were."""
        if self.report_failure is not None:
            raise self.report_failure
        return report_pb2.Report(schema=1, events=self.applied_events)

    def tell_again(self, part: outcome_pb2.OutcomePart) -> None:
        """Say that it was told again."""
        part.lane += 100

    def size_bytes(self) -> int:
        """Return 100 bytes for each event."""
        return 100 * self.applied_events

    def snapshot(self) -> bytes:
        """Return the number of events."""
        return str(self.applied_events).encode()

    def restore(self, snapshot: bytes) -> None:
        """Go on from a number of events."""
        if not snapshot.isdigit():
            raise BadSnapshot("no number")
        self.applied_events = int(snapshot)

    def lane_runs(self) -> list[hypervisor_pb2.LaneRun]:
        """Return one lane, by the loop."""
        return [hypervisor_pb2.LaneRun(machine_events=0)]

    def state_digest(self) -> int:
        """Return something that depends on the state."""
        return self.applied_events + 1


def some_config(**changes: Any) -> hypervisor_pb2.SessionConfig:
    """Return a config that is fine, with changes."""
    fields: dict[str, Any] = {
        "lanes": [policy_pb2.Lane(policy_name="known", vendor=VMX)],
        "columns": COLUMNS,
        "vcpus": 2,
        "breakpoints": hypervisor_pb2.BREAKPOINT_MODE_RECORDED,
        "leading_vendor": VMX,
        "label": "test",
    }
    return hypervisor_pb2.SessionConfig(**{**fields, **changes})


class Sender:
    """A well-behaved guest: knows where it is and what the digests are."""

    def __init__(self) -> None:
        """Start at event 0."""
        self.next_event = 0
        self.crcs = ColumnCrcs(COLUMNS)

    def block(self, *args: int) -> DecodedBlock:
        """Return the next block, one event an argument."""
        events = some_events(*args)
        self.crcs.update(events)
        block = DecodedBlock(self.next_event, events, self.crcs.values)
        self.next_event += len(args)
        return block


def some_events(*args: int) -> EventColumns:
    """Return MOV DR events with these args."""
    kinds = np.full(len(args), EventKind.MOV_TO_DR, np.uint8)
    return EventColumns(kinds=kinds, args=np.array(args, np.uint8))


def new_session(**changes: Any) -> Session:
    """Return a session with a fake engine."""
    return Session("id", some_config(**changes), FakeEngine, ServerLimits(max_block_events=8))


def opened(session: Session, **fields: int) -> int:
    """Open the session and return the epoch."""
    return session.open(hypervisor_pb2.Open(session_id="id", **fields))[0].epoch


def state_of(session: Session) -> bytes:
    """Return all that a client can see of a session's state, but not its stream's epoch."""
    return session.status().SerializeToString(deterministic=True)


def test_a_whole_conversation_ends_in_a_report() -> None:
    """Blocks advance applied, committed and the digests; finish returns a report that carries them."""
    session, sender = new_session(), Sender()
    assert session.status().state == SUSPENDED
    epoch = opened(session)
    assert session.apply(epoch, sender.block(1, 2, 3)) == []
    assert session.apply(epoch, sender.block(4)) == []
    expected = hypervisor_pb2.SessionStatus(
        session_id="id",
        state=STREAMING,
        applied_events=4,
        committed_events=4,
        epoch=1,
        column_crcs=sender.crcs.values,
        state_digest=5,
        label="test",
    )
    assert session.status() == expected
    report = report_pb2.Report.FromString(session.finish(4, sender.crcs.values))
    assert report == report_pb2.Report(
        schema=1, events=4, columns=session.config.columns, column_crcs=sender.crcs.values
    )
    expected.state = FINISHED
    assert session.status() == expected


def test_plain_events_need_no_digests_and_count_the_same() -> None:
    """An EventList has no digests to check; the session's own advance as with a block."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, DecodedBlock(0, sender.block(1, 2).events, None))
    session.apply(epoch, sender.block(3))
    assert session.finish(3, sender.crcs.values)


@pytest.mark.parametrize("cuts", [(6,), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1), (5, 1)])
def test_the_report_does_not_depend_on_the_cuts(cuts: Sequence[int]) -> None:
    """Blocks and streams may be cut anywhere: the report's bytes stay the same."""
    whole, sender = new_session(), Sender()
    whole.apply(opened(whole), sender.block(*range(6)))
    expected = whole.finish(6, sender.crcs.values)
    session, sender = new_session(), Sender()
    for count in cuts:
        epoch = opened(session, received_events=sender.next_event)
        session.apply(epoch, sender.block(*range(sender.next_event, sender.next_event + count)))
        session.cut(epoch)
    assert session.finish(6, sender.crcs.values) == expected


def plain(first_event: int, *args: int) -> DecodedBlock:
    """Return plain events, which start anywhere and have no digests."""
    return DecodedBlock(first_event, some_events(*args), None)


def elsewhere(first_event: int, *args: int) -> DecodedBlock:
    """Return a block that starts anywhere, with digests that are never looked at."""
    return DecodedBlock(first_event, some_events(*args), (0, 0))


def damaged(block: DecodedBlock, column: int) -> DecodedBlock:
    """Return a block whose stated digest of a column is wrong."""
    assert block.column_crcs is not None
    crcs = list(block.column_crcs)
    crcs[column] ^= 1
    return DecodedBlock(block.first_event, block.events, tuple(crcs))


def sent(*args: int) -> DecodedBlock:
    """Return the block that a guest sends after events 1 and 2."""
    sender = Sender()
    sender.block(1, 2)
    return sender.block(*args)


@pytest.mark.parametrize(
    ("block", "error", "reason", "field", "place"),
    [
        (elsewhere(3, 1), OutOfRange, "GAP", "block.first_event", {"first_event": 3, "next_event": 2}),
        (elsewhere(3), OutOfRange, "GAP", "block.first_event", {"first_event": 3, "next_event": 2}),
        (
            elsewhere(0, 1, 2),
            AlreadyExists,
            "ALREADY_APPLIED",
            "block.first_event",
            {"first_event": 0, "next_event": 2},
        ),
        (
            elsewhere(1, 1, 2, 3),
            AlreadyExists,
            "ALREADY_APPLIED",
            "block.first_event",
            {"first_event": 1, "next_event": 2},
        ),
        (
            elsewhere(1),
            AlreadyExists,
            "ALREADY_APPLIED",
            "block.first_event",
            {"first_event": 1, "next_event": 2},
        ),
        (
            elsewhere(2, *range(9)),
            InvalidRequest,
            "BLOCK_TOO_LARGE",
            "block.event_count",
            {"first_event": 2, "next_event": 2},
        ),
        (plain(3, 1), OutOfRange, "GAP", "events.first_event", {"first_event": 3, "next_event": 2}),
        (
            plain(1),
            AlreadyExists,
            "ALREADY_APPLIED",
            "events.first_event",
            {"first_event": 1, "next_event": 2},
        ),
        (
            plain(2, *range(9)),
            InvalidRequest,
            "BLOCK_TOO_LARGE",
            "events.events",
            {"first_event": 2, "next_event": 2},
        ),
        (plain(2, 3, BAD_ARG), InvalidRequest, "BAD_EVENT", "events.events.arg", {"event": 3}),
        (elsewhere(2), DataLoss, "DIGEST_MISMATCH", "block.column_crcs[0]", {"first_event": 2}),
        (damaged(sent(3, 4), 0), DataLoss, "DIGEST_MISMATCH", "block.column_crcs[0]", {"first_event": 2}),
        (damaged(sent(3, 4), 1), DataLoss, "DIGEST_MISMATCH", "block.column_crcs[1]", {"first_event": 2}),
        (sent(3, BAD_ARG), InvalidRequest, "BAD_EVENT", "block.args", {"event": 3}),
    ],
)
def test_a_refused_block_changes_nothing(
    block: DecodedBlock, error: type[Refused], reason: str, field: str, place: dict[str, int]
) -> None:
    """A block that breaks a rule names field and place, and the right block still fits after it."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    before = state_of(session)
    with pytest.raises(error) as refused:
        session.apply(epoch, block)
    assert (refused.value.reason, refused.value.field, refused.value.place) == (reason, field, place)
    assert state_of(session) == before
    session.apply(epoch, sender.block(3))
    assert session.finish(3, sender.crcs.values)


@pytest.mark.parametrize("block", [sent(), plain(2)])
def test_no_events_are_applied_without_a_trace(block: DecodedBlock) -> None:
    """A block of no events in the right place is taken, and changes nothing."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    before = state_of(session)
    assert session.apply(epoch, block) == []
    assert state_of(session) == before
    assert session.finish(2, sender.crcs.values)


FAILURES = [
    (EngineError("it is full"), OurFault, "ENGINE_FAILED", "", "the engine failed {where}: it is full"),
    (KeyError("x"), OurFault, "ENGINE_FAILED", "", "the engine failed {where}: its log says more"),
    (
        PolicyFailed("mine: live-lock", lane=3),
        WrongState,
        "POLICY_FAILED",
        "config.lanes[3]",
        "the policy cannot go on {where}: mine: live-lock",
    ),
]


def fails_alike(session: Session, attempts: Sequence[Callable[[], object]], refusal: Refused) -> None:
    """Check that each attempt at a failed session is refused alike, and that the status says why."""
    for attempt in attempts:
        with pytest.raises(type(refusal)) as refused:
            attempt()
        assert str(refused.value) == str(refusal)
        assert refused.value.reason == refusal.reason
    status = session.status()
    assert (status.state, status.state_digest) == (FAILED, 0)
    assert status.note == f"{refusal.reason}: {refusal.message}"


@pytest.mark.parametrize(("error", "kind", "reason", "field", "said"), FAILURES)
def test_nothing_is_built_on_an_engine_that_failed(
    error: Exception, kind: type[Refused], reason: str, field: str, said: str
) -> None:
    """Whose fault ever it is, a session that failed in a block says why to whatever comes."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    before = session.status()
    engine = session._engine
    assert isinstance(engine, FakeEngine)
    engine.failure = error
    attempts: list[Callable[[], object]] = [
        lambda: session.apply(epoch, sender.block(3)),
        lambda: session.apply(epoch, sender.block(4)),
        partial(opened, session),
        partial(session.confirm, epoch, 1),
        partial(session.finish, 2, (0, 0)),
        session.report,
        session.running_report,
    ]
    refusal = kind(reason, said.format(where="in the block at event 2"), field=field)
    fails_alike(session, attempts, refusal)
    session.cut(epoch)
    after = session.status()
    assert after.state == FAILED
    after.state, after.note, after.state_digest = before.state, before.note, before.state_digest
    assert after == before


@pytest.mark.parametrize(("error", "kind", "reason", "field", "said"), FAILURES)
def test_an_end_that_fails(error: Exception, kind: type[Refused], reason: str, field: str, said: str) -> None:
    """Where the report at the end cannot be made, there is none, and the session has failed."""
    session, sender = new_session(), Sender()
    session.apply(opened(session), sender.block(1, 2))
    engine = session._engine
    assert isinstance(engine, FakeEngine)
    engine.report_failure = error
    finish = partial(session.finish, 2, sender.crcs.values)
    refusal = kind(reason, said.format(where="in the report"), field=field)
    fails_alike(session, [finish, finish, session.report, session.running_report], refusal)


def test_a_report_so_far_that_fails_changes_nothing() -> None:
    """A policy that cannot tell its registers now may be able to after the next events."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    before = state_of(session)
    engine = session._engine
    assert isinstance(engine, FakeEngine)
    engine.report_failure = PolicyFailed("mine: live-lock", lane=0)
    with pytest.raises(WrongState, match="live-lock") as refused:
        session.running_report()
    assert (refused.value.reason, refused.value.field) == ("POLICY_FAILED", "config.lanes[0]")
    assert state_of(session) == before
    engine.report_failure = None
    session.apply(epoch, sender.block(3))
    assert session.finish(3, sender.crcs.values)


def test_the_engine_learns_of_each_stream() -> None:
    """A new stream is told decisions anew, so the engine hears of every one that opens."""
    session = new_session()
    engine = session._running_engine
    assert isinstance(engine, FakeEngine)
    opened(session)
    with pytest.raises(Aborted):
        opened(session, expected_epoch=7)
    assert engine.streams == 1
    opened(session)
    assert engine.streams == 2


def test_a_second_open_fences_the_first() -> None:
    """After another Open, whatever the older stream does is refused, and its end suspends nothing."""
    session, sender = new_session(), Sender()
    older = opened(session)
    newer = opened(session)
    block = sender.block(1)
    with pytest.raises(Aborted, match="newer stream") as refused:
        session.apply(older, block)
    assert (refused.value.reason, refused.value.place) == ("FENCED", {"epoch": newer})
    with pytest.raises(Aborted):
        session.confirm(older, 0)
    session.cut(older)
    assert session.state == STREAMING
    session.apply(newer, block)
    session.cut(newer)
    assert session.state == SUSPENDED


def test_open_says_where_to_go_on() -> None:
    """A resumed stream learns the next event and the digests there."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    session.cut(epoch)
    answer, _ = session.open(hypervisor_pb2.Open(expected_epoch=epoch, received_events=2))
    assert answer == hypervisor_pb2.Opened(
        next_event=2, committed_events=2, epoch=epoch + 1, column_crcs=sender.crcs.values
    )


@pytest.mark.parametrize(
    ("level", "opening", "error", "reason", "field"),
    [
        (0, {"expected_epoch": 7}, Aborted, "EPOCH_MISMATCH", "open.expected_epoch"),
        (0, {"received_events": 3}, OutOfRange, "RECEIVED_TOO_MANY", "open.received_events"),
        (2, {"received_events": 1}, WrongState, "OUTCOMES_NOT_KEPT", "open.received_events"),
    ],
)
def test_a_refused_open_leaves_the_older_stream(
    level: int, opening: dict[str, int], error: type[Refused], reason: str, field: str
) -> None:
    """An Open that is refused fences nobody."""
    session, sender = new_session(outcome_level=level), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    session.confirm(epoch, level)
    with pytest.raises(error) as refused:
        opened(session, **opening)
    assert (refused.value.reason, refused.value.field) == (reason, field)
    session.apply(epoch, sender.block(3))


def test_outcomes_of_the_asked_level_are_returned() -> None:
    """The engine is fed at the config's level, and what it answers is handed on; 0 means SUMMARY."""
    engines: list[FakeEngine] = []

    def make() -> FakeEngine:
        engines.append(FakeEngine())
        return engines[-1]

    for level, expected in ((0, 1), (1, 1), (4, 4)):
        session = Session("id", some_config(outcome_level=level), make, ServerLimits(max_block_events=8))
        responses = session.apply(opened(session), Sender().block(1, 2))
        assert engines[-1].levels == [expected]
        parts = [hypervisor_pb2.StreamEventsResponse.FromString(data).outcomes for data in responses]
        assert [part.event_count for part in parts] == ([2] if level > 1 else [])


def test_confirming_outcomes_that_are_not_there_is_refused() -> None:
    """A client cannot have outcomes of events that are not applied."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1, 2))
    session.confirm(epoch, 2)
    with pytest.raises(OutOfRange) as refused:
        session.confirm(epoch, 3)
    assert (refused.value.reason, refused.value.field) == ("RECEIVED_TOO_MANY", "confirm.received_events")
    assert session.confirmed_events == 2


@pytest.mark.parametrize(
    ("event_count", "crcs_off", "reason", "field"),
    [
        (1, 0, "EVENT_COUNT_MISMATCH", "event_count"),
        (3, 0, "EVENT_COUNT_MISMATCH", "event_count"),
        (2, 1, "DIGEST_MISMATCH", "column_crcs"),
    ],
)
def test_finish_takes_only_the_true_end(event_count: int, crcs_off: int, reason: str, field: str) -> None:
    """A wrong count or wrong digests make no report, before the end and after it."""
    session, sender = new_session(), Sender()
    session.apply(opened(session), sender.block(1, 2))
    wrong = tuple(crc ^ crcs_off for crc in sender.crcs.values)
    for _ in range(2):
        with pytest.raises(WrongState) as refused:
            session.finish(event_count, wrong)
        assert (refused.value.reason, refused.value.field) == (reason, field)
        stored = session.finish(2, sender.crcs.values)
    assert session.finish(2, sender.crcs.values) == session.report() == stored


def test_digests_of_too_few_columns_do_not_finish() -> None:
    """Every declared column has its digest at the end."""
    session, sender = new_session(), Sender()
    session.apply(opened(session), sender.block(1))
    with pytest.raises(WrongState, match="kinds, args"):
        session.finish(1, sender.crcs.values[:1])
    with pytest.raises(WrongState) as refused:
        session.report()
    assert refused.value.reason == "SESSION_NOT_FINISHED"


def test_a_finished_session_takes_no_more() -> None:
    """After the end, streams and blocks are refused; the report and the status stay."""
    session, sender = new_session(), Sender()
    epoch = opened(session)
    session.apply(epoch, sender.block(1))
    session.finish(1, sender.crcs.values)
    before = state_of(session)
    for attempt in (
        lambda: session.apply(epoch, sender.block(2)),
        lambda: session.confirm(epoch, 1),
        lambda: opened(session),
    ):
        with pytest.raises(WrongState) as refused:
            attempt()
        assert refused.value.reason == "SESSION_FINISHED"
    session.cut(epoch)
    assert state_of(session) == before
    assert session.running_report() == report_pb2.Report.FromString(session.report())


def resolve_policy(
    name: str, vendor: policy_pb2.Vendor.ValueType, _features: policy_pb2.CpuFeatures
) -> policy_pb2.PolicyTable:
    """Know one policy, on one vendor."""
    if (name, vendor) == ("known", SVM):
        raise NoSuchVendor("policy 'known' exists on vmx only")
    if name == "broken":
        raise PolicyError("broken: at ENTER_LOOP (always) the policy fails: KeyError: 5")
    if name != "known":
        raise UnknownPolicy(f"unknown policy {name!r}; did you mean known?")
    return policy_pb2.PolicyTable(name=name, vendor=vendor)


def check_table(table: policy_pb2.PolicyTable) -> None:
    """Refuse a table of one name."""
    if table.name == "bad":
        raise ValueError("bad: a cell is missing")


def lane(**changes: Any) -> policy_pb2.Lane:
    """Return a good lane with changes."""
    fields: dict[str, Any] = {"policy_name": "known", "vendor": VMX}
    return policy_pb2.Lane(**{**fields, **changes})


BAD_TABLE = policy_pb2.PolicyTable(name="bad", vendor=VMX)
SVM_TABLE = policy_pb2.PolicyTable(name="mine", vendor=SVM)


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"lanes": []}, "config.lanes", "0 lanes, but a session has 1 to 3"),
        ({"lanes": [lane()] * 4}, "config.lanes", "4 lanes"),
        (
            {"lanes": [lane(), lane(), lane(policy_name="knwon")]},
            "config.lanes[2].policy_name",
            "did you mean known",
        ),
        ({"lanes": [policy_pb2.Lane(vendor=VMX)]}, "config.lanes[0]", "policy_name or a policy_table"),
        ({"lanes": [lane(vendor=0)]}, "config.lanes[0].vendor", "not given"),
        ({"lanes": [lane(vendor=9)]}, "config.lanes[0].vendor", "9 is unknown"),
        (
            {"lanes": [policy_pb2.Lane(vendor=VMX, policy_table=SVM_TABLE)]},
            "config.lanes[0].policy_table.vendor",
            "another vendor",
        ),
        (
            {"lanes": [policy_pb2.Lane(vendor=VMX, policy_table=BAD_TABLE)]},
            "config.lanes[0].policy_table",
            "a cell is missing",
        ),
        (
            {"lanes": [lane(), policy_pb2.Lane(vendor=VMX, policy_table=policy_pb2.PolicyTable(vendor=VMX))]},
            "config.lanes[1].policy_table.name",
            "0 characters, expected 1 to 256",
        ),
        (
            {
                "lanes": [
                    policy_pb2.Lane(
                        vendor=VMX, policy_table=policy_pb2.PolicyTable(name="x" * 257, vendor=VMX)
                    )
                ]
            },
            "config.lanes[0].policy_table.name",
            "257 characters, expected 1 to 256",
        ),
        ({"lanes": [lane(vendor=2)]}, "config.lanes[0].vendor", "exists on vmx only"),
        ({"columns": []}, "config.columns", "KINDS"),
        ({"columns": [2, 3]}, "config.columns", "KINDS"),
        ({"columns": [1, 3, 2]}, "config.columns[2]", "columns ascend"),
        ({"columns": [1, 2, 2]}, "config.columns[2]", "columns ascend"),
        ({"columns": [1, 10]}, "config.columns[1]", "10 is no column"),
        ({"columns": [0, 1]}, "config.columns[0]", "0 is no column"),
        ({"vcpus": 0}, "config.vcpus", "a session has 1 to 16"),
        ({"vcpus": 17}, "config.vcpus", "a session has 1 to 16"),
        ({"physical_cpus": 17}, "config.physical_cpus", "a session has 1 to 16"),
        ({"physical_cpus": 1}, "config.initial_physical_cpus", "where each of 2 vCPUs starts"),
        ({"initial_physical_cpus": [0]}, "config.initial_physical_cpus", "1 physical CPUs for 2 vCPUs"),
        ({"vcpu_machines": [0]}, "config.vcpu_machines", "1 virtual machines for 2 vCPUs"),
        ({"initial_physical_cpus": [0, 2]}, "config.initial_physical_cpus[1]", "there are 2"),
        ({"breakpoints": 0}, "config.breakpoints", "RECORDED or BREAKPOINT_MODE_COMPUTED"),
        ({"breakpoints": 3}, "config.breakpoints", "3 is unknown"),
        ({"leading_vendor": 0}, "config.leading_vendor", "VENDOR_VMX or VENDOR_SVM"),
        ({"outcome_level": 5}, "config.outcome_level", "5 is no level"),
        ({"vm_profile": "kvm"}, "config.vm_profile", "there is kvm-default"),
        ({"label": "x" * 257}, "config.label", "257 characters"),
    ],
)
def test_a_config_that_cannot_run_is_refused(changes: dict[str, Any], field: str, said: str) -> None:
    """Each rule of a config names the field that breaks it."""
    limits = ServerLimits(max_lanes=3, max_vcpus=16)
    with pytest.raises(InvalidRequest) as refused:
        check_config(some_config(**changes), limits, resolve_policy, check_table)
    assert refused.value.field == field
    assert said in refused.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"columns": list(range(1, 10))},
        {"vcpus": 16},
        {"physical_cpus": 1, "initial_physical_cpus": [0, 0]},
        {"physical_cpus": 4, "initial_physical_cpus": [3, 1]},
        {"vm_profile": "kvm-default"},
        {"lanes": [policy_pb2.Lane(vendor=SVM, policy_table=SVM_TABLE)]},
    ],
)
def test_a_config_that_can_run_is_taken(changes: dict[str, Any]) -> None:
    """What the rules allow passes."""
    check_config(some_config(**changes), ServerLimits(max_vcpus=16), resolve_policy, check_table)
