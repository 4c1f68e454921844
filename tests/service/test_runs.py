"""The runs of a service without gRPC and without processes."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest

from exitlab.serving.refusals import AlreadyExists, LimitReached, NotFound, Refused, Unavailable
from exitlab.v1 import guest_pb2
from guest_svc.service.frames import Failure, Kind
from guest_svc.service.held import FAILED, FINISHED, RUNNING, STOPPED, Run
from tests.service.scripted import LIMITS, Place, some_request

SECONDS = 20.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **named), SECONDS))

    return run


async def refusal(call: Coroutine[Any, Any, object] | asyncio.Task[Any]) -> Refused:
    """Return what a call is refused with."""
    with pytest.raises(Refused) as refused:
        await call
    return refused.value


def of(place: Place, owner: str = "") -> list[Run]:
    """Return an owner's runs as they are listed."""
    return list(place.runs.newest(None, owner))


@in_loop
async def test_a_run_from_its_start_to_its_end() -> None:
    """It exists once it has begun, moves as its process says, and has its result when that has ended."""
    place = Place()
    call, process = await place.starting("a")
    assert of(place) == []
    process.begin()
    run = await call
    status = guest_pb2.RunStatus(
        run_id=run.status.run_id, state=RUNNING, workload="idle", session_id="session"
    )
    assert run.response() == guest_pb2.WatchRunResponse(status=status)
    assert of(place) == [run] == [place.runs.find(run.status.run_id)]
    process.say(Kind.CUT, b"cut once")
    position = guest_pb2.RunStatus(sent_events=7, applied_events=5, reconnects=1)
    process.say(Kind.POSITION, position.SerializeToString())
    while not run.status.sent_events:
        await asyncio.sleep(0)
    status.MergeFrom(position)
    assert run.status == status
    process.finish()
    await run.ended.wait()
    status.MergeFrom(guest_pb2.RunStatus(sent_events=9, applied_events=9, state=FINISHED))
    expected = guest_pb2.WatchRunResponse(status=status, report=b"report")
    expected.figures.add(prices="p", lane=3)
    assert run.response() == expected


@in_loop
async def test_a_request_id_starts_one_run() -> None:
    """Repeats return the first, while it starts, runs, and has ended; of another owner it is another."""
    place = Place()
    call, process = await place.starting("a")
    repeat = asyncio.create_task(place.runs.start(some_request("a")))
    await asyncio.sleep(0)
    process.begin()
    run = await call
    assert await repeat is run
    assert await place.runs.start(some_request("a")) is run
    process.finish()
    await run.ended.wait()
    assert await place.runs.start(some_request("a")) is run
    assert len(place.processes) == 1
    other, _ = await place.running("a", "uri:other")
    assert other is not run
    error = await refusal(place.runs.start(some_request("a", seed=1)))
    assert isinstance(error, AlreadyExists)
    assert (error.reason, error.field) == ("REQUEST_ID_REUSED", "request_id")
    await place.runs.stop_all()


@in_loop
async def test_a_caller_that_goes_may_come_back() -> None:
    """A start goes on when its caller has gone; the same request id finds it."""
    place = Place()
    call, process = await place.starting("a")
    call.cancel()
    await asyncio.wait([call])
    process.begin()
    run = await place.runs.start(some_request("a"))
    assert (run.status.state, len(place.processes)) == (RUNNING, 1)
    await place.runs.stop_all()


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE"])
@in_loop
async def test_what_is_refused_leaves_nothing(code: str) -> None:
    """A process that refuses before the session has begun: its words are the refusal, all is as before."""
    place = Place()
    call, process = await place.starting("a")
    process.fail(code)
    error = await refusal(call)
    assert (error.code, error.reason, error.message, error.field) == (code, "WHY", "because", "config.lanes")
    assert of(place) == []
    again, _ = await place.running("a")
    assert again.status.state == RUNNING
    await place.runs.stop_all()


@in_loop
async def test_no_process_can_be_started() -> None:
    """Why there is none is what the caller gets, and the request id may be used again."""
    place = Place()
    place.refusal = Unavailable("NO_HYPERVISOR", "gone")
    assert (await refusal(place.runs.start(some_request("a")))).reason == "NO_HYPERVISOR"
    place.refusal = None
    await place.running("a")
    await place.runs.stop_all()


@pytest.mark.parametrize(
    ("says", "note"),
    [
        (lambda process: process.fail("FAILED_PRECONDITION"), "because"),
        (lambda process: process.end(-9), "the run's process ended by signal 9; the service's log says more"),
        (
            lambda process: process.end(1),
            "the run's process ended with status 1; the service's log says more",
        ),
        (lambda process: process.say(Kind.POSITION, b"\xff"), "a fault of the service; its log says more"),
        (lambda process: process.say(Kind.DONE, b"\xff"), "a fault of the service; its log says more"),
    ],
)
@in_loop
async def test_a_run_that_fails_says_why(says: Callable[[Any], None], note: str) -> None:
    """A run that had begun and comes to no result has FAILED, and its note says why."""
    place = Place()
    run, process = await place.running("a")
    says(process)
    await run.ended.wait()
    assert (run.status.state, run.status.note, run.report) == (FAILED, note, b"")
    if note.startswith("a fault"):
        assert process.kills == 1  # nobody listens to it any more


@in_loop
async def test_a_process_that_ends_without_a_word() -> None:
    """Before it has begun, that is a fault of the service's."""
    place = Place()
    call, process = await place.starting("a")
    process.end(-11)
    error = await refusal(call)
    assert (error.code, error.reason) == ("INTERNAL", "RUN_BROKE")
    assert "signal 11" in error.message


@in_loop
async def test_a_run_that_does_not_begin() -> None:
    """Who waits is refused in time, the process is ended by force, and the request id may be used again."""
    place = Place(replace(LIMITS, start_seconds=0))
    call, process = await place.starting("a")
    error = await refusal(call)
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "START_TIMED_OUT")
    assert (process.kills, of(place)) == (1, [])


@in_loop
async def test_limits_of_runs_at_once() -> None:
    """One more than an owner, or all of them, may have is refused; those that have ended do not count."""
    place = Place()
    for name in ("a", "b"):
        await place.running(name)
    starting, third = await place.starting("c")
    error = await refusal(place.runs.start(some_request("d")))
    assert isinstance(error, LimitReached)
    assert (error.reason, error.place) == ("TOO_MANY_RUNS", {"max_runs": 3})
    for name in ("a", "b"):
        await place.running(name, "uri:other")
    error = await refusal(place.runs.start(some_request("a"), "uri:third"))
    assert (error.reason, error.place) == ("TOO_MANY_RUNS", {"max_all_runs": 5})
    third.fail()
    await refusal(starting)
    await place.running("d")
    await place.runs.stop_all()


@in_loop
async def test_the_newest_ended_runs_are_kept() -> None:
    """Of an owner no more than the limit; what is dropped does not exist, and its request id is free."""
    place = Place()
    other = await place.finished("other", "uri:other")
    first, second, third = [await place.finished(name) for name in "abc"]
    assert of(place) == [third, second]
    assert of(place, "uri:other") == [other]
    with pytest.raises(NotFound) as refused:
        place.runs.find(first.status.run_id)
    assert (refused.value.reason, refused.value.field) == ("RUN_NOT_FOUND", "run_id")
    again, _ = await place.running("a")
    assert again is not first
    assert of(place) == [again, third, second]
    await place.runs.stop_all()


@in_loop
async def test_all_that_is_kept_has_a_size() -> None:
    """The oldest of all owners go when results take too much; the newest is kept whatever its size."""
    place = Place(replace(LIMITS, max_kept_bytes=20_000))
    await place.finished("a", "uri:other")
    second = await place.finished("b", report=bytes(7_000))
    assert of(place, "uri:other") != []
    third = await place.finished("c", report=bytes(2_000))
    assert (of(place, "uri:other"), of(place)) == ([], [third, second])
    large = await place.finished("d", report=bytes(50_000))
    assert of(place) == [large]


@in_loop
async def test_a_run_is_listed_after_those_that_began_later() -> None:
    """Newest first, and on from the number of the last that was seen, whatever has begun since."""
    place = Place()
    first, second, third = [(await place.running(name))[0] for name in "abc"]
    assert of(place) == [third, second, first]
    assert list(place.runs.newest(third.number)) == [second, first]
    assert list(place.runs.newest(first.number)) == []
    await place.runs.stop_all()


@in_loop
async def test_a_run_that_is_stopped() -> None:
    """It is STOPPED once its process has ended, and stays so."""
    place = Place()
    run, process = await place.running("a")
    run.stop()
    await run.ended.wait()
    assert (run.status.state, run.status.note, process.stops) == (STOPPED, "", 1)


@in_loop
async def test_a_result_that_came_first_counts() -> None:
    """A run that is stopped when its result is there already is FINISHED."""
    place = Place()
    run, process = await place.running("a")
    process.finish()
    run.stop()
    await run.ended.wait()
    assert (run.status.state, run.report) == (FINISHED, b"report")


@in_loop
async def test_what_a_stopped_run_says_of_its_end_is_no_failure() -> None:
    """A process that is cut off by the stop may say that it failed: it was stopped."""
    place = Place()
    run, process = await place.running("a")
    process.is_deaf = True
    run.stop()
    process.fail()
    await run.ended.wait()
    assert run.status.state == STOPPED


@in_loop
async def test_a_service_that_stops() -> None:
    """Runs that start and those that run are stopped, nothing new is taken, repeats are still answered."""
    place = Place()
    run, _ = await place.running("a")
    done = await place.finished("b")
    starting, process = await place.starting("c")
    await place.runs.stop_all()
    assert (run.status.state, process.stops) == (STOPPED, 1)
    assert (await refusal(starting)).reason == "DRAINING"
    error = await refusal(place.runs.start(some_request("d")))
    assert (error.code, error.reason, error.place) == ("UNAVAILABLE", "DRAINING", {"retry_after_ms": 1000})
    assert await place.runs.start(some_request("b")) is done


@in_loop
async def test_a_service_that_ends_at_once() -> None:
    """Processes that do not listen are ended by force."""
    place = Place()
    run, process = await place.running("a")
    process.is_deaf = True
    run.stop()
    place.runs.kill_all()
    await run.ended.wait()
    assert (run.status.state, process.kills) == (STOPPED, 1)


@in_loop
async def test_watchers_are_counted() -> None:
    """One more than a run may have is refused; one that has gone makes room."""
    place = Place()
    run = await place.finished("a")
    with place.runs.watched(run):
        with place.runs.watched(run), pytest.raises(LimitReached) as refused:
            place.runs.watched(run).__enter__()
        assert refused.value.reason == "TOO_MANY_WATCHERS"
        with place.runs.watched(run):
            pass


@in_loop
async def test_a_run_belongs_to_its_owner() -> None:
    """To others it does not exist, also to those who have no identity."""
    place = Place()
    run = await place.finished("a", "uri:one")
    for owner in ("", "uri:two"):
        with pytest.raises(NotFound):
            place.runs.find(run.status.run_id, owner)
        assert of(place, owner) == []
    assert place.runs.find(run.status.run_id, "uri:one") is run


def test_a_failure_survives_the_pipe() -> None:
    """What a process says of its end arrives as it was said."""
    failure = Failure("NOT_FOUND", "WHY", "because \udcff \u00e9", "config.lanes[3]")
    assert Failure.decode(failure.encode()) == failure
