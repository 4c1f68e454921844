"""A mistake in somebody's own policy class is told as his, with the place, and stops nobody else."""

from collections.abc import Callable
from enum import IntEnum
from typing import Final

import pytest

from exitlab.command_line import BAD_INPUT
from exitlab.serving.refusals import InvalidRequest
from exitlab.v1 import events_pb2, hypervisor_pb2, policy_pb2
from hypervisor_svc import policies
from hypervisor_svc.cli import main
from hypervisor_svc.config import check_config
from hypervisor_svc.engine.tables import make_table
from hypervisor_svc.engine.vocabulary import Action, Check
from hypervisor_svc.limits import ServerLimits
from hypervisor_svc.policies.base import VMX, Do, Policy, PolicyError, Sees, do, tabulate

Answer = Callable[[Policy, Sees], object]


class Memory(IntEnum):
    """The memories of the policies here."""

    SHUT = 0
    OPEN = 1


class Other(IntEnum):
    """A memory of another policy."""

    FAR = 5


def policy_of(answer: Answer, moment: str = "enter_loop") -> Policy:
    """Return a policy that gives an answer at one moment, and that never intercepts."""
    settings = {"name": "mine", "memories": Memory, "initially_armed": False, "claims_correct": False}
    made: Policy = type("Mine", (Policy,), {**settings, moment: answer})()
    return made


def careless(_: Policy, sees: Sees) -> Do | None:
    """Catch what is raised, a question among it if that could be caught."""
    try:
        return do(Action.ZERO_DR7) if sees.moved else None
    except Exception:  # as careless authors do
        return None


# The answer at a moment, and what is said of it.
MISTAKES: Final[tuple[tuple[str, Answer, str], ...]] = (
    (
        "enter_loop",
        lambda _, sees: {Memory.SHUT: None}[Memory(sees.memory)],
        "ENTER_LOOP (memory=OPEN) the policy fails: KeyError: <Memory.OPEN: 1>",
    ),
    ("enter_loop", lambda _, sees: sees.weather, "ENTER_LOOP (always) the policy fails: AttributeError: "),  # type: ignore[attr-defined]  # the mistake
    (
        "dr_trapped",
        lambda _, sees: 1 // (sees.check != Check.GD),
        "DR_TRAPPED (check=NONE) the policy answers 1, expected do(...) or None",
    ),
    (
        "dr_trapped",
        lambda _, sees: do() if sees.check < Check.GP else 1 // 0,
        "DR_TRAPPED (check=GP) the policy fails: ZeroDivisionError: ",
    ),
    ("db_exit", lambda *_: Action.EMULATE, "DB_EXIT (always) the policy answers <Action.EMULATE: 8>"),
    ("db_exit", lambda *_: do("SAVE"), "DB_EXIT (always) the policy answers with '"),  # type: ignore[arg-type]  # the mistake
    (
        "leave_loop",
        lambda _, sees: do(memory=Other.FAR) if sees.breakpoints_enabled else None,
        "LEAVE_LOOP (breakpoints_enabled) the policy goes on with memory <Other.FAR: 5>, which is none of "
        "Memory",
    ),
)


@pytest.mark.parametrize(("moment", "answer", "said"), MISTAKES)
def test_a_mistake_is_told_with_policy_moment_and_state(moment: str, answer: Answer, said: str) -> None:
    """What a class's method raises, or answers in place of an answer, names where it did."""
    with pytest.raises(PolicyError) as refused:
        tabulate(policy_of(answer, moment))
    assert str(refused.value).startswith(f"mine: at {said}")


def test_a_policy_that_catches_all_errors_is_still_asked() -> None:
    """A question is no error: a policy that swallows errors is told every input that it looks at."""
    (rows,) = tabulate(policy_of(careless)).moments
    assert list(rows.inputs) == ["moved"]
    assert [bool(actions) for actions in rows.actions] == [False, True]


def failing(*_: object) -> Policy:
    """Fail to make a policy."""
    raise TypeError("no such argument")


def lacking(_: Policy, sees: Sees) -> Do:
    """Look an answer up that is not there."""
    answers: dict[bool, Do] = {True: do()}
    return answers[sees.moved]


BROKEN: Final = (
    (lambda *_: policy_of(lacking), "mine: at ENTER_LOOP (moved=no) the policy fails: KeyError: False"),
    (failing, "mine: the policy cannot be made: TypeError: no such argument"),
    (
        lambda *_: policy_of(lambda *_: do(Action.SAVE_DR6)),
        "mine: at ENTER_LOOP (always) the table saves on the way into the guest",
    ),
)


@pytest.fixture(params=BROKEN, ids=["answer", "class", "table"])
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a broken policy among the others and return what is to be said of it."""
    maker, words = request.param
    monkeypatch.setitem(policies._MAKERS, "mine", ((VMX,), maker))
    policies._table_bytes.cache_clear()
    return str(words)


def test_the_others_are_listed(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One broken class is warned of in a line and left out of the list."""
    assert main(["policies"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith(f"hypervisor-svc: left out: {said}")
    assert told.err.count("\n") == 1
    listed = [line.split()[0] for line in told.out.splitlines()[1:]]
    assert listed == [name for name in policies.policy_names() if name != "mine"]


def test_a_broken_policy_is_refused_in_a_line(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks for the broken one is told why, and the exit code is that of bad input."""
    assert main(["policy", "mine"]) == BAD_INPUT
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"hypervisor-svc: {said}")


def refusal(resolve: Callable[..., policy_pb2.PolicyTable]) -> InvalidRequest:
    """Return how a session of one policy is refused."""
    config = hypervisor_pb2.SessionConfig(
        lanes=[policy_pb2.Lane(policy_name="mine", vendor=VMX)],
        columns=[events_pb2.COLUMN_KINDS],
        vcpus=1,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED,
        leading_vendor=VMX,
    )
    with pytest.raises(InvalidRequest) as refused:
        check_config(config, ServerLimits(), resolve, make_table)
    return refused.value


def test_a_session_of_it_is_refused_as_such(said: str) -> None:
    """A session refuses the broken policy by its lane, and calls it known."""
    refused = refusal(policies.policy_table)
    assert refused.reason in {"BAD_POLICY", "BAD_POLICY_TABLE"}
    assert (refused.field, refused.message[: len(said)]) == ("config.lanes[0].policy_name", said)


def test_a_mistake_of_ours_is_no_unknown_policy() -> None:
    """A KeyError that no policy is to blame for is not told as a name that nobody knows."""

    def resolve(*_: object) -> policy_pb2.PolicyTable:
        raise KeyError("a cell")

    with pytest.raises(KeyError, match="a cell"):
        refusal(resolve)


def test_several_names_in_one_are_told_apart() -> None:
    """Names joined by a comma are refused with how several are given."""
    with pytest.raises(policies.UnknownPolicy, match="several are named one by one: --policy A --policy B"):
        policies.policy_vendors("kvm-3.14,kvm-6.14")
