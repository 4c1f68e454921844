"""``check-workload``: a table of MUSTs tried on its subject, as one JSON object."""

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import grpc

from exitlab.v1 import guest_pb2_grpc
from guest_svc.check import service, workload
from guest_svc.check.musts import check_document, run_musts
from guest_svc.check.remote import Remote, choose
from guest_svc.check.stand import Stand
from guest_svc.check.subject import EVENTS, Subject
from guest_svc.hypervisor import wire_text
from guest_svc.tls import Tls
from guest_svc.workloads.base import WorkloadSource, check_run

_OPTIONS: Final = [("grpc.max_receive_message_length", -1)]


def check_workload(
    stand: Stand,
    text: str,
    find: Callable[[], WorkloadSource],
    parameters: dict[str, str],
    seed: int,
    events: int | None,
) -> dict[str, Any]:
    """Try what a workload in Python must keep, in runs of ``events`` events, and return the JSON object.

    Raises:
        BadInput: The seed or the number of events is none.

    """
    check_run(text, seed, events)
    with stand:
        subject = Subject(text, find, stand, parameters, seed, events)
        findings = run_musts(workload.MUSTS, subject)
    return check_document(text, {"kind": "workload", "seed": seed, "parameters": parameters}, findings)


def check_service(
    stand: Stand,
    address: str,
    tls: Tls | None,
    name: str | None,
    parameters: dict[str, str],
    seed: int,
    events: int | None,
) -> dict[str, Any]:
    """Try what a guest service must keep, in runs of one of its workloads, and return the JSON object.

    Raises:
        NotConnected: No guest service answers at the address.
        BadInput: It has no such workload, or the seed or the number of events is none.

    """
    check_run(address, seed, events)
    make_channel = grpc.insecure_channel if tls is None else tls.channel
    with closing(make_channel(wire_text(address), _OPTIONS)) as channel:
        stub = guest_pb2_grpc.GuestServiceStub(channel)
        chosen = choose(stub, address, name)
        with stand:
            remote = Remote(stub, stand, chosen.name, chosen.is_recorded, parameters, seed, events or EVENTS)
            findings = run_musts(service.MUSTS, remote)
    facts = {"kind": "service", "workload": chosen.name, "seed": seed, "parameters": parameters}
    return check_document(address, facts, findings)
