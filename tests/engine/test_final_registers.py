"""The registers that a report ends with: read from many vCPUs at once where nobody shares a CPU."""

import numpy as np
import pytest

from hypervisor_svc.engine import Engine, lane
from tests.engine.build import SUMMARY, VENDORS, engine_for, policies_on
from tests.engine.decorate import any_stream
from tests.model.streams import Mix

SHARED = Mix(vcpus=4, cpus=3, scheduling=True, kicks=False, host=False)
ALONE = Mix(vcpus=4, cpus=4, scheduling=False, kicks=False, host=False)


def fed(mix: Mix, vendor: int) -> Engine:
    """Return an engine of all policies that has seen a random stream."""
    engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
    engine.feed(any_stream(5, 300, mix), SUMMARY)
    return engine


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("mix", "alone"), [(SHARED, {True, False}), (ALONE, {True})])
def test_together_as_one_by_one(
    mix: Mix, alone: set[bool], vendor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that are done together say what each would say alone, and change nothing."""
    engine = fed(mix, vendor)
    before = engine.state_digest()
    together = [each.final_registers() for each in engine.lanes]
    are_alone = lane._are_alone
    met: set[bool] = set()

    def nobody(vcpus: np.ndarray, physical_cpus: np.ndarray) -> np.ndarray:
        found = are_alone(vcpus, physical_cpus)
        met.update(found.tolist())
        return np.zeros_like(found)

    monkeypatch.setattr(lane, "_are_alone", nobody)
    assert together == [each.final_registers() for each in engine.lanes]
    assert engine.state_digest() == before
    assert met == alone
    assert len({str(each) for each in together}) > 1
