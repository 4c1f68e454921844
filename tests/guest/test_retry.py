"""What is tried again, how long, and what ends a run at once."""

import random
from collections.abc import Callable

import grpc
import pytest

from guest_svc.errors import BadInput, CouldNotFinish, GaveUp, GuestError
from guest_svc.retry import LONGEST_WAIT_SECONDS, Retry
from guest_svc.stream import EventStream
from tests.guest.keeper import COLUMNS, Response, create, events
from tests.guest.scripted import (
    RETRY_SECONDS,
    Clock,
    Fault,
    Point,
    Scripted,
    connected,
    crash,
    cut,
    drain,
    refuse,
)

Code = grpc.StatusCode
ALWAYS = 200  # times; far more than there is time for


class Longest(random.Random):
    """Chance that always lets wait as long as can be."""

    def uniform(self, a: float, b: float) -> float:
        """Return the larger end."""
        return max(a, b)


def retry_of(seconds: float, clock: Clock) -> Retry:
    """Return a Retry that goes by a clock, and waits as long as it may."""
    retry = Retry(seconds, now=clock.now, sleep=clock.sleep)
    retry._chance = Longest()
    return retry


def test_waits_double_up_to_a_longest() -> None:
    """Each is up to twice the last, none longer than some seconds, and together they are the whole time."""
    clock = Clock()
    retry = retry_of(20, clock)
    while retry.may_wait():
        pass
    assert clock.waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 3.65])


def test_waits_are_by_chance() -> None:
    """Guests that lost a hypervisor together do not come back together, and none waits longer than it may."""
    clocks = Clock(), Clock()
    for clock in clocks:
        retry = Retry(60, now=clock.now, sleep=clock.sleep)
        while retry.may_wait():
            pass
        longest = [min(LONGEST_WAIT_SECONDS, 0.05 * 2**number) for number in range(len(clock.waits))]
        assert all(0 <= wait <= most for wait, most in zip(clock.waits, longest, strict=True))
    assert clocks[0].waits != clocks[1].waits


def test_a_day_of_attempts() -> None:
    """However often it was tried, the waits stay what they are."""
    clock = Clock()
    retry = retry_of(86_400, clock)
    while retry.may_wait():
        pass
    assert len(clock.waits) > 2000
    assert clock.seconds == pytest.approx(86_400)


@pytest.mark.parametrize(
    ("seconds", "least", "waits"),
    [
        (0, 0, []),
        (0, 9, []),
        (1, 9, [1]),  # no longer than is left
        (10, 3, [3, 3, 3, 1]),
        (10, 0.07, [0.07, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 3.63]),
    ],
)
def test_who_is_asked_to_wait_does(seconds: float, least: float, waits: list[float]) -> None:
    """A hypervisor may name a least; the time in which all is tried is the guest's own."""
    clock = Clock()
    retry = retry_of(seconds, clock)
    while retry.may_wait(least):
        pass
    assert clock.waits == pytest.approx(waits)


def test_progress_begins_anew() -> None:
    """Once something got done, the time and the waits are those of the first attempt."""
    clock = Clock()
    retry = retry_of(1, clock)
    for _ in range(3):
        assert retry.may_wait()
    retry.progress()
    while retry.may_wait():
        pass
    assert clock.waits == pytest.approx([0.05, 0.1, 0.2, 0.05, 0.1, 0.2, 0.4, 0.25])


def test_time_at_work_is_not_counted() -> None:
    """Only failing takes from the time: however long each attempt went on, all waits together are as long."""
    clock = Clock()
    retry = retry_of(10, clock)
    while retry.may_wait():
        retry.has_reached()
        retry.has_reached()  # once is enough
        clock.seconds += 1000
    assert clock.waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 3.65])


def run(
    scripted: Scripted,
    retry_seconds: float = RETRY_SECONDS,
    on_cut: Callable[[str], None] | None = None,
    *,
    is_resumed: bool = False,
) -> None:
    """Run a session of three blocks to its report, and have that priced."""
    with connected(scripted, retry_seconds) as hypervisor:
        session = create(hypervisor)
        with EventStream(hypervisor, session, COLUMNS, on_cut=on_cut, is_resumed=is_resumed) as stream:
            for start in range(0, 12, 4):
                stream.send(events(4, start))
            assert stream.finish().events == 12
        hypervisor.priced("s1", [])


PASSING = [
    *(cut(code) for code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED)),
    *(cut(code, "the transport's") for code in (Code.INTERNAL, Code.UNKNOWN)),
    refuse(Code.UNAVAILABLE, "NOT_STORED"),
    refuse(Code.UNAVAILABLE, "DRAINING"),
    refuse(Code.DEADLINE_EXCEEDED, "SILENT"),
    refuse(Code.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS"),
    refuse(Code.INTERNAL, "ENGINE_FAILED", domain="a.proxy.example"),
]


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("point", [Point.OPEN, Point.BLOCK, Point.FINISH, Point.REPORT])
def test_what_may_pass_is_tried_again(point: Point, fault: Fault) -> None:
    """Where the other end was not there, or the way to it was cut, the run goes on to its report."""
    scripted = Scripted({(point, 1): fault})
    run(scripted)
    assert len(scripted.clock.waits) == 1
    assert scripted.values == [*range(12)]


REFUSALS: list[tuple[Code, str, type[GuestError], str]] = [
    (Code.ABORTED, "FENCED", CouldNotFinish, "another guest has taken the session over .reason FENCED"),
    (
        Code.NOT_FOUND,
        "SESSION_NOT_FOUND",
        CouldNotFinish,
        "(broke at event 0|cannot be finished): .*not_found; start the run",
    ),
    (
        Code.FAILED_PRECONDITION,
        "ENGINE_CHANGED",
        CouldNotFinish,
        "^the hypervisor cannot go on with the session: it has other rules now than .*; start the run again",
    ),
    (
        Code.FAILED_PRECONDITION,
        "POLICY_FAILED",
        CouldNotFinish,
        "^the hypervisor cannot go on .*: because of policy_failed",
    ),
    (Code.FAILED_PRECONDITION, "SESSION_FINISHED", CouldNotFinish, "because of session_finished"),
    (
        Code.DATA_LOSS,
        "STATE_DAMAGED",
        CouldNotFinish,
        "^the hypervisor cannot go on .*: .*_damaged; start the run",
    ),
    (Code.DATA_LOSS, "DIGEST_MISMATCH", CouldNotFinish, "because of digest_mismatch"),
    (Code.OUT_OF_RANGE, "GAP", CouldNotFinish, "because of gap"),
    (Code.ALREADY_EXISTS, "ALREADY_APPLIED", CouldNotFinish, "because of already_applied"),
    (Code.RESOURCE_EXHAUSTED, "STATE_TOO_LARGE", CouldNotFinish, "because of state_too_large"),
    (
        Code.INTERNAL,
        "ENGINE_FAILED",
        CouldNotFinish,
        "^the hypervisor cannot go on .*: because of engine_failed",
    ),
    (Code.INTERNAL, "INTERNAL_ERROR", CouldNotFinish, "because of internal_error"),
    (Code.INVALID_ARGUMENT, "BAD_EVENT", BadInput, "because of bad_event"),
]


@pytest.mark.parametrize(("code", "reason", "kind", "said"), REFUSALS)
@pytest.mark.parametrize("point", [Point.OPEN, Point.OPENED, Point.BLOCK, Point.FINISH])
def test_a_refusal_ends_the_run_at_once(
    point: Point, code: grpc.StatusCode, reason: str, kind: type[GuestError], said: str
) -> None:
    """What the hypervisor says of the session is told in one line, and nothing is tried again."""
    scripted = Scripted({(point, 1): refuse(code, reason)})
    with pytest.raises(kind, match=said) as raised:
        run(scripted)
    assert "\n" not in str(raised.value)
    assert (len(scripted.openings), scripted.finishes) == (1, point is Point.FINISH)


@pytest.mark.parametrize("code", [Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED])
def test_a_status_without_a_reason_may_end_the_run_too(code: grpc.StatusCode) -> None:
    """What lies between may refuse for good: only what may pass is tried again."""
    scripted = Scripted({(Point.BLOCK, 2): cut(code, "not with me")})
    with pytest.raises(CouldNotFinish, match=f"the stream broke at event 4: not with me .{code.name}"):
        run(scripted)
    assert len(scripted.openings) == 1


@pytest.mark.parametrize("unanswered", [0, 1, 2])
def test_a_guest_may_have_fenced_itself(unanswered: int) -> None:
    """As many fences may be its own as it had Opens that were not answered; one more is another guest's."""
    late = {(Point.OPEN, number): cut() for number in range(1, unanswered + 1)}
    fences = {(Point.BLOCK, number): refuse(Code.ABORTED, "FENCED") for number in range(1, ALWAYS)}
    scripted = Scripted(late | dict(list(fences.items())[:unanswered]))
    run(scripted)
    assert scripted.values == [*range(12)]
    scripted = Scripted(late | fences)
    with pytest.raises(CouldNotFinish, match="another guest has taken the session over"):
        run(scripted)
    assert len(scripted.openings) == 1 + 2 * unanswered


def test_an_earlier_life_may_have_left_opens() -> None:
    """One of the guest that was killed may come late too."""
    fences = {(Point.BLOCK, number): refuse(Code.ABORTED, "FENCED") for number in range(1, ALWAYS)}
    run(Scripted(dict(list(fences.items())[:1])), is_resumed=True)
    with pytest.raises(CouldNotFinish, match="another guest has taken the session over"):
        run(Scripted(fences), is_resumed=True)


@pytest.mark.parametrize("milliseconds", [0, 1500, 4_000_000_000])
def test_a_drain_says_how_long_to_wait(milliseconds: int) -> None:
    """The guest comes back no sooner, and tries all the same within its own time."""
    scripted = Scripted({(Point.BLOCK, 2): drain(milliseconds)})
    run(scripted)
    (wait,) = scripted.clock.waits
    least = min(RETRY_SECONDS, milliseconds / 1000)
    assert least <= wait <= max(least, 0.05)


@pytest.mark.parametrize("point", [Point.OPEN, Point.FINISH, Point.REPORT])
def test_giving_up_tells_the_last_reason(point: Point) -> None:
    """When the time is over in which nothing got done, that is told, and what was heard last."""
    scripted = Scripted({(point, number): cut(said=f"attempt {number}") for number in range(1, ALWAYS)})
    with pytest.raises(CouldNotFinish) as raised:
        run(scripted)
    attempts = len(scripted.clock.waits) + 1
    assert isinstance(raised.value, GaveUp)
    assert str(raised.value).endswith(f": attempt {attempts} (UNAVAILABLE); gave up after 30 s")
    assert scripted.clock.seconds == pytest.approx(RETRY_SECONDS)


@pytest.mark.parametrize(
    "places",
    [
        [(Point.BLOCK, 1), (Point.BLOCK, 3), (Point.BLOCK, 5)],
        [(Point.APPLIED, number) for number in (1, 2, 3)],
    ],
    ids=["acknowledged between", "acknowledgements lost"],
)
def test_a_run_that_gets_on_is_not_given_up(places: list[tuple[Point, int]]) -> None:
    """Longer outages in all than there is time for are none too many while events are applied between."""
    scripted = Scripted({place: drain(20_000) for place in places})
    run(scripted)
    assert scripted.clock.seconds == pytest.approx(60)
    assert scripted.values == [*range(12)]


@pytest.mark.parametrize(
    "places",
    [
        [(Point.BLOCK, number) for number in range(3, ALWAYS, 3)],
        [(Point.FINISH, number) for number in range(1, ALWAYS, 2)],
    ],
    ids=["a block", "the report"],
)
def test_going_round_is_no_progress(places: list[tuple[Point, int]]) -> None:
    """What brings the hypervisor down each time is not asked of it for ever."""
    scripted = Scripted({place: crash() for place in places}, commit=lambda _: 0)
    with pytest.raises(CouldNotFinish):
        run(scripted)
    assert 3 < len(scripted.openings) < len(places)


def test_doing_again_may_take_long() -> None:
    """A hypervisor that crashes while it catches up, after longer than may be waited, is not given up."""

    def late(hypervisor: Scripted, context: grpc.ServicerContext) -> list[Response]:
        hypervisor.clock.seconds += 10 * RETRY_SECONDS
        return crash()(hypervisor, context)

    scripted = Scripted({(Point.BLOCK, number): late for number in (3, 5)}, commit=lambda _: 0)
    run(scripted)
    assert [opening.next_event for opening in scripted.openings] == [0, 0, 0]


@pytest.mark.parametrize("point", Point)
def test_without_time_nothing_is_tried_twice(point: Point) -> None:
    """With --retry-seconds 0 a cut is the end, wherever it is, and nobody is told that it goes on."""
    scripted = Scripted({(point, 1): cut()})
    cuts: list[str] = []
    with pytest.raises(CouldNotFinish, match=r"cut \(UNAVAILABLE\)$"):
        run(scripted, 0, cuts.append)
    assert (len(scripted.openings), scripted.finishes <= 1) == (1, True)
    assert (scripted.clock.waits, cuts) == ([], [])
