"""A log that nobody has configured."""

import subprocess
import sys


def test_it_is_no_output() -> None:
    """Whatever imports a server's parts, its lines go to standard error, as a configured log's do."""
    script = "from exitlab.serving.logs import log; log.info('here')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "here" in done.stderr
