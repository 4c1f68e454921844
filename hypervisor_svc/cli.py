"""The hypervisor's commands.

Only argparse is imported at the top: help needs nothing else, and the compiler that the engine
brings takes longer than most commands.
"""

# ruff: noqa: PLC0415  (imports wait for the command that needs them)
from __future__ import annotations

import argparse
import os
import sys

from exitlab.command_line import BAD_INPUT, INTERRUPTED, Parser, ShowVersion, run_command, seconds, tell

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

DEFAULT_LISTEN = "127.0.0.1:50551"
DEFAULT_GRACE_SECONDS = 10.0
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
    _add_who_may_in(serve)
    if given[:1] == ["serve"]:
        _add_limits(serve)

    warm = commands.add_parser("warm", help="compile the engine now, so that no start has to")
    warm.set_defaults(command=_warm)

    policies = commands.add_parser("policies", help="list the policies")
    policies.set_defaults(command=_list, listing="policies")

    policy = commands.add_parser("policy", help="print a policy's table, or how two differ")
    policy.set_defaults(command=_list, listing="policy")
    policy.add_argument("name", metavar="NAME", help="the policy")
    policy.add_argument("--vendor", choices=VENDORS, help="default vmx, or the only one that it exists on")
    help_text = "show what is different in another, or on another vendor (default the same)"
    policy.add_argument("--diff", metavar="OTHER[@VENDOR]", help=help_text)

    prices = commands.add_parser("prices", help="list the price lists, with the source of each price")
    prices.set_defaults(command=_list, listing="prices")

    reports = commands.add_parser("reports", help="list the reports that a state directory keeps")
    reports.set_defaults(command=_list, listing="reports")
    reports.add_argument("--state-dir", metavar="DIR", required=True, help="the one that serve has")
    for listing in (policies, policy, prices, reports):
        outputs = ("text", "json", "dot") if listing is policy else ("text", "json")
        listing.add_argument("--output", choices=outputs, default="text", help="default text")
    return parser


def _add_serve_options(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument
    help_text = f"host:port, or unix:PATH; port 0 chooses one, 0.0.0.0 is IPv6 too (default {DEFAULT_LISTEN})"
    add("--listen", metavar="ADDR", default=DEFAULT_LISTEN, help=help_text)
    help_text = "keep sessions in this folder, so that they survive a crash of the server"
    add("--state-dir", metavar="DIR", help=help_text)
    help_text = f"how long a drain may take (default {DEFAULT_GRACE_SECONDS:g})"
    add("--grace", metavar="SECONDS", type=seconds(3_600), default=DEFAULT_GRACE_SECONDS, help=help_text)
    add("--log-format", choices=("console", "json"), default="console", help="default console")
    levels = ("debug", "info", "warning", "error")
    add("--log-level", choices=levels, default="info", help="default info")
    add("--parent-pipe", metavar="FD", type=int, help="exit at once when this inherited pipe ends")
    add("--own-folder", metavar="DIR", help="remove this folder with the socket, should the parent be gone")


def _add_who_may_in(serve: argparse.ArgumentParser) -> None:
    summary = "This machine's own addresses need none of these; any other needs TLS or --insecure."
    add = serve.add_argument_group("who may in", summary).add_argument
    add("--tls-cert", metavar="FILE", help="the server's certificate and its chain, in PEM")
    add("--tls-key", metavar="FILE", help="its private key, in PEM: RSA, P-256 or P-384")
    help_text = "let in only who has a certificate of these authorities; each sees only his own sessions"
    add("--tls-client-ca", metavar="FILE", help=help_text)
    add("--insecure", action="store_true", help="let in everybody who reaches the address")


def _add_limits(serve: argparse.ArgumentParser) -> None:
    from hypervisor_svc.limits import limit_flags

    group = serve.add_argument_group("limits")
    for limit in limit_flags():
        flag = f"--{limit.name.replace('_', '-')}"
        help_text = f"{limit.summary} (default {limit.default:,})"
        whole = _whole(limit.least, limit.largest)
        group.add_argument(flag, metavar="N", type=whole, default=limit.default, help=help_text)


def _whole(least: int, largest: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least:,} to {largest:,}")
        return int(text)

    return whole


def _bad_input(message: object) -> int:
    tell("hypervisor-svc", message)
    return BAD_INPUT


def _serve(options: argparse.Namespace) -> int:
    if options.own_folder is not None and options.parent_pipe is None:
        return _bad_input("--own-folder: needs --parent-pipe")
    if options.state_dir == "":  # a shell's variable that is not set, perhaps
        return _bad_input("--state-dir: expected a folder")
    if options.parent_pipe is not None:
        trouble = _watch_parent(options)
        if trouble:
            return _bad_input(f"--parent-pipe {options.parent_pipe}: {trouble}")
    # gRPC would print its own lines about a port in use, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import asyncio
    import gc
    from pathlib import Path

    # What is imported stays: looking through it for garbage, again and again, is a quarter of the start.
    gc.disable()
    from hypervisor_svc import drain, logs
    from hypervisor_svc.errors import CannotServe
    from hypervisor_svc.limits import ServerLimits, limit_flags
    from hypervisor_svc.parts import Parts
    from hypervisor_svc.tls import chosen_files

    logs.configure(options.log_format, options.log_level)
    parts = Parts.installed()
    gc.freeze()
    gc.enable()
    limits = ServerLimits(**{limit.name: getattr(options, limit.name) for limit in limit_flags()})
    state_dir = None if options.state_dir is None else Path(options.state_dir)

    def say(address: str) -> None:
        print(f"listening on {address}", flush=True)

    async def serve_and_leave(asked: drain.ServeOptions) -> None:
        _leave(await drain.serve(asked, parts, say))

    try:
        files = (options.tls_cert, options.tls_key, options.tls_client_ca)
        tls = chosen_files(*files, is_insecure=options.insecure)
        asked = drain.ServeOptions(options.listen, limits, options.insecure, options.grace, state_dir, tls)
        asyncio.run(serve_and_leave(asked))
    except CannotServe as error:
        return _bad_input(error)
    return 0


def _leave(code: int) -> NoReturn:
    """End the process at once: Python would wait for the engine's threads, however long they take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # nobody reads it any more
    os._exit(code)


def _watch_parent(options: argparse.Namespace) -> str:
    """Leave with the parent that holds the other end of the pipe; return what is wrong with it.

    A thread, so that it works while the event loop does not run yet, or is busy.
    """
    import contextlib
    import threading

    pipe, folder = options.parent_pipe, options.own_folder
    try:
        os.fstat(pipe)
    except OSError as error:
        return error.strerror or str(error)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        if folder is not None:  # a parent that was killed could not
            with contextlib.suppress(OSError):
                os.unlink(options.listen.removeprefix("unix:"))
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
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
    from hypervisor_svc.show import listings

    try:
        text = getattr(listings, options.listing)(options)
    except listings.CannotList as error:
        return _bad_input(error)
    print(text, end="")
    return 0
