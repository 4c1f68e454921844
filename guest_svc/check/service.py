"""What a guest service must keep, in whatever language: see protos/exitlab/v1/guest.proto."""

import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from exitlab.v1 import guest_pb2, hypervisor_pb2, report_pb2
from guest_svc.check.musts import Broken, DoesNotApply, Must
from guest_svc.check.remote import STATES, Remote
from guest_svc.check.stand import PRICES, WINDOW_EVENTS

_NOBODY: Final = "no-such-thing-as-this"
_TYPES: Final[dict[str, Callable[[str], object]]] = {"int": int, "float": float, "str": str, "bool": str}
_FINISHED, _STOPPED = guest_pb2.RUN_STATE_FINISHED, guest_pb2.RUN_STATE_STOPPED
_NOT_FOUND: Final = (grpc.StatusCode.NOT_FOUND,)
_INVALID: Final = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def _listed(remote: Remote) -> str:
    names: set[str] = set()
    for workload in remote.workloads():
        if not workload.name or workload.name in names:
            raise Broken(f"the name {workload.name!r} is empty or there twice")
        names.add(workload.name)
        if not workload.summary or not workload.api_version:
            raise Broken(f"{workload.name}: it has no summary, or no api_version")
        _check_parameters(workload)
    return f"{len(names)} workloads"


def _check_parameters(workload: guest_pb2.Workload) -> None:
    found: set[str] = set()
    for parameter in workload.parameters:
        if not parameter.name or parameter.name in found:
            raise Broken(f"{workload.name}: the parameter {parameter.name!r} is empty or there twice")
        found.add(parameter.name)
        read = _TYPES.get(parameter.type)
        if read is None:
            raise Broken(f"{workload.name}: {parameter.name} is of type {parameter.type!r}")
        try:
            read(parameter.default_value)
        except ValueError:
            raise Broken(
                f"{workload.name}: {parameter.name} has the default {parameter.default_value!r}, which is no "
                f"{parameter.type}"
            ) from None


def _refuses_unknown(remote: Remote) -> str:
    remote.refuses(remote.config(workload=_NOBODY), _NOT_FOUND, "a workload that is not there")
    for call, what in ((remote.watch, "WatchRun"), (remote.stop, "StopRun")):
        remote.check_refused(partial(call, _NOBODY), _NOT_FOUND, f"{what} of no run")
    return "a workload, a run to watch, a run to stop: NOT_FOUND"


def _refuses_bad(remote: Remote) -> str:
    wrong = {
        "a parameter that is not there": remote.config(parameters={_NOBODY: "1"}),
        "a policy that is not there": remote.config(policy=_NOBODY),
        "a price list that is not there": remote.config(prices=[_NOBODY]),
        "no lane": remote.config(policy=None),
    }
    for what, config in wrong.items():
        remote.refuses(config, _INVALID, what)
    return ", ".join(wrong)


def _finishes(remote: Remote) -> str:
    remote.stand.watch()
    ended = remote.run()
    if not 0 < ended.status.applied_events == ended.status.sent_events:
        raise Broken(
            f"it has finished, and says that {ended.status.sent_events:,} events were sent and "
            f"{ended.status.applied_events:,} applied"
        )
    try:
        report = report_pb2.Report.FromString(ended.report)
    except DecodeError:
        raise Broken("its report is none that can be read") from None
    choices = [hypervisor_pb2.PriceChoice(name=PRICES)]
    stored = remote.stand.hypervisor.priced(ended.status.session_id, choices)
    if stored.report != ended.report:
        raise Broken("its report is not the hypervisor's, byte for byte")
    if list(stored.figures) != list(ended.figures):
        raise Broken("its figures are not the hypervisor's")
    return f"{report.events:,} events; the report is the hypervisor's, byte for byte"


def _same_seed(remote: Remote) -> str:
    remote.stand.watch()
    first, second = ((ended, _digests(remote, ended)) for ended in (remote.run(), remote.run()))
    if first[1] != second[1]:
        raise Broken(f"two runs of seed {remote.seed} sent other events: digests {first[1]} and {second[1]}")
    if first[0].report != second[0].report:
        raise Broken(f"two runs of seed {remote.seed} have other reports")
    return f"seed {remote.seed}, digests of {first[1][0]:,} events"


def _digests(remote: Remote, ended: guest_pb2.WatchRunResponse) -> tuple[int, ...]:
    status = remote.stand.hypervisor.session(ended.status.session_id).status
    return status.applied_events, *status.column_crcs


def _idempotent(remote: Remote) -> str:
    remote.stand.watch()
    request_id = str(uuid.uuid4())
    first = remote.start(remote.config(), request_id)
    again = remote.start(remote.config(), request_id)
    ended = remote.end_of(first)
    late = remote.start(remote.config(), request_id)
    for status in (again, late):
        if (status.run_id, status.session_id) != (first.run_id, ended.status.session_id):
            raise Broken(f"a repeated request id gave run {status.run_id}, before it was {first.run_id}")
    other = remote.start(remote.config(), str(uuid.uuid4()))
    remote.end_of(other)
    if other.run_id == first.run_id:
        raise Broken("another request id gave the same run")
    return "at once, and after the run had ended"


def _watched(remote: Remote) -> str:
    remote.stand.watch()
    started = remote.start(remote.config())
    told = list(remote.watch(started.run_id, interval_ms=20))
    _check_progress(told)
    after = list(remote.watch(started.run_id))
    if not after or after[-1].status != told[-1].status or after[-1].report != told[-1].report:
        raise Broken("a watch of the ended run says something else than the one that saw it end")
    return f"{len(told)} messages, then one of the ended run"


def _check_progress(told: Iterable[guest_pb2.WatchRunResponse]) -> None:
    before = guest_pb2.RunStatus()
    for each in told:
        status = each.status
        for name in ("sent_events", "applied_events", "reconnects"):
            if getattr(status, name) < getattr(before, name):
                raise Broken(f"{name} went back from {getattr(before, name):,} to {getattr(status, name):,}")
        if status.applied_events > status.sent_events:
            raise Broken(f"{status.applied_events:,} events applied of {status.sent_events:,} that were sent")
        if before.state not in {guest_pb2.RUN_STATE_UNSPECIFIED, guest_pb2.RUN_STATE_RUNNING}:
            raise Broken(f"something came after the run had {STATES[before.state]}")
        if each.report and status.state != _FINISHED:
            raise Broken(f"a report came while the run was {STATES[status.state]}")
        before = status
    if before.state != _FINISHED:
        raise Broken(f"the watch ended while the run was {STATES[before.state]}: {before.note}")


def _bounded(remote: Remote) -> str:
    watched = remote.stand.watch(window=WINDOW_EVENTS)
    remote.run()
    if watched.most_unanswered > WINDOW_EVENTS:
        raise Broken(
            f"{watched.most_unanswered:,} events were sent and not answered; the hypervisor allows "
            f"{WINDOW_EVENTS:,}"
        )
    return f"at most {watched.most_unanswered:,} of {WINDOW_EVENTS:,} events unanswered"


def _cut_stream(remote: Remote) -> str:
    remote.stand.watch()
    whole = remote.run()
    cut_at = max(1, int(whole.status.applied_events) // 2)
    watched = remote.stand.watch(cut_at=cut_at)
    ended = remote.run()
    if not watched.cuts:
        raise Broken(f"the stream was to be cut after {cut_at:,} events, and was not")
    if not ended.status.reconnects:
        raise Broken("the stream was cut, and the status tells of no reconnect")
    if ended.report != whole.report:
        raise Broken("the report is another one than without the cut", cut_at)
    return f"cut after {cut_at:,} events; the report is the same, byte for byte"


def _stopped(remote: Remote) -> str:
    watched = remote.stand.watch(is_shut=True)
    started = remote.start(remote.config())
    if not watched.wait_until_sent(1, remote.seconds):
        raise Broken(f"the run has sent no event within {remote.seconds:g} s")
    remote.stop(started.run_id)
    ended = remote.end_of(started, expected=_STOPPED)
    watched.open_up()
    if ended.report:
        raise Broken("a stopped run has a report")
    left = remote.stand.hypervisor.session(ended.status.session_id or started.session_id).status
    if left.state == hypervisor_pb2.SESSION_STATE_FINISHED:
        raise Broken("the session of the stopped run is finished")
    again = remote.stop(started.run_id)
    if again.status.state != _STOPPED:
        raise Broken(f"stopped a second time it is {STATES[again.status.state]}")
    return "while the hypervisor answered nothing"


def _listed_runs(remote: Remote) -> str:
    remote.stand.watch()
    ours = [remote.end_of(remote.start(remote.config())).status.run_id for _ in range(2)]
    pages = remote.runs(page_size=1)
    found = [run_id for run_id in pages if run_id in ours]
    if found != ours[::-1]:
        raise Broken("the two runs started last are not there once each, newest first")
    if len(set(pages)) != len(pages):
        raise Broken("a run is listed twice")
    return f"{len(pages)} runs, in pages of one"


def _other_seed(remote: Remote) -> str:
    if remote.is_recorded:
        raise DoesNotApply("a recorded trace has no seed")
    remote.stand.watch()
    digests = [_digests(remote, remote.run(seed=seed)) for seed in (remote.seed, remote.seed ^ 1)]
    if digests[0] == digests[1]:
        return "it means nothing: another seed gives the same events"
    return "it means something: another seed gives other events"


def _must(name: str, sentence: str, check: Callable[[Remote], str], **more: Any) -> Must[Remote]:
    return Must(name, sentence, check, **more)


MUSTS: Final[tuple[Must[Remote], ...]] = (
    _must("listed", "its workloads are listed with all that the contract names", _listed),
    _must("unknown", "what is not there is refused as not found", _refuses_unknown),
    _must("bad-config", "a run that cannot be is refused before it starts", _refuses_bad),
    _must("finishes", "a run ends, with the hypervisor's report and figures", _finishes),
    _must("same-seed", "the same seed and parameters send the same bytes", _same_seed, needs=("finishes",)),
    _must("idempotent", "a repeated request id starts nothing anew", _idempotent, needs=("finishes",)),
    _must("watched", "progress never goes back, and ends with the run", _watched, needs=("finishes",)),
    _must("bounded", "no more is sent than the window allows", _bounded, needs=("finishes",)),
    _must("cut-stream", "a cut stream goes on, and is told", _cut_stream, needs=("finishes",)),
    _must("stopped", "a run stops when it is told to", _stopped, needs=("finishes",)),
    _must("listed-runs", "runs are listed newest first, page by page", _listed_runs, needs=("finishes",)),
    _must("seed", "another seed may give other events", _other_seed, needs=("finishes",), is_told_only=True),
)
