"""What a workload in Python must keep, whoever has written it."""

from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Final

import numpy as np

from exitlab.events import Column, EventColumns, EventKind
from guest_svc.check.musts import Broken, DoesNotApply, Must
from guest_svc.check.stand import WINDOW_EVENTS
from guest_svc.check.subject import Subject, compare
from guest_svc.check.tapped import Tapped
from guest_svc.errors import BadInput
from guest_svc.sessions import QUIET, Streamed, Talk, refuse_resume
from guest_svc.workloads.base import BadParameter, Parameter

_CUTS: Final = (1, 7, 1_000)  # events of a block
_STOPS: Final = 8  # yields after which a run is left


class _Left(Exception):
    """A run is left as by a guest that was killed."""


def _declarations(subject: Subject) -> str:
    source = subject.source
    names = ", ".join(parameter.name for parameter in source.parameters) or "no parameters"
    return f"{source.name}, api_version {source.api_version}: {names}"


def _facts(subject: Subject) -> str:
    made = subject.make()
    columns = ", ".join(column.name.lower() for column in made.columns)
    return (
        f"vcpus {made.vcpus}, physical_cpus {made.physical_cpus}, clock_hertz {made.clock_hertz:,}, columns "
        f"{columns}; it acts on {'outcomes' if made.reads_outcomes else 'no outcomes'}"
    )


def _blocks(subject: Subject) -> str:
    events, made = subject.recorded(), subject.make()
    if events.declared != made.columns:
        names = ", ".join(column.name.lower() for column in events.declared)
        raise Broken(f"its blocks have the columns {names}, which are not those declared")
    if Column.VCPUS in events.declared:
        assert events.vcpus is not None
        beyond = np.flatnonzero(events.vcpus >= made.vcpus)
        if len(beyond):
            row = int(beyond[0])
            raise Broken(f"event {row:,} is of vCPU {events.vcpus[row]}; it says it has {made.vcpus}", row)
    return f"{len(events):,} events"


def _same_seed(subject: Subject) -> str:
    first = subject.recorded()
    made = subject.make()
    for what in ("a second run", "a third run of the same object"):
        compare(first, subject.record(made), what)
    return f"seed {subject.seed}, three runs"


def _other_process(subject: Subject) -> str:
    compare(subject.recorded(), subject.elsewhere(), "another process")
    return "with another order of sets"


def _cuts(subject: Subject) -> str:
    for block_events in _CUTS:
        events = subject.record(subject.make(), block_events)
        compare(subject.recorded(), events, f"in blocks of {block_events:,}")
    return f"blocks of {', '.join(f'{each:,}' for each in _CUTS)}"


def _prefixes(subject: Subject) -> str:
    whole = subject.recorded()
    is_event = whole.kinds != EventKind.ADVANCE
    total = int(np.count_nonzero(is_event))
    asked = sorted({1, max(1, total // 2), max(1, total - 1)})
    for events in asked:
        cut = subject.record(subject.make(events=events))
        found = int(np.count_nonzero(cut.kinds != EventKind.ADVANCE))
        if found != events:
            raise Broken(f"--events {events:,} gives {found:,}")
        compare(whole.rows(0, len(cut)), cut, f"with --events {events:,}")
    return f"--events {', '.join(f'{each:,}' for each in asked)}"


def _stops(subject: Subject) -> str:
    """Leave runs early, in blocks of one event and of many; of a closed loop in mid-session."""
    made = subject.make()
    for block_events in (_CUTS[0], _CUTS[-1]):
        for stop in range(1, _STOPS + 1):
            with suppress(_Left):
                subject.record_tapped(Tapped(made, partial(_leave_after, pulls=[stop])), block_events)
    compare(subject.recorded(), subject.record(made), "after runs that were left")
    return f"left after each of its first {_STOPS} blocks, small and large, then run to its end"


def _leave_after(_rows: int, pulls: list[int]) -> None:
    if not pulls[0]:
        raise _Left
    pulls[0] -= 1


def _session(subject: Subject) -> str:
    tapped = Tapped(subject.make())
    streamed = subject.run(tapped)
    status = subject.stand.hypervisor.session(streamed.session_id).status
    if status.applied_events != len(tapped.taken):
        raise Broken(f"{len(tapped.taken):,} events were yielded, and {status.applied_events:,} arrived")
    return f"{streamed.report.events:,} events in the report"


def _bounded(subject: Subject) -> str:
    watched = subject.stand.watch(window=WINDOW_EVENTS)

    def pull(rows: int) -> None:
        ahead = rows - watched.told_events
        if ahead > WINDOW_EVENTS:
            raise Broken(f"it is asked for more while {ahead:,} events are not answered", rows)

    subject.run_watched(Tapped(subject.make(), pull))
    if watched.most_unanswered > WINDOW_EVENTS:
        raise Broken(f"{watched.most_unanswered:,} events were sent and not answered")
    return f"at most {watched.most_unanswered:,} of {WINDOW_EVENTS:,} events unanswered"


def _cut_stream(subject: Subject) -> str:
    whole = Tapped(subject.make())
    expected = _bytes(subject.run(whole))
    cut_at = max(1, len(whole.taken) // 2)
    watched = subject.stand.watch(cut_at=cut_at)
    cut = Tapped(subject.make())
    streamed = subject.run_watched(cut)
    if not watched.cuts or not streamed.reconnects:
        raise Broken(f"the stream was to be cut after {cut_at:,} events, and was not")
    compare(whole.taken, cut.taken, "after a cut")
    if whole.answers != cut.answers:
        raise Broken("its outcomes are others than without the cut", cut_at)
    if _bytes(streamed) != expected:
        raise Broken("the report is another one than without the cut", cut_at)
    return f"cut after {cut_at:,} events; the report is the same, byte for byte"


def _resumed(subject: Subject) -> str:
    made = subject.make()
    if made.reads_outcomes:
        try:
            refuse_resume(made)
        except BadInput:
            raise DoesNotApply("it acts on outcomes, so --resume is refused") from None
        raise Broken("--resume is not refused, though it acts on outcomes")
    expected, half = _bytes(subject.run(subject.make())), len(subject.recorded()) // 2
    sessions: list[str] = []

    def leave(rows: int) -> None:
        if rows > half:
            raise _Left

    with suppress(_Left):
        # Blocks of a quarter, so that some are taken before it is left.
        subject.run(Tapped(made, leave), Talk(on_session=sessions.append), block_events=max(1, half // 2))
    streamed = subject.run(subject.make(), QUIET, sessions[0])
    if _bytes(streamed) != expected:
        raise Broken("the report is another one than of a guest that was not killed", half)
    return f"left after {half:,} events and resumed; the report is the same, byte for byte"


def _bytes(streamed: Streamed) -> bytes:
    return streamed.report.SerializeToString(deterministic=True)


def _bounds(subject: Subject) -> str:
    tried = refused = 0
    for parameter in subject.source.parameters:
        for value in _extremes(parameter):
            tried += 1
            try:
                _begin(subject, {parameter.name: value})
            except BadParameter:
                refused += 1  # in words, for what does not go together
    if not tried:
        raise DoesNotApply("no parameter has bounds")
    return f"{tried} bounds, of which {refused} are refused with a reason" if refused else f"{tried} bounds"


def _extremes(parameter: Parameter) -> list[str]:
    if isinstance(parameter.default, bool):
        return ["0", "1"]
    return [str(bound) for bound in (parameter.minimum, parameter.maximum) if bound is not None]


def _begin(subject: Subject, parameters: dict[str, str]) -> EventColumns:
    """Return the first block of a run with some parameters."""
    with closing(subject.make(parameters=parameters, events=1_000).blocks(1_000)) as blocks:
        return next(blocks)


def _other_seed(subject: Subject) -> str:
    try:
        events = subject.record(subject.make(seed=subject.seed ^ 1))
        compare(subject.recorded(), events, f"seed {subject.seed ^ 1}")
    except Broken as other:
        return f"it means something: {other}"
    return "it means nothing: another seed gives the same events"


def _needing(*names: str) -> Callable[[str, str, Callable[[Subject], str]], Must[Subject]]:
    return lambda name, sentence, check: Must(name, sentence, check, names)


_made, _running = _needing("declarations", "facts"), _needing("declarations", "facts", "blocks")
MUSTS: Final[tuple[Must[Subject], ...]] = (
    Must("declarations", "what it declares is legal", _declarations),
    _needing("declarations")("facts", "it says its CPUs, its clock and its columns before it runs", _facts),
    _made("blocks", "all that it yields is legal: columns, types, numbers", _blocks),
    _running("same-seed", "the same seed and parameters give the same bytes", _same_seed),
    _running("other-process", "so they do in another process", _other_process),
    _running("cuts", "so they do however blocks are cut", _cuts),
    _running("prefixes", "--events N gives the first N events", _prefixes),
    _running("stops", "it can be stopped at any block", _stops),
    _running("session", "a hypervisor takes all of its events, and the session ends", _session),
    _needing("session")("bounded", "nothing is asked of it beyond the window", _bounded),
    _needing("session")("cut-stream", "a cut stream goes on; outcomes come once each", _cut_stream),
    _needing("session")("resume", "a guest that was killed can be resumed", _resumed),
    _made("bounds", "its parameters are taken at their bounds", _bounds),
    Must("seed", "another seed may give other events", _other_seed, ("blocks",), is_told_only=True),
)
