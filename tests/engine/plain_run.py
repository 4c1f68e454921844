"""Prints what the engine makes of a few streams; run with and without compilation, it prints the same."""

import hashlib
from collections.abc import Iterator
from typing import Final

from hypervisor_svc.engine import Engine
from tests.engine.build import FULL, SVM, VMX, engine_for, policies_on
from tests.engine.decorate import any_stream, mix_of
from tests.model.streams import Mix

MIXES: Final = {
    VMX: (Mix(), Mix(computed=False, rtm=True, bus_lock=True), mix_of("everything", VMX)),
    SVM: (Mix(computed=False), Mix(vcpus=1, cpus=1, partial_stage=True), mix_of("everything", SVM)),
}
EVENTS: Final = 100
BY_MACHINE: Final = ("kvm-3.14", "kvm-6.8", "kvm-6.14", "xen", "virtualbox")
ALONE: Final = Mix(vcpus=2, scheduling=False, kicks=False, host=False, outside=False)


def lines() -> Iterator[str]:
    """Return a line for each stream and vendor: digests of the report, of the outcomes and of the state."""
    for vendor, mixes in MIXES.items():
        for seed, mix in enumerate(mixes):
            yield f"{vendor} {seed} {_line(engine_for(mix, *policies_on(vendor), vendor=vendor), seed, mix)}"
        machines = engine_for(ALONE, *BY_MACHINE, vendor=vendor, least_events=1)
        yield f"{vendor} by machine {_line(machines, 0, ALONE)}"


def _line(engine: Engine, seed: int, mix: Mix) -> str:
    parts = engine.feed(any_stream(seed, EVENTS, mix), FULL)
    outcomes = b"".join(part.SerializeToString(deterministic=True) for part in parts)
    report = engine.report().SerializeToString(deterministic=True)
    digests = (hashlib.sha256(data).hexdigest()[:16] for data in (report, outcomes))
    return " ".join(
        [*digests, f"{engine.state_digest():016x}", *(str(run.machine_events) for run in engine.lane_runs())]
    )


if __name__ == "__main__":
    from hypervisor_svc.arch.compiled import IS_PLAIN

    print("plain" if IS_PLAIN else "compiled")
    print("\n".join(lines()))
