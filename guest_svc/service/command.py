"""The command ``guest-svc serve``: from its options to the server's end."""

# ruff: noqa: PLC0415  (a private hypervisor starts before the rest is imported)
from __future__ import annotations

import os

from exitlab.command_line import leave, write_output
from guest_svc.connection import checked_address, chosen_tls
from guest_svc.errors import BadInput
from guest_svc.options import SERVICE_TLS_FLAG

TYPE_CHECKING = False  # typing itself costs a help text a tenth of its time
if TYPE_CHECKING:
    import argparse

    from guest_svc.service.life import ServeOptions
    from guest_svc.service.private import PrivateHypervisor
    from guest_svc.tls import Tls


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal.

    Raises:
        BadInput: It cannot be served as asked.

    """
    # gRPC would print its own lines about a port in use, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import asyncio

    from exitlab.serving import logs
    from exitlab.serving.refusals import CannotServe

    logs.configure(options.log_format, options.log_level)

    def say(address: str) -> None:
        write_output(f"listening on {address}\n")

    async def serve_and_leave(asked: ServeOptions) -> None:
        from guest_svc.service import life

        leave(await life.serve(asked, say))

    hypervisor_tls = chosen_tls(options, SERVICE_TLS_FLAG)
    address = checked_address(options.hypervisor) if options.hypervisor else ""
    private = None
    if not address:
        from guest_svc.service.private import PrivateHypervisor

        private = PrivateHypervisor()
    try:
        asyncio.run(serve_and_leave(_asked(options, private or address, hypervisor_tls)))
    except CannotServe as error:
        raise BadInput(str(error)) from error
    finally:
        if private is not None:
            private.end()
    return 0


def _asked(
    options: argparse.Namespace, hypervisor: str | PrivateHypervisor, hypervisor_tls: Tls | None
) -> ServeOptions:
    """Return what the options ask for; files are looked at here, which a run would do too late."""
    from exitlab.serving.limits import chosen_limits
    from exitlab.serving.tls import chosen_files
    from guest_svc.service.life import ServeOptions
    from guest_svc.service.limits import ServiceLimits

    if hypervisor_tls is not None:
        hypervisor_tls.credentials()
    files = (options.tls_cert, options.tls_key, options.tls_client_ca)
    return ServeOptions(
        listen=options.listen,
        limits=chosen_limits(ServiceLimits, options),
        hypervisor=hypervisor,
        hypervisor_tls=hypervisor_tls,
        retry_seconds=options.retry_seconds,
        is_any_hypervisor=options.any_hypervisor,
        is_insecure=options.insecure,
        grace_seconds=options.grace,
        tls=chosen_files(*files, is_insecure=options.insecure),
    )
