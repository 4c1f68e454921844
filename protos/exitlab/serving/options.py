"""The options that both services serve with; nothing is imported that a help text does not need."""

from __future__ import annotations

import argparse

from exitlab.command_line import seconds

DEFAULT_GRACE_SECONDS = 10.0


def add_process_options(serve: argparse.ArgumentParser, default_listen: str) -> None:
    """Add where a server listens, how it ends, and how it logs."""
    add = serve.add_argument
    help_text = f"host:port, or unix:PATH; port 0 chooses one, 0.0.0.0 is IPv6 too (default {default_listen})"
    add("--listen", metavar="ADDR", default=default_listen, help=help_text)
    help_text = f"how long a drain may take (default {DEFAULT_GRACE_SECONDS:g})"
    add("--grace", metavar="SECONDS", type=seconds(3_600), default=DEFAULT_GRACE_SECONDS, help=help_text)
    add("--log-format", choices=("console", "json"), default="console", help="default console")
    levels = ("debug", "info", "warning", "error")
    add("--log-level", choices=levels, default="info", help="default info")


def add_who_may_in(serve: argparse.ArgumentParser, owned: str) -> None:
    """Add the options of TLS; ``owned`` is what belongs to whoever has a certificate."""
    summary = "This machine's own addresses need none of these; any other needs TLS or --insecure."
    add = serve.add_argument_group("who may in", summary).add_argument
    add("--tls-cert", metavar="FILE", help="the server's certificate and its chain, in PEM")
    add("--tls-key", metavar="FILE", help="its private key, in PEM: RSA, P-256 or P-384")
    help_text = f"let in only who has a certificate of these authorities; each sees only his own {owned}"
    add("--tls-client-ca", metavar="FILE", help=help_text)
    add("--insecure", action="store_true", help="let in everybody who reaches the address")
