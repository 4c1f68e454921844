"""Prints what the engine makes of a few streams; run with and without compilation, it prints the same."""

import hashlib
from collections.abc import Iterator
from typing import Final

from tests.engine.build import FULL, SVM, VMX, engine_for, policies_on
from tests.engine.decorate import any_stream, mix_of
from tests.model.streams import Mix

MIXES: Final = {
    VMX: (Mix(), Mix(computed=False, rtm=True, bus_lock=True), mix_of("everything", VMX)),
    SVM: (Mix(computed=False), Mix(vcpus=1, cpus=1, partial_stage=True), mix_of("everything", SVM)),
}
EVENTS: Final = 100


def lines() -> Iterator[str]:
    """Return a line for each stream and vendor: digests of the report, of the outcomes and of the state."""
    for vendor, mixes in MIXES.items():
        for seed, mix in enumerate(mixes):
            engine = engine_for(mix, *policies_on(vendor), vendor=vendor)
            parts = engine.feed(any_stream(seed, EVENTS, mix), FULL)
            outcomes = b"".join(part.SerializeToString(deterministic=True) for part in parts)
            report = engine.report().SerializeToString(deterministic=True)
            digests = (hashlib.sha256(data).hexdigest()[:16] for data in (report, outcomes))
            yield " ".join([str(seed), str(vendor), *digests, f"{engine.state_digest():016x}"])


if __name__ == "__main__":
    from hypervisor_svc.arch.compiled import IS_PLAIN

    print("plain" if IS_PLAIN else "compiled")
    print("\n".join(lines()))
