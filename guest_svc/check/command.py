"""``check-workload``: a table of MUSTs tried on its subject, as one JSON object."""

from collections.abc import Callable
from typing import Any

from guest_svc.check.musts import check_document, run_musts
from guest_svc.check.stand import Stand
from guest_svc.check.subject import Subject
from guest_svc.check.workload import MUSTS
from guest_svc.workloads.base import WorkloadSource, check_run


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
    findings = run_musts(MUSTS, Subject(text, find, stand, parameters, seed, events))
    return check_document(text, {"kind": "workload", "seed": seed, "parameters": parameters}, findings)
