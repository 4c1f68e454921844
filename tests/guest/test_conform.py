"""Running vector files: what real policies answer, and what a hypervisor may not leave out."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from exitlab.v1 import outcome_pb2, policy_pb2
from guest_svc import conform
from guest_svc.embedded import EmbeddedHypervisor
from guest_svc.errors import CouldNotFinish
from guest_svc.hypervisor import Hypervisor
from guest_svc.vectors import SHIPPED, Vector, read_vectors
from guest_svc.vectors.judge import Case
from guest_svc.vectors.rows import Answer
from tests.guest.vector_rows import FRESH, NOP, read_dr, write_dr

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM


def test_answers_are_kept_for_each_lane_and_the_reference() -> None:
    """Parts of several blocks join up, with their undefined bits; one that leaves a gap is refused."""
    answers = conform.Answers(1)
    for first, value in ((0, 7), (1, 8)):
        for lane in (0, 1):
            part = outcome_pb2.OutcomePart(first_event=first, event_count=1, lane=lane, stories=b"\x01")
            part.story_values.append(value + lane)
            part.undefined_dr6.extend([2] * (lane * first))
            answers.take(part)
    assert answers.lane(0) == [Answer(1, 7), Answer(1, 8)]
    assert answers.reference(0) == [Answer(1, 8), Answer(1, 9, undefined=2)]
    assert answers.reference(1) == [Answer(1, 9, undefined=2)]
    with pytest.raises(CouldNotFinish, match="outcomes of lane 0 do not go on at event 2"):
        answers.take(outcome_pb2.OutcomePart(first_event=3, lane=0))
    with pytest.raises(CouldNotFinish, match="outcomes of lane 2 of 2"):
        answers.take(outcome_pb2.OutcomePart(first_event=2, lane=2))


def test_answers_must_be_there_for_every_lane() -> None:
    """Where a lane's outcomes are missing, the run could not finish."""
    answers = conform.Answers(1)
    answers.take(outcome_pb2.OutcomePart(event_count=1, lane=0, stories=b"\x01", story_values=[7]))
    with pytest.raises(CouldNotFinish, match="outcomes of lane 1: expected 1 events, got 0"):
        answers.check(1)
    answers.take(outcome_pb2.OutcomePart(event_count=1, lane=1, stories=b"\x01", story_values=[7]))
    answers.check(1)


VAGUE: dict[str, Any] = {
    "vendor": "vmx",
    "expected": {"dr7": "0x400", "dr6": "0x1"},
    "got": {"dr7": "0x0", "dr6": "0x1"},
}


@pytest.mark.parametrize(
    ("declared", "listed", "unlisted"),
    [
        ("A", {"A"}, None),
        ("A, B", {"A", "B", "C"}, None),
        ("A, B", {"B"}, "A"),
        ("A", set(), "A"),
    ],
)
def test_a_rule_that_its_policy_does_not_list_declares_nothing(
    declared: str, listed: set[str], unlisted: str | None
) -> None:
    """A case that is declared by such a rule has failed, and says so."""
    case = Case(name="a", policy="p", is_ok=False, declared=declared, **VAGUE)
    checked = conform.checked_rules(case, listed)
    if unlisted is None:
        assert checked == case
    else:
        note = f"declared by {unlisted}, which the policy does not list"
        assert (checked.has_failed, checked.note) == (True, note)


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """Return a connection to a hypervisor of our own."""
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as connected:
        yield connected


def test_plain_python_answers_as_compiled_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The given vectors pass in both."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as plain:
        lanes = conform.choose_lanes(plain.policies(), ["correct"], [VMX, SVM])
        outcome = conform.run_vectors(plain, read_vectors(SHIPPED[0]), lanes)
    assert [(case.name, case.policy, case.vendor, case.note) for case in outcome.failures] == []


@pytest.mark.parametrize(
    ("policy", "vendor"),
    [*product(("kvm-3.15", "kvm-4.4", "kvm-5.17", "kvm-6.8"), (VMX, SVM)), ("kvm-5.14", SVM)],
)
def test_known_wrong_versions_go_wrong_as_the_windows_say(
    hypervisor: Hypervisor, policy: str, vendor: policy_pb2.Vendor.ValueType
) -> None:
    """What a version with a known bug shows is expected with its source, never passed over."""
    (path,) = (path for path in SHIPPED if path.name == "windows.json")
    lane = (policy, "vmx" if vendor == VMX else "svm")
    vectors = [vector for vector in read_vectors(path) if lane in vector.differs]
    cases = conform.run_vectors(hypervisor, vectors, [(policy, vendor)]).cases
    assert [(case.name, case.result) for case in cases] == [(vector.name, "known_bug") for vector in vectors]
    assert not any(case.claims_correct for case in cases)
    without = [replace(vector, differs={}) for vector in vectors]
    cases = conform.run_vectors(hypervisor, without, [(policy, vendor)]).cases
    assert vectors
    assert not any(case.is_ok for case in cases)


def test_policies_named_by_shipped_vectors_exist(hypervisor: Hypervisor) -> None:
    """A lane that nobody has would never be checked."""
    vectors = [vector for path in SHIPPED for vector in read_vectors(path)]
    assert sum(len(vector.named_lanes) for vector in vectors) > 100
    conform.check_named_policies(vectors, hypervisor.policies())


@pytest.mark.parametrize(
    ("change", "part", "came"),
    [
        ({"expect": FRESH | {"db": [4, 0, 0, 0], "reads": {"1": 5}}}, "db", ["0x5", "0x0", "0x0", "0x0"]),
        ({"expect": FRESH | {"db": [5, 0, 0, 0], "reads": {"1": 4}}}, "reads", {"1": "0x5"}),
        ({"bill": {"kvm-6.14": {"DR_ACCESS": 2}}}, "bill", {"DR_ACCESS": 1}),
        ({"bill": {"kvm-6.14": {"DR_ACCESS": 1, "windows": 0}}}, "bill", {"DR_ACCESS": 1, "windows": 1}),
        ({"debug_exits": {"kvm-6.14": [[1, 0, 0]]}}, "debug_exits", []),
        ({"differs": {"kvm-6.14": {"reads": {"1": 4}}}}, "reads", {"1": "0x5"}),
    ],
)
def test_a_vector_that_expects_something_else_fails(
    hypervisor: Hypervisor, make: Any, change: dict[str, Any], part: str, came: object
) -> None:
    """A wrong expectation is not passed over: each comparison can fail end to end."""
    right = FRESH | {"db": [5, 0, 0, 0], "reads": {"1": 5}}
    vector = make(write_dr(0, "0x5"), read_dr(0), **{"expect": right} | change)
    (case,) = conform.run_vectors(hypervisor, [vector], [("kvm-6.14", VMX)]).cases
    assert case.has_failed
    assert case.got[part] == came


@pytest.mark.parametrize(
    ("features", "dr6"),
    [({}, "0xffff0ff0"), ({"rtm": 1}, "0xfffe0ff0"), ({"bus_lock": 1}, "0xffff07f0")],
)
def test_features_are_those_of_the_vectors_cpu(
    hypervisor: Hypervisor, make: Any, features: dict[str, int], dr6: str
) -> None:
    """With RTM, DR6 bit 16 can be cleared; with bus-lock detection, bit 11."""
    vector = make(write_dr(6, 0), read_dr(6), expect=FRESH | {"dr6": dr6, "reads": {"1": dr6}}, **features)
    (case,) = conform.run_vectors(hypervisor, [vector], [("kvm-6.14", VMX)]).cases
    assert case.got == case.expected


def test_a_policy_that_refuses_what_the_host_does_is_told_apart(hypervisor: Hypervisor, make: Any) -> None:
    """Where nobody may set registers from outside the guest writes its first ones; later ones are refused."""
    fields: dict[str, Any] = {"init": {"db": [3, 0, 0, 0]}, "expect": FRESH | {"db": [3, 0, 0, 0]}}
    vectors = [make(NOP, **fields), make({"op": "set_debugregs"}, NOP)]
    lanes = [("kvm-6.14", VMX), ("hardware-switch", VMX)]
    cases = conform.run_vectors(hypervisor, vectors, lanes).cases
    assert [(case.policy, case.is_ok and not case.is_refused) for case in cases] == [
        ("kvm-6.14", True),
        ("hardware-switch", True),
        ("kvm-6.14", True),
        ("hardware-switch", False),
    ]


def test_a_vector_runs_on_its_vendor_only(hypervisor: Hypervisor, make: Any) -> None:
    """What only one vendor's manual says is not asked of the other."""
    lanes = [("kvm-6.14", VMX), ("kvm-6.14", SVM)]
    cases = conform.run_vectors(hypervisor, [make(NOP, vendor="svm"), make(NOP)], lanes).cases
    assert [case.vendor for case in cases] == ["svm", "vmx", "svm"]
    assert conform.run_vectors(hypervisor, [make(NOP, vendor="svm")], lanes[:1]).cases == []


def test_a_hypervisor_that_leaves_outcomes_out_is_told(
    hypervisor: Hypervisor, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane without its outcomes could not finish, whatever its report says."""
    take = conform.Answers.take

    def leave_out(answers: conform.Answers, part: outcome_pb2.OutcomePart) -> None:
        if part.lane:
            take(answers, part)

    monkeypatch.setattr(conform.Answers, "take", leave_out)
    with pytest.raises(CouldNotFinish, match=r"outcomes of lane 0: expected \d+ events, got 0"):
        conform.run_vectors(hypervisor, [make(read_dr(7))], [("kvm-6.14", VMX)])


def test_a_hypervisor_that_goes_away_between_vectors_cuts_the_run_short(make: Any) -> None:
    """Once a session was there, a hypervisor that does not answer is no wrong address."""
    with EmbeddedHypervisor() as embedded, Hypervisor(embedded.address) as connected:

        def vectors() -> Iterator[Vector]:
            yield make(NOP)
            embedded._process.terminate()
            embedded._process.wait()
            yield make(NOP)

        with pytest.raises(
            CouldNotFinish, match=r"the hypervisor at .* does not go on: .*UNAVAILABLE"
        ) as raised:
            conform.run_vectors(connected, vectors(), [("kvm-6.14", VMX)])
    assert raised.value.exit_code == 3
