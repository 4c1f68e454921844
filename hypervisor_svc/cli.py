"""The hypervisor's commands.

Only argparse is imported at the top: help needs nothing else, and the compiler that the engine
brings takes longer than most commands.
"""

# ruff: noqa: PLC0415  (imports wait for the command that needs them)
from __future__ import annotations

import argparse
import os
import sys

from exitlab.command_line import (
    BAD_INPUT,
    INTERRUPTED,
    TRACEBACK_VARIABLE,
    Parser,
    ShowVersion,
    leave,
    run_command,
    tell,
    write_output,
)
from exitlab.serving.options import add_process_options, add_who_may_in

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_LISTEN = "127.0.0.1:50551"
VENDORS = ("vmx", "svm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        options = _parser(given).parse_args(given)
        return run_command("hypervisor-svc", _told, options)
    except KeyboardInterrupt:  # before the command began: the parser imports too
        return INTERRUPTED


def _told(options: argparse.Namespace) -> int:
    """Run the chosen command; tell in one line if the engine's compiler is not installed."""
    try:
        code: int = options.command(options)
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return _bad_input("the engine needs numba: install exitlab[hypervisor]")
    return code


def _parser(given: list[str]) -> argparse.ArgumentParser:
    parser = Parser(prog="hypervisor-svc", description="An emulated hypervisor, as a service.")
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="serve guests until a signal")
    serve.set_defaults(command=_serve)
    _add_serve_options(serve)
    add_who_may_in(serve, "sessions")
    if given[:1] == ["serve"]:
        from exitlab.serving.limits import add_limits
        from hypervisor_svc.limits import ServerLimits

        add_limits(serve, ServerLimits)

    warm = commands.add_parser("warm", help="compile the engine now, so that no start has to")
    warm.set_defaults(command=_warm)

    policies = commands.add_parser("policies", help="list the policies")
    policies.set_defaults(command=_list, listing="policies")

    policy = commands.add_parser("policy", help="print a policy's table, or how two differ")
    policy.set_defaults(command=_list, listing="policy")
    help_text = "a policy's name, or your own: ./FILE.py:CLASS, MODULE:CLASS, or its table, FILE.json"
    policy.add_argument("name", metavar="NAME", help=help_text)
    policy.add_argument("--vendor", choices=VENDORS, help="default vmx, or the only one that it exists on")
    help_text = "show what is different in another, or on another vendor (default the same)"
    policy.add_argument("--diff", metavar="OTHER[@VENDOR]", help=help_text)
    _add_parent_pipe(policy)

    prices = commands.add_parser("prices", help="list the price lists, with the source of each price")
    prices.set_defaults(command=_list, listing="prices")

    reports = commands.add_parser("reports", help="list the reports that a state directory keeps")
    reports.set_defaults(command=_list, listing="reports")
    reports.add_argument("--state-dir", metavar="DIR", required=True, help="the one that serve has")
    for listing in (policies, policy, prices, reports):
        outputs = ("text", "json", "dot", "lanes") if listing is policy else ("text", "json")
        help_text = "default text" + ("; lanes: a line for each vendor and CPU" if listing is policy else "")
        listing.add_argument("--output", choices=outputs, default="text", help=help_text)
    return parser


def _add_serve_options(serve: argparse.ArgumentParser) -> None:
    add_process_options(serve, DEFAULT_LISTEN)
    add = serve.add_argument
    help_text = "keep sessions in this folder, so that they survive a crash of the server"
    add("--state-dir", metavar="DIR", help=help_text)
    _add_parent_pipe(serve)
    add("--own-folder", metavar="DIR", help="remove this folder with the socket, should the parent be gone")


def _add_parent_pipe(parser: argparse.ArgumentParser) -> None:
    help_text = "exit at once when this inherited pipe ends"
    parser.add_argument("--parent-pipe", metavar="FD", type=int, help=help_text)


def _bad_input(message: object) -> int:
    tell("hypervisor-svc", message)
    return BAD_INPUT


def _serve(options: argparse.Namespace) -> int:
    if options.own_folder is not None and options.parent_pipe is None:
        return _bad_input("--own-folder: needs --parent-pipe")
    if options.state_dir == "":  # a shell's variable that is not set, perhaps
        return _bad_input("--state-dir: expected a folder")
    if trouble := _watch_parent(options):
        return _bad_input(trouble)
    # gRPC would print its own lines about a port in use, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import asyncio
    import gc
    from pathlib import Path

    # What is imported stays: looking through it for garbage, again and again, is a quarter of the start.
    gc.disable()
    from exitlab.serving import logs
    from exitlab.serving.limits import chosen_limits
    from exitlab.serving.refusals import CannotServe
    from exitlab.serving.tls import chosen_files
    from hypervisor_svc import drain
    from hypervisor_svc.limits import ServerLimits
    from hypervisor_svc.parts import Parts

    logs.configure(options.log_format, options.log_level)
    parts = Parts.installed()
    gc.freeze()
    gc.enable()
    limits = chosen_limits(ServerLimits, options)
    state_dir = None if options.state_dir is None else Path(options.state_dir)

    def say(address: str) -> None:
        write_output(f"listening on {address}\n")

    async def serve_and_leave(asked: drain.ServeOptions) -> None:
        leave(await drain.serve(asked, parts, say))

    try:
        files = (options.tls_cert, options.tls_key, options.tls_client_ca)
        tls = chosen_files(*files, is_insecure=options.insecure)
        asked = drain.ServeOptions(options.listen, limits, options.insecure, options.grace, state_dir, tls)
        asyncio.run(serve_and_leave(asked))
    except CannotServe as error:
        return _bad_input(error)
    return 0


def _watch_parent(options: argparse.Namespace) -> str:
    """Leave with the parent that holds the other end of the pipe, if any; return what is wrong with it."""
    pipe, folder = options.parent_pipe, getattr(options, "own_folder", None)
    if pipe is None:
        return ""
    import contextlib

    from exitlab.lifeline import leave_with_parent

    def clean_up() -> None:
        if folder is not None:  # a parent that was killed could not
            with contextlib.suppress(OSError):
                os.unlink(options.listen.removeprefix("unix:"))
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    try:
        leave_with_parent(pipe, last=clean_up)
    except OSError as error:
        return f"--parent-pipe {pipe}: {error.strerror or error}"
    return ""


def _warm(options: argparse.Namespace) -> int:
    """Compile the engine, or find it compiled."""
    del options
    import hypervisor_svc.engine.engine  # noqa: F401  (its import compiles)

    return 0


def _list(options: argparse.Namespace) -> int:
    """Print one of the listings."""
    if getattr(options, "state_dir", None) == "":
        return _bad_input("--state-dir: expected a folder")
    if options.listing == "policy" and (trouble := _watch_parent(options)):
        return _bad_input(trouble)
    from exitlab.plugins import PluginError
    from hypervisor_svc.show import listings

    try:
        text = getattr(listings, options.listing)(options)
    except listings.CannotList as error:
        if os.environ.get(TRACEBACK_VARIABLE) and isinstance(error.__cause__, PluginError):
            import traceback

            traceback.print_exc()  # its author looks for his mistake
        return _bad_input(error)
    write_output(text)
    return 0
