"""Which shipped vectors each policy does not simply pass: what it declares, its known bugs, its failures.

``python -m tests.guest.vector_results`` writes ``vector_results.json`` again, after a change of a policy,
of the oracle or of a shipped vector; the difference is then to be read like one of code.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from exitlab.v1 import policy_pb2
from guest_svc import conform
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor
from guest_svc.vectors import SHIPPED, read_vectors
from guest_svc.vectors.judge import Case

RECORD: Final = Path(__file__).with_suffix(".json")
VENDORS: Final = (policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM)
# By "policy/vendor", then by "declared RULE", "known_bug" or "failed": the vectors' ids, in their order.
Results = dict[str, dict[str, list[str]]]


def all_lanes(hypervisor: Hypervisor) -> list[conform.LaneChoice]:
    """Return every policy, the wrong ones too, on every vendor that it exists on."""
    return conform.choose_lanes(hypervisor.policies(), ["all"], VENDORS)


def results_of(cases: Iterable[Case]) -> Results:
    """Return the ids of the vectors that are not passed or refused; of several rules each lists its own."""
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if case.result in ("passed", "refused"):
            continue
        rules = [f"declared {rule}" for rule in case.declared.split(", ")] if case.declared else [case.result]
        for rule in rules:
            found[f"{case.policy}/{case.vendor}"][rule].append(case.name)
    return {lane: dict(sorted(rules.items())) for lane, rules in sorted(found.items())}


def recorded() -> dict[str, Results]:
    """Return what is on record, by the vector file's name."""
    record: dict[str, Results] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def _text(record: dict[str, Results]) -> str:
    """Return a record as JSON with a line for each lane and rule."""
    files = []
    for name, lanes in record.items():
        parts = []
        for lane, rules in lanes.items():
            lines = [f"      {json.dumps(rule)}: {json.dumps(ids)}" for rule, ids in rules.items()]
            parts.append(f"    {json.dumps(lane)}: {{\n" + ",\n".join(lines) + "\n    }")
        files.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(files) + "\n}\n"


def main() -> None:
    """Run every shipped vector under every lane, and write the record."""
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as hypervisor:
        lanes = all_lanes(hypervisor)
        found = {
            path.name: results_of(conform.run_vectors(hypervisor, read_vectors(path), lanes).cases)
            for path in SHIPPED
        }
    RECORD.write_text(_text(found), encoding="utf-8")


if __name__ == "__main__":
    main()
