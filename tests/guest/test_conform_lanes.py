"""Which lanes vector files run under, and lanes that nobody has."""

from typing import Any

import pytest

from exitlab.v1 import hypervisor_pb2, policy_pb2
from guest_svc import conform
from guest_svc.errors import BadInput
from tests.guest.vector_rows import NOP

VMX, SVM = policy_pb2.VENDOR_VMX, policy_pb2.VENDOR_SVM


@pytest.mark.parametrize(
    ("policies", "vendors", "lanes"),
    [
        (["correct"], [VMX, SVM], [("both", VMX), ("both", SVM), ("intel", VMX)]),
        (["all"], [SVM], [("both", SVM), ("wrong", SVM)]),
        (["wrong", "both", "wrong"], [VMX], [("wrong", VMX), ("both", VMX)]),
        (["unknown"], [VMX, SVM], [("unknown", VMX), ("unknown", SVM)]),
    ],
)
def test_lanes_are_policies_on_the_vendors_that_they_exist_on(
    policies: list[str], vendors: list[Any], lanes: list[Any]
) -> None:
    """Groups of policies are spelled out; an unknown name is the hypervisor's to refuse."""
    summaries = [
        hypervisor_pb2.PolicySummary(name="both", vendors=[VMX, SVM], correct_vendors=[VMX, SVM]),
        hypervisor_pb2.PolicySummary(name="intel", vendors=[VMX], correct_vendors=[VMX]),
        hypervisor_pb2.PolicySummary(name="wrong", vendors=[VMX, SVM]),
    ]
    assert conform.choose_lanes(summaries, policies, vendors) == lanes


@pytest.mark.parametrize(
    ("policies", "vendors", "said"),
    [
        (["intel"], [SVM], "policy 'intel' exists on vmx only"),
        (["intel", "both"], [SVM], "policy 'intel' exists on vmx only"),
        (["correct"], [SVM], "correct: none exists on svm"),
    ],
)
def test_a_policy_that_would_be_left_out_is_refused(
    policies: list[str], vendors: list[Any], said: str
) -> None:
    """Who asks for a policy by its name is not to take another's verdict for its."""
    summaries = [
        hypervisor_pb2.PolicySummary(name="both", vendors=[VMX, SVM]),
        hypervisor_pb2.PolicySummary(name="intel", vendors=[VMX], correct_vendors=[VMX]),
    ]
    with pytest.raises(BadInput, match=said):
        conform.choose_lanes(summaries, policies, vendors)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bill": {"both, botj": {}}}, "field bill.both, botj: no policy 'botj'; did you mean both?"),
        ({"differs": {"intl/svm": {}}}, "field differs.intl/svm: no policy 'intl'; did you mean intel?"),
        (
            {"debug_exits": {"intel/svm": []}},
            "field debug_exits.intel/svm: policy 'intel' exists on vmx only",
        ),
        ({"bill": {"intel": {}}, "vendor": "svm"}, "field bill.intel: policy 'intel' exists on vmx only"),
        ({"bill": {"both": {}, "intel": {}}, "differs": {"intel/vmx": {}}}, None),
    ],
)
def test_lanes_that_nobody_has_are_refused(make: Any, fields: dict[str, Any], said: str | None) -> None:
    """What is said of them would never be checked, so file, row and field are told."""
    summaries = [
        hypervisor_pb2.PolicySummary(name="both", vendors=[VMX, SVM]),
        hypervisor_pb2.PolicySummary(name="intel", vendors=[VMX]),
    ]
    vector = make(NOP, **fields)
    if said is None:
        conform.check_named_policies([vector], summaries)
        return
    with pytest.raises(BadInput) as raised:
        conform.check_named_policies([vector], summaries)
    assert str(raised.value) == f"{vector.path}: row 0 (t), {said}"
