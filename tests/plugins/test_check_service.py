"""check-workload against a guest service: one that keeps the contract passes, and each MUST can fail."""

import json
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest

from exitlab.command_line import BAD_INPUT
from exitlab.v1 import guest_pb2_grpc
from guest_svc.check.musts import Finding, Result, run_musts
from guest_svc.check.remote import Remote
from guest_svc.check.service import MUSTS
from guest_svc.check.stand import Stand
from guest_svc.cli import main
from guest_svc.window import Window
from tests.plugins.guest_service import NAME, serving
from tests.plugins.test_check_workload import SCHEMA

EVENTS = 6_000
NAMES = [must.name for must in MUSTS]


def check(stand: Stand, address: str, seconds: float = 30.0) -> dict[str, Finding]:
    """Try a service and return what was found, by MUST."""
    with grpc.insecure_channel(address) as channel:
        stub = guest_pb2_grpc.GuestServiceStub(channel)
        remote = Remote(stub, stand, NAME, False, {}, 0, EVENTS, seconds)
        return {finding.name: finding for finding in run_musts(MUSTS, remote)}


def failed(found: dict[str, Finding]) -> set[str]:
    """Return the MUSTs that have failed."""
    return {name for name, finding in found.items() if finding.result is Result.FAIL}


def test_a_service_that_keeps_the_contract_passes(stand: Stand, tmp_path: Path) -> None:
    """All MUSTs pass, and the seed is told."""
    with serving(tmp_path) as address:
        found = check(stand, address)
    assert {name: each.result for name, each in found.items() if each.result is not Result.PASS} == {
        "seed": Result.TOLD
    }, found


BREAKING: list[tuple[str, set[str], str]] = [
    ("odd list", {"listed"}, "has the default 'many', which is no int"),
    ("unknown is invalid", {"unknown"}, "failed with INVALID_ARGUMENT: no such workload, expected NOT_FOUND"),
    ("no check", {"bad-config"}, "a parameter that is not there is not refused"),
    ("other report", {"finishes"}, "its report is not the hypervisor's, byte for byte"),
    ("any seed", {"same-seed", "cut-stream"}, "two runs of seed 0 sent other events"),
    ("starts again", {"idempotent"}, "a repeated request id gave run"),
    ("goes back", {"watched"}, "sent_events went back from 1,000,000,000"),
    ("gives up", {"cut-stream"}, "the run is failed, expected finished: "),
    ("no reconnects", {"cut-stream"}, "the status tells of no reconnect"),
    ("oldest first", {"listed-runs"}, "not there once each, newest first"),
]


@pytest.mark.parametrize(("fault", "names", "said"), BREAKING, ids=[row[0] for row in BREAKING])
def test_a_must_that_is_broken_fails(
    fault: str, names: set[str], said: str, stand: Stand, tmp_path: Path
) -> None:
    """Just the MUST that it is about, with the reason."""
    with serving(tmp_path, fault) as address:
        found = check(stand, address)
    assert failed(found) == names, found
    assert any(said in found[name].note for name in names), found


def test_one_that_disregards_the_window_is_seen(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends on while nothing is answered."""
    monkeypatch.setattr(Window, "has_room", lambda _window, _end: True)
    with serving(tmp_path) as address:
        found = check(stand, address)
    assert "bounded" in failed(found)
    assert "events were sent and not answered; the hypervisor allows 2,048" in found["bounded"].note


def test_a_run_that_does_not_stop_is_told(stand: Stand, tmp_path: Path) -> None:
    """It is waited for so long and no longer."""
    with serving(tmp_path, "never stops") as address:
        found = check(stand, address, seconds=2.0)
    assert failed(found) == {"stopped"}
    assert "DEADLINE_EXCEEDED" in found["stopped"].note


def test_the_command_checks_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its document has the same form as a workload's; a name that is not there is bad input."""
    with serving(tmp_path) as address:
        command = ["check-workload", "--address", address, "--output", "json", "--events", str(EVENTS)]
        assert main(command) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, SCHEMA)
        assert (document["kind"], document["subject"], document["workload"]) == ("service", address, NAME)
        assert [must["name"] for must in document["musts"]] == NAMES
        assert main([*command, "oi"]) == BAD_INPUT
        assert capsys.readouterr().err.endswith(f"no workload 'oi'; did you mean {NAME}?\n")
