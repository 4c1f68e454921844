"""Tables that pass the check and still cannot go on with some events."""

import pytest

from exitlab.v1 import policy_pb2
from hypervisor_svc.engine import Engine, PolicyFailed
from tests.engine.build import DECISIONS, SUMMARY, engine_of, get_dr, set_dr, stream

KEEP, SECOND = 0xFF, 1
DISARM, REEXECUTE, ARM, EMULATE = 1, 2, 4, 8


def moody() -> policy_pb2.PolicyTable:
    """Return a policy that emulates writes and runs reads again, armed once more by a memory that moves."""
    table = policy_pb2.PolicyTable(
        name="moody",
        vendor=policy_pb2.VENDOR_VMX,
        check_order=["UD", "GP", "GD"],
        memories=["calm", "moved"],
        initially_armed=True,
        actions=["DISARM", "REEXECUTE", "ARM", "EMULATE"],
    )
    add = table.moments.add
    add(
        moment=policy_pb2.MOMENT_DR_TRAPPED,
        inputs=["is_write"],
        sizes=[2],
        actions=[DISARM | REEXECUTE, EMULATE],
        next_memory=bytes([0, 0]),
    )
    add(moment=policy_pb2.MOMENT_ENTER_LOOP, actions=[0], next_memory=bytes([SECOND]))
    add(
        moment=policy_pb2.MOMENT_ENTER_GUEST,
        inputs=["memory"],
        sizes=[2],
        actions=[0, ARM],
        next_memory=bytes([KEEP, KEEP]),
    )
    return table


def moody_engine() -> Engine:
    """Return an engine whose second lane can fail."""
    return engine_of("kvm-6.14", moody(), "ignore")


@pytest.mark.parametrize("level", [SUMMARY, DECISIONS])
def test_a_live_lock_names_its_lane(level: int) -> None:
    """An access that exits again however often it is run is the policy's fault, and the lane is known."""
    engine = moody_engine()
    engine.feed(stream(set_dr(0, 1)), level)
    with pytest.raises(PolicyFailed, match=r"moody: .*live-lock") as failed:
        engine.feed(stream(get_dr(0)), level)
    assert failed.value.lane == 1


def test_a_report_that_fails_changes_nothing() -> None:
    """Registers that cannot be read are told by the lane, and the engine goes on as if not asked."""
    asked, left = moody_engine(), moody_engine()
    for engine in (asked, left):
        engine.feed(stream(set_dr(0, 1)), SUMMARY)
    with pytest.raises(PolicyFailed) as failed:
        asked.report()
    assert failed.value.lane == 1
    for engine in (asked, left):
        engine.feed(stream(set_dr(1, 2), set_dr(0, 3)), SUMMARY)
    assert asked.state_digest() == left.state_digest()
