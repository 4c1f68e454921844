"""One run, from inside its process: ``python -m guest_svc.service.child``, started by ``process``.

Standard input brings the job and ends with the service, standard output takes frames, standard error
lines for the service's log. SIGTERM stops the run wherever it is, as it does a command's; its session
stays at the hypervisor, suspended.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from exitlab.command_line import keep_descriptor
from exitlab.lifeline import leave_with_parent
from exitlab.v1 import guest_pb2
from exitlab.words import shortened
from guest_svc.errors import BadInput, CouldNotFinish, GuestError, NotConnected
from guest_svc.hypervisor import Hypervisor
from guest_svc.run import UnknownPrices, find_price_lists, run_lanes
from guest_svc.service.frames import HEADER, LARGEST_PAYLOAD, Failure, Job, Kind, encode_frame
from guest_svc.sessions import Position, Talk
from guest_svc.sources import SourceChoice, find_named, open_source
from guest_svc.tls import Tls
from guest_svc.workloads.base import (
    BadParameter,
    Parameter,
    UnknownParameter,
    UnknownWorkload,
    Workload,
    parse_parameters,
)

POSITION_SECONDS: Final = 0.05  # between two looks at how far it is
_MOST_CHARACTERS: Final = 2_000  # of a message
# Of a session's config, where a run's has another name for it; lanes have the same.
_FIELDS: Final = {"config.leading_vendor": "config.lanes[0].vendor"}
# Refusals of a hypervisor that are its client's to mend, or pass; any other is between it and the service.
_PASSED_ON: Final = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE"})

Say = Callable[[Kind, bytes], None]


class _Refused(Exception):
    """What was asked for is refused."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def run(job: Job, say: Say) -> None:
    """Carry out a job and say what became of it; what nobody foresaw is raised."""
    try:
        say(Kind.DONE, _ran(job, say).SerializeToString())
    except _Refused as refused:
        say(Kind.FAILED, refused.failure.encode())
    except GuestError as error:
        say(Kind.FAILED, failure_of(error).encode())


def _ran(job: Job, say: Say) -> guest_pb2.WatchRunResponse:
    config = job.config
    workload = named_workload(config)
    tls = None if job.tls is None else Tls(**job.tls)  # type: ignore[arg-type]  # as JSON brings them
    shown = _Shown(say)
    talk = Talk(lambda why: say(Kind.CUT, why.encode()), shown.begin, shown.look_at)
    with Hypervisor(job.hypervisor, tls, retry_seconds=job.retry_seconds) as hypervisor:
        try:
            find_price_lists(hypervisor, config.prices)
        except UnknownPrices as error:
            place = f"config.prices[{error.number}]"
            raise _refusal("INVALID_ARGUMENT", "UNKNOWN_PRICES", error, place) from error
        ran = run_lanes(hypervisor, workload, config.lanes, config.prices, talk)
    shown.end()
    events, reconnects = ran.streamed.report.events, ran.streamed.reconnects
    status = guest_pb2.RunStatus(sent_events=events, applied_events=events, reconnects=reconnects)
    return guest_pb2.WatchRunResponse(status=status, report=ran.priced.report, figures=ran.figures)


def named_workload(config: guest_pb2.RunConfig) -> Workload:
    """Return the workload that a config names: one that is listed, never a file."""
    name = config.workload
    chosen = SourceChoice(
        source=name,
        parameters={given.name: given.value for given in config.parameters},
        seed=config.seed or None,
        events=config.events or None,
    )
    try:
        found = find_named(name)
        if config.seed and found.is_recorded:
            message = f"{name}: a recorded trace, which no seed changes"
            raise _refusal("INVALID_ARGUMENT", "SEED_NOT_TAKEN", message, "config.seed")
        return open_source(chosen, found)
    except UnknownWorkload as error:
        raise _refusal("NOT_FOUND", "UNKNOWN_WORKLOAD", error, "config.workload") from error
    except (UnknownParameter, BadParameter) as error:
        reason = "UNKNOWN_PARAMETER" if isinstance(error, UnknownParameter) else "BAD_PARAMETER"
        place = _blamed(config, found.parameters)
        raise _refusal("INVALID_ARGUMENT", reason, error, place) from error
    except BadInput as error:
        raise _refusal("INVALID_ARGUMENT", "BAD_WORKLOAD", error, "config.workload") from error


def _blamed(config: guest_pb2.RunConfig, declared: tuple[Parameter, ...]) -> str:
    """Return the field of the first parameter that is not taken; of all, if they do not go together."""
    for number, given in enumerate(config.parameters):
        try:
            parse_parameters(config.workload, declared, {given.name: given.value})
        except UnknownParameter:
            return f"config.parameters[{number}].name"
        except BadParameter:
            return f"config.parameters[{number}].value"
    return "config.parameters"


def _refusal(code: str, reason: str, message: object, field: str) -> _Refused:
    return _Refused(Failure(code, reason, _line(message), field))


def failure_of(error: GuestError) -> Failure:
    """Return what an error of the guest means to whoever started the run."""
    message = _line(error)
    if isinstance(error, NotConnected):
        return Failure("UNAVAILABLE", "NO_HYPERVISOR", message, "config.hypervisor_address")
    if error.reason and error.status in _PASSED_ON:
        return Failure(error.status, error.reason, _line(error.words), _FIELDS.get(error.field, error.field))
    reason = error.reason or ("RUN_FAILED" if isinstance(error, CouldNotFinish) else "RUN_REFUSED")
    return Failure("FAILED_PRECONDITION", reason, message)


def _line(message: object) -> str:
    """Return a message as it may stand in a terminal, whatever a caller, an author or a peer put into it."""
    return shortened(str(message), _MOST_CHARACTERS)


class _Shown:
    """How far the run is, said whenever it has changed; a thread looks, as the stream's own is at work."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._has_ended = threading.Event()
        self._session_id = ""

    def begin(self, session_id: str) -> None:
        """Say that the session is created."""
        self._session_id = session_id
        self._say(Kind.BEGUN, guest_pb2.RunStatus(session_id=session_id).SerializeToString())

    def look_at(self, stream: Position) -> None:
        """Say from now on where a stream stands."""
        threading.Thread(target=self._look, args=(stream,), daemon=True).start()

    def end(self) -> None:
        """Say no more."""
        self._has_ended.set()

    def _look(self, stream: Position) -> None:
        said = b""
        while not self._has_ended.wait(POSITION_SECONDS):
            position = guest_pb2.RunStatus(
                sent_events=stream.next_event,
                applied_events=stream.applied_events,
                reconnects=stream.reconnects,
            ).SerializeToString()
            if position != said:
                self._say(Kind.POSITION, position)
                said = position


def main() -> NoReturn:
    """Run the job of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; it is for the service
    signal.signal(signal.SIGTERM, _stop)
    code = 0
    try:
        output = keep_descriptor()  # what a workload prints is no frame
        kind, size = HEADER.unpack(_read(HEADER.size))
        assert kind == Kind.JOB
        job = Job.decode(_read(size))
        leave_with_parent(0, has_own_group=True)
        run(job, _Output(output).say)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever threads a workload has


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            os._exit(0)  # the service has gone
        data += more
    return data


class _Output:
    """Frames to the service, from whatever thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def say(self, kind: Kind, payload: bytes) -> None:
        """Write a frame."""
        if len(payload) > LARGEST_PAYLOAD:
            failure = Failure("RESOURCE_EXHAUSTED", "RESULT_TOO_LARGE", f"it has {len(payload):,} bytes")
            kind, payload = Kind.FAILED, failure.encode()
        left = memoryview(encode_frame(kind, payload))
        with self._lock:
            while left:
                left = left[os.write(self._descriptor, left) :]


if __name__ == "__main__":
    main()
