"""The options of the guest's commands; nothing is imported that a help text does not need."""

from __future__ import annotations

import argparse
import os

from exitlab.command_line import Parser, ShowVersion, seconds
from guest_svc.connection import TLS_FLAG, add_tls_options

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Command = Callable[[argparse.Namespace], int]

DEFAULT_POLICY = "kvm-6.14"
COMPARED_POLICIES = ("kvm-3.14", "kvm-6.14", "swap-each-entry", "ignore")
DEFAULT_PRICES = "seed-2014"
HYPERVISOR_VARIABLE = "EXITLAB_HYPERVISOR"
DEFAULT_RETRY_SECONDS = 60.0
DEFAULT_LISTEN = "127.0.0.1:50552"
SERVICE_TLS_FLAG = "--hypervisor-tls"  # a service has a certificate of its own
_SOURCE = "a workload, ./FILE.py:CLASS, MODULE:CLASS, capture:NAME of a shipped trace, or the file of one"


def make_parser(commands: Mapping[str, Command], chosen: str = "") -> argparse.ArgumentParser:
    """Return the parser of all commands; each is done by the function of its name.

    Options that take longer to make are those of the ``chosen`` command only.
    """
    parser = Parser(prog="guest-svc", description="Streams a guest's events to an emulated hypervisor.")
    parser.add_argument("--version", action=ShowVersion)
    add = parser.add_subparsers(metavar="COMMAND", required=True)

    run = add.add_parser("run", help="run a source under one policy")
    run.set_defaults(command=commands["run"])
    _add_source(run, _SOURCE, (DEFAULT_POLICY,))

    compare = add.add_parser("compare", help="run a source under several policies in one pass")
    compare.set_defaults(command=commands["compare"])
    _add_source(compare, _SOURCE, COMPARED_POLICIES)

    replay = add.add_parser("replay", help="compare policies on a recorded trace")
    replay.set_defaults(command=commands["compare"])
    _add_source(replay, "the file of a recorded trace, or the name of a shipped one", COMPARED_POLICIES)
    replay.set_defaults(must_be_recorded=True)

    stat = add.add_parser("stat", help="print a text trace's own exits, as perf kvm stat report does")
    stat.set_defaults(command=commands["stat"])
    _add_stat(stat)

    workloads = add.add_parser("workloads", help="list the workloads and their parameters")
    workloads.set_defaults(command=commands["workloads"])
    _add_output(workloads)
    help_text = "exit at once when this inherited pipe ends"
    workloads.add_argument("--parent-pipe", metavar="FD", type=int, help=help_text)

    demo = add.add_parser("demo", help="run the main comparisons and say what they show")
    demo.set_defaults(command=commands["demo"])
    _add_hypervisor(demo)

    check = add.add_parser(
        "check-workload", help="try whether a workload, or a guest service, keeps what it must"
    )
    check.set_defaults(command=commands["check-workload"])
    _add_check(check)

    conform = add.add_parser("conform", help="check policies against files of vectors")
    conform.set_defaults(command=commands["conform"])
    _add_conform(conform)

    serve = add.add_parser("serve", help="start, watch and stop runs for others, until a signal")
    serve.set_defaults(command=commands["serve"])
    if chosen == "serve":
        _add_serve(serve)
    return parser


def _add_stat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="text of perf script or trace-cmd report, gzip or not")
    parser.add_argument("--vcpu", type=int, metavar="N", help="of the vCPU that the trace calls so only")
    parser.add_argument(
        "--key", choices=("sample", "time"), default="sample", help="what to sort by (default sample)"
    )
    _add_output(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    help_text = "./FILE.py:CLASS, MODULE:CLASS or a name; with --address the name of a workload there"
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=help_text)
    help_text = "a running guest service, on this machine: host:port or unix:PATH"
    parser.add_argument("--address", metavar="ADDR", help=help_text)
    _add_parameter(parser)
    parser.add_argument(
        "--events", type=int, metavar="N", help="events of a run (default: what takes little time)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the workload (default 0)")
    add_tls_options(parser)
    parser.add_argument("--output", choices=("text", "json"), default="text", help="(default text)")


def _add_conform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "vectors", metavar="VECTORS", nargs="*", help="vector files (default: all that are shipped)"
    )
    _add_policies(parser, ("correct",))
    parser.add_argument("--vendor", choices=("vmx", "svm"), help="one vendor only (default both)")
    parser.add_argument(
        "--detail", action="store_true", help="also print each vector's bill, and every failure whole"
    )
    _add_hypervisor(parser)
    _add_output(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from exitlab.serving.limits import add_limits  # noqa: PLC0415  (only a server has them)
    from exitlab.serving.options import add_process_options, add_who_may_in  # noqa: PLC0415
    from guest_svc.service.limits import ServiceLimits  # noqa: PLC0415

    add_process_options(parser, DEFAULT_LISTEN)
    _add_hypervisor(parser, SERVICE_TLS_FLAG)
    help_text = "let a run choose another hypervisor, though others than this machine reach the service"
    parser.add_argument("--any-hypervisor", action="store_true", help=help_text)
    add_who_may_in(parser, "runs")
    add_limits(parser, ServiceLimits)


def _add_source(parser: argparse.ArgumentParser, help_text: str, policies: Sequence[str]) -> None:
    parser.set_defaults(must_be_recorded=False)
    parser.add_argument("source", metavar="SOURCE", help=help_text)
    _add_parameter(parser)
    _add_policies(parser, policies)
    help_text = "(default: that of a recorded trace, else vmx)"
    parser.add_argument("--vendor", choices=("vmx", "svm"), help=help_text)
    parser.add_argument(
        "--events", type=int, metavar="N", help="cut the source, or extend a generated one, to N events"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of a generated workload (default 0)")
    parser.add_argument("--cpi", metavar="X", help="guest cycles of a capture's instruction (default 1)")
    help_text = "replay a text trace also with K accesses in each window of its lazily tracking host"
    parser.add_argument("--accesses-per-window", metavar="K", type=int, help=help_text)
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
    parser.add_argument("--resume", metavar="SESSION", help=help_text)
    help_text = "set a finished session's report beside, as hypervisor-svc reports lists them"
    parser.add_argument("--with", metavar="SESSION", dest="earlier", help=help_text)
    help_text = "write the session's id into this file, for --resume and --with"
    parser.add_argument("--session-file", metavar="FILE", help=help_text)
    parser.add_argument(
        "--fail-on-divergence", action="store_true", help="exit with 1 if a policy's story diverges"
    )
    _add_hypervisor(parser)
    _add_output(parser)


def _add_parameter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the workload; may be repeated",
    )


def _add_policies(parser: argparse.ArgumentParser, defaults: Sequence[str]) -> None:
    parser.add_argument(
        "--policy",
        action="append",
        metavar="P",
        help="a policy's name, 'all', 'correct', or your own: ./FILE.py:CLASS, MODULE:CLASS, or its table, "
        f"FILE.json; may be repeated (default {', '.join(defaults)})",
    )
    parser.set_defaults(default_policies=tuple(defaults))


def _add_hypervisor(parser: argparse.ArgumentParser, tls_flag: str = TLS_FLAG) -> None:
    parser.add_argument(
        "--hypervisor",
        metavar="ADDR",
        default=os.environ.get(HYPERVISOR_VARIABLE),
        help=f"host:port or unix:PATH (default: ${HYPERVISOR_VARIABLE}, else a private one)",
    )
    help_text = f"how long to look for one that has answered and is gone (default {DEFAULT_RETRY_SECONDS:g})"
    parser.add_argument(
        "--retry-seconds", metavar="N", type=seconds(86_400), default=DEFAULT_RETRY_SECONDS, help=help_text
    )
    add_tls_options(parser, tls_flag)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", choices=("text", "json", "csv"), default="text", help="(default text)")
