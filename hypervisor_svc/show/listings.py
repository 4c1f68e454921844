"""The listing commands: each returns what it prints."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from exitlab.command_line import tell
from exitlab.serving.refusals import CannotServe
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc import pricing, store
from hypervisor_svc.policies.base import PolicyError
from hypervisor_svc.show.json_text import as_json
from hypervisor_svc.show.text import aligned

VENDORS: Final = {"vmx": 1, "svm": 2}
_Rows = Sequence[Sequence[str]]


class CannotList(Exception):
    """What was asked for is not there, or cannot be read."""


def policies(options: argparse.Namespace) -> str:
    """Return the policies."""
    summaries = shipped.policy_summaries(lambda why: tell("hypervisor-svc", f"left out: {why}"))
    if options.output == "json":
        return f"{as_json(hypervisor_pb2.ListPoliciesResponse(policies=summaries))}\n"
    words = {number: word for word, number in VENDORS.items()}
    rows = [
        (
            policy.name + (" (default)" if policy.is_default else ""),
            " ".join(words[vendor] for vendor in policy.vendors),
            " ".join(words[vendor] for vendor in policy.correct_vendors) or "no",
            policy.summary,
            policy.source,
        )
        for policy in summaries
    ]
    return _table(("policy", "vendors", "claims to be correct on", "summary", "source"), rows)


def policy(options: argparse.Namespace) -> str:
    """Return a policy's table, or how two differ.

    Raises:
        CannotList: there is no such policy, or its class has a mistake.

    """
    from hypervisor_svc.engine import BadTable  # noqa: PLC0415  (the other listings need no engine)
    from hypervisor_svc.show.output import shown  # noqa: PLC0415

    try:
        vendor = VENDORS[options.vendor] if options.vendor else shipped.policy_vendors(options.name)[0]
        table, other = _checked_table(options.name, vendor), None
        if options.diff is not None:
            name, has_vendor, word = options.diff.partition("@")
            if has_vendor and word not in VENDORS:
                known = ", ".join(VENDORS)
                message = f"--diff {options.diff}: no vendor is named {word!r}; there are {known}"
                raise CannotList(message)
            other = _checked_table(name, VENDORS[word] if has_vendor else vendor)
    except (shipped.UnknownPolicy, shipped.NoSuchVendor, PolicyError, BadTable) as error:
        raise CannotList(str(error)) from error
    return shown(table, other, options.output)


def _checked_table(name: str, vendor: int) -> policy_pb2.PolicyTable:
    """Return a policy's table, checked as a session would.

    Raises:
        UnknownPolicy, NoSuchVendor: there is no such policy, or not on that vendor.
        PolicyError, BadTable: the policy's class has a mistake.

    """
    from hypervisor_svc.engine.tables import make_table  # noqa: PLC0415  (the other listings need no engine)

    table = shipped.policy_table(name, policy_pb2.Vendor.ValueType(vendor), policy_pb2.CpuFeatures())
    make_table(table)
    return table


def prices(options: argparse.Namespace) -> str:
    """Return the price lists, with the source of each price."""
    lists = pricing.price_lists().values()
    if options.output == "json":
        return f"{as_json(hypervisor_pb2.ListPricesResponse(price_lists=lists))}\n"
    parts = []
    for listed in lists:
        rows = [
            (
                price.name,
                f"{price.cycles:,}",
                f"{price.low_cycles:,} to {price.high_cycles:,}",
                "assumed" if price.is_assumption else "",
                price.source,
            )
            for price in listed.prices
        ]
        title = f"{listed.name}: {listed.summary}; {listed.clock_hertz / 1e9:g} GHz"
        parts.append(f"{title}\n\n{_table(('price', 'cycles', 'range', '', 'source'), rows)}")
    return "\n".join(parts)


def reports(options: argparse.Namespace) -> str:
    """Return the stored reports; their sessions' ids are what ``guest-svc compare --with`` takes.

    Raises:
        CannotList: the folder keeps none, or cannot be read.

    """
    try:
        found = store.reports(Path(options.state_dir))
    except CannotServe as error:
        raise CannotList(str(error)) from error
    ends = [
        "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        for at in (report.ended_at for report in found)
    ]
    if options.output == "json":
        listed = [{**report._asdict(), "ended_at": end} for report, end in zip(found, ends, strict=True)]
        return json.dumps({"reports": listed}, indent=2) + "\n"
    rows = [
        (str(report.number), end, report.label, f"{report.events:,}", str(report.lanes), report.session_id)
        for report, end in zip(found, ends, strict=True)
    ]
    return _table(("number", "ended", "label", "events", "lanes", "session"), rows)


def _table(header: Sequence[str], rows: _Rows) -> str:
    return "\n".join(aligned([header, *rows])) + "\n"
