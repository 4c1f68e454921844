"""What is refused before a run begins comes back short, and fit for a terminal."""

from collections.abc import Callable

import grpc
import pytest

from exitlab.serving.answers import MAX_TEXT_BYTES, to_status
from exitlab.serving.refusals import InvalidRequest
from exitlab.v1 import guest_pb2, policy_pb2
from guest_svc.service.asked import check_hypervisor, check_request

LONG = 150_000


def address(asked: str) -> Callable[[], None]:
    """Return the check of a hypervisor's address."""
    return lambda: check_hypervisor(asked, "unix:/own", may_be_any=True)


def parameters(name: str) -> Callable[[], None]:
    """Return the check of a request that gives a parameter twice."""
    given = [guest_pb2.ParameterValue(name=name)] * 2
    config = guest_pb2.RunConfig(workload="idle", lanes=[policy_pb2.Lane()], parameters=given)
    return lambda: check_request(guest_pb2.StartRunRequest(request_id="a", config=config))


@pytest.mark.parametrize(
    ("check", "reason", "said"),
    [
        (address("127.0.0.1:1\n"), "BAD_ADDRESS", r"127.0.0.1:1\n: expected host:port or unix:PATH"),
        (address("a" * LONG), "BAD_ADDRESS", f"{'a' * 100} ...: expected host:port or unix:PATH"),
        (address("a" * LONG + ":1"), "BAD_ADDRESS", "expected host:port or unix:/PATH"),
        (parameters("p" * LONG), "PARAMETER_TWICE", f"'{'p' * 100}' is there twice"),
    ],
    ids=["newline", "no address", "long host", "long name"],
)
def test_what_was_sent_is_cut_and_escaped(check: Callable[[], None], reason: str, said: str) -> None:
    """The reason and the whole message."""
    with pytest.raises(InvalidRequest) as raised:
        check()
    assert (raised.value.reason, raised.value.message) == (reason, said)


def test_no_refusal_has_control_characters() -> None:
    """Whatever a check has put into its message, none reaches a client's terminal."""
    status = to_status(InvalidRequest("WHY", "\x1b[31m\n" * 1_000))
    assert status.code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.details.startswith(r"\x1b[31m\n")
    assert status.details.isprintable()
    assert len(status.details) <= MAX_TEXT_BYTES
