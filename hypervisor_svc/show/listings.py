"""The listing commands: each returns what it prints."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exitlab.command_line import tell
from exitlab.plugins import PluginError
from exitlab.serving.refusals import CannotServe
from exitlab.v1 import hypervisor_pb2, policy_pb2
from hypervisor_svc import policies as shipped
from hypervisor_svc import pricing, store
from hypervisor_svc.policies.base import SVM, VMX, PolicyError, Vendor
from hypervisor_svc.show.json_text import as_json, as_line, as_object, to_json
from hypervisor_svc.show.text import aligned

if TYPE_CHECKING:
    from hypervisor_svc.policies.find import Found

VENDORS: Final = {"vmx": VMX, "svm": SVM}
_VENDOR_WORDS: Final = {number: word for word, number in VENDORS.items()}
_Rows = Sequence[Sequence[str]]


class CannotList(Exception):
    """What was asked for is not there, or cannot be read."""


def policies(options: argparse.Namespace) -> str:
    """Return the policies: those that a hypervisor has, then those of packages here with their package."""
    from hypervisor_svc.policies import plugins  # noqa: PLC0415  (a server looks for none)

    summaries = shipped.policy_summaries(_left_out)
    installed = plugins.installed(_left_out)
    if options.output == "json":
        listed = as_object(hypervisor_pb2.ListPoliciesResponse(policies=summaries))
        if installed:  # else the object is what a hypervisor answers
            listed["plug_ins"] = [{**as_object(one), "package": package} for one, package in installed]
        return f"{to_json(listed)}\n"
    rows = [
        (
            policy.name + (" (default)" if policy.is_default else f" ({package})" if package else ""),
            " ".join(_VENDOR_WORDS[vendor] for vendor in policy.vendors),
            " ".join(_VENDOR_WORDS[vendor] for vendor in policy.correct_vendors) or "no",
            policy.summary,
            policy.source,
        )
        for policy, package in [*((one, "") for one in summaries), *installed]
    ]
    return _table(("policy", "vendors", "claims to be correct on", "summary", "source"), rows)


def _left_out(why: str) -> None:
    tell("hypervisor-svc", f"left out: {why}")


def policy(options: argparse.Namespace) -> str:
    """Return a policy's table, or how two differ, or all lanes that it can be.

    Raises:
        CannotList: there is no such policy, or it has a mistake.

    """
    from hypervisor_svc.engine import BadTable  # noqa: PLC0415  (the other listings need no engine)
    from hypervisor_svc.policies.find import find, lanes  # noqa: PLC0415
    from hypervisor_svc.show.output import shown  # noqa: PLC0415

    try:
        found = find(options.name)
        asked = VENDORS[options.vendor] if options.vendor else None
        if options.output == "lanes":
            if options.diff is not None:
                raise CannotList("--output lanes is of one policy; it cannot be given with --diff")
            vendors = found.vendors if asked is None else (_vendor(found, asked),)
            return "".join(f"{as_line(lane)}\n" for lane in lanes(found, vendors))
        vendor = _vendor(found, found.vendors[0] if asked is None else asked)
        table, other = _checked_table(found, vendor), None
        if options.diff is not None:
            word, has_vendor, asked_other = options.diff.rpartition("@")
            if has_vendor and asked_other not in VENDORS:
                known = ", ".join(VENDORS)
                message = f"--diff {options.diff}: no vendor is named {asked_other!r}; there are {known}"
                raise CannotList(message)
            second = find(word if has_vendor else options.diff)
            other = _checked_table(second, _vendor(second, VENDORS[asked_other] if has_vendor else vendor))
    except (shipped.UnknownPolicy, shipped.NoSuchVendor, PolicyError, PluginError, BadTable) as error:
        raise CannotList(str(error)) from error
    return shown(table, other, options.output)


def _vendor(found: "Found", vendor: Vendor) -> Vendor:
    """Return a vendor, if the policy exists on it."""
    shipped.check_vendor(found.name, vendor, found.vendors)
    return vendor


def _checked_table(found: "Found", vendor: Vendor) -> policy_pb2.PolicyTable:
    """Return a policy's table, checked as a session would."""
    from hypervisor_svc.engine.tables import make_table  # noqa: PLC0415  (the other listings need no engine)

    table = found.table(vendor, policy_pb2.CpuFeatures())
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
