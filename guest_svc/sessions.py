"""A source's events in a session: one of its own, or one that an earlier guest has left.

A restarted guest has nothing but its source. It can go on with a session if the source says the same
again, which the running digests prove: those of what it makes anew, and those of what the hypervisor has
applied. Every source here is such a one; a guest that acts on outcomes cannot be resumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from exitlab.blocks import ColumnCrcs
from exitlab.v1 import hypervisor_pb2, outcome_pb2, policy_pb2, report_pb2
from guest_svc.errors import BadInput
from guest_svc.hypervisor import Hypervisor, wire_text
from guest_svc.progress import Progress
from guest_svc.stream import EventStream
from guest_svc.workloads.base import Workload

_LABEL_CHARACTERS: Final = 200  # a server refuses longer ones


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of a session."""

    session_id: str
    report: report_pb2.Report
    reconnects: int


def _ignore(_text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Talk:
    """Who is told of what happens meanwhile."""

    tell: Callable[[str], None] = _ignore  # a line for people: the stream was cut
    on_session: Callable[[str], None] = _ignore  # the session's id


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
) -> Streamed:
    """Stream all events of a source in a session, which is new unless ``resume`` names one.

    Whoever has a session's id can resume it, so that is told before any event.
    """
    config = _config(workload, lanes)
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

        with EventStream(
            hypervisor, session, workload.columns, on_cut=cut, is_resumed=bool(resume)
        ) as stream:
            for block in workload.blocks():
                stream.send(block)
                progress.update(stream.applied_events, workload.fraction_read)
            report = stream.finish()
    return Streamed(session.session_id, report, stream.reconnects)


def _config(workload: Workload, lanes: Sequence[policy_pb2.Lane]) -> hypervisor_pb2.SessionConfig:
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
        outcome_level=outcome_pb2.OUTCOME_LEVEL_SUMMARY,
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
