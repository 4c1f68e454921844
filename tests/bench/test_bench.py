"""What the benchmarks are made of; that they run is shown by ``python -m tests.bench --quick``."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from hypervisor_svc.policies import policy_names, policy_vendors
from tests.bench import calls
from tests.bench.calls import copied, record
from tests.bench.cases import SVM, SWITCHES, VMX, case, engine, lane
from tests.bench.engine_lanes import by_machine, references
from tests.bench.growth import feed, fit, fit_of_logarithms, on_vcpus
from tests.bench.lanes import distinct_lanes
from tests.bench.loop import SUMMARY
from tests.bench.pair import found, loop_report
from tests.bench.port import MACHINES, REFERENCE, SYMBOLS
from tests.bench.table import Goal, Row, table


@pytest.mark.parametrize("count", [1, 16, 64])
def test_lanes_are_pairwise_distinct(count: int) -> None:
    """No two have the same policy, vendor and features; those of one reference stand together."""
    lanes = distinct_lanes(count)
    assert len({one.SerializeToString(deterministic=True) for one in lanes}) == count
    keys = [(one.vendor, one.features.rtm, one.features.bus_lock_detect) for one in lanes]
    assert sum(a != b for a, b in pairwise(keys)) == len(set(keys)) - 1


def test_too_many_lanes_are_refused() -> None:
    """A benchmark of fewer lanes than it says would be wrong."""
    with pytest.raises(ValueError, match="expected 10000"):
        distinct_lanes(10_000)


def test_references_are_told() -> None:
    """Lanes of other features have another reference."""
    lanes = [lane("xen"), lane("xen", rtm=True), lane("xen", SVM, bus_lock=True), lane("ignore")]
    assert references(lanes) == "2 VMX, 1 VMX rtm, 1 SVM bus_lock_detect"


def test_lanes_that_run_by_machine_are_found() -> None:
    """One that clusters accesses runs in the loop."""
    names = [name for name in policy_names() if VMX in policy_vendors(name)]
    whole = case(SWITCHES, 40_000)
    ran = [one.policy_name for one in by_machine(whole, [lane(name) for name in names])]
    assert len(ran) > 16
    assert set(ran) < set(names)
    assert "trap-and-cluster" not in ran


def test_recorded_calls_do_again_what_they_did() -> None:
    """The calls of a block have arrays of their own, and leave behind what the engine's have."""
    whole = case(SWITCHES, 40_000)
    config = whole.config(distinct_lanes(5, (VMX,)))
    one = engine(config)
    recorded = record((REFERENCE, SYMBOLS, MACHINES), lambda: one.feed(whole.events, SUMMARY))
    assert found(one.report()) == loop_report(whole, config)
    for each in recorded:
        assert each.calls
        loop = partial(calls.compiled, each.port)
        assert each.results(loop) == each.results(loop)
        assert each.run_seconds(loop) > 0


def test_an_array_that_is_given_twice_stays_one() -> None:
    """A reference that leads is given its own stories to follow."""
    array = np.zeros(3)
    first, number, second = copied((array, 5, array))
    assert (first is second, first is array, number) == (True, False, 5)


def test_a_line_is_fitted() -> None:
    """Slope, offset and the farthest point are those of the points."""
    assert fit({1.0: 5.0, 2.0: 7.0, 3.0: 9.0}) == pytest.approx((2, 3, 0), abs=1e-9)
    square = fit_of_logarithms({x: 3 * x * x for x in (1.0, 10.0, 100.0, 1000.0)})
    assert square == pytest.approx((2, np.log(3), 0), abs=1e-9)
    bent = fit_of_logarithms({1.0: 1.0, 2.0: 4.0, 4.0: 4.0})
    assert bent.residual > 0.2


def test_a_stream_of_more_vcpus_has_as_many_events_of_each() -> None:
    """Each vCPU runs the same stream, on a CPU of its own, and the engine takes it."""
    one = case(SWITCHES, 2_000)
    three = on_vcpus(one, 3)
    assert three.events.vcpus is not None
    for vcpu in range(3):
        mine = three.events.vcpus == vcpu
        assert (three.events.kinds[mine] == one.events.kinds).all()
    ours = feed(engine, three.config([lane("xen")]), three.blocks(1_000), 5)[1]
    assert ours.report().events == 3 * 2_000


def test_a_missed_goal_is_told_with_its_limit() -> None:
    """The table says NO, and below what limits the row."""
    rows = [
        Row("t", "met", 2, goal=Goal(1)),
        Row("t", "missed", 2, goal=Goal(1, is_most=True), limit="because"),
    ]
    lines = table(rows).splitlines()
    assert lines[2].endswith("yes")
    assert lines[3].endswith("NO [1]")
    assert lines[-1] == "[1] missed: because"
