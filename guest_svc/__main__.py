"""Runs the guest's commands as ``python -m guest_svc``."""

import sys


def run() -> int:
    """Run one command and return its exit code; Ctrl-C ends it in silence, while it is imported too."""
    try:
        from guest_svc.cli import main  # noqa: PLC0415  (an import that is interrupted is caught here)

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
