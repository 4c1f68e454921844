"""What a command starts before it begins: a hypervisor, tabulations, a connection; and their end.

Nothing is imported at the top that a refusal does not need.
"""

# ruff: noqa: PLC0415  (a hypervisor is started before the guest imports numpy and grpc)
from __future__ import annotations

from guest_svc.connection import checked_address, chosen_tls

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import NoReturn

    from guest_svc.hypervisor import Hypervisor
    from guest_svc.tabulation import Tabulation
    from guest_svc.tls import Tls


def command_stack() -> ExitStack:
    """Return what a command's subprocesses and connections are closed by, also if it is terminated."""
    import gc  # a help text needs none of these
    import signal
    from contextlib import ExitStack

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


def start_hypervisor(options: argparse.Namespace, stack: ExitStack) -> Callable[[], tuple[str, Tls | None]]:
    """Start a private hypervisor unless an address is given; the result waits for its address."""
    tls = chosen_tls(options)
    if options.hypervisor:
        address = checked_address(options.hypervisor)
        return lambda: (address, tls)
    from guest_svc.embedded import EmbeddedHypervisor  # needed only without an address

    embedded = stack.enter_context(EmbeddedHypervisor())
    return lambda: (embedded.address, None)


def start_tabulations(options: argparse.Namespace, stack: ExitStack) -> list[Tabulation]:
    """Start to tabulate the policies that the user brings along; the default ones are all known."""
    if not options.policy:
        return []
    from guest_svc import tabulation  # needed only with --policy

    return tabulation.start(options.policy, stack)


def connect(
    find_hypervisor: Callable[[], tuple[str, Tls | None]], stack: ExitStack, options: argparse.Namespace
) -> Hypervisor:
    """Connect to the hypervisor; a private one that ends is not looked for again."""
    import gc

    from guest_svc.hypervisor import Hypervisor  # imports grpc

    gc.enable()
    retry_seconds = options.retry_seconds if options.hypervisor else 0.0
    address, tls = find_hypervisor()
    is_known = bool(getattr(options, "resume", None))  # where the session is
    return stack.enter_context(Hypervisor(address, tls, retry_seconds=retry_seconds, is_known=is_known))
