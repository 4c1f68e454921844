"""A text trace under several policies: the run, what the trace could not say, and what was assumed of it."""

from dataclasses import replace
from typing import Final

from guest_svc import run
from guest_svc.errors import BadInput
from guest_svc.evidence import evidence_of, intervals_of
from guest_svc.hypervisor import Hypervisor
from guest_svc.results import Document
from guest_svc.sessions import QUIET, Talk
from guest_svc.traces.exits.facts import trace_facts
from guest_svc.traces.exits.roster import RosterGrew
from guest_svc.traces.exits.trace import TextTrace
from guest_svc.workloads.base import Workload

MOST_ACCESSES: Final = 256


def compare(
    hypervisor: Hypervisor,
    workload: Workload,
    plan: run.Plan,
    talk: Talk = QUIET,
    resume: str = "",
    earlier: str = "",
    accesses_per_window: int | None = None,
) -> Document:
    """Return what ``run.compare`` does, and for a text trace also the trace's facts and the evidence.

    With ``accesses_per_window`` the trace is replayed twice: with one access in each window of a lazily
    tracking host, and with so many.

    Raises:
        BadInput: The source has no such windows, or what is asked for cannot go together.

    """
    if not isinstance(workload, TextTrace):
        if accesses_per_window is not None:
            raise BadInput("--accesses-per-window is for text traces of KVM; this source says every access")
        return run.compare(hypervisor, workload, plan, talk, resume, earlier)
    if accesses_per_window is not None:
        _check_twice(workload, accesses_per_window, resume)
    if resume and not _is_of_first_stretch(hypervisor, resume, workload):
        workload.learn_roster()  # its guest had begun again with all
    document = _compare_whole(hypervisor, workload, plan, talk, resume, earlier)
    facts = trace_facts(workload)
    document["trace"] = {**facts, "accesses_per_window": accesses_per_window}
    document["evidence"] = evidence_of(facts)
    if accesses_per_window is not None:
        again = workload.with_accesses(accesses_per_window)
        modelled = run.compare(
            hypervisor, again, replace(plan, has_ranges=False), replace(talk, on_session=QUIET.on_session)
        )
        document["intervals"] = intervals_of(document["lanes"], modelled["lanes"])
    return document


def _check_twice(workload: TextTrace, accesses_per_window: int, resume: str) -> None:
    if not 1 <= accesses_per_window <= MOST_ACCESSES:
        raise BadInput(f"--accesses-per-window {accesses_per_window}: expected 1 to {MOST_ACCESSES}")
    if resume:
        raise BadInput("--accesses-per-window runs two sessions; --resume names one")
    if not workload.can_read_again:
        raise BadInput("--accesses-per-window reads the trace twice, and a pipe cannot be: save it as a file")


def _compare_whole(
    hypervisor: Hypervisor, workload: TextTrace, plan: run.Plan, talk: Talk, resume: str, earlier: str
) -> Document:
    """Return the run; it is begun again with all vCPUs if one shows up that its session does not have.

    So it is in a new session, also where one was resumed: what that has so far says nothing of the others.
    """
    try:
        return run.compare(hypervisor, workload, plan, talk, resume, earlier)
    except RosterGrew as grew:
        talk.tell(
            f"{workload.name}: {grew}: a vCPU or CPU that its beginning does not show; begun again with all "
            "in a new session; the first one counts until the hypervisor drops it as idle"
        )
    workload.learn_roster()
    return run.compare(hypervisor, workload, plan, talk, earlier=earlier)


def _is_of_first_stretch(hypervisor: Hypervisor, session_id: str, workload: TextTrace) -> bool:
    """Return whether a session was created with the vCPUs and CPUs that a trace's first stretch shows."""
    config = hypervisor.session(session_id).config
    theirs = config.vcpus, config.physical_cpus, tuple(config.initial_physical_cpus)
    return theirs == (workload.vcpus, workload.physical_cpus, workload.initial_physical_cpus)
