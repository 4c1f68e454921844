"""Runs the hypervisor's commands as ``python -m hypervisor_svc``."""

import sys

from hypervisor_svc.cli import main

sys.exit(main())
