"""Workloads that others have written for ``guest_svc.api``, as sources like our own."""

from guest_svc.authored.author import AuthorError
from guest_svc.authored.source import AuthoredSource, authored_source

__all__ = ["AuthorError", "AuthoredSource", "authored_source"]
