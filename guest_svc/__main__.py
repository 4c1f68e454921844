"""Runs the guest's commands as ``python -m guest_svc``."""

import sys

from guest_svc.cli import main

sys.exit(main())
