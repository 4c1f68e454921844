"""The guest tells which lanes the hypervisor ran event by event, and why."""

from exitlab.v1 import hypervisor_pb2, report_pb2
from guest_svc.lane_runs import WORTH_TELLING, notes, runs_of

LANES = [report_pb2.LaneReport(policy="kvm-6.14"), report_pb2.LaneReport(policy="trap-and-cluster")]


def some_run(
    lane: int, events: int, reason: int = hypervisor_pb2.LOOP_REASON_CLUSTERS
) -> hypervisor_pb2.LaneRun:
    """Return how a lane was run that had ``events`` in the loop."""
    share = hypervisor_pb2.LoopShare(reason=hypervisor_pb2.LoopReason.ValueType(reason), events=events)
    return hypervisor_pb2.LaneRun(lane=lane, machine_events=7, loop_shares=[share])


def test_what_took_long_is_told() -> None:
    """A lane that the loop ran for long has a line with the reason; one that it ran for a moment has none."""
    runs = runs_of([some_run(0, WORTH_TELLING - 1), some_run(1, WORTH_TELLING)], LANES)
    (line,) = notes(runs)
    assert line.endswith("as the policy counts accesses or cycles itself: trap-and-cluster (100,000 events).")
    assert [run["loop"][0]["events"] for run in runs] == [WORTH_TELLING - 1, WORTH_TELLING]


def test_every_reason_has_its_words() -> None:
    """All of the contract's reasons are told in words, and one of a later hypervisor by its number."""
    for number in [number for number in hypervisor_pb2.LoopReason.values() if number]:
        (line,) = notes(runs_of([some_run(0, WORTH_TELLING, number)], LANES))
        assert "reason" not in line
    (line,) = notes(runs_of([some_run(0, WORTH_TELLING, 99)], LANES))
    assert "of reason 99" in line


def test_lanes_that_nobody_asked_for_are_left_out() -> None:
    """A hypervisor that tells of more lanes than there are changes nothing."""
    assert runs_of([some_run(2, 1)], LANES) == []
