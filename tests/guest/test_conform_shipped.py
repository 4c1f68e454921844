"""The shipped vectors under every policy: what is declared, known or wrong is on record, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_svc import conform
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.hypervisor import Hypervisor
from guest_svc.vectors import SHIPPED, read_vectors
from guest_svc.vectors.judge import Case
from tests.guest import vector_results

NEEDS_NO_DEVIATION = {
    *("kvm-4.6", "kvm-5.4", "kvm-5.7", "kvm-5.14", "kvm-6.14", "kvm-7.1", "kvm-6.14-skip-debug-controls"),
    *("bhyve", "nvmm", "xen/vmx", "virtualbox", "hardware-switch"),
}


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """Return a connection to a hypervisor of our own."""
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as connected:
        yield connected


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda path: path.stem)
def shipped(hypervisor: Hypervisor, request: pytest.FixtureRequest) -> tuple[Path, conform.Outcome]:
    """Return a shipped file and what came of it under every lane, run once for all tests."""
    path: Path = request.param
    lanes = vector_results.all_lanes(hypervisor)
    return path, conform.run_vectors(hypervisor, read_vectors(path), lanes)


def test_shipped_vectors_pass_under_every_policy_that_claims_to_be_correct(
    shipped: tuple[Path, conform.Outcome],
) -> None:
    """A guest sees what real processors answer, or a deviation that its policy lists with its source."""
    path, outcome = shipped
    failures = [case for case in outcome.failures if case.claims_correct]
    assert [(case.name, case.policy, case.vendor, case.note) for case in failures] == []
    if path == SHIPPED[0]:
        correct = [case for case in outcome.cases if case.claims_correct]
        declaring = {name for case in correct if case.declared for name in names_of(case)}
        assert declaring & NEEDS_NO_DEVIATION == set()
        assert not any(case.is_refused for case in correct)
        assert (len(outcome.cases), outcome.vectors, outcome.out) == (131 * outcome.lanes, 131, [])


def names_of(case: Case) -> tuple[str, str]:
    """Return a case's policy with and without its vendor."""
    return case.policy, f"{case.policy}/{case.vendor}"


def test_what_is_not_passed_is_what_is_on_record(shipped: tuple[Path, conform.Outcome]) -> None:
    """A deviation, known bug or failure that is not listed is an error, and so is a listed one that passes.

    Where a change means it: ``python -m tests.guest.vector_results`` writes the record again.
    """
    path, outcome = shipped
    found = as_set(vector_results.results_of(outcome.cases))
    listed = as_set(vector_results.recorded()[path.name])
    unlisted, in_vain = sorted(found - listed), sorted(listed - found)
    assert not unlisted, f"not listed: {unlisted}; listed in vain: {in_vain}"
    assert not in_vain, f"listed in vain: {in_vain}"


def as_set(results: vector_results.Results) -> set[tuple[str, str, str]]:
    """Return the lane, rule and vector of each result."""
    return {
        (lane, rule, name)
        for lane, rules in results.items()
        for rule, names in rules.items()
        for name in names
    }


def test_the_record_names_the_shipped_files_only() -> None:
    """A file that is no longer there would be listed in vain, and never looked at."""
    assert list(vector_results.recorded()) == [path.name for path in SHIPPED]


@pytest.mark.parametrize(
    ("case", "listed"),
    [
        ({"is_ok": True, "declared": None}, {}),
        ({"is_ok": False, "declared": None, "is_refused": True}, {}),
        ({"is_ok": False, "declared": None}, {"p/svm": {"failed": ["t"]}}),
        ({"is_ok": True, "declared": None, "has_known_bug": True}, {"p/svm": {"known_bug": ["t"]}}),
        (
            {"is_ok": False, "declared": "B, A"},
            {"p/svm": {"declared A": ["t"], "declared B": ["t"]}},
        ),
    ],
)
def test_what_is_put_on_record(case: dict[str, object], listed: vector_results.Results) -> None:
    """All but what passes or is refused, under each rule that declares it."""
    cases = [Case(name="t", policy="p", vendor="svm", expected={}, got={}, **case)]  # type: ignore[arg-type]  # a table of fields
    assert vector_results.results_of(cases) == listed
