"""The server that clients of v1 meet, and what comes of their session when the guest of today runs it."""

from tests.clients.conftest import by_guest, server

__all__ = ["by_guest", "server"]
