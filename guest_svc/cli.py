"""The guest's commands.

Only argparse is imported at the top: help and refusals need nothing else, and an embedded hypervisor
is started before the guest imports numpy and grpc.
"""

from __future__ import annotations

import argparse
import os

from exitlab.command_line import CHECK_FAILED, TRACEBACK_VARIABLE, run_command, tell, write_output
from guest_svc.connection import checked_address, chosen_tls
from guest_svc.errors import BadInput, GaveUp, GuestError
from guest_svc.options import DEFAULT_PRICES, make_parser
from guest_svc.starting import command_stack, connect, start_hypervisor, start_tabulations

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    import sys  # noqa: PLC0415  (with the rest that is no option's)

    given = sys.argv[1:] if arguments is None else list(arguments)
    return run_command("guest-svc", _told, make_parser(_COMMANDS, *given[:1]).parse_args(given))


def _told(options: argparse.Namespace) -> int:
    """Run the chosen command; tell in one line why it could not."""
    try:
        code: int = options.command(options)
    except GuestError as error:
        if error.__cause__ is not None and os.environ.get(TRACEBACK_VARIABLE):
            import traceback  # noqa: PLC0415  (only where it is asked for)

            traceback.print_exception(error.__cause__)
        tell("guest-svc", error)
        return error.exit_code
    return code


def _run(options: argparse.Namespace) -> int:
    """Run a source under one policy."""
    if len(options.policy or ()) > 1 or {"all", "correct"} & set(options.policy or ()):
        raise BadInput("run takes one policy; compare takes several")
    return _compare(options)


def _compare(options: argparse.Namespace) -> int:
    """Run a source under policies and print what came of it."""
    parameters = parse_assignments(options.parameter)
    _check_session(options)
    with command_stack() as stack:
        find_hypervisor = start_hypervisor(options, stack)
        tabulations = start_tabulations(options, stack)
        from functools import partial  # noqa: PLC0415  (with the rest of what is imported late)

        from guest_svc import own_policies, render, replay, results, run, sources  # noqa: PLC0415  (numpy and grpc)
        from guest_svc.session_note import SessionNote  # noqa: PLC0415
        from guest_svc.sessions import Talk  # noqa: PLC0415

        workload = sources.open_source(
            sources.SourceChoice(
                source=options.source,
                parameters=parameters,
                seed=options.seed,
                events=options.events,
                cycles_per_instruction=options.cpi,
                must_be_recorded=options.must_be_recorded,
                vendor=options.vendor,
            )
        )
        words = options.policy or options.default_policies
        names, own = own_policies.collect(words, tabulations)
        hypervisor = connect(find_hypervisor, stack, options)
        plan = run.Plan(
            policies=names,
            vendor=results.vendor_of(options.vendor, workload.vendor),
            price_names=list(dict.fromkeys(options.prices or (DEFAULT_PRICES,))),
            has_ranges=options.ranges,
            own=own_policies.without_clashes(own, words, names, hypervisor),
        )
        sessions = options.resume or "", options.earlier or ""
        told = partial(tell, "guest-svc")
        note = SessionNote(
            options.session_file,
            told,
            is_resumed=bool(options.resume),
            can_resume=not workload.reads_outcomes,
        )
        # A private hypervisor ends with its guest, and so do its sessions.
        talk = Talk(told, note.take) if options.hypervisor else Talk(told)
        try:
            document = replay.compare(
                hypervisor, workload, plan, talk, *sessions, options.accesses_per_window
            )
        except GaveUp as error:
            raise GaveUp(f"{error}{note.way_on}") from None
        write_output(render.formatted(document, options.output, has_detail=options.detail))
    diverged = [lane["policy"] for lane in document["lanes"] if lane["story"]["verdict"] == "diverged"]
    if options.fail_on_divergence and diverged:
        tell("guest-svc", f"diverged: {', '.join(diverged)}")
        return CHECK_FAILED
    return 0


def _check_session(options: argparse.Namespace) -> None:
    """Refuse options that name a session without saying where it is."""
    needing = {"--resume": options.resume, "--session-file": options.session_file, "--with": options.earlier}
    for flag, given in needing.items():
        if given == "":  # a shell's variable that is not set, perhaps: a new session is not what was meant
            raise BadInput(f"{flag}: expected a name")
        if given and not options.hypervisor:
            raise BadInput(f"{flag}: say with --hypervisor where the session is")


def _demo(options: argparse.Namespace) -> int:
    """Run the demonstration."""
    with command_stack() as stack:
        find_hypervisor = start_hypervisor(options, stack)
        from guest_svc.demo import demonstrate  # noqa: PLC0415  (imports numpy and grpc)

        demonstrate(connect(find_hypervisor, stack, options), write_output)
    return 0


def _workloads(options: argparse.Namespace) -> int:
    """List the workloads."""
    import json  # noqa: PLC0415  (only for this output)

    if options.parent_pipe is not None:
        from exitlab.lifeline import leave_with_parent  # noqa: PLC0415  (only who serves asks for it)

        try:
            leave_with_parent(options.parent_pipe, has_own_group=True)
        except OSError as error:
            raise BadInput(f"--parent-pipe {options.parent_pipe}: {error.strerror or error}") from error
    from guest_svc import sources  # noqa: PLC0415  (imports the workloads)

    workloads, warnings = sources.list_workloads()
    for warning in warnings:
        tell("guest-svc", f"warning: {warning}")
    if options.output == "json":
        write_output(json.dumps({"workloads": workloads}, indent=2) + "\n")
    else:
        write_output(sources.list_csv(workloads) if options.output == "csv" else sources.list_text(workloads))
    return 0


def _stat(options: argparse.Namespace) -> int:
    """Print a text trace's own exits."""
    from pathlib import Path  # noqa: PLC0415  (with the rest of what is imported late)

    from guest_svc import render_stat  # noqa: PLC0415  (imports numpy)
    from guest_svc.traces.stat import trace_stat  # noqa: PLC0415

    if not options.source:
        raise BadInput("FILE: expected the name of a file")
    document = trace_stat(Path(options.source), options.vcpu, options.key)
    write_output(render_stat.formatted(document, options.output))
    for note in render_stat.notes(document):
        tell("guest-svc", note)
    return 0


def _conform(options: argparse.Namespace) -> int:
    """Run vector files and print what came of them."""
    with command_stack() as stack:
        find_hypervisor = start_hypervisor(options, stack)
        tabulations = start_tabulations(options, stack)
        from pathlib import Path  # noqa: PLC0415  (with the rest of what is imported late)

        from guest_svc import (  # noqa: PLC0415  (imports numpy and grpc)
            conform,
            own_policies,
            render_conform,
            results,
            vectors,
        )

        paths = [Path(path) for path in options.vectors] or vectors.SHIPPED
        chosen = [vector for path in paths for vector in vectors.read_vectors(path)]
        words = options.policy or options.default_policies
        names, own = own_policies.collect(words, tabulations)
        hypervisor = connect(find_hypervisor, stack, options)
        own = own_policies.without_clashes(own, words, names, hypervisor)
        vendors = [
            results.vendor_number(name) for name in ([options.vendor] if options.vendor else ("vmx", "svm"))
        ]
        summaries = [*hypervisor.policies(), *own.summaries()]
        conform.check_named_policies(chosen, summaries)
        lanes = conform.choose_lanes(summaries, names, vendors)
        document = conform.run_vectors(hypervisor, chosen, lanes, own).document()
        write_output(render_conform.formatted(document, options.output, has_detail=options.detail))
    return CHECK_FAILED if document["failed"] else 0


def _serve(options: argparse.Namespace) -> int:
    """Serve runs to others until a signal."""
    from guest_svc.service.command import serve  # noqa: PLC0415  (starts what it needs before it imports)

    return serve(options)


def _check_workload(options: argparse.Namespace) -> int:
    """Try whether a workload, or a guest service at an address, keeps what it must."""
    parameters = parse_assignments(options.parameter)
    if not options.source and not options.address:
        raise BadInput("check-workload: say which workload, or with --address which service")
    options.hypervisor = options.address  # what the options of TLS are for
    address, tls = options.address and checked_address(options.address, "--address "), chosen_tls(options)
    with command_stack():
        import gc  # noqa: PLC0415

        from guest_svc.check import command, musts  # noqa: PLC0415  (imports numpy and grpc)
        from guest_svc.check.stand import Stand  # noqa: PLC0415
        from guest_svc.sources import load_source  # noqa: PLC0415

        gc.enable()
        run = (parameters, options.seed, options.events)
        if address:
            document = command.check_service(Stand(), address, tls, options.source, *run)
        else:
            document = command.check_workload(Stand(), options.source, load_source(options.source), *run)
        write_output(musts.formatted(document, options.output))
    return CHECK_FAILED if document["failed"] else 0


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """Return parameters given as ``key=value``.

    Raises:
        BadInput: One is not written so, or a key is there twice.

    """
    parameters: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadInput(f"-p {text}: expected key=value")
        if key in parameters:
            raise BadInput(f"-p {text}: {key} is there twice")
        parameters[key] = value
    return parameters


_COMMANDS = {
    "run": _run,
    "compare": _compare,
    "workloads": _workloads,
    "stat": _stat,
    "demo": _demo,
    "conform": _conform,
    "serve": _serve,
    "check-workload": _check_workload,
}
