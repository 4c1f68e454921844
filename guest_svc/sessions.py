"""A source's events in a session: one of its own, or one that an earlier guest has left.

Open and closed loops are run alike: a source yields a block, and is sent what came of it. That is nothing for
one that does not ask, so its blocks go out as fast as the window allows; one that acts on outcomes waits for
those of each block.

A restarted guest has nothing but its source. It can go on with a session if the source says the same
again, which the running digests prove: those of what it makes anew, and those of what the hypervisor has
applied. A guest that acts on outcomes is none such: what it would have done next has gone with it.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

from exitlab.blocks import ColumnCrcs
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import BadInput, WorkloadError
from guest_svc.hypervisor import Hypervisor, wire_text
from guest_svc.outcomes import ArrivingOutcomes
from guest_svc.progress import Progress
from guest_svc.stream import EventStream
from guest_svc.workloads.base import BLOCK_EVENTS, Workload

_LABEL_CHARACTERS: Final = 200  # a server refuses longer ones


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of a session."""

    session_id: str
    report: report_pb2.Report
    reconnects: int


def _ignore(_text: str) -> None:
    pass


class Position(Protocol):
    """Where a stream stands; may be looked at from any thread."""

    @property
    def next_event(self) -> int:
        """The event after the last that is sent, or about to be."""

    @property
    def applied_events(self) -> int:
        """How many events the hypervisor has applied."""

    @property
    def reconnects(self) -> int:
        """How often it was cut, and went on."""


def _ignore_stream(_stream: Position) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Talk:
    """Who is told of what happens meanwhile."""

    tell: Callable[[str], None] = _ignore  # a line for people: the stream was cut
    on_session: Callable[[str], None] = _ignore  # the session's id
    on_stream: Callable[[Position], None] = _ignore_stream  # once it is open, to look at as long as it is


QUIET: Final = Talk()


def session_label(name: str) -> str:
    """Return what a session is labelled with: a source's name, as far as a label goes."""
    return wire_text(name)[:_LABEL_CHARACTERS]


def stream_workload(
    hypervisor: Hypervisor,
    workload: Workload,
    lanes: Sequence[policy_pb2.Lane],
    talk: Talk,
    resume: str = "",
    block_events: int = BLOCK_EVENTS,
) -> Streamed:
    """Stream all events of a source in a session, which is new unless ``resume`` names one.

    Whoever has a session's id can resume it, so that is told before any event. The source is asked for blocks
    of ``block_events``; the stream cuts them to what the hypervisor takes.
    """
    if resume:
        refuse_resume(workload)
    config = session_config(workload, lanes)
    if resume:
        session, status = _left_session(hypervisor, resume, config)
        talk.on_session(resume)
        if status.state == hypervisor_pb2.SESSION_STATE_FINISHED:
            return Streamed(resume, _finished(hypervisor, workload, status), 0)
    else:
        session = hypervisor.create_session(config)
        talk.on_session(session.session_id)
    with Progress(workload.name, workload.total_events) as progress:

        def cut(why: str) -> None:
            progress.cut()
            talk.tell(f"{why}; trying to go on")

        arriving = ArrivingOutcomes(len(lanes)) if workload.reads_outcomes else None
        with EventStream(
            hypervisor,
            session,
            workload.columns,
            None if arriving is None else arriving.take,
            on_cut=cut,
            is_resumed=bool(resume),
        ) as stream:
            talk.on_stream(stream)
            try:
                _carry(workload, block_events, stream, arriving, progress)
                report = stream.finish()
            except BadInput as refused:
                if resume or isinstance(refused, WorkloadError):
                    raise  # it says whose it is
                raise BadInput(f"{workload.told_as}: {refused}") from refused
    return Streamed(session.session_id, report, stream.reconnects)


def refuse_resume(workload: Workload) -> None:
    """Refuse to go on with the session of an earlier guest that acted on outcomes.

    Raises:
        BadInput: the workload does.

    """
    if workload.reads_outcomes:
        raise BadInput(
            f"--resume: {workload.name} acts on what its events showed, and what it would have done next has "
            "gone with the guest that ended: start a new session"
        )


def _carry(
    workload: Workload,
    block_events: int,
    stream: EventStream,
    arriving: ArrivingOutcomes | None,
    progress: Progress,
) -> None:
    """Send all that a workload yields, and answer each block with its outcomes if they are wanted."""
    with closing(workload.blocks(block_events)) as blocks:
        block = next(blocks, None)
        while block is not None:
            stream.send(block)
            outcomes = None
            if arriving is not None:
                stream.wait_until_applied()
                outcomes = arriving.of(len(block))
            progress.update(stream.applied_events, workload.fraction_read)
            try:
                block = blocks.send(outcomes)
            except StopIteration:
                block = None


def session_config(workload: Workload, lanes: Sequence[policy_pb2.Lane]) -> hypervisor_pb2.SessionConfig:
    """Return what a session of a workload under ``lanes`` is created with."""
    is_computed = workload.computed_breakpoints
    return hypervisor_pb2.SessionConfig(
        lanes=lanes,
        columns=[int(column) for column in workload.columns],  # type: ignore[misc]  # stubs want their own enum
        vcpus=workload.vcpus,
        physical_cpus=workload.physical_cpus,
        initial_physical_cpus=workload.initial_physical_cpus,
        breakpoints=hypervisor_pb2.BREAKPOINT_MODE_COMPUTED
        if is_computed
        else hypervisor_pb2.BREAKPOINT_MODE_RECORDED,
        leading_vendor=lanes[0].vendor,
        leading_features=lanes[0].features,
        outcome_level=outcome_pb2.OUTCOME_LEVEL_REFERENCE
        if workload.reads_outcomes
        else outcome_pb2.OUTCOME_LEVEL_SUMMARY,
        label=session_label(workload.name),
    )


def _left_session(
    hypervisor: Hypervisor, session_id: str, config: hypervisor_pb2.SessionConfig
) -> tuple[hypervisor_pb2.CreateSessionResponse, hypervisor_pb2.SessionStatus]:
    """Return a session that runs what ``config`` says.

    Raises:
        BadInput: it runs something else.

    """
    found = hypervisor.session(session_id)
    theirs = found.config
    names = [field.name for field in config.DESCRIPTOR.fields if field.name != "label"]
    unlike = [name for name in names if getattr(theirs, name) != getattr(config, name)]
    if unlike:
        raise BadInput(f"--resume: the session was created for another run; {', '.join(unlike)} differ")
    return hypervisor_pb2.CreateSessionResponse(session_id=session_id, limits=found.limits), found.status


def _finished(
    hypervisor: Hypervisor, workload: Workload, status: hypervisor_pb2.SessionStatus
) -> report_pb2.Report:
    """Return the report of a session that is finished, if the source is the one that it had."""
    crcs, count = ColumnCrcs(workload.columns), 0
    for block in workload.blocks():
        crcs.update(block)
        count += len(block)
    if (count, crcs.values) != (status.applied_events, tuple(status.column_crcs)):
        raise BadInput(
            f"--resume: this source is not the session's, which has finished: its {status.applied_events:,} "
            f"events are not the {count:,} of this source"
        )
    return hypervisor.finish_session(status.session_id, count, crcs.values)
