"""A run from inside its process: what it refuses, and what an error of the guest's becomes."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exitlab.v1 import guest_pb2
from guest_svc import errors
from guest_svc.service.child import failure_of, run
from guest_svc.service.frames import Failure, Job, Kind

Parameter = guest_pb2.ParameterValue
REFUSED = ("FAILED_PRECONDITION", "RUN_REFUSED")
LONG_NAME = "x\ny" * 9_000
KNOWN = "known: ticks, ticks_per_guest_second, clock_hertz, wake_up_percent"


def said(config: guest_pb2.RunConfig, hypervisor: str = "unix:/nowhere") -> list[tuple[Kind, bytes]]:
    """Run a config and return what is said."""
    frames: list[tuple[Kind, bytes]] = []
    run(Job(config, hypervisor), lambda kind, payload: frames.append((kind, payload)))
    return frames


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        (
            {"workload": "idl"},
            ("NOT_FOUND", "UNKNOWN_WORKLOAD", "no workload 'idl'; did you mean idle?", "config.workload"),
        ),
        (
            {"parameters": [Parameter(name="tick", value="1")]},
            (
                *("INVALID_ARGUMENT", "UNKNOWN_PARAMETER"),
                "idle: no parameter 'tick'; did you mean ticks?",
                "config.parameters[0].name",
            ),
        ),
        (
            {"parameters": [Parameter(name="ticks", value="1"), Parameter(name="clock_hertz", value="x")]},
            (
                *(
                    "INVALID_ARGUMENT",
                    "BAD_PARAMETER",
                    "idle: clock_hertz=x: expected int, 1000000 to 10000000000 (Hz)",
                ),
                "config.parameters[1].value",
            ),
        ),
        (
            {"parameters": [Parameter(name="ticks", value="0")]},
            (
                *("INVALID_ARGUMENT", "BAD_PARAMETER"),
                "idle: ticks=0: expected 1 to 1000000000000 (ticks)",
                "config.parameters[0].value",
            ),
        ),
        (
            {
                "parameters": [
                    Parameter(name="ticks_per_guest_second", value="100000000"),
                    Parameter(name="clock_hertz", value="1000000"),
                ]
            },
            ("INVALID_ARGUMENT", "BAD_PARAMETER", None, "config.parameters"),  # they do not go together
        ),
        (
            {"parameters": [Parameter(name=LONG_NAME, value="1")]},
            (
                *("INVALID_ARGUMENT", "UNKNOWN_PARAMETER"),
                f"idle: no parameter {LONG_NAME[:100]!r}; {KNOWN}",
                "config.parameters[0].name",
            ),
        ),
        (
            {"parameters": [Parameter(name="ticks", value="\x1b[1m" * 9_000)]},
            (
                *("INVALID_ARGUMENT", "BAD_PARAMETER"),
                "idle: ticks=" + r"\x1b[1m" * 25 + " ...: expected int, 1 to 1000000000000 (ticks)",
                "config.parameters[0].value",
            ),
        ),
        (
            {},
            ("UNAVAILABLE", "NO_HYPERVISOR", None, "config.hypervisor_address"),
        ),
    ],
)
def test_what_is_refused(fields: dict[str, object], failure: tuple[str, str, str | None, str]) -> None:
    """One word of the end, with code, reason, message and field."""
    config = guest_pb2.RunConfig(**{"workload": "idle", **fields})  # type: ignore[arg-type]  # any field
    ((kind, payload),) = said(config)
    assert kind == Kind.FAILED
    told = Failure.decode(payload)
    code, reason, message, field = failure
    assert (told.code, told.reason, told.field) == (code, reason, field)
    assert message in {None, told.message}


@pytest.fixture
def foreign() -> Iterator[str]:
    """Return the address of an HTTP/2 server that is no hypervisor: it forbids whatever it is asked."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    answer = b"\x08\x03403"  # HPACK: :status 403

    def serve() -> None:
        peer, _ = listening.accept()
        with peer, peer.makefile("rb") as requests:
            peer.sendall(settings)
            assert requests.read(24).startswith(b"PRI * HTTP/2.0")
            while head := requests.read(9):
                requests.read(int.from_bytes(head[:3], "big"))
                if head[3] == 1:  # HEADERS; answered by HEADERS, END_STREAM and END_HEADERS
                    peer.sendall(len(answer).to_bytes(3, "big") + b"\1\5" + head[5:] + answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve)
        server.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    server.join()


def test_what_is_no_hypervisor_is_none(foreign: str) -> None:
    """A server of something else is as good as a port where nobody listens."""
    ((_, payload),) = said(guest_pb2.RunConfig(workload="idle"), foreign)
    told = Failure.decode(payload)
    assert (told.code, told.reason) == ("UNAVAILABLE", "NO_HYPERVISOR")
    assert told.message == f"no hypervisor answers at {foreign}: Received http2 header with status: 403"


def test_a_file_is_no_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the service is none of its workloads, whatever it is called."""
    monkeypatch.chdir(tmp_path)
    Path("mine.npz").touch()
    ((_, payload),) = said(guest_pb2.RunConfig(workload="mine.npz"))
    assert Failure.decode(payload).reason == "UNKNOWN_WORKLOAD"


def refused(
    status: str, field: str = "", kind: type[errors.GuestError] = errors.BadInput
) -> errors.GuestError:
    """Return an error that a hypervisor's refusal was made to."""
    error = kind("words [reason WHY]")
    error.status, error.reason, error.words, error.field = status, "WHY", "words", field
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (errors.NotConnected("gone"), ("UNAVAILABLE", "NO_HYPERVISOR", "gone", "config.hypervisor_address")),
        (errors.BadInput("no"), (*REFUSED, "no", "")),
        (errors.BadInput("\x07" + "n" * 150_000), (*REFUSED, "\\x07" + "n" * 1_999 + " ...", "")),
        (errors.CouldNotFinish("cut"), ("FAILED_PRECONDITION", "RUN_FAILED", "cut", "")),
        (
            refused("INVALID_ARGUMENT", "config.lanes[2].policy_name"),
            ("INVALID_ARGUMENT", "WHY", "words", "config.lanes[2].policy_name"),
        ),
        (
            refused("INVALID_ARGUMENT", "config.leading_vendor"),
            ("INVALID_ARGUMENT", "WHY", "words", "config.lanes[0].vendor"),
        ),
        (refused("RESOURCE_EXHAUSTED"), ("RESOURCE_EXHAUSTED", "WHY", "words", "")),
        (
            refused("PERMISSION_DENIED"),  # of the service, and not of its caller
            ("FAILED_PRECONDITION", "WHY", "words [reason WHY]", ""),
        ),
        (
            refused("ABORTED", kind=errors.CouldNotFinish),
            ("FAILED_PRECONDITION", "WHY", "words [reason WHY]", ""),
        ),
    ],
)
def test_what_an_error_becomes(error: errors.GuestError, failure: tuple[str, str, str, str]) -> None:
    """Refusals that are the caller's to mend, or pass, are passed on; others are between the two services."""
    assert failure_of(error) == Failure(*failure)
