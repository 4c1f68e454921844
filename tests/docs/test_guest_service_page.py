"""What docs/guest-service.md shows is run, and what its tables say is so."""

import re
from pathlib import Path
from typing import Final

import pytest

from exitlab.serving.limits import limit_flags
from exitlab.v1 import guest_pb2
from guest_svc.service.limits import ServiceLimits
from guest_svc.service.private import PrivateHypervisor
from tests.service.served import serving

PAGE: Final = (Path(__file__).parents[2] / "docs" / "guest-service.md").read_text(encoding="utf-8")
ADDRESS: Final = "127.0.0.1:50552"


def test_the_client_starts_stops_and_watches(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's program, with another port, prints what it says that it prints."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert ADDRESS in code
    names: dict[str, object] = {}
    with serving(PrivateHypervisor()) as service:
        exec(code.replace(ADDRESS, service.address), names)  # the page's own code
        names["channel"].close()  # type: ignore[attr-defined]  # a channel
    printed = capsys.readouterr().out
    assert "context-switch ['switches'" in printed
    assert "state: RUN_STATE_STOPPED" in printed
    *_, last, trapped, lazy = [line for line in printed.splitlines() if re.match("RUN_STATE|kvm", line)]
    assert last.startswith("RUN_STATE_FINISHED ")
    assert f"```\n{trapped}\n{lazy}\n```" in PAGE


def test_every_state_and_every_limit_is_told() -> None:
    """The tables have all states that a run can have, and all flags with their defaults."""
    table = PAGE.partition("## What a state means")[2].partition("\n\n`sent_events`")[0]
    states = re.findall(r"^\| ([A-Z]+) \|", table, re.MULTILINE)
    known = [name.removeprefix("RUN_STATE_") for name in guest_pb2.RunState.keys()]  # noqa: SIM118  (of an enum)
    assert states == [name for name in known if name != "UNSPECIFIED"]
    for name, default, *_ in limit_flags(ServiceLimits):
        (row,) = [line for line in PAGE.splitlines() if f"`--{name.replace('_', '-')}`" in line]
        shown = f"{default >> 20} MiB" if name.endswith("bytes") else str(default)
        assert shown in row.partition("|")[2]
