"""The guest's commands.

Only argparse is imported at the top: help and refusals need nothing else, and an embedded hypervisor
is started before the guest imports numpy and grpc.
"""

from __future__ import annotations

import argparse
import os

from exitlab.command_line import CHECK_FAILED, Parser, ShowVersion, run_command, tell, write_output
from guest_svc.connection import add_tls_options, checked_address, chosen_tls
from guest_svc.errors import BadInput, GuestError

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from typing import NoReturn

    from guest_svc.hypervisor import Hypervisor
    from guest_svc.sessions import Talk
    from guest_svc.tls import Tls

DEFAULT_POLICY = "kvm-6.14"
COMPARED_POLICIES = ("kvm-3.14", "kvm-6.14", "swap-each-entry", "ignore")
DEFAULT_PRICES = "seed-2014"
HYPERVISOR_VARIABLE = "EXITLAB_HYPERVISOR"
DEFAULT_RETRY_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command("guest-svc", _told, _parser().parse_args(arguments))


def _told(options: argparse.Namespace) -> int:
    """Run the chosen command; tell in one line why it could not."""
    try:
        code: int = options.command(options)
    except GuestError as error:
        tell("guest-svc", error)
        return error.exit_code
    return code


def _command() -> ExitStack:
    """Return what a command's subprocesses and connections are closed by, also if it is terminated."""
    import gc  # noqa: PLC0415  (a help text needs none of these)
    import signal  # noqa: PLC0415
    from contextlib import ExitStack  # noqa: PLC0415

    def terminate(number: int, frame: object) -> NoReturn:
        del frame
        raise SystemExit(128 + number)  # unwinds

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # not every system has both
        # What is ignored stays so: nohup lets a command outlive its terminal that way.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, terminate)
    stack = ExitStack()
    # What is imported stays: nothing is looked through for garbage until there is a connection.
    gc.disable()
    stack.callback(gc.enable)
    return stack


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="guest-svc", description="Streams a guest's events to an emulated hypervisor.")
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a source under one policy")
    run.set_defaults(command=_run)
    _add_source(run, "a workload, capture:NAME of a shipped trace, or the file of one", (DEFAULT_POLICY,))

    compare = commands.add_parser("compare", help="run a source under several policies in one pass")
    compare.set_defaults(command=_compare)
    _add_source(compare, "a workload, capture:NAME of a shipped trace, or the file of one", COMPARED_POLICIES)

    replay = commands.add_parser("replay", help="compare policies on a recorded trace")
    replay.set_defaults(command=_compare)
    _add_source(replay, "the file of a recorded trace, or the name of a shipped one", COMPARED_POLICIES)
    replay.set_defaults(must_be_recorded=True)

    workloads = commands.add_parser("workloads", help="list the workloads and their parameters")
    workloads.set_defaults(command=_workloads)
    _add_output(workloads)

    demo = commands.add_parser("demo", help="run the main comparisons and say what they show")
    demo.set_defaults(command=_demo)
    _add_hypervisor(demo)

    conform = commands.add_parser("conform", help="check policies against files of vectors")
    conform.set_defaults(command=_conform)
    conform.add_argument(
        "vectors", metavar="VECTORS", nargs="*", help="vector files (default: all that are shipped)"
    )
    _add_policies(conform, ("correct",))
    conform.add_argument("--vendor", choices=("vmx", "svm"), help="one vendor only (default both)")
    conform.add_argument(
        "--detail", action="store_true", help="also print each vector's bill, and every failure whole"
    )
    _add_hypervisor(conform)
    _add_output(conform)
    return parser


def _add_source(parser: argparse.ArgumentParser, help_text: str, policies: Sequence[str]) -> None:
    parser.set_defaults(must_be_recorded=False)
    parser.add_argument("source", metavar="SOURCE", help=help_text)
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the workload; may be repeated",
    )
    _add_policies(parser, policies)
    parser.add_argument("--vendor", choices=("vmx", "svm"), default="vmx", help="(default vmx)")
    parser.add_argument(
        "--events", type=int, metavar="N", help="cut the source, or extend a generated one, to N events"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the workload (default 0)")
    parser.add_argument("--cpi", metavar="X", help="guest cycles of a trace's instruction (default 1)")
    parser.add_argument(
        "--prices",
        action="append",
        metavar="NAME",
        help=f"price list; may be repeated (default {DEFAULT_PRICES})",
    )
    parser.add_argument(
        "--ranges", action="store_true", help="also print losses over ranges of the prices of DR accesses"
    )
    parser.add_argument("--detail", action="store_true", help="also print exits and latency by reason")
    help_text = "go on with a session of the same run, whose guest has ended early"
    parser.add_argument("--resume", metavar="SESSION", default="", help=help_text)
    help_text = "set a finished session's report beside, as hypervisor-svc reports lists them"
    parser.add_argument("--with", metavar="SESSION", default="", dest="earlier", help=help_text)
    help_text = "write a new session's id into this file, for --resume and --with"
    parser.add_argument("--session-file", metavar="FILE", help=help_text)
    parser.add_argument(
        "--fail-on-divergence", action="store_true", help="exit with 1 if a policy's story diverges"
    )
    _add_hypervisor(parser)
    _add_output(parser)


def _add_policies(parser: argparse.ArgumentParser, defaults: Sequence[str]) -> None:
    parser.add_argument(
        "--policy",
        action="append",
        metavar="P",
        help=f"a policy, 'all' or 'correct'; may be repeated (default {', '.join(defaults)})",
    )
    parser.set_defaults(default_policies=tuple(defaults))


def _add_hypervisor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hypervisor",
        metavar="ADDR",
        default=os.environ.get(HYPERVISOR_VARIABLE),
        help=f"host:port or unix:PATH (default: ${HYPERVISOR_VARIABLE}, else a private one)",
    )
    help_text = f"how long to look for a hypervisor that is gone (default {DEFAULT_RETRY_SECONDS:g})"
    parser.add_argument(
        "--retry-seconds", metavar="N", type=_seconds, default=DEFAULT_RETRY_SECONDS, help=help_text
    )
    add_tls_options(parser)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86,400")
    return seconds


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", choices=("text", "json", "csv"), default="text", help="(default text)")


def _run(options: argparse.Namespace) -> int:
    """Run a source under one policy."""
    if len(options.policy or ()) > 1 or {"all", "correct"} & set(options.policy or ()):
        raise BadInput("run takes one policy; compare takes several")
    return _compare(options)


def _compare(options: argparse.Namespace) -> int:
    """Run a source under policies and print what came of it."""
    parameters = parse_assignments(options.parameter)
    needing = {"--resume": options.resume, "--session-file": options.session_file, "--with": options.earlier}
    for flag, is_given in needing.items():
        if is_given and not options.hypervisor:
            raise BadInput(f"{flag}: say with --hypervisor where the session is")
    with _command() as stack:
        find_hypervisor = _start_hypervisor(options, stack)
        from guest_svc import render, results, run, sources  # noqa: PLC0415  (imports numpy and grpc)

        workload = sources.open_source(
            sources.SourceChoice(
                source=options.source,
                parameters=parameters,
                seed=options.seed,
                events=options.events,
                cycles_per_instruction=options.cpi,
                must_be_recorded=options.must_be_recorded,
            )
        )
        plan = run.Plan(
            policies=options.policy or options.default_policies,
            vendor=results.vendor_number(options.vendor),
            price_names=list(dict.fromkeys(options.prices or (DEFAULT_PRICES,))),
            has_ranges=options.ranges,
        )
        hypervisor = _connect(find_hypervisor, stack, options)
        document = run.compare(hypervisor, workload, plan, _talk(options), options.resume, options.earlier)
        write_output(render.formatted(document, options.output, has_detail=options.detail))
    diverged = [lane["policy"] for lane in document["lanes"] if lane["story"]["verdict"] == "diverged"]
    if options.fail_on_divergence and diverged:
        tell("guest-svc", f"diverged: {', '.join(diverged)}")
        return CHECK_FAILED
    return 0


def _talk(options: argparse.Namespace) -> Talk:
    """Return who is told what: people at a terminal how to resume, and the file that was asked for."""
    import sys  # noqa: PLC0415  (with the rest of what is imported late)
    from functools import partial  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from guest_svc.sessions import QUIET, Talk  # noqa: PLC0415  (imports grpc)

    if not options.hypervisor:
        return QUIET  # a private hypervisor ends with its guest

    def on_session(session_id: str) -> None:
        if options.session_file:
            path = Path(options.session_file)
            try:
                path.touch(mode=0o600)  # an id gives access
                path.write_text(f"{session_id}\n")
            except OSError as error:
                raise BadInput(f"--session-file {path}: {error.strerror}") from error
        elif sys.stderr.isatty():
            tell("guest-svc", f"should this guest end early, --resume {session_id} goes on")

    return Talk(partial(tell, "guest-svc"), on_session)


def _demo(options: argparse.Namespace) -> int:
    """Run the demonstration."""
    with _command() as stack:
        find_hypervisor = _start_hypervisor(options, stack)
        from guest_svc.demo import demonstrate  # noqa: PLC0415  (imports numpy and grpc)

        demonstrate(_connect(find_hypervisor, stack, options), write_output)
    return 0


def _workloads(options: argparse.Namespace) -> int:
    """List the workloads."""
    import json  # noqa: PLC0415  (only for this output)

    from guest_svc import sources  # noqa: PLC0415  (imports the workloads)

    workloads = sources.list_workloads()
    if options.output == "json":
        write_output(json.dumps({"workloads": workloads}, indent=2) + "\n")
    else:
        write_output(sources.list_csv(workloads) if options.output == "csv" else sources.list_text(workloads))
    return 0


def _conform(options: argparse.Namespace) -> int:
    """Run vector files and print what came of them."""
    with _command() as stack:
        find_hypervisor = _start_hypervisor(options, stack)
        from pathlib import Path  # noqa: PLC0415  (with the rest of what is imported late)

        from guest_svc import conform, render_conform, results, vectors  # noqa: PLC0415  (imports numpy and grpc)

        paths = [Path(path) for path in options.vectors] or vectors.SHIPPED
        chosen = [vector for path in paths for vector in vectors.read_vectors(path)]
        hypervisor = _connect(find_hypervisor, stack, options)
        vendors = [
            results.vendor_number(name) for name in ([options.vendor] if options.vendor else ("vmx", "svm"))
        ]
        summaries = hypervisor.policies()
        conform.check_named_policies(chosen, summaries)
        lanes = conform.choose_lanes(summaries, options.policy or options.default_policies, vendors)
        document = conform.run_vectors(hypervisor, chosen, lanes).document()
        write_output(render_conform.formatted(document, options.output, has_detail=options.detail))
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


def _start_hypervisor(options: argparse.Namespace, stack: ExitStack) -> Callable[[], tuple[str, Tls | None]]:
    """Start a private hypervisor unless an address is given; the result waits for its address."""
    tls = chosen_tls(options)
    if options.hypervisor:
        address = checked_address(options.hypervisor)
        return lambda: (address, tls)
    from guest_svc.embedded import EmbeddedHypervisor  # noqa: PLC0415  (needed only without an address)

    embedded = stack.enter_context(EmbeddedHypervisor())
    return lambda: (embedded.address, None)


def _connect(
    find_hypervisor: Callable[[], tuple[str, Tls | None]], stack: ExitStack, options: argparse.Namespace
) -> Hypervisor:
    """Connect to the hypervisor; a private one that ends is not looked for again."""
    import gc  # noqa: PLC0415

    from guest_svc.hypervisor import Hypervisor  # noqa: PLC0415  (imports grpc)

    gc.enable()
    retry_seconds = options.retry_seconds if options.hypervisor else 0.0
    address, tls = find_hypervisor()
    return stack.enter_context(Hypervisor(address, tls, retry_seconds=retry_seconds))
